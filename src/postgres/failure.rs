//! What an error of the database means: whether to ask again, what the caller gets, and what the log
//! says to do about it.

use std::error::Error as _;

use rustls::CertificateError;
use sqlx::{error::DatabaseError, postgres::PgDatabaseError};

use super::tls::NO_TLS;
use crate::{
    aws::Failure,
    error::{Error, chain},
};

/// What to do where a session is not the function's alone.
pub(super) const SET_POOLER: &str = "if this is a pooler, set DATABASE_POOLER=true";

/// What the caller and the log get of an error of the database or of the way to it, met while
/// `doing` something.
///
/// The log gets the server's SQLSTATE, its message where that can quote neither rows, parameters nor
/// a login, and never its detail or hint.
pub fn failure(doing: &str, error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(refusal) => {
            let code = refusal.code().unwrap_or_default();
            let message = quotes_no_data(&code).then(|| refusal.message());
            let message = message.or_else(|| untranslatable(&**refusal));
            refused(doing, &**refusal, message, None)
        }
        // A server, or what stands before it, that breaks off in mid-sentence is one that restarts.
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
            let inner = error.source().and_then(std::error::Error::source);
            let inner = remark(": ", inner.map(chain).as_deref());
            let remedy = remark("; ", tls_remedy(error));
            Error::DatabaseUnavailable(format!("{error} while {doing}{inner}{remedy}"))
        }
        sqlx::Error::RowNotFound => Error::DatabaseUnavailable(format!(
            "an answer that is not whole, or to another question, while {doing}"
        )),
        // sqlx's other errors name columns and types, and never a value.
        _ => Error::DatabaseFailed(format!("{error} while {doing}")),
    }
}

/// What a refusal of the server means, and what the log has of it; `by_pooler` is what to do about one
/// that a pooler makes.
fn refused(
    doing: &str,
    refusal: &dyn DatabaseError,
    message: Option<&str>,
    by_pooler: Option<&str>,
) -> Error {
    let code = refusal.code().unwrap_or_default();
    let message = remark(": ", message);
    let remedy = remark("; ", by_pooler.or_else(|| remedy(&code)));
    let cause = format!("database error {code} while {doing}{message}{remedy}");
    match &*code {
        // query_canceled and transaction_timeout
        "57014" | "25P04" => Error::StatementTimeout(cause),
        // By its class a connection that failed, and yet nothing that passes.
        _ if by_pooler.is_some() => Error::DatabaseFailed(cause),
        code if is_passing(code) || is_stale_plan(refusal) => Error::DatabaseUnavailable(cause),
        _ => Error::DatabaseFailed(cause),
    }
}

/// What there may be to add to a cause.
fn remark(separator: &str, text: Option<&str>) -> String {
    text.map(|text| format!("{separator}{text}")).unwrap_or_default()
}

/// Whether a parameter has a character that the database's encoding cannot write. Then no row has it
/// either.
pub fn is_in_no_row(error: &sqlx::Error) -> bool {
    // The client's encoding, so that the character is not a row's.
    error.as_database_error().and_then(untranslatable) == Some("UTF8")
}

/// The encoding of a character that another encoding lacks. In each of PostgreSQL's languages the
/// message names it before the other, and writes nothing else in capitals.
fn untranslatable(refusal: &dyn DatabaseError) -> Option<&str> {
    let is_code = refusal.code().is_some_and(|code| code == "22P05");
    let is_encoding =
        |word: &&str| word.get(..2).is_some_and(|it| it.bytes().all(|c| c.is_ascii_uppercase()));
    let mut words = refusal.message().split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.find(is_encoding).filter(|_| is_code)
}

/// [`failure`] for what happens before there is a session: a pooler has codes of its own for what
/// its clients do wrong. Servers and poolers quote the login in their messages, so none but those
/// about settings is logged.
pub(super) fn connecting(address: &str, error: &sqlx::Error) -> Error {
    /// What pgbouncer says with 08P01 and RDS Proxy with 0A000, whether the log may have it, and
    /// what to do.
    const REFUSALS: [(&str, bool, &str); 5] = [
        ("startup parameter", true, SET_POOLER),
        ("options", true, SET_POOLER),
        ("authentication failed", false, "the pooler refuses the password"),
        ("no such database", false, "the pooler knows no such database"),
        ("no such user", false, "the pooler knows no such user"),
    ];
    let doing = format!("connecting to {address}");
    let sqlx::Error::Database(refusal) = error else { return failure(&doing, error) };
    let (code, message) = (refusal.code().unwrap_or_default(), refusal.message());
    let known = REFUSALS.iter().find(|(text, ..)| message.contains(text));
    let known = known.filter(|_| matches!(&*code, "08P01" | "0A000"));
    let message = known.filter(|(_, is_logged, _)| *is_logged).map(|_| message);
    refused(&doing, &**refusal, message, known.map(|it| it.2))
}

