//! `make bench`: how fast the function is beside Synapse's statements and beside psql, and what it
//! takes. Prints Markdown. It judges nothing: a machine that is busy would fail for no fault.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `BENCH_SETS` | data sets, see `data.sql`; `L` is M with ten times the rows, `SIZES` the first page on M of four sizes | `M X RAW STALE` |
//! | `BENCH_ROUNDS` | how often each request is measured; the median counts | 5 |
//! | `BENCH_DATA` | where the data sets are kept between runs | a temporary folder |
//!
//! `--smoke` runs all of it on data that are too small to tell anything.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a bench may panic")]

mod function;
mod speed;
#[expect(dead_code, reason = "the bench uses a part of what the tests stand on")]
#[path = "../it/support/mod.rs"]
mod support;

use std::{process::Command, time::Duration};

/// How much is measured.
pub struct Scale {
    sets: Vec<String>,
    rounds: usize,
    smoke: bool,
}

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    let variable =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let scale = Scale {
        sets: variable("BENCH_SETS", if smoke { "M RAW" } else { "M X RAW STALE" })
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        rounds: variable("BENCH_ROUNDS", if smoke { "1" } else { "5" }).parse().unwrap(),
        smoke,
    };
    println!("# Bench\n\n{}\n", circumstances());
    function::run(&scale);
    speed::run(&scale);
}

/// Machine, versions and commit.
fn circumstances() -> String {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(support::project()).output();
        output.map_or_else(
            |_| "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let postgres =
        output(&format!("{}/postgres", support::database::cluster().bin), &["--version"]);
    let commit = output("git", &["describe", "--always", "--dirty"]);
    format!("{cores} cores ({model}); {postgres}; commit {commit}; medians of interleaved runs")
}

/// The middle one.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
