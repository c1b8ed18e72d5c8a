//! Synapse's users' media usage statistics, answered by an AWS Lambda function from a read replica.
//!
//! A query string and a token come in, the function asks the replica one read-only question, and one
//! JSON page goes out. One request, module by module:
//!
//! 1. [`gateway`] makes an HTTP request of whichever gateway's invocation event.
//! 2. [`service`] answers `OPTIONS` and refuses any other path or method. From here on it reads from
//!    top to bottom.
//! 3. [`query`] reads the query string once, for the token and the parameters.
//! 4. [`auth`] finds the token. With Matrix Authentication Service it asks what the token is good for.
//! 5. [`postgres`] lends the connection to a question, for as long as that takes.
//! 6. [`auth`] looks the token up and makes an [`Admin`](auth::Admin), the evidence that the page
//!    demands. Only then does a bad parameter count, because in Synapse a bad token wins.
//! 7. [`statement`] picks one of the SQL texts, and [`media_usage`](mod@media_usage) binds and reads.
//! 8. If the replica does not know the token, [`auth`] asks the homeserver whose it is, and 5 to 7
//!    happen once more.
//! 9. [`page`] makes a body of the rows that the gateway can carry. Where pages continue each other,
//!    [`read_ahead`] has step 7 read more than one, and answers the next from memory.
//! 10. [`request_log`] writes the one line of the request.
//!
//! An event that is [`probe`]'s makes no request. It finds out whether one would be answered.
//!
//! Whatever fails on the way becomes a Matrix error by the table in [`error`].
//!
//! # Why does the crate read events itself, and not by `lambda_http`?
//!
//! `lambda_http` loses what the contract needs: the repeats of a header in REST events, header values
//! outside of ASCII, and the difference between `%FF` and `%EF%BF%BD` in a load balancer's query. It
//! panics on an invalid host and on a query with a raw `<`. The types of a request are still its.
//!
//! # Why is there no pool?
//!
//! An execution environment answers one request at a time. A second connection would sit idle, and
//! a replica has few connections to give.
//!
//! # Why is there no trait for the two backends of tokens?
//!
//! There are two, Synapse's own tables and Matrix Authentication Service, and the configuration
//! chooses one. An enum says that, and the compiler finds each place that a third one would touch.
//! Tests replace the servers and not the code that asks them.
//!
//! # Why does it ask the homeserver about a token?
//!
//! A replica lags. An admin UI uses its token within a second of the login, when the replica does not
//! have it yet, and logs the admin out on any 401. The homeserver only says whose token it is. Whether
//! that user may ask remains the replica's word, or the introspection's. If the replica contradicts a
//! login that the homeserver vouches for, the replica is behind: the caller gets a 503, which no UI
//! answers by logging out.
//!
//! # Why does a session have settings of its own?
//!
//! Whoever may create something in a schema, or set something for the role, could change what a
//! statement means: an operator of their own, a policy that hides rows, another isolation level. So
//! the session sets `search_path`, `row_security` and the isolation level itself, and refuses to work
//! where its settings did not arrive. The others keep the planner from plans that are right and slow:
//! the statements have one text for all orders and filters, which is quick only if it is planned for
//! its parameters. Each stands with its reason beside the list in [`postgres`].
//!
//! # Why does it read ahead?
//!
//! Each page of a walk by `next_token` would cost the whole answer once more, because the order and the
//! total are known only when all users are. So from the second page on the function reads more users
//! than the page holds, a few at first and many later in the walk, and [`read_ahead`] keeps them for a
//! minute. The first page never comes from memory: whoever reloads wants to see what is new.
//!
//! # Why does an error have no source?
//!
//! Nothing in here handles the cause of a failure further. The caller gets a fixed text and the log
//! gets one line, made where the failure is understood and where it is known what that line must not
//! quote. A chain of sources could carry tokens, search terms and rows up to somebody who prints it.
//!
//! # Why does a wrong configuration not end the process?
//!
//! The admin would see a gateway's error page without CORS headers, which an admin UI shows as
//! "Failed to fetch". So the function answers every request with a Matrix error that says where to
//! look.

pub mod auth;
pub mod aws;
pub mod client;
pub mod config;
pub mod credentials;
pub mod error;
pub mod gateway;
pub mod grammar;
pub mod hidden;
pub mod invocation;
pub mod log;
pub mod media_usage;
pub mod page;
pub mod postgres;
pub mod probe;
pub mod query;
pub mod read_ahead;
pub mod request_log;
pub mod service;
pub mod statement;
