//! The connection: one an execution environment, opened during init, reopened when it broke.

use std::{error::Error as _, sync::Mutex, time::Duration};

use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};

use crate::{config::Config, error::Error};

/// How long opening a connection may take, TLS and authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Opens the connection and keeps it between invocations.
///
/// An execution environment answers one request at a time, so that one connection is enough and
/// a pool would only add to the server's count.
#[derive(Debug)]
pub struct Connector {
    options: PgConnectOptions,
    idle: Mutex<Option<PgConnection>>,
}

/// A connection that was lent out: give it back with [`Connector::give_back`] once it is known to
/// be fit for the next request, else drop it.
#[derive(Debug)]
pub struct Connection {
    /// The connection itself.
    pub postgres: PgConnection,
    /// Whether an earlier request left it: it may have died since.
    pub reused: bool,
}

impl Connector {
    /// A connector that has not connected yet.
    ///
    /// The session is made here: it can only read, its statements end after the configured time,
    /// and its settings travel with the start of the connection instead of in round trips of
    /// their own.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let statement_timeout = format!("{}ms", config.statement_timeout.as_millis());
        let options = config
            .database
            .application_name("synapse-media-usage")
            .options([
                // Settings of the connection's start win over those of the role and the database.
                ("default_transaction_read_only", "on"),
                ("statement_timeout", statement_timeout.as_str()),
                // A generic plan does not know how narrow a time window is: from the sixth
                // execution on it takes up to ten times as long. And only a custom plan leaves
                // out the conditions of filters that are not set.
                ("plan_cache_mode", "force_custom_plan"),
                // Compiling takes longer than it saves.
                ("jit", "off"),
                // The default is a spinning disk's, and makes the planner shun the index by which
                // most statements are fast.
                ("random_page_cost", "1.1"),
                // Users to be summed up and sorted stay in memory.
                ("work_mem", "64MB"),
            ])
            .disable_statement_logging();
        Self { options, idle: Mutex::new(None) }
    }

    /// The idle connection, or a new one.
    ///
    /// # Errors
    ///
    /// [`Error::DatabaseUnavailable`] if there is none within 4 seconds;
    /// [`Error::DatabaseFailed`] if the server refuses this user or database.
    pub async fn connection(&self) -> Result<Connection, Error> {
        if let Some(postgres) = self.idle().take() {
            return Ok(Connection { postgres, reused: true });
        }
        self.connect().await
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// As [`Connector::connection`].
    pub async fn connect(&self) -> Result<Connection, Error> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.options.connect()).await {
            Ok(Ok(postgres)) => Ok(Connection { postgres, reused: false }),
            Ok(Err(error)) => Err(failure("connecting", &error)),
            Err(_) => Err(Error::DatabaseUnavailable {
                cause: format!("connecting took longer than {} s", CONNECT_TIMEOUT.as_secs()),
            }),
        }
    }

    /// Takes back a connection for the next request.
    pub fn give_back(&self, connection: Connection) {
        *self.idle() = Some(connection.postgres);
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<PgConnection>> {
        // Nothing in here panics while it holds the lock.
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What the caller and the log get of an error of the database or of the way to it, met while
/// `doing` something.
///
/// The log gets the server's SQLSTATE and message, except where the message may quote data, and
/// never its detail or hint, which do.
#[must_use]
pub fn failure(doing: &str, error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(refusal) => {
            let code = refusal.code().unwrap_or_default();
            let cause = if quotes_no_data(&code) {
                format!("database error {code} while {doing}: {}", refusal.message())
            } else {
                format!("database error {code} while {doing}")
            };
            match &*code {
                "57014" => Error::StatementTimeout { cause },
                // Connection exceptions, too many connections, an operator's shutdown, a server
                // that starts or stops.
                code if code.starts_with("08") || code == "53300" || code.starts_with("57P") => {
                    Error::DatabaseUnavailable { cause }
                }
                _ => Error::DatabaseFailed { cause },
            }
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => {
            let mut cause = format!("{error} while {doing}");
            let mut source = error.source().and_then(std::error::Error::source);
            while let Some(inner) = source {
                cause.push_str(": ");
                cause.push_str(&inner.to_string());
                source = inner.source();
            }
            Error::DatabaseUnavailable { cause }
        }
        // sqlx's other errors name columns and types, and never a value.
        _ => Error::DatabaseFailed { cause: format!("{error} while {doing}") },
    }
}

/// Classes of SQLSTATE whose messages name settings, objects and states of the server, but no
/// values of rows or parameters (PostgreSQL, appendix A).
fn quotes_no_data(code: &str) -> bool {
    ["08", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"]
        .iter()
        .any(|class| code.starts_with(class))
}
