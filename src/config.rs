//! The configuration: every environment variable that the function reads.

use std::{collections::HashMap, env, fmt, fs, net::IpAddr, str::FromStr, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

/// What the function is told by its environment.
///
/// | variable | meaning | default |
/// |---|---|---|
/// | `DATABASE_URL` | libpq URL of the replica: `postgres://user:password@host:port/dbname?parameters`. Beyond loopback addresses and Unix sockets TLS is verified (`sslmode=verify-full`) unless the URL says another `sslmode`; `sslrootcert` is a PEM file of the authorities to trust | required |
/// | `STATEMENT_TIMEOUT_MS` | how long the database may work on one statement, in ms, 1 to 900000 | 20000 |
/// | `AWS_LAMBDA_LOG_LEVEL` | `FATAL`, `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`; read by [`crate::log`] | `INFO` |
/// | `AWS_LAMBDA_LOG_FORMAT` | `JSON` or text; read by [`crate::log`] | text |
///
/// As with libpq, `PGUSER`, `PGPASSWORD` and the other variables of that family (PostgreSQL,
/// "Environment Variables") stand in for what the URL leaves out, but for `PGSSLMODE`: only the URL
/// can make TLS weaker.
#[derive(Debug)]
pub struct Config {
    /// Where the database is and how to get in, TLS included.
    pub database: PgConnectOptions,
    /// How long the database may work on one statement.
    pub statement_timeout: Duration,
}

impl Config {
    /// Reads the variables through `variable`, which is the environment but in tests.
    ///
    /// # Errors
    ///
    /// All wrong variables at once, each by its name and none with its value.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let database = match variable("DATABASE_URL").filter(|url| !url.is_empty()) {
            None => Err("DATABASE_URL is not set".to_owned()),
            Some(url) => database(&url).map_err(|problem| format!("DATABASE_URL {problem}")),
        };
        let statement_timeout = match variable("STATEMENT_TIMEOUT_MS").map(|value| value.parse()) {
            None => Ok(Duration::from_secs(20)),
            Some(Ok(ms @ 1..=900_000)) => Ok(Duration::from_millis(ms)),
            Some(_) => Err("STATEMENT_TIMEOUT_MS is no integer from 1 to 900000".to_owned()),
        };
        match (database, statement_timeout) {
            (Ok(database), Ok(statement_timeout)) => Ok(Self { database, statement_timeout }),
            (database, statement_timeout) => Err(ConfigError {
                problems: database.err().into_iter().chain(statement_timeout.err()).collect(),
            }),
        }
    }

    /// Reads the environment of the process.
    ///
    /// # Errors
    ///
    /// As [`Config::read`].
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }
}

/// Everything that is wrong with the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

impl std::error::Error for ConfigError {}

/// Query parameters that a `DATABASE_URL` may have. sqlx would log any other with its value and
/// go on without it, be it a misspelt `sslmode` or `password`.
const PARAMETERS: [&str; 12] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

fn database(text: &str) -> Result<PgConnectOptions, String> {
    // The parser's errors are fixed texts and do not quote the URL.
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") || url.cannot_be_a_base() {
        return Err("does not start with postgres:// or postgresql://".to_owned());
    }
    if text.contains(['\0', '\u{fffd}']) || text.contains("%00") {
        return Err("has a NUL in it or is not UTF-8".to_owned());
    }
    let parameters: HashMap<_, _> = url.query_pairs().collect();
    for (name, value) in &parameters {
        if !PARAMETERS.contains(&&**name) {
            // Not the name itself: behind a forgotten escape it can be a piece of the password.
            return Err(format!("has a parameter that is none of {}", PARAMETERS.join(", ")));
        }
        if matches!(&**name, "sslrootcert" | "sslcert" | "sslkey") {
            let pem = fs::read_to_string(&**value)
                .map_err(|error| format!("has an {name} that cannot be read: {error}"))?;
            if !pem.contains("-----BEGIN ") {
                return Err(format!("has an {name} that is no PEM file"));
            }
        }
    }
    if parameters.contains_key("sslcert") != parameters.contains_key("sslkey") {
        return Err("has one of sslcert and sslkey without the other".to_owned());
    }
    let mut options = PgConnectOptions::from_str(text)
        .map_err(|_| "has a port, sslmode or escape that cannot be read".to_owned())?;
    if options.get_host().contains(',') {
        return Err("names several hosts; name one".to_owned());
    }
    // A URL writes an IPv6 address in brackets, the resolver wants it without.
    let unbracketed = options.get_host().trim_start_matches('[').trim_end_matches(']').to_owned();
    options = options.host(&unbracketed);
    if !parameters.contains_key("sslmode") {
        let mode = if is_local(&options) { PgSslMode::Prefer } else { PgSslMode::VerifyFull };
        options = options.ssl_mode(mode);
    }
    if !parameters.contains_key("application_name") {
        options = options.application_name("synapse-media-usage");
    }
    Ok(options)
}

