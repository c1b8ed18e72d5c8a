//! The one line that a request leaves in the log: a contract with whoever reads it, as are the
//! metrics in it with template.yaml.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_secretsmanager::primitives::{DateTime, DateTimeFormat};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::{
    asking::{self, Variables, ask_function, introspected},
    block_on,
    cases::request,
    database::{AURORA, Database, lock},
    function::{Function, ask},
    gateway::{GATEWAYS, Gateway},
    homeserver::{Homeserver, owner},
    mas::Mas,
    read,
    server::{Refusing, Reply},
    snapshot::{assert_snapshot, pretty},
};

/// The texts of the lines that these requests leave: each a query string and a token.
fn texts(database: &Database, requests: &[(&str, &str)]) -> String {
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    for (query, token) in requests {
        let event = Gateway::HttpApi.event(&request(Some(query))).unwrap().to_string();
        let event = event.replace("syt_admin_ok", token);
        function.invoke(event.as_bytes()).unwrap();
    }
    function.stop()
}

fn lines(database: &Database, requests: &[(&str, &str)]) -> Vec<Value> {
    lines_of(&texts(database, requests))
}

fn lines_of(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect()
}

/// A line as a snapshot shows it: without what differs from run to run.
fn shown(text: &str) -> String {
    let mut line: Value = serde_json::from_str(text).unwrap();
    let metrics = line["_aws"]["CloudWatchMetrics"].as_array().into_iter().flatten();
    let metrics = metrics.filter_map(|directive| directive["Metrics"].as_array()).flatten();
    let metrics = metrics.filter(|metric| metric["Unit"] == "Milliseconds");
    let names = line.as_object().unwrap().keys().filter(|name| name.ends_with("_ms"));
    let times: Vec<_> = metrics
        .filter_map(|metric| metric["Name"].as_str())
        .chain(names.map(String::as_str))
        .map(str::to_owned)
        .collect();
    for name in times {
        if line[&name].is_number() {
            line[name] = "(ms)".into();
        }
    }
    line["timestamp"] = "(RFC 3339)".into();
    line["_aws"]["Timestamp"] = "(Unix ms)".into();
    pretty(&line, text)
}

#[test]
fn each_ending_of_a_request_leaves_the_line_of_its_snapshot() {
    let database = block_on(asking::database("synapse-94"));
    let (mas, homeserver) = (Mas::start(), Homeserver::start());
    mas.knows("mas", introspected(&json!({ "username": "admin" })));
    homeserver.knows("new", owner("@admin:example.com", Some("DEV")));
    homeserver.knows("behind", owner("@plain:example.com", Some("DEV")));
    let page =
        "order_by=media_length&dir=b&limit=5&from=2&search_term=e&from_ts=1&until_ts=9999999999999";
    let variables = || Variables::of(&database);
    for (name, variables, query, token) in [
        ("answered", variables(), page, "syt_admin_ok"),
        ("answered_with_mas", variables().mas(&mas), "until_ts=9999999999999", "mas"),
        ("answered_with_homeserver", variables().homeserver(&homeserver), "", "new"),
        ("replica_behind", variables().homeserver(&homeserver), "", "behind"),
        ("unknown_token", variables(), "", "syt_nosuch"),
        ("invalid_parameter", variables(), "limit=x", "syt_admin_ok"),
        ("not_an_admin", variables(), "", "syt_plain_user"),
    ] {
        let function = variables.function();
        let mut case = request(Some(query));
        case.headers[0].1 = format!("Bearer {token}");
        ask_function(&function, &case);
        let log = function.stop();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert_snapshot(&format!("request_log/{name}.json"), &shown(&log));
    }

    let function = variables().function();
    let case = request(Some("limit=1"));
    ask_function(&function, &case);
    // The connection is gone, and so is what was asked for.
    block_on(database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database();
         ALTER TABLE profiles RENAME TO elsewhere",
    ));
    ask_function(&function, &case);
    let log = function.stop();
    assert_eq!(log.lines().count(), 2, "{log}");
    assert_snapshot("request_log/failed.json", &shown(log.lines().last().unwrap()));
}

#[test]
fn each_ending_of_a_probe_leaves_the_line_of_its_snapshot() {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run("DROP INDEX profiles_full_user_id_key"));
    block_on(database.run(AURORA));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let probe = || function.invoke(read("events/probe.json").as_bytes()).unwrap();
    probe();
    block_on(database.run("REVOKE SELECT ON profiles FROM media_usage"));
    probe();
    let log = function.stop();
    let lines = log.lines().filter(|line| line.contains("\"the probe "));
    for (name, line) in ["probe", "probe_failed"].into_iter().zip(lines) {
        assert_snapshot(&format!("request_log/{name}.json"), &shown(line));
    }
}

