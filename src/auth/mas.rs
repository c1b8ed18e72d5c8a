//! Tokens of Matrix Authentication Service, which is asked what they are good for (RFC 7662,
//! "OAuth 2.0 Token Introspection"; `synapse/api/auth/mas.py`).

use std::{collections::HashMap, sync::Mutex};

use hyper::{
    Method, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use ring::digest::{SHA256, digest};
use sqlx::Row;
use url::form_urlencoded;

use super::{AccessToken, Admin, Claim, LONGEST_TOKEN, Verdict, introspection::Introspection};
use crate::{
    aws::{Failure, Secret},
    client::{Answer, Client, bearer},
    config::{MasConfig, MasSecret},
    error::Error,
    hidden::Hidden,
    lock::lock,
    postgres::{Connection, failure},
};

/// How many introspections are remembered at most.
const MOST_REMEMBERED: usize = 1000;

/// How long the answer with one may be, in bytes.
const MOST_BYTES: usize = 4096;

/// Matrix Authentication Service.
pub struct Mas {
    client: Client,
    secret: SharedSecret,
    server_name: String,
    cache_ms: i64,
    /// By a digest of the token, so that none is kept.
    remembered: Mutex<HashMap<Vec<u8>, Introspection>>,
}

/// What MAS shares with the homeserver.
enum SharedSecret {
    /// As the configuration has it.
    Text(Hidden<String>),
    /// As the `Authorization` header that MAS wants.
    Arn(Box<Secret<HeaderValue>>),
}

impl Mas {
    /// A MAS that has not been asked yet.
    pub fn new(config: MasConfig) -> Self {
        Self {
            client: Client::new(&config.endpoint, "/oauth2/introspect"),
            secret: match config.secret {
                MasSecret::Text(text) => SharedSecret::Text(text),
                MasSecret::Arn(arn) => SharedSecret::Arn(Secret::new(&arn, authorization).into()),
            },
            server_name: config.server_name,
            cache_ms: config.cache_ms,
            remembered: Mutex::default(),
        }
    }

    /// The `Authorization` header that MAS wants. Whoever asks for it ahead of the first request has
    /// the secret read by then. If that fails, the request tries again.
    ///
    /// # Errors
    ///
    /// [`Error::IntrospectionFailed`].
    pub async fn authorization(&self) -> Result<HeaderValue, Error> {
        match &self.secret {
            SharedSecret::Text(text) => {
                authorization(text.expose()).map_err(Error::IntrospectionFailed)
            }
            SharedSecret::Arn(secret) => secret.get().await.map_err(no_secret),
        }
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
        let introspection = match self.remembered(token, now_ms) {
            Some(introspection) => introspection,
            None => self.ask(token, now_ms).await?,
        };
        if introspection.has_expired(now_ms) {
            return Err(Error::TOKEN_NOT_ACTIVE);
        }
        Ok(introspection)
    }

    async fn ask(&self, token: &AccessToken, now_ms: i64) -> Result<Introspection, Error> {
        let mut answer = self.send(token, self.authorization().await?).await?;
        if matches!(answer.0, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            && let SharedSecret::Arn(secret) = &self.secret
            // The secret may have been rotated since it was read.
            && let Some(renewed) = secret.renewed().await.map_err(no_secret)?
        {
            answer = self.send(token, renewed).await?;
        }
        let (status, body) = answer;
        let introspection = Introspection::read(status, &body, now_ms)?;
        // Only of active tokens, so that a flood of bad ones fills nothing.
        if self.cache_ms > 0 && body.len() <= MOST_BYTES {
            let mut remembered = lock(&self.remembered);
            if remembered.len() >= MOST_REMEMBERED {
                remembered.clear();
            }
            remembered.insert(key(token), introspection.clone());
        }
        Ok(introspection)
    }

    async fn send(&self, token: &AccessToken, authorization: HeaderValue) -> Result<Answer, Error> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token.expose())
            .append_pair("token_type_hint", "access_token")
            .finish();
        let request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, authorization)
            .header("x-mas-supports-device-id", "1");
        self.client.send(request, form).await.map_err(Error::IntrospectionFailed)
    }

    fn remembered(&self, token: &AccessToken, now_ms: i64) -> Option<Introspection> {
        let mut remembered = lock(&self.remembered);
        // One of the future is of a clock that was set back.
        let is_fresh =
            |it: &Introspection| (0..self.cache_ms).contains(&now_ms.saturating_sub(it.at_ms));
        remembered.retain(|_, introspection| is_fresh(introspection));
        remembered.get(&key(token)).cloned()
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
        if !introspection.is_for_client_api() {
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
        let absent = absent(connection, &user_id, known_device_id).await?;
        // What is odd in the introspection is odd for the homeserver too.
        match (absent, &claim.owner) {
            (None, _) => drop(device_id?),
            (Some(_), Some(owner)) => {
                if owner.user_id != user_id || owner.device_id != device_id? {
                    let cause = "it names another user or device than MAS".to_owned();
                    return Err(Error::HomeserverUnavailable(cause));
                }
            }
            (Some(absent), None) => {
                lock(&self.remembered).remove(&key(&claim.token));
                // The homeserver asks MAS anew, and its primary database.
                return if claim.may_ask { device_id.map(|_| None) } else { Err(absent) };
            }
        }
        if !introspection.is_for_admin() {
            return Err(Error::NOT_AN_ADMIN);
        }
        Ok(Some(Admin(())))
    }
}

/// What the replica lacks of a user and a device; `None` if nothing.
async fn absent(
    connection: &mut Connection,
    user_id: &str,
    device_id: Option<&str>,
) -> Result<Option<Error>, Error> {
    let query = sqlx::query(&connection.statements.device).bind(user_id).bind(device_id);
    let found = connection.row("looking up a device", query).await?;
    // A name that the database's encoding cannot write is nobody's.
    let Some(found) = found else { return Ok(Some(Error::USER_NOT_FOUND)) };
    let column = |error: sqlx::Error| failure("reading a device", &error);
    Ok(if !found.try_get("user_is_known").map_err(column)? {
        Some(Error::USER_NOT_FOUND)
    } else if device_id.is_some() && !found.try_get("device_is_known").map_err(column)? {
        Some(Error::TOKEN_NOT_ACTIVE)
    } else {
        None
    })
}

fn key(token: &AccessToken) -> Vec<u8> {
    digest(&SHA256, token.expose().as_bytes()).as_ref().to_vec()
}

/// The header that MAS wants of its secret.
fn authorization(secret: &str) -> Result<HeaderValue, String> {
    bearer(secret.trim()).ok_or_else(|| "its secret cannot be sent in a header".to_owned())
}

fn no_secret(failure: Failure) -> Error {
    let (Failure::Passing(cause) | Failure::Lasting(cause)) = failure;
    Error::IntrospectionFailed(cause)
}
