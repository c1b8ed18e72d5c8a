//! The log holds neither tokens nor search terms nor rows, at the most talkative level there is.

use std::collections::BTreeSet;

use aho_corasick::AhoCorasick;
use serde_json::Value;

use crate::support::{
    block_on,
    cases::{Case, cases},
    database::Database,
    function::Function,
    gateway::GATEWAYS,
};

/// What must not be seen: whatever the requests carry and the rows hold that is long enough not to
/// occur by chance.
fn secrets(cases: &[Case]) -> BTreeSet<String> {
    let mut secrets = BTreeSet::new();
    for case in cases {
        for (_, value) in &case.headers {
            secrets.extend(value.strip_prefix("Bearer ").map(|token| token.trim().to_owned()));
        }
        for item in case.query.as_deref().unwrap_or_default().split('&') {
            if let Some((name @ ("access_token" | "search_term"), value)) = item.split_once('=') {
                let decoded = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
                secrets.extend([value.to_owned(), decoded.into_owned(), format!("{name}=")]);
            }
        }
        for user in
            case.expect.iter().filter_map(|expect| expect.body["users"].as_array()).flatten()
        {
            let texts =
                [&user["user_id"], &user["displayname"]].into_iter().filter_map(Value::as_str);
            secrets.extend(texts.map(str::to_owned));
        }
    }
    // Words that the log's own sentences may hold.
    let by_chance = |secret: &str| secret.bytes().all(|byte| byte.is_ascii_digit()); // timestamps
    secrets.retain(|secret| {
        secret.chars().count() >= 4
            && !by_chance(secret)
            && !["short", "Telegram", "Times", "example", "None", "NULL"].contains(&secret.as_str())
    });
    secrets
}

/// A log without the users who asked, whom each request's line names in one field.
fn without_requesters(log: &str) -> String {
    let mut pieces = log.split("\"requester\":\"");
    let mut rest = pieces.next().unwrap().to_owned();
    for piece in pieces {
        rest.push_str(piece.split_once('"').unwrap().1);
    }
    assert!(rest.len() < log.len(), "nobody is named:\n{log}");
    rest
}

#[test]
fn no_token_search_term_or_row_is_logged_at_any_level() {
    let cases = cases();
    let secrets = secrets(&cases);
    assert!(secrets.len() > 150, "{}", secrets.len());
    let database = block_on(Database::of_conformance("synapse-94"));
    // The server itself tells much in notices, once it is asked to; they arrive with the answer.
    block_on(database.run(&format!(
        "ALTER DATABASE {} SET client_min_messages = 'debug5'; ALTER DATABASE {0} SET debug_print_plan = on",
        database.name
    )));
    for format in ["JSON", "Text"] {
        let function = Function::start(&[
            ("DATABASE_URL", &format!("{}?application_name=x", database.url())),
            ("AWS_LAMBDA_LOG_LEVEL", "TRACE"),
            ("AWS_LAMBDA_LOG_FORMAT", format),
            ("LOG_LEVEL", "trace"),
            ("RUST_LOG", "trace"),
            ("RUST_BACKTRACE", "full"),
        ]);
        for gateway in GATEWAYS {
            for case in &cases {
                if let Ok(event) = gateway.event(case) {
                    let _ = function.invoke(event.to_string().as_bytes());
                }
            }
        }
        // And what fails inside the database, or before any of our code runs.
        block_on(database.run("ALTER TABLE profiles RENAME TO elsewhere"));
        for event in
            [GATEWAYS[0].event(&cases[0]).unwrap().to_string(), "{\"syt_admin_ok\":".to_owned()]
        {
            let _ = function.invoke(event.as_bytes());
        }
        block_on(database.run("ALTER TABLE elsewhere RENAME TO profiles"));
        let log = without_requesters(&function.stop());
        assert!(log.lines().count() > 100, "the log is not talkative:\n{log}");
        assert!(log.contains("42P01"), "the log does not name the cause:\n{log}");
        // All at once: one by one, hundreds take long to find in a log of such a level.
        let logged =
            AhoCorasick::new(&secrets).unwrap().find(&log).map(|found| &log[found.range()]);
        assert_eq!(logged, None);
    }
}

#[test]
fn a_line_of_the_json_log_is_one_object() {
    let function = Function::start(&[("AWS_LAMBDA_LOG_FORMAT", "JSON")]);
    let _ = function.invoke(b"{}");
    let log = function.stop();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert_eq!(line["error"], "DATABASE_URL is not set");
}

#[test]
fn the_level_is_info_unless_set_and_a_wrong_one_is_said() {
    for (level, lines) in [("INFO", 1), ("FATAL", 0), ("DEBUG", 1), ("loud", 2), ("", 1)] {
        let variables = [
            ("DATABASE_URL", "postgres://x@127.0.0.1:1/x?sslmode=disable"),
            ("AWS_LAMBDA_LOG_LEVEL", level),
        ];
        let function = Function::start(&variables[..if level.is_empty() { 1 } else { 2 }]);
        let event = r#"{"httpMethod":"GET","path":"/"}"#;
        assert_eq!(function.invoke(event.as_bytes()).unwrap()["statusCode"], 404);
        let log = function.stop();
        // All but the failure to connect.
        let others = log.lines().filter(|line| !line.contains("not ready yet"));
        assert_eq!(others.count(), lines, "{level}: {log}");
    }
}
