//! Every error that a caller can get: one variant per Matrix error response.

use std::borrow::Cow;

use serde_json::json;

/// A refusal or a failure, as the caller sees it.
///
/// The texts are Synapse's where Synapse has one (`synapse/api/auth/base.py`,
/// `synapse/http/servlet.py`, `synapse/rest/admin/statistics.py`), because admin UIs show them.
/// A fault of this function, of the replica or of the network is never 401 or 403: admin UIs
/// answer those by deleting the admin's token.
///
/// Failures of the database carry a `cause` for the log; it never reaches the caller.
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
    IntrospectionFailed {
        /// For the log.
        cause: String,
    },

    /// The homeserver refuses a token that the replica does not know.
    HomeserverRefused {
        /// Its HTTP status code, 401 or 403.
        status: u16,
        /// Its `errcode`.
        errcode: String,
        /// Its text.
        message: String,
        /// Its `soft_logout`.
        soft_logout: Option<bool>,
    },
    /// The homeserver could not be asked, or gave no answer that can be understood.
    HomeserverUnavailable {
        /// For the log.
        cause: String,
    },
    /// The homeserver knows a user that the replica does not know yet.
    ReplicaBehind,

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
    DatabaseUnavailable {
        /// For the log.
        cause: String,
    },
    /// The database cancelled the statement because it took longer than it may.
    StatementTimeout {
        /// For the log.
        cause: String,
    },
    /// The database refused the statement or answered something unexpected.
    DatabaseFailed {
        /// For the log.
        cause: String,
    },
    /// A single user's row is larger than any answer may be.
    UserTooLarge {
        /// The row's position in the order, counted from 0.
        position: i64,
    },
}

/// An error's text, and those of what is behind it.
#[must_use]
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

