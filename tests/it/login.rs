//! The process lives, whatever a server says, a secret holds or Lambda refuses; and the next request is
//! answered.

use serde_json::Value;

use crate::support::{
    backend::{self, Says, message},
    block_on,
    cases::request,
    database::{Database, cluster},
    function::{Function, ask, start},
    gateway::Gateway,
    tls::Front,
};

/// Messages of a server that are none, each of which something in the client may not expect.
fn malformed() -> Vec<Says> {
    let ok = message(b'R', &[0; 4]);
    let after_ok = |bytes: &[u8]| Says::Bytes([&ok, bytes].concat());
    let no_length = |kind| vec![kind, 0, 0, 0, 0];
    let mut says = vec![
        // Authentication without a body, with half of one, and for MD5 without salt.
        Says::Bytes(message(b'R', b"")),
        Says::Bytes(message(b'R', b"\0\0")),
        Says::Bytes(message(b'R', b"\0\0\0\x05")),
        Says::Bytes(message(b'R', b"\0\0\0\x0a")),
        Says::Bytes(message(b'R', b"\0\0\0\x0b")),
        Says::Bytes(message(b'R', b"\0\0\0\x0aSCRAM-SHA-256")),
        Says::Bytes(message(b'R', b"\0\0\0\x0a\xff\xfe\0\0")),
    ];
    // Each message that belongs to a login, empty and with a length that is less than its own.
    for kind in *b"RSKZENAGt" {
        says.push(after_ok(&message(kind, b"")));
        says.push(after_ok(&no_length(kind)));
        says.push(after_ok(&message(kind, b"\0")));
    }
    // The same to the first question, and those that belong to an answer.
    for kind in *b"RSZENTDCI12nst" {
        says.push(Says::ToQuestion(message(kind, b"")));
        says.push(Says::ToQuestion(no_length(kind)));
        says.push(Says::ToQuestion(message(kind, b"\0\x01")));
    }
    says
}

#[test]
fn what_no_server_says_ends_no_process() {
    let database = block_on(Database::of_conformance("synapse-94"));
    // Some of it the client waits out, so that several functions share it.
    let malformed = malformed();
    std::thread::scope(|scope| {
        for part in malformed.chunks(8) {
            let database = &database;
            scope.spawn(move || {
                // The first is said during init, each further one to a request.
                let function = start(&backend::start(database, part.to_vec()));
                for says in &part[1..] {
                    let (status, error) = ask(&function);
                    assert!(
                        matches!(status, 500 | 503) && error["errcode"] == "M_UNKNOWN",
                        "{says:?}: {status} {error}"
                    );
                }
                assert_eq!(ask(&function).0, 200);
                function.stop();
            });
        }
    });
}

/// What fills the memory of a client that believes it.
fn too_much() -> Vec<Says> {
    let columns = message(b'T', b"\0\x01x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    let row = message(b'D', &[b"\0\x01\0\x01\0\0", &*b"x".repeat(1 << 16)].concat());
    let mut says = vec![
        // What servers of other protocols greet with, and lengths of gigabytes.
        Says::Bytes(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
        Says::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        Says::Bytes(b"R\xff\xff\xff\xf0".to_vec()),
        Says::Endless(message(b'S', b"name\0value\0")),
        Says::Endless(message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mnotice\0\0")),
        Says::EndlessToQuestion(row.clone()),
        Says::EndlessToQuestion([columns, row].concat()),
    ];
    says.extend(b"RSTDEN".map(|kind| Says::ToQuestion(vec![kind, 0x7f, 0xff, 0xff, 0xf0])));
    says
}

#[test]
fn a_server_that_says_too_much_ends_no_process() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let script = too_much();
    let tls = database.cluster.tls.as_deref();
    let ca = database.cluster.ca.as_deref().unwrap_or_default();
    for (sslmode, tls) in [
        ("disable", None),
        ("prefer", None),
        // Where PostgreSQL was built without TLS, these have none either.
        ("prefer", tls),
        ("require", tls),
        ("verify-full", tls),
    ] {
        if tls.is_none() && !matches!(sslmode, "disable" | "prefer") {
            println!("this PostgreSQL was built without TLS");
            continue;
        }
        let url = backend::start(&database, script.clone());
        let url = match tls {
            Some(tls) => Front::start(&url, tls, "server").url("localhost", sslmode),
            None => format!("{url}?sslmode={sslmode}"),
        };
        let variables = [("DATABASE_URL", &*url), ("DATABASE_CA_FILE", ca)];
        let function = Function::start_by(&["prlimit", "--as=1073741824"], &variables);
        // One is said during init. A request that meets a login that still reads is told nothing.
        let mut refusals = 0;
        while ask(&function).0 == 503 && refusals < 100 {
            refusals += 1;
        }
        assert!((script.len() - 1..100).contains(&refusals), "{sslmode}: {refusals}");
        assert_eq!(ask(&function).0, 200);
        let peak = function.peak_memory();
        assert!(peak < 160_000_000, "{sslmode}: {peak}");
        assert!(function.stop().contains("longer than any that is asked for"));
    }
}

#[test]
fn a_connection_that_broke_is_closed_before_the_next_is_opened() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let shutdown = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0";
    let script = vec![Says::ToQuestion(message(b'E', shutdown))];
    // Through a pooler the first question is the request's.
    let url = backend::start(&database, script);
    let function = Function::start(&[("DATABASE_URL", &url), ("DATABASE_POOLER", "true")]);
    assert_eq!(ask(&function).0, 200);
    function.stop();
}

#[test]
fn a_panic_of_the_client_is_a_database_that_cannot_be_reached() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let empty = Says::Bytes(message(b'R', b""));
    let function = start(&backend::start(&database, vec![empty.clone(), empty]));
    let (status, error) = ask(&function);
    assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    // Once in init, once in the request.
    assert_eq!(log.matches("what the database server sent made the client panic").count(), 2);
    // Its place is there, and its message, which can quote anything, is not.
    assert_eq!(log.matches("panicked place=").count(), 2, "{log}");
}

