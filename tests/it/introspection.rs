//! Matrix Authentication Service (MAS): what it is sent, how its answers are read, and how long they
//! are remembered.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lambda_http::http::Method;
use serde_json::json;
use synapse_media_usage::invocation::Invocation;

use crate::support::{
    NOW_MS,
    asking::{
        ADMIN, CLIENT_API, DEVICE, IN_VAIN, SERVER_NAME, UNSTABLE_CLIENT_API, UNSTABLE_DEVICE,
        Variables, ask, ask_at, ask_case, ask_function, ask_function_within, assert_is, case,
        case_by_query, database, introspected, introspection,
    },
    aws::{AWS, Secret, TOKENS},
    block_on, cases, conformance,
    database::Database,
    function::Function,
    homeserver::{Homeserver, owner},
    mas::{Mas, SECRET},
    now,
    server::{Answer, Framing, Refusing, Reply},
};

#[test]
fn mas_is_asked_about_the_token_byte_for_byte() {
    block_on(async {
        let database = database("synapse-94").await;
        for (path, slashes) in [("", ""), ("", "/"), ("/auth/mas", "///")] {
            let mas = Mas::start_below(path);
            let endpoint = mas.endpoint() + slashes;
            let service = Variables::of(&database).mas_at(&endpoint).service();
            let tokens = ["mat_abc", "a~b*c+d%20e/=&;?#", "a b", "a\r\nX: y", "ü", "", SECRET];
            for token in tokens {
                let outcome = ask_case(&service, &case_by_query(token), now()).await;
                assert_is(&outcome, "401 M_UNKNOWN_TOKEN false Token is not active", token);
            }
            assert_eq!(mas.asked(), tokens);
            ask(&service, "a~b*c+d%20e/=&;?#").await;
            assert_eq!(mas.asked(), ["a~b*c+d%20e/=&;?#"]);
            assert_eq!(mas.complaints(), [""; 0]);
        }
    });
}

#[test]
fn nobody_is_asked_before_there_is_one_token() {
    block_on(async {
        let database = database("synapse-94").await;
        let (mas, homeserver) = (Mas::start(), Homeserver::start());
        let internal = Variables::of(&database).homeserver(&homeserver);
        for variables in [internal.clone().mas(&mas), internal] {
            let service = variables.service();
            let mut cases = vec![cases::request(None); 7];
            cases[0].headers.clear();
            cases[1].headers[0].1 = "Basic YTpi".to_owned();
            let header = cases[2].headers[0].clone();
            cases[2].headers.push(header);
            cases[3].query = Some("access_token=x".to_owned());
            cases[4].path = "/_synapse/admin/v1/statistics/users".to_owned();
            cases[5].method = Method::POST.to_string();
            cases[6].headers[0].1 = "Bearer ".to_owned();
            for (case, status) in cases.iter().zip([401, 401, 401, 401, 404, 405, 401]) {
                let outcome = ask_case(&service, case, now()).await;
                assert_eq!(outcome.status, status, "{outcome:?}");
            }
        }
        assert_eq!((mas.asked().len(), homeserver.asked().len()), (0, 0));
    });
}

const IN: &str = "200";
const NOT_ACTIVE: &str = "401 M_UNKNOWN_TOKEN false Token is not active";
const NO_CLIENT: &str =
    "401 M_UNKNOWN_TOKEN false Token doesn't grant access to the Matrix C-S API";
const NO_USERNAME: &str = "500 M_FORBIDDEN - Invalid username claim in the introspection result";
const NO_USER: &str = "500 M_FORBIDDEN - User not found";
const SEVERAL: &str = "500 M_FORBIDDEN - Multiple device IDs in scope";
const UNUSABLE: &str = "500 M_FORBIDDEN - Invalid device ID in introspection result";
const NO_ADMIN: &str = "403 M_FORBIDDEN - You are not a server admin";
const UNABLE: &str = "503 M_UNKNOWN - Unable to introspect the access token";

