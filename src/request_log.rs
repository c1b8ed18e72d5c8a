//! The one line that each request leaves in the log, which carries its metrics as well.

use std::{env, io::Write, time::Duration};

use aws_sdk_secretsmanager::primitives::{DateTime, DateTimeFormat};
use lambda_http::http::Method;
use serde_json::{Value, json};
use tracing::{Level, level_filters::LevelFilter};

use crate::{
    error::Error, gateway::Kind, invocation::Invocation, media_usage::MediaUsage, postgres::Asked,
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

impl Phases {
    /// Adds a visit to the database.
    pub fn add<T>(&mut self, asked: &Asked<T>) {
        self.database = Some(self.database.unwrap_or_default() + asked.time);
        self.retries += asked.retries;
    }
}

/// The page, or what went wrong; no page for a preflight, or while the token is not known.
pub type Answer = Result<Option<MediaUsage>, Error>;

/// How a request was answered, and what its line says of it.
pub struct Outcome {
    /// The answer.
    pub answer: Answer,
    /// What was asked for, if that could be read.
    pub query: Option<MediaUsageQuery>,
    /// Who was asked.
    pub phases: Phases,
}

/// A request and how it ended.
pub struct RequestLog<'a> {
    /// Lambda's id of the invocation.
    pub request_id: &'a str,
    /// The kind of its event.
    pub kind: Kind,
    /// The method.
    pub method: &'a Method,
    /// The HTTP status code of the answer.
    pub status: u16,
    /// The length of the answer's body, in bytes.
    pub bytes: usize,
    /// How it was answered.
    pub outcome: &'a Outcome,
    /// Whether it is the first of its execution environment.
    pub cold_start: bool,
    /// When it began.
    pub invocation: &'a Invocation,
}

impl RequestLog<'_> {
    /// Writes the line, unless the log's level is above it: `ERROR` for a failure, `WARN` for a
    /// replica that is behind, else `INFO`.
    pub fn write(&self) {
        if self.verdict().0 <= LevelFilter::current() {
            let line = format!("{}\n", self.line());
            // If stdout is closed there is nowhere to report it.
            let _ = std::io::stdout().lock().write_all(line.as_bytes());
        }
    }

    fn error(&self) -> Option<&Error> {
        self.outcome.answer.as_ref().err()
    }

    fn is_replica_behind(&self) -> bool {
        matches!(self.error(), Some(Error::ReplicaBehind(_)))
    }

    /// The line's level and message.
    fn verdict(&self) -> (Level, &'static str) {
        match self.error() {
            None => (Level::INFO, "the request was answered"),
            Some(Error::Refusal(_)) => (Level::INFO, "the request was refused"),
            Some(Error::ReplicaBehind(_)) => (Level::WARN, "the request failed"),
            Some(_) => (Level::ERROR, "the request failed"),
        }
    }

    /// The line as a JSON object, with metrics in CloudWatch's embedded metric format for a
    /// function that has a name.
    fn line(&self) -> Value {
        let (level, message) = self.verdict();
        // A caller who was refused leaves no parameters.
        let Outcome { answer, query, phases } = self.outcome;
        let page = answer.as_ref().ok().and_then(Option::as_ref);
        let query = query.as_ref().filter(|_| page.is_some() || level != Level::INFO);
        let timestamp =
            DateTime::from_millis(self.invocation.unix_ms).fmt(DateTimeFormat::DateTime);
        let mut line = json!({
            // Lambda believes the level only of a line that also has a valid time (AWS Lambda
            // Developer Guide, "Log-level filtering").
            "timestamp": timestamp.ok(),
            "level": level.as_str(),
            "message": message,
            "request_id": self.request_id,
            "kind": self.kind,
            "method": method(self.method),
            "status": self.status,
            "errcode": self.error().map(|error| error.answer().errcode),
            "cause": self.error().and_then(Error::cause),
            "order_by": query.map(|query| query.order_by),
            "dir": query.map(|query| query.dir),
            "limit": query.map(|query| query.limit),
            "from": query.map(|query| query.from),
            "filters": query.map(filters),
            "source": page.map(|page| if page.shape.is_some() { "database" } else { "memory" }),
            "shape": page.and_then(|page| page.shape),
            "rows": page.map(|page| page.rows),
            "read_ahead": page.and_then(|page| page.read_ahead),
            "bytes": self.bytes,
            "mas_ms": phases.mas.map(ms),
            "database_ms": phases.database.map(ms),
            "homeserver_ms": phases.homeserver.map(ms),
            "total_ms": ms(self.invocation.elapsed()),
            "cold_start": self.cold_start,
            "retries": phases.retries,
        });
        let function_name = env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default();
        if !function_name.is_empty() {
            self.add_metrics(&mut line, &function_name);
        }
        line
    }

    /// The metrics that template.yaml's alarms and dashboard read (Amazon CloudWatch User Guide,
    /// "Specification: Embedded metric format").
    fn add_metrics(&self, line: &mut Value, function_name: &str) {
        let is_unavailable = matches!(self.error(), Some(Error::DatabaseUnavailable { .. }));
        let is_server_error = self.status >= 500 && !self.is_replica_behind();
        let page = self.outcome.answer.as_ref().ok().and_then(Option::as_ref);
        let count = |is: bool| Some(f64::from(u8::from(is)));
        let metrics = [
            ("Requests", "Count", Some(1.0)),
            ("TotalTime", "Milliseconds", line["total_ms"].as_f64()),
            ("DatabaseTime", "Milliseconds", line["database_ms"].as_f64()),
            ("ColdStarts", "Count", count(self.cold_start)),
            ("Retries", "Count", Some(self.outcome.phases.retries.into())),
            ("DatabaseUnavailable", "Count", count(is_unavailable)),
            ("ReplicaBehind", "Count", count(self.is_replica_behind())),
            ("ServerErrors", "Count", count(is_server_error)),
            ("PagesFromMemory", "Count", page.and_then(|page| count(page.shape.is_none()))),
        ];
        let mut names = Vec::new();
        for (name, unit, value) in metrics {
            if let Some(value) = value {
                names.push(json!({ "Name": name, "Unit": unit }));
                line[name] = value.into();
            }
        }
        let requests = json!([{ "Name": "Requests", "Unit": "Count" }]);
        let directive = |dimensions: &[&str], metrics: Value| json!({ "Namespace": "SynapseMediaUsage", "Dimensions": [dimensions], "Metrics": metrics });
        let mut directives = vec![
            directive(&["FunctionName"], names.into()),
            directive(&["FunctionName", "Status"], requests.clone()),
        ];
        if let Some(errcode) = self.error().map(|error| error.answer().errcode) {
            directives.push(directive(&["FunctionName", "Errcode"], requests));
            line["Errcode"] = errcode.into();
        }
        line["FunctionName"] = function_name.into();
        line["Status"] = self.status.to_string().into();
        line["_aws"] =
            json!({ "Timestamp": self.invocation.unix_ms, "CloudWatchMetrics": directives });
    }
}

/// Which filters a query sets; their values are nobody's business.
fn filters(query: &MediaUsageQuery) -> Vec<&'static str> {
    let filters = [
        ("from_ts", query.window.after.is_some()),
        ("until_ts", query.window.until.is_some()),
        ("search_term", query.search_term.is_some()),
    ];
    filters.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
}

fn ms(time: Duration) -> f64 {
    // A microsecond is as much as anybody wants to read.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A method by its name, if it is a usual one: any text can be a method.
fn method(method: &Method) -> &str {
    let usual = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];
    if usual.contains(&method.as_str()) { method.as_str() } else { "other" }
}
