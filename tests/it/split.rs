//! The configurations of `docs/`, run by the servers that they are for: the one path goes to
//! the function, all else to the homeserver.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;
use synapse_media_usage::service::PATH;

use crate::support::{
    cases::{Answer, cases},
    conformance::assert_none,
    http::{Certificate, Tls},
    http_api::{self, Mood},
    reverse_proxy::{HOMESERVER, Proxy, Split, Surroundings, allowed_origin},
};

const ORIGIN: (&str, &str) = ("Origin", "https://admin.example.org");
const ADMIN: (&str, &str) = ("Authorization", "Bearer syt_admin_ok");

#[test]
fn the_recorded_answers_arrive() {
    for split in Split::of_each_proxy() {
        let mut complaints = Vec::new();
        let mut count = 0;
        for case in cases() {
            // What is no HTTP does not come through, and nginx takes a second Authorization for such.
            // Other methods have no route.
            let is_uri = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
            let is_header = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            let names: BTreeSet<_> = case.headers.iter().map(|(name, _)| name).collect();
            if case.path != PATH
                || !["GET", "HEAD", "OPTIONS"].contains(&case.method.as_str())
                || !is_uri(case.query.as_deref().unwrap_or_default())
                || !case.headers.iter().all(|(_, value)| is_header(value))
                || names.len() < case.headers.len()
            {
                continue;
            }
            let target = match &case.query {
                Some(query) => format!("{PATH}?{query}"),
                None => PATH.to_owned(),
            };
            let headers: Vec<_> =
                case.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let body = case.body.as_deref().unwrap_or_default();
            let answer = split.running.client.send(&case.method, &target, &headers, body);
            complaints.extend(case.complaint(&Answer {
                status: answer.status(),
                headers: answer.headers.into_iter().collect(),
                body: answer.body,
            }));
            count += 1;
        }
        println!("{:?}: {count} recorded answers", split.proxy);
        assert_none(&complaints);
        assert!(count > 300, "{count}");
        assert!(split.surroundings.asked().is_empty());
        split.surroundings.api.events();
    }
}

#[test]
fn the_request_arrives_as_it_was_sent() {
    for split in Split::of_each_proxy() {
        let long = format!("limit=2&search_term={}", "a%20".repeat(1500));
        for query in [
            "",
            "limit=2",
            "from=0&limit=10&search_term=a+b&order_by=media_length&dir=b",
            "search_term=%2B+%20%26%3D%C3%BC%2f",
            "limit=1&limit=2&&x&=;y;%ZZ%",
            "x=/../&y=//&z=?&w=[]{}|^`\"<>\\",
            &long,
        ] {
            split.get(query, &[ADMIN]);
            assert_eq!(split.event()["rawQueryString"], query, "{:?}", split.proxy);
        }

        let token = format!("Bearer {}", "x".repeat(4096));
        let answer = split.get("", &[("Authorization", &token)]);
        assert_eq!((answer.status(), allowed_origin(&answer)), (401, Some("*")));
        assert_eq!(split.event()["headers"]["authorization"], token);

        // As synadm sends it, and as an old script does.
        for (kind, is_base64, body) in
            [("application/json", false, "{}"), ("Content-Type: application/json", true, "e30=")]
        {
            let target = format!("{PATH}?limit=2");
            let answer =
                split.running.client.send("GET", &target, &[ADMIN, ("Content-Type", kind)], "{}");
            assert_eq!(answer.status(), 200);
            let event = split.event();
            assert_eq!(
                (&event["body"], &event["isBase64Encoded"]),
                (&json!(body), &json!(is_base64))
            );
            assert_eq!(event["headers"]["content-length"], "2");
        }

        let head = split.running.client.send("HEAD", PATH, &[ADMIN], "");
        assert_eq!((head.status(), head.body.as_str()), (200, ""));
        assert_eq!(split.event()["requestContext"]["http"]["method"], "HEAD");

        // The API has no such route; the homeserver is not asked either.
        let post = split.running.client.send("POST", PATH, &[ADMIN], "{}");
        assert_eq!((post.status(), allowed_origin(&post)), (404, Some("*")));
        assert!(split.surroundings.asked().is_empty());
    }
}

