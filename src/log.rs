//! The log: what goes into it, and what never does.

use std::{env, io::Write, time::Duration};

use aws_sdk_secretsmanager::primitives::{DateTime, DateTimeFormat};
use serde::Serializer;
use serde_json::{Value, json};
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Sends the log to the standard output, as Lambda's variables `AWS_LAMBDA_LOG_LEVEL` and
/// `AWS_LAMBDA_LOG_FORMAT` say. A wrong level counts as `INFO`, and the log says so.
///
/// The level is that of this crate. The crates below it stay at `ERROR`, whatever the level: at
/// their more talkative ones they log whole events, texts of statements and notices of the server,
/// and with them tokens, search terms and rows. The message of a panic can quote such data too,
/// so that only its place is logged.
pub fn init() {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let level = match variable("AWS_LAMBDA_LOG_LEVEL").as_str() {
        "" => Some(Level::INFO),
        // Lambda's highest level, and not one of tracing's.
        level if level.eq_ignore_ascii_case("fatal") => Some(Level::ERROR),
        level => level.parse().ok(),
    };
    let format = tracing_subscriber::fmt::layer().with_ansi(false);
    // CloudWatch stamps each line with its time.
    let format: Box<dyn Layer<_> + Send + Sync> =
        if variable("AWS_LAMBDA_LOG_FORMAT").eq_ignore_ascii_case("json") {
            format.json().flatten_event(true).boxed()
        } else {
            format.without_time().boxed()
        };
    let targets = Targets::new().with_default(LevelFilter::ERROR);
    let targets = targets.with_target(env!("CARGO_CRATE_NAME"), level.unwrap_or(Level::INFO));
    tracing_subscriber::registry().with(format.with_filter(targets)).init();
    if level.is_none() {
        tracing::error!(
            "AWS_LAMBDA_LOG_LEVEL must be FATAL, ERROR, WARN, INFO, DEBUG or TRACE. Until then it counts as INFO."
        );
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panicked");
    }));
}

/// Writes the line of an invocation that began at the Unix time `unix_ms`, in ms, unless the log's
/// level is above its own. It is a JSON object. Its fields stand in their order, because people see
/// the beginning of a line first.
///
/// Behind them come the invocation's ids: `request_id` of Lambda's, and that of its trace. Then come
/// metrics, each with its unit and a value if it has one, for a function that has a name (Amazon
/// CloudWatch User Guide, "Specification: Embedded metric format"). The first one is also counted by
/// each of `dimensions` that has a value.
pub fn write_line(
    unix_ms: i64,
    request_id: &str,
    level: Level,
    message: &str,
    fields: impl IntoIterator<Item = (&'static str, Value)>,
    metrics: &[(&'static str, &str, Option<f64>)],
    dimensions: &[(&'static str, Option<&str>)],
) {
    if level > LevelFilter::current() {
        return;
    }
    // Lambda believes the level only of a line that also has a valid time (AWS Lambda Developer
    // Guide, "Log-level filtering").
    let timestamp = DateTime::from_millis(unix_ms).fmt(DateTimeFormat::DateTime).ok();
    let mut line = vec![
        ("timestamp", timestamp.into()),
        ("level", level.as_str().into()),
        ("message", message.into()),
    ];
    line.extend(fields);
    line.extend([("request_id", request_id.into()), ("xray_trace_id", xray_trace_id().into())]);
    let function_name = env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default();
    if !function_name.is_empty() {
        let mut names = Vec::new();
        for (name, unit, value) in metrics.iter().filter(|metric| metric.2.is_some()) {
            names.push(json!({ "Name": name, "Unit": unit }));
            line.push((name, json!(value)));
        }
        let directive = |dimensions: &[&str], metrics: &[Value]| json!({ "Namespace": "SynapseMediaUsage", "Dimensions": [dimensions], "Metrics": metrics });
        let mut directives = vec![directive(&["FunctionName"], &names)];
        line.push(("FunctionName", function_name.into()));
        for (name, value) in dimensions.iter().filter(|dimension| dimension.1.is_some()) {
            directives.push(directive(&["FunctionName", name], &names[..1]));
            line.push((name, json!(value)));
        }
        line.push(("_aws", json!({ "Timestamp": unix_ms, "CloudWatchMetrics": directives })));
    }
    let mut text = Vec::new();
    // If stdout is closed there is nowhere to report it.
    let _ = serde_json::Serializer::new(&mut text).collect_map(line);
    text.push(b'\n');
    let _ = std::io::stdout().lock().write_all(&text);
}

/// A time in ms, for the log.
pub fn ms(time: Duration) -> f64 {
    // A microsecond is as much as anybody wants to read.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The id of the invocation's trace where X-Ray keeps it. The runtime has the tracing header in this
/// variable (AWS X-Ray Developer Guide, "Tracing header"), sampled or not.
fn xray_trace_id() -> Option<String> {
    let header = env::var("_X_AMZN_TRACE_ID").ok()?;
    let field = |name| header.split(';').find_map(|field| field.strip_prefix(name));
    // A client may have begun the trace, so that any text could be one.
    let is_id =
        |id: &&str| id.len() == 35 && id.bytes().all(|it| it.is_ascii_hexdigit() || it == b'-');
    field("Root=").filter(is_id).filter(|_| field("Sampled=") == Some("1")).map(str::to_owned)
}
