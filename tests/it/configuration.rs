//! The configuration as the process reads it, and where it is documented.

use std::net::TcpListener;

use proptest::prelude::*;
use serde_json::Value;
use sqlx::{ConnectOptions, postgres::PgConnectOptions};
use synapse_media_usage::{config::Config, credentials::Access};

use crate::support::{
    block_on,
    cases::request,
    database::{Database, cluster},
    function::{Function, ask},
    gateway::Gateway,
    read,
};

/// What to do about a password that is not escaped.
const ESCAPES: &str =
    "DATABASE_URL: write # as %23, / as %2F, @ as %40, ? as %3F, or use PGPASSWORD";

#[test]
fn a_function_that_cannot_be_configured_still_answers() {
    let function = Function::start(&[
        ("STATEMENT_TIMEOUT_MS", "soon"),
        ("DATABASE_URL", "mysql://u:hunter2@db/x"),
        ("DATABASE_SCHEMA", "pg_hunter2"),
        ("SERVER_NAME", "https://hunter2"),
    ]);
    let send = |method: &str| {
        let mut case = request(None);
        method.clone_into(&mut case.method);
        let event = Gateway::HttpApi.event(&case).unwrap();
        Gateway::HttpApi.answer(&function.invoke(event.to_string().as_bytes()).unwrap())
    };
    let answer = send("GET");
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.status, body["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{body}");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!((send("HEAD").status, send("OPTIONS").status, send("POST").status), (500, 204, 405));
    let log = function.stop();
    assert!(log.contains("DATABASE_URL: it must start with postgres://"), "{log}");
    assert!(log.contains("STATEMENT_TIMEOUT_MS must be an integer from 1 to 900000"), "{log}");
    assert!(log.contains("DATABASE_SCHEMA must be up to 63 ASCII letters"), "{log}");
    assert!(log.contains("SERVER_NAME must be a server name"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn a_password_that_breaks_the_url_reaches_nobody() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    // The password begins with a number that is a port: read in haste, the user is the host.
    let start = stranger.local_addr().unwrap();
    for rest in ["#hunter2", "/hunter2", "?hunter2", "?host=hunter2", "/hunter2@ss", "#hunter2@1"] {
        for password in [rest.to_owned(), format!("@127.0.0.1{rest}"), format!("@{start}{rest}")] {
            let url = format!("postgres://{start}{password}@hunter2.example.org:5432/synapse");
            let function =
                Function::start(&[("DATABASE_URL", &url), ("AWS_LAMBDA_LOG_LEVEL", "TRACE")]);
            let (status, body) = ask(&function);
            assert_eq!((status, body["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{url}");
            let log = function.stop();
            assert!(log.contains(ESCAPES), "{log}");
            let port = start.port().to_string();
            assert!(!log.contains("hunter2") && !log.contains(&port), "{url}: {log}");
        }
    }
    let connection = stranger.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(connection, Err(std::io::ErrorKind::WouldBlock));
}

proptest! {
    #[test]
    fn a_url_is_refused_or_means_what_was_written(password in "[a-z0-9#/?@:&=+;,. \\[\\]ü-]{1,12}") {
        let url = |password: &str| format!("postgres://u:{password}@db.example.org:5433/d?sslmode=disable");
        let options = |url: &str| {
            Config::read(|name| (name == "DATABASE_URL").then(|| url.to_owned()))
                .map(|config| config.database.options(Access::default()).unwrap())
                .map_err(|problems| problems.join("; "))
        };
        let escaped = percent_encoding::utf8_percent_encode(&password, percent_encoding::NON_ALPHANUMERIC);
        let readings = [options(&url(&password)), options(&url(&escaped.to_string()))];
        prop_assert_eq!(readings[0].is_err(), password.contains(['#', '/', '?']));
        prop_assert!(readings[1].is_ok());
        for reading in readings {
            match reading {
                Err(problem) => prop_assert_eq!(problem, ESCAPES),
                Ok(options) => {
                    let place = (options.get_username(), options.get_host(), options.get_port());
                    prop_assert_eq!(place, ("u", "db.example.org", 5433));
                    prop_assert_eq!(options.get_database(), Some("d"));
                    let shown = format!("password: Some({password:?})");
                    prop_assert!(format!("{options:?}").contains(&shown), "{}", shown);
                }
            }
        }
    }
}

#[test]
fn variables_of_libpq_stand_in_for_what_the_url_leaves_out() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let port = database.cluster.port.to_string();
    let place = [("PGHOST", "127.0.0.1"), ("PGPORT", &port), ("PGDATABASE", &database.name)];
    let login = [("PGUSER", "media_usage"), ("PGPASSWORD", "p@ss/word")];
    let name = [("PGAPPNAME", "of the environment")];
    let sessions = |name: &str| -> i64 {
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()";
        block_on(async {
            let mut superuser = database.superuser().await;
            sqlx::query_scalar(sessions).bind(name).fetch_one(&mut superuser).await.unwrap()
        })
    };
    let in_url =
        format!("postgres://u:p@/x?user=media_usage&password=p%40ss/word&dbname={}", database.name);
    for (url, variables) in [
        ("postgres://", [&place[..], &login, &name].concat()),
        (&in_url, [&place[..2], &name].concat()),
        (
            &format!(
                // As for libpq, no sslmode matters there.
                "postgres://media_usage@/{}?host={}&port={port}&sslmode=require",
                database.name, database.cluster.socket_dir
            ),
            vec![login[1], name[0]],
        ),
    ] {
        let function = Function::start(&[&[("DATABASE_URL", url)], &variables[..]].concat());
        assert_eq!(ask(&function).0, 200, "{url}");
        assert_eq!(sessions("of the environment"), 1, "{url}");
        function.stop();
    }
    let function = Function::start(&[("DATABASE_URL", &database.url()), ("PGAPPNAME", "")]);
    assert_eq!(ask(&function).0, 200);
    assert_eq!(sessions("synapse-media-usage"), 1);
    function.stop();
}

#[test]
fn parameters_that_are_ignored_are_in_no_log() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let ignored = "keepalives_idle=4711&fallback_application_name=hunter2&krbsrvname=hunter2&channel_binding=prefer&ssl=true&sslmode=prefer";
    let url = format!("{}?{ignored}", database.url());
    let function = Function::start(&[("DATABASE_URL", &url), ("AWS_LAMBDA_LOG_LEVEL", "TRACE")]);
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    assert!(!log.contains("hunter2") && !log.contains("4711"), "{log}");
    assert!(!log.contains("unrecognized"), "{log}");
}

#[test]
fn a_user_name_that_saslprep_refuses_does_not_end_the_process() {
    let port = cluster().port;
    let in_url = format!("postgres://hunter2%0A:p@127.0.0.1:{port}/x");
    let without = format!("postgres://127.0.0.1:{port}/x");
    for (variables, problem) in [
        (&[("DATABASE_URL", in_url.as_str())][..], "DATABASE_URL: user must be a name that"),
        (&[("DATABASE_URL", &without), ("PGUSER", "hunter2\n")], "PGUSER must be a name that"),
    ] {
        let function = Function::start(variables);
        for _ in 0..2 {
            assert_eq!(ask(&function).0, 500);
        }
        assert!(!function.has_exited());
        let log = function.stop();
        assert!(log.contains(problem) && !log.contains("hunter2"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Whether sqlx panics while it logs in by SCRAM, or sends what is none.
fn sqlx_fails(user: &str) -> bool {
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(cluster().port)
        .username(user)
        .password("p");
    // A thread of its own, so that the panic ends it and nothing else.
    let login = std::thread::spawn(move || block_on(options.connect()).map(drop)).join();
    let Ok(Err(sqlx::Error::Database(refusal))) = login else { return true };
    // protocol_violation
    refusal.code().is_some_and(|code| code == "08P01")
}

#[test]
fn exactly_the_user_names_are_refused_that_sqlx_fails_at() {
    let mut refused = 0;
    for user in [
        "media_usage",
        "ü",
        "u\u{308}",
        "a b",
        "½",
        "u\u{ad}",
        "u\u{a0}",
        "u@tenant",
        "a=b",
        "a,b",
        "a\u{ff0c}b",
        "💾",
        "\u{338}",
        "u\n",
        "\nu",
        "u\t",
        "\u{1}",
        "\u{7f}",
        "u\u{e000}",
        "\u{221}",
        "u\u{200e}",
        "\u{fffe}",
        "א",
        "אבג",
        "a-א",
        "\u{627}",
    ] {
        let escaped =
            percent_encoding::utf8_percent_encode(user, percent_encoding::NON_ALPHANUMERIC);
        let url = format!("postgres://{escaped}:p@127.0.0.1/x");
        let config = Config::read(|name| (name == "DATABASE_URL").then(|| url.clone()));
        assert_eq!(config.is_err(), sqlx_fails(user), "{user:?}");
        refused += usize::from(config.is_err());
    }
    assert!((5..20).contains(&refused), "{refused}");
}

#[test]
fn every_variable_is_documented() {
    let config = read("src/config.rs");
    let mut count = 0;
    for file in ["src/config.rs", "src/config/database.rs", "src/log.rs", "src/main.rs"] {
        let source = read(file);
        let code = source.split("#[cfg(test)]").next().unwrap();
        for name in code.split('"').filter(|text| is_variable(text)) {
            assert!(config.contains(&format!("/// | `{name}` |")), "{name} in {file}");
            count += 1;
        }
    }
    assert!(count > 15, "{count}");
}

/// Whether a text is the name of a variable, but for those of libpq and cargo.
fn is_variable(text: &str) -> bool {
    text.len() > 3
        && text.contains('_')
        && !["PG", "CARGO_"].iter().any(|start| text.starts_with(start))
        && text.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

#[test]
fn every_parameter_of_libpq_is_documented() {
    let documentation = read("docs/database.md");
    let (_, table) = documentation.split_once("\n| parameter | value |\n").unwrap();
    let parameters = read("src/config/parameters.txt");
    let mut documented = 0;
    for (name, values) in parameters.lines().map(|line| line.split_once(' ').unwrap()) {
        let rows: Vec<_> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
            .filter(|(names, _)| names.split(", ").any(|of_row| of_row == format!("`{name}`")))
            .collect();
        assert_eq!(rows.len(), 1, "{name}");
        let value = rows[0].1;
        match values {
            "text" | "user" => assert!(value.ends_with("any text"), "{name}"),
            "integer" => assert!(value.ends_with("any integer"), "{name}"),
            "seconds" => assert!(value.contains("an integer from 1 to 20"), "{name}"),
            "refused" => assert_eq!(value, "refused", "{name}"),
            "host" | "address" | "port" | "options" | "certificates" | "key" => (),
            values => {
                let listed: Vec<_> = value.split('`').skip(1).step_by(2).collect();
                for value in values.split(" or ") {
                    assert!(listed.contains(&value), "{name}={value}");
                }
                // Behind its values `sslmode` stands for itself, and `ssl` names it.
                assert!(
                    name.starts_with("ssl") || listed.len() == values.split(" or ").count(),
                    "{name}"
                );
            }
        }
        documented += 1;
    }
    let listed = table.lines().filter(|line| line.starts_with("| `")).flat_map(|line| {
        line.split(" | ").next().unwrap().split('`').skip(1).step_by(2).collect::<Vec<_>>()
    });
    assert_eq!(listed.count(), documented);
}