/// What MAS says of a token, and what came of it.
fn introspections() -> Vec<(Reply, &'static str)> {
    let scope = |scope: &str| json!({ "scope": scope });
    let several = format!("{CLIENT_API} {DEVICE}DEV {DEVICE}X {ADMIN}");
    [
        (json!({}), IN),
        (json!({"foo": [1, {"a": null}], "x": "\u{1F600}", "active": true}), IN),
        // Scopes.
        (scope(&format!("{UNSTABLE_CLIENT_API} {UNSTABLE_DEVICE}DEV {ADMIN}")), IN),
        (scope(&format!("  {ADMIN}   {CLIENT_API} ")), IN),
        (scope(&format!("{CLIENT_API} {DEVICE}DEV")), NO_ADMIN),
        (scope(&format!("{CLIENT_API} {ADMIN}x")), NO_ADMIN),
        (scope(&format!("{CLIENT_API} x{ADMIN}")), NO_ADMIN),
        (scope(&format!("{CLIENT_API} {}", ADMIN.to_uppercase())), NO_ADMIN),
        (scope(&format!("{CLIENT_API},{ADMIN}")), NO_CLIENT),
        (scope(&format!("{CLIENT_API}\t{ADMIN}")), NO_CLIENT),
        (scope(&format!("{} {ADMIN}", CLIENT_API.to_uppercase())), NO_CLIENT),
        (scope(&format!("openid {ADMIN}")), NO_CLIENT),
        (scope(ADMIN), NO_CLIENT),
        (scope(""), NO_CLIENT),
        (json!({"scope": null}), NO_CLIENT),
        (json!({"scope": [CLIENT_API, ADMIN]}), UNABLE),
        // Whether it is active, and how long.
        (json!({"active": false}), NOT_ACTIVE),
        (json!({"active": false, "scope": 5}), UNABLE),
        (json!({"active": null}), UNABLE),
        (json!({"active": 1}), UNABLE),
        (json!({"active": "true"}), UNABLE),
        (json!({"expires_in": null}), IN),
        (json!({"expires_in": 1}), IN),
        (json!({"expires_in": 9_223_372_036_854_775_808_u64}), IN),
        (json!({"expires_in": 0}), NOT_ACTIVE),
        (json!({"expires_in": -1}), NOT_ACTIVE),
        (json!({"expires_in": 300.0}), UNABLE),
        (json!({"expires_in": "300"}), UNABLE),
        (json!({"expires_in": true}), UNABLE),
        (json!({"expires_in": [300]}), UNABLE),
        // Another clock's word does not count.
        (json!({"exp": 1, "iat": 4_102_444_800_i64, "nbf": 4_102_444_800_i64}), IN),
        // Users.
        (json!({"username": null}), NO_USERNAME),
        (json!({"username": 5}), UNABLE),
        (json!({"username": ""}), NO_USER),
        (json!({"username": "nobody"}), NO_USER),
        (json!({"username": "Admin"}), NO_USER),
        (json!({"username": "@admin:example.com"}), NO_USER),
        (json!({"username": "admin\u{0}"}), NO_USER),
        (json!({"username": "admin%"}), NO_USER),
        (json!({"username": "' OR true --"}), NO_USER),
        (json!({"username": "x".repeat(100_000)}), NO_USER),
        // Devices.
        (json!({"device_id": "DEV"}), IN),
        (json!({"device_id": null}), IN),
        (json!({"device_id": "DEV", "scope": several}), IN),
        (json!({"device_id": "X"}), NOT_ACTIVE),
        (json!({"device_id": "KEY"}), NOT_ACTIVE),
        (json!({"device_id": "NULL"}), NOT_ACTIVE),
        (json!({"device_id": "dev"}), NOT_ACTIVE),
        (json!({"device_id": ""}), UNUSABLE),
        (json!({"device_id": "é".repeat(255)}), NOT_ACTIVE),
        (json!({"device_id": "é".repeat(256)}), UNUSABLE),
        (json!({"device_id": 5}), UNABLE),
        (scope(&several), SEVERAL),
        (scope(&format!("{CLIENT_API} {DEVICE}DEV {UNSTABLE_DEVICE}DEV {ADMIN}")), IN),
        (scope(&format!("{CLIENT_API} {DEVICE}DEV {DEVICE}DEV {ADMIN}")), IN),
        (scope(&format!("{CLIENT_API} {DEVICE} {ADMIN}")), UNUSABLE),
        (scope(&format!("{CLIENT_API} {}DEV {ADMIN}", DEVICE.to_uppercase())), IN),
        (scope(&format!("{CLIENT_API} {ADMIN}")), IN),
        // The user before the device, and both before the scope of an admin.
        (json!({"username": "nobody", "scope": several}), NO_USER),
        (json!({"username": "nobody", "scope": CLIENT_API}), NO_USER),
        (json!({"username": null, "scope": several}), NO_USERNAME),
        (json!({"device_id": "X", "scope": CLIENT_API}), NOT_ACTIVE),
    ]
    .into_iter()
    .map(|(more, said)| (introspected(&more).into(), said))
    .collect()
}

