//! A database that lets nobody in for a while, as Aurora does that has to wake up first.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    block_on,
    cases::request,
    database::{Database, lock_media},
    function::{Function, ask, start},
    gateway::Gateway,
    proxy::{Fault, Place, Plan, Proxy},
};

/// The database sleeps: connections get no further than to the proxy.
const ASLEEP: Plan = Plan { fault: Fault::Stall, place: Place::Connect, once: false };

/// Longer than a connection may take that nobody has asked to wait for.
const LONG: Duration = Duration::from_millis(3500);

/// Shorter than what counts as a long connect, and twice as much is longer.
const NOT_LONG: Duration = Duration::from_millis(2500);

/// The status of a request for a page, `from` there, that has so much time.
fn page(function: &Function, from: u32, within: Duration) -> Value {
    let case = request(Some(&format!("limit=1&from={from}")));
    let event = Gateway::HttpApi.event(&case).unwrap().to_string();
    function.invoke_within(event.as_bytes(), within).unwrap()["statusCode"].clone()
}

/// Waits until so many connections have been tried. Lambda would have ended an init by then that is
/// still under way.
fn wait_for(proxy: &Proxy, connections: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while proxy.strikes() < connections {
        assert!(Instant::now() < deadline, "no connection number {connections}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a statement waits for a lock.
fn wait_for_a_statement(database: &Database) {
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity
                  WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let deadline = Instant::now() + Duration::from_secs(10);
    while !block_on(async {
        let mut superuser = database.superuser().await;
        sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut superuser).await.unwrap()
    }) {
        assert!(Instant::now() < deadline, "no statement");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A function that waits 20 s, whose init has given up.
fn function(proxy: &Proxy, database: &Database) -> Function {
    proxy.plan(ASLEEP);
    start(&format!("{}?connect_timeout=20", proxy.url(database)))
}

#[test]
fn a_request_waits_for_a_connection_as_long_as_the_url_says_and_init_does_not() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    let function = function(&proxy, &database);
    thread::scope(|scope| {
        scope.spawn(|| {
            // The first is of init.
            wait_for(&proxy, 2);
            thread::sleep(LONG);
            proxy.heal();
        });
        assert_eq!(ask(&function).0, 200);
    });
    assert!(function.stop().contains("not ready yet"));

    proxy.plan(ASLEEP);
    let impatient = start(&format!("{}?connect_timeout=1", proxy.url(&database)));
    let (status, error) = ask(&impatient);
    assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
    assert!(impatient.stop().contains(" took too long"));
}

#[test]
fn running_out_of_time_after_a_long_connect_is_503() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    let function = function(&proxy, &database);
    // The invocation ends before the connection is there.
    assert_eq!(page(&function, 0, Duration::from_secs(5)), 503);
    // Or before the statement does, which the connection has left little time for.
    let lock = block_on(lock_media(&database));
    let tried = proxy.strikes();
    let status = thread::scope(|scope| {
        scope.spawn(|| {
            wait_for(&proxy, tried + 1);
            thread::sleep(LONG);
            proxy.heal();
        });
        page(&function, 0, Duration::from_secs(8))
    });
    assert_eq!(status, 503);
    // Without one it is the statement that took too long.
    assert_eq!(page(&function, 0, Duration::from_secs(3)), 504);
    drop(lock);
    assert_eq!(page(&function, 0, Duration::from_secs(8)), 200);
    let log = function.stop();
    let late: Vec<_> = log.split(" ms: connecting took too long").skip(1).collect();
    assert_eq!(late.len(), 2, "{log}");
    // Where connecting has come to an end, the log says how long it took: what it waited, and not all.
    assert!(late[0].starts_with('"'), "{log}");
    let ms: u64 = late[1].strip_prefix(", ").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((3000..6500).contains(&ms), "{log}");
}

#[test]
fn running_out_of_time_after_two_connects_that_are_long_together_is_503() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    let function = function(&proxy, &database);
    // Init is over before a request is answered.
    assert_eq!(page(&function, 0, Duration::from_secs(2)), 503);
    let lock = block_on(lock_media(&database));
    let tried = proxy.strikes();
    let status = thread::scope(|scope| {
        scope.spawn(|| {
            wait_for(&proxy, tried + 1);
            thread::sleep(NOT_LONG);
            proxy.heal();
            wait_for_a_statement(&database);
            proxy.plan(ASLEEP);
            proxy.strike(Fault::Reset);
            thread::sleep(NOT_LONG);
            proxy.heal();
        });
        page(&function, 0, Duration::from_secs(10))
    });
    drop(lock);
    let log = function.stop();
    assert_eq!(status, 503, "{log}");
    let (_, late) = log.rsplit_once(" ms: connecting took too long, ").unwrap();
    let ms: u64 = late.split(' ').next().unwrap().parse().unwrap();
    assert!((3000..8500).contains(&ms), "{log}");
}

#[test]
fn a_walk_s_page_waits_beyond_the_half_of_its_time_that_reading_ahead_has() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    let function = start(&format!("{}?connect_timeout=20", proxy.url(&database)));
    assert_eq!(page(&function, 0, Duration::from_secs(12)), 200);
    proxy.plan(ASLEEP);
    proxy.strike(Fault::Reset);
    let tried = proxy.strikes();
    thread::scope(|scope| {
        scope.spawn(|| {
            // The first is of the half.
            wait_for(&proxy, tried + 2);
            proxy.heal();
        });
        assert_eq!(page(&function, 1, Duration::from_secs(12)), 200);
    });
    let log = function.stop();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    // On a new connection in place of the one that broke, and on another for the page alone.
    assert_eq!((&line["retries"], &line["read_ahead"]), (&2.into(), &Value::Null), "{log}");
}

#[test]
fn a_database_that_fell_asleep_between_requests_is_503_however_little_time_there_is() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    let function = start(&proxy.url(&database));
    assert_eq!(page(&function, 0, Duration::from_secs(10)), 200);
    proxy.plan(ASLEEP);
    proxy.strike(Fault::Reset);
    // Less than connecting may take: no statement is under way any more.
    assert_eq!(page(&function, 0, Duration::from_secs(3)), 503);
    let log = function.stop();
    assert!(log.contains("connecting took too long"), "{log}");
}
