//! Tokens of Matrix Authentication Service, which is asked what they are good for (RFC 7662,
//! "OAuth 2.0 Token Introspection"; `synapse/api/auth/mas.py`).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::Row;
use tokio::sync::Mutex as AsyncMutex;
use url::form_urlencoded;

use super::{AccessToken, Admin, Claim, homeserver::Homeserver, object};
use crate::{
    aws::{Aws, Failure, Stage},
    client::Client,
    config::{MasConfig, MasSecret},
    error::Error,
    postgres::{Connection, failure},
};

/// The scopes that make a token one for the client-server API; the second is the unstable one.
const CLIENT_API: [&str; 2] =
    ["urn:matrix:client:api:*", "urn:matrix:org.matrix.msc2967.client:api:*"];

/// What the scope of a device begins with, likewise.
const DEVICE: [&str; 2] =
    ["urn:matrix:client:device:", "urn:matrix:org.matrix.msc2967.client:device:"];

/// The scope of an admin of the homeserver.
const ADMIN: &str = "urn:synapse:admin:*";

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

/// What MAS says of a token.
#[derive(Debug, Clone)]
pub struct Introspection {
    /// What the token is good for.
    pub scope: BTreeSet<String>,
    /// The localpart of its user.
    pub username: Option<String>,
    device_id: Option<String>,
    /// When it was asked for, as Unix time in ms.
    at_ms: i64,
    /// When the token ends, likewise; `None` is never.
    pub until_ms: Option<i64>,
}

/// The answer (RFC 7662, section 2.2), and MAS's own `device_id`. Of other fields nothing is
/// asked.
#[derive(Deserialize)]
struct Answer<'a> {
    active: bool,
    scope: Option<String>,
    username: Option<String>,
    device_id: Option<String>,
    /// In s, from now on. Raw, because an integer is asked for, of any size.
    #[serde(borrow)]
    expires_in: Option<&'a RawValue>,
}

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
    /// [`Error::TokenNotActive`], [`Error::IntrospectionFailed`].
    pub async fn introspect(
        &self,
        token: &AccessToken,
        now_ms: i64,
    ) -> Result<Introspection, Error> {
        let introspection = match self.remembered(token, now_ms) {
            Some(introspection) => introspection,
            None => self.ask(token, now_ms).await?,
        };
        if introspection.until_ms.is_some_and(|until_ms| until_ms <= now_ms) {
            return Err(Error::TokenNotActive);
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
            .append_pair("token", &token.0)
            .append_pair("token_type_hint", "access_token")
            .finish();
        let request = Request::post(&self.introspect)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, secret)
            .header("x-mas-supports-device-id", "1")
            .body(Full::from(form))
            .map_err(|error| failed(error.to_string()))?;
        self.client.send(request).await.map_err(failed)
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
                    Failure::Unavailable(cause) | Failure::Refused(cause) => failed(cause),
                })?
            }
            (MasSecret::Text(secret), _) => secret.expose().to_owned(),
            (MasSecret::Arn { .. }, None) => String::new(),
        };
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", secret.trim()))
            .map_err(|_| failed("its secret cannot be sent in a header".to_owned()))?;
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
        let texts = introspection.scope.iter().chain(&introspection.username);
        let length: usize = texts.chain(&introspection.device_id).map(String::len).sum();
        if self.config.cache_ms > 0 && length <= MOST_BYTES {
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

    /// Whether the holder of a token that was introspected is an admin, at the Unix time `now_ms`,
    /// in ms. Neither the user's flags nor whether the account has expired count, as in Synapse.
    ///
    /// # Errors
    ///
    /// The refusals of [`Error`], in Synapse's order. Where the replica knows the user or the
    /// device not yet, the word is the homeserver's, if it can be asked.
    pub async fn admin(
        &self,
        connection: &mut Connection,
        claim: &Claim,
        introspection: &Introspection,
        homeserver: Option<&Homeserver>,
        now_ms: i64,
    ) -> Result<Admin, Error> {
        if !CLIENT_API.iter().any(|scope| introspection.scope.contains(*scope)) {
            return Err(Error::TokenWithoutClientScope);
        }
        let username = introspection.username.as_ref().ok_or(Error::InvalidUsernameClaim)?;
        if username.contains('\0') {
            // No text in PostgreSQL can have it.
            return Err(Error::UserNotFound);
        }
        let user_id = format!("@{username}:{}", self.config.server_name);
        let device_id = introspection.device_id();

        let bound = device_id.as_ref().ok().and_then(Option::as_deref);
        let query = sqlx::query(&connection.statements.device).bind(&user_id).bind(bound);
        let found = connection.row("looking up a device", query).await?;
        let found = found.ok_or_else(|| Error::DatabaseFailed {
            cause: "looking up a device found no row".to_owned(),
        })?;
        let column = |error: sqlx::Error| failure("reading a device", &error);
        let user_is_known: bool = found.try_get("user_is_known").map_err(column)?;
        let device_is_known: bool = found.try_get("device_is_known").map_err(column)?;

        let absent = match (&device_id, user_is_known, device_is_known) {
            (_, false, _) => Some(Error::UserNotFound),
            (Ok(Some(_)), true, false) => Some(Error::TokenNotActive),
            _ => None,
        };
        if let Some(absent) = absent {
            // The homeserver asks MAS anew, and its primary database.
            self.forget(&claim.token);
            let Some(homeserver) = homeserver else { return Err(absent) };
            // What is odd in the introspection is odd for the homeserver too.
            let device_id = device_id?;
            let owner = claim.owner(connection, homeserver, now_ms).await?;
            if owner.user_id != user_id || owner.device_id != device_id {
                let cause = "it names another user or device than MAS".to_owned();
                return Err(Error::HomeserverUnavailable { cause });
            }
        } else {
            device_id?;
        }
        if !introspection.scope.contains(ADMIN) {
            return Err(Error::NotAnAdmin);
        }
        Ok(Admin(()))
    }
}

