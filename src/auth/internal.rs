//! Tokens that Synapse keeps itself, in its tables `access_tokens` and `users`.

use sqlx::Row;

use super::{Admin, Claim, homeserver::Homeserver};
use crate::{
    error::Error,
    postgres::{Connection, failure},
};

pub(super) async fn admin(
    connection: &mut Connection,
    claim: &Claim,
    homeserver: Option<&Homeserver>,
    account_validity: bool,
    now_ms: i64,
) -> Result<Admin, Error> {
    let column = |error: sqlx::Error| failure("reading the user of an access token", &error);
    let query = sqlx::query(&connection.statements.access_token).bind(&claim.token.0);
    let user = match (connection.row("looking up an access token", query).await?, homeserver) {
        (Some(user), _) => {
            let valid_until_ms: Option<i64> = user.try_get("valid_until_ms").map_err(column)?;
            if valid_until_ms.is_some_and(|valid_until_ms| valid_until_ms < now_ms) {
                return Err(Error::ExpiredToken);
            }
            user
        }
        (None, None) => return Err(Error::UnknownToken),
        // One of the last seconds, an application service's, or none at all.
        (None, Some(homeserver)) => {
            let owner = claim.owner(connection, homeserver, now_ms).await?;
            let query = sqlx::query(&connection.statements.user).bind(&owner.user_id);
            // Nobody but the replica says who is an admin.
            connection.row("looking up a user", query).await?.ok_or(Error::ReplicaBehind)?
        }
    };
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
    if account_validity {
        let query = sqlx::query(&connection.statements.account_validity).bind(user_id);
        if let Some(account) = connection.row("looking up an account's validity", query).await? {
            let expiration_ts_ms: i64 = account.try_get("expiration_ts_ms").map_err(column)?;
            if expiration_ts_ms <= now_ms {
                return Err(Error::AccountExpired);
            }
        }
    }
    if user.try_get("is_guest").map_err(column)? {
        return Err(Error::GuestAccessForbidden);
    }
    if !user.try_get::<bool, _>("admin").map_err(column)? {
        return Err(Error::NotAnAdmin);
    }
    Ok(Admin(()))
}