/// The same of answers that differ by their form.
fn forms() -> Vec<(Reply, &'static str)> {
    let mut said: Vec<(Reply, _)> = Vec::new();
    let good = introspection(&json!({})).to_string();
    let open = good.strip_suffix('}').unwrap();
    let padded = |length: usize| good.clone() + &" ".repeat(length - good.len());
    for (body, outcome) in [
        (json!({}).to_string(), UNABLE),
        (json!({"active": true}).to_string(), NO_CLIENT),
        (json!({"active": false}).to_string(), NOT_ACTIVE),
        (format!(" \r\n{good}\n"), IN),
        (format!("{open},\"x\":1e999}}"), IN),
        (good.replace("300", "1180591620717411303424"), IN),
        (good.replace("300", "-1180591620717411303424"), NOT_ACTIVE),
        (good.replace("300", "3e2"), UNABLE),
        (good.replace("\"active\":true,", ""), UNABLE),
        (format!("{good}x"), UNABLE),
        (format!("{good}{good}"), UNABLE),
        (format!("\u{feff}{good}"), UNABLE),
        (format!("[{good}]"), UNABLE),
        (format!("{open},\"x\":NaN}}"), UNABLE),
        (format!("{open},\"x\":{}}}", "[".repeat(100_000)), UNABLE),
        (open.to_owned(), UNABLE),
        (String::new(), UNABLE),
        ("null".to_owned(), UNABLE),
        ("true".to_owned(), UNABLE),
        ("\"active\"".to_owned(), UNABLE),
        ("[true]".to_owned(), UNABLE),
        (
            r#"[true,"urn:matrix:client:api:* urn:synapse:admin:*","admin",null,300]"#.to_owned(),
            UNABLE,
        ),
        ("[false,null,null,null,null]".to_owned(), UNABLE),
        ("<html>502</html>".to_owned(), UNABLE),
        ("active=true".to_owned(), UNABLE),
        (padded(1024 * 1024), IN),
        (padded(1024 * 1024 + 1), UNABLE),
    ] {
        said.push((Answer::new(200, body).into(), outcome));
    }
    said.push((Answer::new(200, good.replace("admin\"", "adm\u{e9}n\"")).into(), NO_USER));
    let mut latin_1 = good.clone().into_bytes();
    let at = good.find("\"admin\"").unwrap();
    latin_1[at + 1] = 0xe9;
    said.push((Answer::new(200, latin_1).into(), UNABLE));
    // By the rest of the answer.
    for framing in [Framing::Length, Framing::Chunked, Framing::Close] {
        said.push((Answer::new(200, good.as_str()).framed(framing).into(), IN));
    }
    said.push((Answer::new(200, good.as_str()).with("Content-Type", "text/html").into(), IN));
    said.push((Answer::new(201, good.as_str()).into(), IN));
    said.push((Reply::Slow(Answer::new(200, good.as_str()), Duration::from_micros(50)), IN));
    for status in [204, 300, 304, 400, 401, 403, 404, 418, 429, 500, 502, 503, 599] {
        said.push((Answer::new(status, good.as_str()).framed(Framing::Close).into(), UNABLE));
    }
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = Answer::new(status, good.as_str()).with("Location", "/oauth2/introspect");
        said.push((elsewhere.into(), UNABLE));
    }
    said.push((Reply::Cut(Answer::new(200, good.as_str()), 1), UNABLE));
    said.push((Reply::Cut(Answer::new(200, good.as_str()).framed(Framing::Chunked), 5), UNABLE));
    said.push((Reply::Bytes(Vec::new()), UNABLE));
    said.push((Reply::Bytes(good.clone().into_bytes()), UNABLE));
    said.push((Reply::Bytes(vec![0; 1_000_000]), UNABLE));
    said.push((Reply::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), UNABLE));
    said.push((Reply::Bytes(b"HTTP/1.1 200 OK\r\n".to_vec()), UNABLE));
    said.push((Reply::Bytes(b"\x15\x03\x01\x00\x02\x02\x46".to_vec()), UNABLE)); // a TLS alert
    said.push((Reply::Reset, UNABLE));
    said.push((Reply::Endless(200), UNABLE));
    said.push((Reply::Endless(500), UNABLE));
    said
}

