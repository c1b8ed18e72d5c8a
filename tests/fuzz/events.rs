//! Whole events: whatever the bytes, they become a request and an answer that the gateway can send on.
//!
//! An input that is JSON is an event. Any other is a request as it goes over the wire, a line with
//! method and target and a line for each header, that each gateway makes an event of: the function
//! has to read the same from all of them.

#![no_main]

#[expect(dead_code, reason = "the recorded cases themselves are not read")]
#[path = "../it/support/cases.rs"]
mod cases;
mod credentials;
mod form;
#[path = "../it/support/gateway.rs"]
mod gateway;

use std::{collections::BTreeSet, sync::LazyLock, time::Duration};

use lambda_http::{
    Request, RequestExt,
    http::{HeaderName, Method},
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json, value::RawValue};
use synapse_media_usage::{
    auth::AccessToken,
    config::Config,
    error::Error,
    gateway::{Event, Kind, RawQuery},
    invocation::Invocation,
    query::{Args, MediaUsageQuery},
    service::{PATH, Service},
};
use tokio::runtime::{Builder, Runtime};

use crate::{
    cases::Case,
    gateway::{GATEWAYS, Gateway},
};

fuzz_target!(|data: &[u8]| {
    if serde_json::from_slice::<&RawValue>(data).is_ok() {
        answer(|| serde_json::from_slice(data).expect("any JSON is an event"));
        return;
    }
    serde_json::from_slice::<Event>(data).expect_err("what is no JSON is no event");
    let Some(case) = request(&String::from_utf8_lossy(data)) else { return };
    for gateway in GATEWAYS {
        let Ok(event) = gateway.event(&case) else { continue };
        let event = event.to_string();
        let event = || serde_json::from_str::<Event>(&event).expect("an event");
        assert_eq!(event().kind(), kind(gateway));
        compare(gateway, &case, &event().into_request());
        answer(event);
    }
});

/// For `cases`.
fn read(path: &str) -> String {
    unreachable!("no recorded case is read: {path}")
}

/// A request as an HTTP server lets it through.
fn request(text: &str) -> Option<Case> {
    let mut lines = text.split('\n');
    let (method, target) = lines.next()?.split_once(' ')?;
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.trim_matches([' ', '\t'])))
        .filter(|(name, value)| {
            HeaderName::from_bytes(name.as_bytes()).is_ok()
                && !value.contains(|c: char| c.is_control() && c != '\t')
        })
        .collect();
    let case = json!({
        "name": "fuzz", "method": method, "path": path, "query": query, "headers": headers,
    });
    serde_json::from_value(case).ok()
}

fn kind(gateway: Gateway) -> Kind {
    match gateway {
        Gateway::HttpApi | Gateway::FunctionUrl => Kind::HttpApi,
        Gateway::RestApi => Kind::RestApi,
        Gateway::LoadBalancer => Kind::LoadBalancer,
        Gateway::LoadBalancerMultiValue => Kind::LoadBalancerMultiValue,
    }
}

/// What was read of an event is what was sent, as far as that kind of gateway passes it on.
fn compare(gateway: Gateway, case: &Case, request: &Request) {
    let method = Method::from_bytes(case.method.as_bytes()).unwrap_or(Method::CONNECT);
    assert_eq!(*request.method(), method);
    assert_eq!(request.raw_http_path(), case.path);

    let query = case.query.as_deref().unwrap_or_default();
    let form = form::parse(query);
    match gateway {
        Gateway::HttpApi | Gateway::FunctionUrl => assert_eq!(raw_query(request), query),
        // It decodes to text.
        Gateway::RestApi => {
            if form.iter().any(|(_, value)| str::from_utf8(value).is_err()) {
                return;
            }
        }
        // They have no order of names, so that one that is written in two ways has none either.
        Gateway::LoadBalancer | Gateway::LoadBalancerMultiValue => {
            let items = query.split('&').filter(|item| !item.is_empty());
            let written: BTreeSet<_> = items.map(|item| item.split('=').next()).collect();
            let names: BTreeSet<_> = form.iter().map(|(name, _)| name).collect();
            if written.len() > names.len() {
                return;
            }
        }
    }
    let (args, sent) = (Args::parse(raw_query(request)), Args::parse(query));
    assert_eq!(args.get("access_token"), sent.get("access_token"));
    assert_eq!(MediaUsageQuery::parse(&args), MediaUsageQuery::parse(&sent));

    let authorizations: Vec<_> = case
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
        .map(|(_, value)| value.as_bytes())
        .collect();
    // Repeats arrive joined by a comma (D10).
    let joined = authorizations.join(&b","[..]);
    let authorizations = match kind(gateway) {
        Kind::HttpApi if !authorizations.is_empty() => vec![joined.as_slice()],
        _ => authorizations,
    };
    let expected = credentials::token(&authorizations, form::first(&form, "access_token"));
    let token = AccessToken::from_request(request.headers(), &args);
    let token = token.as_ref().map(|token| token.expose().as_bytes());
    assert_eq!(token.map_err(Clone::clone), expected);
}

