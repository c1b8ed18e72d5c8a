//! The probe: it finds what would fail the next request, and only that.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    asking::{self, ADMIN, Variables, introspected},
    aws::Secret,
    block_on,
    cases::{Case, request},
    database::{AURORA, Cluster, Database},
    function::{Function, ask, start},
    gateway::GATEWAYS,
    homeserver::{Homeserver, owner, refusal},
    mas::Mas,
    proxy::{Fault, Proxy},
    read,
    server::{Answer, Refusing},
};

/// The token that MAS and the homeserver are asked about.
const MADE_UP: &str = "synapse-media-usage-probe";

fn probe(function: &Function) -> Value {
    function.invoke(read("events/probe.json").as_bytes()).unwrap()
}

#[track_caller]
fn assert_healthy(function: &Function) {
    assert_eq!(probe(function), json!({ "healthy": true }));
}

/// The answer has a cause with these words in it.
#[track_caller]
fn assert_ill(function: &Function, words: &str) {
    let answer = probe(function);
    assert_eq!((&answer["healthy"], answer.as_object().unwrap().len()), (&false.into(), 2));
    assert!(answer["cause"].as_str().unwrap().contains(words), "{words:?}: {answer}");
}

/// The lines of a log that are of probes.
fn lines(log: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"].as_str().unwrap().starts_with("the probe")).collect()
}

/// What the latest probe of a log found: `Healthy`, `MissingIndexes` and `ReplicationLag`.
fn metrics(log: &str) -> [Option<f64>; 3] {
    let lines = lines(log);
    let line = lines.last().unwrap();
    ["Healthy", "MissingIndexes", "ReplicationLag"].map(|name| line[name].as_f64())
}

#[test]
fn only_the_object_that_is_equal_to_it_is_a_probe() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    for event in
        [r#"{"synapse_media_usage":"probe"}"#, " { \"synapse_media_usage\" : \"pr\\u006fbe\" } "]
    {
        assert_eq!(function.invoke(event.as_bytes()).unwrap(), json!({ "healthy": true }));
    }
    for event in [
        r#""probe""#,
        r#"["synapse_media_usage","probe"]"#,
        r#"[{"synapse_media_usage":"probe"}]"#,
        r#"{"synapse_media_usage":"Probe"}"#,
        r#"{"synapse_media_usage":true}"#,
        r#"{"synapse_media_usage":["probe"]}"#,
        r#"{"synapse_media_usage":null}"#,
        r#"{"Synapse_media_usage":"probe"}"#,
        r#"{"synapse_media_usage":"probe","version":"2.0"}"#,
        r#"{"synapse_media_usage":"probe","x":null}"#,
        r#"{"body":{"synapse_media_usage":"probe"}}"#,
        r#"{"detail":{"synapse_media_usage":"probe"},"source":"aws.events"}"#,
        "{}",
    ] {
        let answer = function.invoke(event.as_bytes()).unwrap();
        assert_eq!((&answer["statusCode"], &answer["healthy"]), (&404.into(), &Value::Null));
    }
    function.stop();
}

/// A request that says it is a probe wherever a client can say anything.
fn pretending() -> Case {
    let text = r#"{"synapse_media_usage":"probe"}"#;
    let query = format!(
        "limit=1&synapse_media_usage=probe&x={}",
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
    );
    let mut case = request(Some(&query));
    case.body = Some(text.to_owned());
    for (name, value) in [("synapse_media_usage", "probe"), ("x-probe", text)] {
        case.headers.push((name.to_owned(), value.to_owned()));
    }
    case
}

