//! What the database's own log holds of a request, by its settings: the facts behind
//! `docs/database.md`.

use std::fs;

use crate::support::{
    block_on,
    cases::request,
    database::{Cluster, Database},
    function::Function,
    gateway::Gateway,
};

const TOKEN: &str = "syt_admin_ok";
const TERM: &str = "needle-in-a-haystack";

/// Asks twice with these settings of the role. The second time somebody may hold a lock on the media
/// for longer than a statement may take. Returns what the server logged meanwhile, and what
/// `pg_stat_activity` shows of the function's session after the first time.
fn ask(database: &Database, settings: &[(&str, &str)], locked: bool) -> (String, String) {
    for (name, value) in settings {
        block_on(database.run(&format!("ALTER ROLE media_usage SET {name} = '{value}'")));
    }
    let before = fs::read_to_string(&database.cluster.log).unwrap().len();
    let function =
        Function::start(&[("DATABASE_URL", &database.url()), ("STATEMENT_TIMEOUT_MS", "1000")]);
    let query = format!("limit=1&search_term={TERM}");
    let event = Gateway::HttpApi.event(&request(Some(&query))).unwrap().to_string();
    function.invoke(event.as_bytes()).unwrap();
    let queries = "SELECT string_agg(concat(query, application_name), ' ') FROM pg_stat_activity WHERE usename = 'media_usage'";
    let shown = block_on(async {
        let mut superuser = database.superuser().await;
        let shown = sqlx::query_scalar(queries).fetch_one(&mut superuser).await.unwrap();
        if locked {
            let lock = "BEGIN; LOCK local_media_repository";
            sqlx::raw_sql(lock).execute(&mut superuser).await.unwrap();
        }
        function.invoke(event.as_bytes()).unwrap();
        shown
    });
    function.stop();
    for (name, _) in settings {
        block_on(database.run(&format!("ALTER ROLE media_usage RESET {name}")));
    }
    (fs::read_to_string(&database.cluster.log).unwrap().split_off(before), shown)
}

#[test]
fn only_the_settings_that_are_warned_of_log_the_token_and_the_term() {
    let database = block_on(Database::of_conformance_in(Cluster::of_its_own(), "synapse-94"));
    let (slow, all) = (("log_min_duration_statement", "0"), ("log_statement", "all"));
    let no_values = ("log_parameter_max_length", "0");
    let explain = ("session_preload_libraries", "auto_explain");
    let no_plans = ("auto_explain.log_min_duration", "-1");
    block_on(
        database.run(&format!(
            "ALTER DATABASE {} SET auto_explain.log_min_duration = 0",
            database.name
        )),
    );
    let cases: [(&[_], bool); 8] = [
        (&[], false),
        (&[("log_duration", "on")], false),
        (&[slow], true),
        (&[all], true),
        (&[slow, all, no_values], false),
        // The plan is made for the values, and names them.
        (&[explain], true),
        (&[explain, no_values], true),
        (&[explain, no_plans], false),
    ];
    let can_explain = block_on(async {
        let mut superuser = database.superuser().await;
        sqlx::raw_sql("LOAD 'auto_explain'").execute(&mut superuser).await.is_ok()
    });
    for (settings, is_logged) in cases {
        if settings.contains(&explain) && !can_explain {
            println!("this PostgreSQL has no auto_explain");
            continue;
        }
        let (log, shown) = ask(&database, settings, false);
        assert!(log.contains("media_usage"), "{settings:?}: {log}");
        for secret in [TOKEN, TERM] {
            assert_eq!(log.contains(secret), is_logged, "{settings:?}: {secret} in {log}");
            assert!(shown.contains("$1") && !shown.contains(secret), "{settings:?}: {shown}");
        }
    }

    // Of a statement that fails.
    let on_error = ("log_parameter_max_length_on_error", "-1");
    for (settings, is_logged) in [(&[][..], false), (&[on_error], true)] {
        let (log, _) = ask(&database, settings, true);
        assert!(log.contains("STATEMENT: "), "{settings:?}: {log}");
        assert_eq!(log.contains(TERM), is_logged, "{settings:?}: {log}");
    }
}
