//! Tokens that Synapse keeps itself, in its tables `access_tokens` and `users`.

use super::{Admin, Claim, Verdict};
use crate::{error::Error, postgres::Connection, statement::Statement};

/// The columns of `sql/access_token.sql` and `sql/user.sql`.
type User = (String, Option<i64>, bool, bool, bool);

/// Whether the claim is an admin's.
pub(super) async fn admin(
    connection: &mut Connection,
    claim: &Claim,
    account_validity: bool,
) -> Verdict {
    // The homeserver vouches for this login, so what the replica says against it is old. The sender
    // of an application service has no device, and its missing rights are no matter of age.
    let is_login = claim.owner.as_ref().is_some_and(|owner| owner.device_id.is_some());
    let refusal = |error, what| if is_login { Error::ReplicaBehind(what) } else { error };
    let refuse_if = |is: bool, error, what| if is { Err(refusal(error, what)) } else { Ok(()) };
    let user = if let Some(owner) = &claim.owner {
        let text = Statement::USER.in_schema(&connection.schema);
        let query = sqlx::query(&text).bind(&owner.user_id);
        let user = connection.lookup("looking up a user", query).await?;
        user.ok_or_else(|| refusal(Error::NOT_AN_ADMIN, "it does not know the user"))?
    } else {
        let text = Statement::ACCESS_TOKEN.in_schema(&connection.schema);
        let query = sqlx::query(&text).bind(claim.token.expose());
        let user = connection.lookup("looking up an access token", query).await?;
        // One of the last seconds, an application service's, or none at all.
        let Some(user) = user else { return Ok(None) };
        user
    };
    let (user_id, valid_until_ms, is_locked, is_guest, is_admin): User = user;
    if valid_until_ms.is_some_and(|valid_until_ms| valid_until_ms < claim.at.unix_ms) {
        return Err(Error::EXPIRED_TOKEN);
    }

    // Synapse parses the name before it looks at the flags (`UserID.from_string`).
    let rest = user_id.strip_prefix('@').ok_or(Error::USER_ID_WITHOUT_SIGIL)?;
    rest.find(':').ok_or(Error::USER_ID_WITHOUT_SERVER_NAME)?;
    refuse_if(is_locked, Error::USER_LOCKED, "it has the user locked")?;
    if account_validity {
        let text = Statement::ACCOUNT_VALIDITY.in_schema(&connection.schema);
        let query = sqlx::query(&text).bind(&user_id);
        let account = connection.lookup("looking up an account's validity", query).await?;
        let is_over = |(expiration_ts_ms,): (i64,)| expiration_ts_ms <= claim.at.unix_ms;
        let has_expired = account.is_some_and(is_over);
        refuse_if(has_expired, Error::ACCOUNT_EXPIRED, "it has the account expired")?;
    }
    refuse_if(is_guest, Error::GUEST_ACCESS_FORBIDDEN, "it has the user as a guest")?;
    refuse_if(!is_admin, Error::NOT_AN_ADMIN, "it has the user as no admin")?;
    Ok(Some(Admin(user_id)))
}
