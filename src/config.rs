//! The configuration: every environment variable that the function reads.

mod database;
mod parameters;

use std::{env, ops::RangeInclusive, time::Duration};

use url::Url;

use crate::{aws::SecretSource, grammar::matches, hidden::Hidden};

pub use database::Database;

/// The environment variables that the function reads. An empty variable counts as not set.
///
/// | variable | meaning | default |
/// |---|---|---|
/// | `DATABASE_URL` | libpq URL of the replica: `postgres://user:password@host:port/dbname?parameter=value`. docs/database.md has its parameters, among them those of TLS and the time limit for a connection | required, unless the secret says it all |
/// | `DATABASE_SCHEMA` | the schema of Synapse's tables: up to 63 ASCII letters, digits and `_`, which start with neither a digit nor `pg_` | `public` |
/// | `DATABASE_IAM_AUTH` | `true`: log in with a token of AWS IAM instead of a password. Needs `AWS_REGION`, the database's, and verified TLS | `false` |
/// | `DATABASE_SECRET_ARN` | the secret of Secrets Manager that holds username and password, as RDS keeps it; its `host`, `port` and `dbname` stand in for what the URL leaves out | none |
/// | `DATABASE_CA_FILE` | PEM file of the authorities to trust in place of those of RDS in `AWS_REGION` | none |
/// | `DATABASE_POOLER` | `true`: RDS Proxy, or pgbouncer in transaction mode, stands before the database | `false` |
/// | `AWS_REGION` | the region whose RDS authorities are trusted; set by Lambda | none |
/// | `MAS_ENDPOINT` | base URL of Matrix Authentication Service, where the homeserver leaves authentication to it | none: tokens are the homeserver's own |
/// | `MAS_SECRET` | the secret that MAS shares with the homeserver | this or the next, with `MAS_ENDPOINT` |
/// | `MAS_SECRET_ARN` | a secret of Secrets Manager whose text is that secret | |
/// | `SERVER_NAME` | the homeserver's `server_name`, the part of its user ids behind the colon | required with `MAS_ENDPOINT` |
/// | `MAS_CACHE_SECONDS` | how long an introspection may be remembered, in s, 0 to 3600; as long, a token that was revoked may still be good | 0 |
/// | `HOMESERVER_URL` | base URL of the homeserver, which is asked about tokens, users and devices that the replica does not know | none: they are refused |
/// | `ACCOUNT_VALIDITY` | `true`: the homeserver has `account_validity` enabled | `false` |
/// | `STATEMENT_TIMEOUT_MS` | how long the database may work on one statement, in ms, 1 to 900000 | 20000 |
/// | `READ_AHEAD_SECONDS` | how long users that were read ahead of a walk are kept, in s, 0 to 300; 0 reads nothing ahead | 60 |
/// | `AWS_LAMBDA_LOG_LEVEL` | `FATAL`, `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`; read by [`crate::log`] | `INFO` |
/// | `AWS_LAMBDA_LOG_FORMAT` | `JSON` or text; read by [`crate::log`] | text |
/// | `AWS_LAMBDA_FUNCTION_NAME` | what metrics are counted by; set by Lambda, and read by [`crate::log`] | none: no metrics |
/// | `_X_AMZN_TRACE_ID` | the tracing header of the invocation; set by Lambda's runtime, and read by [`crate::log`] | none |
///
/// As with libpq (PostgreSQL, "Environment Variables"), `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`,
/// `PGDATABASE` and `PGAPPNAME` stand in for what the URL leaves out. `PGSSLMODE` does not count:
/// only the URL can make TLS weaker. `PGOPTIONS` and the files of TLS are refused.
#[derive(Debug)]
pub struct Config {
    /// Where the database is and how to get in.
    pub database: Database,
    /// How long the database may work on one statement.
    pub statement_timeout: Duration,
    /// How long users that were read ahead of a walk are kept.
    pub read_ahead_seconds: u32,
    /// Who says whose a token is.
    pub authentication: Authentication,
}