#[test]
fn no_gateway_s_client_can_send_a_probe() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    for gateway in GATEWAYS {
        let mut case = pretending();
        for (method, status) in [("GET", 200), ("POST", 405), ("OPTIONS", 204)] {
            method.clone_into(&mut case.method);
            let event = gateway.event(&case).unwrap().to_string();
            let answer = function.invoke(event.as_bytes()).unwrap();
            assert_eq!(gateway.answer(&answer).status, status, "{gateway:?} {method}");
            assert_eq!(answer["healthy"], Value::Null);
        }
    }
    // VPC Lattice, whose events have the client's words in fields of these names.
    let said = json!({ "synapse_media_usage": "probe" });
    let text = said.to_string();
    for event in [
        json!({ "method": "POST", "raw_path": "/", "headers": said, "query_string_parameters": said,
                "body": text, "is_base64_encoded": false }),
        json!({ "version": "2.0", "method": "POST", "path": "/", "body": text, "isBase64Encoded": false,
                "headers": { "synapse_media_usage": ["probe"] },
                "queryStringParameters": { "synapse_media_usage": ["probe"] },
                "requestContext": { "region": "eu-central-1" } }),
    ] {
        let answer = function.invoke(event.to_string().as_bytes()).unwrap();
        assert_eq!(answer["statusCode"], 404, "{answer}");
    }
    let log = function.stop();
    assert!(lines(&log).is_empty(), "{log}");
}

#[test]
fn a_probe_counts_as_no_request_and_takes_no_second_connection() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    assert_healthy(&function);
    let of_probe = block_on(database.sessions());
    assert_eq!(of_probe.len(), 1);
    assert_eq!(ask(&function).0, 200);
    assert_healthy(&function);
    assert_eq!(block_on(database.sessions()), of_probe);
    let log = function.stop();
    assert_eq!(log.lines().count(), 3, "{log}");
    assert_eq!(metrics(&log), [Some(1.0), Some(0.0), None]);
    for line in lines(&log) {
        let directives = line["_aws"]["CloudWatchMetrics"].as_array().unwrap();
        let names = directives.iter().flat_map(|it| it["Metrics"].as_array().unwrap());
        let names: Vec<_> = names.map(|metric| metric["Name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Healthy", "MissingIndexes"]);
    }
    // The environment was warm when the request came.
    let request: Value = serde_json::from_str(log.lines().nth(1).unwrap()).unwrap();
    assert_eq!(
        (&request["Requests"], &request["ColdStarts"]),
        (&1.0.into(), &0.0.into()),
        "{request}"
    );
}

#[test]
fn a_probe_reads_no_row() {
    let database = block_on(asking::database("synapse-94"));
    let (mas, homeserver) = (Mas::start(), Homeserver::start());
    let internal = Variables::of(&database).with("ACCOUNT_VALIDITY", "true");
    let functions = [
        internal.homeserver(&homeserver).function(),
        Variables::of(&database).mas(&mas).function(),
    ];
    // Whatever is read of these fails, though all of it is there.
    block_on(database.run(
        "CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'a row was read'; END $$",
    ));
    for table in [
        "users",
        "access_tokens",
        "profiles",
        "devices",
        "account_validity",
        "local_media_repository",
    ] {
        let trap = format!(
            "ALTER TABLE {table} RENAME TO real_{table};
             CREATE VIEW {table} AS SELECT * FROM real_{table} WHERE trap();
             GRANT SELECT ON {table} TO media_usage;"
        );
        block_on(database.run(&trap));
    }
    for function in functions {
        assert_healthy(&function);
        function.stop();
    }
    // The trap springs.
    let function = start(&database.url());
    assert_eq!(ask(&function).0, 500);
    function.stop();
}