#[test]
fn the_times_of_a_line_fit_together() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let lines = lines(&database, &[("", "syt_admin_ok"), ("", "syt_nosuch")]);
    assert_eq!(lines.len(), 2);
    for line in &lines {
        // Without a time in this form, Lambda takes every line for one of level INFO.
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.starts_with("20") && timestamp.ends_with('Z'), "{timestamp}");
        let timestamp = DateTime::from_str(timestamp, DateTimeFormat::DateTime).unwrap();
        assert_eq!(timestamp.to_millis().unwrap(), line["_aws"]["Timestamp"].as_i64().unwrap());
        let (database, total) = (&line["database_ms"], &line["total_ms"]);
        let (database, total) = (database.as_f64().unwrap(), total.as_f64().unwrap());
        assert!(0.0 < database && database <= total, "{line}");
        assert_eq!(
            (&line["DatabaseTime"], &line["TotalTime"]),
            (&line["database_ms"], &line["total_ms"])
        );
    }
    // Only an environment's first request is a cold start.
    assert_eq!((&lines[0]["cold_start"], &lines[1]["cold_start"]), (&true.into(), &false.into()));
}

#[test]
fn the_line_says_how_long_each_took_who_was_asked() {
    let database = block_on(asking::database("synapse-94"));
    let (mas, silent, homeserver) = (Mas::start(), Homeserver::start(), Homeserver::start());
    mas.answers(Reply::Never);
    silent.answers(Reply::Never);
    homeserver.knows("new", owner("@admin:example.com", Some("DEV")));
    let event = |token: &str| Gateway::HttpApi.event(&asking::case(token)).unwrap().to_string();
    let at_least = |line: &Value, name: &str, ms: f64| {
        assert!(line[name].as_f64().is_some_and(|it| it >= ms), "{name} {line}");
    };

    // Whoever is given up at the end of the invocation has a name and a time.
    let of = || Variables::of(&database);
    for (variables, name, asking) in [
        (of().mas(&mas), "mas_ms", "asking MAS"),
        (of().homeserver(&silent), "homeserver_ms", "asking the homeserver"),
    ] {
        let function = variables.function();
        function.invoke_within(event("any").as_bytes(), Duration::from_secs(1)).unwrap();
        let line = &lines_of(&function.stop())[0];
        assert_eq!(line["cause"], format!("{asking}: no answer before the end of the invocation"));
        at_least(line, name, 400.0);
    }

    // The database is asked before the homeserver and after it, and the slow one was the first.
    let function = of().homeserver(&homeserver).function();
    block_on(async {
        let lock = lock(&database, "access_tokens").await;
        let unlock = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            lock.close().await.unwrap();
        };
        std::thread::scope(|scope| {
            scope.spawn(|| block_on(unlock));
            function.invoke(event("new").as_bytes()).unwrap();
        });
    });
    // And what was asked again before the homeserver was asked counts after it.
    block_on(database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE usename = 'media_usage' AND datname = current_database()",
    ));
    function.invoke(event("new").as_bytes()).unwrap();
    let lines = lines_of(&function.stop());
    assert_eq!(lines[0]["status"], 200);
    at_least(&lines[0], "database_ms", 300.0);
    assert_eq!((&lines[1]["status"], &lines[1]["retries"]), (&json!(200), &json!(1)));
    assert_eq!(homeserver.asked().len(), 2);
}

#[test]
fn a_method_that_is_any_text_stays_out_of_the_log() {
    let function = Function::start(&[("DATABASE_URL", "postgres://x@127.0.0.1:1/x")]);
    for method in ["PATCH", "hunter2"] {
        let event = json!({ "httpMethod": method, "path": "/" }).to_string();
        function.invoke(event.as_bytes()).unwrap();
    }
    let log = function.stop();
    let lines = log.lines().filter(|line| line.starts_with('{')).collect::<Vec<_>>().join("\n");
    let lines = lines_of(&lines);
    assert_eq!((&lines[0]["method"], &lines[1]["method"]), (&"PATCH".into(), &"other".into()));
}

#[test]
fn the_line_names_the_user_whose_rights_counted() {
    let database = block_on(asking::database("synapse-94"));
    let function = Variables::of(&database).function();
    let ask = |query: &str, token: &str| {
        let mut case = request(Some(query));
        case.headers[0].1 = format!("Bearer {token}");
        ask_function(&function, &case);
    };
    let admin = Some("@admin:example.com");
    let requests = [
        ("limit=1", "syt_admin_ok", admin),
        // The second page is from memory.
        ("limit=1&from=1", "syt_admin_ok", admin),
        ("limit=1&from=2", "syt_admin2_ok", Some("@admin2:example.com")),
        ("", "syt_plain_puppets_admin", admin),
        ("", "syt_admin_puppets_admin2", Some("@admin2:example.com")),
        ("", "syt_missing_puppets_admin", admin),
        ("", "syt_plain_user", None),
        ("", "syt_admin_puppets_plain", None),
        ("", "syt_admin_expired", None),
        ("", "syt_nosuch", None),
        // Whoever sends it, a request that is refused leaves no name.
        ("limit=x", "syt_admin_ok", None),
    ];
    for (query, token, _) in requests {
        ask(query, token);
    }
    // But a request that fails does.
    block_on(database.run("ALTER TABLE profiles RENAME TO elsewhere"));
    ask("", "syt_plain_puppets_admin");
    block_on(database.run("ALTER TABLE access_tokens RENAME TO nowhere"));
    ask("", "syt_admin_ok");
    let lines = lines_of(&function.stop());
    let named: Vec<_> = lines.iter().map(|line| line["requester"].as_str()).collect();
    let expected = requests.iter().map(|(.., requester)| *requester).chain([admin, None]);
    assert_eq!(named, expected.collect::<Vec<_>>());
}

