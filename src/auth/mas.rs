//! Tokens of Matrix Authentication Service, which is asked what they are good for (RFC 7662,
//! "OAuth 2.0 Token Introspection"; `synapse/api/auth/mas.py`).

use hyper::{
    Method, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use url::form_urlencoded;

use super::{
    AccessToken, Admin, Claim, LONGEST_TOKEN, Verdict,
    introspection::{ADMIN, CLIENT_API, Introspection},
};
use crate::{
    aws::{Failure, Secret},
    client::{Answer, Client, bearer},
    config::MasConfig,
    error::Error,
    postgres::Connection,
    statement::Statement,
};

/// Matrix Authentication Service.
pub struct Mas {
    client: Client,
    /// What it shares with the homeserver, as the `Authorization` header that it wants.
    secret: Box<Secret<HeaderValue>>,
    server_name: String,
    cache_ms: i64,
    /// The latest introspection of an active token, with a digest of the token in place of the token.
    latest: Mutex<Option<(Vec<u8>, Introspection)>>,
}

impl Mas {
    /// A MAS that has not been asked yet.
    pub fn new(config: MasConfig) -> Self {
        let MasConfig { endpoint, secret, server_name, cache_ms } = config;
        let client = Client::new(&endpoint, "/oauth2/introspect");
        let secret = Secret::new(secret, authorization).into();
        Self { client, secret, server_name, cache_ms, latest: Mutex::default() }
    }

    /// Finds out whether the secret can be read, and keeps it. Where it cannot, the latest stays in
    /// place.
    ///
    /// # Errors
    ///
    /// [`Error::IntrospectionFailed`].
    pub async fn check_secret(&self) -> Result<(), Error> {
        self.secret.renewed().await.map(drop).map_err(no_secret)
    }

    /// What a token is good for, at the Unix time `now_ms`, in ms.
    ///
    /// # Errors
    ///
    /// [`Error::TOKEN_NOT_ACTIVE`], [`Error::IntrospectionFailed`].
    pub async fn introspect(
        &self,
        token: &AccessToken,
        now_ms: i64,
    ) -> Result<Introspection, Error> {
        if token.expose().len() > LONGEST_TOKEN {
            return Err(Error::TOKEN_NOT_ACTIVE);
        }
        let key = digest(&SHA256, token.expose().as_bytes()).as_ref().to_vec();
        let remembered = self.latest.lock().clone().filter(|(of, introspection)| {
            // One of the future is of a clock that was set back.
            let age_ms = now_ms.saturating_sub(introspection.at_ms);
            (0..self.cache_ms).contains(&age_ms) && *of == key
        });
        let introspection = if let Some((_, introspection)) = remembered {
            introspection
        } else {
            // The error of a bad token, so that a flood of those takes no good one's place.
            let introspection = self.ask(token, now_ms).await?;
            *self.latest.lock() = Some((key, introspection.clone()));
            introspection
        };
        Some(introspection).filter(|it| !it.has_expired(now_ms)).ok_or(Error::TOKEN_NOT_ACTIVE)
    }

    async fn ask(&self, token: &AccessToken, now_ms: i64) -> Result<Introspection, Error> {
        let authorization = self.secret.get().await.map_err(no_secret)?;
        let mut answer = self.send(token, authorization).await?;
        if matches!(answer.0, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            // The secret may have been rotated since it was read.
            && let Some(renewed) = self.secret.renewed().await.map_err(no_secret)?
        {
            answer = self.send(token, renewed).await?;
        }
        Introspection::read(answer.0, &answer.1, now_ms)
    }

    async fn send(&self, token: &AccessToken, authorization: HeaderValue) -> Result<Answer, Error> {
        let form = [("token", token.expose()), ("token_type_hint", "access_token")];
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, authorization)
            .header("x-mas-supports-device-id", "1");
        self.client.send(request, form).await.map_err(Error::IntrospectionFailed)
    }

    /// Whether the holder of a token that was introspected is an admin; `None` if the replica does
    /// not know the user or the device and the homeserver may be asked. Neither the user's flags nor
    /// whether the account has expired count, as in Synapse.
    ///
    /// # Errors
    ///
    /// The refusals of [`Error`], in Synapse's order.
    pub async fn admin(&self, connection: &mut Connection, claim: &Claim) -> Verdict {
        // Every claim has one here. If this had none, that would be no fault of the token.
        let not_asked = || Error::IntrospectionFailed("nobody has asked MAS".to_owned());
        let introspection = claim.introspection.as_ref().ok_or_else(not_asked)?;
        if !introspection.has(&CLIENT_API) {
            return Err(Error::TOKEN_WITHOUT_CLIENT_SCOPE);
        }
        let username = introspection.username.as_ref().ok_or(Error::INVALID_USERNAME_CLAIM)?;
        if username.contains('\0') {
            // No text in PostgreSQL can have it.
            return Err(Error::USER_NOT_FOUND);
        }
        let user_id = format!("@{username}:{}", self.server_name);
        let device_id = introspection.device_id();
        let known_device_id = device_id.as_ref().ok().and_then(Option::as_deref);
        let text = Statement::DEVICE.in_schema(&connection.schema);
        let query = sqlx::query(&text).bind(&user_id).bind(known_device_id);
        let absent = match connection.lookup("looking up a device", query).await? {
            // A name that the database's encoding cannot write is nobody's.
            None | Some((false, _)) => Some(Error::USER_NOT_FOUND),
            Some((true, false)) if known_device_id.is_some() => Some(Error::TOKEN_NOT_ACTIVE),
            Some((true, _)) => None,
        };
        // The homeserver takes an odd introspection for odd too.
        match (absent, &claim.owner) {
            (None, _) => drop(device_id?),
            (Some(_), Some(owner)) => {
                if owner.user_id != user_id || owner.device_id != device_id? {
                    let cause = "it names another user or device than MAS".to_owned();
                    return Err(Error::HomeserverUnavailable(cause));
                }
            }
            (Some(absent), None) => {
                *self.latest.lock() = None;
                // The homeserver asks MAS anew, and its primary database.
                return if claim.may_ask { device_id.map(|_| None) } else { Err(absent) };
            }
        }
        if !introspection.has(&ADMIN) {
            return Err(Error::NOT_AN_ADMIN);
        }
        Ok(Some(Admin(user_id)))
    }
}

/// The header that MAS wants of its secret.
fn authorization(secret: &str) -> Result<HeaderValue, String> {
    bearer(secret.trim()).ok_or_else(|| "its secret cannot be sent in a header".to_owned())
}

fn no_secret(failure: Failure) -> Error {
    Error::IntrospectionFailed(failure.cause)
}
