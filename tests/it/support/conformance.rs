//! The recorded cases, put to a service in this process or to the binary.

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{HeaderName, HeaderValue, Method},
};
use synapse_media_usage::{gateway::RawQuery, page::Budget, service::Service};

use super::{
    cases::{Answer, Case, cases},
    function::Function,
    gateway::Gateway,
    now,
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
        let response = service.respond(&request(&case), Budget::INVOCATION, now()).await;
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
