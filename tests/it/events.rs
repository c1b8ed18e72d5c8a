//! Malformed and hostile events: the process survives, and the next invocation is answered.

use serde_json::{Value, json};

use crate::support::{
    block_on,
    cases::{first_page, request},
    database::Database,
    function::Function,
    gateway::{GATEWAYS, Gateway, assert_matrix_answer},
    read,
};

#[test]
fn hostile_events_are_survived() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let good = Gateway::HttpApi.event(&first_page()).unwrap().to_string();

    let mut events: Vec<Vec<u8>> = [
        "",
        "{",
        "null",
        "[]",
        "7",
        "\"x\"",
        "{}",
        "{\"httpMethod\":\"GET\"}",
        "{\"requestContext\":{}}",
        "{\"requestContext\":{\"elb\":{}}}",
        "{\"requestContext\":{\"http\":{\"method\":\"GET\"}}}",
        "{\"Records\":[{\"eventSource\":\"aws:s3\"}]}",
        "\u{feff}{}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    events.push(b"{\"rawPath\":\"\xff\"}".to_vec());
    events.push(vec![0]);
    for gateway in GATEWAYS {
        let event = gateway.event(&first_page()).unwrap();
        for field in event.as_object().unwrap().keys() {
            for value in [
                None,
                Some(Value::Null),
                Some(json!(7)),
                Some(json!("x")),
                Some(json!([[]])),
                Some(json!({"a": {"b": null}})),
            ] {
                let mut event = event.clone();
                match value {
                    Some(value) => event[field] = value,
                    None => drop(event.as_object_mut().unwrap().remove(field)),
                }
                events.push(event.to_string().into_bytes());
            }
        }
        for host in [
            "",
            " ",
            "[",
            "a b",
            "host:port",
            "höst",
            "a\nb",
            "\0",
            "<>",
            "[::1",
            "..",
            "@",
            "x:99999999",
        ] {
            let mut case = first_page();
            case.headers.push(("Host".to_owned(), host.to_owned()));
            case.headers.push(("X-Forwarded-Proto".to_owned(), host.to_owned()));
            events.push(gateway.event(&case).unwrap().to_string().into_bytes());
        }
        for path in ["", "x", ":99999", "//", "/\0", "/ä", "\u{fffd}", "/a?b#c", "/%"] {
            let mut case = first_page();
            path.clone_into(&mut case.path);
            events.push(gateway.event(&case).unwrap().to_string().into_bytes());
        }
    }
    let mut not_json = 0;
    for event in events {
        if let Ok(response) = function.invoke(&event) {
            assert_matrix_answer(&response, &event);
        } else {
            // What is no JSON is no event that any gateway sends.
            let json = serde_json::from_slice::<Value>(&event);
            assert!(json.is_err(), "{}", String::from_utf8_lossy(&event));
            not_json += 1;
        }
    }
    assert_eq!(not_json, 5);
    assert_eq!(function.invoke(good.as_bytes()).unwrap()["statusCode"], 200);
    function.stop();
}

#[test]
fn hostile_queries_get_the_answer_that_their_bytes_deserve() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let long = format!("limit=1&x={}", "ü".repeat(100_000));
    for (query, status) in [
        ("limit=1&x=\"<{>}`|^\\", 200),
        ("limit=1&search_term=Jürgen", 200),
        ("search_term=\u{0}", 400),
        ("search_term=%00", 400),
        ("search_term=%FF", 400),
        ("search_term=%EF%BF%BD", 200),
        (&long, 200),
        ("=&=&&&;;?#", 200),
        ("%", 200),
    ] {
        for gateway in [
            Gateway::HttpApi,
            Gateway::FunctionUrl,
            Gateway::LoadBalancer,
            Gateway::LoadBalancerMultiValue,
        ] {
            let Ok(event) = gateway.event(&request(Some(query))) else { continue };
            let response = function.invoke(event.to_string().as_bytes()).unwrap();
            assert_matrix_answer(&response, query.as_bytes());
            assert_eq!(response["statusCode"], status, "{gateway:?} {query:.50}: {response}");
        }
    }
    function.stop();
}

#[test]
fn an_odd_field_counts_as_absent_and_spoils_nothing_else() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let function = Function::start(&[("DATABASE_URL", &database.url())]);
    let status = |event: &Value| {
        function.invoke(event.to_string().as_bytes()).unwrap()["statusCode"].clone()
    };
    for gateway in GATEWAYS {
        let mut event = gateway.event(&first_page()).unwrap();
        for field in ["headers", "multiValueHeaders"] {
            if let Some(headers) = event[field].as_object_mut() {
                headers.extend([
                    ("x-null".to_owned(), Value::Null),
                    ("x-list".to_owned(), json!([null, 7])),
                ]);
                headers.extend((0..40_000).map(|n| (format!("x-{n}"), json!("x"))));
            }
        }
        event["stageVariables"] = json!(7);
        assert_eq!(status(&event), 200, "{gateway:?}");
    }
    // Empty multi-value fields stand for nothing.
    let mut event = Gateway::RestApi.event(&first_page()).unwrap();
    event["multiValueHeaders"] = json!({});
    event["multiValueQueryStringParameters"] = json!({});
    assert_eq!(status(&event), 200);
    function.stop();
}

#[test]
fn an_authorization_header_that_no_server_lets_through_is_not_a_missing_one() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let service = database.service();
    let error = |gateway: Gateway, values: &[&str]| {
        let mut case = first_page();
        case.headers =
            values.iter().map(|value| ("Authorization".to_owned(), (*value).to_owned())).collect();
        let event = serde_json::from_value(gateway.event(&case).unwrap()).unwrap();
        let answer = block_on(service.answer(event, "", crate::support::NOW));
        let answer = gateway.answer(&serde_json::to_value(answer).unwrap());
        serde_json::from_str::<Value>(&answer.body).unwrap()["error"].clone()
    };
    for gateway in [Gateway::HttpApi, Gateway::RestApi, Gateway::LoadBalancerMultiValue] {
        assert_eq!(error(gateway, &["Bearer a\nb"]), "Invalid access token passed.");
        assert_eq!(error(gateway, &["Bearer syt_admin_ok\t"]), Value::Null);
        assert_eq!(
            error(gateway, &["Digest username=\"x\", realm=\"y\""]),
            "Invalid Authorization header."
        );
        for second in ["Bearer syt_admin_ok", "Basic", "x", ""] {
            let answer = error(gateway, &["Bearer syt_admin_ok", second]);
            // An HTTP API has joined them.
            let expected = if gateway == Gateway::HttpApi {
                "Invalid Authorization header."
            } else {
                "Too many Authorization headers."
            };
            assert_eq!(answer, expected, "{gateway:?} {second:?}");
        }
    }
}

#[test]
fn every_sample_event_is_read_as_its_kind() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let service = database.service();
    for entry in std::fs::read_dir(crate::support::project().join("events")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let event: synapse_media_usage::gateway::Event =
            serde_json::from_str(&read(&format!("events/{name}"))).unwrap();
        let kind = format!("{:?}", event.kind());
        let expected = match name.split('.').nth(1).unwrap() {
            "alb" => "LoadBalancer",
            "rest-api" => "RestApi",
            _ => "HttpApi",
        };
        assert_eq!(kind, expected, "{name}");
        let answer = block_on(service.answer(event, "", crate::support::NOW));
        let status = serde_json::to_value(&answer).unwrap()["statusCode"].as_u64().unwrap();
        // The samples' tokens are not among the recorded ones.
        assert!(matches!(status, 204 | 401), "{name}: {status}");
    }
}
