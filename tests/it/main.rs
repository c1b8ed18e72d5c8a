//! The integration tests: one binary, one database cluster.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod asking;
mod auth;
mod clients;
mod configuration;
mod conformance;
mod credentials;
mod demo;
mod events;
mod failing;
mod freeze;
mod introspection;
mod layout;
mod log;
mod pages;
mod plans;
mod pooler;
mod properties;
mod readme;
mod report;
mod session;
mod soak;
mod split;
mod standby;
mod statements;
#[expect(dead_code, reason = "the bench uses the rest")]
mod support;
mod tls;
mod traps;
mod whoami;
