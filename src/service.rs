//! One request to its response: route, authenticate, parse, page, respond.

use std::{
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
    media_usage::media_usage,
    page::Budget,
    postgres::{self, Connection, Connector},
    query::{Args, MediaUsageQuery},
    request_log::{Progress, Report},
};

/// The endpoint's path, as Synapse has it.
pub const PATH: &str = "/_synapse/admin/v1/statistics/users/media";

/// When an invocation begins and has to end.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The Unix time, in ms.
    pub unix_ms: i64,
    /// How long the invocation may still take; after that Lambda ends it, and the process with it.
    pub time_left: Duration,
}

/// Answers requests; built once an execution environment.
#[derive(Debug)]
pub struct Service {
    /// `None` if the configuration is wrong.
    parts: Option<Parts>,
    /// Whether a request has been answered.
    is_warm: AtomicBool,
}

/// What answering takes.
#[derive(Debug)]
struct Parts {
    connector: Connector,
    authenticator: Authenticator,
}

impl Service {
    /// A service for a configuration. With a wrong one it answers every request with 500, so that
    /// the admin who asks sees where to look; a function that exits would show them a gateway's
    /// error page.
    #[must_use]
    pub fn new(config: Result<Config, ConfigError>) -> Self {
        let parts = config.map_err(|error| error.to_string()).and_then(|config| {
            let authenticator =
                Authenticator::new(config.authentication).map_err(|error| error.to_string())?;
            let connector = Connector::new(config.database, config.statement_timeout);
            Ok(Parts { connector, authenticator })
        });
        if let Err(error) = &parts {
            tracing::error!(%error, "the configuration is wrong");
        }
        Self { parts: parts.ok(), is_warm: AtomicBool::new(false) }
    }

    /// Opens the connection and reads secrets ahead of the first request. If that fails, the
    /// request tries again.
    pub async fn connect(&self, now_ms: i64) {
        let Some(Parts { connector, authenticator }) = &self.parts else { return };
        let connect = async {
            let connection = connector.connect(now_ms, Connector::answers_by()).await?;
            connector.give_back(connection);
            Ok::<_, Error>(())
        };
        let (connected, prepared) = futures_util::join!(connect, authenticator.prepare());
        for error in [connected.err(), prepared.err()].into_iter().flatten() {
            let cause = error.cause().unwrap_or_default();
            tracing::error!(%cause, "not ready yet; the request will try again");
        }
    }

    /// Closes the connection, so that the server need not find out that nobody is there any more.
    pub async fn close(&self) {
        if let Some(Parts { connector, .. }) = &self.parts {
            connector.close().await;
        }
    }

    /// Answers an invocation event, and writes the request's line into the log. The answer names
    /// the invocation by `request_id` in a header that browsers may read, so that an admin can
    /// quote it.
    pub async fn answer(&self, event: Event, request_id: &str, now: Now) -> Answer {
        let start = Instant::now();
        let kind = event.kind();
        if kind == Kind::Unknown {
            tracing::warn!("the event is of no gateway that this function knows");
        }
        let request = event.into_request();
        let mut progress = Progress::default();
        let (mut response, error) =
            self.respond_and_tell(&request, kind.budget(), now, &mut progress).await;
        if let Ok(request_id) = HeaderValue::from_str(request_id) {
            response.headers_mut().insert("synapse-trace-id", request_id);
        }
        let total = start.elapsed();
        Report {
            request_id,
            kind,
            method: request.method(),
            status: response.status().as_u16(),
            error: error.as_ref(),
            bytes: response.body().len(),
            progress: &progress,
            database: progress.database_since.map(|since| since.elapsed()),
            total,
            cold_start: !self.is_warm.swap(true, Ordering::Relaxed),
            unix_ms: now.unix_ms,
        }
        .log();
        kind.answer(response)
    }

    /// Answers a request with a body within `budget`.
    pub async fn respond(&self, request: &Request, budget: Budget, now: Now) -> Response<Body> {
        self.respond_and_tell(request, budget, now, &mut Progress::default()).await.0
    }

    async fn respond_and_tell(
        &self,
        request: &Request,
        budget: Budget,
        now: Now,
        progress: &mut Progress,
    ) -> (Response<Body>, Option<Error>) {
        // Before everything else, as in Synapse: browsers ask without a token, on any path.
        if request.method() == Method::OPTIONS {
            return (with_cors(Response::new(Body::Empty), StatusCode::NO_CONTENT), None);
        }
        let (mut response, error) = match self.body(request, budget, now, progress).await {
            Ok(body) => (json_response(StatusCode::OK, body), None),
            Err(error) => (error_response(&error), Some(error)),
        };
        if request.method() == Method::HEAD {
            *response.body_mut() = Body::Empty;
        }
        (response, error)
    }