impl Config {
    /// Reads the variables. `variable` looks one up; tests pass their own.
    ///
    /// # Errors
    ///
    /// All wrong variables at once, each by its name and none with its value.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let mut variables = Variables { variable: &variable, problems: Vec::new() };
        let database = Database::read(&mut variables);
        let authentication = Authentication::read(&mut variables);
        let timeout_ms = variables.integer("STATEMENT_TIMEOUT_MS", 1..=900_000, 20_000);
        let statement_timeout = Duration::from_millis(timeout_ms.into());
        let read_ahead_seconds = variables.integer("READ_AHEAD_SECONDS", 0..=300, 60);
        let is_right = variables.problems.is_empty();
        let database = database.filter(|_| is_right).ok_or(variables.problems)?;
        Ok(Self { database, statement_timeout, read_ahead_seconds, authentication })
    }

    /// Reads the environment of the process.
    ///
    /// # Errors
    ///
    /// As [`Config::read`].
    pub fn from_env() -> Result<Self, Vec<String>> {
        Self::read(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }
}

/// Who says whose a token is.
#[derive(Debug)]
pub struct Authentication {
    /// Matrix Authentication Service; `None` where the homeserver keeps its tokens itself.
    pub mas: Option<MasConfig>,
    /// Base URL of the homeserver.
    pub homeserver: Option<Url>,
    /// Whether accounts expire.
    pub account_validity: bool,
}

/// How to ask Matrix Authentication Service.
#[derive(Debug)]
pub struct MasConfig {
    /// Its base URL.
    pub endpoint: Url,
    /// What it shares with the homeserver.
    pub secret: SecretSource,
    /// What is behind the colon of user ids.
    pub server_name: String,
    /// How long an introspection may be remembered, in ms.
    pub cache_ms: i64,
}

impl Authentication {
    fn read(variables: &mut Variables) -> Self {
        let homeserver = variables.base_url("HOMESERVER_URL");
        let account_validity = variables.flag("ACCOUNT_VALIDITY");
        let cache_ms = 1000 * i64::from(variables.integer("MAS_CACHE_SECONDS", 0..=3600, 0));
        let server_name = variables.get("SERVER_NAME").map(|name| name.trim().to_owned());
        let is_right = server_name.as_deref().is_none_or(|name| matches(SERVER_NAME, name));
        variables.require(is_right, "SERVER_NAME must be a server name such as example.org");
        let text = variables.get("MAS_SECRET").map(|text| SecretSource::Text(Hidden(text)));
        let arn = variables.secret_arn("MAS_SECRET_ARN").map(SecretSource::Arn);
        let problem = "MAS_SECRET and MAS_SECRET_ARN exclude each other";
        variables.require(text.is_none() || arn.is_none(), problem);
        let secret = text.or(arn);
        let is_mas = variables.get("MAS_ENDPOINT").is_some();
        let problem = "MAS_ENDPOINT is not set, though its secret is";
        variables.require(is_mas || secret.is_none(), problem);
        let problem = "MAS_ENDPOINT needs SERVER_NAME, which is not set";
        variables.require(!is_mas || server_name.is_some(), problem);
        let problem = "MAS_ENDPOINT needs MAS_SECRET or MAS_SECRET_ARN, which is not set";
        variables.require(!is_mas || secret.is_some(), problem);
        let server_name = server_name.unwrap_or_default();
        let endpoint = variables.base_url("MAS_ENDPOINT");
        let config = |(endpoint, secret)| MasConfig { endpoint, secret, server_name, cache_ms };
        let mas = endpoint.zip(secret).map(config);
        Self { mas, homeserver, account_validity }
    }
}

/// The environment, and what is wrong with it.
struct Variables<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    fn require(&mut self, is_right: bool, problem: impl Into<String>) {
        if !is_right {
            self.problems.push(problem.into());
        }
    }

    /// What was read, or nothing and one more problem.
    fn accept<T>(&mut self, name: &str, read: Result<T, String>) -> Option<T> {
        read.map_err(|problem| self.problems.push(format!("{name} {problem}"))).ok()
    }

    /// What `read` makes of a variable. What it refuses is nothing and one more problem.
    fn read<T>(&mut self, name: &str, must: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = read(&self.get(name)?);
        self.accept(name, value.ok_or_else(|| format!("must be {must}")))
    }

    fn flag(&mut self, name: &str) -> bool {
        self.read(name, "true or false", |text| text.parse().ok()).unwrap_or_default()
    }

    fn integer(&mut self, name: &str, range: RangeInclusive<u32>, default: u32) -> u32 {
        let must = format!("an integer from {} to {}", range.start(), range.end());
        let integer = |text: &str| text.parse().ok().filter(|integer| range.contains(integer));
        self.read(name, &must, integer).unwrap_or(default)
    }

    /// A base URL, to which paths are appended.
    fn base_url(&mut self, name: &str) -> Option<Url> {
        let must = "a URL that starts with https:// or http://, without user, query and fragment";
        let is_base = |url: &Url| matches!(url.scheme(), "http" | "https");
        let url = |text: &str| Url::parse(text).ok().filter(is_base);
        self.read(name, must, |text| url(text).filter(|_| !text.contains(['?', '#', '@'])))
    }

    /// The ARN of a secret.
    fn secret_arn(&mut self, name: &str) -> Option<String> {
        let arn = self.get(name)?.trim().to_owned();
        let problem = format!("{name} must be the ARN of a secret of Secrets Manager");
        self.require(matches(SECRET_ARN, &arn), problem);
        Some(arn)
    }
}

