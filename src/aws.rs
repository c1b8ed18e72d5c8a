//! What AWS gives: secrets, and tokens to log in to a database of RDS.
//!
//! Nothing in here runs unless the configuration asks for it.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_secretsmanager::{
    config::{Credentials, ProvideCredentials},
    error::{ProvideErrorMetadata, SdkError},
};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_http_client::tls;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::OnceCell;

use crate::error::chain;

/// How long AWS may take for an answer. Without a route to it, which is what a VPC without an
/// endpoint has, this is what a request waits for.
const TIMEOUT: Duration = Duration::from_millis(2500);

/// How long connecting to AWS may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// AWS as the execution environment's credentials reach it, in one region.
#[derive(Debug)]
pub struct Aws {
    region: String,
    config: OnceCell<SdkConfig>,
}

/// Why AWS did not give what was asked for; the text is for the log.
#[derive(Debug)]
pub enum Failure {
    /// It did not answer, or not now.
    Unavailable(String),
    /// It refused.
    Refused(String),
}

/// Which version of a secret is meant (AWS Secrets Manager User Guide, "Secret versions").
#[derive(Debug, Clone, Copy)]
pub enum Stage {
    /// The one in use.
    Current,
    /// The one that a rotation under way will make the current one.
    Pending,
}

impl Stage {
    fn label(self) -> &'static str {
        match self {
            Self::Current => "AWSCURRENT",
            Self::Pending => "AWSPENDING",
        }
    }
}

impl Aws {
    /// AWS in a region. Nothing is loaded until something is asked for.
    pub fn new(region: String) -> Self {
        Self { region, config: OnceCell::new() }
    }

    async fn config(&self) -> &SdkConfig {
        self.config
            .get_or_init(|| {
                let client = aws_smithy_http_client::Builder::new()
                    .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
                    .build_https();
                aws_config::defaults(BehaviorVersion::latest())
                    .region(Region::new(self.region.clone()))
                    .http_client(client)
                    .retry_config(RetryConfig::standard().with_max_attempts(2))
                    .timeout_config(
                        TimeoutConfig::builder()
                            .connect_timeout(CONNECT_TIMEOUT)
                            .operation_timeout(TIMEOUT)
                            .build(),
                    )
                    .load()
            })
            .await
    }

    /// The text of a secret's version (Secrets Manager API reference, `GetSecretValue`).
    ///
    /// # Errors
    ///
    /// [`Failure`], after 2.5 s at most.
    pub async fn secret(&self, arn: &str, stage: Stage) -> Result<String, Failure> {
        let ask = async {
            let client = aws_sdk_secretsmanager::Client::new(self.config().await);
            client.get_secret_value().secret_id(arn).version_stage(stage.label()).send().await
        };
        // The client's own limit does not cover the search for credentials. Boxed, because the
        // client's future is large and few configurations have one.
        let answer =
            tokio::time::timeout(TIMEOUT, Box::pin(ask)).await.map_err(|_| unreachable())?;
        answer
            .map_err(|error| failure(&error))?
            .secret_string
            .ok_or_else(|| Failure::Refused("the secret is binary; it has to be text".to_owned()))
    }

    /// A password for [`Login::Iam`](crate::config::Login::Iam), good for 15 minutes from `now` on.
    ///
    /// # Errors
    ///
    /// [`Failure`] where there are no credentials.
    pub async fn rds_token(
        &self,
        host: &str,
        port: u16,
        username: &str,
        now: SystemTime,
    ) -> Result<String, Failure> {
        let ask = async {
            let provider = self.config().await.credentials_provider();
            let provider = provider.ok_or_else(|| "there is no provider".to_owned())?;
            let credentials =
                provider.provide_credentials().await.map_err(|error| error.to_string())?;
            rds_token(host, port, username, &self.region, credentials, now)
        };
        match tokio::time::timeout(TIMEOUT, Box::pin(ask)).await {
            Ok(token) => token.map_err(|error| {
                Failure::Refused(format!(
                    "no token for IAM authentication: AWS credentials: {error}"
                ))
            }),
            Err(_) => Err(Failure::Unavailable("no AWS credentials within 2500 ms".to_owned())),
        }
    }
}

fn unreachable() -> Failure {
    Failure::Unavailable(format!(
        "Secrets Manager gave no answer within {} ms: a VPC needs an interface endpoint for it, or a NAT gateway",
        TIMEOUT.as_millis()
    ))
}

fn failure<E>(error: &SdkError<E>) -> Failure
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => unreachable(),
        SdkError::DispatchFailure(dispatch) if dispatch.is_timeout() => unreachable(),
        SdkError::ServiceError(refusal) => {
            // The messages name principals, actions and ARNs, and no secret.
            let text = format!(
                "Secrets Manager refused with {}: {}",
                refusal.err().code().unwrap_or("an unknown error"),
                refusal.err().message().unwrap_or("no message")
            );
            let status = refusal.raw().status();
            let throttled = refusal.err().code() == Some("ThrottlingException");
            if status.is_server_error() || throttled {
                Failure::Unavailable(text)
            } else {
                Failure::Refused(text)
            }
        }
        // Of an answer that cannot be read, nothing is shown: it may be the secret.
        SdkError::ResponseError(_) => {
            Failure::Unavailable("Secrets Manager's answer cannot be read".to_owned())
        }
        SdkError::DispatchFailure(_) => {
            Failure::Unavailable(format!("Secrets Manager cannot be reached: {}", chain(error)))
        }
        error => Failure::Refused(format!("Secrets Manager cannot be asked: {}", chain(error))),
    }
}

/// A request to connect, signed in its query and without its scheme (Amazon RDS User Guide, "IAM
/// database authentication"): byte for byte what `generate_db_auth_token` of botocore makes.
///
/// # Errors
///
/// What the signer does not take.
pub fn rds_token(
    host: &str,
    port: u16,
    username: &str,
    region: &str,
    credentials: Credentials,
    now: SystemTime,
) -> Result<String, String> {
    /// All but the unreserved characters of RFC 3986, as Signature Version 4 wants it.
    const RESERVED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(Duration::from_mins(15));
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("rds-db")
        .time(now)
        .settings(settings)
        .build()
        .map_err(|error| error.to_string())?
        .into();
    let username = utf8_percent_encode(username, RESERVED);
    let mut token = format!("{host}:{port}/?Action=connect&DBUser={username}");
    // Names are the same in capitals and not, and signed without.
    let url = format!("https://{}{}", host.to_ascii_lowercase(), &token[host.len()..]);
    let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(b""))
        .map_err(|error| error.to_string())?;
    let (instructions, _) = sign(request, &params).map_err(|error| error.to_string())?.into_parts();
    // The signature comes last, after the session's token.
    let (signature, others): (Vec<_>, Vec<_>) =
        instructions.params().iter().partition(|(name, _)| *name == "X-Amz-Signature");
    for (name, value) in others.into_iter().chain(signature) {
        let _ = write!(token, "&{name}={}", utf8_percent_encode(value, RESERVED));
    }
    Ok(token)
}
