//! Tokens of Matrix Authentication Service, which is asked what they are good for (RFC 7662,
//! "OAuth 2.0 Token Introspection"; `synapse/api/auth/mas.py`).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use ring::digest::{SHA256, digest};
use sqlx::Row;
use tokio::sync::Mutex as AsyncMutex;
use url::form_urlencoded;

use super::{AccessToken, Admin, Claim, introspection::Introspection};
use crate::{
    aws::{Aws, Failure, Stage},
    client::Client,
    config::{MasConfig, MasSecret},
    error::Error,
    postgres::{Connection, failure},
};

/// How many introspections are remembered at most.
const MOST_REMEMBERED: usize = 1000;

/// How long the texts of one may be, in bytes.
const MOST_BYTES: usize = 4096;

/// Matrix Authentication Service.
#[derive(Debug)]
pub struct Mas {
    config: MasConfig,
    client: Client,
    introspect: String,
    /// Where the secret is read from, and as it was read last.
    aws: Option<Aws>,
    secret: AsyncMutex<Option<HeaderValue>>,
    remembered: Mutex<HashMap<Key, Introspection>>,
}

/// A digest of a token, so that none is kept.
type Key = [u8; 32];

impl Mas {
    /// A MAS that has not been asked yet.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub fn new(config: MasConfig) -> Result<Self, rustls::Error> {
        let base = config.endpoint.as_str().trim_end_matches('/');
        Ok(Self {
            introspect: format!("{base}/oauth2/introspect"),
            client: Client::new()?,
            aws: match &config.secret {
                MasSecret::Text(_) => None,
                MasSecret::Arn { region, .. } => Some(Aws::new(region.clone())),
            },
            secret: AsyncMutex::new(None),
            remembered: Mutex::default(),
            config,
        })
    }

    /// Reads the secret ahead of the first request. If that fails, the request tries again.
    ///
    /// # Errors
    ///
    /// [`Error::IntrospectionFailed`].
    pub async fn prepare(&self) -> Result<(), Error> {
        self.secret(None).await.map(drop)
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
        let secret = self.secret(None).await?;
        let mut answer = self.send(token, &secret).await?;
        if matches!(answer.0, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            && self.aws.is_some()
        {
            // The secret was rotated since it was read.
            let renewed = self.secret(Some(&secret)).await?;
            if renewed != secret {
                answer = self.send(token, &renewed).await?;
            }
        }
        let introspection = Introspection::read(answer.0, &answer.1, now_ms)?;
        self.remember(token, &introspection);
        Ok(introspection)
    }

    async fn send(
        &self,
        token: &AccessToken,
        secret: &HeaderValue,
    ) -> Result<(StatusCode, Bytes), Error> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token.expose())
            .append_pair("token_type_hint", "access_token")
            .finish();
        let request = Request::post(&self.introspect)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, secret)
            .header("x-mas-supports-device-id", "1")
            .body(Full::from(form))
            .map_err(|error| Error::IntrospectionFailed(error.to_string()))?;
        self.client.send(request).await.map_err(Error::IntrospectionFailed)
    }

    /// The `Authorization` that MAS wants; read anew if it is `refused`.
    async fn secret(&self, refused: Option<&HeaderValue>) -> Result<HeaderValue, Error> {
        let mut latest = self.secret.lock().await;
        if let Some(secret) = latest.as_ref().filter(|secret| Some(*secret) != refused) {
            return Ok(secret.clone());
        }
        let secret = match (&self.config.secret, &self.aws) {
            (MasSecret::Arn { arn, .. }, Some(aws)) => {
                let secret = aws.secret(arn, Stage::Current).await;
                secret.map_err(|failure| match failure {
                    Failure::Unavailable(cause) | Failure::Refused(cause) => {
                        Error::IntrospectionFailed(cause)
                    }
                })?
            }
            (MasSecret::Text(secret), _) => secret.expose().to_owned(),
            (MasSecret::Arn { .. }, None) => String::new(),
        };
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {}", secret.trim())).map_err(|_| {
                Error::IntrospectionFailed("its secret cannot be sent in a header".to_owned())
            })?;
        bearer.set_sensitive(true);
        *latest = Some(bearer.clone());
        Ok(bearer)
    }

    fn remembered(&self, token: &AccessToken, now_ms: i64) -> Option<Introspection> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(token);
        let introspection = remembered.get(&key)?;
        // One of the future is of a clock that was set back.
        let age_ms = now_ms.checked_sub(introspection.at_ms).filter(|age_ms| *age_ms >= 0);
        if age_ms.is_none_or(|age_ms| age_ms >= self.config.cache_ms) {
            remembered.remove(&key);
            return None;
        }
        Some(introspection.clone())
    }

    /// Only of active tokens, so that a flood of bad ones fills nothing.
    fn remember(&self, token: &AccessToken, introspection: &Introspection) {
        if self.config.cache_ms > 0 && introspection.length() <= MOST_BYTES {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if remembered.len() >= MOST_REMEMBERED {
                remembered.clear();
            }
            remembered.insert(key(token), introspection.clone());
        }
    }

    fn forget(&self, token: &AccessToken) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.remove(&key(token));
    }

    /// Whether the holder of a token that was introspected is an admin; `None` if the replica does
    /// not know the user or the device and the homeserver may be asked. Neither the user's flags nor
    /// whether the account has expired count, as in Synapse.
    ///
    /// # Errors
    ///
    /// The refusals of [`Error`], in Synapse's order.
    pub async fn admin(
        &self,
        connection: &mut Connection,
        claim: &Claim,
        introspection: &Introspection,
        may_ask: bool,
    ) -> Result<Option<Admin>, Error> {
        if !introspection.is_for_client_api() {
            return Err(Error::TOKEN_WITHOUT_CLIENT_SCOPE);
        }
        let username = introspection.username.as_ref().ok_or(Error::INVALID_USERNAME_CLAIM)?;
        if username.contains('\0') {
            // No text in PostgreSQL can have it.
            return Err(Error::USER_NOT_FOUND);
        }
        let user_id = format!("@{username}:{}", self.config.server_name);
        let device_id = introspection.device_id();
        let absent = self.absent(connection, &user_id, device_id.as_ref().ok()).await?;
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
                self.forget(&claim.token);
                // The homeserver asks MAS anew, and its primary database.
                return if may_ask { device_id.map(|_| None) } else { Err(absent) };
            }
        }
        if !introspection.is_for_admin() {
            return Err(Error::NOT_AN_ADMIN);
        }
        Ok(Some(Admin(())))
    }

    /// What the replica lacks of a user and a device; `None` if nothing.
    async fn absent(
        &self,
        connection: &mut Connection,
        user_id: &str,
        device_id: Option<&Option<String>>,
    ) -> Result<Option<Error>, Error> {
        let device_id = device_id.and_then(Option::as_deref);
        let query = sqlx::query(&connection.statements.device).bind(user_id).bind(device_id);
        let found = connection.row("looking up a device", query).await?;
        // A name that the database's encoding cannot write is nobody's.
        let Some(found) = found else { return Ok(Some(Error::USER_NOT_FOUND)) };
        let column = |error: sqlx::Error| failure("reading a device", &error);
        let user_is_known: bool = found.try_get("user_is_known").map_err(column)?;
        let device_is_known: bool = found.try_get("device_is_known").map_err(column)?;
        Ok(match (user_is_known, device_is_known) {
            (false, _) => Some(Error::USER_NOT_FOUND),
            (true, false) if device_id.is_some() => Some(Error::TOKEN_NOT_ACTIVE),
            _ => None,
        })
    }
}

fn key(token: &AccessToken) -> Key {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.expose().as_bytes()).as_ref());
    key
}
