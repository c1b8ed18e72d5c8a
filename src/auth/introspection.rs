//! What an introspection says of a token (RFC 7662, section 2.2; `synapse/api/auth/mas.py`).

use std::collections::BTreeSet;

use hyper::StatusCode;
use serde::Deserialize;

use super::object;
use crate::error::Error;

/// The scopes that make a token one for the client-server API; the second is the unstable one.
pub(super) const CLIENT_API: [&str; 2] =
    ["urn:matrix:client:api:*", "urn:matrix:org.matrix.msc2967.client:api:*"];

/// What the scope of a device begins with, likewise.
const DEVICE: [&str; 2] =
    ["urn:matrix:client:device:", "urn:matrix:org.matrix.msc2967.client:device:"];

/// The scope of an admin of the homeserver.
pub(super) const ADMIN: [&str; 1] = ["urn:synapse:admin:*"];

/// What MAS says of a token: its answer (RFC 7662, section 2.2), with MAS's own `device_id`. Of other
/// fields nothing is asked.
#[derive(Debug, Clone, Deserialize)]
pub struct Introspection {
    active: bool,
    /// Items with blanks between them, see [`Introspection::scope`].
    scope: Option<String>,
    /// The localpart of its user.
    pub username: Option<String>,
    /// The device that MAS names.
    device_id: Option<String>,
    /// When the token ends, in s from `at_ms` on; `None` is never.
    expires_in: Option<i128>,
    /// When it was asked for, as Unix time in ms.
    #[serde(skip)]
    pub(super) at_ms: i64,
}

impl Introspection {
    /// Reads MAS's answer, that came at the Unix time `now_ms`, in ms.
    ///
    /// # Errors
    ///
    /// [`Error::TOKEN_NOT_ACTIVE`]; [`Error::IntrospectionFailed`] for what is no introspection.
    pub fn read(status: StatusCode, body: &[u8], now_ms: i64) -> Result<Self, Error> {
        if !status.is_success() {
            return Err(Error::IntrospectionFailed(format!("it answered with status {status}")));
        }
        let rubbish = || Error::IntrospectionFailed("its answer is no introspection".to_owned());
        let introspection = Self { at_ms: now_ms, ..object(body).ok_or_else(rubbish)? };
        if introspection.active { Ok(introspection) } else { Err(Error::TOKEN_NOT_ACTIVE) }
    }

    /// What the token is good for.
    pub fn scope(&self) -> impl Iterator<Item = &str> {
        let scope = self.scope.as_deref().unwrap_or_default();
        scope.split(' ').filter(|item| !item.is_empty())
    }

    /// The device that the token is of: the one that MAS names, else that of the scope. A token
    /// need not be of any.
    ///
    /// # Errors
    ///
    /// [`Error::MULTIPLE_DEVICE_IDS`], [`Error::INVALID_DEVICE_ID`].
    pub fn device_id(&self) -> Result<Option<String>, Error> {
        let in_scope =
            self.scope().filter_map(|item| DEVICE.iter().find_map(|it| item.strip_prefix(it)));
        // The same device can be there by both prefixes.
        let named = self.device_id.as_deref().map(|device_id| BTreeSet::from([device_id]));
        let mut device_ids = named.unwrap_or_else(|| in_scope.collect());
        let Some(device_id) = device_ids.pop_first() else { return Ok(None) };
        if !device_ids.is_empty() {
            return Err(Error::MULTIPLE_DEVICE_IDS);
        }
        let is_valid = (1..=255).contains(&device_id.chars().count()) && !device_id.contains('\0');
        if is_valid { Ok(Some(device_id.to_owned())) } else { Err(Error::INVALID_DEVICE_ID) }
    }

    /// Whether the token has one of these scopes.
    pub(super) fn has(&self, scopes: &[&str]) -> bool {
        self.scope().any(|item| scopes.contains(&item))
    }

    /// Whether the token has ended at the Unix time `now_ms`, in ms.
    pub fn has_expired(&self, now_ms: i64) -> bool {
        let until_ms = |s: i128| s.saturating_mul(1000).saturating_add(self.at_ms.into());
        self.expires_in.map(until_ms).is_some_and(|until_ms| until_ms <= now_ms.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introspection(scope: &str, device_id: Option<&str>) -> Introspection {
        Introspection {
            active: true,
            scope: Some(scope.to_owned()),
            username: None,
            device_id: device_id.map(str::to_owned),
            expires_in: None,
            at_ms: 0,
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
        assert_eq!(device(&several, None), Err(Error::MULTIPLE_DEVICE_IDS));
        assert_eq!(device(&several, Some("EF")), Ok(Some("EF".to_owned())));
        assert_eq!(device(stable, None), Err(Error::INVALID_DEVICE_ID));
        assert_eq!(device("", Some("")), Err(Error::INVALID_DEVICE_ID));
        let longest = "é".repeat(255);
        assert_eq!(device("", Some(&longest)), Ok(Some(longest.clone())));
        assert_eq!(device("", Some(&format!("{longest}x"))), Err(Error::INVALID_DEVICE_ID));
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
        assert_eq!(read(r#"{"active":false}"#), Err(Error::TOKEN_NOT_ACTIVE));
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
}
