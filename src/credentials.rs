//! How the function proves to the database who it is: by its URL, by a token of AWS IAM, or by a
//! secret that may change at any time.

use serde_json::Value;
use sqlx::postgres::PgConnectOptions;

use crate::{
    aws::{Aws, Failure, PENDING, Secret},
    config::{Access, Login, check},
    hidden::{Hidden, SecretSource},
};

/// Where what the URL does not say comes from.
pub enum Credentials {
    /// The URL says it all.
    Url,
    /// A token for each connection.
    Iam(Aws),
    /// A secret, which can name another place as well as another password.
    Secret(Secret<Access>),
}

impl Credentials {
    /// The credentials that the configuration asks for. Nothing is read yet.
    pub fn new(login: &Login) -> Self {
        match login {
            Login::Url => Self::Url,
            Login::Iam(region) => Self::Iam(Aws::new(region)),
            Login::Secret(arn) => Self::Secret(Secret::new(SecretSource::Arn(arn.clone()), parse)),
        }
    }

    /// What to connect with at the Unix time `unix_ms`, in ms; `url` is where to and as whom by the
    /// URL alone.
    ///
    /// # Errors
    ///
    /// [`Failure`], after 2.5 s at most.
    pub async fn access(&self, url: &PgConnectOptions, unix_ms: i64) -> Result<Access, Failure> {
        match self {
            Self::Url => Ok(Access::default()),
            Self::Iam(aws) => {
                let token = aws.rds_token(url, unix_ms).await?;
                Ok(Hidden([("password".to_owned(), token)].into()))
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
        match secret.renewed().await? {
            None => Ok(secret.read(PENDING).await.ok()),
            renewed => Ok(renewed),
        }
    }
}

/// Reads what RDS and its users keep in a secret (AWS Secrets Manager User Guide, "JSON structure
/// of AWS Secrets Manager database credential secrets"), or says what is wrong with it, quoting
/// nothing.
fn parse(secret: &str) -> Result<Access, String> {
    let Ok(Value::Object(fields)) = serde_json::from_str(secret) else {
        return Err("the secret must be a JSON object".to_owned());
    };
    let mut access = Access::default();
    for field in ["username", "password", "host", "port", "dbname"] {
        let must = |must: &str| format!("field `{field}` of the secret {must}");
        let text = match fields.get(field) {
            None | Some(Value::Null) => "",
            Some(Value::String(text)) => text,
            Some(number @ Value::Number(_)) if field == "port" => &number.to_string(),
            Some(_) => return Err(must("must be a text")),
        };
        // A person may have typed these two, or a program that knows only floats.
        let (parameter, kind, text) = match field {
            "port" => (field, "port", text.trim().trim_end_matches(".0")),
            "host" => (field, "host", text.trim()),
            "username" => ("user", "user", text),
            _ => (field, "text", text),
        };
        if !text.is_empty() {
            check(kind, text).map_err(|problem| must(&problem))?;
            access.0.insert(parameter.to_owned(), text.to_owned());
        } else if matches!(field, "username" | "password") {
            return Err(must("must be there"));
        }
    }
    Ok(access)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parameters that a secret gives, as texts `name=value`.
    fn given(secret: &str) -> Result<Vec<String>, String> {
        let access = parse(secret)?;
        Ok(access.0.iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn a_secret_is_as_rds_keeps_it() {
        let full = r#"{"engine":"postgres","host":"db.example.org","username":"u","password":"p","dbname":"synapse","port":5432,"dbInstanceIdentifier":"x"}"#;
        let expected =
            ["dbname=synapse", "host=db.example.org", "password=p", "port=5432", "user=u"];
        assert_eq!(given(full).unwrap(), expected);
        assert_eq!(format!("{:?}", parse(full).unwrap()), "Hidden(..)");
        // The one that RDS manages by itself has no more than this.
        let managed = r#"{"username":"u","password":"p"}"#;
        assert_eq!(given(managed).unwrap(), ["password=p", "user=u"]);
        for (wrong, problem) in [
            ("hunter2", "the secret must be a JSON object"),
            ("[]", "the secret must be a JSON object"),
            (r#"{"username":"u"}"#, "field `password` of the secret must be there"),
            (r#"{"username":"","password":"p"}"#, "field `username` of the secret must be there"),
            (r#"{"username":"u","password":5}"#, "field `password` of the secret must be a text"),
            (
                r#"{"username":"u","password":"p","host":5}"#,
                "field `host` of the secret must be a text",
            ),
            (
                r#"{"username":"u","password":"p\u0000"}"#,
                "field `password` of the secret must be UTF-8 without NUL",
            ),
        ] {
            assert_eq!(given(wrong), Err(problem.to_owned()), "{wrong}");
        }
    }

    #[test]
    fn places_are_read_as_a_person_means_them() {
        let with = |more: &str| given(&format!(r#"{{"username":"u","password":" p ",{more}}}"#));
        for (port, expected) in [
            ("5433", Some("port=5433")),
            (r#""5433""#, Some("port=5433")),
            (r#"" 5433""#, Some("port=5433")),
            (r#""5433\n""#, Some("port=5433")),
            ("5433.0", Some("port=5433")),
            (r#""5433.0""#, Some("port=5433")),
            (r#""""#, None),
            (r#""  ""#, None),
            ("null", None),
        ] {
            let expected = ["password= p "].into_iter().chain(expected).chain(["user=u"]);
            let expected = expected.map(str::to_owned).collect();
            assert_eq!(with(&format!(r#""port":{port}"#)), Ok(expected), "{port}");
        }
        for port in [r#""x""#, "70000", "0", "-1", "5432.5", r#""54 32""#, r#""hunter2""#] {
            let problem = "field `port` of the secret must be an integer from 1 to 65535";
            assert_eq!(with(&format!(r#""port":{port}"#)), Err(problem.to_owned()), "{port}");
        }
        for (host, expected) in [
            ("db.example.org\\n", "db.example.org"),
            (" my_db ", "my_db"),
            ("::1", "::1"),
            ("/run/postgresql", "/run/postgresql"),
        ] {
            let expected = [format!("host={expected}"), "password= p ".into(), "user=u".into()];
            assert_eq!(with(&format!(r#""host":"{host}""#)), Ok(expected.to_vec()));
        }
        for host in ["postgres://u:hunter2@db/x", "hunter2@db", "a,b", "db/x", "d b"] {
            let problem = "field `host` of the secret must be one host name, IP address or directory that starts with /";
            assert_eq!(with(&format!(r#""host":"{host}""#)), Err(problem.to_owned()), "{host}");
        }
    }

    #[test]
    fn a_username_that_saslprep_refuses_is_refused_by_name() {
        // A person may have taken the password for the username.
        for username in ["hunter2\\n", "hunter2\\t", "hunter2\u{e000}", "hunter2\u{5d0}"] {
            let secret = format!(r#"{{"username":"{username}","password":"media_usage"}}"#);
            let problem = "field `username` of the secret must be a name that SASLprep permits, without line breaks and tabs";
            assert_eq!(given(&secret), Err(problem.to_owned()), "{username}");
        }
        let problem = "field `username` of the secret must be a name without a comma";
        assert_eq!(given(r#"{"username":"a,b","password":"p"}"#), Err(problem.to_owned()));
        for username in ["media_usage", "médiä", "a b", "u@tenant", "O'Neill \\\"x\\\""] {
            assert!(given(&format!(r#"{{"username":"{username}","password":"p"}}"#)).is_ok());
        }
    }
}
