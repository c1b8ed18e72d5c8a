//! The one line that each request leaves in the log, which carries its metrics as well.

use std::{
    env,
    io::Write,
    sync::OnceLock,
    time::{Duration, Instant},
};

use aws_sdk_secretsmanager::primitives::{DateTime, DateTimeFormat};
use lambda_http::http::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::Level;

use crate::{
    error::Error,
    gateway::Kind,
    query::{Direction, MediaUsageQuery, OrderBy},
    statement::Shape,
};

/// What is found out about a request while it is answered.
#[derive(Debug, Default)]
pub struct Progress {
    /// What was asked for, once it has been read: not before the token was accepted.
    asked: Option<Asked>,
    /// The shape of the statement that answers.
    pub shape: Option<Shape>,
    /// How many users the page holds.
    pub rows: Option<i64>,
    /// Since when the database was asked, and connected to if need be.
    pub database_since: Option<Instant>,
    /// How often it was asked again.
    pub retries: u32,
}

/// The parameters of a request, without the values that are somebody's secret.
#[derive(Debug, Serialize)]
struct Asked {
    order_by: OrderBy,
    dir: Direction,
    limit: i64,
    from: i64,
    /// Which filters are set.
    filters: Vec<&'static str>,
}

impl Progress {
    /// Takes down what a query asks for.
    pub fn ask(&mut self, query: &MediaUsageQuery) {
        let filters = [
            ("from_ts", query.window.after.is_some()),
            ("until_ts", query.window.until.is_some()),
            ("search_term", query.search_term.is_some()),
        ];
        self.asked = Some(Asked {
            order_by: query.order_by,
            dir: query.dir,
            limit: query.limit,
            from: query.from,
            filters: filters
                .into_iter()
                .filter(|(_, is_set)| *is_set)
                .map(|(name, _)| name)
                .collect(),
        });
    }
}

/// A request and how it ended.
#[derive(Debug)]
pub struct Report<'a> {
    /// Lambda's id of the invocation.
    pub request_id: &'a str,
    /// The kind of its event.
    pub kind: Kind,
    /// The method.
    pub method: &'a Method,
    /// The HTTP status code of the answer.
    pub status: u16,
    /// What went wrong.
    pub error: Option<&'a Error>,
    /// The length of the answer's body, in bytes.
    pub bytes: usize,
    /// What was found out on the way.
    pub progress: &'a Progress,
    /// How long the database took, the connection included.
    pub database: Option<Duration>,
    /// How long it took in all.
    pub total: Duration,
    /// Whether it is the first of its execution environment.
    pub cold_start: bool,
    /// When it began, as Unix time in ms.
    pub unix_ms: i64,
}

impl Report<'_> {
    /// Writes the line, unless the log's level is above it: `ERROR` for a failure, else `INFO`.
    pub fn log(&self) {
        let is_wanted = if self.is_failure() {
            tracing::enabled!(Level::ERROR)
        } else {
            tracing::enabled!(Level::INFO)
        };
        if is_wanted {
            let line = format!("{}\n", self.line(function_name()));
            // Where a log goes that cannot be written, nobody can be told.
            let _ = std::io::stdout().lock().write_all(line.as_bytes());
        }
    }

    fn is_failure(&self) -> bool {
        self.error.is_some_and(|error| error.cause().is_some())
    }

    /// The line as a JSON object, with metrics in CloudWatch's embedded metric format for a
    /// function that has a name.
    fn line(&self, function_name: Option<&str>) -> Value {
        let message = match self.error {
            Some(_) if self.is_failure() => "the request failed",
            Some(_) => "the request was refused",
            None => "the request was answered",
        };
        let timestamp = DateTime::from_millis(self.unix_ms).fmt(DateTimeFormat::DateTime);
        let mut line = json!({
            // Lambda believes the level only of a line that also has a valid time (AWS Lambda
            // Developer Guide, "Log-level filtering").
            "timestamp": timestamp.ok(),
            "level": if self.is_failure() { "ERROR" } else { "INFO" },
            "message": message,
            "request_id": self.request_id,
            "kind": self.kind,
            "method": method(self.method),
            "status": self.status,
            "errcode": self.error.map(Error::errcode),
            "cause": self.error.and_then(Error::cause),
            "order_by": null,
            "dir": null,
            "limit": null,
            "from": null,
            "filters": null,
            "shape": self.progress.shape,
            "rows": self.progress.rows,
            "bytes": self.bytes,
            "database_ms": self.database.map(ms),
            "total_ms": ms(self.total),
            "cold_start": self.cold_start,
            "retries": self.progress.retries,
        });
        if let Ok(Value::Object(asked)) = serde_json::to_value(&self.progress.asked) {
            asked.into_iter().for_each(|(name, value)| line[name] = value);
        }
        if let Some(function_name) = function_name {
            self.add_metrics(&mut line, function_name);
        }
        line
    }

    /// The metrics that template.yaml's alarms and dashboard read (Amazon CloudWatch User Guide,
    /// "Specification: Embedded metric format").
    fn add_metrics(&self, line: &mut Value, function_name: &str) {
        let errcode = self.error.map(Error::errcode);
        let is_unavailable = matches!(self.error, Some(Error::DatabaseUnavailable { .. }));
        let mut names = vec![json!({ "Name": "Requests", "Unit": "Count" })];
        let mut metric = |name: &str, unit: &str, value: f64| {
            names.push(json!({ "Name": name, "Unit": unit }));
            line[name] = value.into();
        };
        metric("TotalTime", "Milliseconds", ms(self.total));
        if let Some(database) = self.database {
            metric("DatabaseTime", "Milliseconds", ms(database));
        }
        metric("ColdStarts", "Count", f64::from(u8::from(self.cold_start)));
        metric("Retries", "Count", f64::from(self.progress.retries));
        metric("DatabaseUnavailable", "Count", f64::from(u8::from(is_unavailable)));
        metric("ServerErrors", "Count", f64::from(u8::from(self.status >= 500)));
        let requests = json!([{ "Name": "Requests", "Unit": "Count" }]);
        let directive = |dimensions: &[&str], metrics: Value| json!({ "Namespace": "SynapseMediaUsage", "Dimensions": [dimensions], "Metrics": metrics });
        let mut directives = vec![
            directive(&["FunctionName"], names.into()),
            directive(&["FunctionName", "Status"], requests.clone()),
        ];
        if let Some(errcode) = errcode {
            directives.push(directive(&["FunctionName", "Errcode"], requests));
            line["Errcode"] = errcode.into();
        }
        line["FunctionName"] = function_name.into();
        line["Status"] = self.status.to_string().into();
        line["Requests"] = 1.into();
        line["_aws"] = json!({ "Timestamp": self.unix_ms, "CloudWatchMetrics": directives });
    }
}

fn ms(time: Duration) -> f64 {
    // A microsecond is as much as anybody wants to read.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A method by its name, if it is one that has a name: any text can be one.
fn method(method: &Method) -> &str {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::OPTIONS
        | Method::POST
        | Method::PUT
        | Method::PATCH
        | Method::DELETE => method.as_str(),
        _ => "other",
    }
}

/// What Lambda calls the function.
fn function_name() -> Option<&'static str> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    NAME.get_or_init(|| env::var("AWS_LAMBDA_FUNCTION_NAME").ok().filter(|name| !name.is_empty()))
        .as_deref()
}