#[test]
fn what_the_role_or_the_database_lacks_is_found() {
    let database = block_on(asking::database("synapse-94"));
    let mas = Mas::start();
    let internal = Variables::of(&database).function();
    let with_validity = Variables::of(&database).with("ACCOUNT_VALIDITY", "true").function();
    let with_mas = Variables::of(&database).mas(&mas).function();
    let functions = [&internal, &with_validity, &with_mas];
    // What a change takes away, who needs it, and how it is undone.
    let grant =
        |columns: &str, table: &str| format!("GRANT SELECT ({columns}) ON {table} TO media_usage");
    let tables = [
        ("users", "name, admin, is_guest, locked", [true; 3]),
        ("access_tokens", "token, user_id, puppets_user_id, valid_until_ms", [true, true, false]),
        ("profiles", "full_user_id, displayname", [true; 3]),
        ("local_media_repository", "user_id, media_length, created_ts", [true; 3]),
        ("devices", "user_id, device_id, hidden", [false, false, true]),
        ("account_validity", "user_id, expiration_ts_ms", [false, true, false]),
    ];
    for (table, columns, needed) in tables {
        let last = columns.split(", ").last().unwrap();
        for (take_away, words, undo) in [
            (
                format!("REVOKE SELECT ({last}) ON {table} FROM media_usage"),
                format!("the role lacks SELECT ON {table} ({last})"),
                grant(columns, table),
            ),
            (
                format!("ALTER TABLE {table} RENAME COLUMN {last} TO elsewhere"),
                format!("there is no column {table}.{last}"),
                format!("ALTER TABLE {table} RENAME COLUMN elsewhere TO {last}"),
            ),
            (
                format!("ALTER TABLE {table} RENAME TO elsewhere"),
                format!("there is no table {table} in schema public"),
                format!("ALTER TABLE elsewhere RENAME TO {table}"),
            ),
            (
                format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"),
                format!(
                    "row-level security is on for table {table}: \
                     run ALTER TABLE public.{table} DISABLE ROW LEVEL SECURITY on the primary"
                ),
                format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"),
            ),
        ] {
            block_on(database.run(&take_away));
            for (function, needed) in functions.into_iter().zip(needed) {
                if needed {
                    assert_ill(function, &words);
                } else {
                    assert_healthy(function);
                }
            }
            block_on(database.run(&undo));
        }
    }
    for function in functions {
        assert_healthy(function);
    }
    // Three things, and one probe names all.
    block_on(database.run(
        "REVOKE SELECT (displayname) ON profiles FROM media_usage;
         REVOKE SELECT (name, admin, is_guest, locked) ON users FROM media_usage;
         ALTER TABLE users ENABLE ROW LEVEL SECURITY",
    ));
    let grants = "on the primary; the role lacks SELECT ON profiles (displayname); \
                  the role lacks SELECT ON users (admin, is_guest, locked, name)";
    assert_ill(&internal, grants);
    assert_ill(&internal, "row-level security is on for table users: ");
    assert_eq!(metrics(&internal.stop()), [Some(0.0), Some(0.0), None]);
}

#[test]
fn row_level_security_that_hides_nothing_from_the_role_is_no_ill_health() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    let of_its_owner = "ALTER TABLE profiles OWNER TO media_usage;
                        ALTER TABLE profiles ENABLE ROW LEVEL SECURITY";
    block_on(database.run(of_its_owner));
    assert_healthy(&function);
    assert_eq!(ask(&function).0, 200);
    block_on(database.run("ALTER TABLE profiles FORCE ROW LEVEL SECURITY"));
    assert_ill(&function, "row-level security is on for table profiles");
    assert_eq!(ask(&function).0, 500);
    function.stop();
}

#[test]
fn a_missing_index_is_counted_and_is_no_ill_health() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    block_on(database.run("DROP INDEX profiles_full_user_id_key, users_have_local_media"));
    assert_healthy(&function);
    let log = function.stop();
    assert_eq!(metrics(&log), [Some(1.0), Some(2.0), None]);
    let expected = "local_media_repository (user_id), profiles (full_user_id)";
    assert_eq!(lines(&log)[0]["missing_indexes"], expected);
}

#[test]
fn a_database_that_lets_nobody_in_is_found() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let wrong = start(&database.url().replace("p%40ss%2Fword", "hunter2"));
    assert_ill(&wrong, "28P01");
    let log = wrong.stop();
    assert!(!log.contains("hunter2"), "{log}");
    assert_eq!(metrics(&log), [Some(0.0), None, None]);

    let nobody = Refusing::new();
    let function = start(&format!("postgres://x@127.0.0.1:{}/x", nobody.port));
    assert_ill(&function, "refused");
    function.stop();

    let function = Function::start(&[]);
    assert_ill(&function, "the configuration is wrong");
    function.stop();
}

#[test]
fn a_connection_that_broke_is_replaced_and_a_silent_database_is_found_in_time() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = Proxy::start();
    let function = start(&proxy.url(&database));
    assert_healthy(&function);
    proxy.strike(Fault::Silence);
    assert_healthy(&function);
    proxy.strike(Fault::Reset);
    assert_healthy(&function);
    proxy.silence(true);
    let event = read("events/probe.json");
    let answer = function.invoke_within(event.as_bytes(), Duration::from_secs(3)).unwrap();
    assert_eq!(answer["healthy"], false, "{answer}");
    proxy.silence(false);
    assert_healthy(&function);
    function.stop();
}

