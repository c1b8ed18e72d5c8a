//! One request to its response, from top to bottom: route, token, claim, ask, respond.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
};

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{HeaderValue, Method, StatusCode, header},
};
use serde_json::Value;

use crate::{
    auth::{AccessToken, Authenticator, Claim},
    config::Config,
    error::Error,
    gateway::{Event, Kind, RawQuery},
    invocation::Invocation,
    media_usage::{MediaUsage, media_usage},
    page::Budget,
    postgres::{Asked, Connection, Connector},
    probe::Health,
    query::{Args, MediaUsageQuery},
    read_ahead::ReadAhead,
    request_log::{Answer, Phases, RequestLog},
};

/// The endpoint's path, as Synapse has it.
pub const PATH: &str = "/_synapse/admin/v1/statistics/users/media";

/// Answers requests; built once an execution environment.
pub struct Service {
    /// `None` if the configuration is wrong.
    backends: Option<Backends>,
    /// Whether an invocation has come.
    is_warm: AtomicBool,
}

/// Whom a request can ask.
struct Backends {
    connector: Connector,
    authenticator: Authenticator,
    read_ahead: ReadAhead,
}

impl Service {
    /// A service for a configuration. With a wrong one it answers every request with 500, so that
    /// the admin who asks sees where to look; a function that exits would show them a gateway's
    /// error page.
    pub fn new(config: Result<Config, Vec<String>>) -> Self {
        let backends = config.map(|config| Backends {
            connector: Connector::new(config.database, config.statement_timeout),
            authenticator: Authenticator::new(config.authentication),
            read_ahead: ReadAhead::new(config.read_ahead_seconds, ReadAhead::STEPS),
        });
        if let Err(problems) = &backends {
            tracing::error!(error = %problems.join("; "), "the configuration is wrong");
        }
        Self { backends: backends.ok(), is_warm: AtomicBool::new(false) }
    }

    /// Opens the connection and reads secrets ahead of the first request, at the Unix time
    /// `unix_ms`, in ms. If that fails, the request tries again.
    pub async fn connect(&self, unix_ms: i64) {
        let Some(Backends { connector, authenticator, .. }) = &self.backends else { return };
        let ready = futures_util::join!(connector.open(unix_ms), authenticator.prepare());
        for error in [ready.0.err(), ready.1.err()].into_iter().flatten() {
            let cause = error.cause().unwrap_or_default();
            tracing::error!(%cause, "not ready yet; the request will try again");
        }
    }

    /// Closes the connection, so that the server need not find out that nobody is there any more.
    pub async fn close(&self) {
        let Some(Backends { connector, .. }) = &self.backends else { return };
        connector.close().await;
    }

    /// Answers an invocation event, and writes the line of its request or probe. The answer names
    /// the invocation by `request_id` in a header that browsers may read, so that an admin can
    /// quote it.
    pub async fn answer(&self, event: Event, request_id: &str, invocation: Invocation) -> Value {
        let cold_start = !self.is_warm.swap(true, Ordering::Relaxed);
        if event.is_probe() {
            let health = match &self.backends {
                Some(it) => Health::check(&it.connector, &it.authenticator, &invocation).await,
                None => Health::failed(&Error::Misconfigured),
            };
            health.write(request_id, &invocation);
            return health.answer();
        }
        let kind = event.kind();
        if kind == Kind::Unknown {
            tracing::warn!("the event is of no gateway that this function knows");
        }
        let request = event.into_request();
        let (mut response, log) = self.respond(&request, kind.budget(), &invocation).await;
        if let Ok(request_id) = HeaderValue::from_str(request_id) {
            response.headers_mut().insert("synapse-trace-id", request_id);
        }
        log.write(kind, request.method(), &response, cold_start, request_id, &invocation);
        kind.answer(response)
    }

