//! Getting in without a password in the URL: tokens of IAM, and secrets that are rotated.

use std::{
    io::Write,
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use aws_sdk_secretsmanager::config::Credentials;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use synapse_media_usage::aws::rds_token;

use crate::support::{
    aws::{ACCESS_KEY_ID, AWS, SECRET_ACCESS_KEY, SESSION_TOKEN, Secret, TOKENS},
    block_on,
    database::Database,
    function::{Function, ask},
    iam::IamDatabase,
    project,
    server::{Answer, Reply, Server},
};

/// What botocore's `generate_db_auth_token` makes of the same.
fn tokens_of_botocore(inputs: &[Value]) -> Vec<String> {
    let mut botocore = Command::new(project().join("tests/tools/aws"))
        .arg("rds-tokens")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let inputs = inputs.to_vec();
    let mut stdin = botocore.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for input in inputs {
            writeln!(stdin, "{input}").unwrap();
        }
    });
    let output = botocore.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_token_is_byte_for_byte_what_botocore_makes() {
    let users = "[a-z_]{1,12}|[ -~]{1,20}|[à-ü@+/% ]{1,8}";
    let times = 1_400_000_000u64..4_000_000_000;
    let input = (
        "[a-zA-Z0-9-]{1,20}\\.[a-z0-9]{12}\\.eu-west-1\\.rds\\.amazonaws\\.com",
        1u16..,
        users,
        "(eu|us|ap)-(west|east|southeast)-[1-5]|cn-north-1|us-gov-east-1",
        "[A-Z0-9]{20}",
        "[A-Za-z0-9/+]{40}",
        proptest::option::of("[A-Za-z0-9/+]{10,200}={0,2}"),
        times,
    );
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]),
    );
    let inputs: Vec<_> = (0..200).map(|_| input.new_tree(&mut runner).unwrap().current()).collect();
    let ours = inputs.iter().map(|(host, port, user, region, id, secret, session, time)| {
        let credentials = Credentials::new(id, secret, session.clone(), None, "test");
        let time = UNIX_EPOCH + Duration::from_secs(*time);
        rds_token(&login(host, *port, user), region, credentials, time).unwrap()
    });
    let ours: Vec<_> = ours.collect();
    let asked: Vec<_> = inputs
        .iter()
        .zip(&ours)
        .map(|((host, port, user, region, id, secret, session, _), token)| {
            json!({"host": host, "port": port, "user": user, "region": region,
                   "access_key_id": id, "secret_access_key": secret, "session_token": session,
                   "time": time_of(token)})
        })
        .collect();
    let theirs = tokens_of_botocore(&asked);
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    // That the time is the one that was asked for, botocore cannot tell.
    let of_2026 = rds_token(
        &login("db", 1, "u"),
        "eu-west-1",
        Credentials::new("a", "b", None, None, "test"),
        UNIX_EPOCH + Duration::from_secs(1_780_000_000),
    );
    assert_eq!(time_of(&of_2026.unwrap()), "20260528T202640Z");
}

fn login(host: &str, port: u16, username: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass().host(host).port(port).username(username)
}

/// The parameter `X-Amz-Date` of a token.
fn time_of(token: &str) -> &str {
    token.split("X-Amz-Date=").nth(1).unwrap().split('&').next().unwrap()
}

