//! What AWS gives: secrets, and tokens to log in to a database of RDS.
//!
//! Nothing in here asks AWS unless the configuration says so.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig};
use aws_sdk_secretsmanager::{
    config::{Credentials, ProvideCredentials},
    error::{ProvideErrorMetadata, SdkError},
    operation::get_secret_value::GetSecretValueError,
};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_http_client::tls;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::postgres::PgConnectOptions;

use crate::{error::chain, hidden::Hidden};

/// How long AWS may take for an answer. Without a route to it, which is what a VPC without an
/// endpoint has, this is what a request waits for.
const TIMEOUT: Duration = Duration::from_millis(2500);

/// Why AWS did not give what was asked for.
pub struct Failure {
    /// For the log.
    pub cause: String,
    /// Whether it may be over in a moment: AWS did not answer, and has not refused. Else it stays
    /// until somebody acts.
    pub is_passing: bool,
}

/// The version of a secret that is in use (AWS Secrets Manager User Guide, "Secret versions").
const CURRENT: &str = "AWSCURRENT";

/// The version that a rotation under way will make the current one.
pub const PENDING: &str = "AWSPENDING";

/// Where a secret is.
#[derive(Debug)]
pub enum SecretSource {
    /// Here.
    Text(Hidden<String>),
    /// In Secrets Manager, by its ARN.
    Arn(String),
}

/// A secret, as `parse` reads its text: of Secrets Manager it is asked for once, and again where it is
/// refused.
#[derive(Debug)]
pub struct Secret<T> {
    /// Where it is.
    pub(crate) source: SecretSource,
    parse: fn(&str) -> Result<T, String>,
    /// As it was read last.
    latest: Hidden<Mutex<Option<T>>>,
}

impl<T: Clone + PartialEq> Secret<T> {
    /// A secret, of which nothing is read yet.
    pub fn new(source: SecretSource, parse: fn(&str) -> Result<T, String>) -> Self {
        Self { source, parse, latest: Hidden(Mutex::new(None)) }
    }

    /// The secret as it was read last, or else its current version.
    ///
    /// # Errors
    ///
    /// [`Failure`], after 2.5 s at most.
    pub async fn get(&self) -> Result<T, Failure> {
        let Some(latest) = self.latest() else { return self.read(CURRENT).await };
        Ok(latest)
    }

    /// The secret as it was read last.
    pub fn latest(&self) -> Option<T> {
        self.latest.0.lock().clone()
    }

    /// Forgets what was read, so that it is read again.
    pub fn forget(&self) {
        *self.latest.0.lock() = None;
    }

    /// The current version, after the latest was refused; `None` if it is the same.
    ///
    /// # Errors
    ///
    /// As [`Secret::get`].
    pub async fn renewed(&self) -> Result<Option<T>, Failure> {
        let refused = self.latest();
        let current = self.read(CURRENT).await?;
        Ok(Some(current).filter(|current| Some(current) != refused.as_ref()))
    }

    /// The version with a staging label. A text has one version, whatever the label.
    ///
    /// # Errors
    ///
    /// As [`Secret::get`], and where no version has that label.
    pub async fn read(&self, stage: &str) -> Result<T, Failure> {
        let text = match &self.source {
            SecretSource::Text(text) => text.0.clone(),
            SecretSource::Arn(arn) => secret_text(arn, stage).await?,
        };
        let secret = (self.parse)(&text).map_err(lasting)?;
        Ok(self.latest.0.lock().insert(secret).clone())
    }
}

/// AWS as the execution environment's credentials reach it, in one region. Made anew each time, because
/// questions are rare, and a kept connection can die while the execution environment is frozen.
async fn config(region: &str) -> SdkConfig {
    let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    let client = aws_smithy_http_client::Builder::new().tls_provider(ring).build_https();
    let loader = aws_config::defaults(BehaviorVersion::latest()).http_client(client);
    // Three tries fit into the timeout, so that the last refusal is logged and not the timeout.
    let retry = RetryConfig::standard().with_initial_backoff(Duration::from_millis(200));
    loader.retry_config(retry).region(Region::new(region.to_owned())).load().await
}

