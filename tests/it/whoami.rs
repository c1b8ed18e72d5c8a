//! The homeserver, which is asked about what the replica does not know: its word is passed on where
//! it is one, and it is not asked too often.

use std::{
    net::TcpListener,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::{
    ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};

use crate::support::{
    asking::{
        ADMIN, CLIENT_API, Variables, ask, ask_at, ask_case, ask_function, assert_is, case,
        case_by_query, database, introspected,
    },
    block_on, conformance,
    database::cluster,
    homeserver::{Homeserver, owner, refusal},
    mas::Mas,
    now,
    server::{Answer, Reply},
};

#[test]
fn what_the_homeserver_refuses_is_refused_in_its_words() {
    block_on(async {
        let database = database("synapse-94").await;
        let homeserver = Homeserver::start_below("/below/a/path");
        let url = homeserver.url() + "/";
        let service = Variables::of(&database).with("HOMESERVER_URL", url).service();
        let refusals = [
            (401, "M_UNKNOWN_TOKEN", "Invalid access token passed.", Some(false)),
            (401, "M_UNKNOWN_TOKEN", "Access token has expired", Some(true)),
            (401, "M_UNKNOWN_TOKEN", "Token is not active", None),
            (401, "M_USER_LOCKED", "User account has been locked", Some(true)),
            (401, "M_USER_DEACTIVATED", "This account has been deactivated", None),
            (403, "ORG_MATRIX_EXPIRED_ACCOUNT", "User account has expired", None),
            (403, "M_GUEST_ACCESS_FORBIDDEN", "Guest access not allowed", None),
            (403, "M_CONSENT_NOT_GIVEN", "", None),
        ];
        for (n, (status, errcode, text, soft_logout)) in (0..).zip(refusals) {
            homeserver.answers(refusal(status, errcode, text, soft_logout));
            let outcome = ask_at(&service, "syt_unknown", n * 1000).await;
            assert_eq!(
                (outcome.status, outcome.errcode.as_deref(), outcome.soft_logout),
                (status, Some(errcode), soft_logout)
            );
        }
        assert_eq!(homeserver.asked(), ["syt_unknown"; 8]);
    });
}

/// What is no word of a homeserver's about a token.
fn rubbish() -> Vec<Reply> {
    let owner_of = |body: Value| Answer::json(200, &body);
    let refusal_of = |body: &str| Answer::new(401, body);
    let refused =
        json!({"errcode": "M_UNKNOWN_TOKEN", "error": "no", "soft_logout": false}).to_string();
    let good = owner("@admin:example.com", Some("DEV"));
    let mut rubbish: Vec<Reply> = [
        owner_of(json!({})),
        owner_of(json!({"user_id": null})),
        owner_of(json!({"user_id": 5})),
        owner_of(json!({"user_id": ["@admin:example.com"]})),
        owner_of(json!(["@admin:example.com"])),
        owner_of(json!(["@admin:example.com", null])),
        owner_of(json!(["@admin:example.com", "DEV"])),
        owner_of(json!({"user_id": "@admin\0:example.com"})),
        owner_of(json!("@admin:example.com")),
        owner_of(json!({"errcode": "M_UNKNOWN_TOKEN", "error": "no"})),
        owner_of(json!({"user_id": "@admin:example.com", "device_id": 5})),
        Answer::new(200, ""),
        Answer::new(200, "<html>Log in</html>"),
        Answer::new(200, b"{\"user_id\":\"@admin\xff:example.com\"}".as_slice()),
        Answer::new(200, b"{\"user_id\":\"@admin:example.com\",\"x\":\"\xff\"}".as_slice()),
        Answer::new(204, ""),
        // Of one that never got the token, that does not speak of it, or of what stands before it.
        refusal(401, "M_MISSING_TOKEN", "Missing access token", None),
        refusal(401, "M_UNKNOWN", "", None),
        refusal(403, "M_UNKNOWN", "", None),
        refusal(403, "M_FORBIDDEN", "", None),
        refusal(401, "M_LIMIT_EXCEEDED", "", None),
        refusal(403, "M_LIMIT_EXCEEDED", "", None),
        refusal(401, "M_UNAUTHORIZED", "", None),
        refusal(401, "M_UNKNOWN_TOKEN2", "", Some(false)),
        refusal(401, "m_unknown_token", "", Some(false)),
        refusal(401, "ORG_MATRIX_MSC3939_USER_LOCKED", "", Some(true)),
        // A firewall's or a proxy's, and none of them knows the token.
        refusal_of(""),
        refusal_of("<html>401 Authorization Required</html>"),
        refusal_of("{}"),
        refusal_of("[]"),
        refusal_of(r#"["M_UNKNOWN_TOKEN","no",false]"#),
        refusal_of(r#"{"errcode":"M_UNKNOWN_TOKEN"}"#),
        refusal_of(r#"{"errcode":"FORBIDDEN","error":"by a firewall"}"#),
        refusal_of("null"),
        refusal_of(r#"{"error":"invalid_token"}"#),
        refusal_of(r#"{"errcode":5,"error":"no"}"#),
        refusal_of(r#"{"errcode":null,"error":"no"}"#),
        refusal_of(r#"{"errcode":"","error":"no"}"#),
        refusal_of(r#"{"errcode":"M_UNKNOWN_TOKEN","error":"no","soft_logout":"no"}"#),
        refusal_of(&format!("{refused}x")),
        refusal_of(&refused.replace("M_UNKNOWN_TOKEN", "M_\\n UNKNOWN")),
        refusal_of(&refused.replace("M_UNKNOWN_TOKEN", "<script>")),
        refusal_of(&refused.replace("M_UNKNOWN_TOKEN", &"M_X".repeat(1000))),
        Answer::new(403, "<html>403 Forbidden</html>"),
        Answer::new(403, "error code: 1020"),
        Answer::new(407, refused.as_str()),
        Answer::new(418, refused.as_str()),
        // Not whoami's.
        Answer::json(404, &json!({"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})),
        Answer::new(404, "<html>404</html>"),
        Answer::json(405, &json!({"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})),
        // It is in trouble itself.
        Answer::json(500, &json!({"errcode": "M_UNKNOWN", "error": "Internal server error"})),
        Answer::json(500, &json!({"errcode": "M_FORBIDDEN", "error": "User not found"})),
        Answer::new(502, "<html>502 Bad Gateway</html>"),
        Answer::json(
            503,
            &json!({"errcode": "M_UNKNOWN", "error": "Unable to introspect the access token"}),
        ),
        Answer::new(504, refused.as_str()),
        Answer::new(302, "").with("Location", "/login"),
        Answer::new(200, " ".repeat(2 * 1024 * 1024)),
        refusal_of(&(refused.clone() + &" ".repeat(2 * 1024 * 1024))),
    ]
    .map(Reply::from)
    .to_vec();
    rubbish.extend([
        Reply::Cut(good.clone(), 1),
        Reply::Cut(refusal(401, "M_UNKNOWN_TOKEN", "no", false), 3),
        Reply::Bytes(Vec::new()),
        Reply::Bytes(refused.into_bytes()),
        Reply::Bytes(b"HTTP/1.1 401 Unauthorized\r\n".to_vec()),
        Reply::Bytes(vec![b'\n'; 1_000_000]),
        Reply::Reset,
        Reply::Endless(200),
        Reply::Endless(401),
    ]);
    rubbish
}

#[test]
fn a_homeserver_that_talks_rubbish_is_503_and_logs_nobody_out() {
    block_on(async {
        let database = database("synapse-94").await;
        let (mas, homeserver) = (Mas::start(), Homeserver::start());
        mas.answers(introspected(&json!({ "device_id": "GONE" })));
        let internal = Variables::of(&database).homeserver(&homeserver);
        for variables in [internal.clone().mas(&mas), internal] {
            let service = variables.service();
            let mut complaints = Vec::new();
            for (n, reply) in (0..).zip(rubbish()) {
                let shown: String = format!("{reply:?}").chars().take(600).collect();
                homeserver.answers(reply);
                let outcome = ask_at(&service, "syt_unknown", n * 1000).await;
                if !outcome.is("503 M_UNKNOWN - ...") {
                    complaints.push(format!("{shown}: got {outcome:?}"));
                }
                if homeserver.asked().len() != 1 {
                    complaints.push(format!("{shown}: not asked once"));
                }
            }
            // It may say that it has been asked too often; that is no word about the token either.
            homeserver.answers(refusal(429, "M_LIMIT_EXCEEDED", "Too Many Requests", None));
            let outcome = ask_at(&service, "syt_unknown", 1_000_000).await;
            assert!(matches!(outcome.status, 429 | 503), "{outcome:?}");
            conformance::assert_none(&complaints);
            homeserver.answers(owner("@admin:example.com", Some("GONE")));
            assert_eq!(ask_at(&service, "syt_unknown", 2_000_000).await.status, 200);
            homeserver.asked();
        }
    });
}

#[test]
fn the_homeserver_names_the_user_and_the_replica_says_what_they_may() {
    block_on(async {
        let database = database("synapse-94").await;
        let homeserver = Homeserver::start();
        let service = Variables::of(&database).homeserver(&homeserver).service();
        let behind = "503 M_UNKNOWN - ...";
        let no_admin = "403 M_FORBIDDEN - You are not a server admin";
        let odd = "400 M_INVALID_PARAM - Expected UserID string to start with '@'";
        // Against a login that the homeserver vouches for, the replica's word is old. The replica
        // judges the sender of an application service, who has no device.
        for (user_id, of_login, of_service) in [
            ("@admin:example.com", "200", "200"),
            ("@remoteadmin:other.example", "200", "200"),
            ("@plain:example.com", behind, no_admin),
            (
                "@lockedadmin:example.com",
                behind,
                "401 M_USER_LOCKED true User account has been locked",
            ),
            (
                "@guestadmin:example.com",
                behind,
                "403 M_GUEST_ACCESS_FORBIDDEN - Guest access not allowed",
            ),
            ("notanmxid", odd, odd),
            ("@Admin:example.com", behind, no_admin),
            ("@admin:example.com ", behind, no_admin),
            ("' OR true --", behind, no_admin),
            ("", behind, no_admin),
        ] {
            for (device_id, expected) in [(Some("DEV"), of_login), (None, of_service)] {
                homeserver.answers(owner(user_id, device_id));
                let outcome = ask(&service, "syt_fresh").await;
                assert_is(&outcome, expected, user_id);
            }
        }
        // Whatever it says of rights: the replica knows.
        let body = json!({"user_id": "@plain:example.com", "is_guest": false, "admin": true, "scope": ADMIN});
        homeserver.answers(Answer::json(200, &body));
        assert_eq!(ask(&service, "syt_fresh").await.status, 403);
        // But that a user is a guest counts at once, with and without a device. A guest's token is a good
        // one, and counts with nobody's guesses.
        for device_id in [json!("DEV"), Value::Null].iter().cycle().take(12) {
            let guest =
                json!({"user_id": "@admin:example.com", "is_guest": true, "device_id": device_id});
            homeserver.answers(Answer::json(200, &guest));
            let expected = "403 M_GUEST_ACCESS_FORBIDDEN - Guest access not allowed";
            assert_is(&ask(&service, "syt_fresh").await, expected, "a guest");
        }
        // A NUL is in no user id.
        homeserver.answers(owner("@admin\0:example.com", None));
        let outcome = ask_at(&service, "syt_fresh", 1_001_000).await;
        assert_eq!(outcome.status, 503, "{outcome:?}");
    });
}

#[test]
fn with_mas_the_homeserver_has_to_name_the_same_user_and_device() {
    block_on(async {
        let database = database("synapse-94").await;
        let (mas, homeserver) = (Mas::start(), Homeserver::start());
        let service = Variables::of(&database).mas(&mas).homeserver(&homeserver).service();
        mas.knows("mat_new_device", introspected(&json!({ "device_id": "NEW" })));
        mas.knows("mat_new_user", introspected(&json!({ "username": "new", "device_id": "NEW" })));
        let scope = format!("{CLIENT_API} {ADMIN}");
        mas.knows("mat_no_device", introspected(&json!({ "username": "new", "scope": scope })));
        for (n, (token, owner, expected)) in (0..).zip([
            ("mat_new_device", owner("@admin:example.com", Some("NEW")), 200),
            ("mat_new_device", owner("@admin:example.com", Some("DEV")), 503),
            ("mat_new_device", owner("@admin:example.com", None), 503),
            ("mat_new_device", owner("@admin:other.example", Some("NEW")), 503),
            ("mat_new_device", owner("@ADMIN:example.com", Some("NEW")), 503),
            ("mat_new_user", owner("@new:example.com", Some("NEW")), 200),
            ("mat_new_user", owner("@admin:example.com", Some("NEW")), 503),
            ("mat_no_device", owner("@new:example.com", None), 200),
            ("mat_no_device", owner("@new:example.com", Some("NEW")), 503),
        ]) {
            homeserver.answers(owner.clone());
            let outcome = ask_at(&service, token, n * 1000).await;
            assert_eq!(outcome.status, expected, "{token} {owner:?}: {outcome:?}");
        }
        assert_eq!(homeserver.asked().len(), 9);
        // Nor is a token asked about that MAS does not call active.
        assert_eq!(ask_at(&service, "mat_other", 100_000).await.status, 401);
        assert_eq!(homeserver.asked().len(), 0);
    });
}

#[test]
fn a_flood_of_unknown_tokens_stays_here() {
    block_on(async {
        let database = database("synapse-94").await;
        let (mas, homeserver) = (Mas::start(), Homeserver::start());
        mas.answers(introspected(&json!({ "device_id": "GONE" })));
        let internal = Variables::of(&database).homeserver(&homeserver);
        for variables in [internal.clone().mas(&mas), internal] {
            let service = variables.service();
            // How many of so many are asked about. The others are told to come back.
            let flood = async |count: usize, ms: i64| {
                let mut refused = 0;
                for n in 0..count {
                    let outcome = ask_at(&service, &format!("unknown_{ms}_{n}"), ms).await;
                    match outcome.status {
                        401 => refused += 1,
                        _ => assert_is(&outcome, "429 M_LIMIT_EXCEEDED - ...", "flood"),
                    }
                }
                assert_eq!(homeserver.asked().len(), refused);
                refused
            };
            assert_eq!(flood(40, 0).await, 10);
            assert_eq!(flood(5, 999).await, 0);
            assert_eq!(flood(5, 1000).await, 1);
            assert_eq!(flood(5, 4500).await, 3);
            assert_eq!(flood(40, 3_600_000).await, 10);
            // A clock that is set back takes nothing away for good.
            flood(5, 0).await;
            assert!(flood(5, 1_000).await >= 1);
        }
    });
}

#[test]
fn a_flood_harms_nobody_whom_the_replica_knows() {
    let database = block_on(database("synapse-94"));
    let homeserver = Homeserver::start();
    let function = Variables::of(&database).homeserver(&homeserver).function();
    let (start, mut refused) = (Instant::now(), 0);
    for n in 0..100 {
        let outcome = ask_function(&function, &case(&format!("syt_unknown_{n}")));
        match outcome.status {
            401 => refused += 1,
            _ => assert_is(&outcome, "429 M_LIMIT_EXCEEDED - ...", "flood"),
        }
        assert_eq!(ask_function(&function, &case("syt_admin_ok")).status, 200);
    }
    let most = 10 + usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
    let asked = homeserver.asked().len();
    assert_eq!(asked, refused);
    assert!((10..=most).contains(&asked), "{asked} in {:?}", start.elapsed());
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(ask_function(&function, &case("syt_unknown")).status, 401);
    assert_eq!(homeserver.asked(), ["syt_unknown"]);
    function.stop();
}

#[test]
fn tokens_that_no_header_can_carry_are_never_sent() {
    block_on(async {
        let database = database("synapse-94").await;
        let homeserver = Homeserver::start();
        homeserver.answers(owner("@admin:example.com", None));
        let service = Variables::of(&database).homeserver(&homeserver).service();
        for token in [
            "",
            " ",
            "a b",
            "a\tb",
            "a\r\nX-Evil: 1",
            "a\u{7f}",
            "ü",
            "\u{202e}a",
            "a\u{85}b",
            "a\0b",
        ] {
            for _ in 0..5 {
                let outcome = ask_case(&service, &case_by_query(token), now()).await;
                let expected = "401 M_UNKNOWN_TOKEN false Invalid access token passed.";
                assert_is(&outcome, expected, &format!("{token:?}"));
            }
        }
        // What stands before a homeserver refuses such a header by itself.
        let outcome = ask_case(&service, &case_by_query(&"x".repeat(2049)), now()).await;
        assert_is(&outcome, "401 M_UNKNOWN_TOKEN false Invalid access token passed.", "long");
        assert_eq!((homeserver.asked().len(), homeserver.complaints().len()), (0, 0));
        assert_eq!(ask_case(&service, &case_by_query(&"x".repeat(2048)), now()).await.status, 200);
        assert_eq!(homeserver.asked().len(), 1);
        // Others are, as they are.
        for token in ["syt_YQ_abc_1x", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"] {
            assert_eq!(ask_case(&service, &case_by_query(token), now()).await.status, 200);
            assert_eq!(homeserver.asked(), [token]);
        }
    });
}

#[test]
fn the_connection_to_the_database_outlives_refusals_and_failures_of_others() {
    block_on(async {
        let database = database("synapse-94").await;
        let homeserver = Homeserver::start();
        let service = Variables::of(&database).homeserver(&homeserver).service();
        let sessions = async || {
            let sql = "SELECT array_agg(pid) FROM pg_stat_activity WHERE usename = 'media_usage' AND datname = current_database()";
            let mut superuser = database.superuser().await;
            sqlx::query_scalar::<_, Option<Vec<i32>>>(sql).fetch_one(&mut superuser).await.unwrap()
        };
        assert_eq!(ask(&service, "syt_admin_ok").await.status, 200);
        let before = sessions().await;
        assert_eq!(before.as_ref().map(Vec::len), Some(1));
        assert_eq!(ask(&service, "syt_unknown").await.status, 401);
        homeserver.answers(Reply::Reset);
        assert_eq!(ask(&service, "syt_unknown").await.status, 503);
        assert_eq!(ask(&service, "syt_admin_ok").await.status, 200);
        assert_eq!(sessions().await, before);
    });
}

#[test]
fn no_server_is_believed_that_cannot_prove_its_name() {
    let Some(tls) = &cluster().tls else {
        println!("this PostgreSQL was built without TLS, and so there are no certificates");
        return;
    };
    let database = block_on(database("synapse-94"));
    for certificate in ["server", "wrong-name", "expired", "unknown-issuer"] {
        for of_mas in [true, false] {
            let (port, handshake) = handshake(tls, certificate);
            let url = format!("https://localhost:{port}");
            let variables = Variables::of(&database);
            let variables =
                if of_mas { variables.mas_at(&url) } else { variables.with("HOMESERVER_URL", url) };
            let function = variables.function();
            let outcome = ask_function(&function, &case("some_token"));
            assert_is(&outcome, "503 M_UNKNOWN - ...", certificate);
            // The client ended it before it said anything.
            let end = handshake.join().unwrap();
            assert!(end.contains("received fatal alert"), "{certificate}: {end}");
            let log = function.stop();
            assert!(log.contains("certificate"), "{certificate}: {log}");
        }
    }
}

/// A TLS server with a certificate of the cluster's: its port, and how its only handshake ended.
fn handshake(tls: &str, certificate: &str) -> (u16, thread::JoinHandle<String>) {
    let chain = CertificateDer::pem_file_iter(format!("{tls}/{certificate}.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(format!("{tls}/server.key")).unwrap();
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let handshake = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
        match connection.complete_io(&mut stream) {
            Ok(_) => "the handshake came to a good end".to_owned(),
            Err(error) => error.to_string(),
        }
    });
    (port, handshake)
}