#[test]
fn each_connection_has_a_token_of_its_own() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let iam = IamDatabase::start(&database);
    let url = format!("postgres://media_usage@127.0.0.1:{}/{}", iam.port, database.name);
    let mut variables = AWS.to_vec();
    variables.extend([
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_IAM_AUTH", "true"),
        ("AWS_LAMBDA_LOG_LEVEL", "TRACE"),
    ]);
    let function = Function::start(&variables);
    assert_eq!(ask(&function).0, 200);
    assert_eq!(iam.tokens().len(), 1);
    // Tokens are of one second.
    std::thread::sleep(Duration::from_millis(1100));
    block_on(database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database()"));
    assert_eq!(ask(&function).0, 200);
    let tokens = iam.tokens();
    assert_eq!(tokens.len(), 2);
    assert_ne!(tokens[0], tokens[1]);
    let asked = tokens.iter().map(|token| {
        json!({"host": "127.0.0.1", "port": iam.port, "user": "media_usage", "region": "eu-central-1",
               "access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY, "session_token": SESSION_TOKEN,
               "time": time_of(token)})
    });
    assert_eq!(tokens, tokens_of_botocore(&asked.collect::<Vec<_>>()));
    let log = function.stop();
    for secret in [&tokens[0], &tokens[1], SECRET_ACCESS_KEY, SESSION_TOKEN, "X-Amz-Signature"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn without_credentials_there_is_no_token_and_the_log_says_so() {
    let variables = [
        ("AWS_REGION", "eu-central-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("DATABASE_URL", "postgres://media_usage@127.0.0.1/synapse"),
        ("DATABASE_IAM_AUTH", "true"),
    ];
    let function = Function::start(&variables);
    assert_eq!(ask(&function).0, 500);
    let log = function.stop();
    assert!(log.contains("no token for IAM authentication: AWS credentials"), "{log}");
}

/// What the secret holds for a role and its password.
fn full(database: &Database, role: &str, password: &str) -> String {
    json!({"engine": "postgres", "username": role, "password": password, "host": "127.0.0.1",
           "port": database.cluster.port, "dbname": database.name})
    .to_string()
}

#[test]
fn rotating_a_secret_fails_no_request() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let role = format!("rotated_{}", database.name);
    let rotate = |password: &str| {
        block_on(database.run(&format!("ALTER ROLE {role} PASSWORD '{password}'")));
        // The rotation ends no session, but the next one needs the new password.
        block_on(database.run(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        )));
    };
    block_on(database.run(&format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN PASSWORD 'hunter2-one' IN ROLE media_usage")));
    let secret = Secret::create(&role, &full(&database, &role, "hunter2-one"));
    let function = secret.start(&[]);
    let page = ask(&function);
    assert_eq!(page.0, 200);
    // The database first, and then the secret.
    secret.put(&full(&database, &role, "hunter2-two"), TOKENS[1], "AWSPENDING");
    rotate("hunter2-two");
    assert_eq!(ask(&function), page);
    // Both at once.
    secret.put(&full(&database, &role, "hunter2-three"), TOKENS[2], "AWSCURRENT");
    rotate("hunter2-three");
    assert_eq!(ask(&function), page);
    // And a password that nobody knows.
    rotate("hunter2-four");
    assert_eq!(ask(&function).0, 500);
    let log = function.stop();
    assert_eq!(log.lines().filter(|line| line.contains("the request failed")).count(), 1, "{log}");
    assert!(log.contains("password authentication failed") && !log.contains("hunter2"), "{log}");
}

#[test]
fn the_url_gives_what_the_secret_lacks() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let login = json!({"username": "media_usage", "password": "p@ss/word"}).to_string();
    let secret = Secret::create(&format!("login_{}", database.name), &login);
    let place = format!("postgres://127.0.0.1:{}/{}", database.cluster.port, database.name);
    let function = secret.start(&[("DATABASE_URL", &place)]);
    assert_eq!(ask(&function).0, 200);
    assert!(!function.stop().contains("p@ss"));
    let nowhere = secret.start(&[]);
    assert_eq!(ask(&nowhere).0, 500);
    assert!(nowhere.stop().contains("neither DATABASE_URL nor the secret names a host"));
}

#[test]
fn a_place_that_cannot_be_reached_is_looked_up_again() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let right = full(&database, "media_usage", "p@ss/word");
    let wrong = right.replace(&database.cluster.port.to_string(), "1");
    let secret = Secret::create(&format!("moved_{}", database.name), &wrong);
    let function = secret.start(&[]);
    assert_eq!(ask(&function).0, 503);
    secret.put(&right, TOKENS[1], "AWSCURRENT");
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    assert!(log.contains("while connecting to 127.0.0.1:1\""), "{log}");
}

#[test]
fn a_username_that_saslprep_refuses_is_read_again_once_it_is_right() {
    let database = block_on(Database::of_conformance("synapse-94"));
    // Swapped, and with a newline at the end, which is enough to make sqlx panic.
    let swapped = full(&database, "p@ss/word\n", "media_usage");
    let secret = Secret::create(&format!("swapped_{}", database.name), &swapped);
    let function = secret.start(&[]);
    for _ in 0..2 {
        assert_eq!(ask(&function).0, 500);
    }
    let typed = full(&database, "media_usage", "p@ss/word");
    let typed = typed.replace(
        &format!("\"port\":{}", database.cluster.port),
        &format!("\"port\":\" {}\"", database.cluster.port),
    );
    secret.put(&typed, TOKENS[1], "AWSCURRENT");
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    assert!(log.contains("field `username` of the secret must be a name that SASLprep"), "{log}");
    assert!(!log.contains("p@ss") && !log.contains("panicked"), "{log}");
}

#[test]
fn what_secrets_manager_says_passes_or_stays() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:media-AbCdEf";
    let refusals = [
        (500, "InternalServiceError", 503),
        (400, "ThrottlingException", 503),
        (400, "AccessDeniedException", 500),
        (400, "InvalidRequestException", 500),
    ];
    let refusals = refusals.map(|(of_aws, code, status)| {
        let body = json!({"__type": code, "message": "hello"});
        (Answer::json(of_aws, &body).into(), status, format!("refused with {code}: hello"))
    });
    let text = full(&database, "media_usage", "p@ss/word");
    let secret = Answer::json(200, &json!({"ARN": arn, "SecretString": text}));
    let binary = Answer::json(200, &json!({"ARN": arn, "SecretBinary": "aHVudGVyMg=="}));
    let rubbish = Answer::new(200, "{\"SecretString\": \"hunter2");
    let answers: [(Reply, u64, &str); 5] = [
        (secret.clone().into(), 200, "the request was answered"),
        (rubbish.into(), 503, "'s answer cannot be read"),
        (Reply::Cut(secret, 9), 503, "'s answer cannot be read"),
        (Reply::Reset, 503, "Secrets Manager cannot be reached: "),
        (binary.into(), 500, "the secret is binary; it has to be text"),
    ];
    let answers = answers.map(|(reply, status, cause)| (reply, status, cause.to_owned()));
    let check = |(reply, status, cause): (Reply, u64, String)| {
        let server = Server::start_at("POST", "/", move |sent| {
            if sent.header("x-amz-target") != ["secretsmanager.GetSecretValue"] {
                return Err(format!("another action: {:?}", sent.headers));
            }
            let question: Value = serde_json::from_str(&sent.body).unwrap();
            if question != json!({"SecretId": arn, "VersionStage": "AWSCURRENT"}) {
                return Err(format!("another question: {question}"));
            }
            Ok(reply.clone())
        });
        let endpoint = format!("http://127.0.0.1:{}", server.port);
        let function = Secret { endpoint, arn: arn.to_owned() }.start(&[]);
        let answered = ask(&function).0;
        let log = function.stop();
        assert_eq!(answered, status, "{cause}: {log}");
        assert!(log.contains(&cause), "{cause}: {log}");
        for secret in ["p@ss", "hunter2", "aHVudGVyMg"] {
            assert!(!log.contains(secret), "{cause}: {log}");
        }
    };
    // The SDK asks some of them again, and waits before.
    thread::scope(|scope| {
        for each in refusals.into_iter().chain(answers) {
            scope.spawn(|| check(each));
        }
    });
}

#[test]
fn a_secret_that_cannot_be_read_is_named_in_the_log() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let garbage =
        Secret::create(&format!("garbage_{}", database.name), r#"{"username": 5, "x": "hunter2"}"#);
    let function = garbage.start(&[]);
    assert_eq!(ask(&function).0, 500);
    let log = function.stop();
    assert!(log.contains("field `username` of the secret must be a text"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");

    let missing = Secret { arn: garbage.arn.replace("garbage", "missing"), ..garbage };
    let function = missing.start(&[]);
    assert_eq!(ask(&function).0, 500);
    let log = function.stop();
    assert!(log.contains("Secrets Manager refused with ResourceNotFoundException"), "{log}");

    // A VPC without an endpoint: packets vanish.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let unreachable = Secret { endpoint, ..missing };
    let function = unreachable.start(&[]);
    let start = Instant::now();
    let (status, error) = ask(&function);
    // Init has asked, and so has the request; each gives up within 3 s.
    assert!(start.elapsed() < Duration::from_secs(6 + 2), "{:?}", start.elapsed());
    assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
    let log = function.stop();
    assert!(log.contains("a VPC needs an interface endpoint for it"), "{log}");
}
