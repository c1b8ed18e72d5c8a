//! Who asks: the access token of a request, and the evidence that it is an admin's.
//!
//! # What is trusted
//!
//! The replica's tables, for who is an admin; with MAS its introspection, for what a token is good
//! for; the homeserver, for whose token it is that the replica does not know, and never for who is
//! an admin. All three are reached over connections that the operator configured, verified by TLS
//! where the URL says so. Nothing that a caller sends is trusted: the gateway checks no token.
//!
//! # What an attacker can reach
//!
//! Tests in `tests/it` in parentheses.
//!
//! - With a valid token of somebody who is no admin, of a guest or of a locked admin: 403 or 401,
//!   after one lookup. Parameters are not even read (`auth::every_way_in`,
//!   `introspection::parameters_are_judged_after_the_token`).
//! - With a stolen token that has expired, or whose device is gone: 401, also while it is
//!   remembered (`introspection::an_introspection_is_remembered_as_long_as_it_may_be_and_no_longer`,
//!   `introspection::what_is_remembered_is_still_checked`).
//! - With a stolen token that is good: what its owner may see, as in Synapse, until it is revoked;
//!   with `MAS_CACHE_SECONDS` that much longer.
//! - With an introspection answer of its own making, which takes the connection to MAS: everything,
//!   as with Synapse; `https` keeps others out of it. With anything less than a whole, well-formed
//!   answer: 503 (`introspection::what_mas_says_is_read_as_synapse_reads_it`). A redirect is not followed
//!   (`introspection::a_redirect_takes_the_token_nowhere`).
//! - With control of the query string: the page's parameters. They are bound, never spliced
//!   (`statements`), and name nobody (`introspection::the_query_string_makes_nobody_else_of_the_caller`).
//! - With a token made of line breaks: no header of another request
//!   (`whoami::tokens_that_no_header_can_carry_are_never_sent`).
//! - With many bad tokens: one lookup each in the replica's index, at most ten questions at once
//!   and one a second to the homeserver for each execution environment, one introspection each
//!   for MAS (two while its secret is being rotated); the gateway's throttling is before all of it
//!   (`whoami::a_flood_of_unknown_tokens_stays_here`).
//! - With a role of the database that may create things: nothing. No statement uses a name that is
//!   looked up outside of `pg_catalog` and Synapse's schema (`statements`).
//! - By timing: the lookup compares in the server's index, as Synapse's does.
//! - In the log: no token, secret or digest (`auth::neither_tokens_nor_secrets_nor_digests_are_logged_at_any_level`).

mod homeserver;
mod internal;
mod introspection;
mod mas;

use std::time::{Duration, Instant};

use lambda_http::http::{HeaderMap, header::AUTHORIZATION};
use serde::Deserialize;
use tokio::time::timeout;

pub use self::introspection::Introspection;
use self::{
    homeserver::{Homeserver, Owner},
    mas::Mas,
};
use crate::{
    config::Authentication, error::Error, invocation::Invocation, postgres::Connection, query::Args,
};

/// How long a token may be that another server is asked about, in bytes. Synapse's and MAS's have less
/// than a hundred. What stands before these servers refuses a longer one as no request at all.
const LONGEST_TOKEN: usize = 2048;

/// A token that is none: neither Synapse nor MAS makes any that begins like this.
const MADE_UP_TOKEN: &str = "synapse-media-usage-probe";

/// An access token as the request carries it. It has no `Debug`, so that no log shows it.
pub struct AccessToken(String);

impl AccessToken {
    /// Finds the token in the `Authorization` header or the `access_token` parameter
    /// (`get_access_token_from_request` in Synapse's `synapse/api/auth/base.py`).
    ///
    /// # Errors
    ///
    /// The `M_MISSING_TOKEN`s of [`Error`]; [`Error::UNKNOWN_TOKEN`] for bytes that no token in
    /// the database can have (D8).
    pub fn from_request(headers: &HeaderMap, args: &Args) -> Result<Self, Error> {
        let authorizations: Vec<_> = headers.get_all(AUTHORIZATION).iter().collect();
        let token = match (&authorizations[..], args.get("access_token")) {
            ([], None) => return Err(Error::MISSING_TOKEN),
            ([], Some(token)) => token,
            ([authorization], None) => bearer_token(authorization.as_bytes())?,
            (_, None) => return Err(Error::TOO_MANY_AUTHORIZATION_HEADERS),
            (_, Some(_)) => return Err(Error::MIXED_CREDENTIALS),
        };
        let token = str::from_utf8(token).ok().filter(|token| !token.contains('\0'));
        token.map(|token| Self(token.to_owned())).ok_or(Error::UNKNOWN_TOKEN)
    }

