//! One request to its response, from top to bottom: route, token, claim, ask, respond.

use std::{
    cell::Cell,
    mem::take,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{HeaderValue, Method, StatusCode, header},
};

use crate::{
    auth::{AccessToken, Authenticator, Claim},
    config::{Config, ConfigError},
    error::Error,
    gateway::{Answer, Event, Kind, RawQuery},
    invocation::Invocation,
    media_usage::{MediaUsage, kept_media_usage, media_usage},
    page::Budget,
    postgres::{Connection, Connector},
    query::{Args, MediaUsageQuery},
    read_ahead::ReadAhead,
    request_log::{Outcome, Phases, RequestLog},
};

/// The endpoint's path, as Synapse has it.
pub const PATH: &str = "/_synapse/admin/v1/statistics/users/media";

/// Answers requests; built once an execution environment.
pub struct Service {
    /// `None` if the configuration is wrong.
    backends: Option<Backends>,
    /// Whether a request has been answered.
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
    pub fn new(config: Result<Config, ConfigError>) -> Self {
        let backends = config.map_err(|error| error.to_string()).and_then(|config| {
            let authenticator =
                Authenticator::new(config.authentication).map_err(|error| error.to_string())?;
            let connector = Connector::new(config.database, config.statement_timeout);
            let read_ahead = ReadAhead::new(config.read_ahead_seconds, ReadAhead::STEPS);
            Ok(Backends { connector, authenticator, read_ahead })
        });
        if let Err(error) = &backends {
            tracing::error!(%error, "the configuration is wrong");
        }
        Self { backends: backends.ok(), is_warm: AtomicBool::new(false) }
    }

    /// Opens the connection and reads secrets ahead of the first request, at the Unix time
    /// `unix_ms`, in ms. If that fails, the request tries again.
    pub async fn connect(&self, unix_ms: i64) {
        let Some(Backends { connector, authenticator, .. }) = &self.backends else { return };
        let (connected, prepared) =
            futures_util::join!(connector.open_idle(unix_ms), authenticator.prepare());
        for error in [connected.err(), prepared.err()].into_iter().flatten() {
            let cause = error.cause().unwrap_or_default();
            tracing::error!(%cause, "not ready yet; the request will try again");
        }
    }

    /// Closes the connection, so that the server need not find out that nobody is there any more.
    pub async fn close(&self) {
        if let Some(Backends { connector, .. }) = &self.backends {
            connector.close().await;
        }
    }

    /// Answers an invocation event, and writes the request's line into the log. The answer names
    /// the invocation by `request_id` in a header that browsers may read, so that an admin can
    /// quote it.
    pub async fn answer(&self, event: Event, request_id: &str, invocation: Invocation) -> Answer {
        let start = Instant::now();
        let kind = event.kind();
        if kind == Kind::Unknown {
            tracing::warn!("the event is of no gateway that this function knows");
        }
        let request = event.into_request();
        let mut outcome = self.outcome(&request, kind.budget(), &invocation).await;
        let mut response = response(&request, &mut outcome);
        if let Ok(request_id) = HeaderValue::from_str(request_id) {
            response.headers_mut().insert("synapse-trace-id", request_id);
        }
        RequestLog {
            request_id,
            kind,
            method: request.method(),
            status: response.status().as_u16(),
            bytes: response.body().len(),
            outcome: &outcome,
            total: start.elapsed(),
            cold_start: !self.is_warm.swap(true, Ordering::Relaxed),
            unix_ms: invocation.unix_ms,
        }
        .write();
        kind.answer(response)
    }

    /// Answers a request with a body within `budget`.
    pub async fn respond(
        &self,
        request: &Request,
        budget: Budget,
        invocation: Invocation,
    ) -> Response<Body> {
        response(request, &mut self.outcome(request, budget, &invocation).await)
    }

    async fn outcome(&self, request: &Request, budget: Budget, invocation: &Invocation) -> Outcome {
        let args = Args::parse(request.extensions().get::<RawQuery>().map_or("", |query| &query.0));
        let query = MediaUsageQuery::parse(&args);
        let mut phases = Phases::default();
        let answer = async {
            let Some(backends) = self.route(request)? else { return Ok(None) };
            let token = AccessToken::from_request(request.headers(), &args)?;
            backends.ask(token, &query, budget, invocation, &mut phases).await.map(Some)
        };
        Outcome { answer: answer.await, query: query.ok(), phases }
    }

    /// Whom to ask; nobody for a preflight.
    fn route(&self, request: &Request) -> Result<Option<&Backends>, Error> {
        match (request.method(), request.raw_http_path()) {
            // Before everything else, as in Synapse: browsers ask without a token, on any path.
            (&Method::OPTIONS, _) => Ok(None),
            (&Method::GET | &Method::HEAD, PATH) => {
                self.backends.as_ref().map(Some).ok_or(Error::Misconfigured)
            }
            (_, PATH) => Err(Error::METHOD_NOT_ALLOWED),
            _ => Err(Error::NO_SUCH_ENDPOINT),
        }
    }
}

