//! How the function proves to the database who it is: by its URL, by a token of AWS IAM, or by a
//! secret that may change at any time.

use std::{
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use serde_json::Value;
use sqlx::postgres::PgConnectOptions;

use crate::{
    aws::{Aws, Failure, Stage},
    config::{Access, Login},
};

/// Where what the URL does not say comes from.
#[derive(Debug)]
pub enum Credentials {
    /// The URL says it all.
    Url,
    /// A token for each connection.
    Iam(Aws),
    /// A secret, read once and again when the database does not take it any more.
    Secret {
        /// Where it is kept.
        aws: Aws,
        /// What it is called.
        arn: String,
        /// As it was read last.
        latest: Mutex<Option<Secret>>,
    },
}

impl Credentials {
    /// The credentials that the configuration asks for. Nothing is read yet.
    pub fn new(login: &Login) -> Self {
        match login {
            Login::Url => Self::Url,
            Login::Iam { region } => Self::Iam(Aws::new(region.clone())),
            Login::Secret { arn, region } => Self::Secret {
                aws: Aws::new(region.clone()),
                arn: arn.clone(),
                latest: Mutex::new(None),
            },
        }
    }

    /// What to connect with; `url` is where to and as whom by the URL alone.
    ///
    /// # Errors
    ///
    /// [`Failure`], after 2.5 s at most.
    pub async fn access(&self, url: &PgConnectOptions, now: SystemTime) -> Result<Access, Failure> {
        match self {
            Self::Url => Ok(Access::default()),
            Self::Iam(aws) => {
                let (host, port, user) = (url.get_host(), url.get_port(), url.get_username());
                let token = aws.rds_token(host, port, user, now).await?;
                Ok(Access { password: Some(token), ..Access::default() })
            }
            Self::Secret { aws, arn, latest } => {
                if let Some(secret) = lock(latest).clone() {
                    return Ok(secret.into());
                }
                let secret = read(aws, arn, Stage::Current).await?;
                *lock(latest) = Some(secret.clone());
                Ok(secret.into())
            }
        }
    }

    /// What was last connected with, if it is a secret.
    pub fn latest(&self) -> Option<Access> {
        match self {
            Self::Secret { latest, .. } => lock(latest).clone().map(Access::from),
            Self::Url | Self::Iam(_) => None,
        }
    }

    /// Forgets what was read, so that it is read again: a secret can name another place as well as
    /// another password.
    pub fn forget(&self) {
        if let Self::Secret { latest, .. } = self {
            *lock(latest) = None;
        }
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
        let Self::Secret { aws, arn, latest } = self else { return Ok(None) };
        let refused = lock(latest).take();
        let mut secret = read(aws, arn, Stage::Current).await?;
        if Some(&secret) == refused.as_ref() {
            match read(aws, arn, Stage::Pending).await {
                Ok(pending) => secret = pending,
                Err(_) => return Ok(None),
            }
        }
        *lock(latest) = Some(secret.clone());
        Ok(Some(secret.into()))
    }
}

async fn read(aws: &Aws, arn: &str, stage: Stage) -> Result<Secret, Failure> {
    Secret::parse(&aws.secret(arn, stage).await?)
        .map_err(|problem| Failure::Refused(format!("the secret {problem}")))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing in here panics while it holds the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What RDS and its users keep in a secret (AWS Secrets Manager User Guide, "JSON structure of
/// AWS Secrets Manager database credential secrets").
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    username: String,
    password: String,
    host: Option<String>,
    port: Option<u16>,
    dbname: Option<String>,
}

impl Secret {
    /// Reads the text of a secret, or says what is wrong with it, quoting nothing.
    fn parse(text: &str) -> Result<Self, String> {
        let Ok(Value::Object(fields)) = serde_json::from_str(text) else {
            return Err("is no JSON object".to_owned());
        };
        let text = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.contains('\0') => {
                Ok(Some(text.clone()).filter(|text| !text.is_empty()))
            }
            Some(_) => Err(format!("has a {name} that is no text")),
        };
        let needed = |name: &str| text(name)?.ok_or_else(|| format!("has no {name}"));
        // A number, or a text where a person typed it.
        let port = match fields.get("port") {
            None | Some(Value::Null) => None,
            Some(port) => {
                let digits = port.as_str().map_or_else(|| port.to_string(), str::to_owned);
                Some(digits.parse().map_err(|_| "has a port that is none".to_owned())?)
            }
        };
        Ok(Self {
            username: needed("username")?,
            password: needed("password")?,
            host: text("host")?,
            port,
            dbname: text("dbname")?,
        })
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl From<Secret> for Access {
    fn from(secret: Secret) -> Self {
        Self {
            username: Some(secret.username),
            password: Some(secret.password),
            host: secret.host,
            port: secret.port,
            dbname: secret.dbname,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(json: &str) -> Result<Secret, String> {
        Secret::parse(json)
    }

    #[test]
    fn a_secret_is_as_rds_keeps_it() {
        let full = r#"{"engine":"postgres","host":"db.example.org","username":"u","password":"p","dbname":"synapse","port":5432,"dbInstanceIdentifier":"x"}"#;
        let access = Access::from(secret(full).unwrap());
        assert_eq!(access.host.as_deref(), Some("db.example.org"));
        assert_eq!((access.port, access.dbname.as_deref()), (Some(5432), Some("synapse")));
        // The one that RDS manages by itself has no more than this.
        let managed = Access::from(secret(r#"{"username":"u","password":"p"}"#).unwrap());
        assert_eq!((managed.host, managed.port, managed.dbname), (None, None, None));
        let typed = secret(r#"{"username":"u","password":"p","port":"5433"}"#).unwrap();
        assert_eq!(typed.port, Some(5433));
        for (wrong, problem) in [
            ("hunter2", "is no JSON object"),
            ("[]", "is no JSON object"),
            (r#"{"username":"u"}"#, "has no password"),
            (r#"{"username":"","password":"p"}"#, "has no username"),
            (r#"{"username":"u","password":5}"#, "has a password that is no text"),
            (r#"{"username":"u","password":"p","host":5}"#, "has a host that is no text"),
            (r#"{"username":"u","password":"p","port":"x"}"#, "has a port that is none"),
            (r#"{"username":"u","password":"p","port":70000}"#, "has a port that is none"),
        ] {
            assert_eq!(secret(wrong), Err(problem.to_owned()), "{wrong}");
        }
        assert_eq!(format!("{:?}", secret(full).unwrap()), "Secret(..)");
    }
}
