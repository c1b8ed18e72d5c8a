//! The way to the database: whose certificate is trusted, and what is said of one that is not.

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use sqlx::Connection as _;

use crate::support::{
    block_on,
    database::{Cluster, Database, cluster},
    function::{Function, ask},
    iam::IamDatabase,
    read,
    tls::{Front, stranger},
};

/// Changes a setting of the server, and waits until new sessions have it.
async fn set(database: &Database, setting: &str, value: &str) {
    let mut superuser = database.superuser().await;
    for sql in [format!("ALTER SYSTEM SET {setting} = '{value}'"), "SELECT pg_reload_conf()".into()]
    {
        sqlx::raw_sql(&sql).execute(&mut superuser).await.unwrap();
    }
    superuser.close().await.unwrap();
    loop {
        let mut superuser = database.superuser().await;
        let show = format!("SHOW {setting}");
        let shown: String = sqlx::query_scalar(&show).fetch_one(&mut superuser).await.unwrap();
        superuser.close().await.unwrap();
        if shown == value {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_server_that_cannot_be_trusted_is_refused_and_the_log_says_what_to_do() {
    let cluster = Cluster::of_its_own();
    let (Some(ca), Some(tls)) = (&cluster.ca, &cluster.tls) else {
        println!("this PostgreSQL was built without TLS");
        return;
    };
    let database = block_on(Database::of_conformance_in(cluster, "synapse-94"));
    let url = format!("{}?sslmode=verify-full", database.url());
    let in_url = format!("{url}&sslrootcert={ca}");
    let by_variable = [("DATABASE_URL", url.as_str()), ("DATABASE_CA_FILE", ca)];
    // Loopback addresses are the only ones whose servers are not verified unless they are told to be.
    for variables in [by_variable.as_slice(), &[("DATABASE_URL", &in_url)]] {
        let function = Function::start(variables);
        assert_eq!(ask(&function).0, 200);
        function.stop();
    }
    // As servers are whose OpenSSL is old.
    block_on(set(&database, "ssl_max_protocol_version", "TLSv1.2"));
    let function = Function::start(&by_variable);
    assert_eq!(ask(&function).0, 200);
    function.stop();
    for (setting, value, what, remedy) in [
        (
            "ssl_cert_file",
            "wrong-name.pem",
            "not valid for name",
            "must name the server as its certificate does",
        ),
        ("ssl_cert_file", "expired.pem", "expired", "renew the server's certificate"),
        ("ssl_cert_file", "unknown-issuer.pem", "UnknownIssuer", "name it in DATABASE_CA_FILE"),
        ("ssl", "off", "does not support TLS", "turn TLS on in the server"),
    ] {
        let file = format!("{tls}/{value}");
        block_on(set(&database, setting, if setting == "ssl" { value } else { &file }));
        let function = Function::start(&by_variable);
        let (status, error) = ask(&function);
        assert_eq!(
            (status, error["errcode"].as_str()),
            (503, Some("M_UNKNOWN")),
            "{value}: {error}"
        );
        let log = function.stop();
        let line = log
            .lines()
            .find(|line| line.contains(what))
            .unwrap_or_else(|| panic!("{value}: {log}"));
        assert!(line.contains(remedy), "{value}: {line}");
    }
}

/// Asserts that the function answers, or else that it says what is wrong with the server.
fn assert_answers(url: &str, ca: &str, problem: Option<&str>) {
    let function = Function::start(&[("DATABASE_URL", url), ("DATABASE_CA_FILE", ca)]);
    let (status, error) = ask(&function);
    let log = function.stop();
    match problem {
        None => assert_eq!(status, 200, "{url}: {log}"),
        Some(problem) => {
            assert_eq!((status, error["errcode"].as_str()), (503, Some("M_UNKNOWN")), "{url}");
            assert!(log.contains(problem), "{url}: {log}");
        }
    }
}

#[test]
fn an_sslmode_is_as_strict_as_it_says() {
    let (Some(ca), Some(tls)) = (&cluster().ca, &cluster().tls) else {
        println!("this PostgreSQL was built without TLS");
        return;
    };
    let database = block_on(Database::of_conformance("synapse-94"));
    let modes = ["prefer", "require", "verify-ca", "verify-full"];
    for (certificate, problem) in [
        ("server", None),
        ("wrong-name", Some("not valid for name")),
        ("expired", Some("expired")),
        ("unknown-issuer", Some("UnknownIssuer")),
    ] {
        let front = Front::start(&database.url(), tls, certificate);
        for sslmode in modes {
            let problem = problem.filter(|_| sslmode.starts_with("verify"));
            assert_answers(&front.url("localhost", sslmode), ca, problem);
        }
    }
    let port = IamDatabase::start(&database).port;
    let url = database.url().replace(&format!(":{}/", cluster().port), &format!(":{port}/"));
    for sslmode in modes {
        let problem = (sslmode != "prefer").then_some("server does not support TLS");
        assert_answers(&format!("{url}?sslmode={sslmode}"), ca, problem);
    }
}

#[test]
fn the_url_s_host_is_the_name_that_is_asked_for_and_verified() {
    let (Some(ca), Some(tls)) = (&cluster().ca, &cluster().tls) else {
        println!("this PostgreSQL was built without TLS");
        return;
    };
    let database = block_on(Database::of_conformance("synapse-94"));
    let server = database.url();
    for (host, name) in [
        ("localhost", Some("localhost")),
        // Addresses are not asked for (RFC 6066, section 3).
        ("127.0.0.1", None),
        // An address of IPv6 that is there without IPv6.
        ("[::ffff:127.0.0.1]", None),
    ] {
        let front = Front::start(&server, tls, "server");
        assert_answers(&front.url(host, "verify-full"), ca, None);
        assert_eq!(front.names(), [name.map(str::to_owned)], "{host}");
        // And is not an address of the certificate.
        let front = Front::start(&server, tls, "wrong-name");
        assert_answers(&front.url(host, "verify-full"), ca, Some("not valid for name"));
    }
}

#[test]
fn a_server_of_another_protocol_is_none() {
    for (greeting, what) in [
        (&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], "received corrupt message"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer to SSLRequest is none"),
        // A yes, and nothing after it.
        (b"S", "took too long"),
    ] {
        let url = format!("postgres://u:p@127.0.0.1:{}/x?sslmode=verify-full", stranger(greeting));
        assert_answers(&url, "", Some(what));
    }
}

#[test]
fn every_authority_of_rds_is_a_root_and_good_for_a_year() {
    let pem = read("src/rds_roots.pem");
    let mut count = 0;
    for section in pem.split("\n# region ").skip(1) {
        let (region, certificates) = section.split_once('\n').unwrap();
        for certificate in certificates.split_inclusive("-----END CERTIFICATE-----\n") {
            if certificate.trim().is_empty() {
                continue;
            }
            let mut openssl = Command::new("openssl")
                .args(["x509", "-noout", "-subject", "-issuer", "-enddate"])
                .args(["-checkend", &(365 * 24 * 60 * 60).to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            openssl.stdin.take().unwrap().write_all(certificate.as_bytes()).unwrap();
            let output = openssl.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let line = |name| text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            println!("{region:<16} {} {}", line("notAfter="), line("subject="));
            assert!(output.status.success(), "a newer src/rds_roots.pem is needed: {text}");
            assert_eq!(line("subject="), line("issuer="));
            assert!(line("subject=").contains(&format!("Amazon RDS {region} Root CA")), "{text}");
            count += 1;
        }
    }
    assert!(count > 60, "{count}");
}