impl Introspection {
    /// Reads MAS's answer, that came at the Unix time `now_ms`, in ms.
    ///
    /// # Errors
    ///
    /// [`Error::TokenNotActive`]; [`Error::IntrospectionFailed`] for what is no introspection.
    pub fn read(status: StatusCode, body: &[u8], now_ms: i64) -> Result<Self, Error> {
        if !status.is_success() {
            return Err(failed(format!("it answered with status {status}")));
        }
        let answer: Answer =
            object(body).ok_or_else(|| failed("its answer is no introspection".to_owned()))?;
        let until_ms = match answer.expires_in {
            None => None,
            Some(seconds) => Some(
                until_ms(seconds.get(), now_ms)
                    .ok_or_else(|| failed("expires_in is no integer".to_owned()))?,
            ),
        };
        if !answer.active {
            return Err(Error::TokenNotActive);
        }
        let scope = answer.scope.unwrap_or_default();
        Ok(Self {
            scope: scope.split(' ').filter(|item| !item.is_empty()).map(str::to_owned).collect(),
            username: answer.username,
            device_id: answer.device_id,
            at_ms: now_ms,
            until_ms,
        })
    }

    /// The device that the token is of: the one that MAS names, else that of the scope. A token
    /// need not be of any.
    ///
    /// # Errors
    ///
    /// [`Error::MultipleDeviceIds`], [`Error::InvalidDeviceId`].
    pub fn device_id(&self) -> Result<Option<String>, Error> {
        let device_id = if let Some(device_id) = &self.device_id {
            device_id.as_str()
        } else {
            let in_scope = self
                .scope
                .iter()
                .filter_map(|item| DEVICE.iter().find_map(|prefix| item.strip_prefix(prefix)));
            // The same device can be there by both prefixes.
            let mut device_ids: BTreeSet<_> = in_scope.collect();
            match (device_ids.pop_first(), device_ids.is_empty()) {
                (None, _) => return Ok(None),
                (Some(device_id), true) => device_id,
                (Some(_), false) => return Err(Error::MultipleDeviceIds),
            }
        };
        if !(1..=255).contains(&device_id.chars().count()) || device_id.contains('\0') {
            return Err(Error::InvalidDeviceId);
        }
        Ok(Some(device_id.to_owned()))
    }
}

fn key(token: &AccessToken) -> Key {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.0.as_bytes()).as_ref());
    key
}

