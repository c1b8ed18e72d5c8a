//! Every error that a caller can get: one variant per Matrix error response, and one table of what
//! each is answered with.

use std::borrow::Cow;

use serde_json::json;

/// A refusal or a failure, as the caller sees it.
///
/// The texts are Synapse's where Synapse has one (`synapse/api/auth/base.py`,
/// `synapse/http/servlet.py`, `synapse/rest/admin/statistics.py`), because admin UIs show them.
/// A fault of this function, of the replica or of the network is never 401 or 403: admin UIs
/// answer those by deleting the admin's token.
///
/// The text of a failure is for the log; it never reaches the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The path is not the endpoint's.
    NoSuchEndpoint,
    /// The path is the endpoint's, the method is not.
    MethodNotAllowed,

    /// Neither an `Authorization` header nor an `access_token` parameter.
    MissingToken,
    /// Both an `Authorization` header and an `access_token` parameter.
    MixedCredentials,
    /// More than one `Authorization` header.
    TooManyAuthorizationHeaders,
    /// The `Authorization` header is not `Bearer`, one space, token.
    InvalidAuthorizationHeader,

    /// No user belongs to the token.
    UnknownToken,
    /// The token's `valid_until_ms` lies in the past.
    ExpiredToken,
    /// The token's user has a name that does not start with `@`.
    UserIdWithoutSigil,
    /// The token's user has a name without a `:`.
    UserIdWithoutServerName,
    /// The token's user is locked (spec: client-server API, "Account locking").
    UserLocked,
    /// The token's user is a guest.
    GuestAccessForbidden,
    /// The token's user is not an admin of the homeserver.
    NotAnAdmin,

    /// The account of the token's user has expired.
    AccountExpired,

    /// MAS calls the token inactive, or its device is gone.
    TokenNotActive,
    /// The token's scope does not hold the client-server API.
    TokenWithoutClientScope,
    /// MAS names no user for the token.
    InvalidUsernameClaim,
    /// MAS names a user that does not exist.
    UserNotFound,
    /// The token's scope holds more than one device.
    MultipleDeviceIds,
    /// MAS names a device of less than 1 or more than 255 characters.
    InvalidDeviceId,
    /// MAS could not be asked, or gave no answer that can be understood.
    IntrospectionFailed(String),

    /// The homeserver refuses a token that the replica does not know.
    HomeserverRefused {
        /// Its HTTP status code, 401 or 403.
        status: u16,
        /// Its `errcode`, one of those that speak of the token or its user.
        errcode: &'static str,
        /// Its text.
        message: String,
        /// Its `soft_logout`.
        soft_logout: Option<bool>,
    },
    /// The homeserver could not be asked, or gave no answer that can be understood.
    HomeserverUnavailable(String),
    /// More unknown tokens came than the homeserver may be asked about.
    TooManyUnknownTokens,
    /// The homeserver vouches for a token, and the replica contradicts it. The text says what the
    /// replica has, for the log.
    ReplicaBehind(&'static str),

    /// The named parameter is not one of its allowed values.
    NotOneOf {
        /// The parameter.
        parameter: &'static str,
        /// The allowed values, written as Synapse writes them.
        allowed: &'static str,
    },
    /// The named parameter is not an integer.
    NotAnInteger(&'static str),
    /// The named parameter is an integer below zero.
    NegativeInteger(&'static str),
    /// `until_ts` is not greater than `from_ts`.
    UntilNotAfterFrom,
    /// `search_term` is not UTF-8.
    SearchTermNotUtf8,
    /// `search_term` contains U+0000, which no text in PostgreSQL can contain.
    SearchTermWithNul,
    /// `search_term` is there but empty.
    EmptySearchTerm,

    /// The function's own configuration is wrong.
    Misconfigured,
    /// No connection to the database could be had, or it broke.
    DatabaseUnavailable(String),
    /// The database cancelled the statement because it took longer than it may.
    StatementTimeout(String),
    /// The database refused the statement or answered something unexpected.
    DatabaseFailed(String),
    /// A single user's row, at this position in the order counted from 0, is larger than any answer
    /// may be.
    UserTooLarge(i64),
}

/// How an error is answered: a line of the table in [`Error::answer`].
struct Answer<'a> {
    status: u16,
    errcode: &'static str,
    soft_logout: Option<bool>,
    message: Cow<'a, str>,
}

impl Error {
    /// The table: status, `errcode`, `soft_logout` where the body has it, text.
    #[rustfmt::skip]
    fn answer(&self) -> Answer<'_> {
        let (status, errcode, soft_logout, message): (_, _, _, Cow<'_, str>) = match self {
            Self::NoSuchEndpoint => (404, "M_UNRECOGNIZED", None, "Unrecognized request".into()),
            Self::MethodNotAllowed => (405, "M_UNRECOGNIZED", None, "Unrecognized request".into()),

            Self::MissingToken => (401, "M_MISSING_TOKEN", None, "Missing access token".into()),
            Self::MixedCredentials => (401, "M_MISSING_TOKEN", None, "Mixing Authorization headers and access_token query parameters.".into()),
            Self::TooManyAuthorizationHeaders => (401, "M_MISSING_TOKEN", None, "Too many Authorization headers.".into()),
            Self::InvalidAuthorizationHeader => (401, "M_MISSING_TOKEN", None, "Invalid Authorization header.".into()),

            Self::UnknownToken => (401, "M_UNKNOWN_TOKEN", Some(false), "Invalid access token passed.".into()),
            Self::ExpiredToken => (401, "M_UNKNOWN_TOKEN", Some(true), "Access token has expired".into()),
            Self::UserIdWithoutSigil => (400, "M_INVALID_PARAM", None, "Expected UserID string to start with '@'".into()),
            Self::UserIdWithoutServerName => (400, "M_INVALID_PARAM", None, "Expected UserID of the form '@localname:domain'".into()),
            Self::UserLocked => (401, "M_USER_LOCKED", Some(true), "User account has been locked".into()),
            Self::AccountExpired => (403, "ORG_MATRIX_EXPIRED_ACCOUNT", None, "User account has expired".into()),
            Self::GuestAccessForbidden => (403, "M_GUEST_ACCESS_FORBIDDEN", None, "Guest access not allowed".into()),
            Self::NotAnAdmin => (403, "M_FORBIDDEN", None, "You are not a server admin".into()),

            Self::TokenNotActive => (401, "M_UNKNOWN_TOKEN", Some(false), "Token is not active".into()),
            Self::TokenWithoutClientScope => (401, "M_UNKNOWN_TOKEN", Some(false), "Token doesn't grant access to the Matrix C-S API".into()),
            Self::InvalidUsernameClaim => (500, "M_FORBIDDEN", None, "Invalid username claim in the introspection result".into()),
            Self::UserNotFound => (500, "M_FORBIDDEN", None, "User not found".into()),
            Self::MultipleDeviceIds => (500, "M_FORBIDDEN", None, "Multiple device IDs in scope".into()),
            Self::InvalidDeviceId => (500, "M_FORBIDDEN", None, "Invalid device ID in introspection result".into()),
            Self::IntrospectionFailed { .. } => (503, "M_UNKNOWN", None, "Unable to introspect the access token".into()),

            Self::HomeserverRefused { status, errcode, message, soft_logout } => (*status, errcode, *soft_logout, message.into()),
            Self::HomeserverUnavailable { .. } => (503, "M_UNKNOWN", None, "The media statistics function cannot ask the homeserver about the access token; try again in a moment".into()),
            Self::TooManyUnknownTokens => (429, "M_LIMIT_EXCEEDED", None, "Too many unknown access tokens; try again in a moment".into()),
            Self::ReplicaBehind(_) => (503, "M_UNKNOWN", None, "The database replica does not know yet what the homeserver knows of this user; try again in a moment".into()),

            Self::NotOneOf { parameter, allowed } => (400, "M_INVALID_PARAM", None, format!("Query parameter '{parameter}' must be one of {allowed}").into()),
            Self::NotAnInteger(parameter) => (400, "M_INVALID_PARAM", None, format!("Query parameter {parameter} must be an integer").into()),
            Self::NegativeInteger(parameter) => (400, "M_INVALID_PARAM", None, format!("Query parameter {parameter} must be a positive integer.").into()),
            Self::UntilNotAfterFrom => (400, "M_INVALID_PARAM", None, "Query parameter until_ts must be greater than from_ts.".into()),
            Self::SearchTermNotUtf8 => (400, "M_INVALID_PARAM", None, "Query parameter 'search_term' must be valid UTF-8".into()),
            Self::SearchTermWithNul => (400, "M_INVALID_PARAM", None, "Query parameter 'search_term' must not contain NUL".into()),
            Self::EmptySearchTerm => (400, "M_INVALID_PARAM", None, "Query parameter search_term cannot be an empty string.".into()),

            Self::Misconfigured => (500, "M_UNKNOWN", None, "The media statistics function is misconfigured; its log names the setting".into()),
            Self::DatabaseUnavailable { .. } => (503, "M_UNKNOWN", None, "The media statistics function cannot reach its database; try again in a moment".into()),
            Self::StatementTimeout { .. } => (504, "M_UNKNOWN", None, "The media statistics took too long; narrow them with from_ts, until_ts or search_term".into()),
            Self::DatabaseFailed { .. } => (500, "M_UNKNOWN", None, "The media statistics function got an error from its database; its log names the cause".into()),
            Self::UserTooLarge(position) => (500, "M_UNKNOWN", None, format!("The user at from={position} does not fit into an answer").into()),
        };
        Answer { status, errcode, soft_logout, message }
    }

    /// The HTTP status code.
    pub fn status(&self) -> u16 {
        self.answer().status
    }

    /// The Matrix `errcode`.
    pub fn errcode(&self) -> &'static str {
        self.answer().errcode
    }

    /// After how many seconds to try again, where that helps.
    pub fn retry_after(&self) -> Option<u16> {
        match self.status() {
            429 => Some(1),
            503 => Some(5),
            _ => None,
        }
    }

    /// The response body (spec: client-server API, "Standard error response" and "Rate limiting").
    pub fn body(&self) -> String {
        let answer = self.answer();
        let mut body = json!({ "errcode": answer.errcode, "error": answer.message });
        if let Some(soft_logout) = answer.soft_logout {
            body["soft_logout"] = soft_logout.into();
        }
        if let (429, Some(seconds)) = (answer.status, self.retry_after()) {
            body["retry_after_ms"] = (u32::from(seconds) * 1000).into();
        }
        body.to_string()
    }

    /// What the log says beyond the errcode: the cause of a failure, never a value from the
    /// request or the database. `None` for what is the caller's own doing.
    pub fn cause(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::DatabaseUnavailable(cause)
            | Self::StatementTimeout(cause)
            | Self::DatabaseFailed(cause) => cause.into(),
            Self::IntrospectionFailed(cause) => format!("asking MAS: {cause}").into(),
            Self::HomeserverUnavailable(cause) => format!("asking the homeserver: {cause}").into(),
            Self::ReplicaBehind(what) => {
                format!("the replica is behind the homeserver: {what}").into()
            }
            Self::InvalidUsernameClaim
            | Self::UserNotFound
            | Self::MultipleDeviceIds
            | Self::InvalidDeviceId => format!("what MAS says: {}", self.answer().message).into(),
            Self::Misconfigured => {
                "see the line \"the configuration is wrong\", logged at start".into()
            }
            Self::UserTooLarge(position) => {
                format!("the row at offset {position} exceeds the answer's budget").into()
            }
            _ => return None,
        })
    }

    /// Whether nothing is known of the connection to the database after it.
    pub fn poisons_connection(&self) -> bool {
        matches!(
            self,
            Self::DatabaseUnavailable { .. }
                | Self::StatementTimeout { .. }
                | Self::DatabaseFailed { .. }
                | Self::UserTooLarge { .. }
        )
    }
}

/// An error's text, and those of what is behind it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_says_who_was_asked() {
        let cause = || "it answered with status 401".to_owned();
        for (error, expected) in [
            (Error::IntrospectionFailed(cause()), "asking MAS: it answered with status 401"),
            (
                Error::HomeserverUnavailable(cause()),
                "asking the homeserver: it answered with status 401",
            ),
            (Error::UserNotFound, "what MAS says: User not found"),
        ] {
            assert_eq!(error.cause().as_deref(), Some(expected));
        }
    }
}