#[test]
fn the_beginning_of_a_failure_s_line_says_what_failed() {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run("ALTER TABLE profiles RENAME TO elsewhere"));
    let of_table = texts(&database, &[("", "syt_admin_ok")]);
    let port = Refusing::new();
    let url = format!("postgres://x@127.0.0.1:{}/x", port.port);
    let function = Function::start(&[("DATABASE_URL", &url)]);
    ask(&function);
    let of_connection = function.stop();
    let of_connection = of_connection.lines().find(|line| line.starts_with('{')).unwrap();
    for (text, status, cause) in [
        (of_table.as_str(), 500, "database error 42P01"),
        (of_connection, 503, "error communicating"),
    ] {
        let beginning: String = text.chars().take(160).collect();
        let expected = format!(
            "\"level\":\"ERROR\",\"message\":\"the request failed\",\"status\":{status},\"errcode\":\"M_UNKNOWN\",\"cause\":\"{cause}"
        );
        assert!(beginning.contains(&expected), "{beginning}");
        assert!(beginning.starts_with("{\"timestamp\":\""), "{beginning}");
    }
}

#[test]
fn the_line_names_the_trace_that_x_ray_keeps() {
    let function = Function::start(&[("DATABASE_URL", "postgres://x@127.0.0.1:1/x")]);
    let event = r#"{"httpMethod":"GET","path":"/"}"#;
    let id = "1-5bef4de7-ad49b0e87f6ef6c87fc2e700";
    let headers = [
        (format!("Root={id};Parent=0123456789abcdef;Sampled=1;Lineage=a:0"), Some(id)),
        (format!("Self=1-x;Sampled=1;Root={id}"), Some(id)),
        (format!("Root={id};Parent=0123456789abcdef;Sampled=0"), None),
        (format!("Root={id}"), None),
        (format!("Parent={id};Sampled=1"), None),
        (format!("Root=hunter2 {id};Sampled=1"), None),
        ("Root=hunter2-hunter2-hunter2-hunter2-hunt;Sampled=1".to_owned(), None),
        (String::new(), None),
    ];
    for (header, _) in &headers {
        function.invoke_traced(event.as_bytes(), header).unwrap();
    }
    let log = function.stop();
    let lines = log.lines().filter(|line| line.starts_with('{')).collect::<Vec<_>>().join("\n");
    let traces = lines_of(&lines);
    let traces: Vec<_> = traces.iter().map(|line| line["xray_trace_id"].as_str()).collect();
    assert_eq!(traces, headers.iter().map(|(_, id)| *id).collect::<Vec<_>>());
}

#[test]
fn the_fields_are_those_of_the_runbook() {
    let database = block_on(Database::of_conformance("synapse-94"));
    // Of both, because only the second has an errcode, and only the first a page.
    let lines = lines(&database, &[("", "syt_admin_ok"), ("", "syt_nosuch")]);
    let runbook = read("docs/runbook.md");
    let (_, section) = runbook.split_once("\n## The log\n").unwrap();
    let (section, rest) = section.split_once("\n### ").unwrap();
    let (_, of_probe) = rest.split_once("The probe's line\n").unwrap();
    let of_probe = of_probe.split("\n### ").next().unwrap();
    let (lines, probes) = (fields(&lines), fields(&probe_lines(&database)));
    assert_eq!(lines, documented(section));
    assert_eq!(probes, documented(of_probe));
}

/// The lines that a probe leaves, which finds all that it can.
fn probe_lines(database: &Database) -> Vec<Value> {
    block_on(database.run(AURORA));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    function.invoke(read("events/probe.json").as_bytes()).unwrap();
    lines_of(&function.stop())
}

/// The fields of the first column of a section's table.
fn documented(section: &str) -> BTreeSet<String> {
    let names = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" |").next())
        .flat_map(|names| names.split('`').filter(|name| !name.is_empty() && *name != ", "));
    names.map(str::to_owned).collect()
}

/// The fields of lines.
fn fields(lines: &[Value]) -> BTreeSet<String> {
    let names = lines.iter().flat_map(|line| line.as_object().unwrap().keys());
    names.filter(|name| *name != "_aws").cloned().collect()
}

#[test]
fn the_metrics_are_those_of_the_template() {
    let contract: Value = serde_json::from_str(&read("tests/template/metrics.json")).unwrap();
    let database = block_on(Database::of_conformance("synapse-94"));
    let filtered = "search_term=e&from_ts=1&until_ts=9999999999999";
    let mut lines = lines(&database, &[(filtered, "syt_admin_ok"), ("", "syt_nosuch")]);
    // Of both, because only the second has an errcode; and those of a probe.
    lines.extend(probe_lines(&database));
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
