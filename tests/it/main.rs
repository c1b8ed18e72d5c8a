//! The integration tests: one binary, one database cluster.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod auth;
mod clicks;
mod clients;
mod configuration;
mod conformance;
mod copies;
mod credentials;
mod database_log;
mod demo;
mod documentation;
mod events;
mod failing;
mod freeze;
mod introspection;
mod layout;
mod log;
mod login;
mod pages;
mod plans;
mod pooler;
mod probe;
mod properties;
mod request_log;
mod role;
mod session;
mod soak;
mod split;
mod standby;
mod statements;
#[expect(dead_code, reason = "the bench uses the rest")]
mod support;
mod tls;
mod traps;
mod versions;
mod waking;
mod walks;
mod whoami;