    /// Answers a request with a body within `budget`, and says how that went.
    pub async fn respond(
        &self,
        request: &Request,
        budget: Budget,
        at: &Invocation,
    ) -> (Response<Body>, RequestLog) {
        let args = Args::parse(request.extensions().get::<RawQuery>().map_or("", |query| &query.0));
        let query = MediaUsageQuery::parse(&args);
        let (mut phases, requester) = (Phases::default(), Cell::default());
        let mut answer = async {
            match (request.method(), request.raw_http_path()) {
                // Before everything else, as in Synapse: browsers ask without a token, on any path.
                (&Method::OPTIONS, _) => return Ok(None),
                (&Method::GET | &Method::HEAD, PATH) => (),
                (_, PATH) => return Err(Error::METHOD_NOT_ALLOWED),
                _ => return Err(Error::NO_SUCH_ENDPOINT),
            }
            let backends = self.backends.as_ref().ok_or(Error::Misconfigured)?;
            let token = AccessToken::from_request(request.headers(), &args)?;
            // Each has its own time, and no connection to the database is held while another server is
            // asked.
            let mut claimed;
            (claimed, phases.mas) = backends.authenticator.claim(token, at).await;
            loop {
                let claim = claimed?;
                let asked = backends.ask_database(&claim, &query, budget, &requester, at).await;
                phases.database = Some(phases.database.unwrap_or_default() + asked.time);
                phases.retries += asked.retries;
                if let page @ Some(_) = asked.answer? {
                    return Ok(page);
                }
                // The replica does not know the token. The homeserver, if there is one, may. Then the
                // replica is asked what its user may do.
                (claimed, phases.homeserver) = backends.authenticator.vouch(claim).await;
            }
        }
        .await;
        let response = response(request, &mut answer);
        let (requester, query) = (requester.into_inner(), query.ok());
        (response, RequestLog { answer, requester, query, phases })
    }
}

impl Backends {
    /// The page of an admin, whom it notes as the `requester`; `None` if the replica does not know the
    /// token. In a walk the statement for the page reads ahead. If that fails, the page alone is asked
    /// for, once.
    async fn ask_database(
        &self,
        claim: &Claim,
        query: &Result<MediaUsageQuery, Error>,
        budget: Budget,
        requester: &Cell<Option<String>>,
        at: &Invocation,
    ) -> Asked<Option<MediaUsage>> {
        let Self { connector, authenticator, read_ahead } = self;
        // A page statement takes it, so that one that is asked again reads its own page alone.
        let step = Cell::new(query.as_ref().ok().and_then(|query| read_ahead.step(query, at)));
        let page = async |connection: &mut Connection| {
            let admin = authenticator.admin(connection, claim).await?;
            let Some(admin) = admin else { return Ok(None) };
            requester.set(Some(admin.user_id().to_owned()));
            // After the token, as in Synapse: who may not ask does not learn what may be asked.
            let query = query.as_ref().map_err(Clone::clone)?;
            let page = media_usage(connection, &admin, query, budget, read_ahead, step.take(), at);
            page.await.map(Some)
        };
        if step.get().is_none() {
            return connector.ask(at, page).await;
        }
        let ahead = connector.ask(&at.first_half(), &page).await;
        if !ahead.was_too_much {
            return ahead;
        }
        step.set(None);
        let mut alone = connector.ask(at, page).await;
        alone.time += ahead.time;
        alone.retries += ahead.retries + 1;
        alone
    }
}

/// The response to a request, with the page's body taken out of the answer. Synapse's CORS headers
/// (`set_cors_headers` in `synapse/http/server.py`) are on every response: without them an admin UI
/// cannot even read an error.
fn response(request: &Request, answer: &mut Answer) -> Response<Body> {
    let (status, body) = match answer {
        Ok(Some(found)) => (200, found.page.take_body()),
        Ok(None) => (204, String::new()),
        Err(error) => (error.answer().status, error.body()),
    };
    let is_empty = status == 204 || request.method() == Method::HEAD;
    let mut response = Response::new(if is_empty { Body::Empty } else { Body::Text(body) });
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let of_json = |value| (status != 204).then_some(value);
    let retry_after = [(429, "1"), (503, "5")].into_iter().find(|it| it.0 == status);
    let headers = "X-Requested-With, Content-Type, Authorization, Date";
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, Some("*")),
        (header::ACCESS_CONTROL_ALLOW_METHODS, Some("GET, HEAD, POST, PUT, DELETE, OPTIONS")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, Some(headers)),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, Some("Synapse-Trace-Id, Server")),
        (header::CONTENT_TYPE, of_json("application/json")),
        (header::CACHE_CONTROL, of_json("no-cache, no-store, must-revalidate")),
        (header::RETRY_AFTER, retry_after.map(|it| it.1)),
    ];
    let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
    response.headers_mut().extend(headers.map(|(name, it)| (name, HeaderValue::from_static(it))));
    response
}