/// The text of a secret's version (Secrets Manager API reference, `GetSecretValue`).
async fn secret_text(arn: &str, stage: &str) -> Result<String, Failure> {
    let ask = async {
        let client = aws_sdk_secretsmanager::Client::new(&config(region_of(arn)).await);
        client.get_secret_value().secret_id(arn).version_stage(stage).send().await
    };
    // The search for credentials counts too. Boxed, because the client's future is large and few
    // configurations have one.
    let answer = tokio::time::timeout(TIMEOUT, Box::pin(ask)).await;
    let ms = TIMEOUT.as_millis();
    let remedy = "a VPC needs an interface endpoint for it, or a NAT gateway";
    let cause = format!("Secrets Manager gave no answer within {ms} ms: {remedy}");
    let answer = answer.map_err(|_| Failure { cause, is_passing: true })?;
    let answer = answer.map_err(|error| failure(&error))?;
    answer.secret_string.ok_or_else(|| lasting("the secret is binary; it has to be text"))
}

/// The region that an ARN names.
fn region_of(arn: &str) -> &str {
    arn.split(':').nth(3).unwrap_or_default()
}

/// A password for [`Credentials::Iam`](crate::credentials::Credentials::Iam), good for 15 minutes
/// from the Unix time `unix_ms`, in ms, on.
///
/// # Errors
///
/// [`Failure`] where there are no credentials.
pub async fn rds_password(
    region: &str,
    url: &PgConnectOptions,
    unix_ms: i64,
) -> Result<String, Failure> {
    let now = UNIX_EPOCH + Duration::from_millis(unix_ms.try_into().unwrap_or(0));
    let sign = async {
        let provider = config(region).await.credentials_provider();
        let credentials = provider.ok_or("there is no provider")?.provide_credentials().await?;
        rds_token(url, region, credentials, now)
    };
    let cause = "no token for IAM authentication: AWS credentials";
    Box::pin(sign).await.map_err(|error| lasting(format!("{cause}: {error}")))
}

fn failure(error: &SdkError<GetSecretValueError>) -> Failure {
    let (is_passing, what) = match error {
        SdkError::ServiceError(refusal) if !refusal.raw().status().is_success() => {
            // The messages name principals, actions and ARNs, and no secret.
            let code = error.code().unwrap_or("an unknown error");
            let message = error.message().unwrap_or("no message");
            let is_passing = refusal.raw().status().is_server_error();
            let is_passing = is_passing || code == "ThrottlingException";
            (is_passing, format!(" refused with {code}: {message}"))
        }
        // Of an answer that cannot be read, nothing is shown: it may be the secret.
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            (true, "'s answer cannot be read".to_owned())
        }
        SdkError::DispatchFailure(_) => (true, format!(" cannot be reached: {}", chain(error))),
        error => (false, format!(" cannot be asked: {}", chain(error))),
    };
    Failure { cause: format!("Secrets Manager{what}"), is_passing }
}

fn lasting(cause: impl Into<String>) -> Failure {
    Failure { cause: cause.into(), is_passing: false }
}

/// A request to connect, signed in its query and without its scheme (Amazon RDS User Guide, "IAM
/// database authentication"): byte for byte what `generate_db_auth_token` of botocore makes.
///
/// # Errors
///
/// What the signer does not take.
pub fn rds_token(
    url: &PgConnectOptions,
    region: &str,
    credentials: Credentials,
    now: SystemTime,
) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    /// All but the unreserved characters of RFC 3986, as Signature Version 4 wants it.
    const RESERVED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(Duration::from_mins(15));
    let identity = credentials.into();
    let params = v4::SigningParams::builder().identity(&identity).region(region).name("rds-db");
    let params = params.time(now).settings(settings).build()?.into();
    let (host, port) = (url.get_host(), url.get_port());
    let username = utf8_percent_encode(url.get_username(), RESERVED);
    let mut token = format!("{host}:{port}/?Action=connect&DBUser={username}");
    // Names are the same in capitals and not, and signed without.
    let url = format!("https://{}{}", host.to_ascii_lowercase(), &token[host.len()..]);
    let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(b""))?;
    let (instructions, _) = sign(request, &params)?.into_parts();
    let mut parameters = instructions.params().to_vec();
    // The signature comes last, after the session's token.
    parameters.sort_by_key(|(name, _)| *name == "X-Amz-Signature");
    let encoded = parameters.iter().map(|it| (it.0, utf8_percent_encode(&it.1, RESERVED)));
    token.extend(encoded.map(|(name, value)| format!("&{name}={value}")));
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arn_of_a_secret_names_its_region() {
        let arn = "arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:media-AbCdEf";
        assert_eq!(region_of(arn), "us-gov-west-1");
        let source = SecretSource::Arn(arn.to_owned());
        let secret: Secret<String> = Secret::new(source, |text| Ok(text.to_owned()));
        assert!(matches!(&secret.source, SecretSource::Arn(it) if it == arn));
    }
}