#[test]
fn what_mas_says_is_read_as_synapse_reads_it() {
    block_on(async {
        let database = database("synapse-94").await;
        // As role.sql leaves it with MAS.
        database.run("REVOKE ALL ON access_tokens FROM media_usage").await;
        let mas = Mas::start();
        let service = Variables::of(&database).mas(&mas).service();
        let said = [introspections(), forms()].concat();
        assert!(said.len() > 120, "{}", said.len());
        let mut complaints = Vec::new();
        for (reply, expected) in said {
            let shown: String = format!("{reply:?}").chars().take(600).collect();
            mas.answers(reply);
            let outcome = ask(&service, "mat_token").await;
            if !outcome.is(expected) {
                complaints.push(format!("{shown}: expected {expected}, got {outcome:?}"));
            }
            // And never more than once.
            if mas.asked().len() != 1 {
                complaints.push(format!("{shown}: asked again"));
            }
        }
        conformance::assert_none(&complaints);
        // None of it has harmed the next.
        mas.answers(introspected(&json!({})));
        assert_eq!(ask(&service, "mat_token").await.status, 200);
    });
}

#[test]
fn a_redirect_takes_the_token_nowhere() {
    block_on(async {
        let database = database("synapse-94").await;
        let (mas, elsewhere) = (Mas::start(), Mas::start());
        let (homeserver, other) = (Homeserver::start(), Homeserver::start());
        elsewhere.answers(introspected(&json!({})));
        other.answers(owner("@admin:example.com", None));
        let with_mas = Variables::of(&database).mas(&mas).service();
        let internal = Variables::of(&database).homeserver(&homeserver).service();
        for status in [301, 302, 303, 307, 308] {
            let location = elsewhere.endpoint() + "/oauth2/introspect";
            mas.answers(Answer::new(status, "").with("Location", &location));
            assert_eq!(ask(&with_mas, "mat_token").await.status, 503);
            let location = other.url() + "/_matrix/client/v3/account/whoami";
            homeserver.answers(Answer::new(status, "").with("Location", &location));
            assert_eq!(ask(&internal, "syt_token").await.status, 503);
        }
        assert_eq!((mas.asked().len(), elsewhere.asked().len()), (5, 0));
        assert_eq!((homeserver.asked().len(), other.asked().len()), (5, 0));
    });
}

#[test]
fn no_proxy_is_asked_instead() {
    let database = block_on(database("synapse-94"));
    let (mas, proxy) = (Mas::start(), Mas::start());
    mas.answers(introspected(&json!({})));
    let mut variables = Variables::of(&database).mas(&mas);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
    {
        variables = variables.with(name, proxy.endpoint());
    }
    let function = variables.function();
    assert_eq!(ask_function(&function, &case("mat_token")).status, 200);
    assert_eq!((mas.asked().len(), proxy.asked().len(), proxy.complaints().len()), (1, 0, 0));
    function.stop();
}

