//! The recorded cases, put to a service in this process or to the binary, and what all answers have
//! in common.

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{HeaderName, HeaderValue, Method},
};
use serde_json::Value;
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
        let (response, _) = service.respond(&request(&case), Budget::INVOCATION, &now()).await;
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

/// A page, or a Matrix error, with CORS.
pub fn assert_matrix_answer(response: &Value, input: &[u8]) {
    let shown = || format!("{}\n{response}", String::from_utf8_lossy(input));
    let status = response["statusCode"].as_u64().unwrap_or_else(|| panic!("{}", shown()));
    let headers = if response["headers"].is_null() {
        &response["multiValueHeaders"]
    } else {
        &response["headers"]
    };
    assert!(!headers["access-control-allow-origin"].is_null(), "{}", shown());
    let text = response["body"].as_str().unwrap_or_else(|| panic!("{}", shown()));
    if status == 204 {
        assert!(text.is_empty(), "{}", shown());
        return;
    }
    let body: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{}", shown()));
    if status == 200 {
        assert!(body["users"].is_array() && body["total"].is_u64(), "{}", shown());
    } else {
        let is_text = |field: &str| body[field].as_str().is_some_and(|text| !text.is_empty());
        assert!(is_text("errcode") && is_text("error"), "{}", shown());
    }
}
