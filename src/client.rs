//! Asking other servers than the database: one client, one question at a time.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    StatusCode,
    body::Bytes,
    header::{HeaderValue, USER_AGENT},
    http::request::Builder,
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use url::Url;

use crate::error::chain;

/// How long an answer may take, connecting included.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may be, in bytes.
const MOST_BYTES: usize = 1024 * 1024;

/// The status and the body of an answer.
pub type Answer = (StatusCode, Bytes);

/// An HTTP client of one URL. Its server is verified by the authorities of the public web; it
/// follows no redirect, which could carry a token elsewhere, and asks no proxy.
pub struct Client {
    client: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: String,
}

impl Client {
    /// A client of a path below a base URL, which has not connected to anything.
    pub fn new(base: &Url, path: &str) -> Self {
        let connector =
            HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().build();
        let client = legacy::Client::builder(TokioExecutor::new())
            // A connection that is kept can die unnoticed while the execution environment is frozen.
            .pool_max_idle_per_host(0)
            // hyper takes all interim answers out of the buffer before it lets a timer run.
            .http1_max_buf_size(32 * 1024)
            .build(connector);
        Self { client, url: format!("{}{path}", base.as_str().trim_end_matches('/')) }
    }

    /// Sends a request, which has method and headers, and reads the answer.
    ///
    /// # Errors
    ///
    /// What went wrong, for the log and without a word of question or answer, if there is no whole
    /// answer of at most 1 MiB within 5 s.
    pub async fn send(&self, request: Builder, body: String) -> Result<Answer, String> {
        // Firewalls refuse what does not say who it is.
        let request = request.uri(&self.url).header(USER_AGENT, env!("CARGO_PKG_NAME"));
        let request = request.body(Full::from(body)).map_err(|error| error.to_string())?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| chain(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
            Ok((status, body.map_err(|error| chain(&*error))?.to_bytes()))
        };
        let late = |_| Err(format!("no answer within {} s", TIMEOUT.as_secs()));
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(late)
    }
}

/// The `Authorization` header of a token, which no log shows; `None` if no header can carry it.
pub fn bearer(token: &str) -> Option<HeaderValue> {
    let mut bearer = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    bearer.set_sensitive(true);
    Some(bearer)
}
