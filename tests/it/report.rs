//! The one line that a request leaves in the log: a contract with whoever reads it, as are the
//! metrics in it with template.yaml.

use std::collections::BTreeSet;

use aws_sdk_secretsmanager::primitives::{DateTime, DateTimeFormat};
use serde_json::{Value, json};

use crate::support::{
    block_on,
    cases::request,
    database::Database,
    function::Function,
    gateway::{GATEWAYS, Gateway},
    read,
};

/// The lines that these requests leave: each a query string and a token.
fn lines(database: &Database, requests: &[(&str, &str)]) -> Vec<Value> {
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    for (query, token) in requests {
        let event = Gateway::HttpApi.event(&request(Some(query))).unwrap().to_string();
        let event = event.replace("syt_admin_ok", token);
        function.invoke(event.as_bytes()).unwrap();
    }
    lines_of(&function.stop())
}

fn lines_of(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect()
}

#[test]
fn a_request_is_one_line() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let page =
        "order_by=media_length&dir=b&limit=5&from=2&search_term=e&from_ts=1&until_ts=9999999999999";
    let lines = lines(
        &database,
        &[
            (page, "syt_admin_ok"),
            ("", "syt_nosuch"),
            ("limit=x", "syt_admin_ok"),
            ("", "syt_plain_user"),
        ],
    );
    let seen = |line: &Value, names: &[&str]| {
        names.iter().map(|name| line[*name].clone()).collect::<Value>()
    };
    let names = ["level", "message", "kind", "method", "status", "errcode", "cause"];
    assert_eq!(
        seen(&lines[0], &names),
        json!(["INFO", "the request was answered", "http_api", "GET", 200, null, null])
    );
    assert_eq!(
        seen(
            &lines[0],
            &["order_by", "dir", "limit", "from", "filters", "shape", "rows", "retries"]
        ),
        json!([
            "media_length",
            "b",
            5,
            2,
            ["from_ts", "until_ts", "search_term"],
            "one_pass",
            5,
            0
        ])
    );
    assert_eq!(lines[0]["cold_start"], true);
    let times = |line: &Value| (line["database_ms"].as_f64(), line["total_ms"].as_f64().unwrap());
    assert!(lines[0]["bytes"].as_u64().unwrap() > 100, "{}", lines[0]);
    for line in &lines {
        // Without a time in this form, Lambda takes every line for one of level INFO.
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.starts_with("20") && timestamp.ends_with('Z'), "{timestamp}");
        let timestamp = DateTime::from_str(timestamp, DateTimeFormat::DateTime).unwrap();
        assert_eq!(timestamp.to_millis().unwrap(), line["_aws"]["Timestamp"].as_i64().unwrap());
        let (database, total) = times(line);
        assert!(database.is_some_and(|database| 0.0 < database && database <= total), "{line}");
        assert_eq!(line["retries"], 0);
    }
    // Who may not ask does not leave more than that.
    for (line, status, errcode) in [
        (&lines[1], 401, "M_UNKNOWN_TOKEN"),
        (&lines[2], 400, "M_INVALID_PARAM"),
        (&lines[3], 403, "M_FORBIDDEN"),
    ] {
        assert_eq!(
            seen(line, &names[..6]),
            json!(["INFO", "the request was refused", "http_api", "GET", status, errcode])
        );
        assert_eq!(
            seen(line, &["order_by", "filters", "shape", "rows", "cold_start"]),
            json!([null, null, null, null, false])
        );
    }
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_failure_is_one_line_too() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let event = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap().to_string();
    function.invoke(event.as_bytes()).unwrap();
    // The connection is gone, and so is what was asked for.
    block_on(database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database();
         ALTER TABLE profiles RENAME TO elsewhere",
    ));
    function.invoke(event.as_bytes()).unwrap();
    let lines = lines_of(&function.stop());
    let line = &lines[1];
    assert_eq!((lines.len(), &line["retries"], &line["status"]), (2, &1.into(), &500.into()));
    assert_eq!((&line["level"], &line["message"]), (&"ERROR".into(), &"the request failed".into()));
    assert!(line["cause"].as_str().unwrap().contains("42P01"), "{line}");
    assert_eq!((&line["ServerErrors"], &line["Retries"]), (&1.0.into(), &1.0.into()));
}

