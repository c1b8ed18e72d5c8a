//! What a request ends with when the surroundings fail it: the right page or an honest error, in
//! time; and nothing is left behind.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::Connection as _;

use crate::support::{
    block_on,
    cases::request,
    database::{Database, cluster, lock_media},
    function::{Function, ask, start},
    gateway::Gateway,
    proxy::Proxy,
};

/// How many statements of the function the server is working on.
async fn statements(database: &Database) -> i64 {
    let mut superuser = database.superuser().await;
    let active = "SELECT count(*) FROM pg_stat_activity
                   WHERE usename = 'media_usage' AND datname = current_database() AND state = 'active'";
    sqlx::query_scalar(active).fetch_one(&mut superuser).await.unwrap()
}

#[test]
fn a_statement_is_cancelled_on_the_server_before_the_invocation_ends() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    assert_eq!(ask(&function).0, 200);
    block_on(async {
        let lock = lock_media(&database).await;
        let event = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap().to_string();
        let (begin, within) = (Instant::now(), Duration::from_secs(3));
        let answer = function.invoke_within(event.as_bytes(), within).unwrap();
        let body: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        assert_eq!((&answer["statusCode"], &body["errcode"]), (&504.into(), &"M_UNKNOWN".into()));
        assert!(body["error"].as_str().unwrap().contains("took too long"), "{body}");
        // `pg_cancel_backend` does not wait for the statement's end.
        while statements(&database).await > 0 {
            assert!(begin.elapsed() < within, "a statement outlives its invocation");
        }
        lock.close().await.unwrap();
    });
    // By itself it would have ended the statement too, a second after the connection was dropped.
    let of_this = format!(" media_usage@{} ", database.name);
    let log = fs::read_to_string(&cluster().log).unwrap();
    let mut lines = log.lines().filter(|line| line.contains(&of_this));
    assert!(lines.any(|line| line.contains("canceling statement due to user request")));
    // What has cancelled it answers the next request.
    let patience = Instant::now() + Duration::from_secs(10);
    let mut kept = block_on(database.sessions());
    // The session of the statement may take a moment to end.
    while kept.len() != 1 {
        assert!(Instant::now() < patience, "{kept:?}");
        kept = block_on(database.sessions());
    }
    assert_eq!(ask(&function).0, 200);
    assert_eq!(block_on(database.sessions()), kept);
    let log = function.stop();
    assert!(log.contains("no answer from the database within 1"), "{log}"); // 1.5 s before the end
    assert!(!log.contains("could not be cancelled"), "{log}");
}

#[test]
fn a_statement_that_took_too_long_is_not_asked_again() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    // The goodbye of TLS would count as another.
    let url = format!("{}?sslmode=disable", proxy.url(&database));
    let function = Function::start(&[("DATABASE_URL", &url), ("STATEMENT_TIMEOUT_MS", "200")]);
    assert_eq!(ask(&function).0, 200);
    let before = proxy.round_trips();
    block_on(async {
        let _lock = lock_media(&database).await;
        assert_eq!(ask(&function).0, 504);
    });
    // The token and the page.
    assert_eq!(proxy.round_trips() - before, 2);
    function.stop();
}

#[test]
fn what_was_given_up_ends_on_the_server_too() {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(async {
        let mut superuser = database.superuser().await;
        let version = "SELECT current_setting('server_version_num')::int";
        if sqlx::query_scalar::<_, i32>(version).fetch_one(&mut superuser).await.unwrap() < 140_000
        {
            println!("this PostgreSQL does not look after its clients");
            return;
        }
        let function = start(&database.url());
        assert_eq!(ask(&function).0, 200);
        // Both the idle connection and the new one wait for the lookup of the token.
        sqlx::raw_sql("BEGIN; LOCK access_tokens").execute(&mut superuser).await.unwrap();
        let (status, error) = ask(&function);
        assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
        let patience = Instant::now() + Duration::from_secs(10);
        while statements(&database).await > 0 {
            assert!(Instant::now() < patience, "a statement outlives its request");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        superuser.close().await.unwrap();
        assert_eq!(ask(&function).0, 200);
        let log = function.stop();
        let failed = log.lines().find(|line| line.contains("the request failed")).unwrap();
        let line: Value = serde_json::from_str(failed).unwrap();
        // 4.5 s for both together: the second that the idle one took is the new one's too.
        assert!(line["database_ms"].as_f64().unwrap() < 5_300.0, "{line}");
    });
}

#[test]
fn a_short_deadline_is_no_reason_not_to_ask() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    let event = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap().to_string();
    // One that has passed is none.
    for within in [Duration::from_secs(1), Duration::ZERO] {
        let answer = function.invoke_within(event.as_bytes(), within).unwrap();
        assert_eq!(answer["statusCode"], 200, "{within:?}");
    }
    function.stop();
}