/// `arn:partition:secretsmanager:region:account:secret:name`. The region becomes a part of a host
/// name.
const SECRET_ARN: &str =
    r"arn:[[:alnum:]-]+:secretsmanager:[[:alnum:]-]+:[[:alnum:]-]+:secret:[\w/+=.@!-]+";

/// A host and maybe a port (spec: appendices, "Server Name").
const SERVER_NAME: &str = r"(\[[[:xdigit:]:.]{2,45}\]|[[:alnum:].-]{1,255})(:\d{1,5})?";

#[cfg(test)]
mod tests {
    use super::{database::tests::shown, *};

    pub(super) type Variables<'a> = &'a [(&'a str, &'a str)];

    pub(super) fn read(variables: Variables) -> Result<Config, Vec<String>> {
        let variable = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Config::read(variable)
    }

    /// What is wrong with the variables.
    pub(super) fn problems(variables: Variables) -> Vec<String> {
        read(variables).err().unwrap_or_default()
    }

    #[test]
    fn all_wrong_variables_are_reported_at_once_and_by_name() {
        assert_eq!(
            problems(&[("STATEMENT_TIMEOUT_MS", "soon")]),
            ["DATABASE_URL is not set", "STATEMENT_TIMEOUT_MS must be an integer from 1 to 900000"]
        );
        for timeout in ["0", "-1", "900001", "1.5"] {
            assert_eq!(
                problems(&[("DATABASE_URL", "postgres://db/x"), ("STATEMENT_TIMEOUT_MS", timeout)]),
                ["STATEMENT_TIMEOUT_MS must be an integer from 1 to 900000"]
            );
        }
        assert_eq!(
            problems(&[("DATABASE_URL", "postgres://db/x"), ("STATEMENT_TIMEOUT_MS", "900000")]),
            [""; 0]
        );
    }

    #[test]
    fn mas_needs_all_of_its_settings() {
        let url = ("DATABASE_URL", "postgres://u:p@db/x");
        let endpoint = ("MAS_ENDPOINT", "https://mas.example.org/");
        let name = ("SERVER_NAME", "example.org");
        let secret = ("MAS_SECRET", "hunter2");
        let arn = ("MAS_SECRET_ARN", "arn:aws:secretsmanager:eu-central-1:1:secret:x");
        assert!(read(&[url]).unwrap().authentication.mas.is_none());
        for secret in [secret, arn] {
            let mas = read(&[url, endpoint, name, secret]).unwrap().authentication.mas.unwrap();
            assert_eq!((mas.server_name.as_str(), mas.cache_ms), ("example.org", 0));
            assert!(!format!("{mas:?}").contains("hunter2"));
        }
        let wrong: [(Variables, &[&str]); 8] = [
            (
                &[url, endpoint],
                &[
                    "MAS_ENDPOINT needs SERVER_NAME, which is not set",
                    "MAS_ENDPOINT needs MAS_SECRET or MAS_SECRET_ARN, which is not set",
                ],
            ),
            (&[url, secret], &["MAS_ENDPOINT is not set, though its secret is"]),
            (
                &[url, endpoint, name, secret, arn],
                &["MAS_SECRET and MAS_SECRET_ARN exclude each other"],
            ),
            (
                &[url, endpoint, name, ("MAS_SECRET_ARN", "x")],
                &["MAS_SECRET_ARN must be the ARN of a secret of Secrets Manager"],
            ),
            (
                &[url, name, secret, ("MAS_ENDPOINT", "mas.example.org")],
                &[
                    "MAS_ENDPOINT must be a URL that starts with https:// or http://, without user, query and fragment",
                ],
            ),
            (
                &[url, ("HOMESERVER_URL", "https://u:hunter2@matrix.example.org")],
                &[
                    "HOMESERVER_URL must be a URL that starts with https:// or http://, without user, query and fragment",
                ],
            ),
            (
                &[url, ("MAS_CACHE_SECONDS", "-1")],
                &["MAS_CACHE_SECONDS must be an integer from 0 to 3600"],
            ),
            (&[url, ("ACCOUNT_VALIDITY", "1")], &["ACCOUNT_VALIDITY must be true or false"]),
        ];
        for (variables, expected) in wrong {
            assert_eq!(problems(variables), expected, "{variables:?}");
        }
    }

