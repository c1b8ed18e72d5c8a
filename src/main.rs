//! The Lambda function's process.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lambda_runtime::{LambdaEvent, service_fn};
use synapse_media_usage::{
    config::Config,
    event::Event,
    log,
    service::{Now, Service},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    log::init();
    // It lives as long as the process.
    let service: &Service = Box::leak(Box::new(Service::new(Config::from_env())));
    // Init is the time to connect: the first request finds the connection open.
    service.connect(unix_time_ms()).await;
    lambda_runtime::spawn_graceful_shutdown_handler(|| service.close()).await;
    lambda_runtime::run(service_fn(|event: LambdaEvent<Event>| async move {
        let unix_ms = unix_time_ms();
        let time_left = event.context.deadline.saturating_sub(unix_ms.unsigned_abs());
        let now = Now { unix_ms, time_left: Duration::from_millis(time_left) };
        Ok::<_, Infallible>(service.answer(event.payload, &event.context.request_id, now).await)
    }))
    .await
}

/// Unix time in ms.
fn unix_time_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