fn failed(cause: String) -> Error {
    Error::IntrospectionFailed { cause }
}

/// When so many seconds from now are over, as Unix time in ms.
fn until_ms(seconds: &str, now_ms: i64) -> Option<i64> {
    let digits = seconds.strip_prefix('-').unwrap_or(seconds);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let most = if digits.len() == seconds.len() { i64::MAX } else { i64::MIN };
    Some(seconds.parse().unwrap_or(most).saturating_mul(1000).saturating_add(now_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introspection(scope: &str, device_id: Option<&str>) -> Introspection {
        Introspection {
            scope: scope.split(' ').map(str::to_owned).collect(),
            username: None,
            device_id: device_id.map(str::to_owned),
            at_ms: 0,
            until_ms: None,
        }
    }

    #[test]
    fn the_device_is_named_or_the_one_in_the_scope() {
        let [stable, unstable] = DEVICE;
        let device = |scope: &str, device_id| introspection(scope, device_id).device_id();
        assert_eq!(device("openid", None), Ok(None));
        for scope in
            [format!("{stable}AB"), format!("{unstable}AB"), format!("{stable}AB {unstable}AB")]
        {
            assert_eq!(device(&scope, None), Ok(Some("AB".to_owned())));
        }
        let several = format!("{stable}AB {unstable}CD");
        assert_eq!(device(&several, None), Err(Error::MultipleDeviceIds));
        assert_eq!(device(&several, Some("EF")), Ok(Some("EF".to_owned())));
        assert_eq!(device(stable, None), Err(Error::InvalidDeviceId));
        assert_eq!(device("", Some("")), Err(Error::InvalidDeviceId));
        let longest = "é".repeat(255);
        assert_eq!(device("", Some(&longest)), Ok(Some(longest.clone())));
        assert_eq!(device("", Some(&format!("{longest}x"))), Err(Error::InvalidDeviceId));
    }

    #[test]
    fn an_introspection_is_an_object_with_fields_of_their_types() {
        let read_bytes = |body: &[u8]| {
            let introspection = Introspection::read(StatusCode::OK, body, 5);
            introspection.map(|introspection| introspection.username)
        };
        let read = |body: &str| read_bytes(body.as_bytes());
        assert_eq!(read(r#" {"active":true,"username":"a","x":[7]}"#), Ok(Some("a".to_owned())));
        assert_eq!(read(r#"{"active":true,"username":null}"#), Ok(None));
        assert_eq!(read(r#"{"active":false}"#), Err(Error::TokenNotActive));
        for wrong in [
            "",
            "7",
            r#"[true,"urn:matrix:client:api:* urn:synapse:admin:*","a",null,null]"#,
            "{}",
            r#"{"active":null}"#,
            r#"{"active":"true"}"#,
            r#"{"active":true,"username":7}"#,
            r#"{"active":true,"scope":["openid"]}"#,
            r#"{"active":false,"expires_in":"7"}"#,
            r#"{"active":false,"active":true}"#,
            "{\"active\":true,\"username\":\"\\ud800\"}",
        ] {
            let error = read(wrong).unwrap_err();
            assert!(matches!(error, Error::IntrospectionFailed { .. }), "{wrong}: {error:?}");
        }
        let no_text = read_bytes(b"{\"active\":true,\"x\":\"\xff\"}");
        assert!(matches!(no_text, Err(Error::IntrospectionFailed { .. })));
        let failing = Introspection::read(StatusCode::BAD_GATEWAY, br#"{"active":true}"#, 5);
        assert!(matches!(failing, Err(Error::IntrospectionFailed { .. })));
    }

    #[test]
    fn the_time_left_is_an_integer_of_any_size() {
        assert_eq!(until_ms("300", 5), Some(300_005));
        assert_eq!(until_ms("-1", 5), Some(-995));
        assert_eq!(until_ms("0", 5), Some(5));
        assert_eq!(until_ms("99999999999999999999", 5), Some(i64::MAX));
        assert_eq!(until_ms("-99999999999999999999", 5), Some(i64::MIN + 5));
        for wrong in ["", "-", "3e2", "300.0", "true", "\"300\"", "+1"] {
            assert_eq!(until_ms(wrong, 5), None, "{wrong}");
        }
    }
}