impl Error {
    /// The HTTP status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::NotOneOf { .. }
            | Self::NotAnInteger(_)
            | Self::NegativeInteger(_)
            | Self::UntilNotAfterFrom
            | Self::SearchTermNotUtf8
            | Self::SearchTermWithNul
            | Self::EmptySearchTerm
            | Self::UserIdWithoutSigil
            | Self::UserIdWithoutServerName => 400,
            Self::MissingToken
            | Self::MixedCredentials
            | Self::TooManyAuthorizationHeaders
            | Self::InvalidAuthorizationHeader
            | Self::UnknownToken
            | Self::ExpiredToken
            | Self::UserLocked
            | Self::TokenNotActive
            | Self::TokenWithoutClientScope => 401,
            Self::GuestAccessForbidden | Self::NotAnAdmin | Self::AccountExpired => 403,
            Self::HomeserverRefused { status, .. } => *status,
            Self::NoSuchEndpoint => 404,
            Self::MethodNotAllowed => 405,
            Self::Misconfigured
            | Self::DatabaseFailed { .. }
            | Self::UserTooLarge { .. }
            | Self::InvalidUsernameClaim
            | Self::UserNotFound
            | Self::MultipleDeviceIds
            | Self::InvalidDeviceId => 500,
            Self::DatabaseUnavailable { .. }
            | Self::IntrospectionFailed { .. }
            | Self::HomeserverUnavailable { .. }
            | Self::ReplicaBehind => 503,
            Self::StatementTimeout { .. } => 504,
        }
    }

    /// The Matrix `errcode`.
    #[must_use]
    pub fn errcode(&self) -> &str {
        match self {
            Self::NoSuchEndpoint | Self::MethodNotAllowed => "M_UNRECOGNIZED",
            Self::MissingToken
            | Self::MixedCredentials
            | Self::TooManyAuthorizationHeaders
            | Self::InvalidAuthorizationHeader => "M_MISSING_TOKEN",
            Self::UnknownToken
            | Self::ExpiredToken
            | Self::TokenNotActive
            | Self::TokenWithoutClientScope => "M_UNKNOWN_TOKEN",
            Self::AccountExpired => "ORG_MATRIX_EXPIRED_ACCOUNT",
            Self::HomeserverRefused { errcode, .. } => errcode,
            Self::UserLocked => "M_USER_LOCKED",
            Self::GuestAccessForbidden => "M_GUEST_ACCESS_FORBIDDEN",
            // Whatever the status, as in Synapse.
            Self::NotAnAdmin
            | Self::InvalidUsernameClaim
            | Self::UserNotFound
            | Self::MultipleDeviceIds
            | Self::InvalidDeviceId => "M_FORBIDDEN",
            Self::NotOneOf { .. }
            | Self::NotAnInteger(_)
            | Self::NegativeInteger(_)
            | Self::UntilNotAfterFrom
            | Self::SearchTermNotUtf8
            | Self::SearchTermWithNul
            | Self::EmptySearchTerm
            | Self::UserIdWithoutSigil
            | Self::UserIdWithoutServerName => "M_INVALID_PARAM",
            Self::Misconfigured
            | Self::DatabaseUnavailable { .. }
            | Self::StatementTimeout { .. }
            | Self::DatabaseFailed { .. }
            | Self::UserTooLarge { .. }
            | Self::IntrospectionFailed { .. }
            | Self::HomeserverUnavailable { .. }
            | Self::ReplicaBehind => "M_UNKNOWN",
        }
    }

    /// The text for the caller.
    #[must_use]
    pub fn message(&self) -> Cow<'_, str> {
        let message = match self {
            Self::NoSuchEndpoint | Self::MethodNotAllowed => "Unrecognized request",
            Self::MissingToken => "Missing access token",
            Self::MixedCredentials => {
                "Mixing Authorization headers and access_token query parameters."
            }
            Self::TooManyAuthorizationHeaders => "Too many Authorization headers.",
            Self::InvalidAuthorizationHeader => "Invalid Authorization header.",
            Self::UnknownToken => "Invalid access token passed.",
            Self::ExpiredToken => "Access token has expired",
            Self::UserIdWithoutSigil => "Expected UserID string to start with '@'",
            Self::UserIdWithoutServerName => "Expected UserID of the form '@localname:domain'",
            Self::UserLocked => "User account has been locked",
            Self::GuestAccessForbidden => "Guest access not allowed",
            Self::NotAnAdmin => "You are not a server admin",
            Self::AccountExpired => "User account has expired",
            Self::TokenNotActive => "Token is not active",
            Self::TokenWithoutClientScope => "Token doesn't grant access to the Matrix C-S API",
            Self::InvalidUsernameClaim => "Invalid username claim in the introspection result",
            Self::UserNotFound => "User not found",
            Self::MultipleDeviceIds => "Multiple device IDs in scope",
            Self::InvalidDeviceId => "Invalid device ID in introspection result",
            Self::IntrospectionFailed { .. } => "Unable to introspect the access token",
            Self::HomeserverRefused { message, .. } => message,
            Self::HomeserverUnavailable { .. } => {
                "The media statistics function cannot ask the homeserver about the access token; \
                 try again in a moment"
            }
            Self::ReplicaBehind => {
                "The database replica does not know this user yet; try again in a moment"
            }
            Self::NotOneOf { parameter, allowed } => {
                return format!("Query parameter '{parameter}' must be one of {allowed}").into();
            }
            Self::NotAnInteger(parameter) => {
                return format!("Query parameter {parameter} must be an integer").into();
            }
            Self::NegativeInteger(parameter) => {
                return format!("Query parameter {parameter} must be a positive integer.").into();
            }
            Self::UntilNotAfterFrom => "Query parameter until_ts must be greater than from_ts.",
            Self::SearchTermNotUtf8 => "Query parameter 'search_term' must be valid UTF-8",
            Self::SearchTermWithNul => "Query parameter 'search_term' must not contain NUL",
            Self::EmptySearchTerm => "Query parameter search_term cannot be an empty string.",
            Self::Misconfigured => {
                "The media statistics function is misconfigured; its log names the setting"
            }
            Self::DatabaseUnavailable { .. } => {
                "The media statistics function cannot reach its database; try again in a moment"
            }
            Self::StatementTimeout { .. } => {
                "The media statistics took too long; narrow them with from_ts, until_ts or search_term"
            }
            Self::DatabaseFailed { .. } => {
                "The media statistics function got an error from its database; its log names the cause"
            }
            Self::UserTooLarge { position } => {
                return format!("The user at from={position} does not fit into an answer").into();
            }
        };
        message.into()
    }

    /// The spec's `soft_logout`: whether a client may log in again and keep its device; `None`
    /// where the field does not belong into the body.
    #[must_use]
    pub fn soft_logout(&self) -> Option<bool> {
        match self {
            Self::UnknownToken | Self::TokenNotActive | Self::TokenWithoutClientScope => {
                Some(false)
            }
            Self::HomeserverRefused { soft_logout, .. } => *soft_logout,
            Self::ExpiredToken | Self::UserLocked => Some(true),
            _ => None,
        }
    }

    /// What the log says beyond the errcode: the cause of a failure, never a value from the
    /// request or the database. `None` for what is the caller's own doing.
    #[must_use]
    pub fn cause(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::DatabaseUnavailable { cause }
            | Self::StatementTimeout { cause }
            | Self::DatabaseFailed { cause } => Some(cause.into()),
            Self::IntrospectionFailed { cause } => Some(format!("asking MAS: {cause}").into()),
            Self::HomeserverUnavailable { cause } => {
                Some(format!("asking the homeserver: {cause}").into())
            }
            Self::ReplicaBehind => Some("the replica lags behind the homeserver".into()),
            Self::InvalidUsernameClaim
            | Self::UserNotFound
            | Self::MultipleDeviceIds
            | Self::InvalidDeviceId => Some(format!("what MAS says: {}", self.message()).into()),
            Self::Misconfigured => {
                Some("see the line \"the configuration is wrong\", logged at start".into())
            }
            Self::UserTooLarge { position } => {
                Some(format!("the row at offset {position} exceeds the answer's budget").into())
            }
            _ => None,
        }
    }

    /// Whether nothing is known of the connection to the database after it.
    #[must_use]
    pub fn spoils_connection(&self) -> bool {
        matches!(
            self,
            Self::DatabaseUnavailable { .. }
                | Self::StatementTimeout { .. }
                | Self::DatabaseFailed { .. }
                | Self::UserTooLarge { .. }
        )
    }

    /// The response body (spec: client-server API, "Standard error response").
    #[must_use]
    pub fn body(&self) -> String {
        let mut body = json!({ "errcode": self.errcode(), "error": self.message() });
        if let Some(soft_logout) = self.soft_logout() {
            body["soft_logout"] = soft_logout.into();
        }
        body.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_says_who_was_asked() {
        let cause = || "it answered with status 401".to_owned();
        for (error, expected) in [
            (
                Error::IntrospectionFailed { cause: cause() },
                "asking MAS: it answered with status 401",
            ),
            (
                Error::HomeserverUnavailable { cause: cause() },
                "asking the homeserver: it answered with status 401",
            ),
            (Error::UserNotFound, "what MAS says: User not found"),
        ] {
            assert_eq!(error.cause().as_deref(), Some(expected));
        }
    }
}
