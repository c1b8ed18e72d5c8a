//! The session with the database: it only reads, it is verified, and it is replaced when it broke.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    backend::{Repeats, Stutter},
    block_on,
    cases::request,
    database::{Database, TRAP, cluster, lock_media},
    function::{Function, ask, start},
    gateway::Gateway,
    proxy::{Proxy, round_trips},
    read,
};

#[test]
fn nothing_in_the_database_makes_the_function_write() {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run(TRAP));
    // Neither the role's settings, nor the database's, nor those of the URL make the session write.
    block_on(
        database.run(&format!(
            "ALTER DATABASE {} SET default_transaction_read_only = off",
            database.name
        )),
    );
    let url = format!("{}?options=-c%20default_transaction_read_only%3Doff", database.url());
    let function = start(&url);
    assert_eq!(ask(&function).0, 500);
    // 25006: read-only SQL transaction.
    assert!(function.stop().contains("25006"));
    // The trap itself works: without the function's settings it would have written.
    let written = block_on(async {
        let mut superuser = database.superuser().await;
        sqlx::query("SELECT FROM local_media_repository").execute(&mut superuser).await.unwrap();
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM written")
            .fetch_one(&mut superuser)
            .await
            .unwrap()
    });
    assert!(written > 0);
}

#[test]
fn a_connection_that_broke_between_requests_is_replaced() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    for _ in 0..3 {
        assert_eq!(ask(&function).0, 200);
        block_on(database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database()"));
    }
    assert_eq!(ask(&function).0, 200);
    function.stop();
}

#[test]
fn the_connection_is_open_before_the_first_event() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    let deadline = Instant::now() + Duration::from_secs(20);
    while block_on(database.sessions()).is_empty() {
        assert!(Instant::now() < deadline, "no connection without an event");
    }
    function.stop();
}

#[test]
fn a_connection_knows_whether_there_are_only_few_media() {
    let small = |database: &Database| block_on(database.connection()).one_pass;
    let database = block_on(Database::of_conformance("synapse-94"));
    assert!(small(&database));
    // It does not wait for whoever locks the table.
    block_on(async {
        let _lock = lock_media(&database).await;
        assert!(database.connection().await.one_pass);
    });
    let database = block_on(database.enlarge());
    assert!(!small(&database));
    // Nobody has counted yet.
    assert!(!small(&block_on(Database::new("synapse-84"))));
}

#[test]
fn the_session_has_the_settings_that_pay() {
    block_on(async {
        let database = Database::new("synapse-84").await;
        let mut session = database.session().await;
        for (setting, value) in [
            ("search_path", "pg_catalog,pg_temp"),
            ("row_security", "off"),
            ("transaction_isolation", "repeatable read"),
            ("default_transaction_read_only", "on"),
            ("transaction_read_only", "on"),
            ("statement_timeout", "20s"),
            ("plan_cache_mode", "force_custom_plan"),
            ("jit", "off"),
            ("random_page_cost", "1.1"),
            ("work_mem", "64MB"),
            ("application_name", "synapse-media-usage"),
        ] {
            let shown: String = sqlx::query_scalar(&format!("SHOW {setting}"))
                .fetch_one(&mut session)
                .await
                .unwrap();
            assert_eq!(shown, value, "{setting}");
        }
    });
}

/// The answer to an event, without what no other answer has.
fn answer(function: &Function, event: &str) -> Value {
    let mut answer = function.invoke(event.as_bytes()).unwrap();
    if let Some(headers) = answer["headers"].as_object_mut() {
        headers.remove("synapse-trace-id");
    }
    answer
}

#[test]
fn an_answer_is_whole_and_to_its_question_or_asked_for_once_more() {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run("GRANT SELECT ON account_validity TO media_usage"));
    let page = Gateway::HttpApi.event(&request(Some("limit=3"))).unwrap().to_string();
    let events = [
        page.clone(),
        page.replace("syt_admin_ok", "syt_nosuch"),
        page.clone(),
        page.replace("syt_admin_ok", "syt_plain_user"),
        page.replace("limit=3", "limit=3&from=90000"),
    ];
    for (repeats, pooler, least) in [
        (Repeats::Ready, "false", 60),
        (Repeats::Ready, "true", 100),
        (Repeats::Answer, "false", 10),
        (Repeats::Answer, "true", 20),
    ] {
        let server = Stutter::start(&database, repeats);
        let function = Function::start(&[
            ("DATABASE_URL", &server.url),
            ("DATABASE_POOLER", pooler),
            ("ACCOUNT_VALIDITY", "true"),
        ]);
        let expected = events.each_ref().map(|event| answer(&function, event));
        let statuses = expected.each_ref().map(|answer| answer["statusCode"].as_u64().unwrap());
        assert_eq!(statuses, [200, 401, 200, 403, 200]);
        let mut count = 0;
        let check = |number: usize| {
            let (answer, expected) = (answer(&function, &events[number]), &expected[number]);
            // A row that is none of a page cannot be read.
            let is_unreadable = matches!(repeats, Repeats::Answer) && answer["statusCode"] == 500;
            assert!(
                is_unreadable || answer == *expected,
                "{repeats:?} {pooler} {number}: {answer}"
            );
        };
        for number in 0..events.len() {
            for messages in 0.. {
                server.after(messages);
                check(number);
                if !server.has_stuttered() {
                    break;
                }
                // What came behind the answer, the next one meets.
                check((number + 1) % events.len());
                count += 1;
            }
        }
        assert!(count > least, "{repeats:?} {pooler}: {count}");
        let log = function.stop();
        assert!(log.contains("\"retries\":1") && !log.contains("\"retries\":2"), "{log}");
    }
}