#[test]
fn a_secret_that_cannot_be_read_any_more_is_found_while_requests_are_answered() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let login = json!({ "username": "media_usage", "password": "p@ss/word" }).to_string();
    let secret = Secret::create("of-the-probe", &login);
    let url = database.url().replace("media_usage:p%40ss%2Fword@", "");
    let function = secret.start(&[("DATABASE_URL", &url)]);
    assert_healthy(&function);
    // One that is rotated wrongly. The connection that there is still answers.
    let put = |password: &str, version: &str| {
        let login = json!({ "username": "media_usage", "password": password }).to_string();
        secret.put(&login, version, "AWSCURRENT");
    };
    put("out of step", "11111111-1111-1111-1111-111111111111");
    for _ in 0..2 {
        assert_ill(&function, "database error 28P01");
        assert_eq!(ask(&function).0, 200);
    }
    put("p@ss/word", "22222222-2222-2222-2222-222222222222");
    assert_healthy(&function);
    secret.delete();
    assert_ill(&function, "Secrets Manager");
    assert_eq!(ask(&function).0, 200);
    function.stop();

    let database = block_on(asking::database("synapse-94"));
    let mas = Mas::start();
    let secret = Secret::create("of-the-probe-s-mas", crate::support::mas::SECRET);
    let mas_endpoint = mas.endpoint();
    let function = Function::start(
        &[
            &crate::support::aws::AWS[..],
            &[
                ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &secret.endpoint),
                ("DATABASE_URL", &database.url()),
                ("MAS_ENDPOINT", &mas_endpoint),
                ("MAS_SECRET_ARN", &secret.arn),
                ("SERVER_NAME", asking::SERVER_NAME),
            ],
        ]
        .concat(),
    );
    assert_healthy(&function);
    secret.delete();
    assert_ill(&function, "Secrets Manager");
    mas.knows("mas", introspected(&json!({})));
    assert_eq!(asking::ask_function(&function, &asking::case("mas")).status, 200);
    function.stop();
}

#[test]
fn mas_has_to_call_a_made_up_token_inactive() {
    let database = block_on(asking::database("synapse-94"));
    let mas = Mas::start();
    let remembering = Variables::of(&database).mas(&mas).with("MAS_CACHE_SECONDS", "60").function();
    assert_healthy(&remembering);
    assert_healthy(&remembering);
    assert_eq!(mas.asked(), [MADE_UP; 2]);
    remembering.stop();
    let function = Variables::of(&database).mas(&mas).function();
    for (answer, words) in [
        (introspected(&json!({})), "asking MAS: it does not call a made-up token unknown"),
        (introspected(&json!({ "scope": ADMIN })), "asking MAS: it does not call"),
        (Answer::json(500, &json!({})), "asking MAS: it answered with status 500"),
        (Answer::json(200, &json!({})), "asking MAS: its answer is no introspection"),
    ] {
        mas.answers(answer);
        assert_ill(&function, words);
    }
    mas.answers(Answer::json(200, &json!({ "active": false })));
    assert_healthy(&function);
    mas.rotate("another");
    assert_ill(&function, "asking MAS: it answered with status 401");
    assert_eq!(metrics(&function.stop()), [Some(0.0), Some(0.0), None]);
}

#[test]
fn the_homeserver_has_to_call_a_made_up_token_unknown() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let homeserver = Homeserver::start();
    let function = Variables::of(&database).homeserver(&homeserver).function();
    assert_healthy(&function);
    assert_eq!(homeserver.asked(), [MADE_UP]);
    let unknown = "asking the homeserver: it does not call a made-up token unknown";
    for (answer, words) in [
        (owner("@admin:example.com", Some("DEV")), unknown),
        (refusal(401, "M_USER_LOCKED", "locked", true), unknown),
        (refusal(401, "M_MISSING_TOKEN", "missing", None), "does not speak of the token"),
        (Answer::new(502, "Bad Gateway"), "asking the homeserver: its answer, status 502"),
    ] {
        homeserver.answers(answer);
        assert_ill(&function, words);
    }
    function.stop();
}

