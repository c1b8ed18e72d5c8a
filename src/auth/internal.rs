//! Tokens that Synapse keeps itself, in its tables `access_tokens` and `users`.

use sqlx::Row;

use super::{AccessToken, Admin};
use crate::{
    error::Error,
    postgres::{Connection, failure},
    statement,
};

pub(super) async fn admin(
    connection: &mut Connection,
    token: &AccessToken,
    now_ms: i64,
) -> Result<Admin, Error> {
    let query = sqlx::query(statement::ACCESS_TOKEN).bind(&token.0);
    let user =
        connection.row("looking up an access token", query).await?.ok_or(Error::UnknownToken)?;
    let column = |error: sqlx::Error| failure("reading the user of an access token", &error);

    let valid_until_ms: Option<i64> = user.try_get("valid_until_ms").map_err(column)?;
    if valid_until_ms.is_some_and(|valid_until_ms| valid_until_ms < now_ms) {
        return Err(Error::ExpiredToken);
    }
    // Synapse parses the name before it looks at the flags (`UserID.from_string`).
    let user_id: &str = user.try_get("name").map_err(column)?;
    let Some(rest) = user_id.strip_prefix('@') else {
        return Err(Error::UserIdWithoutSigil);
    };
    if !rest.contains(':') {
        return Err(Error::UserIdWithoutServerName);
    }
    if user.try_get("locked").map_err(column)? {
        return Err(Error::UserLocked);
    }
    if user.try_get("is_guest").map_err(column)? {
        return Err(Error::GuestAccessForbidden);
    }
    if !user.try_get::<bool, _>("admin").map_err(column)? {
        return Err(Error::NotAnAdmin);
    }
    Ok(Admin(()))
}
