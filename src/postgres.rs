//! The connection: one an execution environment, opened during init, reopened when it broke.

use std::{error::Error as _, sync::Mutex, time::Duration};

use sqlx::{ConnectOptions, Executor, PgConnection, Row, postgres::PgConnectOptions};

use crate::{config::Config, error::Error, statement::SMALL};

/// How long opening a connection may take, TLS and authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Opens the connection and keeps it between invocations.
///
/// An execution environment answers one request at a time, so that one connection is enough and
/// a pool would only add to the server's count.
#[derive(Debug)]
pub struct Connector {
    options: PgConnectOptions,
    /// How long a request may take, connecting included.
    patience: Duration,
    idle: Mutex<Option<Connection>>,
}

/// A connection to the database.
#[derive(Debug)]
pub struct Connection {
    /// The connection itself.
    pub session: PgConnection,
    /// Whether there were only few media when it was opened, see [`SMALL`].
    pub small: bool,
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
        Self {
            options,
            // The server gives up a statement by itself. This is for a server that does not, or
            // that is not there any more. template.yaml keeps it below the function's own timeout.
            patience: config.statement_timeout + CONNECT_TIMEOUT,
            idle: Mutex::new(None),
        }
    }

    /// The idle connection, or a new one.
    ///
    /// # Errors
    ///
    /// [`Error::DatabaseUnavailable`] if there is none within 4 seconds;
    /// [`Error::DatabaseFailed`] if the server refuses this user or database.
    pub async fn connection(&self) -> Result<Connection, Error> {
        let idle = self.idle().take();
        match idle {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        }
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// As [`Connector::connection`].
    pub async fn connect(&self) -> Result<Connection, Error> {
        let connect = async {
            let mut session = self.options.connect().await?;
            // Where this fails, the request's own statements will fail too, and say why.
            let small = session.fetch_one(SMALL).await.and_then(|row| row.try_get("small"));
            Ok(Connection { session, small: small.unwrap_or(false) })
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connection) => connection.map_err(|error| failure("connecting", &error)),
            Err(_) => Err(Error::DatabaseUnavailable {
                cause: format!("connecting took longer than {} s", CONNECT_TIMEOUT.as_secs()),
            }),
        }
    }

    /// Takes back a connection that is fit for the next request.
    pub fn give_back(&self, connection: Connection) {
        *self.idle() = Some(connection);
    }

    /// Waits for what a request does with the database, but not for ever.
    ///
    /// # Errors
    ///
    /// [`Error::StatementTimeout`] 4 seconds after the configured time of a statement, or else
    /// what the request ends with.
    pub async fn within_patience<T>(
        &self,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::time::timeout(self.patience, request).await.unwrap_or_else(|_| {
            let cause =
                format!("no answer from the database within {} ms", self.patience.as_millis());
            Err(Error::StatementTimeout { cause })
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
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
                // Connection exceptions, a conflict with replication, too many connections, an
                // operator's shutdown, a server that starts or stops.
                code if ["08", "40", "57P"].iter().any(|class| code.starts_with(class))
                    || code == "53300" =>
                {
                    Error::DatabaseUnavailable { cause }
                }
                _ => Error::DatabaseFailed { cause },
            }
        }
        // A server, or what stands before it, that breaks off in mid-sentence is one that restarts.
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
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