#[test]
fn a_login_that_takes_the_server_s_time_takes_one_thread_and_no_request_s() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let url = backend::start(&database, vec![Says::Scram(u32::MAX); 8]);
    let function = start(&format!("{url}?connect_timeout=1"));
    let preflight = {
        let mut case = request(None);
        "OPTIONS".clone_into(&mut case.method);
        Gateway::HttpApi.event(&case).unwrap().to_string()
    };
    // Init has given its login up, and it still computes.
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (status, error) = ask(&function);
            assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{error}");
            assert_eq!(function.invoke(preflight.as_bytes()).unwrap()["statusCode"], 204);
            function.threads()
        })
        .collect();
    assert_eq!(threads, [threads[0]; 3]);
    let log = function.stop();
    assert!(log.contains("took too long"), "{log}");
    assert_eq!(log.matches("an earlier login is still computing").count(), 3, "{log}");
}

#[test]
fn an_answer_comes_before_the_end_where_the_server_is_silent() {
    use std::time::{Duration, Instant};
    let database = block_on(Database::of_conformance("synapse-94"));
    let proxy = crate::support::proxy::Proxy::start();
    for ms in [500, 1000, 1600, 2500] {
        let function = start(&proxy.url(&database));
        assert_eq!(ask(&function).0, 200);
        proxy.silence(true);
        let event = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap().to_string();
        let begin = Instant::now();
        let answer = function.invoke_within(event.as_bytes(), Duration::from_millis(ms)).unwrap();
        // What Lambda does to a process that is late.
        assert!(begin.elapsed() < Duration::from_millis(ms), "{ms}: {:?}", begin.elapsed());
        assert!(matches!(answer["statusCode"].as_u64(), Some(503 | 504)), "{answer}");
        proxy.silence(false);
        function.stop();
    }
}

#[test]
fn a_function_without_a_shutdown_hook_answers() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = Function::start_without_extensions(&[
        ("DATABASE_URL", &database.url()),
        ("AWS_LAMBDA_LOG_FORMAT", "JSON"),
    ]);
    assert_eq!(ask(&function).0, 200);
    let log = function.stop();
    let warning = log.lines().find(|line| line.contains("no shutdown hook"));
    let warning: Value = serde_json::from_str(warning.unwrap()).unwrap();
    assert_eq!(warning["level"], "WARN");
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_login_that_the_server_quotes_is_in_no_log() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let swapped = format!("127.0.0.1:{}/{}", cluster().port, database.name);
    for (said, code) in [
        ("password authentication failed for user \"hunter2hunter2\"", "28P01"),
        ("role \"hunter2hunter2\" does not exist", "28000"),
        ("unexpected value hunter2hunter2 in slot 5", "XX000"),
        ("data corrupted: hunter2hunter2", "XX001"),
        ("No pool configured for user: \"hunter2hunter2\"", "58000"),
        ("permission denied for hunter2hunter2", "42501"),
        ("no such user: hunter2hunter2", "08P01"),
        ("password authentication failed for hunter2hunter2", "08P01"),
    ] {
        let fields = format!("SFATAL\0VFATAL\0C{code}\0M{said}\0\0");
        let refusal = Says::Bytes(message(b'E', fields.as_bytes()));
        let url = backend::start(&database, vec![refusal.clone(), refusal]);
        let function = start(&url);
        let (status, error) = ask(&function);
        assert_eq!((status, error["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{code} {error}");
        let log = function.stop();
        assert!(log.contains(code) && !log.contains("hunter2"), "{log}");
    }
    // A real server, and a name and a password that were swapped.
    let function = start(&format!("postgres://hunter2hunter2:media_usage@{swapped}"));
    assert_eq!(ask(&function).0, 500);
    let log = function.stop();
    assert!(log.contains("28P01") && !log.contains("hunter2"), "{log}");
}