    /// The token, to be looked up and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Exactly `Bearer`, one space and a token without spaces; blanks around do not belong to a
/// header's value (RFC 9110, section 5.5).
fn bearer_token(authorization: &[u8]) -> Result<&[u8], Error> {
    let token = authorization.trim_ascii().strip_prefix(b"Bearer ");
    let token = token.filter(|token| !token.is_empty() && !token.contains(&b' '));
    token.ok_or(Error::INVALID_AUTHORIZATION_HEADER)
}

/// The evidence that a request comes from an admin of the homeserver: only [`Authenticator`]
/// makes one, and nothing is read for a caller without it.
pub struct Admin(String);

impl Admin {
    /// The user whose rights counted: of a token by which an admin acts as another user, that user.
    pub fn user_id(&self) -> &str {
        &self.0
    }
}

/// Reads a JSON object, and nothing else: serde also takes a list of its values for one, and looks
/// for UTF-8 only in the fields that are asked for.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    let json = str::from_utf8(json).ok()?;
    json.trim_ascii_start().starts_with('{').then(|| serde_json::from_str(json).ok())?
}

/// Knows who is an admin.
pub struct Authenticator {
    /// Where it is, tokens are its own; else Synapse keeps them itself.
    mas: Option<Mas>,
    /// Whether Synapse's accounts expire.
    account_validity: bool,
    /// Asked about tokens, users and devices that the replica does not know.
    homeserver: Option<Homeserver>,
}

/// A token, and what is known of it without the database.
pub struct Claim {
    token: AccessToken,
    /// The invocation that has to answer for it.
    at: Invocation,
    /// Whether there is a homeserver that can be asked.
    may_ask: bool,
    /// What MAS says of it; `None` without MAS.
    introspection: Option<Introspection>,
    /// Whose it is by the word of the homeserver; `None` until that was asked.
    owner: Option<Owner>,
}

/// The evidence, or what speaks against it; `None` if the replica does not know the token, its user
/// or its device, and [`Authenticator::vouch`] has the last word.
pub type Verdict = Result<Option<Admin>, Error>;

/// What came of asking another server, and how long that took; `None` if there is none to ask.
pub type Timed<T> = (Result<T, Error>, Option<Duration>);

impl Authenticator {
    /// An authenticator that has not asked anybody yet.
    pub fn new(config: Authentication) -> Self {
        let mas = config.mas.map(Mas::new);
        let homeserver = config.homeserver.as_ref().map(Homeserver::new);
        Self { mas, account_validity: config.account_validity, homeserver }
    }

    /// Reads the secrets ahead of the first request. If that fails, the request tries again.
    ///
    /// # Errors
    ///
    /// [`Error::IntrospectionFailed`].
    pub async fn prepare(&self) -> Result<(), Error> {
        let Some(mas) = &self.mas else { return Ok(()) };
        mas.check_secret().await
    }

    /// The tables that not every configuration reads, as [`Connection::missing_grants`] takes them.
    pub fn tables(&self) -> &'static str {
        match (&self.mas, self.account_validity) {
            (Some(_), _) => "devices",
            (None, true) => "access_tokens, account_validity",
            (None, false) => "access_tokens",
        }
    }

    /// Finds out, at the Unix time `now_ms`, in ms, whether MAS and the homeserver, where there are
    /// any, judge tokens: by one that they must not know. One is asked whatever the other says.
    ///
    /// # Errors
    ///
    /// [`Error::IntrospectionFailed`] and [`Error::HomeserverUnavailable`].
    pub async fn check(&self, now_ms: i64) -> [Result<(), Error>; 2] {
        let made_up = &AccessToken(MADE_UP_TOKEN.to_owned());
        let mas = async {
            let Some(mas) = &self.mas else { return Ok(()) };
            mas.check_secret().await?;
            is_unknown(mas.introspect(made_up, now_ms).await, Error::IntrospectionFailed)
        };
        let homeserver = async {
            let Some(homeserver) = &self.homeserver else { return Ok(()) };
            is_unknown(homeserver.whoami(made_up, None).await, Error::HomeserverUnavailable)
        };
        futures_util::join!(mas, homeserver).into()
    }

    /// What is known of a token without the database: with MAS, its introspection, and how long
    /// that took.
    ///
    /// # Errors
    ///
    /// With MAS [`Error::TOKEN_NOT_ACTIVE`] and [`Error::IntrospectionFailed`].
    pub async fn claim(&self, token: AccessToken, at: &Invocation) -> Timed<Claim> {
        let may_ask = self.homeserver.is_some();
        let claim = Claim { token, at: *at, may_ask, introspection: None, owner: None };
        let Some(mas) = &self.mas else { return (Ok(claim), None) };
        let introspect = mas.introspect(&claim.token, at.unix_ms);
        let (introspection, took) = in_time(at, introspect, Error::IntrospectionFailed).await;
        (introspection.map(|it| Claim { introspection: Some(it), ..claim }), took)
    }

    /// Checks a claim by the replica. `None` means that the replica does not know the token, its
    /// user or its device. After [`Authenticator::vouch`] it is never `None`.
    ///
    /// # Errors
    ///
    /// The refusals of [`Error`], in Synapse's order; the `Database` errors.
    pub async fn admin(&self, connection: &mut Connection, claim: &Claim) -> Verdict {
        match &self.mas {
            Some(mas) => mas.admin(connection, claim).await,
            None => internal::admin(connection, claim, self.account_validity).await,
        }
    }

    /// Has the homeserver, if there is one, say whose token it is, and how long that took.
    ///
    /// # Errors
    ///
    /// [`Error::Refusal`] in the homeserver's own words, [`Error::GUEST_ACCESS_FORBIDDEN`],
    /// [`Error::HomeserverUnavailable`], [`Error::TOO_MANY_UNKNOWN_TOKENS`], [`Error::UNKNOWN_TOKEN`],
    /// the latter also where there is no homeserver.
    pub async fn vouch(&self, claim: Claim) -> Timed<Claim> {
        let Some(homeserver) = &self.homeserver else { return (Err(Error::UNKNOWN_TOKEN), None) };
        let whoami = homeserver.whoami(&claim.token, Some(claim.at.unix_ms));
        let (owner, took) = in_time(&claim.at, whoami, Error::HomeserverUnavailable).await;
        (owner.map(|it| Claim { owner: Some(it), ..claim }), took)
    }
}

