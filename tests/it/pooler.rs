//! The function through a real pgbouncer in transaction mode, which lends its sessions for one
//! transaction at a time.

use std::{
    fs,
    process::{Command, Stdio},
    str::FromStr,
    thread,
};

use serde::Deserialize;
use sqlx::{Connection as _, PgConnection, Row, postgres::PgConnectOptions};

use crate::support::{
    self, block_on,
    cases::request,
    conformance,
    database::{Database, TRAP, cluster, lock_media},
    function::{Function, ask},
    gateway::Gateway,
    project,
    proxy::Proxy,
};

/// A pgbouncer before the cluster, with one server connection a database.
#[derive(Deserialize)]
struct Pooler {
    port: u16,
    log: String,
}

impl Pooler {
    fn start() -> Option<Self> {
        let tool = project().join("tests/tools/pgbouncer");
        if !Command::new(tool).arg("bin").stdout(Stdio::null()).status().unwrap().success() {
            println!("there is no pgbouncer, and it cannot be had");
            return None;
        }
        Some(support::tool("pgbouncer", &["serve", &cluster().port.to_string(), "1"]))
    }

    fn url(&self, database: &Database) -> String {
        database.url().replace(&format!(":{}/", cluster().port), &format!(":{}/", self.port))
    }

    fn function(&self, database: &Database, pooler: &str) -> Function {
        Function::start(&[("DATABASE_URL", &self.url(database)), ("DATABASE_POOLER", pooler)])
    }
}

#[test]
fn every_recorded_answer_comes_through_a_pooler_that_two_clients_share() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(async { Database::of_conformance("synapse-94").await.enlarge().await });
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let function = pooler.function(&database, "true");
                conformance::assert_none(&conformance::complaints_of_binary(&function));
                // Nothing failed on the way, and nothing was asked twice.
                let log = function.stop();
                assert!(!log.contains("ERROR"), "{log}");
                assert_eq!(log.matches("\"retries\":0").count(), log.lines().count());
            });
        }
    });
    let log = fs::read_to_string(&pooler.log).unwrap();
    // The two never had more than one session between them, and never broke one.
    assert_eq!(log.matches("new connection to server").count(), 1, "{log}");
    assert!(
        !log.contains("closing because: client disconnect while server was not ready"),
        "{log}"
    );
}

#[test]
fn without_the_setting_a_pooler_refuses_the_session() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = pooler.function(&database, "false");
    let (status, error) = ask(&function);
    assert_eq!((status, error["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{error}");
    let log = function.stop();
    assert!(log.contains("unsupported startup parameter"), "{log}");
    assert!(log.contains("set DATABASE_POOLER=true"), "{log}");
}

#[test]
fn a_session_that_breaks_behind_the_pooler_fails_no_request() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = pooler.function(&database, "true");
    let page = ask(&function);
    assert_eq!(page.0, 200);
    for _ in 0..3 {
        block_on(database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database()"));
        assert_eq!(ask(&function), page);
    }
    function.stop();
}

#[test]
fn nothing_is_left_in_the_session_that_was_lent() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = pooler.function(&database, "true");
    let page = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap().to_string();
    let settings =
        ["work_mem", "jit", "random_page_cost", "plan_cache_mode", "transaction_read_only"];
    let session = |pooler: &Pooler| {
        block_on(async {
            let options = PgConnectOptions::from_str(&pooler.url(&database)).unwrap();
            let mut session =
                PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap();
            let mut shown = Vec::new();
            for setting in settings {
                let row = sqlx::raw_sql(&format!("SHOW {setting}")).fetch_one(&mut session).await;
                shown.push(row.unwrap().get::<String, _>(0));
            }
            shown
        })
    };
    let before = session(&pooler);
    // A page, and refusals of either kind.
    for (from, to, status) in [
        ("", "", 200),
        ("syt_admin_ok", "syt_plain_user", 403),
        ("syt_admin_ok", "syt_nosuch", 401),
        ("limit=1", "limit=x", 400),
    ] {
        let event = page.replace(from, to);
        let event = if from.is_empty() { &page } else { &event };
        assert_eq!(function.invoke(event.as_bytes()).unwrap()["statusCode"], status);
        let busy = "SELECT count(*) FROM pg_stat_activity
                     WHERE usename = 'media_usage' AND datname = current_database() AND state <> 'idle'";
        let busy = block_on(async {
            let mut superuser = database.superuser().await;
            sqlx::query_scalar::<_, i64>(busy).fetch_one(&mut superuser).await.unwrap()
        });
        assert_eq!(busy, 0, "{status}");
    }
    assert_eq!(session(&pooler), before);
    function.stop();
}

#[test]
fn the_transaction_has_its_settings_and_only_reads() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    // Without the role's own defaults.
    let defaults = "ALTER ROLE media_usage IN DATABASE {} SET default_transaction_read_only = off;
                    ALTER ROLE media_usage IN DATABASE {} SET statement_timeout = 0";
    block_on(database.run(&defaults.replace("{}", &database.name)));
    let url = pooler.url(&database);
    let function = Function::start(&[
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_POOLER", "true"),
        ("STATEMENT_TIMEOUT_MS", "200"),
    ]);
    assert_eq!(ask(&function).0, 200);
    block_on(async {
        let _lock = lock_media(&database).await;
        assert_eq!(ask(&function).0, 504);
    });
    assert_eq!(ask(&function).0, 200);
    block_on(database.run("REVOKE SELECT (displayname) ON profiles FROM media_usage"));
    assert_eq!(ask(&function).0, 500);
    block_on(database.run("GRANT SELECT (displayname) ON profiles TO media_usage"));
    block_on(database.run(TRAP));
    assert_eq!(ask(&function).0, 500);
    let log = function.stop();
    for cause in ["57014", "the role lacks SELECT ON profiles (displayname)", "25006"] {
        assert!(log.contains(cause), "{cause}: {log}");
    }
}

#[test]
fn a_pooler_without_a_session_to_lend_is_503() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = pooler.function(&database, "true");
    assert_eq!(ask(&function).0, 200);
    block_on(async {
        let options = PgConnectOptions::from_str(&pooler.url(&database)).unwrap();
        let mut other =
            PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut other).await.unwrap();
        let (status, error) = ask(&function);
        assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
        sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    });
    assert_eq!(ask(&function).0, 200);
    assert!(function.stop().contains("is the pooler out of sessions?"));
}

#[test]
fn a_page_takes_six_round_trips() {
    // The server itself is a pooler whose sessions are lent to nobody else.
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    let url = proxy.url(&database);
    let function = Function::start(&[("DATABASE_URL", &url), ("DATABASE_POOLER", "true")]);
    assert_eq!(ask(&function).0, 200);
    let before = proxy.round_trips();
    assert_eq!(ask(&function).0, 200);
    assert_eq!(proxy.round_trips() - before, 6);
    function.stop();
}
