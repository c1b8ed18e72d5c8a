//! The recorded answers: in process, and through the binary as each gateway's events.

use std::collections::BTreeMap;

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{HeaderName, HeaderValue, Method},
};
use synapse_media_usage::{
    gateway::RawQuery,
    page::Budget,
    service::{Now, Service},
};

use crate::support::{
    NOW, block_on,
    cases::{Answer, Case, cases},
    database::{Database, SCHEMAS},
    function::Function,
    gateway::{GATEWAYS, Gateway},
};

/// The request of a case, without any gateway.
pub fn request(case: &Case) -> Request {
    let mut request = Request::new(case.body.clone().map_or(Body::Empty, Body::Text));
    *request.method_mut() = Method::from_bytes(case.method.as_bytes()).unwrap();
    request.extensions_mut().insert(RawQuery(case.query.clone().unwrap_or_default()));
    for (name, value) in &case.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request.with_raw_http_path(&case.path)
}

pub fn answer(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status.as_u16(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect(),
        body: match body {
            Body::Text(text) => text,
            _ => String::new(),
        },
    }
}

pub fn assert_none(complaints: &[String]) {
    assert!(
        complaints.is_empty(),
        "{} wrong answers:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

/// What is wrong with a service's answers to the recorded requests.
pub async fn complaints(service: &Service) -> Vec<String> {
    let mut complaints = Vec::new();
    for case in cases() {
        let response = service.respond(&request(&case), Budget::INVOCATION, NOW).await;
        complaints.extend(case.complaint(&answer(response)));
    }
    complaints
}

/// The same of the binary, by the kind of event that carries every request.
pub fn complaints_of_binary(function: &Function) -> Vec<String> {
    let complaint = |case: Case| {
        let event = Gateway::HttpApi.event(&case).unwrap().to_string();
        match function.invoke(event.as_bytes()) {
            Ok(response) => case.complaint(&Gateway::HttpApi.answer(&response)),
            Err(error) => Some(format!("{}: {error}", case.name)),
        }
    };
    cases().into_iter().filter_map(complaint).collect()
}

#[test]
fn every_recorded_answer_in_process() {
    for schema in SCHEMAS {
        block_on(async {
            let database = Database::of_conformance(schema).await;
            assert_none(&complaints(&database.service()).await);
            assert_none(&complaints(&database.enlarge().await.service()).await);
        });
    }
}

#[test]
fn every_recorded_answer_through_the_binary_and_every_gateway() {
    println!("{:<10} {:<22} {:>6}  left out and why", "schema", "event kind", "passed");
    for schema in SCHEMAS {
        let mut database = block_on(Database::of_conformance(schema));
        if schema == SCHEMAS[1] {
            database = block_on(database.enlarge());
        }
        let function = Function::start(&[("DATABASE_URL", &database.url())]);
        for gateway in GATEWAYS {
            let mut passed = 0;
            let mut left_out = BTreeMap::<&str, u32>::new();
            let mut complaints = Vec::new();
            for case in cases() {
                let event = match gateway.event(&case) {
                    Ok(event) => event,
                    Err(reason) => {
                        *left_out.entry(reason).or_default() += 1;
                        continue;
                    }
                };
                match function.invoke(event.to_string().as_bytes()) {
                    Ok(response) => match case.complaint(&gateway.answer(&response)) {
                        Some(complaint) => complaints.push(complaint),
                        None => passed += 1,
                    },
                    Err(error) => complaints.push(format!("{}: {error}", case.name)),
                }
            }
            let left_out: Vec<_> =
                left_out.iter().map(|(reason, count)| format!("{count}: {reason}")).collect();
            println!(
                "{schema:<10} {:<22} {passed:>6}  {}",
                format!("{gateway:?}"),
                left_out.join(", ")
            );
            assert_none(&complaints);
        }
        function.stop();
    }
}

#[test]
fn a_token_expires_after_its_last_millisecond() {
    let database = block_on(Database::of_conformance("synapse-94"));
    let service = database.service();
    let case =
        cases().into_iter().find(|case| case.name == "token/query/syt-admin-year2100").unwrap();
    for (unix_ms, status) in [(4_102_444_800_000, 200), (4_102_444_800_001, 401)] {
        let response =
            block_on(service.respond(&request(&case), Budget::INVOCATION, Now { unix_ms, ..NOW }));
        assert_eq!(response.status(), status, "{unix_ms}");
    }
}
