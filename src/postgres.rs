//! The connection: one an execution environment, opened during init, reopened when it broke.

use std::{
    error::Error as _,
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, UNIX_EPOCH},
};

use rustls::CertificateError;
use sqlx::{
    ConnectOptions, Connection as _, PgConnection, Postgres, Row,
    postgres::{PgArguments, PgConnectOptions, PgRow},
    query::Query,
};

use crate::{
    aws::Failure,
    config::{Access, Database},
    credentials::Credentials,
    error::{Error, chain},
    statement::Statements,
};

/// How long opening a connection may take: name resolution, secret, TLS and authentication.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection that was idle may take for its first answer, which is a lookup by a unique
/// key. Longer than that, and the other end is taken for gone: while an execution environment is
/// frozen, a connection can end without a word. The time that it was idle says nothing, because a
/// clock may stand still with it.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How long it may take to get a first answer, on the connection that was idle or else on a new
/// one: the server may be there and have no session to spare, or the pooler before it.
const FIRST_ANSWER: Duration = Duration::from_millis(4500);

/// How long before the end of an invocation a request is given up, so that its statement can be
/// cancelled and the answer still arrives.
const MARGIN: Duration = Duration::from_millis(1500);

/// How long cancelling a statement may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long closing the connection may take. Lambda kills the process half a second after SIGTERM
/// (AWS Lambda Developer Guide, "Lambda execution environment lifecycle").
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// Opens the connection and keeps it between invocations.
///
/// An execution environment answers one request at a time, so that one connection is enough and
/// a pool would only add to the server's count.
#[derive(Debug)]
pub struct Connector {
    database: Database,
    credentials: Credentials,
    settings: Vec<(&'static str, String)>,
    statements: &'static Statements,
    /// How long a request may take, connecting included.
    patience: Duration,
    idle: Mutex<Option<Connection>>,
}

/// A connection to the database.
#[derive(Debug)]
pub struct Connection {
    /// The connection itself.
    pub session: PgConnection,
    /// Whether one pass answers everything, see [`Statements::session`].
    pub one_pass: bool,
    /// What can be sent.
    pub statements: &'static Statements,
    /// The process id of the backend at the other end.
    pid: i32,
    /// By when the other end has to answer; `None` once it has.
    answers_by: Option<Instant>,
    /// What is said if it does not.
    silence: &'static str,
    /// Through a pooler, what begins a transaction.
    begin: Option<String>,
}

impl Connector {
    /// A connector that has not connected yet.
    #[must_use]
    pub fn new(database: Database, statement_timeout: Duration) -> Self {
        Self {
            credentials: Credentials::new(&database.login),
            database,
            settings: settings(statement_timeout),
            statements: Box::leak(Box::new(Statements::in_schema("public"))),
            // The server gives up a statement by itself. This is for a server that does not, or
            // that is not there any more. template.yaml keeps it below the function's own timeout.
            patience: statement_timeout + FIRST_ANSWER,
            idle: Mutex::new(None),
        }
    }

    /// By when there has to be a first answer to what is asked from now on.
    #[must_use]
    pub fn answers_by() -> Instant {
        Instant::now() + FIRST_ANSWER
    }

    /// The idle connection, if there is one. It has a second for its first answer.
    pub fn idle(&self) -> Option<Connection> {
        let connection = lock(&self.idle).take()?;
        Some(Connection {
            answers_by: Some(Instant::now() + SIGN_OF_LIFE),
            silence: "an idle connection gave no sign of life within 1 s",
            ..connection
        })
    }

    /// A new connection, at the Unix time `now_ms`, in ms, which has to answer by a time.
    ///
    /// # Errors
    ///
    /// [`Error::DatabaseUnavailable`] if there is none within 3 seconds or by that time;
    /// [`Error::DatabaseFailed`] if the server refuses this user or database.
    pub async fn connect(&self, now_ms: i64, answers_by: Instant) -> Result<Connection, Error> {
        let by = answers_by.min(Instant::now() + CONNECT_TIMEOUT);
        let connection = tokio::time::timeout_at(by.into(), self.log_in(now_ms)).await;
        let connection = connection.unwrap_or_else(|_| {
            let cause = format!("connecting to {} took too long", self.place());
            // The next secret may name another place.
            self.credentials.forget();
            Err(Error::DatabaseUnavailable { cause })
        })?;
        Ok(Connection { answers_by: Some(answers_by), ..connection })
    }

