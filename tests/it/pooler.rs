//! The function through a real pgbouncer in transaction mode, which lends its sessions for one
//! transaction at a time.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    str::FromStr,
    thread,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, Row, postgres::PgConnectOptions};

use crate::support::{
    self, block_on,
    cases::request,
    conformance,
    database::{Database, TRAP, cluster, lock, lock_media},
    function::{Function, ask},
    gateway::Gateway,
    homeserver::{Homeserver, refusal},
    project,
    proxy::Proxy,
    read,
    server::Reply,
};

/// A pgbouncer before the cluster, with one server connection a database.
#[derive(Deserialize)]
struct Pooler {
    port: u16,
    log: String,
}

impl Pooler {
    fn start() -> Option<Self> {
        Self::start_with(1, "")
    }

    /// One with more server connections a database, or another setting.
    fn start_with(pool_size: usize, setting: &str) -> Option<Self> {
        let tool = project().join("tests/tools/pgbouncer");
        if !Command::new(tool).arg("bin").stdout(Stdio::null()).status().unwrap().success() {
            println!("there is no pgbouncer, and it cannot be had");
            return None;
        }
        Some(support::tool(
            "pgbouncer",
            &["serve", &cluster().port.to_string(), &pool_size.to_string(), setting],
        ))
    }

    fn url(&self, database: &Database) -> String {
        database.url().replace(&format!(":{}/", cluster().port), &format!(":{}/", self.port))
    }

    fn function(&self, database: &Database, pooler: &str) -> Function {
        Function::start(&[("DATABASE_URL", &self.url(database)), ("DATABASE_POOLER", pooler)])
    }
}

#[test]
fn a_lookup_has_its_time_once_the_pooler_has_answered() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let url = database.url();
    let function = Function::start(&[("DATABASE_URL", &url), ("DATABASE_POOLER", "true")]);
    assert_eq!(ask(&function).0, 200);
    let lock = block_on(lock(&database, "access_tokens"));
    thread::scope(|scope| {
        scope.spawn(move || {
            // Longer than an idle connection may take for its first answer.
            thread::sleep(Duration::from_millis(1500));
            drop(lock);
        });
        assert_eq!(ask(&function).0, 200);
    });
    let log = function.stop();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(line["retries"], 0, "{log}");
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
fn a_pooler_that_drops_the_settings_is_refused_before_a_token_is_asked_for() {
    let dropping = "ignore_startup_parameters = extra_float_digits,options";
    let Some(pooler) = Pooler::start_with(1, dropping) else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run("REVOKE SELECT ON access_tokens FROM media_usage"));
    let function = pooler.function(&database, "false");
    for _ in 0..3 {
        let (status, error) = ask(&function);
        assert_eq!((status, error["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{error}");
    }
    let log = function.stop();
    assert_eq!(log.matches("the session does not have the settings that were sent").count(), 4);
    assert!(log.contains("set DATABASE_POOLER=true"), "{log}");
    // Nothing was looked up, so that nothing could be refused.
    assert!(!log.contains("42501"), "{log}");
    // With the setting the same pooler is good.
    let function = pooler.function(&database, "true");
    block_on(database.run("GRANT SELECT ON access_tokens TO media_usage"));
    assert_eq!(ask(&function).0, 200);
    function.stop();
}

#[test]
fn nothing_is_asked_outside_of_a_transaction_with_the_settings() {
    // One session for the statement, one to cancel it.
    let Some(pooler) = Pooler::start_with(2, "") else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run(&format!("ALTER DATABASE {} SET log_statement = 'all'", database.name)));
    let url = format!("{}?application_name=outside", pooler.url(&database));
    let function = Function::start(&[
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_POOLER", "true"),
        ("STATEMENT_TIMEOUT_MS", "5000"),
    ]);
    assert_eq!(ask(&function).0, 200);
    // A failure is explained, and a statement cancelled.
    block_on(database.run("REVOKE SELECT (displayname) ON profiles FROM media_usage"));
    assert_eq!(ask(&function).0, 500);
    block_on(database.run("GRANT SELECT (displayname) ON profiles TO media_usage"));
    block_on(async {
        let _lock = lock_media(&database).await;
        let event = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap().to_string();
        let answer = function.invoke_within(event.as_bytes(), Duration::from_secs(3)).unwrap();
        assert_eq!(answer["statusCode"], 504);
    });
    assert!(function.stop().contains("the role lacks SELECT ON profiles (displayname)"));
    let log = fs::read_to_string(&cluster().log).unwrap();
    let of_this = format!(" media_usage@{} ", database.name);
    let lines = log.lines().filter(|line| line.contains(&of_this));
    let (mut open, mut seen) = (BTreeSet::new(), [0; 3]);
    for line in lines {
        let Some((_, text)) = line
            .split_once("statement: ")
            .or_else(|| line.split_once("execute "))
            .filter(|_| line.contains("LOG:"))
        else {
            continue;
        };
        let pid = line.split(['[', ']']).nth(1).unwrap();
        if text.starts_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY") {
            assert!(open.insert(pid), "{line}");
            assert!(text.contains("SET LOCAL search_path = pg_catalog,pg_temp"), "{text}");
            assert!(text.contains("SET LOCAL row_security = off"), "{text}");
            seen[0] += 1;
        } else if text.starts_with("COMMIT") {
            assert!(open.remove(pid), "{line}");
        } else if !text.starts_with("SET ") {
            // pgbouncer itself passes on who its client is.
            assert!(open.contains(pid), "{line}");
            seen[1] += usize::from(text.contains("pg_cancel_backend"));
            seen[2] += usize::from(text.contains("WITH needed"));
        }
    }
    assert!(seen[0] >= 4 && seen[1] == 1 && seen[2] == 1, "{seen:?}");
}