#[test]
fn the_fields_are_those_of_the_readme() {
    let database = block_on(Database::of_conformance("synapse-94"));
    // Of both, because only the second has an errcode, and only the first a page.
    let lines = lines(&database, &[("", "syt_admin_ok"), ("", "syt_nosuch")]);
    let readme = read("README.md");
    let (_, section) = readme.split_once("## Watching").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let documented: BTreeSet<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" |").next())
        .flat_map(|names| names.split('`').filter(|name| !name.is_empty() && *name != ", "))
        .collect();
    let fields: BTreeSet<_> = lines
        .iter()
        .flat_map(|line| line.as_object().unwrap().keys().map(String::as_str))
        .filter(|name| *name != "_aws")
        .collect();
    assert_eq!(fields, documented);
}

#[test]
fn the_metrics_are_those_of_the_template() {
    let contract: Value = serde_json::from_str(&read("tests/template/metrics.json")).unwrap();
    let database = block_on(Database::of_conformance("synapse-94"));
    let filtered = "search_term=e&from_ts=1&until_ts=9999999999999";
    let lines = lines(&database, &[(filtered, "syt_admin_ok"), ("", "syt_nosuch")]);
    // Of both, because only the second has an errcode.
    let mut emitted = BTreeSet::new();
    for line in &lines {
        let function = line["FunctionName"].as_str().unwrap();
        assert_eq!(function, "synapse-media-usage");
        assert!(line["_aws"]["Timestamp"].as_u64().unwrap() > 1_700_000_000_000);
        for directive in line["_aws"]["CloudWatchMetrics"].as_array().unwrap() {
            assert_eq!(directive["Namespace"], contract["namespace"]);
            for dimensions in directive["Dimensions"].as_array().unwrap() {
                for name in dimensions.as_array().unwrap() {
                    assert!(line[name.as_str().unwrap()].is_string(), "{line}");
                }
                for metric in directive["Metrics"].as_array().unwrap() {
                    assert!(line[metric["Name"].as_str().unwrap()].is_number(), "{line}");
                    emitted.insert(format!("{} {} {dimensions}", metric["Name"], metric["Unit"]));
                }
            }
        }
    }
    let mut expected = BTreeSet::new();
    for metric in contract["metrics"].as_array().unwrap() {
        for dimensions in metric["dimensions"].as_array().unwrap() {
            expected.insert(format!("{} {} {dimensions}", metric["name"], metric["unit"]));
        }
    }
    assert_eq!(emitted, expected);
    for field in contract["fields"].as_array().unwrap() {
        // As CloudWatch Logs names what is inside of others, which has no name as a whole.
        let field = lines[0].pointer(&format!("/{}", field.as_str().unwrap().replace('.', "/")));
        assert!(field.is_some_and(|field| !field.is_array() && !field.is_object()), "{field:?}");
    }
}

#[test]
fn the_answer_names_the_invocation() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let mut ids = Vec::new();
    for gateway in GATEWAYS {
        let mut case = request(Some("limit=1"));
        for method in ["GET", "OPTIONS"] {
            method.clone_into(&mut case.method);
            let event = gateway.event(&case).unwrap().to_string();
            let answer = gateway.answer(&function.invoke(event.as_bytes()).unwrap());
            ids.push(answer.headers["synapse-trace-id"].clone());
            assert!(answer.headers["access-control-expose-headers"].contains("Synapse-Trace-Id"));
        }
    }
    let logged: Vec<_> = lines_of(&function.stop())
        .iter()
        .map(|line| line["request_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(logged, ids);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
}
