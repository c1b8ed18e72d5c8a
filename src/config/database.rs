//! Where the database is, how the function gets in, and which authorities it trusts.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use super::{
    Variables,
    parameters::{certificates, check, kind, of_secret, seconds},
};
use crate::{
    aws::{Secret, SecretSource},
    credentials::{Access, Credentials},
    grammar::matches,
    hidden::Hidden,
};

/// Where the database is and how to get in.
#[derive(Debug)]
pub struct Database {
    /// How the function proves who it is. A secret is kept in here once it was read.
    pub credentials: Credentials,
    /// Whether the other end is a pooler, which lends its sessions for one transaction at a time.
    pub pooler: bool,
    /// The schema of Synapse's tables. Between double quotes it needs no escapes.
    pub schema: String,
    /// How long opening a connection may take: name resolution, secret, TLS and authentication.
    pub connect_timeout: Duration,
    /// PEM text of the authorities to trust beside those of the public web.
    pub authorities: Hidden<Vec<u8>>,
    /// What the URL says.
    given: Access,
    /// Where to connect and as whom by the URL alone.
    pub url: Hidden<PgConnectOptions>,
}

impl Database {
    pub(super) fn read(variables: &mut Variables) -> Option<Self> {
        let credentials = credentials(variables);
        let pooler = variables.flag("DATABASE_POOLER");
        let schema = variables.get("DATABASE_SCHEMA").unwrap_or_else(|| "public".to_owned());
        let is_schema = matches(r"[[:alpha:]_]\w{0,62}", &schema) && !matches("(?i)pg_.*", &schema);
        let must = "must be up to 63 ASCII letters, digits and _, not starting with a digit or pg_";
        variables.require(is_schema, format!("DATABASE_SCHEMA {must}"));
        for name in ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"] {
            let problem = format!("{name} must not be set; use DATABASE_URL");
            variables.require(variables.get(name).is_none(), problem);
        }
        let file = variables.get("DATABASE_CA_FILE");
        let of_file = file.and_then(|it| variables.accept("DATABASE_CA_FILE", certificates(&it)));
        let of_region = variables.get("AWS_REGION").and_then(|region| rds_authorities(&region));
        let secret_is_all = credentials.secret().map(|_| "postgres://".to_owned());
        let text = variables.get("DATABASE_URL").or(secret_is_all);
        variables.require(text.is_some(), "DATABASE_URL is not set");
        let url = read_url(&text?).and_then(|given| Ok((connect_options(&given)?, given)));
        let (url, given) = variables.accept("DATABASE_URL:", url)?;
        variables.accept("PGHOST", check("host", url.get_host()));
        variables.accept("PGUSER", check("user", url.get_username()));

        // What the URL and the other variables cannot both mean.
        let has = |name| given.contains_key(name);
        let is_iam = matches!(credentials, Credentials::Iam(_));
        let problem = "DATABASE_URL has a password beside DATABASE_IAM_AUTH or DATABASE_SECRET_ARN";
        variables.require(matches!(credentials, Credentials::Url) || !has("password"), problem);
        variables.require(!is_iam || has("host"), "DATABASE_IAM_AUTH needs a host in DATABASE_URL");
        // The token is a password in the clear: whoever gets it gets in, for 15 minutes.
        let is_verified = matches!(url.get_ssl_mode(), PgSslMode::VerifyFull) || is_local(&url);
        let problem = "DATABASE_IAM_AUTH needs sslmode=verify-full";
        variables.require(!is_iam || !has("sslmode") || is_verified, problem);
        let problem = "DATABASE_URL has options, which no pooler takes";
        variables.require(!pooler || !has("options"), problem);
        let is_twice = has("sslrootcert") && variables.get("DATABASE_CA_FILE").is_some();
        variables.require(!is_twice, "DATABASE_URL has an sslrootcert beside DATABASE_CA_FILE");
        let of_url = given.get("sslrootcert").and_then(|file| certificates(file).ok());
        let authorities = Hidden(of_url.or(of_file).or(of_region).unwrap_or_default());
        let connect_timeout = given.get("connect_timeout").and_then(|text| seconds(text));
        let connect_timeout = Duration::from_secs(connect_timeout.unwrap_or(3));
        let (given, url) = (Hidden(given), Hidden(url));
        Some(Self { credentials, pooler, schema, connect_timeout, authorities, given, url })
    }

    /// How to connect, with what a secret or a token adds to the URL.
    ///
    /// What the URL says of the place wins: the secret that RDS keeps names the writer. The user
    /// is the secret's.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn options(&self, access: Access) -> Result<PgConnectOptions, String> {
        let Hidden(mut parts) = access;
        let user = parts.get("user").cloned();
        parts.extend(self.given.0.clone());
        parts.extend(user.map(|user| ("user".to_owned(), user)));
        if !matches!(self.credentials, Credentials::Url) && !parts.contains_key("host") {
            return Err("neither DATABASE_URL nor the secret names a host".to_owned());
        }
        let options = connect_options(&parts)?;
        if parts.contains_key("sslmode") {
            return Ok(options);
        }
        let may_be_plain = is_local(&options) && !parts.contains_key("ssl");
        Ok(options.ssl_mode(if may_be_plain { PgSslMode::Prefer } else { PgSslMode::VerifyFull }))
    }
}

