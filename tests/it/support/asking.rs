//! Asking with a token, in this process and through the release binary, with whatever stands behind the
//! function.

use std::time::Duration;

use serde_json::{Value, json};
use synapse_media_usage::{config::Config, invocation::Invocation, page::Budget, service::Service};

use super::{
    NOW_MS,
    cases::{self, Case},
    conformance,
    database::Database,
    function::{Function, TIMEOUT},
    gateway::Gateway,
    homeserver::Homeserver,
    mas::{Mas, SECRET},
    now, read,
    server::Answer,
};

pub const CLIENT_API: &str = "urn:matrix:client:api:*";
pub const UNSTABLE_CLIENT_API: &str = "urn:matrix:org.matrix.msc2967.client:api:*";
pub const DEVICE: &str = "urn:matrix:client:device:";
pub const UNSTABLE_DEVICE: &str = "urn:matrix:org.matrix.msc2967.client:device:";
pub const ADMIN: &str = "urn:synapse:admin:*";

pub const SERVER_NAME: &str = "example.com";

/// How long a request may take that waits for another server in vain. Such a server is given up
/// after 5 s.
pub const IN_VAIN: Duration = Duration::from_secs(8);

/// What a request ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub status: u16,
    pub errcode: Option<String>,
    pub soft_logout: Option<bool>,
    pub text: Option<String>,
}

impl Outcome {
    /// # Panics
    ///
    /// Whatever the outcome: if a browser could not read the answer, if there is no `Retry-After` where
    /// trying again helps, or if an error is none of Matrix.
    pub fn of(answer: &cases::Answer) -> Self {
        assert_eq!(answer.headers["access-control-allow-origin"], "*", "{answer:?}");
        assert_eq!(answer.headers["content-type"], "application/json", "{answer:?}");
        let retry_after = answer.headers.get("retry-after").map(|value| value.parse::<u32>());
        if answer.status == 503 {
            assert!(matches!(retry_after, Some(Ok(1..))), "{answer:?}");
        } else if answer.status != 429 {
            assert_eq!(retry_after, None, "{answer:?}");
        }
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        let text = |field: &str| body[field].as_str().map(str::to_owned);
        assert_eq!(answer.status == 200, body["errcode"].is_null(), "{answer:?}");
        assert_eq!(answer.status == 200, body["error"].is_null(), "{answer:?}");
        Self {
            status: answer.status,
            errcode: text("errcode"),
            soft_logout: body.get("soft_logout").map(|value| value.as_bool().unwrap()),
            text: text("error"),
        }
    }

    /// From what a table says: `200`, or status, errcode, `soft_logout` or `-`, and the text or `...`.
    pub fn is(&self, said: &str) -> bool {
        let mut words = said.splitn(4, ' ');
        let word = |word: Option<&str>| word.unwrap_or_default().to_owned();
        if said == "200" {
            return self.status == 200;
        }
        let (status, errcode) = (word(words.next()), word(words.next()));
        let soft_logout = match words.next() {
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some("-") => None,
            word => panic!("{word:?} in {said:?}"),
        };
        let text = word(words.next());
        assert!(!text.is_empty(), "{said:?}");
        self.status.to_string() == status
            && self.errcode == Some(errcode)
            && self.soft_logout == soft_logout
            && (text == "..." && self.text.as_ref().is_some_and(|text| !text.is_empty())
                || self.text == Some(text))
    }
}

#[track_caller]
pub fn assert_is(outcome: &Outcome, said: &str, about: &str) {
    assert!(outcome.is(said), "{about}: expected {said}, got {outcome:?}");
}

/// A request with a token in its header.
pub fn case(token: &str) -> Case {
    let mut case = cases::request(Some("limit=1"));
    case.headers = vec![("Authorization".to_owned(), format!("Bearer {token}"))];
    case
}

