//! A Matrix Authentication Service that introspects tokens, and checks each byte that it is sent
//! (RFC 7662, section 2.1; what Synapse 1.163.2 sends).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::json;
use url::form_urlencoded;

use super::{
    http::Message,
    server::{Answer, Reply, Server},
};

/// What MAS shares with the homeserver, unless it is told otherwise.
pub const SECRET: &str = "mas-shared/secret+1=";

/// A running one.
pub struct Mas {
    server: Server,
    path: String,
    state: Arc<Mutex<State>>,
}

struct State {
    secret: String,
    former_secrets: Vec<String>,
    replies: HashMap<String, Reply>,
    reply_to_all: Option<Reply>,
    asked: Vec<String>,
}

impl Mas {
    /// One that calls every token inactive.
    pub fn start() -> Self {
        Self::start_below("")
    }

    /// The same, below a path.
    pub fn start_below(path: &str) -> Self {
        let state = Arc::new(Mutex::new(State {
            secret: SECRET.to_owned(),
            former_secrets: Vec::new(),
            replies: HashMap::new(),
            reply_to_all: None,
            asked: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        let server = Server::start_at("POST", &format!("{path}/oauth2/introspect"), move |sent| {
            shared.lock().unwrap().answer(sent)
        });
        Self { server, path: path.to_owned(), state }
    }

    /// The base URL.
    pub fn endpoint(&self) -> String {
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

    /// Takes another secret, and refuses the one before.
    pub fn rotate(&self, secret: &str) {
        let mut state = self.state.lock().unwrap();
        let former = std::mem::replace(&mut state.secret, secret.to_owned());
        state.former_secrets.push(former);
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

impl State {
    fn answer(&mut self, sent: &Message) -> Result<Reply, String> {
        let authorization = sent.headers.iter().find(|(name, _)| name == "authorization");
        let secret = authorization.and_then(|(_, value)| value.strip_prefix("Bearer "));
        let is_former =
            secret.is_some_and(|secret| self.former_secrets.iter().any(|s| s == secret));
        let expected = if is_former { secret.unwrap_or_default() } else { &self.secret };
        let (length, bearer) = (sent.body.len().to_string(), format!("Bearer {expected}"));
        sent.expect_headers(
            &[
                ("authorization", &bearer),
                ("accept", "application/json"),
                ("content-length", &length),
                ("content-type", "application/x-www-form-urlencoded"),
                ("x-mas-supports-device-id", "1"),
            ],
            &["host", "user-agent"],
        )?;
        self.asked.push(token(&sent.body)?);
        if is_former {
            // A proxy before it may refuse by the other status, so they take turns.
            let status = [403, 401][self.former_secrets.len() % 2];
            return Ok(Answer::json(status, &json!({ "error": "invalid_client" })).into());
        }
        let known = self.reply_to_all.as_ref();
        let known = known.or_else(|| self.replies.get(self.asked.last()?));
        Ok(known.cloned().unwrap_or_else(|| Answer::json(200, &json!({ "active": false })).into()))
    }
}

/// The token of the form.
fn token(form: &str) -> Result<String, String> {
    let pairs: Vec<_> = form_urlencoded::parse(form.as_bytes()).into_owned().collect();
    let [(name, token), (hint, kind)] = &pairs[..] else {
        return Err(format!("not two fields: {form:?}"));
    };
    if (name.as_str(), hint.as_str(), kind.as_str()) != ("token", "token_type_hint", "access_token")
    {
        return Err(format!("not the fields of an introspection: {form:?}"));
    }
    // The URL standard's encoding, or that of Synapse, which differs in these two.
    let ours = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
    if form.replace('~', "%7E").replace("%2A", "*") != ours {
        return Err(format!("not encoded as a form is: {form:?}"));
    }
    Ok(token.clone())
}
