//! Every error that a caller can get, as one table: a refusal is one line of it, and so is a failure.

use std::borrow::Cow;

use serde_json::json;

/// A refusal or a failure, as the caller sees it.
///
/// The texts are Synapse's where Synapse has one (`synapse/api/auth/base.py`,
/// `synapse/http/servlet.py`, `synapse/rest/admin/statistics.py`), because admin UIs show them.
/// A fault of this function, of the replica or of the network is never 401 or 403: admin UIs
/// answer those by deleting the admin's token.
///
/// The text that a failure carries is for the log; it never reaches the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// What is the caller's own doing.
    Refusal(Refusal),
    /// The function's own configuration is wrong.
    Misconfigured,
    /// What MAS says of a token makes no sense to Synapse, which says so by this text.
    OddIntrospection(&'static str),
    /// MAS could not be asked, or gave no answer that can be understood.
    IntrospectionFailed(String),
    /// The homeserver could not be asked, or gave no answer that can be understood.
    HomeserverUnavailable(String),
    /// The homeserver vouches for a token, and the replica contradicts it: what the replica has.
    ReplicaBehind(&'static str),
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

/// How an error is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status code.
    pub status: u16,
    /// The Matrix `errcode`.
    pub errcode: &'static str,
    /// The spec's `soft_logout`: whether a client may log in again and keep its device; `None`
    /// where the field does not belong into the body.
    pub soft_logout: Option<bool>,
    /// The text for the caller.
    pub text: Cow<'static, str>,
}

/// The refusals.
#[rustfmt::skip]
impl Error {
    /// The path is not the endpoint's.
    pub const NO_SUCH_ENDPOINT: Self = refusal(404, "M_UNRECOGNIZED", None, "Unrecognized request");
    /// The path is the endpoint's, the method is not.
    pub const METHOD_NOT_ALLOWED: Self = refusal(405, "M_UNRECOGNIZED", None, "Unrecognized request");

    /// Neither an `Authorization` header nor an `access_token` parameter.
    pub const MISSING_TOKEN: Self = refusal(401, "M_MISSING_TOKEN", None, "Missing access token");
    /// Both an `Authorization` header and an `access_token` parameter.
    pub const MIXED_CREDENTIALS: Self = refusal(401, "M_MISSING_TOKEN", None, "Mixing Authorization headers and access_token query parameters.");
    /// More than one `Authorization` header.
    pub const TOO_MANY_AUTHORIZATION_HEADERS: Self = refusal(401, "M_MISSING_TOKEN", None, "Too many Authorization headers.");
    /// The `Authorization` header is not `Bearer`, one space, token.
    pub const INVALID_AUTHORIZATION_HEADER: Self = refusal(401, "M_MISSING_TOKEN", None, "Invalid Authorization header.");

    /// No user belongs to the token.
    pub const UNKNOWN_TOKEN: Self = refusal(401, "M_UNKNOWN_TOKEN", Some(false), "Invalid access token passed.");
    /// The token's `valid_until_ms` lies in the past.
    pub const EXPIRED_TOKEN: Self = refusal(401, "M_UNKNOWN_TOKEN", Some(true), "Access token has expired");
    /// The token's user has a name that does not start with `@`.
    pub const USER_ID_WITHOUT_SIGIL: Self = refusal(400, "M_INVALID_PARAM", None, "Expected UserID string to start with '@'");
    /// The token's user has a name without a `:`.
    pub const USER_ID_WITHOUT_SERVER_NAME: Self = refusal(400, "M_INVALID_PARAM", None, "Expected UserID of the form '@localname:domain'");
    /// The token's user is locked (spec: client-server API, "Account locking").
    pub const USER_LOCKED: Self = refusal(401, "M_USER_LOCKED", Some(true), "User account has been locked");
    /// The account of the token's user has expired.
    pub const ACCOUNT_EXPIRED: Self = refusal(403, "ORG_MATRIX_EXPIRED_ACCOUNT", None, "User account has expired");
    /// The token's user is a guest.
    pub const GUEST_ACCESS_FORBIDDEN: Self = refusal(403, "M_GUEST_ACCESS_FORBIDDEN", None, "Guest access not allowed");
    /// The token's user is not an admin of the homeserver.
    pub const NOT_AN_ADMIN: Self = refusal(403, "M_FORBIDDEN", None, "You are not a server admin");

    /// MAS calls the token inactive, or its device is gone.
    pub const TOKEN_NOT_ACTIVE: Self = refusal(401, "M_UNKNOWN_TOKEN", Some(false), "Token is not active");
    /// The token's scope does not hold the client-server API.
    pub const TOKEN_WITHOUT_CLIENT_SCOPE: Self = refusal(401, "M_UNKNOWN_TOKEN", Some(false), "Token doesn't grant access to the Matrix C-S API");
    /// MAS names no user for the token.
    pub const INVALID_USERNAME_CLAIM: Self = Self::OddIntrospection("Invalid username claim in the introspection result");
    /// MAS names a user that does not exist.
    pub const USER_NOT_FOUND: Self = Self::OddIntrospection("User not found");
    /// The token's scope holds more than one device.
    pub const MULTIPLE_DEVICE_IDS: Self = Self::OddIntrospection("Multiple device IDs in scope");
    /// MAS names a device of less than 1 or more than 255 characters.
    pub const INVALID_DEVICE_ID: Self = Self::OddIntrospection("Invalid device ID in introspection result");
    /// More unknown tokens came than the homeserver may be asked about.
    pub const TOO_MANY_UNKNOWN_TOKENS: Self = refusal(429, "M_LIMIT_EXCEEDED", None, "Too many unknown access tokens; try again in a moment");

    /// `order_by` is none of the values that it has.
    pub const INVALID_ORDER_BY: Self = refusal(400, "M_INVALID_PARAM", None, "Query parameter 'order_by' must be one of ['media_length', 'media_count', 'user_id', 'displayname']");
    /// `dir` is none of the values that it has.
    pub const INVALID_DIR: Self = refusal(400, "M_INVALID_PARAM", None, "Query parameter 'dir' must be one of ['b', 'f']");
    /// `until_ts` is not greater than `from_ts`.
    pub const UNTIL_NOT_AFTER_FROM: Self = refusal(400, "M_INVALID_PARAM", None, "Query parameter until_ts must be greater than from_ts.");
    /// `search_term` is not UTF-8.
    pub const SEARCH_TERM_NOT_UTF8: Self = refusal(400, "M_INVALID_PARAM", None, "Query parameter 'search_term' must be valid UTF-8");
    /// `search_term` contains U+0000, which no text in PostgreSQL can contain.
    pub const SEARCH_TERM_WITH_NUL: Self = refusal(400, "M_INVALID_PARAM", None, "Query parameter 'search_term' must not contain NUL");
    /// `search_term` is there but empty.
    pub const EMPTY_SEARCH_TERM: Self = refusal(400, "M_INVALID_PARAM", None, "Query parameter search_term cannot be an empty string.");

    /// The named parameter is not an integer, or it is a negative one.
    pub fn invalid_integer(parameter: &str, is_negative: bool) -> Self {
        let must = if is_negative { "a positive integer." } else { "an integer" };
        let text = format!("Query parameter {parameter} must be {must}").into();
        Self::Refusal(Refusal { status: 400, errcode: "M_INVALID_PARAM", soft_logout: None, text })
    }

    /// The failures, beside the refusals above: how each is answered, and its cause for the log.
    fn answer_and_cause(&self) -> (Refusal, Option<Cow<'_, str>>) {
        let (status, errcode, text, cause): (_, _, Cow<'static, str>, Cow<'_, str>) = match self {
            Self::Refusal(refusal) => return (refusal.clone(), None),
            Self::Misconfigured => (500, "M_UNKNOWN", "The media statistics function is misconfigured; its log names the setting".into(), "see the line \"the configuration is wrong\", logged at start".into()),
            Self::OddIntrospection(text) => (500, "M_FORBIDDEN", (*text).into(), format!("what MAS says: {text}").into()),
            Self::IntrospectionFailed(cause) => (503, "M_UNKNOWN", "Unable to introspect the access token".into(), format!("asking MAS: {cause}").into()),
            Self::HomeserverUnavailable(cause) => (503, "M_UNKNOWN", "The media statistics function cannot ask the homeserver about the access token; try again in a moment".into(), format!("asking the homeserver: {cause}").into()),
            Self::ReplicaBehind(what) => (503, "M_UNKNOWN", "The database replica does not know yet what the homeserver knows of this user; try again in a moment".into(), format!("the replica is behind the homeserver: {what}").into()),
            Self::DatabaseUnavailable(cause) => (503, "M_UNKNOWN", "The media statistics function cannot reach its database; try again in a moment".into(), cause.into()),
            Self::StatementTimeout(cause) => (504, "M_UNKNOWN", "The media statistics took too long; try again, or search for a user".into(), cause.into()),
            Self::DatabaseFailed(cause) => (500, "M_UNKNOWN", "The media statistics function got an error from its database; its log names the cause".into(), cause.into()),
            Self::UserTooLarge(position) => (500, "M_UNKNOWN", format!("The user at from={position} does not fit into an answer").into(), format!("the row at offset {position} exceeds the answer's budget").into()),
        };
        (Refusal { status, errcode, soft_logout: None, text }, Some(cause))
    }
}

impl Error {
    /// How the error is answered.
    pub fn answer(&self) -> Refusal {
        self.answer_and_cause().0
    }

    /// What the log says beyond the errcode: the cause of a failure, never a value from the
    /// request or the database. `None` for what is the caller's own doing.
    pub fn cause(&self) -> Option<Cow<'_, str>> {
        self.answer_and_cause().1
    }

    /// The response body (spec: client-server API, "Standard error response" and "Rate limiting").
    pub fn body(&self) -> String {
        let answer = self.answer();
        let mut body = json!({ "errcode": answer.errcode, "error": answer.text });
        if let Some(soft_logout) = answer.soft_logout {
            body["soft_logout"] = soft_logout.into();
        }
        if answer.status == 429 {
            body["retry_after_ms"] = 1000.into();
        }
        body.to_string()
    }

    /// Whether nothing is known of the connection to the database after it.
    pub fn poisons_connection(&self) -> bool {
        matches!(
            self,
            Self::DatabaseUnavailable(_) | Self::StatementTimeout(_) | Self::DatabaseFailed(_)
        )
    }
}

const fn refusal(
    status: u16,
    errcode: &'static str,
    soft_logout: Option<bool>,
    text: &'static str,
) -> Error {
    Error::Refusal(Refusal { status, errcode, soft_logout, text: Cow::Borrowed(text) })
}

/// An error's text, and those of what is behind it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let errors = std::iter::successors(Some(error), |error| error.source());
    errors.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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
            (Error::USER_NOT_FOUND, "what MAS says: User not found"),
        ] {
            assert_eq!(error.cause().as_deref(), Some(expected));
        }
    }
}