#[test]
fn servers_that_do_not_answer_are_given_up() {
    block_on(async {
        let database = &database("synapse-94").await;
        let never = || Reply::Never;
        let slow = |answer: Answer| Reply::Slow(answer, Duration::from_millis(100));
        let (silent, dripping) = (Mas::start(), Mas::start());
        silent.answers(never());
        dripping.answers(slow(introspected(&json!({}))));
        let (mute, crawling) = (Homeserver::start(), Homeserver::start());
        mute.answers(never());
        crawling.answers(slow(owner("@admin:example.com", None)));
        let refusing = Refusing::new();
        let nowhere = format!("http://127.0.0.1:{}", refusing.port);
        let nameless = "http://mas.invalid";
        let of = || Variables::of(database);
        let unable = "503 M_UNKNOWN - Unable to introspect the access token";
        let unavailable = "503 M_UNKNOWN - ...";
        let tries = [
            (of().mas(&silent), unable),
            (of().mas(&dripping), unable),
            (of().mas_at(&nowhere), unable),
            (of().mas_at(nameless), unable),
            // There is nobody who speaks TLS, and no plain word is said to them.
            (of().mas_at(&silent.endpoint().replace("http:", "https:")), unable),
            (of().homeserver(&mute), unavailable),
            (of().homeserver(&crawling), unavailable),
            (of().with("HOMESERVER_URL", &nowhere), unavailable),
            (of().with("HOMESERVER_URL", nameless), unavailable),
        ];
        join_all(tries.iter().map(async |(variables, expected)| {
            let service = variables.service();
            let start = Instant::now();
            let outcome = ask(&service, "some_token").await;
            assert_is(&outcome, expected, &format!("{variables:?}"));
            assert!(start.elapsed() < IN_VAIN, "{variables:?}: {:?}", start.elapsed());
            // Only whoever needs the homeserver notices.
            if expected == &unavailable {
                assert_eq!(ask(&service, "syt_admin_ok").await.status, 200, "{variables:?}");
            }
        }))
        .await;
        // The TLS handshake is no request.
        assert_eq!(silent.complaints().len(), 1);
    });
}

#[test]
fn an_answer_comes_before_the_invocation_ends() {
    block_on(async {
        let database = &database("synapse-94").await;
        let (mas, homeserver) = (Mas::start(), Homeserver::start());
        mas.answers(Reply::Never);
        homeserver.answers(Reply::Never);
        let tries =
            [Variables::of(database).mas(&mas), Variables::of(database).homeserver(&homeserver)];
        join_all(tries.iter().map(async |variables| {
            let time_left = Duration::from_millis(2500);
            let start = Instant::now();
            let outcome = ask_case(
                &variables.service(),
                &case("some_token"),
                Invocation::new(NOW_MS, time_left),
            )
            .await;
            assert_eq!(outcome.status, 503, "{outcome:?}");
            assert!(start.elapsed() < time_left, "{:?}", start.elapsed());
        }))
        .await;
    });
}

#[test]
fn another_server_name_makes_another_user() {
    block_on(async {
        let database = database("synapse-94").await;
        database.run("INSERT INTO users (name) VALUES ('@admin:matrix.example.org:8448')").await;
        let mas = Mas::start();
        mas.answers(introspected(&json!({ "scope": format!("{CLIENT_API} {ADMIN}") })));
        for (name, expected) in [
            ("example.com", "200"),
            ("matrix.example.org:8448", "200"),
            ("matrix.example.org", "500 M_FORBIDDEN - User not found"),
            ("EXAMPLE.COM", "500 M_FORBIDDEN - User not found"),
        ] {
            let variables = Variables::of(&database)
                .with("MAS_ENDPOINT", mas.endpoint())
                .with("MAS_SECRET", SECRET)
                .with("SERVER_NAME", name);
            assert_is(&ask(&variables.service(), "mat_token").await, expected, name);
        }
    });
}

#[test]
fn nobody_is_asked_about_an_endless_token() {
    block_on(async {
        let database = database("synapse-94").await;
        let mas = Mas::start();
        mas.answers(introspected(&json!({})));
        let service = Variables::of(&database).mas(&mas).service();
        let outcome = ask_case(&service, &case_by_query(&"x".repeat(2049)), now()).await;
        assert_is(&outcome, "401 M_UNKNOWN_TOKEN false Token is not active", "long");
        assert_eq!(mas.asked().len(), 0);
        assert_eq!(ask_case(&service, &case_by_query(&"x".repeat(2048)), now()).await.status, 200);
    });
}

