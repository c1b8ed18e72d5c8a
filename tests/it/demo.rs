//! The demo, kept running by `make serve`.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{documentation::block, homeserver::Homeserver, outer_variables, project};

/// Ends all that a command has started, however the test ends. Not by SIGINT, which is ignored in
/// whatever a shell has started in the background.
struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        drop(Command::new("kill").args(["-TERM", "--", &format!("-{}", self.0)]).status());
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
    let curl = printed.find(|line| line.starts_with("  curl ")).unwrap();
    printed.last();

    let answer = |curl: &str| {
        let curl = format!("no_proxy=127.0.0.1 {curl}");
        let output = Command::new("sh").args(["-c", &curl]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert!(answer(&curl)["users"].as_array().is_some_and(|users| !users.is_empty()));
    let unknown = answer(&curl.replace("demo_admin_token", "unknown"));
    assert_eq!(unknown["errcode"], "M_UNKNOWN_TOKEN");
    assert_eq!(homeserver.asked(), ["unknown"]);

    drop(group);
    lines.last();
    demo.wait().unwrap();
}