#[test]
fn one_server_s_failure_hides_no_other_s() {
    let database = block_on(asking::database("synapse-94"));
    let (mas, homeserver) = (Mas::start(), Homeserver::start());
    let function = Variables::of(&database).mas(&mas).homeserver(&homeserver).function();
    assert_healthy(&function);
    block_on(database.run("REVOKE SELECT ON devices FROM media_usage"));
    mas.answers(Answer::json(500, &json!({})));
    homeserver.answers(Answer::new(502, "Bad Gateway"));
    let cause = probe(&function)["cause"].as_str().unwrap().to_owned();
    for words in ["devices", "asking MAS: it answered", "asking the homeserver: its answer"] {
        assert!(cause.contains(words), "{words}: {cause}");
    }
    function.stop();
}

#[test]
fn a_probe_answers_before_the_end_where_secrets_manager_is_silent() {
    // Whoever connects is not heard.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:media-AbCdEf";
    let function = Function::start(
        &[
            &crate::support::aws::AWS[..],
            &[
                ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &endpoint),
                ("DATABASE_URL", "postgres://127.0.0.1/synapse"),
                ("DATABASE_SECRET_ARN", arn),
            ],
        ]
        .concat(),
    );
    let event = read("events/probe.json");
    function.invoke_within(event.as_bytes(), Duration::from_secs(10)).unwrap();
    let second = Duration::from_secs(1);
    let begin = Instant::now();
    let answer = function.invoke_within(event.as_bytes(), second).unwrap();
    // What Lambda does to a process that is late.
    assert!(begin.elapsed() < second, "{:?}", begin.elapsed());
    assert_eq!(answer["healthy"], false, "{answer}");
    function.stop();
}

#[test]
fn strangers_guesses_and_probes_do_not_use_up_each_other_s_questions() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let homeserver = Homeserver::start();
    let function = Variables::of(&database).homeserver(&homeserver).function();
    let guess = |number: usize| {
        let answer = asking::ask_function(&function, &asking::case(&format!("guess{number}")));
        answer.status
    };
    // More than the homeserver may be asked about at once.
    for _ in 0..15 {
        assert_healthy(&function);
    }
    assert_eq!(homeserver.asked(), [MADE_UP; 15]);
    assert_eq!((0..10).map(guess).collect::<Vec<_>>(), [401; 10]);
    // A probe asks even where guesses have left no question.
    while guess(10) != 429 {}
    homeserver.asked();
    assert_healthy(&function);
    assert_eq!(homeserver.asked(), [MADE_UP]);
    function.stop();
}

#[test]
fn a_pooler_s_session_is_probed_too() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let url = database.url();
    for aurora in
        ["", AURORA, "REVOKE EXECUTE ON FUNCTION pg_catalog.aurora_replica_status() FROM PUBLIC"]
    {
        block_on(database.run(aurora));
        let function = Function::start(&[("DATABASE_URL", &url), ("DATABASE_POOLER", "true")]);
        assert_healthy(&function);
        assert_eq!(ask(&function).0, 200);
        assert_healthy(&function);
        let lag = Some(1234.5).filter(|_| aurora == AURORA);
        assert_eq!(metrics(&function.stop()), [Some(1.0), Some(0.0), lag]);
    }
}

#[test]
fn aurora_says_by_a_function_of_its_own_how_late_it_is_or_nothing() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = start(&database.url());
    assert_healthy(&function);
    block_on(database.run(AURORA));
    assert_healthy(&function);
    block_on(
        database.run("REVOKE EXECUTE ON FUNCTION pg_catalog.aurora_replica_status() FROM PUBLIC"),
    );
    assert_healthy(&function);
    // The writer is not late.
    block_on(database.run(
        "GRANT EXECUTE ON FUNCTION pg_catalog.aurora_replica_status() TO PUBLIC;
         CREATE OR REPLACE FUNCTION pg_catalog.aurora_db_instance_identifier() RETURNS varchar LANGUAGE sql AS $$ SELECT 'writer' $$",
    ));
    assert_healthy(&function);
    assert_eq!(ask(&function).0, 200);
    // However it fails, the lag is not known, and that is all.
    for code in ["0A000", "40001", "53200", "55P03", "57P03", "08006"] {
        block_on(database.run(&format!(
            "CREATE OR REPLACE FUNCTION pg_catalog.aurora_db_instance_identifier() RETURNS varchar LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$"
        )));
        assert_healthy(&function);
    }
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    let found: Vec<_> = lines(&log).iter().map(|line| line["ReplicationLag"].as_f64()).collect();
    assert_eq!(found[..4], [None, Some(1234.5), None, None]);
    assert_eq!(found[4..], [None; 6]);
    // The question that failed has cost no connection.
    let request: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(request["retries"], 0);
}