#[test]
fn a_probe_is_not_healed_by_half_an_answer() {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run("REVOKE SELECT (displayname) ON profiles FROM media_usage"));
    let server = Stutter::start(&database, Repeats::Ready);
    let function = start(&server.url);
    for messages in 0.. {
        server.after(messages);
        let answer = answer(&function, &read("events/probe.json"));
        assert_eq!(answer["healthy"], false, "{messages}: {answer}");
        if !server.has_stuttered() {
            assert!(messages > 10, "{messages}");
            break;
        }
    }
    function.stop();
}

/// Makes reading users fail with an SQLSTATE of one's own.
fn fail_with(database: &Database, code: &str) {
    block_on(database.run(&format!(
        "CREATE OR REPLACE FUNCTION fail() RETURNS boolean LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'row content' USING ERRCODE = '{code}'; END $$;
         ALTER TABLE users RENAME TO real_users;
         CREATE VIEW users AS SELECT * FROM real_users WHERE fail();
         GRANT SELECT ON users TO media_usage;"
    )));
}

#[test]
fn each_failure_of_the_database_has_its_answer_and_ends_its_connection() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    let pid = || {
        block_on(async {
            let mut superuser = database.superuser().await;
            let pids = "SELECT max(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database()";
            sqlx::query_scalar::<_, Option<i32>>(pids).fetch_one(&mut superuser).await.unwrap()
        })
    };
    for (code, status) in [
        ("08006", 503), // connection failure
        ("40001", 503), // conflict with recovery, on a replica
        ("40P01", 503), // deadlock
        ("53300", 503), // too many connections
        ("53100", 500), // disk full
        ("53400", 500), // temp_file_limit
        ("0A000", 500), // not supported, which is no plan gone stale
        ("26000", 500), // no such prepared statement
        ("42P05", 500), // prepared statement exists already
        ("57P01", 503), // admin shutdown
        ("57P03", 503), // cannot connect now
        ("57014", 504), // canceled
        ("25P04", 504), // transaction timeout
        ("25P03", 503), // idle in transaction
        ("55P03", 503), // lock not available
        ("42501", 500), // insufficient privilege
        ("22012", 500), // data exception
        ("28000", 500), // of a login, which is over
        ("3D000", 500), // no such database
        ("P0001", 500), // raised
        ("XX000", 500), // internal error
    ] {
        let before = pid();
        fail_with(&database, code);
        let (answer, error) = ask(&function);
        assert_eq!(
            (answer, error["errcode"].as_str()),
            (status, Some("M_UNKNOWN")),
            "{code}: {error}"
        );
        block_on(database.run("DROP VIEW users; ALTER TABLE real_users RENAME TO users"));
        assert_eq!(ask(&function).0, 200, "{code}");
        assert_ne!(pid(), before, "{code}");
    }
    let log = function.stop();
    for code in ["08006", "40001", "57014", "22012", "P0001"] {
        assert!(log.contains(&format!("database error {code}")), "{code}: {log}");
    }
    for (code, remedy) in [
        ("53100", "disk is full; enlarge it"),
        ("53400", "raise temp_file_limit"),
        ("26000", "set DATABASE_POOLER=true"),
        ("42P05", "set DATABASE_POOLER=true"),
    ] {
        let of_code = format!("database error {code}");
        let mut lines = log.lines().filter(|line| line.contains(&of_code));
        assert!(lines.all(|line| line.contains(remedy) && line.contains("\"retries\":0")), "{log}");
    }
    // Messages of classes that quote data are left out.
    let quoted = log.lines().filter(|line| line.contains("row content"));
    for code in ["22012", "28000", "3D000", "P0001", "XX000"] {
        assert!(log.contains(&format!("database error {code}")), "{log}");
        assert!(quoted.clone().all(|line| !line.contains(code)), "{log}");
    }
}