    async fn body(
        &self,
        request: &Request,
        budget: Budget,
        now: Now,
        progress: &mut Progress,
    ) -> Result<String, Error> {
        if request.raw_http_path() != PATH {
            return Err(Error::NoSuchEndpoint);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Error::MethodNotAllowed);
        }
        let parts = self.parts.as_ref().ok_or(Error::Misconfigured)?;
        let args = Args::parse(request.extensions().get::<RawQuery>().map_or("", |query| &query.0));
        let token = AccessToken::from_request(request.headers(), &args)?;
        parts.ask_in_time(token, &args, budget, now, progress).await
    }
}

impl Parts {
    /// Asks, and gives up before the invocation ends.
    async fn ask_in_time(
        &self,
        token: AccessToken,
        args: &Args,
        budget: Budget,
        now: Now,
        progress: &mut Progress,
    ) -> Result<String, Error> {
        // MAS has its own time, and only the database's is the database's.
        let start = Instant::now();
        let claim = self.authenticator.claim(token, now.unix_ms);
        let claim = tokio::time::timeout(postgres::usable(now.time_left), claim)
            .await
            .unwrap_or_else(|_| {
                let cause = "no answer before the end of the invocation".to_owned();
                Err(Error::IntrospectionFailed { cause })
            })?;
        let patience = self.connector.patience(now.time_left.saturating_sub(start.elapsed()));
        let mut held = None;
        let ask = self.ask(&mut held, claim, args, budget, now, progress);
        let Ok(body) = tokio::time::timeout(patience, ask).await else {
            if self.authenticator.waited_for_homeserver() {
                let cause = "no answer before the end of the invocation".to_owned();
                return Err(Error::HomeserverUnavailable { cause });
            }
            if let Some(connection) = held {
                self.connector.cancel(connection, now.unix_ms).await;
            }
            let cause = format!("no answer from the database within {} ms", patience.as_millis());
            return Err(Error::StatementTimeout { cause });
        };
        // What a connection is worth after a failure is not worth finding out.
        if let Some(connection) = held
            && !body.as_ref().is_err_and(Error::spoils_connection)
        {
            self.connector.give_back(connection);
        }
        body
    }

    /// Asks on the idle connection, or on a new one, and leaves it in `held`.
    async fn ask(
        &self,
        held: &mut Option<Connection>,
        claim: Claim,
        args: &Args,
        budget: Budget,
        now: Now,
        progress: &mut Progress,
    ) -> Result<String, Error> {
        progress.database_since = Some(Instant::now());
        let answers_by = Connector::answers_by();
        let connection = match self.connector.idle() {
            Some(connection) => connection,
            None => self.connector.connect(now.unix_ms, answers_by).await?,
        };
        let connection = held.insert(connection);
        let mut body = self.ask_on(connection, &claim, args, budget, now, progress).await;
        // A connection can die between two requests without a sign, and a replica cancels what
        // stands in the way of replication. Asking again harms nothing: all that is asked is a
        // question.
        if matches!(body, Err(Error::DatabaseUnavailable { .. })) {
            progress.retries += 1;
            // Whoever has answered may take as long for the next first answer.
            let answers_by =
                if connection.is_alive() { Connector::answers_by() } else { answers_by };
            // Closed before the next is opened, so that there are never two.
            *held = None;
            let connection = self.connector.connect(now.unix_ms, answers_by).await?;
            let connection = held.insert(connection);
            body = self.ask_on(connection, &claim, args, budget, now, progress).await;
        }
        match (body, held) {
            (Err(error), Some(connection)) => Err(self.connector.explain(connection, error).await),
            (body, _) => body,
        }
    }

    async fn ask_on(
        &self,
        connection: &mut Connection,
        claim: &Claim,
        args: &Args,
        budget: Budget,
        now: Now,
        progress: &mut Progress,
    ) -> Result<String, Error> {
        connection.begin().await?;
        let body = self.page(connection, claim, args, budget, now, progress).await;
        // After a failure the connection is given up, which ends everything.
        if !body.as_ref().is_err_and(Error::spoils_connection) {
            connection.end().await?;
        }
        body
    }

    async fn page(
        &self,
        connection: &mut Connection,
        claim: &Claim,
        args: &Args,
        budget: Budget,
        now: Now,
        progress: &mut Progress,
    ) -> Result<String, Error> {
        let admin = self.authenticator.admin(connection, claim, now.unix_ms).await?;
        // After the token, as in Synapse: who may not ask does not learn what may be asked.
        let query = MediaUsageQuery::parse(args)?;
        progress.ask(&query);
        media_usage(connection, &admin, &query, budget, progress).await
    }
}

fn error_response(error: &Error) -> Response<Body> {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(status, error.body());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

fn json_response(status: StatusCode, body: String) -> Response<Body> {
    let mut response = with_cors(Response::new(Body::Text(body)), status);
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Synapse's CORS headers (`set_cors_headers` in `synapse/http/server.py`), which browsers need
/// on every answer: without them an admin UI cannot even read an error.
fn with_cors(mut response: Response<Body>, status: StatusCode) -> Response<Body> {
    *response.status_mut() = status;
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
