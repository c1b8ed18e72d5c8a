//! The configuration: every environment variable that the function reads.

use std::{
    collections::{HashMap, HashSet},
    env, fmt, fs,
    net::IpAddr,
    str::FromStr,
    time::Duration,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

/// What the function is told by its environment. A variable that is empty counts as not set.
///
/// | variable | meaning | default |
/// |---|---|---|
/// | `DATABASE_URL` | libpq URL of the replica: `postgres://user:password@host:port/dbname?parameters`. Beyond loopback addresses and Unix sockets TLS is verified (`sslmode=verify-full`) unless the URL says another `sslmode`; `sslrootcert` is a PEM file of authorities to trust | required, unless the secret says it all |
/// | `DATABASE_IAM_AUTH` | `true`: log in with a token of AWS IAM instead of a password; needs `AWS_REGION`, the database's, and verified TLS | `false` |
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
    pub read_ahead_seconds: u16,
    /// Who says whose a token is.
    pub authentication: Authentication,
}

impl Config {
    /// Reads the variables through `variable`, which is the environment but in tests.
    ///
    /// # Errors
    ///
    /// All wrong variables at once, each by its name and none with its value.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut problems = Vec::new();
        let database = Database::read(&variable, &mut problems);
        let authentication = Authentication::read(&variable, &mut problems);
        let statement_timeout = match variable("STATEMENT_TIMEOUT_MS").map(|value| value.parse()) {
            None => Duration::from_secs(20),
            Some(Ok(ms @ 1..=900_000)) => Duration::from_millis(ms),
            Some(_) => {
                problems.push("STATEMENT_TIMEOUT_MS is no integer from 1 to 900000".to_owned());
                Duration::ZERO
            }
        };
        let read_ahead_seconds = match variable("READ_AHEAD_SECONDS").map(|value| value.parse()) {
            None => 60,
            Some(Ok(seconds @ 0..=300)) => seconds,
            Some(_) => {
                problems.push("READ_AHEAD_SECONDS must be an integer from 0 to 300".to_owned());
                0
            }
        };
        match database {
            Some(database) if problems.is_empty() => {
                Ok(Self { database, statement_timeout, read_ahead_seconds, authentication })
            }
            _ => Err(ConfigError { problems }),
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

/// Where the database is and how to get in.
pub struct Database {
    /// How the function proves who it is.
    pub login: Login,
    /// Whether the other end is a pooler, which lends its sessions for one transaction at a time.
    pub pooler: bool,
    /// shim
    pub schema: String,
    url: DatabaseUrl,
    /// PEM text of the authorities to trust beside those of the public web; `None` leaves the word
    /// to the URL.
    authorities: Option<Vec<u8>>,
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
    pub secret: MasSecret,
    /// What is behind the colon of user ids.
    pub server_name: String,
    /// How long an introspection may be remembered, in ms.
    pub cache_ms: i64,
}

/// Where the secret is that MAS shares with the homeserver.
#[derive(Debug)]
pub enum MasSecret {
    /// Here.
    Text(Hidden),
    /// In Secrets Manager.
    Arn {
        /// The secret's ARN.
        arn: String,
        /// The secret's region, a part of the ARN.
        region: String,
    },
}

/// A text that is not shown.
pub struct Hidden(String);

impl Hidden {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

impl Authentication {
    fn read(variable: &impl Fn(&str) -> Option<String>, problems: &mut Vec<String>) -> Self {
        let homeserver = base_url(variable, problems, "HOMESERVER_URL");
        let account_validity = flag(variable, problems, "ACCOUNT_VALIDITY");
        let cache_ms = match variable("MAS_CACHE_SECONDS").map(|value| value.parse()) {
            None => 0,
            Some(Ok(seconds @ 0..=3600)) => seconds * 1000,
            Some(_) => {
                problems.push("MAS_CACHE_SECONDS is no integer from 0 to 3600".to_owned());
                0
            }
        };
        let secret = match (variable("MAS_SECRET"), variable("MAS_SECRET_ARN")) {
            (Some(_), Some(_)) => {
                problems.push("MAS_SECRET and MAS_SECRET_ARN exclude each other".to_owned());
                None
            }
            (Some(secret), None) => Some(MasSecret::Text(Hidden(secret))),
            (None, Some(arn)) => {
                let region = region_of_secret(&arn).map(str::to_owned);
                if region.is_none() {
                    problems.push("MAS_SECRET_ARN is no ARN of a secret".to_owned());
                }
                region.map(|region| MasSecret::Arn { arn, region })
            }
            (None, None) => None,
        };
        if variable("MAS_ENDPOINT").is_none() {
            if secret.is_some() {
                problems.push("MAS_ENDPOINT is not set, though its secret is".to_owned());
            }
            return Self { mas: None, homeserver, account_validity };
        }
        let server_name = variable("SERVER_NAME");
        for (name, is_there) in [
            ("SERVER_NAME", server_name.is_some()),
            (
                "MAS_SECRET or MAS_SECRET_ARN",
                variable("MAS_SECRET").or_else(|| variable("MAS_SECRET_ARN")).is_some(),
            ),
        ] {
            if !is_there {
                problems.push(format!("MAS_ENDPOINT needs {name}, which is not set"));
            }
        }
        let endpoint = base_url(variable, problems, "MAS_ENDPOINT");
        let mas = match (endpoint, secret, server_name) {
            (Some(endpoint), Some(secret), Some(server_name)) => {
                Some(MasConfig { endpoint, secret, server_name, cache_ms })
            }
            _ => None,
        };
        Self { mas, homeserver, account_validity }
    }
}

/// A base URL, to which paths are appended.
fn base_url(
    variable: &impl Fn(&str) -> Option<String>,
    problems: &mut Vec<String>,
    name: &str,
) -> Option<Url> {
    let url = Url::parse(&variable(name)?).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    if url.is_none() {
        problems.push(format!("{name} is no base URL that starts with https:// or http://"));
    }
    url
}

/// How the function proves to the database who it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Login {
    /// By what the URL says.
    Url,
    /// By a token that is signed for each connection.
    Iam {
        /// The database's region.
        region: String,
    },
    /// By the username and the password of a secret.
    Secret {
        /// The secret's ARN.
        arn: String,
        /// The secret's region, a part of the ARN.
        region: String,
    },
}

/// What a secret says of the database, or a token of IAM.
#[derive(Default)]
pub struct Access {
    /// The role to log in as.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// Where the database is, if the URL does not say it.
    pub host: Option<String>,
    /// Its port, if the URL does not say it.
    pub port: Option<u16>,
    /// Its name, if the URL does not say it.
    pub dbname: Option<String>,
}

impl fmt::Debug for Database {
    // The URL holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("login", &self.login)
            .field("pooler", &self.pooler)
            .finish_non_exhaustive()
    }
}

impl Database {
    fn read(
        variable: &impl Fn(&str) -> Option<String>,
        problems: &mut Vec<String>,
    ) -> Option<Self> {
        let before = problems.len();
        let iam = flag(variable, problems, "DATABASE_IAM_AUTH");
        let pooler = flag(variable, problems, "DATABASE_POOLER");
        for name in ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"] {
            if variable(name).is_some() {
                problems.push(format!("{name} is not read; put it into DATABASE_URL"));
            }
        }
        let region = variable("AWS_REGION");
        let secret = variable("DATABASE_SECRET_ARN");

