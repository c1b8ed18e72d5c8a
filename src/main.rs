//! The Lambda function's process.

use std::{
    convert::Infallible,
    time::{SystemTime, UNIX_EPOCH},
};

use lambda_http::{LambdaEvent, lambda_runtime, service_fn};
use synapse_media_usage::{config::Config, event::Event, log, service::Service};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    log::init();
    let service = Service::new(Config::from_env());
    // Init is the time to connect: the first request finds the connection open.
    service.connect().await;
    let service = &service;
    lambda_runtime::run(service_fn(|event: LambdaEvent<Event>| async {
        Ok::<_, Infallible>(service.answer(event.payload, unix_time_ms()).await)
    }))
    .await
}

/// Unix time in ms.
fn unix_time_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