#[test]
fn a_row_level_policy_is_an_error_and_hides_nothing() {
    for table in ["access_tokens", "users", "profiles", "local_media_repository"] {
        let database = block_on(Database::of_conformance("synapse-94"));
        let function = start(&database.url());
        assert_eq!(ask(&function).0, 200);
        block_on(database.run(&format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")));
        let (status, error) = ask(&function);
        assert_eq!((status, error["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{error}");
        let log = function.stop();
        assert!(log.contains("42501") && log.contains(&format!(r#"table \"{table}\""#)), "{log}");
        let remedy = format!("run ALTER TABLE public.{table} DISABLE ROW LEVEL SECURITY");
        assert!(log.contains(&remedy), "{log}");
    }
}

#[test]
fn a_column_that_was_altered_costs_a_second_try() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    let page = ask(&function);
    assert_eq!(page.0, 200);
    for sql in [
        "ALTER TABLE users ALTER COLUMN name TYPE varchar",
        "ALTER TABLE profiles ALTER COLUMN displayname TYPE varchar",
    ] {
        block_on(database.run(sql));
        assert_eq!(ask(&function), page, "{sql}");
    }
    let log = function.stop();
    assert_eq!(log.matches("\"retries\":1").count(), 2, "{log}");
}

#[test]
fn tables_of_the_role_s_own_schema_do_not_matter() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    let page = ask(&function);
    assert_eq!(page.0, 200);
    function.stop();
    // "$user" comes first in PostgreSQL's own search path.
    let tables = ["access_tokens", "users", "profiles", "local_media_repository"];
    let tables = tables.map(|it| format!("CREATE TABLE media_usage.{it} (LIKE public.{it});"));
    let grant = "GRANT USAGE ON SCHEMA media_usage TO media_usage;
                 GRANT SELECT ON ALL TABLES IN SCHEMA media_usage TO media_usage;";
    block_on(database.run(&format!("CREATE SCHEMA media_usage; {} {grant}", tables.concat())));
    let function = start(&database.url());
    assert_eq!(ask(&function), page);
    function.stop();
}

#[test]
fn the_tables_may_live_in_another_schema() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    let page = ask(&function);
    block_on(database.run(
        "CREATE SCHEMA \"Synapse_1\"; GRANT USAGE ON SCHEMA \"Synapse_1\" TO media_usage;
         ALTER TABLE access_tokens SET SCHEMA \"Synapse_1\"; ALTER TABLE users SET SCHEMA \"Synapse_1\";
         ALTER TABLE profiles SET SCHEMA \"Synapse_1\";
         ALTER TABLE local_media_repository SET SCHEMA \"Synapse_1\"",
    ));
    assert_eq!(ask(&function).0, 500);
    let log = function.stop();
    assert!(log.contains("Synapse_1") && log.contains("DATABASE_SCHEMA"), "{log}");
    let url = database.url();
    let function =
        Function::start(&[("DATABASE_URL", url.as_str()), ("DATABASE_SCHEMA", "Synapse_1")]);
    assert_eq!(ask(&function), page);
    function.stop();
}

#[test]
fn a_database_that_falls_silent_is_503_in_time() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    let function = Function::start(&[
        ("DATABASE_URL", &proxy.url(&database)),
        ("STATEMENT_TIMEOUT_MS", "100"),
    ]);
    assert_eq!(ask(&function).0, 200);
    proxy.silence(true);
    let (status, error) = ask(&function);
    assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
    proxy.silence(false);
    assert_eq!(ask(&function).0, 200);
    assert!(function.stop().contains(" took too long"));
}

#[test]
fn one_connection_serves_all_requests() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    let connections = || {
        block_on(async {
            let mut superuser = database.superuser().await;
            sqlx::query_as::<_, (i64, i32)>(
                "SELECT count(*), max(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database() \
                 AND application_name = 'synapse-media-usage'",
            )
            .fetch_one(&mut superuser)
            .await
            .unwrap()
        })
    };
    ask(&function);
    let first = connections();
    assert_eq!(first.0, 1);
    for _ in 0..5 {
        ask(&function);
    }
    assert_eq!(connections(), first);
    function.stop();
}

#[test]
fn a_warm_page_takes_two_round_trips_and_a_refusal_one() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let page = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap().to_string();
    let unknown = page.replace("syt_admin_ok", "syt_nosuch");
    let no_admin = page.replace("syt_admin_ok", "syt_plain_user");
    let bad_parameter = page.replace("limit=1", "limit=x");
    let no_token = page.replace("Bearer", "Basic");
    assert_eq!(
        round_trips(&database, [&page, &unknown, &no_admin, &bad_parameter, &no_token]),
        [2, 1, 1, 1, 0]
    );
}

#[test]
fn a_statement_that_takes_too_long_is_504_and_the_next_request_is_answered() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function =
        Function::start(&[("DATABASE_URL", &database.url()), ("STATEMENT_TIMEOUT_MS", "200")]);
    assert_eq!(ask(&function).0, 200);
    // Holding the table makes the statement wait, and waiting counts.
    let (status, error) = block_on(async {
        let _lock = lock_media(&database).await;
        ask(&function)
    });
    assert_eq!((status, error["errcode"].as_str()), (504, Some("M_UNKNOWN")), "{error}");
    assert_eq!(ask(&function).0, 200);
    assert!(function.stop().contains("57014"));
}

