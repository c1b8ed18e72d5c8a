//! The connection: one an execution environment, opened during init, reopened when it broke.
//! [`Connector::ask`] has its whole life.

mod answer;
mod failure;
mod relay;
mod session;
mod tls;

use std::{
    mem::take,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sqlx::{ConnectOptions, PgConnection, Row, postgres::PgConnectOptions};
use tokio::sync::Semaphore;

pub use self::failure::{failure, is_in_no_row};
use self::{
    failure::{SET_POOLER, connecting, is_refused_password},
    relay::Relay,
    session::{in_time, log_in, settings, unwinding},
};
use crate::{
    aws::Secret, config::Database, credentials::Access, error::Error, invocation::Invocation,
    statement::Statement,
};

/// How long opening a connection may take during init, which Lambda ends after 10 s. If a request
/// runs out of time after it has connected for longer, it is no statement that took too long.
const LONG_CONNECT: Duration = Duration::from_secs(3);

/// How long a connection that was idle may take for its first answer, which is a lookup by a unique
/// key. Longer than that, and the other end is taken for gone: while an execution environment is
/// frozen, a connection can end without a word. The time that it was idle says nothing, because a
/// clock may stand still with it.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How much longer than connecting it may take to get a first answer, on the connection that was
/// idle or else on a new one: the server may be there and have no session to spare, or the pooler
/// before it.
const FIRST_ANSWER: Duration = Duration::from_millis(1500);

/// How long cancelling a statement may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long closing the connection may take. Lambda kills the process half a second after SIGTERM
/// (AWS Lambda Developer Guide, "Lambda execution environment lifecycle").
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// Opens the connection and keeps it between invocations.
///
/// An execution environment answers one request at a time, so that one connection is enough and
/// a pool would only add to the server's count.
pub struct Connector {
    database: Database,
    settings: Vec<(&'static str, String)>,
    /// What only this connector's sessions have among their settings.
    marker: String,
    /// How long asking may take, connecting included.
    time_limit: Duration,
    /// A connection that is fit for the next request.
    idle: Mutex<Option<Connection>>,
    /// One login at a time: each has a thread of its own, and computing cannot be broken off.
    logins: Arc<Semaphore>,
}

/// What came of asking.
pub struct Asked<T> {
    /// The answer.
    pub answer: Result<T, Error>,
    /// How long it took, connecting included.
    pub time: Duration,
    /// How often it was asked again.
    pub retries: u32,
    /// Whether less, or the same in more time, may be answered.
    pub was_too_much: bool,
}

/// A connection to the database.
pub struct Connection {
    /// The connection itself.
    pub session: PgConnection,
    /// What its messages pass through.
    relay: Relay,
    /// The schema of Synapse's tables.
    pub schema: String,
    /// Whether a prepared statement is there when it is asked for again. Through a pooler the next
    /// transaction has another session.
    pub keeps_statements: bool,
    /// Whether one pass is the quickest way to any page, see `sql/session.sql`.
    pub one_pass: bool,
    /// The process id of the backend at the other end; 0 through a pooler that has lent no session.
    pid: i32,
    /// How long the request has connected.
    connecting: Duration,
    /// By when the other end has to answer, and what the log says if it does not; `None` once it has.
    answers_by: Option<(Instant, &'static str)>,
    /// What is asked together with the first beginning.
    first: Vec<Statement>,
    /// Whether no index can be relied on.
    index_scans_off: bool,
}

impl Connector {
    /// A connector that has not connected yet.
    pub fn new(database: Database, statement_timeout: Duration) -> Self {
        let marker = format!("s{:016x}", rand::random::<u64>());
        Self {
            settings: settings(statement_timeout, &marker),
            marker,
            // The server gives up a statement by itself. This is for a server that does not, or
            // that is not there any more. template.yaml keeps it below the function's own timeout.
            time_limit: statement_timeout + database.connect_timeout + FIRST_ANSWER,
            idle: Mutex::new(None),
            logins: Arc::new(Semaphore::new(1)),
            database,
        }
    }

    /// Asks `question` on the idle connection or on a new one, within the time that the invocation
    /// has. A connection that breaks, and a replica that cancels what stands in the way of
    /// replication, is asked once more on a new connection, because all that is asked is a question.
    /// The connector cancels on the server what it gives up.
    ///
    /// The question finds a transaction that only reads, with the session's settings: through a
    /// pooler one of its own, else that of each statement. The answer can also be an error of
    /// [`Connector::connect`], and [`Error::StatementTimeout`].
    pub async fn ask<T>(
        &self,
        invocation: &Invocation,
        question: impl AsyncFn(&mut Connection) -> Result<T, Error>,
    ) -> Asked<T> {
        let start = Instant::now();
        let time_limit = self.time_limit.min(invocation.time_limit());
        let (mut held, mut retries) = (None, 0);
        let ask = async {
            let first_answer = self.database.connect_timeout + FIRST_ANSWER;
            let connect = |since| self.connect(invocation.unix_ms, since + first_answer);
            let mut connection = held.insert(match self.take_idle() {
                Some(connection) => connection,
                None => connect(start).await?,
            });
            let mut answer = unwinding(self.transact(connection, &question)).await;
            if matches!(answer, Err(Error::DatabaseUnavailable(_))) {
                retries += 1;
                // Whoever has answered may take as long for the next first answer.
                let has_answered = connection.answers_by.is_none();
                let since = if has_answered { Instant::now() } else { start };
                let connecting = connection.connecting;
                // Given up before the next is opened. The server hears of it as soon as the relay does.
                held = None;
                connection = held.insert(connect(since).await?);
                connection.connecting += connecting;
                answer = unwinding(self.transact(connection, &question)).await;
            }
            if let Err(Error::DatabaseFailed(cause)) = &mut answer {
                self.explain(connection, cause).await;
            }
            answer
        };
        let answer = tokio::time::timeout(time_limit, ask).await;
        let ran_out = answer.is_err();
        let answer = if let Ok(answer) = answer {
            // After a failure the connection is dropped, not examined.
            let is_fit = !answer.as_ref().is_err_and(Error::poisons_connection);
            *self.idle.lock() = held.filter(|_| is_fit);
            answer
        } else {
            // Through a pooler there is no process before a session was lent: nothing is under way.
            if let Some(Connection { pid: pid @ 1.., .. }) = held {
                self.cancel(pid, invocation).await;
            }
            let cause = format!("no answer from the database within {} ms", time_limit.as_millis());
            Err(match held.map(|connection| connection.connecting) {
                Some(time) if time <= LONG_CONNECT => Error::StatementTimeout(cause),
                // Another try may find a database that has woken up.
                time => {
                    let ms = time.map(|it| format!(", {} ms", it.as_millis())).unwrap_or_default();
                    Error::DatabaseUnavailable(format!("{cause}: connecting took too long{ms}"))
                }
            })
        };
        let was_too_much =
            ran_out || matches!(answer, Err(Error::StatementTimeout(_) | Error::DatabaseFailed(_)));
        Asked { answer, time: start.elapsed(), retries, was_too_much }
    }

    /// Opens a connection ahead of the first request, at the Unix time `unix_ms`, in ms.
    ///
    /// # Errors
    ///
    /// As [`Connector::connect`], after 3 seconds at most.
    pub async fn open(&self, unix_ms: i64) -> Result<(), Error> {
        *self.idle.lock() = Some(self.connect(unix_ms, Instant::now() + LONG_CONNECT).await?);
        Ok(())
    }

    /// Finds out, at the Unix time `unix_ms`, in ms, whether there is something to log in with. Whether
    /// a new secret opens the door only a login tells. Until one has, the connection that there is stays.
    ///
    /// # Errors
    ///
    /// The `Database` errors of [`Error`], after 2.5 s at most, and those of [`Connector::connect`].
    pub async fn check_credentials(&self, unix_ms: i64) -> Result<(), Error> {
        let is_new = self.database.credentials.check(&self.database.url.0, unix_ms).await?;
        if is_new { self.open(unix_ms).await } else { Ok(()) }
    }

    /// The idle connection, if there is one. It has a second for its first answer.
    fn take_idle(&self) -> Option<Connection> {
        let connection = self.idle.lock().take()?;
        let silent = "an idle connection gave no sign of life within 1 s";
        let answers_by = Some((Instant::now() + SIGN_OF_LIFE, silent));
        Some(Connection { answers_by, connecting: Duration::ZERO, ..connection })
    }

    /// A new connection, at the Unix time `unix_ms`, in ms, which has to answer by a time.
    ///
    /// # Errors
    ///
    /// [`Error::DatabaseUnavailable`] if there is none by then; [`Error::DatabaseFailed`] if the server
    /// refuses this user or database, or the settings did not arrive.
    pub async fn connect(&self, unix_ms: i64, answers_by: Instant) -> Result<Connection, Error> {
        let start = Instant::now();
        let by = answers_by.min(start + self.database.connect_timeout);
        let connection = tokio::time::timeout_at(by.into(), unwinding(self.log_in(unix_ms))).await;
        let late = |_| format!("connecting to {} took too long", self.address());
        let connection = connection.map_err(late).map_err(Error::DatabaseUnavailable).flatten();
        if let (Err(_), Some(secret)) = (&connection, self.database.credentials.secret()) {
            // The next one may name another place, or a role that can be logged in.
            secret.forget();
        }
        let silent = "a new connection gave no first answer; is the pooler out of sessions?";
        let answers_by = Some((answers_by, silent));
        Ok(Connection { answers_by, connecting: start.elapsed(), ..connection? })
    }

    /// Where the database is, for the log.
    fn address(&self) -> String {
        let latest =
            self.database.credentials.secret().and_then(Secret::latest).unwrap_or_default();
        let options = self.database.options(latest).unwrap_or_else(|_| self.database.url.0.clone());
        let socket = options.get_socket().map(|it| it.display().to_string());
        socket.unwrap_or_else(|| format!("{}:{}", options.get_host(), options.get_port()))
    }

    async fn log_in(&self, unix_ms: i64) -> Result<Connection, Error> {
        let access = self.database.credentials.access(&self.database.url.0, unix_ms).await?;
        let authorities = &self.database.authorities.0;
        let mut session = log_in(self.options(access)?, authorities, &self.logins).await;
        if session.as_ref().is_err_and(is_refused_password)
            && let Some(access) = self.database.credentials.renewed().await?
        {
            session = log_in(self.options(access)?, authorities, &self.logins).await;
        }
        let connecting = |error: sqlx::Error| connecting(&self.address(), &error);
        let (session, relay) = session.map_err(connecting)?;
        let mut connection = Connection {
            session,
            relay,
            schema: self.database.schema.clone(),
            keeps_statements: !self.database.pooler,
            one_pass: false,
            pid: 0,
            connecting: Duration::ZERO,
            answers_by: None,
            first: vec![Statement::MISSING_INDEXES],
            index_scans_off: false,
        };
        // The column is there from PostgreSQL 15 on.
        if connection.session.server_version_num().is_some_and(|version| version >= 150_000) {
            connection.first.push(Statement::COLLATION);
        }
        if !self.database.pooler {
            connection.first.insert(0, Statement::CHECK_CLIENT);
            self.begin(&mut connection, connecting).await?;
        }
        Ok(connection)
    }

    /// Where to connect and as whom, with the settings of the session.
    fn options(&self, access: Access) -> Result<PgConnectOptions, Error> {
        let options = self.database.options(access).map_err(Error::DatabaseFailed)?;
        let options = options.disable_statement_logging();
        Ok(if self.database.pooler {
            // A pooler takes no settings that it does not know. sqlx needs this one for floats.
            options.extra_float_digits(None)
        } else {
            // They travel with the start of the connection, instead of in a round trip of their own,
            // and win over those of the role and the database.
            options
                .options(self.settings.iter().map(|(name, value)| (name, value)))
                .options([("default_transaction_read_only", "on")])
                .options([("default_transaction_isolation", "repeatable\\ read")])
        })
    }

    /// Asks a question, through a pooler in a transaction that has the settings.
    async fn transact<T>(
        &self,
        connection: &mut Connection,
        question: &impl AsyncFn(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.database.pooler {
            self.begin(connection, |error| failure("beginning a transaction", &error)).await?;
        }
        let answer = question(connection).await;
        // After a failure the connection is given up, which ends everything.
        if !answer.as_ref().is_err_and(Error::poisons_connection) {
            self.end(connection).await?;
        }
        answer
    }

    /// Begins a session, or through a pooler a transaction, and reads what `sql/session.sql` says of
    /// it. It is nobody else's only if the settings arrived: prepared statements of two clients in one
    /// session answer each other's requests.
    async fn begin(
        &self,
        connection: &mut Connection,
        failed: impl Fn(sqlx::Error) -> Error,
    ) -> Result<(), Error> {
        let mut begin = Vec::new();
        if self.database.pooler {
            // The isolation level cannot be a setting here, because `SET LOCAL` comes too late for it.
            // PostgreSQL drops these settings with the transaction.
            begin.push("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned());
            let set = |(name, value): &_| format!("SET LOCAL {name} = {value}");
            begin.extend(self.settings.iter().map(set));
        }
        let texts = [Statement::SESSION].into_iter().chain(take(&mut connection.first));
        begin.extend(texts.map(|it| it.in_schema(&connection.schema)));
        // All in one round trip.
        let begin = begin.join("; ");
        let rows = sqlx::raw_sql(&begin).fetch_all(&mut connection.session);
        let rows = in_time(connection.answers_by, rows).await?.map_err(failed)?;
        connection.answers_by = None;
        let column = |error: sqlx::Error| failure("reading the session", &error);
        let session = rows.first().ok_or(sqlx::Error::RowNotFound).map_err(column)?;
        let marker: Option<String> = session.try_get("marker").map_err(column)?;
        if marker.as_ref() != Some(&self.marker) {
            let cause = "the session does not have the settings that were sent";
            return Err(Error::DatabaseFailed(format!("{cause}; {SET_POOLER}")));
        }
        connection.pid = session.try_get("pid").map_err(column)?;
        connection.one_pass = session.try_get("one_pass").map_err(column)?;
        let text = |name| rows.iter().find_map(|row| row.try_get::<String, _>(name).ok());
        if let Some(missing_indexes) = text("missing_indexes") {
            tracing::warn!(missing_indexes, "slow: no index begins with these columns");
        }
        if let Some(built_by) = text("built_by") {
            let compared_by = text("compared_by");
            let what = "slow: the collation library changed below the indexes, REINDEX them";
            tracing::warn!(built_by, compared_by, "{what}");
            connection.index_scans_off = true;
        }
        if connection.index_scans_off {
            // A walk would sort the whole table at each step.
            connection.one_pass = true;
            // Of the transaction, or of a session that is the function's alone.
            let set = if self.database.pooler { "SET LOCAL" } else { "SET" };
            let scans = ["enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"];
            let off = scans.map(|name| format!("{set} {name} = off;")).concat();
            sqlx::raw_sql(&off).execute(&mut connection.session).await.map_err(column)?;
        }
        Ok(())
    }

    /// Appends what is missing to the cause of a failure, because PostgreSQL's own message names no
    /// column.
    async fn explain(&self, connection: &mut Connection, cause: &mut String) {
        let missing = async {
            // The transaction has failed. Nothing is asked without the settings.
            self.end(connection).await?;
            let missing = async |it: &mut Connection| it.missing_grants(cause).await;
            self.transact(connection, &missing).await
        };
        if let Ok(Ok(Some(missing))) = tokio::time::timeout(SIGN_OF_LIFE, unwinding(missing)).await
        {
            *cause = format!("{cause}; {missing}");
        }
    }

    async fn end(&self, connection: &mut Connection) -> Result<(), Error> {
        if self.database.pooler {
            connection.pid = 0;
            let end = sqlx::raw_sql("COMMIT").execute(&mut connection.session).await;
            end.map_err(|error| failure("ending a transaction", &error))?;
        }
        Ok(())
    }

    /// Cancels the statement under way, on a new connection that is kept in place of this one. A
    /// failure is only logged. The caller already gets a 504, and `statement_timeout` ends the
    /// statement.
    async fn cancel(&self, pid: i32, invocation: &Invocation) {
        let time_limit = CANCEL_TIMEOUT.min(invocation.last_time_limit());
        let cancel = async {
            let mut other = self.connect(invocation.unix_ms, Instant::now() + time_limit).await?;
            let cancel = async |other: &mut Connection| {
                let cancel = Statement::CANCEL.in_schema(&other.schema);
                other.row("cancelling a statement", sqlx::query(&cancel).bind(pid)).await
            };
            let _: (bool,) = self.transact(&mut other, &cancel).await?;
            *self.idle.lock() = Some(other);
            Ok(())
        };
        let cause = match tokio::time::timeout(time_limit, unwinding(cancel)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.cause().unwrap_or_default().into_owned(),
            Err(_) => format!("it took longer than {} ms", time_limit.as_millis()),
        };
        tracing::warn!(%cause, "a statement could not be cancelled");
    }

    /// Closes the idle connection politely.
    pub async fn close(&self) {
        let Some(Connection { session, relay, .. }) = self.take_idle() else { return };
        let end = async {
            let _ = sqlx::Connection::close(session).await;
            // The server has yet to hear of it.
            let _ = relay.await;
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, end).await;
    }
}
