//! Headers: a token is found exactly where Synapse finds one, and stays what was sent.
//!
//! The first line of an input is the query string, each other one a header.

#![no_main]

mod credentials;
mod form;

use lambda_http::http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use libfuzzer_sys::fuzz_target;
use synapse_media_usage::{auth::AccessToken, query::Args};

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let mut headers = HeaderMap::new();
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = (&line[..at], line.get(at + 1..).unwrap_or_default());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    let authorizations: Vec<_> =
        headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes).collect();
    let form = form::parse(&query);
    let expected = credentials::token(&authorizations, form::first(&form, "access_token"));

    let token = AccessToken::from_request(&headers, &Args::parse(&query));
    match (&token, expected) {
        (Ok(token), Ok(expected)) => {
            assert_eq!(token.expose().as_bytes(), expected);
            assert!(!token.expose().contains('\0'));
            if let [authorization] = &authorizations[..] {
                assert!(!token.expose().is_empty() && !token.expose().contains(' '));
                let sent = format!("Bearer {}", token.expose());
                assert_eq!(credentials::trim(authorization), sent.as_bytes());
            }
        }
        (Err(error), Err(expected)) => {
            assert_eq!(*error, expected);
            assert_eq!(error.answer().status, 401);
        }
        (token, expected) => panic!("{:?} is not {expected:?}", token.as_ref().err()),
    }
});
