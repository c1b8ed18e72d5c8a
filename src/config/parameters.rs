//! libpq's parameters, and what each may say.

use std::{fs, net::IpAddr};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// What may be the value of a parameter of libpq 14 to 18: a kind for [`check`], or the values that
/// ask for no more than the function does.
pub(super) fn kind(parameter: &str) -> Option<&'static str> {
    let parameters = include_str!("parameters.txt").lines();
    Some(parameters.filter_map(|line| line.split_once(' ')).find(|it| it.0 == parameter)?.1)
}

/// Checks a value of a kind.
///
/// # Errors
///
/// What it must be.
pub fn check(kind: &str, value: &str) -> Result<(), String> {
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
    let options = options.replace('\\', "").replace('-', "_").to_ascii_lowercase();
    options.contains("search_path")
}

/// The text of a PEM file of certificates, or what is wrong with it.
pub(super) fn certificates(path: &str) -> Result<Vec<u8>, String> {
    let must = "must be a PEM file of certificates";
    let pem = fs::read(path).map_err(|error| format!("{must}: {error}"))?;
    let mut roots = RootCertStore::empty();
    let is_root = |it: Result<_, _>| it.is_ok_and(|certificate| roots.add(certificate).is_ok());
    let are_roots = CertificateDer::pem_slice_iter(&pem).all(is_root);
    if are_roots && !roots.is_empty() { Ok(pem) } else { Err(must.to_owned()) }
}
