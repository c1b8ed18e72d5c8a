//! Malformed and hostile events: the process survives, and the next invocation is answered.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use synapse_media_usage::{
    gateway::{Event, Kind},
    service::PATH,
};

use crate::support::{
    block_on,
    cases::{first_page, request},
    conformance::assert_matrix_answer,
    database::{Database, service},
    dependency,
    function::Function,
    gateway::{GATEWAYS, Gateway},
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
            // Every gateway sends JSON.
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
        let answer = block_on(service.answer(event, "", crate::support::now()));
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
        // An HTTP API joins what is repeated, and to Synapse a comma is a part of a token like any.
        for (second, joined) in [
            ("Bearer syt_admin_ok", "Invalid Authorization header."),
            ("Basic YTpi", "Invalid Authorization header."),
            ("x", "Invalid access token passed."),
            ("", "Invalid access token passed."),
        ] {
            let answer = error(gateway, &["Bearer syt_admin_ok", second]);
            let is_joined = gateway == Gateway::HttpApi;
            let expected = if is_joined { joined } else { "Too many Authorization headers." };
            assert_eq!(answer, expected, "{gateway:?} {second:?}");
        }
    }
}

#[test]
fn a_token_with_a_comma_is_one_token() {
    let database = block_on(Database::of_conformance("synapse-94"));
    block_on(database.run("UPDATE access_tokens SET token = 'a,b' WHERE token = 'syt_admin_ok'"));
    let service = database.service();
    let answer = |gateway: Gateway, authorization: &str| {
        let mut case = first_page();
        case.headers = vec![("Authorization".to_owned(), authorization.to_owned())];
        let event = serde_json::from_value(gateway.event(&case).unwrap()).unwrap();
        let answer = block_on(service.answer(event, "", crate::support::now()));
        let answer = gateway.answer(&serde_json::to_value(answer).unwrap());
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        (answer.status, body["errcode"].clone(), body["soft_logout"].clone())
    };
    let unknown = (401, json!("M_UNKNOWN_TOKEN"), json!(false));
    let invalid = (401, json!("M_MISSING_TOKEN"), Value::Null);
    for gateway in GATEWAYS {
        for (authorization, expected) in [
            ("Bearer a,b", &(200, Value::Null, Value::Null)),
            ("Bearer a", &unknown),
            ("Bearer b,a", &unknown),
            ("Bearer a,b,", &unknown),
            ("Bearer a,b,Bearer", &unknown),
            ("Bearer a,b, Bearer a,b", &invalid),
            ("Bearer a,b,Bearer a,b", &invalid),
            ("Bearer a,b, Basic YTpi", &invalid),
            ("Basic YTpi, Bearer a,b", &invalid),
            (",Bearer a,b", &invalid),
        ] {
            assert_eq!(&answer(gateway, authorization), expected, "{gateway:?} {authorization:?}");
        }
    }
}

/// Sample events of all that invokes functions: those of the crate in which `lambda_http` has them.
fn samples() -> Vec<(String, Value)> {
    let folder = dependency("aws_lambda_events").join("src/fixtures");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let json = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
    json.map(|file| {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap())
    })
    .collect()
}

#[test]
fn an_event_of_anybody_but_the_gateways_is_of_no_known_kind() {
    let service = service("postgres://nobody@127.0.0.1:1/nothing");
    let mut kinds = BTreeMap::<String, BTreeSet<String>>::new();
    for (name, mut event) in samples() {
        let kind = serde_json::from_value::<Event>(event.clone()).unwrap().kind();
        kinds.entry(format!("{kind:?}")).or_default().insert(name.clone());
        if kind != Kind::Unknown || !event.is_object() {
            continue;
        }
        // Even if it is for the endpoint's path.
        for (field, value) in event.as_object_mut().unwrap() {
            match field.as_str() {
                "path" | "rawPath" | "raw_path" | "apiPath" => *value = PATH.into(),
                "method" | "httpMethod" => *value = "GET".into(),
                _ => (),
            }
        }
        event["headers"] = json!({ "authorization": "Bearer syt_admin_ok" });
        let event: Event = serde_json::from_value(event).unwrap();
        assert_eq!(event.kind(), Kind::Unknown, "{name}");
        let answer = block_on(service.answer(event, "", crate::support::now()));
        let answer = Gateway::RestApi.answer(&serde_json::to_value(answer).unwrap());
        assert_eq!(answer.status, 404, "{name}");
        assert!(answer.body.contains("M_UNRECOGNIZED"), "{name}: {answer:?}");
    }
    let unknown = kinds.remove("Unknown").unwrap();
    assert!(unknown.len() > 150, "{unknown:?}");
    for name in [
        "vpc-lattice-v1-request",
        "vpc-lattice-v2-request",
        "vpc-lattice-v2-request-base64",
        "apigw-websocket-request",
        "apigw-custom-auth-request-type-request",
        "apigw-v2-custom-authorizer-v1-request",
        "apigw-v2-custom-authorizer-v2-request",
        "bedrock-agent-runtime-event",
        "appsync-direct-resolver",
        "eventbridge-schedule",
    ] {
        assert!(unknown.contains(&format!("example-{name}")), "{name}");
    }
    let expected = [
        (
            "HttpApi",
            "apigw-sam-http-request apigw-v2-request-iam apigw-v2-request-jwt-authorizer apigw-v2-request-lambda-authorizer apigw-v2-request-multi-value-parameters apigw-v2-request-no-authorizer",
        ),
        ("LoadBalancer", "alb-lambda-target-request-headers-only"),
        ("LoadBalancerMultiValue", "alb-lambda-target-request-multivalue-headers"),
        (
            "RestApi",
            "apigw-console-request apigw-console-test-request apigw-request apigw-request-catch-all apigw-request-multi-value-parameters apigw-restapi-openapi-request apigw-sam-rest-request",
        ),
    ];
    let expected = expected.map(|(kind, names)| {
        (kind.to_owned(), names.split(' ').map(|name| format!("example-{name}")).collect())
    });
    assert_eq!(kinds, BTreeMap::from(expected));
}

#[test]
fn every_sample_event_is_read_as_its_kind() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let service = database.service();
    for entry in std::fs::read_dir(crate::support::project().join("events")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "probe.json" {
            // It comes from no gateway.
            continue;
        }
        let event: Event = serde_json::from_str(&read(&format!("events/{name}"))).unwrap();
        let kind = format!("{:?}", event.kind());
        let expected = match name.split('.').nth(1).unwrap() {
            "alb" => "LoadBalancer",
            "rest-api" => "RestApi",
            _ => "HttpApi",
        };
        assert_eq!(kind, expected, "{name}");
        let answer = block_on(service.answer(event, "", crate::support::now()));
        let status = serde_json::to_value(&answer).unwrap()["statusCode"].as_u64().unwrap();
        // The samples' tokens are not among the recorded ones.
        assert!(matches!(status, 204 | 401), "{name}: {status}");
    }
}
