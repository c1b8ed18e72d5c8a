//! A homeserver that says whose token it is, and checks each byte that it is sent (spec:
//! client-server API, `GET /_matrix/client/v3/account/whoami`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::json;

use super::server::{Answer, Framing, Reply, Server};

/// A running one.
pub struct Homeserver {
    server: Server,
    path: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    replies: HashMap<String, Reply>,
    reply_to_all: Option<Reply>,
    asked: Vec<String>,
}

impl Homeserver {
    /// One that knows no token.
    pub fn start() -> Self {
        Self::start_below("")
    }

    /// The same, below a path.
    pub fn start_below(path: &str) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let target = format!("{path}/_matrix/client/v3/account/whoami");
        let server = Server::start_at("GET", &target, move |sent| {
            let authorization = sent.headers.iter().find(|(name, _)| name == "authorization");
            let token = authorization.and_then(|(_, value)| value.strip_prefix("Bearer "));
            let token = token.filter(|token| !token.is_empty() && !token.contains(' '));
            let token = token.ok_or_else(|| format!("no token: {authorization:?}"))?;
            sent.expect_headers(&[], &["authorization", "accept", "host", "user-agent"])?;
            if !sent.body.is_empty() {
                return Err("a body".to_owned());
            }
            let mut state = shared.lock().unwrap();
            state.asked.push(token.to_owned());
            let known = state.reply_to_all.as_ref().or_else(|| state.replies.get(token));
            let unknown = || refusal(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.", false);
            Ok(known.cloned().unwrap_or_else(|| unknown().into()))
        });
        Self { server, path: path.to_owned(), state }
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}{}", self.server.port, self.path)
    }

    /// What to answer about a token.
    pub fn knows(&self, token: &str, reply: impl Into<Reply>) {
        self.state.lock().unwrap().replies.insert(token.to_owned(), reply.into());
    }

    /// What to answer about all of them, whatever is known.
    pub fn answers(&self, reply: impl Into<Reply>) {
        self.state.lock().unwrap().reply_to_all = Some(reply.into());
    }

    /// The tokens that it was asked about, in their order, which are then forgotten.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// What was wrong with what it was sent, which is then forgotten.
    pub fn complaints(&self) -> Vec<String> {
        self.server.complaints()
    }
}

/// What Synapse answers about a token that is good.
pub fn owner(user_id: &str, device_id: Option<&str>) -> Answer {
    let mut body = json!({ "user_id": user_id, "is_guest": false });
    if let Some(device_id) = device_id {
        body["device_id"] = device_id.into();
    }
    Answer::json(200, &body).framed(Framing::Chunked)
}

/// What Synapse answers about one that is not.
pub fn refusal(
    status: u16,
    errcode: &str,
    error: &str,
    soft_logout: impl Into<Option<bool>>,
) -> Answer {
    let mut body = json!({ "errcode": errcode, "error": error });
    if let Some(soft_logout) = soft_logout.into() {
        body["soft_logout"] = soft_logout.into();
    }
    Answer::json(status, &body).framed(Framing::Chunked)
}
