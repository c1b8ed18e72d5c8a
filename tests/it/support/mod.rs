//! What the tests stand on: a real PostgreSQL, the real binary behind a Lambda Runtime API, the
//! events of every gateway kind, and the recorded cases.

pub mod asking;
pub mod aws;
pub mod backend;
pub mod cases;
pub mod conformance;
pub mod database;
pub mod documentation;
pub mod function;
pub mod gateway;
pub mod homeserver;
pub mod http;
pub mod http_api;
pub mod iam;
pub mod mas;
pub mod proxy;
pub mod reverse_proxy;
pub mod server;
pub mod snapshot;
pub mod statement;
pub mod tls;

use std::{
    future::Future,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use synapse_media_usage::invocation::Invocation;

/// Runs a future on a runtime like the function's own. Each thread has one, so that a connection
/// lives on from one call to the next.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime =
            Builder::new_current_thread().enable_all().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Makes so many random cases, the same in every run.
pub fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]))
}

/// The project's folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the project.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The folder of a dependency's source.
pub fn dependency(name: &str) -> PathBuf {
    let output = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(project()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let cargo = Path::new(env!("CARGO"));
    // What only other systems need was never downloaded.
    let host = output(&cargo.with_file_name("rustc"), &["--print=host-tuple"]);
    let metadata = ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform"];
    let metadata = output(cargo, &[&metadata[..], &[host.trim()]].concat());
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let mut packages = metadata["packages"].as_array().unwrap().iter();
    let package = packages.find(|package| package["name"] == name).unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// The environment, for a command that compiles, without what `cargo test` adds: it describes this
/// package to its tests. Build scripts of dependencies watch some of these variables, and would run
/// again for them.
pub fn outer_variables() -> impl Iterator<Item = (String, String)> {
    let of_cargo = ["CARGO_PKG_", "CARGO_MANIFEST"];
    std::env::vars().filter(move |(name, _)| !of_cargo.iter().any(|start| name.starts_with(start)))
}

/// Starts a server of `tests/tools`, and returns what it says of itself. It ends with this process,
/// however that ends: each waits for its standard input to close.
pub fn tool<T: DeserializeOwned>(name: &str, arguments: &[&str]) -> T {
    let mut server = Command::new(project().join("tests/tools").join(name))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // Never dropped, so that the pipe stays open as long as the process lives.
    std::mem::forget(server);
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("tests/tools/{name} did not start"))
}

/// 2026, in ms: after every expiry in the recorded rows that lies in the past, before all others.
pub const NOW_MS: i64 = 1_780_000_000_000;

/// An invocation at [`NOW_MS`] with all of template.yaml's timeout left.
pub fn now() -> Invocation {
    Invocation::new(NOW_MS, Duration::from_secs(28))
}