#[test]
fn a_standby_says_how_late_it_is() {
    let primary = Cluster::of_its_own();
    let standby = primary.standby();
    let database = block_on(Database::of_conformance_in(primary, "synapse-94"));
    let replica = Database { name: database.name.clone(), cluster: standby };
    let postgres = Database { name: "postgres".to_owned(), cluster: standby };
    let wait_until = |condition: &str| {
        let condition = format!("SELECT {condition}");
        block_on(async {
            let mut superuser = postgres.superuser().await;
            let holds = || sqlx::query_scalar::<_, bool>(&condition);
            while !holds().fetch_one(&mut superuser).await.unwrap() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    };
    let written = || {
        block_on(async {
            let mut superuser = database.superuser().await;
            let flushed = "SELECT pg_current_wal_flush_lsn()::text";
            sqlx::query_scalar::<_, String>(flushed).fetch_one(&mut superuser).await.unwrap()
        })
    };
    let on_standby = |sql: &str| block_on(postgres.run(sql));
    wait_until(&format!("pg_last_wal_replay_lsn() >= '{}'", written()));
    let function = start(&replica.url());
    let lag = |least: Option<Duration>| {
        // For so long nothing was replayed.
        thread::sleep(least.unwrap_or_default());
        assert_healthy(&function);
    };

    // An idle primary makes nobody late.
    lag(None);
    thread::sleep(Duration::from_millis(50));
    lag(None);
    // The standby has received what it does not replay.
    on_standby("SELECT pg_wal_replay_pause()");
    wait_until("pg_get_wal_replay_pause_state() = 'paused'");
    block_on(database.run("CREATE TABLE late ()"));
    wait_until(&format!("pg_last_wal_receive_lsn() >= '{}'", written()));
    lag(Some(Duration::from_millis(50)));
    on_standby("SELECT pg_wal_replay_resume()");
    wait_until("pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()");
    lag(None);
    // It receives nothing any more, and does not know what there is.
    on_standby("ALTER SYSTEM SET primary_conninfo = ''");
    on_standby("SELECT pg_reload_conf()");
    wait_until("NOT EXISTS (SELECT FROM pg_stat_wal_receiver)");
    lag(Some(Duration::from_millis(50)));

    let log = function.stop();
    let found: Vec<_> = lines(&log).iter().map(|line| line["ReplicationLag"].as_f64()).collect();
    let [idle, still_idle, paused, resumed, alone] = found[..] else { panic!("{found:?}") };
    assert_eq!([idle, still_idle, resumed], [Some(0.0); 3]);
    for late in [paused, alone] {
        assert!((50.0..600_000.0).contains(&late.unwrap()), "{found:?}");
    }
}

#[test]
fn a_standby_that_has_replayed_nothing_is_late_by_nobody_knows_how_much() {
    let primary = Cluster::of_its_own();
    let database = block_on(Database::of_conformance_in(primary, "synapse-94"));
    let replica = Database { name: database.name.clone(), cluster: primary.standby() };
    let find = |sql: &str| {
        block_on(async {
            let mut superuser = replica.superuser().await;
            sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut superuser).await.unwrap()
        })
    };
    block_on(replica.run("SELECT pg_wal_replay_pause()"));
    block_on(database.run("CREATE TABLE late ()"));
    while !find("SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()") {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(find("SELECT pg_last_xact_replay_timestamp() IS NULL"));
    let function = start(&replica.url());
    assert_healthy(&function);
    assert_eq!(metrics(&function.stop()), [Some(1.0), Some(0.0), None]);
}