    /// Where the database is, for the log.
    fn place(&self) -> String {
        let options = self.credentials.latest().and_then(|it| self.database.options(it).ok());
        let options = options.as_ref().unwrap_or(self.database.url());
        match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        }
    }

    async fn log_in(&self, now_ms: i64) -> Result<Connection, Error> {
        let now = UNIX_EPOCH + Duration::from_millis(now_ms.try_into().unwrap_or(0));
        let access = self.credentials.access(self.database.url(), now).await?;
        let connection = match self.open(&self.options(access)?).await {
            Err(error) if is_refused_password(&error) => match self.credentials.renewed().await? {
                Some(access) => self.open(&self.options(access)?).await,
                None => Err(error),
            },
            connection => connection,
        };
        connection.map_err(|error| {
            let error = connecting(&self.place(), &error);
            // The next secret may name another place.
            self.credentials.forget();
            error
        })
    }

    /// Where to connect and as whom, with the settings of the session.
    fn options(&self, access: Access) -> Result<PgConnectOptions, Error> {
        let options =
            self.database.options(access).map_err(|cause| Error::DatabaseFailed { cause })?;
        let options = options.disable_statement_logging();
        Ok(if self.database.pooler {
            // A pooler takes no settings that it does not know. sqlx needs this one for floats.
            options.extra_float_digits(None)
        } else {
            // They travel with the start of the connection, instead of in a round trip of their own,
            // and win over those of the role and the database.
            options.options(self.settings.iter().map(|(name, value)| (name, value)))
        })
    }

    async fn open(&self, options: &PgConnectOptions) -> Result<Connection, sqlx::Error> {
        let mut connection = Connection {
            session: options.connect().await?,
            one_pass: false,
            statements: self.statements,
            pid: 0,
            answers_by: None,
            silence: "a new connection gave no first answer; is the pooler out of sessions?",
            begin: None,
        };
        if self.database.pooler {
            // What follows holds until the end of the transaction, and is gone with it.
            let mut begin = "BEGIN READ ONLY".to_owned();
            for (name, value) in &self.settings {
                let value = value.replace(',', "', '");
                let _ = write!(begin, "; SET LOCAL {name} = '{value}'");
            }
            connection.begin = Some(format!("{begin}; {}", self.statements.session));
        } else {
            // Both in one round trip; the first one's row is the one that counts.
            let session = format!("{}; {}", self.statements.session, self.statements.check_client);
            let session = sqlx::raw_sql(&session).fetch_one(&mut connection.session).await?;
            connection.know(&session)?;
        }
        Ok(connection)
    }

    /// Takes back a connection that is fit for the next request.
    pub fn give_back(&self, connection: Connection) {
        *lock(&self.idle) = Some(connection);
    }

    /// How long a request may take that has `time_left` until the end of its invocation.
    #[must_use]
    pub fn patience(&self, time_left: Duration) -> Duration {
        self.patience.min(usable(time_left))
    }

    /// Cancels the statement under way, on a new connection that is kept in place of this one.
    /// That this failed is nothing to tell a caller; the server's own limit ends the statement then.
    pub async fn cancel(&self, connection: Connection, now_ms: i64) {
        if connection.pid == 0 {
            // Through a pooler, before a session was lent: nothing is under way.
            return;
        }
        let cancel = async {
            let mut other = self.connect(now_ms, Instant::now() + CANCEL_TIMEOUT).await?;
            sqlx::query(&self.statements.cancel)
                .persistent(false)
                .bind(connection.pid)
                .execute(&mut other.session)
                .await
                .map_err(|error| failure("cancelling a statement", &error))?;
            self.give_back(other);
            Ok::<_, Error>(())
        };
        let cause = match tokio::time::timeout(CANCEL_TIMEOUT, cancel).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.cause().unwrap_or_default().into_owned(),
            Err(_) => format!("it took longer than {} s", CANCEL_TIMEOUT.as_secs()),
        };
        tracing::warn!(%cause, "a statement could not be cancelled");
    }

    /// Closes the idle connection politely.
    pub async fn close(&self) {
        let idle = lock(&self.idle).take();
        if let Some(connection) = idle {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.session.close()).await;
        }
    }

    /// Adds to a failure what the role lacks, or the database, if it is anything: the server's own
    /// message names no column.
    pub async fn explain(&self, connection: &mut Connection, error: Error) -> Error {
        let Error::DatabaseFailed { mut cause } = error else { return error };
        // Through a pooler, out of the transaction that failed.
        let _ = connection.end().await;
        let missing = sqlx::query(&self.statements.missing_grants).persistent(false).bind(&cause);
        for row in missing.fetch_all(&mut connection.session).await.unwrap_or_default() {
            let missing: String = row.try_get("missing").unwrap_or_default();
            let _ = write!(cause, "; {missing}");
        }
        Error::DatabaseFailed { cause }
    }
}

