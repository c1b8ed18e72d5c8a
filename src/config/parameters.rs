//! libpq's parameters, what each may say, and which of them a secret has.

use std::{fs, net::IpAddr};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::{Map, Value};

use crate::{credentials::Access, grammar::matches};

/// What may be the value of a parameter of libpq 14 to 18: a kind for [`check`], or the values that
/// ask for no more than the function does.
pub(super) fn kind(parameter: &str) -> Option<&'static str> {
    let parameters = include_str!("parameters.txt").lines();
    Some(parameters.filter_map(|line| line.split_once(' ')).find(|it| it.0 == parameter)?.1)
}

/// Checks a value of a kind, or says what it must be.
pub(super) fn check(kind: &str, value: &str) -> Result<(), String> {
    let (is_right, must) = match kind {
        _ if value.contains(['\0', '\u{fffd}']) => (false, "UTF-8 without NUL"),
        "text" => (true, ""),
        "user" if value.contains(',') => (false, "a name without a comma"),
        "user" => (is_user(value), "a name that SASLprep permits, without line breaks and tabs"),
        "host" => (is_host(value), "one host name, IP address or directory that starts with /"),
        "address" => (value.parse::<IpAddr>().is_ok(), "an IP address"),
        "port" => (value.parse().is_ok_and(|port: u16| port > 0), "an integer from 1 to 65535"),
        "seconds" => (seconds(value).is_some(), "an integer from 1 to 20"),
        "integer" => (value.trim().parse::<i32>().is_ok(), "an integer"),
        "options" => (!sets_search_path(value), "without search_path; use DATABASE_SCHEMA"),
        "certificates" => return certificates(value).map(drop),
        "refused" => (false, "left out"),
        values => (values.split(" or ").any(|known| known.eq_ignore_ascii_case(value)), values),
    };
    if is_right { Ok(()) } else { Err(format!("must be {must}")) }
}

/// A time limit in s, which leaves some of an invocation's 28 s for the statement.
pub(super) fn seconds(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|seconds| (1..=20).contains(seconds))
}

/// Whether sqlx can log in by this name. If the server asks for SCRAM, sqlx prepares the name in
/// this form by `SASLprep` (RFC 4013), panics when that fails, and escapes nothing of what comes of it:
/// a comma, a wide one too, ends the name (RFC 5802), and some characters change the `=`.
fn is_user(name: &str) -> bool {
    stringprep::saslprep(&format!("n={name}"))
        .is_ok_and(|prepared| prepared.starts_with("n=") && !prepared.contains(','))
}

fn is_host(text: &str) -> bool {
    let is_named = |c: char| c.is_alphanumeric() || "-._:%".contains(c);
    text.starts_with('/') || !text.is_empty() && text.chars().all(is_named)
}

/// Whether options for the server set `search_path`. It takes `-` for `_`, any case, and a
/// backslash before any character (PostgreSQL, `process_postgres_switches`).
fn sets_search_path(options: &str) -> bool {
    matches("(?is).*search[-_]path.*", &options.replace('\\', ""))
}

/// The text of a PEM file of certificates, or what is wrong with it.
pub(super) fn certificates(path: &str) -> Result<Vec<u8>, String> {
    let must = "must be a PEM file of certificates";
    let pem = fs::read(path).map_err(|error| format!("{must}: {error}"))?;
    let roots = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let (added, ignored) =
        RootCertStore::empty().add_parsable_certificates(roots.map_err(|_| must)?);
    if added > 0 && ignored == 0 { Ok(pem) } else { Err(must.to_owned()) }
}

/// Reads what RDS and its users keep in a secret (AWS Secrets Manager User Guide, "JSON structure
/// of AWS Secrets Manager database credential secrets"), or says what is wrong with it, quoting
/// nothing.
pub(super) fn of_secret(secret: &str) -> Result<Access, String> {
    let fields: Map<String, Value> =
        serde_json::from_str(secret).map_err(|_| "the secret must be a JSON object")?;
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
        let access = of_secret(secret)?;
        Ok(access.0.iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn a_secret_is_as_rds_keeps_it() {
        let full = r#"{"engine":"postgres","host":"db.example.org","username":"u","password":"p","dbname":"synapse","port":5432,"dbInstanceIdentifier":"x"}"#;
        let expected =
            ["dbname=synapse", "host=db.example.org", "password=p", "port=5432", "user=u"];
        assert_eq!(given(full).unwrap(), expected);
        assert_eq!(format!("{:?}", of_secret(full).unwrap()), "Hidden(..)");
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
