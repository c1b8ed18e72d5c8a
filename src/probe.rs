//! The probe: whether the next request would be answered, found out without an admin's token.
//!
//! It connects as a request does and keeps the connection for the next one. It reads the secrets,
//! asks the database's catalog whether all is there that the statements need, and asks MAS and the
//! homeserver about a token that is none. It reads no row of any user's.

use serde_json::{Value, json};
use tracing::Level;

use crate::{
    auth::Authenticator,
    error::Error,
    invocation::Invocation,
    log::{ms, write_line},
    postgres::{Connection, Connector},
    statement::Statement,
};

/// What a probe has found.
pub struct Health {
    /// Why a request would fail, if it would.
    cause: Option<String>,
    /// As in `sql/missing_indexes.sql`, empty if there are none; `None` if the database gave no answer.
    missing_indexes: Option<String>,
    /// How far a standby is behind, in ms; `None` on a primary, and where that is not known.
    replication_lag_ms: Option<f64>,
}

impl Health {
    /// Asks all whom a request can ask.
    pub async fn check(
        connector: &Connector,
        authenticator: &Authenticator,
        at: &Invocation,
    ) -> Self {
        let question = async |it: &mut Connection| ask(it, authenticator.tables()).await;
        let database = async {
            connector.check_credentials(at.unix_ms).await?;
            connector.ask(at, question).await.answer
        };
        let check = Box::pin(futures_util::future::join(database, authenticator.check(at.unix_ms)));
        let found = tokio::time::timeout(at.last_time_limit(), check).await;
        let ran_out = Error::StatementTimeout("the invocation ran out of time".to_owned());
        let Ok((database, servers)) = found else { return Self::failed(&ran_out) };
        let found = database.unwrap_or_else(|error| Self::failed(&error));
        let of_servers = servers.into_iter().filter_map(|it| Self::failed(&it.err()?).cause);
        let causes: Vec<_> = found.cause.into_iter().chain(of_servers).collect();
        Self { cause: (!causes.is_empty()).then(|| causes.join("; ")), ..found }
    }

    /// Of a request only this is known, that it would fail.
    pub fn failed(error: &Error) -> Self {
        let cause = error.cause().map(Into::into);
        Self { cause, missing_indexes: None, replication_lag_ms: None }
    }

    /// The invocation's response.
    pub fn answer(&self) -> Value {
        match &self.cause {
            None => json!({ "healthy": true }),
            Some(cause) => json!({ "healthy": false, "cause": cause }),
        }
    }

    /// Writes the probe's line into the log. It counts in none of the requests' metrics.
    pub fn write(&self, request_id: &str, at: &Invocation) {
        let (level, message, healthy) = match self.cause {
            None => (Level::INFO, "the probe found nothing wrong", 1.0),
            Some(_) => (Level::ERROR, "the probe failed", 0.0),
        };
        let fields = [
            ("cause", json!(self.cause)),
            ("missing_indexes", json!(self.missing_indexes)),
            ("replication_lag_ms", json!(self.replication_lag_ms)),
            ("total_ms", ms(at.began.elapsed()).into()),
        ];
        let count = |indexes: &String| indexes.matches(" (").fold(0.0, |count, _| count + 1.0);
        let metrics = [
            ("Healthy", "Count", Some(healthy)),
            ("MissingIndexes", "Count", self.missing_indexes.as_ref().map(count)),
            ("ReplicationLag", "Milliseconds", self.replication_lag_ms),
        ];
        write_line(at.unix_ms, request_id, level, message, fields, &metrics, &[]);
    }
}

/// What the database says; `tables` as [`Connection::missing_grants`] takes them.
async fn ask(connection: &mut Connection, tables: &str) -> Result<Health, Error> {
    let indexes = Statement::MISSING_INDEXES.in_schema(&connection.schema);
    // First, because this is what an idle connection has to answer in time.
    let (indexes,) = connection.row("looking for missing indexes", sqlx::query(&indexes)).await?;
    Ok(Health {
        cause: connection.missing_grants(tables).await?,
        missing_indexes: Some(Option::unwrap_or_default(indexes)),
        // Last, because nothing can be asked in a transaction in which this has failed.
        replication_lag_ms: match replication_lag_ms(connection).await {
            // The server has not refused it, so that no answer before it is sure either.
            Err(Error::DatabaseUnavailable(cause)) if !cause.starts_with("database error") => {
                return Err(Error::DatabaseUnavailable(cause));
            }
            lag => lag.unwrap_or_default(),
        },
    })
}

async fn replication_lag_ms(connection: &mut Connection) -> Result<Option<f64>, Error> {
    let doing = "asking for the replication lag";
    let text = Statement::REPLICATION_LAG.in_schema(&connection.schema);
    let (is_aurora, mut lag) = connection.row(doing, sqlx::query(&text)).await?;
    if is_aurora {
        let text = Statement::AURORA_LAG.in_schema(&connection.schema);
        (lag,) = connection.row(doing, sqlx::query(&text)).await?;
    }
    Ok(lag)
}
