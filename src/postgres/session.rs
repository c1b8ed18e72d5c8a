//! A session's settings, and logging in.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::relay::{Relay, relayed};
use crate::error::Error;

/// How long a login waits for one before it that was given up.
const SLOT_TIMEOUT: Duration = Duration::from_millis(100);

/// What is logged where sqlx panicked.
const PANICKED: &str = "what the database server sent made the client panic";

/// The settings of a session, as SQL writes their values: what is searched for names, how long
/// statements may take, and how they are planned. By `marker` a session proves to have them.
pub(super) fn settings(statement_timeout: Duration, marker: &str) -> Vec<(&'static str, String)> {
    vec![
        // Whoever may create something in another schema could otherwise slip an operator or a
        // function of their own into a statement. Left out, pg_temp is searched first.
        ("search_path", "pg_catalog,pg_temp".to_owned()),
        // A policy would silently hide rows: tokens, or media. This makes it an error.
        ("row_security", "off".to_owned()),
        ("statement_timeout", statement_timeout.as_millis().to_string()),
        // A generic plan does not know how narrow a time window is: from the sixth execution on it
        // takes up to ten times as long. And only a custom plan leaves out conditions, joins and sort
        // keys that nothing asks for.
        ("plan_cache_mode", "force_custom_plan".to_owned()),
        // Compiling takes longer than it saves.
        ("jit", "off".to_owned()),
        // The default is a spinning disk's, and makes the planner shun the index by which most
        // statements are fast.
        ("random_page_cost", "1.1".to_owned()),
        // Users to be summed up and sorted stay in memory; in kB.
        ("work_mem", "65536".to_owned()),
        // Only this function makes it, and `sql/session.sql` reads it.
        ("synapse_media_usage.session", marker.to_owned()),
    ]
}

/// Logs in, on a thread of its own and one at a time. sqlx computes the proof of a password in one
/// loop whose length is the server's choice, and panics on some of what a server can send: neither
/// may hold up or end an invocation. When this future is dropped, so is the login, at the latest when
/// it has computed.
pub(super) async fn log_in(
    options: PgConnectOptions,
    authorities: &[u8],
    slots: &Arc<Semaphore>,
) -> Result<(PgConnection, Relay), sqlx::Error> {
    let slot = tokio::time::timeout(SLOT_TIMEOUT, Arc::clone(slots).acquire_owned()).await;
    let busy = "an earlier login is still computing";
    let slot = slot.map_err(|_| sqlx::Error::Protocol(busy.to_owned()))?;
    let (sender, receiver) = oneshot::channel();
    let given_up = CancellationToken::new();
    let guard = given_up.clone().drop_guard();
    let (runtime, authorities) = (Handle::current(), authorities.to_vec());
    let login = given_up.clone().run_until_cancelled_owned(async move {
        let _slot = slot;
        let (options, relay) = relayed(options, &authorities, given_up).await?;
        Ok((options.connect().await?, relay))
    });
    thread::Builder::new().spawn(move || sender.send(runtime.block_on(login)))?;
    // Where sqlx panics, the thread ends without a word.
    let session = receiver.await.ok().flatten();
    let session = session.ok_or_else(|| sqlx::Error::Protocol(PANICKED.to_owned()))?;
    guard.disarm();
    session
}

/// Takes a panic for a broken connection.
pub(super) async fn unwinding<T>(
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let answer = AssertUnwindSafe(answer).catch_unwind().await;
    answer.unwrap_or_else(|_| Err(Error::DatabaseUnavailable(PANICKED.to_owned())))
}

/// What an answer of the database is, unless it does not come in time to be taken for alive.
pub(super) async fn in_time<T>(
    answers_by: Option<(Instant, &str)>,
    answer: impl Future<Output = T>,
) -> Result<T, Error> {
    let Some((answers_by, silent)) = answers_by else { return Ok(answer.await) };
    let answer = tokio::time::timeout_at(answers_by.into(), answer).await;
    answer.map_err(|_| Error::DatabaseUnavailable(silent.to_owned()))
}