#[test]
fn a_refusal_does_not_wait_for_a_session_that_was_lent_to_somebody_else() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    let homeserver = Homeserver::start();
    let url = pooler.url(&database);
    let homeserver_url = homeserver.url();
    let function = Function::start(&[
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_POOLER", "true"),
        ("HOMESERVER_URL", &homeserver_url),
    ]);
    let unknown = Gateway::HttpApi.event(&request(None)).unwrap().to_string();
    let unknown = unknown.replace("syt_admin_ok", "syt_nosuch");
    // While the homeserver thinks, another client takes the only session.
    let answer = refusal(401, "M_UNKNOWN_TOKEN", "no", Some(false));
    homeserver.answers(Reply::Slow(answer, Duration::from_millis(10)));
    let answer = thread::scope(|scope| {
        let other = scope.spawn(|| {
            while homeserver.asked().is_empty() {
                thread::sleep(Duration::from_millis(1));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            let options = PgConnectOptions::from_str(&url).unwrap().extra_float_digits(None);
            let mut other = runtime.block_on(PgConnection::connect_with(&options)).unwrap();
            runtime.block_on(sqlx::raw_sql("BEGIN").execute(&mut other)).unwrap();
            (runtime, other)
        });
        let answer = function.invoke(unknown.as_bytes()).unwrap();
        let (runtime, mut other) = other.join().unwrap();
        runtime.block_on(sqlx::raw_sql("COMMIT").execute(&mut other)).unwrap();
        answer
    });
    assert_eq!(answer["statusCode"], 401, "{answer}");
    assert_eq!(ask(&function).0, 200);
    function.stop();
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
fn a_collation_that_changed_takes_the_indexes_from_nobody_else() {
    let Some(pooler) = Pooler::start() else { return };
    let icu = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C'";
    let shown = block_on(async {
        let any = Database::new("synapse-94").await;
        let version = "SELECT current_setting('server_version_num')::int";
        let mut superuser = any.superuser().await;
        let version = sqlx::query_scalar::<_, i32>(version).fetch_one(&mut superuser).await;
        if version.unwrap() < 150_000 {
            println!("this PostgreSQL cannot tell");
            return None;
        }
        let database = Database::with_options(icu).await;
        database.run(&read("tests/conformance/dataset.sql")).await;
        let changed = "UPDATE pg_database SET datcollversion = '0.1' WHERE datname = '{}'";
        database.run(&changed.replace("{}", &database.name)).await;
        let function = pooler.function(&database, "true");
        assert_eq!(ask(&function).0, 200);
        // The only session is lent to another client next.
        let options = PgConnectOptions::from_str(&pooler.url(&database)).unwrap();
        let other = PgConnection::connect_with(&options.extra_float_digits(None)).await;
        let shown = sqlx::raw_sql("SHOW enable_indexscan").fetch_one(&mut other.unwrap()).await;
        assert!(function.stop().contains("collation library"));
        Some(shown.unwrap().get::<String, _>(0))
    });
    assert!(shown.is_none_or(|it| it == "on"));
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
fn a_failure_keeps_its_cause_where_the_session_goes_to_somebody_else() {
    let Some(pooler) = Pooler::start() else { return };
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = pooler.function(&database, "true");
    assert_eq!(ask(&function).0, 200);
    block_on(database.run("REVOKE SELECT (displayname) ON profiles FROM media_usage"));
    let url = PgConnectOptions::from_str(&pooler.url(&database)).unwrap().extra_float_digits(None);
    // While the page waits for the lock, another client waits for the only session, and keeps it.
    let status = thread::scope(|scope| {
        scope.spawn(|| {
            block_on(async {
                let _lock = lock_media(&database).await;
                tokio::time::sleep(Duration::from_millis(900)).await;
            });
        });
        thread::sleep(Duration::from_millis(200));
        let other = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            thread::sleep(Duration::from_millis(200));
            let mut other = runtime.block_on(PgConnection::connect_with(&url)).unwrap();
            runtime.block_on(sqlx::raw_sql("BEGIN").execute(&mut other)).unwrap();
            (runtime, other)
        });
        let (status, _) = ask(&function);
        drop(other.join().unwrap());
        status
    });
    assert_eq!(status, 500);
    assert!(function.stop().contains("permission denied for table profiles"));
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
        assert_eq!(ask(&function).0, 200);
        // Given up before a session was lent, so that there is no statement to cancel.
        sqlx::raw_sql("BEGIN").execute(&mut other).await.unwrap();
        let event = Gateway::HttpApi.event(&request(None)).unwrap().to_string();
        let within = Duration::from_millis(1500);
        assert_eq!(function.invoke_within(event.as_bytes(), within).unwrap()["statusCode"], 504);
        sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    });
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    assert!(log.contains("is the pooler out of sessions?"), "{log}");
    assert!(!log.contains("cancel"), "{log}");
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