    const MAS: [(&str, &str); 3] = [
        ("DATABASE_URL", "postgres://db/x"),
        ("MAS_ENDPOINT", "https://mas.example.org/"),
        ("MAS_SECRET", "hunter2"),
    ];

    #[test]
    fn a_server_name_is_one_of_the_spec() {
        let ipv6 = "[1234:5678::abcd]:5678";
        let long = "a".repeat(255);
        for name in ["matrix.org", "Matrix.org:8888", "1.2.3.4:1234", "[::1]", ipv6, &long, "a-b"] {
            for typed in [name.to_owned(), format!(" {name}\n"), format!("\t{name} \r\n")] {
                let variables = [&MAS[..], &[("SERVER_NAME", &*typed)]].concat();
                let mas = read(&variables).unwrap().authentication.mas.unwrap();
                assert_eq!(mas.server_name, name);
            }
        }
        let too_long = "a".repeat(256);
        let wrong = [
            "https://example.org",
            "example.org/",
            "@user:example.org",
            "user@example.org",
            "example .org",
            "example.org, example.com",
            "exämple.org",
            "my_server",
            "example.org:",
            "example.org:port",
            "example.org:123456",
            "example.org:1:2",
            ":8448",
            "::1",
            "[::1",
            "[1]",
            "[::g]",
            "[::1]8448",
            " ",
            &too_long,
        ];
        for name in wrong {
            let expected = ["SERVER_NAME must be a server name such as example.org"];
            let variables = [&MAS[..], &[("SERVER_NAME", name)]].concat();
            assert_eq!(problems(&variables), expected, "{name}");
            // It is wrong without MAS too.
            assert_eq!(problems(&[MAS[0], ("SERVER_NAME", name)]), expected, "{name}");
        }
    }

    #[test]
    fn an_arn_is_one_of_a_secret() {
        let name = ("SERVER_NAME", "example.org");
        let right = [
            "arn:aws:secretsmanager:eu-central-1:123456789012:secret:media-AbCdEf",
            "arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:a/b_+=.@!-c-AbCdEf",
        ];
        for arn in right {
            for typed in [arn.to_owned(), format!(" {arn}\n")] {
                let variables = [MAS[0], MAS[1], name, ("MAS_SECRET_ARN", &typed)];
                let mas = read(&variables).unwrap().authentication.mas.unwrap();
                assert!(matches!(&mas.secret, SecretSource::Arn(read) if read == arn));
                let database = read(&[("DATABASE_SECRET_ARN", &typed)]).unwrap().database;
                assert_eq!(shown(&database.credentials), ("secret", arn));
            }
        }
        for arn in [
            "media",
            "arn:aws:ssm:eu-central-1:123456789012:parameter/x",
            "arn:aws:secretsmanager:eu-central-1:123456789012:secret:",
            "arn:aws:secretsmanager:eu-central-1:123456789012:secret",
            "arn:aws:secretsmanager::123456789012:secret:x",
            // The region becomes a part of the host that is asked, with the function's credentials.
            "arn:aws:secretsmanager:example.org/:123456789012:secret:x",
            "arn:aws:secretsmanager:example.org#:123456789012:secret:x",
            "arn:aws:secretsmanager:eu-central-1:123456789012:secret:x y",
            "arn:aws:secretsmanager:eu-central-1:123456789012:secret:x:y",
            "\"arn:aws:secretsmanager:eu-central-1:123456789012:secret:x\"",
            " ",
        ] {
            for variable in ["MAS_SECRET_ARN", "DATABASE_SECRET_ARN"] {
                let mas: Variables =
                    if variable == "MAS_SECRET_ARN" { &[MAS[1], name] } else { &[] };
                let variables = [&[MAS[0], (variable, arn)], mas].concat();
                let problem = format!("{variable} must be the ARN of a secret of Secrets Manager");
                assert_eq!(problems(&variables), [problem], "{arn}");
            }
        }
    }
}
