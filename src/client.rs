//! Asking other servers than the database: one client, one question at a time.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{HeaderValue, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};

use crate::error::chain;

/// How long an answer may take, connecting included.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may be, in bytes.
const MOST_BYTES: usize = 1024 * 1024;

/// An HTTP client. Servers are verified by the authorities of the public web; it follows no
/// redirect, which could carry a token elsewhere, and asks no proxy.
#[derive(Debug)]
pub struct Client(legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Client {
    /// A client that has not connected to anything.
    ///
    /// # Errors
    ///
    /// What the TLS stack does not like of itself.
    pub fn new() -> Result<Self, rustls::Error> {
        let provider = rustls::crypto::ring::default_provider();
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(provider)?
            .https_or_http()
            .enable_http1()
            .build();
        let client = legacy::Client::builder(TokioExecutor::new())
            // A connection that is kept can die unnoticed while the execution environment is frozen.
            .pool_max_idle_per_host(0)
            .build(connector);
        Ok(Self(client))
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    ///
    /// What went wrong, for the log and without a word of question or answer, if there is no whole
    /// answer of at most 1 MiB within 5 s.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), String> {
        // Firewalls refuse what does not say who it is.
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(env!("CARGO_PKG_NAME")));
        let exchange = async {
            let answer = self.0.request(request).await.map_err(|error| chain(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
            let body = body.map_err(|error| chain(&*error))?.to_bytes();
            Ok((status, body))
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
    }
}