#[test]
fn a_statement_that_is_broken_off_late_is_asked_once_more() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&format!("{}?connect_timeout=1", database.url()));
    assert_eq!(ask(&function).0, 200);
    let is_locked = Barrier::new(2);
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database(); COMMIT";
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut lock = block_on(lock_media(&database));
            is_locked.wait();
            // Longer than a connection may take for its first answer, which it has given by now.
            thread::sleep(Duration::from_secs(3));
            block_on(sqlx::raw_sql(terminate).execute(&mut lock)).unwrap();
        });
        is_locked.wait();
        assert_eq!(ask(&function).0, 200);
    });
    let log = function.stop();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(line["retries"], 1, "{log}");
}

#[test]
fn a_database_that_is_not_there_is_503_until_it_is() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let elsewhere = Database { name: format!("{}_later", database.name), ..database };
    let function = start(&elsewhere.url());
    // The server is there and the database is not: that is a matter of configuration.
    assert_eq!(ask(&function).0, 500);
    block_on(database.run(&format!("ALTER DATABASE {} CONNECTION LIMIT 0", database.name)));
    let full = start(&database.url());
    // 53300: too many connections.
    let (status, error) = ask(&full);
    assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
    block_on(database.run(&format!("ALTER DATABASE {} CONNECTION LIMIT -1", database.name)));
    assert_eq!(ask(&full).0, 200);
    assert!(full.stop().contains("53300"));

    let nobody = start("postgres://media_usage:x@127.0.0.1:1/synapse");
    let event = Gateway::HttpApi.event(&request(None)).unwrap();
    let response = nobody.invoke(event.to_string().as_bytes()).unwrap();
    assert_eq!(
        (&response["statusCode"], &response["headers"]["retry-after"]),
        (&503.into(), &"5".into())
    );
    assert!(nobody.stop().contains("refused"));
    function.stop();
}

#[test]
fn a_missing_table_or_grant_is_500_and_the_log_names_it() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    block_on(database.run("REVOKE SELECT (displayname) ON profiles FROM media_usage"));
    assert_eq!(ask(&function).0, 500);
    block_on(database.run("ALTER TABLE users RENAME TO people"));
    assert_eq!(ask(&function).0, 500);
    block_on(database.run(
        "ALTER TABLE people RENAME TO users; GRANT SELECT (displayname) ON profiles TO media_usage",
    ));
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    let missing =
        "permission denied for table profiles; the role lacks SELECT ON profiles (displayname)";
    assert!(log.contains(missing), "{log}");
    assert!(log.contains(r#"relation \"public.users\" does not exist"#), "{log}");
}

#[test]
fn a_wrong_password_is_500_and_in_no_log() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url().replace("p%40ss%2Fword", "hunter2hunter2"));
    let (status, error) = ask(&function);
    assert_eq!((status, error["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{error}");
    let log = function.stop();
    assert!(log.contains("password authentication failed") && !log.contains("hunter2"), "{log}");
}

#[test]
fn tls_is_verified_against_sslrootcert() {
    let Some(ca) = &cluster().ca else {
        println!("this PostgreSQL was built without TLS");
        return;
    };
    let database = block_on(Database::of_conformance("synapse-94"));
    let verified = start(&format!("{}?sslmode=verify-full&sslrootcert={ca}", database.url()));
    assert_eq!(ask(&verified).0, 200);
    block_on(async {
        let mut superuser = database.superuser().await;
        let sessions = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'media_usage' AND datname = current_database()";
        assert_eq!(
            sqlx::query_scalar::<_, Option<bool>>(sessions)
                .fetch_one(&mut superuser)
                .await
                .unwrap(),
            Some(true)
        );
    });
    verified.stop();
    // The throwaway authority is in no list of well-known ones.
    let unknown = start(&format!("{}?sslmode=verify-full", database.url()));
    assert_eq!(ask(&unknown).0, 503);
    let log = unknown.stop();
    assert!(log.contains("UnknownIssuer"), "{log}");
}