impl Backends {
    /// Asks MAS, the database and the homeserver in turn. Each has its own time, and no connection
    /// to the database is held while another server is asked.
    async fn ask(
        &self,
        token: AccessToken,
        query: &Result<MediaUsageQuery, Error>,
        budget: Budget,
        invocation: &Invocation,
        phases: &mut Phases,
    ) -> Result<MediaUsage, Error> {
        let (claim, time) = timed(self.authenticator.claim(token, invocation)).await;
        phases.mas = self.authenticator.asks_mas().then_some(time);
        let mut claim = claim?;
        loop {
            let page = self.ask_database(&claim, query, budget, invocation, phases).await?;
            if let Some(page) = page {
                return Ok(page);
            }
            // The replica does not know the token. The homeserver may, and then the replica is
            // asked what its user may do.
            let (vouched, time) = timed(self.authenticator.vouch(claim, invocation)).await;
            phases.homeserver = Some(time);
            claim = vouched?;
        }
    }

    /// The page of an admin; `None` if the replica does not know the token. In a walk the statement
    /// for the page reads ahead. If that fails, the page alone is asked for, once.
    async fn ask_database(
        &self,
        claim: &Claim,
        query: &Result<MediaUsageQuery, Error>,
        budget: Budget,
        invocation: &Invocation,
        phases: &mut Phases,
    ) -> Result<Option<MediaUsage>, Error> {
        let step = query.as_ref().ok().and_then(|query| self.read_ahead.step(query, invocation));
        // Only the first to take it reads ahead, not a connector that asks again.
        let step = Cell::new(step);
        let page = async |connection: &mut Connection| {
            self.page(connection, claim, query, budget, invocation, &step).await
        };
        if step.get().is_some() {
            let asked = self.connector.ask(&invocation.first_half(), &page).await;
            phases.add(&asked);
            match asked.answer {
                Err(Error::StatementTimeout(_) | Error::DatabaseFailed(_)) => phases.retries += 1,
                answer => return answer,
            }
            step.set(None);
        }
        let asked = self.connector.ask(invocation, page).await;
        phases.add(&asked);
        asked.answer
    }

    async fn page(
        &self,
        connection: &mut Connection,
        claim: &Claim,
        query: &Result<MediaUsageQuery, Error>,
        budget: Budget,
        invocation: &Invocation,
        step: &Cell<Option<i64>>,
    ) -> Result<Option<MediaUsage>, Error> {
        let admin = self.authenticator.admin(connection, claim, invocation.unix_ms).await?;
        let Some(admin) = admin else { return Ok(None) };
        // After the token, as in Synapse: who may not ask does not learn what may be asked.
        let query = query.as_ref().map_err(Clone::clone)?;
        let page = kept_media_usage(&self.read_ahead, &admin, query, budget, invocation);
        if page.is_some() {
            return Ok(page);
        }
        let kept = step.take().map(|users| self.read_ahead.room(users, query, invocation));
        let (page, kept) = media_usage(connection, &admin, query, budget, kept).await?;
        self.read_ahead.answered(query, page.next_token, kept, invocation);
        Ok(Some(page))
    }
}

async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (future.await, start.elapsed())
}

/// The response to a request, with the page's body taken out of the outcome.
fn response(request: &Request, outcome: &mut Outcome) -> Response<Body> {
    let (status, body) = match &mut outcome.answer {
        Ok(Some(page)) => (200, take(&mut page.body)),
        Ok(None) => return with_cors(Response::new(Body::Empty), 204),
        Err(error) => (error.answer().status, error.body()),
    };
    let body = if request.method() == Method::HEAD { Body::Empty } else { Body::Text(body) };
    let mut response = with_cors(Response::new(body), status);
    let retry_after = match status {
        429 => Some("1"),
        503 => Some("5"),
        _ => None,
    };
    for (name, value) in [
        (header::CONTENT_TYPE, Some("application/json")),
        (header::CACHE_CONTROL, Some("no-cache, no-store, must-revalidate")),
        (header::RETRY_AFTER, retry_after),
    ] {
        value.map(|value| response.headers_mut().insert(name, HeaderValue::from_static(value)));
    }
    response
}

/// Synapse's CORS headers (`set_cors_headers` in `synapse/http/server.py`), which browsers need
/// on every answer: without them an admin UI cannot even read an error.
fn with_cors(mut response: Response<Body>, status: u16) -> Response<Body> {
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, DELETE, OPTIONS"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "X-Requested-With, Content-Type, Authorization, Date",
        ),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "Synapse-Trace-Id, Server"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
