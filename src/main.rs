//! The Lambda function's process.

use std::{
    convert::Infallible,
    panic,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lambda_runtime::{LambdaEvent, service_fn};
use synapse_media_usage::{
    config::Config, gateway::Event, invocation::Invocation, log, service::Service,
};

/// The longest that an invocation can take (Lambda quotas).
const LONGEST: Duration = Duration::from_mins(15);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    log::init();
    // It lives as long as the process.
    let service: &Service = Box::leak(Box::new(Service::new(Config::from_env())));
    // Init is the time to connect: the first request finds the connection open.
    service.connect(unix_time_ms()).await;
    // A courtesy to the server. It takes one of the ten extensions that a function may have, and
    // panics where there is none left, so that the WARN is all there is to log.
    let log_panic = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let shutdown = lambda_runtime::spawn_graceful_shutdown_handler(|| service.close());
    if tokio::spawn(shutdown).await.is_err() {
        tracing::warn!("no shutdown hook: connections end without a goodbye");
    }
    panic::set_hook(log_panic);
    lambda_runtime::run(service_fn(|event: LambdaEvent<Event>| async move {
        let unix_ms = unix_time_ms();
        // `cargo lambda watch` sends deadlines in the past. Treat those as no deadline.
        let time_left = event.context.deadline.checked_sub(unix_ms.unsigned_abs());
        let time_left = time_left.filter(|ms| *ms > 0).map_or(LONGEST, Duration::from_millis);
        let invocation = Invocation::new(unix_ms, time_left);
        let answer = service.answer(event.payload, &event.context.request_id, invocation);
        Ok::<_, Infallible>(answer.await)
    }))
    .await
}

/// Unix time in ms.
fn unix_time_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
