//! Synapse's users' media usage statistics, answered by an AWS Lambda function from a read replica.
//!
//! A query string and a token come in, one read-only question is asked of the replica, one JSON
//! page goes out. One request, module by module:
//!
//! 1. [`gateway`]: the invocation event of whichever gateway becomes an HTTP request.
//! 2. [`service`]: `OPTIONS` is answered, any other path or method refused.
//! 3. [`query`]: [`Args`](query::Args) reads the query string once, for the token and the parameters.
//! 4. [`auth`]: the token is found, looked up and becomes an [`Admin`](auth::Admin), the evidence
//!    that [`media_usage`] demands.
//! 5. [`query`]: the parameters become a [`MediaUsageQuery`](query::MediaUsageQuery). This comes
//!    after the token because in Synapse a bad token wins over a bad parameter.
//! 6. [`statement`] picks one of the SQL texts that exist, [`media_usage`](mod@media_usage) binds
//!    and reads, [`postgres`] lends it the connection.
//! 7. [`page`]: the rows become a body that the gateway can carry.
//! 8. [`read_ahead`]: where pages continue each other, step 6 reads more than one, and the next are
//!    answered from memory.
//! 9. [`request_log`]: what became of it is one line in the log.
//! 10. [`error`]: whatever failed on the way is a Matrix error, made in one place.
//!
//! # Why is there no pool?
//!
//! An execution environment answers one request at a time. A second connection would sit idle, and
//! idle connections are what a replica has fewest of.
//!
//! # Why does a wrong configuration not end the process?
//!
//! The admin would see a gateway's error page without CORS headers, which an admin UI shows as
//! "Failed to fetch". So every request is answered with a Matrix error that says where to look.

pub mod auth;
pub mod aws;
pub mod client;
pub mod config;
pub mod credentials;
pub mod error;
pub mod gateway;
pub mod hidden;
pub mod invocation;
pub mod log;
pub mod media_usage;
pub mod page;
pub mod postgres;
pub mod query;
pub mod read_ahead;
pub mod request_log;
pub mod service;
pub mod statement;