/// One with it in its query string, whatever its bytes.
pub fn case_by_query(token: &str) -> Case {
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("access_token", token)
        .finish();
    let mut case = cases::request(Some(&query));
    case.headers.clear();
    case
}

/// The function's variables.
#[derive(Debug, Clone)]
pub struct Variables(pub Vec<(&'static str, String)>);

impl Variables {
    pub fn of(database: &Database) -> Self {
        Self(vec![("DATABASE_URL", database.url())])
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    pub fn mas(self, mas: &Mas) -> Self {
        self.mas_at(&mas.endpoint())
    }

    pub fn mas_at(self, endpoint: &str) -> Self {
        self.with("MAS_ENDPOINT", endpoint)
            .with("MAS_SECRET", SECRET)
            .with("SERVER_NAME", SERVER_NAME)
    }

    pub fn homeserver(self, homeserver: &Homeserver) -> Self {
        self.with("HOMESERVER_URL", homeserver.url())
    }

    /// The service itself, in this process.
    pub fn service(&self) -> Service {
        let variable = |name: &str| {
            self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value.clone())
        };
        Service::new(Ok(Config::read(variable).unwrap()))
    }

    /// The release binary.
    pub fn function(&self) -> Function {
        let variables: Vec<_> =
            self.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Function::start(&variables)
    }
}

pub async fn ask_case(service: &Service, case: &Case, invocation: Invocation) -> Outcome {
    let request = conformance::request(case);
    let (response, _) = service.respond(&request, Budget::INVOCATION, &invocation).await;
    Outcome::of(&conformance::answer(response))
}

/// Asks so many ms after [`NOW_MS`].
pub async fn ask_at(service: &Service, token: &str, ms: i64) -> Outcome {
    ask_case(service, &case(token), Invocation { unix_ms: NOW_MS + ms, ..now() }).await
}

pub async fn ask(service: &Service, token: &str) -> Outcome {
    ask_at(service, token, 0).await
}

/// Asks the binary.
pub fn ask_function(function: &Function, case: &Case) -> Outcome {
    ask_function_within(function, case, TIMEOUT)
}

/// The same, with the time that the function has for it.
pub fn ask_function_within(function: &Function, case: &Case, within: Duration) -> Outcome {
    let event = Gateway::HttpApi.event(case).unwrap().to_string();
    let response = function.invoke_within(event.as_bytes(), within).unwrap();
    Outcome::of(&Gateway::HttpApi.answer(&response))
}

/// A database with the recorded rows, and with the grants that are optional in `role.sql`.
pub async fn database(schema: &str) -> Database {
    let database = Database::of_conformance(schema).await;
    let role = read("src/sql/role.sql");
    let optional = role.lines().filter_map(|line| line.strip_prefix("-- GRANT SELECT"));
    let optional: Vec<_> = optional.map(|rest| format!("GRANT SELECT{rest}")).collect();
    assert_eq!(optional.len(), 2, "{role}");
    database.run(&optional.join("\n")).await;
    let devices = "INSERT INTO devices (user_id, device_id, hidden) VALUES
        ('@admin:example.com', 'DEV', false), ('@plain:example.com', 'DEV', false),
        ('@admin:example.com', 'KEY', true), ('@admin:example.com', 'NULL', null)";
    database.run(devices).await;
    database
}

/// What MAS says of a token that it knows; `more` replaces and adds fields.
pub fn introspection(more: &Value) -> Value {
    let mut body = json!({
        "active": true,
        "scope": format!("openid {CLIENT_API} {DEVICE}DEV {ADMIN}"),
        "client_id": "01H",
        "username": "admin",
        "token_type": "access_token",
        "exp": 4_102_444_800_i64,
        "expires_in": 300,
        "iat": 1,
        "nbf": 1,
        "sub": "01J",
        "aud": null,
        "iss": "https://mas.example.com/",
        "jti": "01K",
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub fn introspected(more: &Value) -> Answer {
    Answer::json(200, &introspection(more))
}