/// Whether the token that is none is unknown, by the answer of MAS or of the homeserver.
fn is_unknown<T>(answer: Result<T, Error>, failure: fn(String) -> Error) -> Result<(), Error> {
    match answer.err() {
        Some(Error::Refusal(it)) if it.errcode == "M_UNKNOWN_TOKEN" => Ok(()),
        Some(error) if !matches!(error, Error::Refusal(_)) => Err(error),
        _ => Err(failure("it does not call a made-up token unknown".to_owned())),
    }
}

/// The answer of another server, which is given up for the sake of the invocation; and how long it
/// took.
async fn in_time<T>(
    at: &Invocation,
    answer: impl Future<Output = Result<T, Error>>,
    failure: fn(String) -> Error,
) -> Timed<T> {
    let start = Instant::now();
    let late = |_| Err(failure("no answer before the end of the invocation".to_owned()));
    let answer = timeout(at.time_limit(), answer).await.unwrap_or_else(late);
    (answer, Some(start.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lambda_http::http::HeaderValue;

    fn token(authorizations: &[&'static str], query: &str) -> Result<String, Error> {
        let mut headers = HeaderMap::new();
        for authorization in authorizations {
            headers.append(AUTHORIZATION, HeaderValue::from_static(authorization));
        }
        AccessToken::from_request(&headers, &Args::parse(query)).map(|token| token.0)
    }

    #[test]
    fn the_token_comes_from_the_header_or_the_parameter_but_not_both() {
        assert_eq!(token(&["Bearer a"], ""), Ok("a".to_owned()));
        assert_eq!(token(&[], "access_token=a%20b&access_token=c"), Ok("a b".to_owned()));
        assert_eq!(token(&[], "access_token"), Ok(String::new()));
        assert_eq!(token(&[], ""), Err(Error::MISSING_TOKEN));
        assert_eq!(token(&["Bearer a"], "access_token=a"), Err(Error::MIXED_CREDENTIALS));
        assert_eq!(token(&["Bearer a", "Bearer a"], "access_token"), Err(Error::MIXED_CREDENTIALS));
        assert_eq!(
            token(&["Bearer a", "Bearer a"], ""),
            Err(Error::TOO_MANY_AUTHORIZATION_HEADERS)
        );
    }

    #[test]
    fn the_header_is_bearer_one_space_token() {
        assert_eq!(token(&["Bearer a  "], ""), Ok("a".to_owned()));
        for header in [
            "",
            "a",
            "Bearer",
            "Bearer ",
            "bearer a",
            "Bearer  a",
            "Bearer\ta",
            "Bearer a b",
            "Bearer a, Bearer a",
            "Basic a",
        ] {
            assert_eq!(
                token(&[header], ""),
                Err(Error::INVALID_AUTHORIZATION_HEADER),
                "{header:?}"
            );
        }
    }

    #[test]
    fn bytes_that_no_token_can_have_are_an_unknown_token() {
        assert_eq!(token(&[], "access_token=%00"), Err(Error::UNKNOWN_TOKEN));
        assert_eq!(token(&[], "access_token=%FF"), Err(Error::UNKNOWN_TOKEN));
    }
}