#[test]
fn with_mas_a_token_of_the_table_is_no_token() {
    block_on(async {
        let database = database("synapse-94").await;
        let mas = Mas::start();
        let service = Variables::of(&database).mas(&mas).service();
        let outcome = ask(&service, "syt_admin_ok").await;
        assert_is(&outcome, "401 M_UNKNOWN_TOKEN false Token is not active", "");
        assert_eq!(mas.asked(), ["syt_admin_ok"]);
        // And without MAS its variables alone make none.
        let alone = Variables::of(&database).with("SERVER_NAME", SERVER_NAME).service();
        assert_eq!(ask(&alone, "syt_admin_ok").await.status, 200);
    });
}

#[test]
fn the_query_string_makes_nobody_else_of_the_caller() {
    block_on(async {
        let database = database("synapse-94").await;
        let (mas, homeserver) = (Mas::start(), Homeserver::start());
        mas.answers(introspected(
            &json!({"username": "plain", "scope": format!("{CLIENT_API} {DEVICE}GONE")}),
        ));
        homeserver.answers(owner("@plain:example.com", Some("GONE")));
        let internal = Variables::of(&database).homeserver(&homeserver);
        let behind = "503 M_UNKNOWN - ...";
        let no_admin = "403 M_FORBIDDEN - You are not a server admin";
        for (variables, expected) in [(internal.clone().mas(&mas), no_admin), (internal, behind)] {
            let service = variables.service();
            for query in [
                "user_id=@admin:example.com",
                "user_id=%40admin%3Aexample.com&device_id=DEV",
                "username=admin&scope=urn:synapse:admin:*&active=true",
                "limit=x&user_id=@admin:example.com",
            ] {
                let mut case = case("some_token");
                case.query = Some(query.to_owned());
                let outcome = ask_case(&service, &case, now()).await;
                assert_is(&outcome, expected, query);
            }
        }
        assert!(mas.complaints().is_empty() && homeserver.complaints().is_empty());
    });
}

#[test]
fn parameters_are_judged_after_the_token() {
    block_on(async {
        let database = database("synapse-94").await;
        let mas = Mas::start();
        mas.knows("mat_admin", introspected(&json!({})));
        mas.knows("mat_plain", introspected(&json!({ "scope": CLIENT_API })));
        let service = Variables::of(&database).mas(&mas).service();
        for (token, expected) in [
            ("mat_admin", "400 M_INVALID_PARAM - Query parameter limit must be an integer"),
            ("mat_plain", "403 M_FORBIDDEN - You are not a server admin"),
            ("mat_other", "401 M_UNKNOWN_TOKEN false Token is not active"),
        ] {
            let mut case = case(token);
            case.query = Some("limit=x".to_owned());
            assert_is(&ask_case(&service, &case, now()).await, expected, token);
        }
    });
}

#[test]
fn nothing_is_remembered_unless_it_is_asked_for() {
    block_on(async {
        let database = database("synapse-94").await;
        let mas = Mas::start();
        mas.answers(introspected(&json!({})));
        for variables in [
            Variables::of(&database).mas(&mas),
            Variables::of(&database).mas(&mas).with("MAS_CACHE_SECONDS", "0"),
        ] {
            let service = variables.service();
            for _ in 0..3 {
                assert_eq!(ask(&service, "mat_token").await.status, 200);
            }
            assert_eq!(mas.asked().len(), 3);
        }
    });
}