impl Connection {
    /// Begins what one request asks: through a pooler a transaction, else nothing.
    ///
    /// # Errors
    ///
    /// As [`failure`]; [`Error::DatabaseUnavailable`] if a connection that was idle gives no answer
    /// within a second.
    pub async fn begin(&mut self) -> Result<(), Error> {
        let Some(begin) = &self.begin else { return Ok(()) };
        let session = sqlx::raw_sql(begin).fetch_one(&mut self.session);
        let session = in_time(self.answers_by, self.silence, session)
            .await?
            .map_err(|error| failure("beginning a transaction", &error))?;
        self.answers_by = None;
        self.know(&session).map_err(|error| failure("reading the session", &error))
    }

    /// Ends what [`Connection::begin`] began.
    ///
    /// # Errors
    ///
    /// As [`failure`].
    pub async fn end(&mut self) -> Result<(), Error> {
        if self.begin.is_some() {
            self.pid = 0;
            let end = sqlx::raw_sql("COMMIT").execute(&mut self.session).await;
            end.map_err(|error| failure("ending a transaction", &error))?;
        }
        Ok(())
    }

    /// The row that a statement finds, or `None`, met while `doing` something.
    ///
    /// # Errors
    ///
    /// As [`Connection::begin`].
    pub async fn row(
        &mut self,
        doing: &str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, Error> {
        let row = query.persistent(self.keeps_statements()).fetch_optional(&mut self.session);
        let row = in_time(self.answers_by, self.silence, row)
            .await?
            .map_err(|error| failure(doing, &error))?;
        self.answers_by = None;
        Ok(row)
    }

    /// Whether the other end has answered.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.answers_by.is_none()
    }

    /// Whether a prepared statement is there when it is asked for again. Through a pooler the next
    /// transaction has another session.
    #[must_use]
    pub fn keeps_statements(&self) -> bool {
        self.begin.is_none()
    }

    fn know(&mut self, session: &PgRow) -> Result<(), sqlx::Error> {
        self.pid = session.try_get("pid")?;
        self.one_pass = session.try_get("one_pass")?;
        Ok(())
    }
}

/// How much of the time that is left of an invocation a request may take.
#[must_use]
pub fn usable(time_left: Duration) -> Duration {
    time_left.saturating_sub(MARGIN.min(time_left / 2))
}

/// The settings of a session: it can only read, its statements end after the configured time.
fn settings(statement_timeout: Duration) -> Vec<(&'static str, String)> {
    vec![
        ("default_transaction_read_only", "on".to_owned()),
        // What stands in another schema is nobody's business; pg_temp comes first unless it is named.
        ("search_path", "pg_catalog,pg_temp".to_owned()),
        ("statement_timeout", format!("{}ms", statement_timeout.as_millis())),
        // A generic plan does not know how narrow a time window is: from the sixth execution on it
        // takes up to ten times as long. And only a custom plan leaves out the conditions of filters
        // that are not set.
        ("plan_cache_mode", "force_custom_plan".to_owned()),
        // Compiling takes longer than it saves.
        ("jit", "off".to_owned()),
        // The default is a spinning disk's, and makes the planner shun the index by which most
        // statements are fast.
        ("random_page_cost", "1.1".to_owned()),
        // Users to be summed up and sorted stay in memory.
        ("work_mem", "64MB".to_owned()),
    ]
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unavailable(cause) => Self::DatabaseUnavailable { cause },
            Failure::Refused(cause) => Self::DatabaseFailed { cause },
        }
    }
}

