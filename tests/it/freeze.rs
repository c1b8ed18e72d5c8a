//! Lambda stops an execution environment between two requests, for longer than others keep an idle
//! connection. The first request afterwards is answered.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    block_on,
    cases::first_page,
    database::{Database, cluster},
    function::Function,
    gateway::Gateway,
    proxy::{Fault, Proxy},
};

/// How long the server keeps an idle connection: longer than a busy machine needs from a login to the
/// first statement.
const IDLE: Duration = Duration::from_secs(2);

/// Asks, stops the process, has `lose` lose its connection, and asks again.
fn freeze(url: &str, lose: impl Fn()) {
    let function = Function::start(&[("DATABASE_URL", url)]);
    let event = Gateway::HttpApi.event(&first_page()).unwrap().to_string();
    let before = function.invoke(event.as_bytes()).unwrap();
    assert_eq!(before["statusCode"], 200, "{before}");
    for _ in 0..2 {
        function.pause();
        lose();
        function.resume();
        let (time, after) = function.timed(event.as_bytes());
        let after = after.unwrap();
        assert_eq!(
            (&after["statusCode"], &after["body"]),
            (&before["statusCode"], &before["body"])
        );
        // A second to give up a connection that does not answer, and what a busy machine takes.
        assert!(time < Duration::from_secs(3), "{time:?}");
    }
    function.stop();
}

#[test]
fn the_server_closes_the_idle_connection_of_a_stopped_process() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let count = |sql: &'static str| {
        block_on(async {
            let mut superuser = database.superuser().await;
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut superuser).await.unwrap()
        })
    };
    if count("SELECT count(*) FROM pg_settings WHERE name = 'idle_session_timeout'") == 0 {
        println!("this PostgreSQL keeps idle sessions");
        return;
    }
    block_on(database.run(&format!(
        "ALTER ROLE media_usage IN DATABASE {} SET idle_session_timeout = {}",
        database.name,
        IDLE.as_millis()
    )));
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database()";
    freeze(&database.url(), || {
        let patience = Instant::now() + Duration::from_secs(20);
        while count(sessions) > 0 {
            assert!(Instant::now() < patience, "the connection outlives its idle time");
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn the_network_drops_the_idle_connection_of_a_stopped_process() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let verified = cluster().ca.as_ref().map(|ca| format!("?sslmode=verify-full&sslrootcert={ca}"));
    for parameters in [Some("?sslmode=disable"), verified.as_deref()].into_iter().flatten() {
        // With and without a word about it.
        for fault in [Fault::Reset, Fault::Close, Fault::Silence] {
            let proxy = Proxy::start();
            freeze(&format!("{}{parameters}", proxy.url(&database)), || {
                let before = proxy.strikes();
                proxy.strike(fault);
                assert!(proxy.strikes() > before, "the function keeps no connection");
                // So that, as a rule, the ends are closed when the process goes on.
                thread::sleep(Duration::from_millis(100));
            });
        }
    }
}