#[test]
fn all_else_goes_to_the_homeserver() {
    for split in Split::of_each_proxy() {
        let targets = [
            "/",
            // A name that a reader can have as well.
            "/media-usage",
            "/_matrix/client/versions",
            "/_matrix/client/v3/rooms/%21a%2Fb%3Ax/state?x=/_synapse/admin/v1/statistics/users/media",
            "/_synapse/admin/v1/server_version",
            "/_synapse/admin/v2/users/@a:example.org",
            "/_synapse/admin/v3/users?from=0&limit=10",
            "/_synapse/admin/v1/statistics/database/rooms",
            "/_synapse/admin/v1/statistics/users",
            "/_synapse/admin/v1/statistics/users/",
            "/_synapse/admin/v1/statistics/users/media/",
            "/_synapse/admin/v1/statistics/users/media/?limit=1",
            "/_synapse/admin/v1/statistics/users/media/x",
            "/_synapse/admin/v1/statistics/users/media/..",
            "/_synapse/admin/v1/statistics/users/medias",
            "/_synapse/admin/v1/statistics/users/media.json",
            "/_synapse/admin/v1/statistics/users/media;x",
            "/_synapse/admin/v1/statistics/users/media%3Flimit=1",
            "/_synapse/admin/v1/statistics/users/media%20",
            "/_synapse/admin/v1/statistics/users/%6Dedia",
            "/_synapse/admin/v1/statistics/users%2Fmedia",
            "/%5fsynapse/admin/v1/statistics/users/media?limit=1",
            "/_synapse/admin/v1/statistics/users/Media",
            "/_SYNAPSE/admin/v1/statistics/users/media",
            "//_synapse/admin/v1/statistics/users/media",
            "/_synapse/admin//v1/statistics/users/media?limit=1",
            "/./_synapse/admin/v1/statistics/users/media",
            "/_synapse/admin/../admin/v1/statistics/users/media",
            "/_matrix/../_synapse/admin/v1/statistics/users/media?limit=1",
            "/x?/_synapse/admin/v1/statistics/users/media",
            "/_synapse/admin/v1/statistics/rooms/media",
        ];
        for target in targets {
            for (method, body) in [("GET", ""), ("OPTIONS", ""), ("PUT", "{}")] {
                let answer = split.running.client.send(method, target, &[ADMIN, ORIGIN], body);
                let expected = json!({ "homeserver": format!("{method} {target}") }).to_string();
                assert_eq!((answer.status(), answer.body), (200, expected), "{:?}", split.proxy);
                assert_eq!(
                    answer.headers.iter().filter(|(n, _)| n.starts_with("access-")).count(),
                    1
                );
                let asked = split.surroundings.asked();
                assert_eq!(asked.len(), 1);
                assert_eq!(asked[0].header("host"), [HOMESERVER]);
                assert_eq!(asked[0].header("authorization"), [ADMIN.1]);
                assert_eq!(asked[0].body, body);
            }
        }
        assert!(split.surroundings.api.events().is_empty());
    }
}

#[test]
fn a_client_cannot_choose_the_address_that_is_seen() {
    for split in Split::of_each_proxy() {
        let forged = ("X-Forwarded-For", "203.0.113.66");
        split.running.client.send("GET", "/_matrix/client/versions", &[forged], "");
        assert_eq!(split.surroundings.asked()[0].header("x-forwarded-for"), ["127.0.0.1"]);
        split.get("limit=1", &[ADMIN, forged]);
        assert_eq!(split.event()["headers"]["x-forwarded-for"], "127.0.0.1", "{:?}", split.proxy);
    }
}

#[test]
fn another_host_name_is_not_served() {
    for split in Split::of_each_proxy() {
        let ask =
            |host| split.running.client.send("GET", PATH, &[ADMIN, ("Host", host)], "").status();
        assert_eq!(ask("Matrix.Example.org:443"), 200, "{:?}", split.proxy);
        assert_eq!(split.surroundings.api.events().len(), 1);
        // To nginx and Caddy names are servers and sites, of which there is but one here.
        if split.proxy == Proxy::Haproxy {
            ask("matrix.example.com");
            assert_eq!(split.surroundings.asked().len(), 1);
            assert!(split.surroundings.api.events().is_empty());
        }
    }
}

