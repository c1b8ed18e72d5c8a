//! An HTTP API of API Gateway with the routes of template.yaml, in front of the function (API
//! Gateway Developer Guide, "HTTP APIs").

use std::sync::{Arc, Mutex, MutexGuard};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use synapse_media_usage::service::PATH;

use super::{
    cases::Case,
    function::Function,
    gateway::Gateway,
    http::{Certificate, Message, Tls},
    server::{Answer, Reply, Server},
};

/// The API's own name.
pub const NAME: &str = "abcdefghij.execute-api.eu-central-1.amazonaws.com";

/// What the API does besides invoking the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Nothing.
    Plain,
    /// Preflights, and CORS headers of its own in place of the function's, for whoever sends an
    /// `Origin`.
    Cors,
    /// It answers with this status in the function's place.
    Fails(u16),
    /// It closes the connection instead of answering.
    HangsUp,
}

pub struct HttpApi {
    pub server: Server,
    state: Arc<State>,
}

struct State {
    /// Those that are not busy.
    functions: Mutex<Vec<Function>>,
    mood: Mutex<Mood>,
    events: Mutex<Vec<Value>>,
}

impl HttpApi {
    pub fn start(tls: &Tls, certificate: Certificate, functions: Vec<Function>) -> Self {
        let state = Arc::new(State {
            functions: Mutex::new(functions),
            mood: Mutex::new(Mood::Plain),
            events: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let judge = move |request: &Message| Ok(shared.answer(request));
        Self { server: Server::start_tls(tls, certificate, NAME, judge), state }
    }

    pub fn mood(&self) -> MutexGuard<'_, Mood> {
        self.state.mood.lock().unwrap()
    }

    /// The events that were sent to the function since this was last asked.
    pub fn events(&self) -> Vec<Value> {
        std::mem::take(&mut *self.state.events.lock().unwrap())
    }
}

impl Drop for HttpApi {
    fn drop(&mut self) {
        // The server's threads live on.
        self.state.functions.lock().unwrap().clear();
    }
}

impl State {
    fn answer(&self, request: &Message) -> Reply {
        let mood = *self.mood.lock().unwrap();
        // "Total combined size of request line and header values".
        let size: usize = request.headers.iter().map(|(_, value)| value.len()).sum();
        if request.start.len() + size > 10_240 {
            return own_answer(431, "Request Header Fields Too Large").into();
        }
        if request.header("host") != [NAME] {
            return own_answer(403, "Forbidden").into();
        }
        match mood {
            Mood::HangsUp => return Reply::Bytes(Vec::new()),
            Mood::Fails(status) => return own_answer(status, "Service Unavailable").into(),
            Mood::Plain | Mood::Cors => (),
        }
        let cors = mood == Mood::Cors && !request.header("origin").is_empty();
        let answer = if cors && request.method_and_target().0 == "OPTIONS" {
            Answer::new(204, "")
        } else {
            match self.outcome(request) {
                Ok(answer) => answer,
                Err(own) => return own.into(),
            }
        };
        if cors { with_cors(answer).into() } else { answer.into() }
    }

    /// The function's answer, or the one of the gateway's own in its place.
    fn outcome(&self, request: &Message) -> Result<Answer, Answer> {
        let (method, target) = request.method_and_target();
        let path = target.split('?').next().unwrap();
        if path != PATH || !["GET", "HEAD", "OPTIONS"].contains(&method) {
            return Ok(own_answer(404, "Not Found"));
        }
        let event = event(request);
        self.events.lock().unwrap().push(event.clone());
        // Lambda throttles what comes beyond the concurrency, and the gateway answers.
        let idle = self.functions.lock().unwrap().pop();
        let function = idle.ok_or_else(|| own_answer(503, "Service Unavailable"))?;
        let outcome = function.invoke(event.to_string().as_bytes());
        self.functions.lock().unwrap().push(function);
        let response = outcome.map_err(|_| own_answer(500, "Internal Server Error"))?;
        let answer = Gateway::HttpApi.answer(&response);
        let headers = answer.headers.into_iter().collect();
        Ok(Answer { headers, ..Answer::new(answer.status, answer.body) })
    }
}

/// An answer of the gateway's own has no CORS headers.
fn own_answer(status: u16, message: &str) -> Answer {
    Answer::json(status, &json!({ "message": message }))
}

fn with_cors(mut answer: Answer) -> Answer {
    answer.headers.retain(|(name, _)| !name.starts_with("access-control-"));
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET,HEAD,POST,PUT,DELETE,OPTIONS"),
        ("access-control-allow-headers", "x-requested-with,content-type,authorization,date"),
        ("access-control-expose-headers", "synapse-trace-id,server"),
        ("access-control-max-age", "86400"),
    ] {
        answer = answer.with(name, value);
    }
    answer
}

fn event(request: &Message) -> Value {
    let (method, target) = request.method_and_target();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let headers = request.headers.iter().filter(|(name, _)| name != "host");
    let case = Case {
        name: String::new(),
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        headers: headers.cloned().collect(),
        body: None,
        expect: None,
        tolerated: Vec::new(),
        free_error: false,
        transport_sensitive: false,
    };
    let mut event = Gateway::HttpApi.event(&case).unwrap();
    if !request.body.is_empty() {
        let kind = request.header("content-type").first().copied().unwrap_or_default();
        let is_text = ["text/", "application/json", "application/xml", "application/javascript"]
            .iter()
            .any(|text| kind.starts_with(text));
        event["isBase64Encoded"] = (!is_text).into();
        event["body"] = if is_text {
            request.body.clone().into()
        } else {
            BASE64_STANDARD.encode(&request.body).into()
        };
    }
    event
}
