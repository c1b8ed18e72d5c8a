//! The one line that each request leaves in the log, which carries its metrics as well.
//!
//! Its fields are a contract: their names and meanings, which stand in `docs/runbook.md`, and their
//! order. People see the first 160 characters of a line, in which a failure has its level, status,
//! errcode and the beginning of its cause. The request's ids come behind all that tells of it, and
//! after them only the metrics.
//!
//! Nothing of a request or a row is in it but the parameters that are numbers or one of a few words,
//! and the user who asked.

use std::time::Duration;

use lambda_http::{Body, Response, http::Method};
use serde_json::json;
use tracing::Level;

use crate::{
    error::Error,
    gateway::Kind,
    invocation::Invocation,
    log::{ms, write_line},
    media_usage::MediaUsage,
    query::MediaUsageQuery,
};

/// How long a request spent on each of those that it asked; `None` where it asked nobody.
#[derive(Default)]
pub struct Phases {
    /// Matrix Authentication Service.
    pub mas: Option<Duration>,
    /// The database, connecting included.
    pub database: Option<Duration>,
    /// The homeserver.
    pub homeserver: Option<Duration>,
    /// How often the database was asked again.
    pub retries: u32,
}

/// The page, or what went wrong; no page for a preflight, or while the token is not known.
pub type Answer = Result<Option<MediaUsage>, Error>;

/// How a request was answered, and what its line says of it.
pub struct RequestLog {
    /// The answer.
    pub answer: Answer,
    /// The user whose rights counted, as [`Admin::user_id`](crate::auth::Admin::user_id).
    pub requester: Option<String>,
    /// What was asked for, if that could be read.
    pub query: Option<MediaUsageQuery>,
    /// Who was asked.
    pub phases: Phases,
}

impl RequestLog {
    /// Writes the line of a request that came by an event of a kind in the invocation `at`, whose id
    /// of Lambda's is `request_id`. `cold_start` is whether it is the first of its execution
    /// environment. With the line go the metrics that template.yaml's alarms and dashboard read.
    pub fn write(
        &self,
        kind: Kind,
        of: &Method,
        response: &Response<Body>,
        cold_start: bool,
        request_id: &str,
        at: &Invocation,
    ) {
        let (level, message) = match &self.answer {
            Ok(_) => (Level::INFO, "the request was answered"),
            Err(Error::Refusal(_)) => (Level::INFO, "the request was refused"),
            Err(Error::ReplicaBehind(_)) => (Level::WARN, "the request failed"),
            Err(_) => (Level::ERROR, "the request failed"),
        };
        let (phases, status) = (&self.phases, response.status());
        let error = self.answer.as_ref().err();
        let found = self.answer.as_ref().ok().and_then(Option::as_ref);
        // A caller who was refused leaves neither a name nor parameters.
        let is_refused = found.is_none() && level == Level::INFO;
        let requester = self.requester.as_ref().filter(|_| !is_refused);
        let query = self.query.as_ref().filter(|_| !is_refused);
        let errcode = error.map(|error| error.answer().errcode);
        let source = |found: &MediaUsage| if found.shape.is_some() { "database" } else { "memory" };
        // Any text can be a method.
        let usual = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];
        let method = usual.into_iter().find(|it| it == of);
        let (total_ms, database_ms) = (ms(at.began.elapsed()), phases.database.map(ms));
        let fields = [
            ("status", status.as_u16().into()),
            ("errcode", errcode.into()),
            ("cause", error.and_then(Error::cause).into()),
            ("requester", json!(requester)),
            ("order_by", query.map(|query| query.order_by.as_str()).into()),
            ("dir", json!(query.map(|query| query.dir))),
            ("limit", query.map(|query| query.limit).into()),
            ("from", query.map(|query| query.from).into()),
            ("filters", query.map(filters).into()),
            ("source", found.map(source).into()),
            ("shape", json!(found.and_then(|found| found.shape))),
            ("rows", found.map(|found| found.page.rows).into()),
            ("read_ahead", found.and_then(|found| found.read_ahead).into()),
            ("bytes", response.body().len().into()),
            ("total_ms", total_ms.into()),
            ("database_ms", database_ms.into()),
            ("mas_ms", phases.mas.map(ms).into()),
            ("homeserver_ms", phases.homeserver.map(ms).into()),
            ("retries", phases.retries.into()),
            ("cold_start", cold_start.into()),
            ("kind", json!(kind)),
            ("method", method.unwrap_or("other").into()),
        ];
        let is_unavailable = matches!(error, Some(Error::DatabaseUnavailable(_)));
        let is_behind = matches!(error, Some(Error::ReplicaBehind(_)));
        let count = |is: bool| Some(f64::from(u8::from(is)));
        let metrics = [
            ("Requests", "Count", Some(1.0)),
            ("TotalTime", "Milliseconds", Some(total_ms)),
            ("DatabaseTime", "Milliseconds", database_ms),
            ("ColdStarts", "Count", count(cold_start)),
            ("Retries", "Count", Some(phases.retries.into())),
            ("DatabaseUnavailable", "Count", count(is_unavailable)),
            ("ReplicaBehind", "Count", count(is_behind)),
            ("ServerErrors", "Count", count(status.is_server_error() && !is_behind)),
            ("PagesFromMemory", "Count", found.and_then(|found| count(found.shape.is_none()))),
        ];
        let dimensions = [("Status", Some(status.as_str())), ("Errcode", errcode)];
        write_line(at.unix_ms, request_id, level, message, fields, &metrics, &dimensions);
    }
}

/// Which filters a query sets; their values are nobody's business.
fn filters(query: &MediaUsageQuery) -> Vec<&'static str> {
    let from_ts = query.after.map(|_| "from_ts");
    let until_ts = query.until.map(|_| "until_ts");
    let search_term = query.search_term.as_ref().map(|_| "search_term");
    [from_ts, until_ts, search_term].into_iter().flatten().collect()
}
