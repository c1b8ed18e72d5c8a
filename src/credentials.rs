//! How the function proves to the database who it is: by its URL, by a token of AWS IAM, or by a
//! secret that may change at any time.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnectOptions;

use crate::{
    aws::{Failure, PENDING, Secret, rds_password},
    hidden::Hidden,
};

/// Parameters of libpq and their values, which say where a database is and how to get in.
pub type Access = Hidden<BTreeMap<String, String>>;

/// Where what the URL does not say comes from.
#[derive(Debug)]
pub enum Credentials {
    /// The URL says it all.
    Url,
    /// A token that is signed for each connection, in the database's region.
    Iam(String),
    /// A secret, which can name another place as well as another password.
    Secret(Secret<Access>),
}

impl Credentials {
    /// What to connect with at the Unix time `unix_ms`, in ms; `url` is where to and as whom by the
    /// URL alone.
    ///
    /// # Errors
    ///
    /// [`Failure`], after 2.5 s at most.
    pub async fn access(&self, url: &PgConnectOptions, unix_ms: i64) -> Result<Access, Failure> {
        match self {
            Self::Url => Ok(Access::default()),
            Self::Iam(region) => {
                let password = rds_password(region, url, unix_ms).await?;
                Ok(Hidden([("password".to_owned(), password)].into()))
            }
            Self::Secret(secret) => secret.get().await,
        }
    }

    /// Finds out whether there is something to connect with at the Unix time `unix_ms`, in ms, and
    /// whether it is another secret than the one that was read last. A secret that cannot be read
    /// leaves the latest in place.
    ///
    /// # Errors
    ///
    /// As [`Credentials::access`].
    pub async fn check(&self, url: &PgConnectOptions, unix_ms: i64) -> Result<bool, Failure> {
        match self {
            Self::Secret(secret) => Ok(secret.renewed().await?.is_some()),
            Self::Url | Self::Iam(_) => self.access(url, unix_ms).await.map(|_| false),
        }
    }

    /// The secret, if they are one.
    pub fn secret(&self) -> Option<&Secret<Access>> {
        let Self::Secret(secret) = self else { return None };
        Some(secret)
    }

    /// What else to connect with, after the database has refused the password; `None` if there is
    /// nothing else.
    ///
    /// While a secret is rotated, the database knows the new password a moment before the secret
    /// calls it current (AWS Secrets Manager User Guide, "Rotation by Lambda function").
    ///
    /// # Errors
    ///
    /// As [`Credentials::access`].
    pub async fn renewed(&self) -> Result<Option<Access>, Failure> {
        let Some(secret) = self.secret() else { return Ok(None) };
        let renewed = secret.renewed().await?;
        Ok(if renewed.is_some() { renewed } else { secret.read(PENDING).await.ok() })
    }
}