        let url = match variable("DATABASE_URL") {
            Some(url) => DatabaseUrl::parse(&url)
                .map_err(|problem| problems.push(format!("DATABASE_URL {problem}")))
                .ok(),
            None if secret.is_some() => DatabaseUrl::parse("postgres://").ok(),
            None => {
                problems.push("DATABASE_URL is not set".to_owned());
                None
            }
        };
        let login = match (iam, secret) {
            (false, None) => Login::Url,
            (true, None) => {
                if region.is_none() {
                    problems
                        .push("DATABASE_IAM_AUTH needs AWS_REGION, which is not set".to_owned());
                }
                Login::Iam { region: region.clone().unwrap_or_default() }
            }
            (false, Some(arn)) => {
                let region = region_of_secret(&arn).map(str::to_owned);
                if region.is_none() {
                    problems.push("DATABASE_SECRET_ARN is no ARN of a secret".to_owned());
                }
                Login::Secret { arn, region: region.unwrap_or_default() }
            }
            (true, Some(_)) => {
                problems.push(
                    "DATABASE_IAM_AUTH and DATABASE_SECRET_ARN exclude each other".to_owned(),
                );
                Login::Url
            }
        };
        let authorities = match variable("DATABASE_CA_FILE").map(|file| certificates(&file)) {
            Some(Ok(authorities)) => Some(authorities),
            Some(Err(problem)) => {
                problems.push(format!("DATABASE_CA_FILE is a file that {problem}"));
                None
            }
            None => region.as_deref().and_then(rds_authorities).map(|pem| pem.as_bytes().to_vec()),
        };