/// How the function proves who it is. Nothing is read yet but the variables.
fn credentials(variables: &mut Variables) -> Credentials {
    let secret = variables.secret_arn("DATABASE_SECRET_ARN");
    let is_iam = variables.flag("DATABASE_IAM_AUTH");
    let region = variables.get("AWS_REGION");
    let problem = "DATABASE_IAM_AUTH and DATABASE_SECRET_ARN exclude each other";
    variables.require(!is_iam || secret.is_none(), problem);
    let problem = "DATABASE_IAM_AUTH needs AWS_REGION, which is not set";
    variables.require(!is_iam || secret.is_some() || region.is_some(), problem);
    match secret {
        Some(arn) => Credentials::Secret(Secret::new(SecretSource::Arn(arn), of_secret)),
        None if is_iam => Credentials::Iam(region.unwrap_or_default()),
        None => Credentials::Url,
    }
}

/// Reads the parameters that a libpq URL gives in its parts (PostgreSQL, "Connection URIs"). An
/// error quotes nothing but names of parameters of libpq.
fn read_url(text: &str) -> Result<BTreeMap<String, String>, String> {
    let (scheme, rest) = text.trim().split_once("://").unwrap_or_default();
    if !["postgres", "postgresql"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err("it must start with postgres:// or postgresql://".to_owned());
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let parameters = query.split('&').map(|text| text.split_once('=').unwrap_or((text, "")));
    // If a password has one of the three characters, the host's @ comes after it.
    if rest.contains(['#', '@']) {
        return Err("write # as %23, / as %2F, @ as %40, ? as %3F, or use PGPASSWORD".to_owned());
    }
    let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':').unwrap_or(port)),
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let dbname = path.trim_start_matches('/');
    let parts = [("user", user), ("password", password), ("host", host), ("port", port)];
    let parts = parts.into_iter().chain([("dbname", dbname)]).chain(parameters);
    let mut given = BTreeMap::new();
    // As with libpq, a later one wins.
    for (name, value) in parts.filter(|it| !it.1.is_empty() || it.0 == "connect_timeout") {
        let decode = |text| percent_decode_str(text).decode_utf8().map_err(|_| "it must be UTF-8");
        let (name, value) = (decode(name)?, decode(value)?);
        // Behind a forgotten escape the name can be a piece of the password.
        let kind = kind(&name).ok_or("it must have no parameters but those of libpq")?;
        check(kind, &value).map_err(|problem| format!("{name} {problem}"))?;
        given.insert(name.into_owned(), value.into_owned());
    }
    Ok(given)
}

