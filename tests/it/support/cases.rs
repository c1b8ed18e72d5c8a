//! The recorded cases of `tests/conformance`, and how an answer is compared with them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::read;

#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    pub name: String,
    pub method: String,
    pub path: String,
    /// What follows `?`; `None` means that there is none.
    pub query: Option<String>,
    pub headers: Vec<(String, String)>,
    pub body: Option<String>,
    pub expect: Option<Expectation>,
    #[serde(default)]
    pub tolerated: Vec<Expectation>,
    #[serde(default)]
    pub free_error: bool,
    #[serde(default)]
    pub transport_sensitive: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Expectation {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    /// `""` for no body.
    pub body: Value,
}

/// What the function answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// The cases that have an expectation.
pub fn cases() -> Vec<Case> {
    let cases: Vec<Case> = read("tests/conformance/cases.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|case: &Case| case.expect.is_some())
        .collect();
    assert_eq!(cases.len(), 431);
    cases
}

impl Case {
    /// What is wrong with an answer; `None` if it is one of those that are accepted.
    pub fn complaint(&self, answer: &Answer) -> Option<String> {
        let accepted = self.expect.iter().chain(&self.tolerated);
        let complaints: Vec<_> = accepted
            .map(|expectation| expectation.complaint(answer, self.free_error))
            .collect::<Option<_>>()?;
        Some(format!("{}: {}\n  got {answer:?}", self.name, complaints.join("; or ")))
    }
}

const FORBIDDEN: [&str; 10] = [
    "allow",
    "content-encoding",
    "content-security-policy",
    "etag",
    "location",
    "retry-after",
    "set-cookie",
    "vary",
    "www-authenticate",
    "x-frame-options",
];

impl Expectation {
    fn complaint(&self, answer: &Answer, free_error: bool) -> Option<String> {
        if answer.status != self.status {
            return Some(format!("status is not {}", self.status));
        }
        for (name, value) in &self.headers {
            if answer.headers.get(name) != Some(value) {
                return Some(format!("{name} is not {value:?}"));
            }
        }
        for name in answer.headers.keys() {
            let unexpected_cors =
                name.starts_with("access-control-") && !self.headers.contains_key(name);
            if FORBIDDEN.contains(&name.as_str()) || unexpected_cors {
                return Some(format!("{name} came along"));
            }
        }
        if self.body == "" {
            return (!answer.body.is_empty()).then(|| "there is a body".to_owned());
        }
        let Ok(mut body) = serde_json::from_str::<Value>(&answer.body) else {
            return Some("the body is no JSON".to_owned());
        };
        // A repeated key would be lost in parsing, and its length with it.
        if body.to_string().len() != answer.body.len() {
            return Some("the body repeats a key, or is not compact".to_owned());
        }
        if free_error && body["error"].as_str().is_some_and(|error| !error.is_empty()) {
            body["error"] = self.body["error"].clone();
        }
        (body != self.body).then(|| format!("the body is not {}", self.body))
    }
}