        if let Some(url) = &url {
            problems.extend(url.contradictions(
                &login,
                pooler,
                variable("DATABASE_CA_FILE").is_some(),
            ));
        }
        let url = url.filter(|_| problems.len() == before)?;
        let authorities = authorities.filter(|_| !url.has("sslrootcert"));
        Some(Self {
            login,
            pooler,
            schema: variable("DATABASE_SCHEMA").unwrap_or_else(|| "public".to_owned()),
            url,
            authorities,
        })
    }

    /// Where to connect and as whom by the URL alone.
    pub fn url(&self) -> &PgConnectOptions {
        &self.url.options
    }

    /// How to connect, with what a secret or a token adds to the URL.
    ///
    /// What the URL says of the place wins: the secret that RDS keeps names the writer.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn options(&self, access: Access) -> Result<PgConnectOptions, String> {
        let mut options = self.url.options.clone();
        if let Some(username) = access.username {
            options = options.username(&username);
        }
        if let Some(password) = access.password {
            options = options.password(&password);
        }
        if !self.url.has("host") {
            match access.host {
                Some(host) => options = options.host(&host),
                None if self.login != Login::Url => {
                    return Err("neither DATABASE_URL nor the secret names a host".to_owned());
                }
                None => {}
            }
        }
        if let Some(port) = access.port.filter(|_| !self.url.has("port")) {
            options = options.port(port);
        }
        if let Some(dbname) = access.dbname.filter(|_| !self.url.has("dbname")) {
            options = options.database(&dbname);
        }
        if !self.url.has("sslmode") {
            let mode = if is_local(&options) { PgSslMode::Prefer } else { PgSslMode::VerifyFull };
            options = options.ssl_mode(mode);
        }
        if let Some(authorities) = &self.authorities {
            options = options.ssl_root_cert_from_pem(authorities.clone());
        }
        Ok(options)
    }
}

fn flag(
    variable: &impl Fn(&str) -> Option<String>,
    problems: &mut Vec<String>,
    name: &str,
) -> bool {
    match variable(name).as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => {
            problems.push(format!("{name} is neither true nor false"));
            false
        }
    }
}

/// The region of a secret's ARN: `arn:partition:secretsmanager:region:account:secret:name`.
fn region_of_secret(arn: &str) -> Option<&str> {
    let mut parts = arn.splitn(7, ':');
    let is = |part: Option<&str>, expected| part == Some(expected);
    if !is(parts.next(), "arn") || parts.next().is_none() || !is(parts.next(), "secretsmanager") {
        return None;
    }
    let region = parts.next().filter(|region| !region.is_empty())?;
    let named = parts.next().is_some() && is(parts.next(), "secret") && parts.next().is_some();
    named.then_some(region)
}