#[test]
fn an_introspection_is_remembered_as_long_as_it_may_be_and_no_longer() {
    block_on(async {
        let database = database("synapse-94").await;
        let mas = Mas::start();
        let service = Variables::of(&database).mas(&mas).with("MAS_CACHE_SECONDS", "120").service();
        let asked_at = async |token: &str, ms: i64| {
            let outcome = ask_at(&service, token, ms).await;
            (outcome.status, mas.asked().len())
        };
        mas.knows("mat_a", introspected(&json!({ "expires_in": null })));
        assert_eq!(asked_at("mat_a", 0).await, (200, 1));
        assert_eq!(asked_at("mat_a", 0).await, (200, 0));
        // It has been revoked meanwhile.
        mas.knows("mat_a", introspected(&json!({ "active": false })));
        assert_eq!(asked_at("mat_a", 119_999).await, (200, 0));
        assert_eq!(asked_at("mat_a", 120_000).await, (401, 1));
        assert_eq!(asked_at("mat_a", 120_001).await, (401, 1));

        // By its token, whole.
        mas.knows("mat_b", introspected(&json!({})));
        assert_eq!(asked_at("mat_b", 0).await, (200, 1));
        for other in ["mat_", "mat_bb", "mat_B", "at_b", ""] {
            let outcome = ask_case(&service, &case_by_query(other), now()).await;
            assert_eq!((outcome.status, mas.asked().len()), (401, 1), "{other}");
        }

        // Never past the token's own end.
        mas.knows("mat_c", introspected(&json!({ "expires_in": 60 })));
        assert_eq!(asked_at("mat_c", 0).await, (200, 1));
        assert_eq!(asked_at("mat_c", 59_999).await, (200, 0));
        assert_eq!(asked_at("mat_c", 60_000).await.0, 401);
        let outcome = ask_at(&service, "mat_c", 60_001).await;
        assert_is(&outcome, "401 M_UNKNOWN_TOKEN false Token is not active", "past its end");
        mas.asked();

        // The function remembers no failure, and nothing from before its clock was set back.
        mas.knows("mat_d", Answer::new(500, ""));
        assert_eq!(asked_at("mat_d", 0).await, (503, 1));
        mas.knows("mat_d", introspected(&json!({})));
        assert_eq!(asked_at("mat_d", 0).await, (200, 1));
        assert_eq!(asked_at("mat_d", -1).await, (200, 1));
    });
}

#[test]
fn what_is_remembered_is_still_checked() {
    block_on(async {
        let database = database("synapse-94").await;
        let mas = Mas::start();
        mas.answers(introspected(&json!({})));
        let service = Variables::of(&database).mas(&mas).with("MAS_CACHE_SECONDS", "120").service();
        let asked = async || {
            let outcome = ask(&service, "mat_token").await;
            (outcome.status, mas.asked().len())
        };
        assert_eq!(asked().await, (200, 1));
        assert_eq!(asked().await, (200, 0));
        // Logging out deletes the device, and that counts at once.
        database.run("DELETE FROM devices WHERE device_id = 'DEV'").await;
        assert_eq!(asked().await, (401, 0));
        // It has been forgotten with it.
        assert_eq!(asked().await, (401, 1));
        let device =
            "INSERT INTO devices (user_id, device_id) VALUES ('@admin:example.com', 'DEV')";
        database.run(device).await;
        assert_eq!(asked().await.0, 200);
        assert_eq!(asked().await, (200, 0));
        // So does the user.
        database.run("UPDATE users SET name = '@gone:x' WHERE name = '@admin:example.com'").await;
        assert_eq!(asked().await.0, 500);
    });
}

#[test]
fn many_tokens_fill_no_memory() {
    let database = block_on(database("synapse-94"));
    let mas = Mas::start();
    let scope = format!("{CLIENT_API} {ADMIN} {}", "x".repeat(200_000));
    mas.answers(introspected(&json!({ "scope": scope })));
    let function = Variables::of(&database).mas(&mas).with("MAS_CACHE_SECONDS", "3600").function();
    for n in 0..300 {
        assert_eq!(ask_function(&function, &case(&format!("mat_{n}"))).status, 200);
    }
    let peak = function.peak_memory();
    assert!(peak < 64 * 1024 * 1024, "{peak}");
    function.stop();
}

#[test]
fn interim_answers_without_an_end_are_given_up() {
    let database = block_on(database("synapse-94"));
    let homeserver = Homeserver::start();
    let function = Variables::of(&database).homeserver(&homeserver).function();
    let within = Duration::from_secs(2);
    for status in [100, 103] {
        homeserver.answers(Reply::EndlessInterim(status));
        let start = Instant::now();
        let outcome = ask_function_within(&function, &case("some_token"), within);
        assert_eq!(outcome.status, 503, "{status}");
        // What Lambda does to a process that is late.
        assert!(start.elapsed() < within, "{status}: {:?}", start.elapsed());
        assert_eq!(ask_function(&function, &case("syt_admin_ok")).status, 200, "{status}");
    }
    function.stop();
}