fn raw_query(request: &Request) -> &str {
    request.extensions().get::<RawQuery>().map_or("", |query| &query.0)
}

/// A service that gives up before it asks the database.
static MISCONFIGURED: LazyLock<Service> = LazyLock::new(|| Service::new(Config::read(|_| None)));

/// A service for requests that are refused before the database is asked.
static CONFIGURED: LazyLock<Service> = LazyLock::new(|| {
    let url = "postgres://nobody@127.0.0.1:1/none";
    let config = Config::read(|name| (name == "DATABASE_URL").then(|| url.to_owned()));
    assert!(config.is_ok(), "{:?}", config.err());
    Service::new(config)
});

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));

/// Answers an event, and looks at what its gateway makes of the answer.
fn answer(event: impl Fn() -> Event) {
    if event().is_probe() {
        // It is no gateway's, and has an answer of its own.
        return;
    }
    let gateway = match event().kind() {
        Kind::HttpApi => Gateway::HttpApi,
        Kind::RestApi | Kind::Unknown => Gateway::RestApi,
        Kind::LoadBalancer => Gateway::LoadBalancer,
        Kind::LoadBalancerMultiValue => Gateway::LoadBalancerMultiValue,
    };
    let request = event().into_request();
    let args = Args::parse(raw_query(&request));
    let token = AccessToken::from_request(request.headers(), &args);
    let parameters = MediaUsageQuery::parse(&args);
    assert!(parameters.is_ok_and(|query| query.from >= 0) || !raw_query(&request).is_empty());
    let error = if request.raw_http_path() != PATH {
        Error::NO_SUCH_ENDPOINT
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        Error::METHOD_NOT_ALLOWED
    } else {
        token.as_ref().err().cloned().unwrap_or(Error::Misconfigured)
    };
    let service = if error == Error::Misconfigured { &MISCONFIGURED } else { &CONFIGURED };

    let now = Invocation::new(1_780_000_000_000, Duration::from_secs(28));
    let answer = RUNTIME.block_on(service.answer(event(), "fuzz", now));
    let answer = gateway.answer(&serde_json::to_value(&answer).expect("JSON"));
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, HEAD, POST, PUT, DELETE, OPTIONS"),
        ("access-control-allow-headers", "X-Requested-With, Content-Type, Authorization, Date"),
        ("access-control-expose-headers", "Synapse-Trace-Id, Server"),
        ("synapse-trace-id", "fuzz"),
    ] {
        assert_eq!(answer.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    let (status, body) = match *request.method() {
        Method::OPTIONS => (204, String::new()),
        Method::HEAD => (error.answer().status, String::new()),
        _ => (error.answer().status, error.body()),
    };
    assert_eq!((answer.status, &answer.body), (status, &body));
    if !body.is_empty() {
        let body: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(body["errcode"], error.answer().errcode);
        assert_eq!(body["error"], *error.answer().text);
        assert_eq!(body["soft_logout"].as_bool(), error.answer().soft_logout);
    }
    if status != 204 {
        assert_eq!(answer.headers["content-type"], "application/json");
    }
}
