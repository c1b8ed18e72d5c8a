//! TLS to the server.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct as Signature, Error, RootCertStore, SignatureScheme,
    client::WebPkiServerVerifier,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

/// What asks a server for TLS (PostgreSQL, "Message Formats", `SSLRequest`).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What is logged where a server declines to speak TLS.
pub(super) const NO_TLS: &str = "server does not support TLS";

/// Begins to speak TLS, if the `sslmode` wants it. `authorities` are PEM text.
///
/// # Errors
///
/// The server offers no TLS, or its certificate is refused.
pub(super) async fn secured(
    mut server: TcpStream,
    options: &PgConnectOptions,
    authorities: &[u8],
) -> Result<Either<TcpStream, TlsStream<TcpStream>>, sqlx::Error> {
    let mode = options.get_ssl_mode();
    if matches!(mode, PgSslMode::Disable | PgSslMode::Allow) {
        return Ok(Either::Left(server));
    }
    server.write_all(&SSL_REQUEST).await?;
    match (server.read_u8().await?, mode) {
        (b'S', _) => (),
        (b'N', PgSslMode::Prefer) => return Ok(Either::Left(server)),
        (b'N', _) => return Err(sqlx::Error::Tls(NO_TLS.into())),
        _ => return Err(sqlx::Error::Protocol("the answer to SSLRequest is none".to_owned())),
    }
    let connector = connector(mode, authorities).map_err(sqlx::Error::Tls)?;
    let name = ServerName::try_from(options.get_host().to_owned());
    let name = name.map_err(|error| sqlx::Error::Tls(error.into()))?;
    Ok(Either::Right(connector.connect(name, server).await?))
}

/// What makes TLS of a connection.
fn connector(mode: PgSslMode, authorities: &[u8]) -> Result<TlsConnector, BoxDynError> {
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    for authority in CertificateDer::pem_slice_iter(authorities) {
        roots.add(authority?)?;
    }
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build()?;
    let config = ClientConfig::builder().with_webpki_verifier(Arc::clone(&verifier));
    let mut config = config.with_no_client_auth();
    if !matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull) {
        config.dangerous().set_certificate_verifier(Arc::new(AnyCertificate(verifier)));
    }
    Ok(TlsConnector::from(Arc::new(config)))
}

type Checked = Result<HandshakeSignatureValid, Error>;

/// Takes any certificate whose key the server has.
#[derive(Debug)]
struct AnyCertificate(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, text: &[u8], by: &CertificateDer, it: &Signature) -> Checked {
        self.0.verify_tls12_signature(text, by, it)
    }

    fn verify_tls13_signature(&self, text: &[u8], by: &CertificateDer, it: &Signature) -> Checked {
        self.0.verify_tls13_signature(text, by, it)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