#[test]
fn endless_answers_fill_no_memory() {
    let database = block_on(database("synapse-94"));
    let (mas, homeserver) = (Mas::start(), Homeserver::start());
    mas.answers(Reply::Endless(200));
    homeserver.answers(Reply::Endless(401));
    let internal = Variables::of(&database).homeserver(&homeserver);
    for variables in [internal.clone().mas(&mas), internal] {
        let function = variables.function();
        assert_eq!(ask_function(&function, &case("some_token")).status, 503);
        let peak = function.peak_memory();
        assert!(peak < 32 * 1024 * 1024, "{peak}");
        function.stop();
    }
}

/// A MAS to which each token is good, its secret, and a function that reads the secret.
fn with_a_secret(database: &Database) -> (Mas, Secret, Function) {
    let mas = Mas::start();
    mas.answers(introspected(&json!({})));
    let secret = Secret::create(&format!("mas_{}", database.name), &format!("{SECRET}\n"));
    let mut variables = Variables::of(database)
        .with("MAS_ENDPOINT", mas.endpoint())
        .with("MAS_SECRET_ARN", &secret.arn)
        .with("SERVER_NAME", SERVER_NAME)
        .with("AWS_ENDPOINT_URL_SECRETS_MANAGER", &secret.endpoint)
        .with("AWS_LAMBDA_LOG_LEVEL", "TRACE");
    for (name, value) in AWS {
        variables = variables.with(name, value);
    }
    let function = variables.function();
    (mas, secret, function)
}

#[test]
fn the_secret_of_mas_is_read_during_init() {
    let database = block_on(database("synapse-94"));
    let (_mas, secret, function) = with_a_secret(&database);
    // Init is over as soon as it can be frozen.
    function.pause();
    function.resume();
    secret.delete();
    assert_eq!(ask_function(&function, &case("mat_token")).status, 200);
    function.stop();
}

#[test]
fn the_secret_of_mas_is_read_again_when_mas_refuses_it() {
    let database = block_on(database("synapse-94"));
    let (mas, secret, function) = with_a_secret(&database);
    for _ in 0..2 {
        assert_eq!(ask_function(&function, &case("mat_token")).status, 200);
    }
    assert_eq!(mas.asked().len(), 2);
    // The secret changes here and there, and no request fails.
    secret.put("mas-second-secret", TOKENS[1], "AWSCURRENT");
    mas.rotate("mas-second-secret");
    assert_eq!(ask_function(&function, &case("mat_token")).status, 200);
    assert_eq!(mas.asked().len(), 2);
    assert_eq!(ask_function(&function, &case("mat_token")).status, 200);
    assert_eq!(mas.asked().len(), 1);
    // It changes there alone: the function tries once more at most, and calls nobody's token invalid.
    mas.rotate("mas-third-secret");
    let outcome = ask_function(&function, &case("mat_token"));
    assert_is(&outcome, "503 M_UNKNOWN - Unable to introspect the access token", "");
    assert!((1..=2).contains(&mas.asked().len()));
    secret.put("mas-third-secret", TOKENS[2], "AWSCURRENT");
    assert_eq!(ask_function(&function, &case("mat_token")).status, 200);
    let log = function.stop();
    for hidden in [SECRET, "mas-second-secret", "mas-third-secret", "mat_token"] {
        assert!(!log.contains(hidden), "{log}");
    }
}

#[test]
fn a_secret_that_cannot_be_sent_or_is_refused_is_503() {
    let database = block_on(database("synapse-94"));
    let mas = Mas::start();
    mas.rotate("another");
    let with = |secret: &str| {
        Variables::of(&database)
            .with("MAS_ENDPOINT", mas.endpoint())
            .with("MAS_SECRET", secret)
            .with("SERVER_NAME", SERVER_NAME)
    };
    // Refused: by now a former secret.
    let outcome = block_on(ask(&with(SECRET).service(), "mat_token"));
    assert_is(&outcome, "503 M_UNKNOWN - Unable to introspect the access token", "refused");
    // One that would say more than it should.
    let wrong = with("hunter2\r\nX-Evil: 1");
    let function = wrong.function();
    let outcome = ask_function(&function, &case("mat_token"));
    assert!(matches!(outcome.status, 500 | 503), "{outcome:?}");
    assert!(!function.stop().contains("hunter2"));
    assert!(mas.complaints().is_empty());
}
