//! What the tests stand on: a real PostgreSQL, the real binary behind a Lambda Runtime API, the
//! events of every gateway kind, and the recorded cases.

pub mod cases;
pub mod database;
pub mod function;
pub mod gateway;
pub mod proxy;

use std::{future::Future, path::Path, time::Duration};

use synapse_media_usage::service::Now;

/// Runs a future on a runtime like the function's own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The project's folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the project.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// 2026, in ms: after every expiry in the recorded rows that lies in the past, before all others.
pub const NOW_MS: i64 = 1_780_000_000_000;

/// An invocation at [`NOW_MS`] with all of template.yaml's timeout left.
pub const NOW: Now = Now { unix_ms: NOW_MS, time_left: Duration::from_secs(28) };