#[test]
fn a_browser_can_read_every_answer_but_a_refusal_by_the_gateway() {
    for split in Split::of_each_proxy() {
        let preflight = [
            ORIGIN,
            ("Access-Control-Request-Method", "GET"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        for mood in [Mood::Plain, Mood::Cors] {
            *split.surroundings.api.mood() = mood;
            let answer = split.running.client.send("OPTIONS", PATH, &preflight, "");
            assert_eq!((answer.status(), allowed_origin(&answer)), (204, Some("*")));
            for (name, value) in [
                ("access-control-allow-methods", "get"),
                ("access-control-allow-headers", "authorization"),
            ] {
                let values = answer.header(name);
                assert_eq!(values.len(), 1, "{answer:?}");
                assert!(values[0].to_lowercase().contains(value), "{answer:?}");
            }
            for (headers, status) in [
                (&[ORIGIN, ADMIN][..], 200),
                (&[ADMIN], 200),
                (&[ORIGIN], 401),
                (&[ORIGIN, ("Authorization", "Bearer syt_plain_user")], 403),
            ] {
                let answer = split.get("limit=1", headers);
                assert_eq!(
                    (answer.status(), allowed_origin(&answer)),
                    (status, Some("*")),
                    "{mood:?}"
                );
            }
        }
        for status in [401, 403, 404, 429, 500, 502, 503, 504] {
            *split.surroundings.api.mood() = Mood::Fails(status);
            let answer = split.get("limit=1", &[ORIGIN, ADMIN]);
            let readable = (![401, 403].contains(&status)).then_some("*");
            assert_eq!(
                (answer.status(), allowed_origin(&answer)),
                (status, readable),
                "{:?}",
                split.proxy
            );
            assert_eq!(answer.body, json!({ "message": "Service Unavailable" }).to_string());
            assert_eq!(answer.header("content-type"), ["application/json"]);
        }
        *split.surroundings.api.mood() = Mood::Plain;
        split.surroundings.api.events();
    }
}

#[test]
fn an_api_that_hangs_up_breaks_only_the_one_path() {
    for split in Split::of_each_proxy() {
        *split.surroundings.api.mood() = Mood::HangsUp;
        let answer = split.get("limit=1", &[ORIGIN, ADMIN]);
        assert!([502, 503].contains(&answer.status()), "{:?}: {answer:?}", split.proxy);
        assert_eq!(allowed_origin(&answer), Some("*"), "{:?}", split.proxy);
        assert!(split.surroundings.asked().is_empty());
        assert_eq!(split.running.client.send("GET", "/x", &[], "").status(), 200);
        *split.surroundings.api.mood() = Mood::Plain;
        assert_eq!(split.get("limit=1", &[ADMIN]).status(), 200);
    }
}

#[test]
fn an_api_that_cannot_prove_its_name_is_not_asked() {
    let unknown_authority = Tls::for_names(&[HOMESERVER, http_api::NAME]);
    for proxy in Proxy::available() {
        // Of the right authority, but for another name; and for its name, but of an unknown authority.
        for certificate in [Certificate::Elsewhere, Certificate::Right] {
            let mut surroundings = Surroundings::new(certificate, Vec::new());
            if matches!(certificate, Certificate::Right) {
                surroundings.tls = unknown_authority.clone();
            }
            let running = surroundings.proxy(proxy, |text| text);
            let patience = Instant::now() + Duration::from_secs(20);
            // HAProxy has to find the API before it can refuse it.
            while surroundings.api.server.connections() == 0 {
                assert!(Instant::now() < patience, "the API is not found");
                let answer = running.client.send("GET", PATH, &[ORIGIN, ADMIN], "");
                assert!([502, 503].contains(&answer.status()), "{proxy:?}: {answer:?}");
            }
            assert!(surroundings.api.events().is_empty());
            assert!(surroundings.asked().is_empty());
        }
    }
}

/// Makes the lines count that show an allow-list.
fn with_allow_list(text: &str, network: &str) -> String {
    let uncommented = text.lines().map(|line| {
        let words = line.trim_start();
        let is_example = ["# allow ", "# deny ", "# acl ", "# http-request ", "# @", "# respond "]
            .iter()
            .any(|start| words.starts_with(start));
        if is_example { words[2..].to_owned() } else { line.to_owned() }
    });
    let text: Vec<_> = uncommented.collect();
    let text = text.join("\n") + "\n";
    assert!(text.contains("192.0.2.0/24"));
    text.replace("192.0.2.0/24", network)
}

#[test]
fn the_allow_list_guards_only_the_one_path() {
    for proxy in Proxy::available() {
        for (network, status) in [("127.0.0.0/8", 200), ("192.0.2.0/24", 403)] {
            let split = Split::of(proxy, |text| with_allow_list(&text, network));
            let client = &split.running.client;
            let answer = client.send("GET", PATH, &[ORIGIN, ADMIN], "");
            assert_eq!(answer.status(), status, "{proxy:?} {network}");
            // A browser must not read a refusal that is not the function's.
            assert_eq!(
                allowed_origin(&answer),
                (status == 200).then_some("*"),
                "{proxy:?} {network}"
            );
            assert_eq!(client.send("OPTIONS", PATH, &[ORIGIN], "").status() == 403, status == 403);
            assert_eq!(client.send("GET", "/_synapse/admin/v3/users", &[], "").status(), 200);
            assert_eq!(client.send("GET", &format!("{PATH}/"), &[], "").status(), 200);
        }
    }
}

/// In front of a homeserver whose admin API is closed, only the one path is opened.
#[test]
fn a_closed_admin_api_stays_closed() {
    for proxy in Proxy::available() {
        let close = |text: String| {
            let (before, rule) = match proxy {
                Proxy::Nginx => {
                    ("    location / {", "    location /_synapse/admin { deny all; }\n")
                }
                Proxy::Haproxy => (
                    "    use_backend ",
                    "    http-request deny if { path_beg /_synapse/admin } !media_usage\n",
                ),
                Proxy::Caddy => (
                    "	@media_usage {",
                    "	handle /_synapse/admin/* {\n		respond 403\n	}\n	handle /_synapse/* {\n		respond 418\n	}\n",
                ),
            };
            assert!(text.contains(before), "{text}");
            text.replacen(before, &format!("{rule}{before}"), 1)
        };
        let Split { surroundings, running, .. } = Split::of(proxy, close);
        let client = &running.client;
        assert_eq!(client.send("GET", &format!("{PATH}?limit=1"), &[ADMIN], "").status(), 200);
        assert_eq!(client.send("GET", "/_matrix/client/versions", &[], "").status(), 200);
        surroundings.asked();
        for target in [
            "/_synapse/admin/v3/users",
            "/_synapse/admin/v1/statistics/users/%6Dedia",
            "/_synapse/admin/v1/statistics/users/media/",
            "/_synapse/admin//v1/statistics/users/media",
            "/_synapse/admin/v2/users/..%2F..%2Fv1%2Fstatistics%2Fusers%2Fmedia",
        ] {
            assert_eq!(
                client.send("GET", target, &[ADMIN], "").status(),
                403,
                "{proxy:?} {target}"
            );
        }
        assert!(surroundings.asked().is_empty());
    }
}

#[test]
fn a_request_that_timed_out_is_not_sent_again() {
    for proxy in Proxy::available() {
        let shorten = |text: String| {
            assert!(text.contains(" 30s"), "{text}");
            let text = text.replace(" 30s", " 1s");
            // What many configurations have for all that they serve.
            let (before, common) = match proxy {
                Proxy::Nginx => ("    location / {", "    error_page 500 502 503 504 /50x.html;\n"),
                Proxy::Haproxy => {
                    ("    timeout connect", "    retries 3\n    retry-on all-retryable-errors\n")
                }
                Proxy::Caddy => return text,
            };
            assert!(text.contains(before), "{text}");
            text.replacen(before, &format!("{common}{before}"), 1)
        };
        let Split { surroundings, running, .. } = Split::of(proxy, shorten);
        let client = &running.client;
        let connections = surroundings.api.server.connections();
        // The API cannot tell anybody to wait longer.
        let held = surroundings.api.mood();
        let start = Instant::now();
        let answer = client.send("GET", PATH, &[ORIGIN, ADMIN], "");
        assert!(start.elapsed() < Duration::from_secs(3), "{proxy:?}");
        assert!(surroundings.api.server.connections() <= connections + 1, "{proxy:?}");
        drop(held);
        assert_eq!((answer.status(), allowed_origin(&answer)), (504, Some("*")), "{proxy:?}");
    }
}