/// The root certificates of RDS in a region, as PEM text.
fn rds_authorities(region: &str) -> Option<&'static str> {
    const ALL: &str = include_str!("rds_roots.pem");
    let (_, rest) = ALL.split_once(&format!("\n# region {region}\n"))?;
    Some(rest.split_once("\n# region ").map_or(rest, |(section, _)| section))
}

/// The text of a PEM file of certificates, or what is wrong with it.
fn certificates(path: &str) -> Result<Vec<u8>, String> {
    let pem = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect();
    if certificates.is_empty() || certificates.iter().any(Result::is_err) {
        return Err("is no PEM file of certificates".to_owned());
    }
    Ok(pem)
}

fn private_key(path: &str) -> Result<(), String> {
    let pem = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| "is no PEM file of a key".to_owned()).map(drop)
}

/// A `DATABASE_URL`.
struct DatabaseUrl {
    options: PgConnectOptions,
    /// The parts that it has, by the names of parameters.
    parts: HashSet<String>,
}

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

impl DatabaseUrl {
    fn parse(text: &str) -> Result<Self, String> {
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
            let file = match &**name {
                "sslrootcert" | "sslcert" => certificates(value).map(drop),
                "sslkey" => private_key(value),
                _ => Ok(()),
            };
            file.map_err(|problem| format!("has an {name} that {problem}"))?;
        }
        let has = |name: &str| parameters.contains_key(name);
        if has("sslcert") != has("sslkey") {
            return Err("has one of sslcert and sslkey without the other".to_owned());
        }
        let mut options = PgConnectOptions::from_str(text)
            .map_err(|_| "has a port, sslmode or escape that cannot be read".to_owned())?;
        if options.get_host().contains(',') {
            return Err("names several hosts; name one".to_owned());
        }
        // A URL writes an IPv6 address in brackets, the resolver wants it without.
        let unbracketed =
            options.get_host().trim_start_matches('[').trim_end_matches(']').to_owned();
        options = options.host(&unbracketed);
        if !has("application_name") {
            options = options.application_name("synapse-media-usage");
        }
        let mut parts: HashSet<_> = parameters.keys().map(ToString::to_string).collect();
        for (name, is_there) in [
            ("host", has("hostaddr") || url.host_str().is_some_and(|host| !host.is_empty())),
            ("port", url.port().is_some()),
            ("dbname", url.path().len() > 1),
            ("password", url.password().is_some()),
        ] {
            if is_there {
                parts.insert(name.to_owned());
            }
        }
        Ok(Self { options, parts })
    }

    fn has(&self, part: &str) -> bool {
        self.parts.contains(part)
    }

    /// What the URL and the other variables cannot both mean.
    fn contradictions(&self, login: &Login, pooler: bool, has_ca_file: bool) -> Vec<String> {
        let mut problems = Vec::new();
        if *login != Login::Url && self.has("password") {
            problems.push(
                "DATABASE_URL has a password beside DATABASE_IAM_AUTH or DATABASE_SECRET_ARN"
                    .to_owned(),
            );
        }
        if matches!(login, Login::Iam { .. }) {
            if !self.has("host") {
                problems.push("DATABASE_URL names no host".to_owned());
            }
            // The token is a password in the clear: whoever gets it gets in, for 15 minutes.
            let verified = matches!(self.options.get_ssl_mode(), PgSslMode::VerifyFull);
            if self.has("sslmode") && !verified && !is_local(&self.options) {
                problems.push("DATABASE_IAM_AUTH needs sslmode=verify-full".to_owned());
            }
        }
        if pooler && self.has("options") {
            problems.push("DATABASE_URL has options, which no pooler takes".to_owned());
        }
        if has_ca_file && self.has("sslrootcert") {
            problems.push("DATABASE_URL has an sslrootcert beside DATABASE_CA_FILE".to_owned());
        }
        problems
    }
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

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn read(variables: Variables) -> Result<Config, ConfigError> {
        let variable = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Config::read(variable)
    }

    fn problems(variables: Variables) -> Vec<String> {
        read(variables).map_or_else(|error| error.problems, |_| Vec::new())
    }

    fn options(url: &str) -> PgConnectOptions {
        read(&[("DATABASE_URL", url)]).unwrap().database.options(Access::default()).unwrap()
    }

    #[test]
    fn all_wrong_variables_are_reported_at_once_and_by_name() {
        assert_eq!(
            problems(&[("STATEMENT_TIMEOUT_MS", "soon")]),
            ["DATABASE_URL is not set", "STATEMENT_TIMEOUT_MS is no integer from 1 to 900000"]
        );
        for timeout in ["0", "-1", "900001", "1.5"] {
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
    fn ways_to_log_in_exclude_each_other() {
        let arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:media-AbCdEf";
        let ok: [(Variables, Login); 4] = [
            (&[("DATABASE_URL", "postgres://u:p@db/x"), ("DATABASE_IAM_AUTH", "")], Login::Url),
            (
                &[("DATABASE_URL", "postgres://u:p@db/x"), ("DATABASE_IAM_AUTH", "false")],
                Login::Url,
            ),
            (
                &[
                    ("DATABASE_URL", "postgres://u@db/x"),
                    ("DATABASE_IAM_AUTH", "true"),
                    ("AWS_REGION", "eu-west-1"),
                ],
                Login::Iam { region: "eu-west-1".to_owned() },
            ),
            (
                &[("DATABASE_SECRET_ARN", arn), ("AWS_REGION", "eu-west-1")],
                Login::Secret { arn: arn.to_owned(), region: "eu-central-1".to_owned() },
            ),
        ];
        for (variables, login) in ok {
            assert_eq!(read(variables).unwrap().database.login, login, "{variables:?}");
        }
        let iam = ("DATABASE_IAM_AUTH", "true");
        let region = ("AWS_REGION", "eu-west-1");
        let wrong: [(Variables, &str); 9] = [
            (
                &[("DATABASE_URL", "postgres://u@db/x"), iam],
                "DATABASE_IAM_AUTH needs AWS_REGION, which is not set",
            ),
            (
                &[("DATABASE_URL", "postgres://u:p@db/x"), iam, region],
                "DATABASE_URL has a password beside DATABASE_IAM_AUTH or DATABASE_SECRET_ARN",
            ),
            (
                &[("DATABASE_URL", "postgres://u@db/x?sslmode=require"), iam, region],
                "DATABASE_IAM_AUTH needs sslmode=verify-full",
            ),
            (
                &[("DATABASE_URL", "postgres:///x?user=u"), iam, region],
                "DATABASE_URL names no host",
            ),
            (
                &[("DATABASE_URL", "postgres://u@db/x"), ("DATABASE_IAM_AUTH", "yes")],
                "DATABASE_IAM_AUTH is neither true nor false",
            ),
            (
                &[("DATABASE_SECRET_ARN", arn), iam, region],
                "DATABASE_IAM_AUTH and DATABASE_SECRET_ARN exclude each other",
            ),
            (
                &[("DATABASE_SECRET_ARN", "arn:aws:ssm:eu-central-1:1:parameter/x")],
                "DATABASE_SECRET_ARN is no ARN of a secret",
            ),
            (
                &[("DATABASE_SECRET_ARN", arn), ("DATABASE_URL", "postgres://db/x?password=p")],
                "DATABASE_URL has a password beside DATABASE_IAM_AUTH or DATABASE_SECRET_ARN",
            ),
            (
                &[
                    ("DATABASE_URL", "postgres://u:p@db/x?options=-c%20jit%3Don"),
                    ("DATABASE_POOLER", "true"),
                ],
                "DATABASE_URL has options, which no pooler takes",
            ),
        ];
        for (variables, problem) in wrong {
            assert_eq!(problems(variables), [problem], "{variables:?}");
        }
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
                &["MAS_SECRET_ARN is no ARN of a secret"],
            ),
            (
                &[url, name, secret, ("MAS_ENDPOINT", "mas.example.org")],
                &["MAS_ENDPOINT is no base URL that starts with https:// or http://"],
            ),
            (
                &[url, ("HOMESERVER_URL", "https://u:hunter2@matrix.example.org")],
                &["HOMESERVER_URL is no base URL that starts with https:// or http://"],
            ),
            (
                &[url, ("MAS_CACHE_SECONDS", "-1")],
                &["MAS_CACHE_SECONDS is no integer from 0 to 3600"],
            ),
            (&[url, ("ACCOUNT_VALIDITY", "1")], &["ACCOUNT_VALIDITY is neither true nor false"]),
        ];
        for (variables, expected) in wrong {
            assert_eq!(problems(variables), expected, "{variables:?}");
        }
    }

    #[test]
    fn what_the_url_says_of_the_place_wins_over_the_secret() {
        let access = || Access {
            username: Some("reader".to_owned()),
            password: Some("p".to_owned()),
            host: Some("writer.example.org".to_owned()),
            port: Some(5433),
            dbname: Some("synapse".to_owned()),
        };
        let arn = ("DATABASE_SECRET_ARN", "arn:aws:secretsmanager:eu-central-1:1:secret:x");
        let place = |variables: &[(&str, &str)], access| {
            let options = read(variables).unwrap().database.options(access)?;
            assert_eq!(format!("{:?}", options.get_ssl_mode()), "VerifyFull");
            let dbname = options.get_database().unwrap_or_default();
            Ok(format!(
                "{}@{}:{}/{dbname}",
                options.get_username(),
                options.get_host(),
                options.get_port()
            ))
        };
        let from = |url| place(&[arn, ("DATABASE_URL", url)], access());
        assert_eq!(
            place(&[arn], access()),
            Ok("reader@writer.example.org:5433/synapse".to_owned())
        );
        assert_eq!(
            from("postgres://replica.example.org"),
            Ok("reader@replica.example.org:5433/synapse".to_owned())
        );
        assert_eq!(
            from("postgres://someone@replica.example.org:5432/x"),
            Ok("reader@replica.example.org:5432/x".to_owned())
        );
        assert_eq!(from("postgres:///x"), Ok("reader@writer.example.org:5433/x".to_owned()));
        assert_eq!(
            place(&[arn], Access { host: None, ..access() }),
            Err("neither DATABASE_URL nor the secret names a host".to_owned())
        );
    }

    #[test]
    fn every_region_trusts_its_own_authorities() {
        let url = ("DATABASE_URL", "postgres://u:p@db/x");
        let trusted = |variables: Variables| {
            let authorities = read(variables).unwrap().database.authorities;
            authorities.map(|pem| String::from_utf8(pem).unwrap())
        };
        for region in ["eu-central-1", "us-west-2"] {
            let of_region = rds_authorities(region).map(str::to_owned);
            assert_eq!(trusted(&[url, ("AWS_REGION", region)]), of_region);
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/rds_roots.pem");
        let region = ("AWS_REGION", "us-west-2");
        let by_variable = trusted(&[url, region, ("DATABASE_CA_FILE", file)]);
        assert_eq!(by_variable.as_deref(), Some(include_str!("rds_roots.pem")));
        let in_url = format!("postgres://u:p@db/x?sslrootcert={file}");
        assert_eq!(trusted(&[("DATABASE_URL", &in_url), region]), None);
        assert!(rds_authorities("eu-central-1").unwrap().contains("-----BEGIN CERTIFICATE-----"));
        assert!(rds_authorities("eu-central-1").unwrap() != rds_authorities("us-east-1").unwrap());
        assert!(!rds_authorities("eu-central-1").unwrap().contains("# region"));
        for nowhere in ["", "eu", "eu-central", "mars-north-1"] {
            assert_eq!(rds_authorities(nowhere), None);
        }
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
            assert_eq!(format!("{:?}", options(url).get_ssl_mode()), expected, "{url}");
        }
    }

    #[test]
    fn an_ipv6_address_loses_its_brackets() {
        assert_eq!(options("postgres://user@[::1]:5433/x").get_host(), "::1");
    }
}
