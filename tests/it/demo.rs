//! The demo, kept running by `make serve`.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use serde_json::Value;
use synapse_media_usage::service::PATH;

use crate::support::{
    documentation::block,
    homeserver::Homeserver,
    http::Certificate,
    outer_variables, project, read,
    reverse_proxy::{Proxy, Surroundings},
};

/// What admin UIs ask before they show a page.
const ASKED_FOR_THE_LOGIN: [&str; 3] =
    ["/_matrix/client/versions", "/_matrix/client/v3/login", "/_matrix/client/v3/account/whoami"];

/// Ends all that a command has started, however the test ends. Not by SIGINT, which is ignored in
/// whatever a shell has started in the background.
struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        drop(Command::new("kill").args(["-TERM", "--", &format!("-{}", self.0)]).status());
    }
}

/// Does to nginx.conf what the hint says, and asks through nginx with a token that only the
/// homeserver knows.
fn assert_an_admin_ui_sees(page: &Value, hint: &[String]) {
    let lines = hint.iter().filter(|line| line.starts_with("  proxy_"));
    let lines = lines.flat_map(|line| [line, "\n"]).collect::<String>();
    let replaced = hint.iter().find_map(|line| line.strip_prefix("in place of `")).unwrap();
    let replaced = replaced.split('`').next().unwrap();
    assert!(read("docs/nginx.conf").contains(replaced), "{replaced}");
    let surroundings = Surroundings::new(Certificate::Right, Vec::new());
    let port = format!("$media_usage:{}$", surroundings.api.server.port);
    let replaced = replaced.replace("$media_usage$", &port);
    let proxy = surroundings.proxy(Proxy::Nginx, |text| {
        assert!(text.contains(&replaced), "{text}");
        text.replace(&replaced, &lines)
    });
    let get = |target: &str| {
        let token = ("Authorization", "Bearer of_the_admin_ui");
        let answer = proxy.client.send("GET", target, &[token], "");
        serde_json::from_str::<Value>(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"))
    };
    assert_eq!(&get(&format!("{PATH}?order_by=media_length&dir=b")), page);
    for path in ASKED_FOR_THE_LOGIN {
        assert_eq!(get(path)["homeserver"], format!("GET {path}"));
    }
}

#[test]
fn the_demo_serves_requests_and_hands_variables_on() {
    let homeserver = Homeserver::start();
    let serve = block("README.md", "HOMESERVER_URL=");
    let mut demo = Command::new("sh")
        .args(["-c", &serve.replace('…', &homeserver.url())])
        .current_dir(project())
        .env_clear()
        // `make` may be what runs this.
        .envs(outer_variables().filter(|(name, _)| !name.starts_with("MAKE")))
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Group(demo.id());
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut printed = lines.by_ref().take_while(|line| !line.ends_with("Ctrl-C ends it."));
    let mut answers = Vec::new();
    for line in printed.by_ref() {
        answers.push(line);
        if answers.last().unwrap().ends_with(" answers are as expected.") {
            break;
        }
    }
    let count: Vec<_> = answers.last().unwrap().split(' ').collect();
    assert_eq!(count[0], count[2], "{count:?}");
    // What README shows of it was printed in this order.
    let shown = block("README.md", "largest-users-first");
    let mut rest = answers.iter().skip_while(|line| line.is_empty()).peekable();
    assert_eq!(rest.peek().unwrap().as_str(), shown.lines().next().unwrap());
    for line in shown.lines().filter(|line| line.trim() != "…") {
        assert!(rest.any(|answer| answer == line), "{line}");
    }
    let hint: Vec<_> = printed.collect();
    let curl = hint.iter().find(|line| line.starts_with("  curl ")).unwrap();
    let psql = hint.iter().find(|line| line.contains("/psql ")).unwrap();
    let count =
        format!("{psql} -Xqtc 'SELECT count(DISTINCT user_id) FROM local_media_repository'");
    let output = Command::new("sh").args(["-c", &count]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "15", "{output:?}");

    let answer = |curl: &str| {
        let curl = format!("no_proxy=127.0.0.1 {curl}");
        let output = Command::new("sh").args(["-c", &curl]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let by_curl = answer(curl);
    assert_eq!(by_curl["users"][0]["media_length"], 1_477_157_505, "{by_curl}");
    let unknown = answer(&curl.replace("demo_admin_token", "unknown"));
    assert_eq!(unknown["errcode"], "M_UNKNOWN_TOKEN");
    assert_eq!(homeserver.asked(), ["synapse-media-usage-probe", "unknown"]);
    for path in ASKED_FOR_THE_LOGIN {
        assert_eq!(answer(&curl.replace(PATH, path))["errcode"], "M_UNRECOGNIZED", "{path}");
    }
    if Proxy::Nginx.can_be_had() {
        assert_an_admin_ui_sees(&by_curl, &hint);
    }

    drop(group);
    lines.last();
    demo.wait().unwrap();
}