/// [`failure`] for what happens before there is a session: a pooler has codes of its own for what
/// its clients do wrong, and no message quotes rows there.
fn connecting(place: &str, error: &sqlx::Error) -> Error {
    /// What pgbouncer says with 08P01 and RDS Proxy with 0A000, and what to do.
    const REFUSALS: [(&str, &str); 5] = [
        ("startup parameter", "if this is a pooler, set DATABASE_POOLER=true"),
        ("options", "if this is a pooler, set DATABASE_POOLER=true"),
        ("authentication failed", "the pooler refuses the password"),
        ("no such database", "the pooler knows no such database"),
        ("no such user", "the pooler knows no such user"),
    ];
    let doing = format!("connecting to {place}");
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    if let sqlx::Error::Database(refusal) = error
        && let Some(code @ ("08P01" | "0A000")) = code.as_deref()
        && let Some((_, remedy)) =
            REFUSALS.iter().find(|(text, _)| refusal.message().contains(text))
    {
        let message = refusal.message();
        let cause = format!("database error {code} while {doing}: {message}; {remedy}");
        return Error::DatabaseFailed { cause };
    }
    failure(&doing, error)
}

/// Whether the server, or a pooler in its own way, refuses a role's password.
fn is_refused_password(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("28P01" | "28000" | "08P01"))
}

/// What an answer of the database is, unless it does not come in time to be taken for alive.
async fn in_time<T>(
    answers_by: Option<Instant>,
    silence: &str,
    answer: impl Future<Output = T>,
) -> Result<T, Error> {
    let Some(answers_by) = answers_by else { return Ok(answer.await) };
    tokio::time::timeout_at(answers_by.into(), answer)
        .await
        .map_err(|_| Error::DatabaseUnavailable { cause: silence.to_owned() })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics while it holds a lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
                // query_canceled and transaction_timeout
                "57014" | "25P04" => Error::StatementTimeout { cause },
                code if is_passing(code) => Error::DatabaseUnavailable { cause },
                _ => Error::DatabaseFailed { cause },
            }
        }
        // A server, or what stands before it, that breaks off in mid-sentence is one that restarts.
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
            let mut cause = format!("{error} while {doing}");
            if let Some(inner) = error.source().and_then(std::error::Error::source) {
                let _ = write!(cause, ": {}", chain(inner));
            }
            if let Some(remedy) = tls_remedy(error) {
                let _ = write!(cause, "; {remedy}");
            }
            Error::DatabaseUnavailable { cause }
        }
        // sqlx's other errors name columns and types, and never a value.
        _ => Error::DatabaseFailed { cause: format!("{error} while {doing}") },
    }
}

/// Classes and codes of SQLSTATE that pass by themselves: connection exceptions, a conflict with
/// replication, too few resources or connections, an operator's shutdown, a server that starts or
/// stops, a session that idled for too long, and a lock that was not to be had.
fn is_passing(code: &str) -> bool {
    matches!(code, "25P03" | "55P03")
        || ["08", "40", "53", "57P"].iter().any(|class| code.starts_with(class))
}

/// Classes of SQLSTATE whose messages name settings, objects and states of the server, but no
/// values of rows or parameters (PostgreSQL, appendix A).
fn quotes_no_data(code: &str) -> bool {
    ["08", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"]
        .iter()
        .any(|class| code.starts_with(class))
}

/// What to do about a server whose certificate was refused, or that has none.
fn tls_remedy(error: &sqlx::Error) -> Option<&'static str> {
    let source = match error {
        sqlx::Error::Io(error) => error.get_ref()? as &(dyn std::error::Error + 'static),
        sqlx::Error::Tls(error) => &**error,
        _ => return None,
    };
    let Some(error) = source.downcast_ref::<rustls::Error>() else {
        // sqlx's own words, when the server declines to speak TLS.
        return source.to_string().contains("does not support TLS").then_some(
            "turn TLS on in the server; sslmode=disable in DATABASE_URL is for networks that need none",
        );
    };
    let rustls::Error::InvalidCertificate(error) = error else { return None };
    Some(match error {
        CertificateError::UnknownIssuer => {
            "the server's certificate is of an authority that is not trusted: name it in DATABASE_CA_FILE; \
             for RDS, AWS_REGION must be the database's, \
             and not every region's authorities are built in"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "DATABASE_URL must name the server as its certificate does; for RDS, by its endpoint"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "renew the server's certificate; for RDS, choose a current certificate authority"
        }
        _ => "the server needs a certificate that an authority has issued for it",
    })
}
