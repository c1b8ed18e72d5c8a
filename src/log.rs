//! The log: what goes into it, and what never does.

use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Sends the log to the standard output, as Lambda's two variables for it say:
/// `AWS_LAMBDA_LOG_LEVEL` (`INFO` unless set; a wrong one is logged) and `AWS_LAMBDA_LOG_FORMAT` (`JSON`, else text).
///
/// The level is that of this crate. The crates below it stay at `ERROR`, whatever the level: at
/// their more talkative ones they log whole events, texts of statements and notices of the server,
/// and with them tokens, search terms and rows. The message of a panic can quote such data too,
/// so that only its place is logged.
pub fn init() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let wanted = variable("AWS_LAMBDA_LOG_LEVEL");
    let level = match &*wanted {
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
    let targets = Targets::new()
        .with_target(env!("CARGO_CRATE_NAME"), level.unwrap_or(Level::INFO))
        .with_default(LevelFilter::ERROR);
    tracing_subscriber::registry().with(format.with_filter(targets)).init();
    if level.is_none() {
        tracing::error!(
            "AWS_LAMBDA_LOG_LEVEL is none of FATAL, ERROR, WARN, INFO, DEBUG and TRACE; INFO it is"
        );
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panicked");
    }));
}