#[test]
fn what_the_role_or_the_database_lacks_is_named() {
    let revoke = |sql: &'static str| {
        let database = block_on(Database::of_conformance("synapse-94"));
        block_on(database.run(sql));
        database
    };
    for (sql, variables, named) in [
        (
            "REVOKE SELECT (locked, admin) ON users FROM media_usage",
            &[][..],
            "the role lacks SELECT ON users (admin, locked)",
        ),
        (
            "REVOKE USAGE ON SCHEMA public FROM PUBLIC, media_usage",
            &[],
            "the role lacks USAGE ON SCHEMA public",
        ),
        (
            "ALTER TABLE profiles RENAME full_user_id TO id",
            &[],
            "there is no column profiles.full_user_id",
        ),
        ("DROP TABLE access_tokens", &[], "there is no table access_tokens"),
        ("SELECT", &[("ACCOUNT_VALIDITY", "true")], "account_validity"),
    ] {
        let database = revoke(sql);
        let url = database.url();
        let function = Function::start(&[&[("DATABASE_URL", url.as_str())], variables].concat());
        let (status, error) = ask(&function);
        assert_eq!((status, error["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{sql}: {error}");
        let log = function.stop();
        assert!(log.contains(named), "{sql}: {log}");
    }
}

#[test]
fn sigterm_closes_the_connection_politely() {
    let database = block_on(Database::of_conformance("synapse-94"));
    // What the server's log says of the sessions of one application.
    let said = |application: &str| {
        let log = fs::read_to_string(&cluster().log).unwrap();
        let by = format!(" {application}: ");
        log.lines().filter(|line| line.contains(&by)).map(str::to_owned).collect::<Vec<_>>()
    };
    for (application, sslmode, is_polite) in [
        ("polite", "prefer", true),
        ("polite without TLS", "disable", true),
        ("killed", "prefer", false),
    ] {
        let parameters = format!("application_name={application}&sslmode={sslmode}");
        let function = start(&format!("{}?{parameters}", database.url()));
        assert_eq!(ask(&function).0, 200);
        if is_polite {
            let (log, status) = function.terminate();
            assert!(status.success(), "{status}: {log}");
            // lambda_runtime's own words, which are in no format of ours.
            let words: Vec<_> = log.lines().filter(|line| line.starts_with('[')).collect();
            assert_eq!(words.len(), 3, "{log}");
        } else {
            function.stop();
        }
        // The server writes the line a moment later.
        while !said(application).iter().any(|line| line.contains("disconnection")) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let lines = said(application);
        let rude = lines.iter().any(|line| {
            line.contains("unexpected EOF") || line.contains("could not receive data from client")
        });
        assert_eq!(!rude, is_polite, "{lines:?}");
    }
}

#[test]
fn the_host_name_is_resolved_at_each_connect() {
    // A file of hosts of one's own needs a mount namespace of one's own.
    let is_possible = Command::new("unshare").args(["-rm", "true"]).output();
    if !is_possible.is_ok_and(|output| output.status.success()) {
        println!("this system does not let its users have namespaces of their own");
        return;
    }
    let database = block_on(Database::of_conformance("synapse-94"));
    let hosts = tempfile(&format!("media-usage-hosts-{}-{}", std::process::id(), database.name));
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let url = database.url().replace("127.0.0.1", "replica.example") + "?sslmode=disable";
    let function = Function::start_by(
        &["unshare", "-rm", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\"", &hosts],
        &[("DATABASE_URL", &url)],
    );
    let (status, error) = ask(&function);
    assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
    fs::write(&hosts, "127.0.0.1 localhost replica.example\n").unwrap();
    assert_eq!(ask(&function).0, 200);
    // And where the name is gone, an open connection is still good.
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    assert!(log.contains("lookup"), "{log}");
    fs::remove_file(&hosts).unwrap();
}

fn tempfile(name: &str) -> String {
    std::env::temp_dir().join(name).to_str().unwrap().to_owned()
}