fn connect_options(parts: &BTreeMap<String, String>) -> Result<PgConnectOptions, String> {
    // sqlx takes a hostaddr for the host. What it does not know it ignores with a warning, which
    // `crate::log` drops.
    let url = Url::parse_with_params("postgres:", parts).map_err(|error| error.to_string())?;
    let options: PgConnectOptions =
        url.as_str().parse().map_err(|_| "sqlx must be able to read it")?;
    let is_nameless = options.get_application_name().unwrap_or_default().is_empty();
    Ok(if is_nameless { options.application_name("synapse-media-usage") } else { options })
}

/// Whether the way to the database stays on this machine.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let is_loopback = host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    let is_socket = options.get_socket().is_some() || host.starts_with('/');
    is_socket || is_loopback || host == "localhost"
}

/// The root certificates of RDS in a region, as PEM text.
fn rds_authorities(region: &str) -> Option<Vec<u8>> {
    const ALL: &str = include_str!("../rds_roots.pem");
    let (_, rest) = ALL.split_once(&format!("\n# region {region}\n"))?;
    Some(rest.split_once("\n# region ").map_or(rest, |(section, _)| section).into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::tests::{Variables, problems, read},
        *,
    };

    /// The way to log in, and the region or the ARN that goes with it.
    pub(in crate::config) fn shown(credentials: &Credentials) -> (&str, &str) {
        match credentials {
            Credentials::Url => ("url", ""),
            Credentials::Iam(region) => ("IAM", region),
            Credentials::Secret(secret) => match &secret.source {
                SecretSource::Arn(arn) => ("secret", arn),
                SecretSource::Text(_) => ("text", ""),
            },
        }
    }

    fn options(url: &str) -> PgConnectOptions {
        read(&[("DATABASE_URL", url)]).unwrap().database.options(Access::default()).unwrap()
    }

    #[test]
    fn ways_to_log_in_exclude_each_other() {
        let arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:media-AbCdEf";
        let ok: [(Variables, (&str, &str)); 4] = [
            (&[("DATABASE_URL", "postgres://u:p@db/x"), ("DATABASE_IAM_AUTH", "")], ("url", "")),
            (
                &[("DATABASE_URL", "postgres://u:p@db/x"), ("DATABASE_IAM_AUTH", "false")],
                ("url", ""),
            ),
            (
                &[
                    ("DATABASE_URL", "postgres://u@db/x"),
                    ("DATABASE_IAM_AUTH", "true"),
                    ("AWS_REGION", "eu-west-1"),
                ],
                ("IAM", "eu-west-1"),
            ),
            (&[("DATABASE_SECRET_ARN", arn), ("AWS_REGION", "eu-west-1")], ("secret", arn)),
        ];
        for (variables, login) in ok {
            let database = read(variables).unwrap().database;
            assert_eq!(shown(&database.credentials), login, "{variables:?}");
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
                "DATABASE_IAM_AUTH needs a host in DATABASE_URL",
            ),
            (
                &[("DATABASE_URL", "postgres://u@db/x"), ("DATABASE_IAM_AUTH", "yes")],
                "DATABASE_IAM_AUTH must be true or false",
            ),
            (
                &[("DATABASE_SECRET_ARN", arn), iam, region],
                "DATABASE_IAM_AUTH and DATABASE_SECRET_ARN exclude each other",
            ),
            (
                &[("DATABASE_SECRET_ARN", "arn:aws:ssm:eu-central-1:1:parameter/x")],
                "DATABASE_SECRET_ARN must be the ARN of a secret of Secrets Manager",
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
    fn what_the_url_says_of_the_place_wins_over_the_secret() {
        let access = |parts: &[(&str, &str)]| {
            let login = [("user", "reader"), ("password", "p")];
            let parts = [&login, parts].concat();
            Hidden(parts.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
        };
        let full =
            || access(&[("host", "writer.example.org"), ("port", "5433"), ("dbname", "synapse")]);
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
        let from = |url| place(&[arn, ("DATABASE_URL", url)], full());
        assert_eq!(place(&[arn], full()), Ok("reader@writer.example.org:5433/synapse".to_owned()));
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
            place(&[arn], access(&[("port", "5433")])),
            Err("neither DATABASE_URL nor the secret names a host".to_owned())
        );
    }

    #[test]
    fn every_region_trusts_its_own_authorities() {
        let url = ("DATABASE_URL", "postgres://u:p@db/x");
        let trusted = |variables: Variables| {
            String::from_utf8(read(variables).unwrap().database.authorities.0).unwrap()
        };
        assert_eq!(trusted(&[url]), "");
        for region in ["eu-central-1", "us-west-2"] {
            let of_region = String::from_utf8(rds_authorities(region).unwrap()).unwrap();
            assert_eq!(trusted(&[url, ("AWS_REGION", region)]), of_region);
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/rds_roots.pem");
        let region = ("AWS_REGION", "us-west-2");
        let in_url = format!("postgres://u:p@db/x?sslrootcert={file}");
        for variables in
            [&[url, region, ("DATABASE_CA_FILE", file)][..], &[("DATABASE_URL", &in_url), region]]
        {
            assert_eq!(trusted(variables), include_str!("../rds_roots.pem"));
        }
        let [frankfurt, virginia] = ["eu-central-1", "us-east-1"]
            .map(|region| String::from_utf8(rds_authorities(region).unwrap()).unwrap());
        assert!(frankfurt.contains("-----BEGIN CERTIFICATE-----") && frankfurt != virginia);
        assert!(!frankfurt.contains("# region"));
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
            assert!(problems[0].starts_with("DATABASE_URL: "), "{problems:?}");
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

    /// User, password, host, port and name of the database, as sqlx has them. What is not given
    /// comes from the environment, which tests do not set.
    fn parts(url: &str) -> [String; 5] {
        let options = options(url);
        let shown = format!("{options:?}");
        let password = shown.split(" password: ").nth(1).unwrap().split(", database: ").next();
        let socket = options.get_socket().map(|folder| folder.display().to_string());
        [
            options.get_username().to_owned(),
            password.unwrap().to_owned(),
            socket.unwrap_or(options.get_host().to_owned()),
            options.get_port().to_string(),
            options.get_database().unwrap_or_default().to_owned(),
        ]
    }

    #[test]
    fn a_url_has_its_parts_where_libpq_has_them() {
        let default_host = PgConnectOptions::new_without_pgpass().get_host().to_owned();
        for (url, [user, password, host, port, dbname]) in [
            ("postgres://u:p@h:1/d", ["u", "p", "h", "1", "d"]),
            ("postgresql://u:p@h", ["u", "p", "h", "5432", ""]),
            (" POSTGRES://u:p@h/d\n", ["u", "p", "h", "5432", "d"]),
            ("postgres://u:p@h:/d", ["u", "p", "h", "5432", "d"]),
            ("postgres://u:p@/d?host=/dir", ["u", "p", "/dir", "5432", "d"]),
            ("postgres://u:p@/d?host=/dir&port=7", ["u", "p", "/dir", "7", "d"]),
            ("postgres://u:p@:7/d?host=h", ["u", "p", "h", "7", "d"]),
            (
                "postgres:///d?host=/run/postgresql&user=u&password=p",
                ["u", "p", "/run/postgresql", "5432", "d"],
            ),
            ("postgres://?host=h&user=u&password=p&dbname=d", ["u", "p", "h", "5432", "d"]),
            ("postgres://h?user=u&password=p", ["u", "p", "h", "5432", ""]),
            ("postgres://u:p@%2Frun%2Fpostgresql/d", ["u", "p", "/run/postgresql", "5432", "d"]),
            ("postgres://u:p@[::1]:1/d", ["u", "p", "::1", "1", "d"]),
            ("postgres://u:p@[2001:db8::1]/d", ["u", "p", "2001:db8::1", "5432", "d"]),
            (
                "postgres://u:p@h/d?hostaddr=10.0.0.1&host=other",
                ["u", "p", "10.0.0.1", "5432", "d"],
            ),
            // As with libpq, what comes later wins.
            (
                "postgres://a:b@c:1/d?user=u&password=p&host=h&port=2&dbname=x",
                ["u", "p", "h", "2", "x"],
            ),
            // An @ in a password works, and so do all other characters but three.
            ("postgres://u:p@ss@h/d", ["u", "p@ss", "h", "5432", "d"]),
            ("postgres://u:@@@h/d", ["u", "@@", "h", "5432", "d"]),
            ("postgres://u:p:1@h/d", ["u", "p:1", "h", "5432", "d"]),
            ("postgres://u:[p]&=;+!$'*,@h/d", ["u", "[p]&=;+!$'*,", "h", "5432", "d"]),
            ("postgres://u:100%@h/d", ["u", "100%", "h", "5432", "d"]),
            ("postgres://u:a b@h/d", ["u", "a b", "h", "5432", "d"]),
            ("postgres://u:%23%2F%3F%40%25@h/d", ["u", "#/?@%", "h", "5432", "d"]),
            ("postgres://%C3%BC:%E2%82%AC@h/d", ["ü", "€", "h", "5432", "d"]),
            ("postgres://u%40tenant:p@h/d%401", ["u@tenant", "p", "h", "5432", "d@1"]),
            // A query ends nothing, so it may have all but # and @, and + is no blank.
            (
                "postgres://h/d?user=u%40tenant&password=p%40s/s?+=1",
                ["u@tenant", "p@s/s?+=1", "h", "5432", "d"],
            ),
        ] {
            let password = format!("Some({password:?})");
            assert_eq!(parts(url), [user, &password, host, port, dbname], "{url}");
        }
        // What is empty counts as not given.
        assert_eq!(parts("postgres://u:@/?port=&host=")[1..4], ["None", &default_host, "5432"]);
    }

    #[test]
    fn a_password_without_escapes_is_refused_and_told_how_to_write_it() {
        let ends = ["#", "/", "?"];
        let starts = ["", "p", "5432", "p@", "p@1", "@", "p@ss:1", "[", "a&b=c"];
        let rests = [
            "",
            "w",
            "1",
            "w@x",
            "@",
            "user=",
            "options=w",
            "=",
            "w=1",
            "&w",
            "host=w",
            "sslmode=w",
            "port=1",
            "#",
            "/",
            "?",
        ];
        let places = [
            "h/d",
            "h:5432/d",
            "h",
            "/d?host=/dir",
            "[::1]:1/d",
            "h/d?sslmode=require&user=u",
            "h?user=x",
        ];
        for (start, end) in starts.iter().flat_map(|start| ends.map(|end| (start, end))) {
            for (rest, place) in rests.iter().flat_map(|rest| places.map(|place| (rest, place))) {
                let url = format!("postgres://u:{start}{end}{rest}@{place}");
                let expected =
                    "DATABASE_URL: write # as %23, / as %2F, @ as %40, ? as %3F, or use PGPASSWORD";
                assert_eq!(problems(&[("DATABASE_URL", &url)]), [expected], "{url}");
            }
        }
        // Other programs end a URL at an unescaped #, wherever it is.
        for url in ["h#x", "h/d#x", "h/d?password=p#w", "h?#", "h#"] {
            let expected =
                "DATABASE_URL: write # as %23, / as %2F, @ as %40, ? as %3F, or use PGPASSWORD";
            assert_eq!(problems(&[("DATABASE_URL", &format!("postgres://{url}"))]), [expected]);
        }
    }

    #[test]
    fn parameters_of_libpq_are_taken_if_they_ask_for_no_more_than_there_is() {
        let taken = "connect_timeout=1 connect_timeout=20 channel_binding=prefer \
                     channel_binding=disable target_session_attrs=any target_session_attrs=read-only \
                     target_session_attrs=prefer-standby keepalives=1 keepalives=0 keepalives_idle=30 \
                     keepalives_interval=10 keepalives_count=3 tcp_user_timeout=0 gssencmode=disable \
                     gssencmode=prefer sslsni=1 ssl=true sslcompression=0 sslnegotiation=postgres \
                     client_encoding=utf8 client_encoding=auto fallback_application_name=x \
                     load_balance_hosts=random replication=false ssl_min_protocol_version=TLSv1.2 \
                     ssl_max_protocol_version=TLSv1.3 min_protocol_version=3.0 \
                     max_protocol_version=latest sslcertmode=allow krbsrvname=postgres gsslib=gssapi \
                     gssdelegation=0 passfile= channel_binding= sslmode=";
        for parameter in taken.split_whitespace() {
            let url = format!("postgres://u:p@h:1/d?{parameter}");
            assert_eq!(parts(&url), ["u", "Some(\"p\")", "h", "1", "d"], "{parameter}");
            let mode = options(&url).get_ssl_mode();
            assert!(matches!(mode, PgSslMode::VerifyFull), "{parameter}");
        }
        let refused = "connect_timeout= connect_timeout=hunter2 connect_timeout=1.5 connect_timeout=0 connect_timeout=-1 \
                       connect_timeout=21 connect_timeout=4294967297 channel_binding=require \
                       channel_binding=hunter2 target_session_attrs=primary \
                       target_session_attrs=read-write target_session_attrs=standby keepalives=hunter2 \
                       gssencmode=require sslsni=0 sslnegotiation=direct client_encoding=latin1 \
                       replication=database ssl=false ssl_min_protocol_version=TLSv1.3 \
                       ssl_max_protocol_version=TLSv1.2 min_protocol_version=3.2 sslcertmode=require \
                       gssdelegation=1 passfile=/hunter2 require_auth=scram-sha-256 requirepeer=hunter2 \
                       service=hunter2 sslcrl=/hunter2 sslcrldir=/hunter2 sslkeylogfile=/hunter2 \
                       sslpassword=hunter2 oauth_issuer=hunter2 oauth_client_id=hunter2 \
                       oauth_client_secret=hunter2 oauth_scope=hunter2 scram_client_key=hunter2 \
                       scram_server_key=hunter2 sslmode=hunter2 port=hunter2 port=0 port=65536 \
                       port=hunter2 hostaddr=hunter2 hostaddr=db host=a,b host=hunter2%40db host=d%20b \
                       sslrootcert=/hunter2 sslcert=/hunter2 sslkey=/hunter2";
        for parameter in refused.split_whitespace() {
            let name = parameter.split('=').next().unwrap();
            let url = format!("postgres://u:p@h:1/d?{parameter}");
            let problems = problems(&[("DATABASE_URL", &url)]);
            assert_eq!(problems.len(), 1, "{parameter}: {problems:?}");
            let start = format!("DATABASE_URL: {name} must be ");
            assert!(
                problems[0].starts_with(&start) && !problems[0].contains("hunter2"),
                "{problems:?}"
            );
        }
        for name in [
            "pasword",
            "hunter2",
            "sslmod",
            "options[search_path]",
            "",
            "channel_binding%20disable",
        ] {
            let url = format!("postgres://u:p@h/d?{name}=x");
            let expected = "DATABASE_URL: it must have no parameters but those of libpq";
            assert_eq!(problems(&[("DATABASE_URL", &url)]), [expected], "{name}");
        }
        // On the way to this machine TLS is an offer, until somebody asks for it.
        let mode = options("postgres://u:p@127.0.0.1/d?ssl=true").get_ssl_mode();
        assert!(matches!(mode, PgSslMode::VerifyFull));
    }

    #[test]
    fn the_search_path_is_set_by_the_schema_alone() {
        for options in [
            "-c search_path=x",
            "-csearch_path=x",
            "-c%20search_path%3Dx",
            "-c%20geqo%3Doff%20-c%20search_path%3Dx",
            "--search_path=x",
            "--search-path=x",
            "-c Search-Path=x",
            "--SEARCH_PATH=x",
            "-c%20search%5C_path=x",
            "-c%20s%5Cearch_path=x",
            "-c\tsearch_path=x",
            "x%0A-c%20search_path%3Dx",
            "-c%73earch_path=x",
        ] {
            let url = format!("postgres://u:p@h/d?options={options}");
            let expected = "DATABASE_URL: options must be without search_path; use DATABASE_SCHEMA";
            assert_eq!(problems(&[("DATABASE_URL", &url)]), [expected], "{options}");
        }
        let url = ("DATABASE_URL", "postgres://u:p@h/d?options=-c%20geqo%3Doff%20-c work_mem=64MB");
        let database = read(&[url]).unwrap().database;
        assert_eq!(database.url.0.get_options(), Some("-c geqo=off -c work_mem=64MB"));
        for (variable, value, instead) in [
            ("PGOPTIONS", "-c search_path=x", "use DATABASE_URL"),
            ("PGOPTIONS", "-c geqo=off", "use DATABASE_URL"),
            ("PGSSLROOTCERT", "/x", "use DATABASE_URL"),
        ] {
            let expected = format!("{variable} must not be set; {instead}");
            assert_eq!(problems(&[url, (variable, value)]), [expected]);
        }
    }

    #[test]
    fn a_schema_is_a_name_that_needs_no_escapes() {
        let url = ("DATABASE_URL", "postgres://u:p@h/d");
        let schema = |name: &str| read(&[url, ("DATABASE_SCHEMA", name)]).unwrap().database.schema;
        assert_eq!(read(&[url]).unwrap().database.schema, "public");
        assert_eq!(schema(""), "public");
        let longest = "x".repeat(63);
        for name in ["public", "Synapse", "_", "a1_B2", "pg", "pgx_", "_pg_", &longest] {
            assert_eq!(schema(name), name);
        }
        let too_long = "x".repeat(64);
        for name in [
            "1a",
            "pg_temp",
            "pg_catalog",
            "PG_Toast",
            "Pg_",
            "a-b",
            "a.b",
            "a b",
            " a",
            "a\n",
            "a\"b",
            "a'b",
            "ä",
            "a;b",
            "$user",
            "\"$user\"",
            "public, x",
            " ",
            &too_long,
        ] {
            let expected = "DATABASE_SCHEMA must be up to 63 ASCII letters, digits and _, not starting with a digit or pg_";
            assert_eq!(problems(&[url, ("DATABASE_SCHEMA", name)]), [expected], "{name}");
        }
    }

    #[test]
    fn a_user_name_that_saslprep_refuses_is_refused_by_name() {
        for user in [
            "hunter2%0A",
            "hunter2%09",
            "hunter2%EE%80%80",
            "hunter2%D7%90",
            "%D7%90",
            "hunter2\u{1}",
        ] {
            for url in [format!("postgres://{user}:p@h/d"), format!("postgres://h/d?user={user}")] {
                let expected = "DATABASE_URL: user must be a name that SASLprep permits, without line breaks and tabs";
                assert_eq!(problems(&[("DATABASE_URL", &url)]), [expected], "{url}");
            }
        }
    }

    #[test]
    fn a_file_of_authorities_has_certificates_and_nothing_else() {
        let file = std::env::temp_dir().join(format!("authorities-{}", std::process::id()));
        let path = file.to_str().unwrap();
        let url = ("DATABASE_URL", "postgres://u:p@h/d");
        let good = String::from_utf8(rds_authorities("eu-central-1").unwrap()).unwrap();
        for text in [
            "",
            "hunter2",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\nAAAA\n",
            // One that is good makes up for no other.
            &format!("{good}\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            &format!("{good}\n-----BEGIN CERTIFICATE-----\nAAAA\n"),
        ] {
            std::fs::write(&file, text).unwrap();
            let problem = "DATABASE_CA_FILE must be a PEM file of certificates";
            assert_eq!(problems(&[url, ("DATABASE_CA_FILE", path)]), [problem], "{text}");
        }
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn debug_shows_no_secret() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/rds_roots.pem");
        let url = ("DATABASE_URL", "postgres://u:hunter2@h/d?application_name=hunter2");
        let config = read(&[url, ("DATABASE_CA_FILE", file)]).unwrap();
        assert!(!format!("{config:?} {config:#?}").contains("hunter2"));
    }
}