/// Whether the server, or a pooler in its own way, refuses a role's password.
pub(super) fn is_refused_password(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    matches!(code.as_deref(), Some("28P01" | "28000" | "08P01"))
}

impl From<Failure> for Error {
    fn from(Failure { cause, is_passing }: Failure) -> Self {
        if is_passing { Self::DatabaseUnavailable(cause) } else { Self::DatabaseFailed(cause) }
    }
}

/// Classes and codes of SQLSTATE that pass by themselves: connection exceptions, a conflict with
/// replication, too few resources or connections, an operator's shutdown, a server that starts or
/// stops, a session that idled for too long, and a lock that was not to be had. A full disk and a
/// limit of the configuration stay until somebody acts.
fn is_passing(code: &str) -> bool {
    let is_of_class = ["08", "40", "53", "57P"].iter().any(|class| code.starts_with(class));
    matches!(code, "25P03" | "55P03") || is_of_class && !matches!(code, "53100" | "53400")
}

/// "cached plan must not change result type": a column was altered since the session prepared its
/// statement, and a new session prepares it anew. The text depends on `lc_messages`, the routine
/// does not.
fn is_stale_plan(refusal: &dyn DatabaseError) -> bool {
    let refusal = refusal.try_downcast_ref::<PgDatabaseError>();
    refusal.is_some_and(|it| it.code() == "0A000" && it.routine() == Some("RevalidateCachedQuery"))
}

/// Classes of SQLSTATE whose messages name settings, objects and states of the server, but no
/// values of rows or parameters and no login (PostgreSQL, appendix A). Classes 28 and 3D
/// quote the names of role and database, one of which is the password where somebody has swapped
/// them; XX quotes anything.
fn quotes_no_data(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    matches!(class, "08" | "25" | "3F" | "40" | "42" | "53" | "54" | "55" | "57" | "58")
}

/// What to do about an SQLSTATE.
fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "22P05" => "a row has a byte that is no character of the database's encoding, named here",
        "22021" => "a row is not UTF-8, as a database in SQL_ASCII allows",
        "26000" | "42P05" => SET_POOLER,
        "28P01" => "password authentication failed: the role's name or its password is wrong",
        "28000" => "the server refuses the role, its token of IAM, or a connection without TLS",
        "3D000" => "there is no database of this name",
        "53300" => {
            "no connection is to be had: max_connections, or a limit of the role or database"
        }
        "57P03" => "the server is starting or stopping",
        "53100" => "the database server's disk is full; enlarge it",
        "53400" => "raise temp_file_limit for the function's role",
        _ => return None,
    })
}

/// What to do about a server whose certificate was refused, or that has none.
fn tls_remedy(error: &sqlx::Error) -> Option<&'static str> {
    let turn_on =
        "turn TLS on in the server; sslmode=disable in DATABASE_URL is for networks that need none";
    let error = match error {
        sqlx::Error::Io(error) => error.get_ref()?.downcast_ref()?,
        sqlx::Error::Tls(error) if error.to_string() == NO_TLS => return Some(turn_on),
        _ => return None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{borrow::Cow, error, fmt};

    #[derive(Debug)]
    struct Untranslatable(String);

    impl fmt::Display for Untranslatable {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl error::Error for Untranslatable {}

    impl DatabaseError for Untranslatable {
        fn message(&self) -> &str {
            &self.0
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some("22P05".into())
        }

        fn as_error(&self) -> &(dyn error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn error::Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    #[test]
    fn a_parameter_is_told_from_a_row_in_the_server_s_language() {
        for message in [
            "character with byte sequence 0x81 in encoding \"A\" has no equivalent in encoding \"B\"",
            "Zeichen mit Byte-Folge 0x81 in Kodierung »A« hat keine Entsprechung in Kodierung »B«",
            "le caractère dont la séquence d'octets est 0x81 dans l'encodage « A » n'a pas\n\
             d'équivalent dans l'encodage « B »",
            "符号化方式\"A\"においてバイト列0x81である文字は符号化方式\"B\"で等価な文字を持ちません",
            "0x81 바이트로 조합된 문자(인코딩: \"A\")와 대응되는 문자 코드가 \"B\" 인코딩에는 없습니다",
            "编码\"A\"的字符0x0x81在编码\"B\"没有相对应值",
        ] {
            let error = |from, to| {
                let (first, rest) = message.split_once(['"', '»', '«']).unwrap();
                let rest = rest.replacen('A', from, 1);
                let (middle, last) = rest.rsplit_once('B').unwrap();
                let message = format!("{first}\"{middle}{to}{last}");
                sqlx::Error::Database(Box::new(Untranslatable(message)))
            };
            assert!(is_in_no_row(&error("UTF8", "WIN1252")), "{message}");
            let row = error("WIN1252", "UTF8");
            assert!(!is_in_no_row(&row), "{message}");
            let cause = failure("reading", &row).cause().unwrap().into_owned();
            assert!(cause.contains("22P05 while reading: WIN1252; a row has"), "{cause}");
        }
    }
}