/// Whether the way to the database stays on this machine.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(variables: &[(&str, &str)]) -> Vec<String> {
        let variable = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Config::read(variable).map_or_else(|error| error.problems, |_| Vec::new())
    }

    #[test]
    fn all_wrong_variables_are_reported_at_once_and_by_name() {
        assert_eq!(
            problems(&[("STATEMENT_TIMEOUT_MS", "soon")]),
            ["DATABASE_URL is not set", "STATEMENT_TIMEOUT_MS is no integer from 1 to 900000"]
        );
        for timeout in ["0", "-1", "900001", ""] {
            assert_eq!(
                problems(&[("DATABASE_URL", "postgres://db/x"), ("STATEMENT_TIMEOUT_MS", timeout)]),
                ["STATEMENT_TIMEOUT_MS is no integer from 1 to 900000"]
            );
        }
        assert_eq!(
            problems(&[("DATABASE_URL", "postgres://db/x"), ("STATEMENT_TIMEOUT_MS", "900000")]),
            [""; 0]
        );
    }

    #[test]
    fn a_problem_does_not_quote_the_value() {
        for url in [
            "hunter2",
            "mysql://user:hunter2@db/x",
            "postgres://user:hunter2@db:port/x",
            "postgres://user@db/x?hunter2=1",
            "postgres://user@db/x?pasword=hunter2",
            "postgres://user:hunter2@db/x?sslmode=hunter2",
            "postgres://user:hunter2@a,b/x",
            "postgres://user:hunter2@db/x?sslrootcert=/nowhere/at/all.pem",
            "postgres://user:hunter2@db/x?sslrootcert=/",
            "postgres://user:hunter2@db/x?sslrootcert=/proc/self/stat",
            "postgres://user:hunter2@db/x?sslcert=/proc/self/stat",
            "postgresql:hunter2",
            "postgres://user:hunter2@db/x%00",
            "postgres://user:hunter2\u{fffd}@db/x",
        ] {
            let problems = problems(&[("DATABASE_URL", url)]);
            assert_eq!(problems.len(), 1, "{url}");
            assert!(problems[0].starts_with("DATABASE_URL "), "{problems:?}");
            assert!(!problems[0].contains("hunter2"), "{problems:?}");
        }
    }

    #[test]
    fn tls_is_verified_unless_the_way_is_local_or_the_url_says_otherwise() {
        for (url, expected) in [
            ("postgres://user@db.example.org/x", "VerifyFull"),
            ("postgres://user@10.0.0.1/x", "VerifyFull"),
            ("postgres://user@[2001:db8::1]/x", "VerifyFull"),
            ("postgres://user@localhost.example.org/x", "VerifyFull"),
            ("postgres://user@db.example.org/x?sslmode=require", "Require"),
            ("postgres://user@db.example.org/x?sslmode=disable", "Disable"),
            ("postgres://user@localhost/x?sslmode=verify-full", "VerifyFull"),
            ("postgres://user@localhost/x", "Prefer"),
            ("postgres://user@127.0.0.2/x", "Prefer"),
            ("postgres://user@[::1]/x", "Prefer"),
            ("postgres://user@%2Frun%2Fpostgresql/x", "Prefer"),
            ("postgres:///x?host=/run/postgresql&user=user", "Prefer"),
            ("postgres:///x?host=db.example.org", "VerifyFull"),
        ] {
            assert_eq!(format!("{:?}", database(url).unwrap().get_ssl_mode()), expected, "{url}");
        }
    }

    #[test]
    fn an_ipv6_address_loses_its_brackets() {
        assert_eq!(database("postgres://user@[::1]:5433/x").unwrap().get_host(), "::1");
    }
}
