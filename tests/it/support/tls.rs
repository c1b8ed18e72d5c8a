//! What stands before a server that speaks PostgreSQL's protocol, and speaks TLS for it.

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;
use url::Url;

use super::block_on;

/// `SSLRequest` (PostgreSQL, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A port of loopback where nobody gets on without TLS.
pub struct Front {
    port: u16,
    server: Url,
    names: Arc<Mutex<Vec<Option<String>>>>,
}

impl Front {
    /// Starts one before the server of a URL. `tls` is the folder of a cluster's certificates, and
    /// `certificate` the name of one of them.
    pub fn start(server: &str, tls: &str, certificate: &str) -> Self {
        let chain = CertificateDer::pem_file_iter(format!("{tls}/{certificate}.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(format!("{tls}/server.key")).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Url::parse(server).unwrap();
        let behind = server.port().unwrap();
        let names = Arc::<Mutex<Vec<_>>>::default();
        let asked = Arc::clone(&names);
        thread::spawn(move || {
            block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let client = listener.accept().await.unwrap().0;
                    tokio::spawn(serve(client, acceptor.clone(), behind, Arc::clone(&asked)));
                }
            });
        });
        Self { port, server, names }
    }

    /// The URL of the server by way of this, which it calls `host`.
    pub fn url(&self, host: &str, sslmode: &str) -> String {
        let mut url = self.server.clone();
        url.set_host(Some(host)).unwrap();
        url.set_port(Some(self.port)).unwrap();
        format!("{url}?sslmode={sslmode}")
    }

    /// The names that clients have asked for in their handshakes (SNI).
    pub fn names(&self) -> Vec<Option<String>> {
        self.names.lock().unwrap().clone()
    }
}

async fn serve(
    mut client: TcpStream,
    acceptor: TlsAcceptor,
    server: u16,
    names: Arc<Mutex<Vec<Option<String>>>>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    assert_eq!(request, SSL_REQUEST);
    client.write_all(b"S").await?;
    let mut client = acceptor.accept(client).await?;
    names.lock().unwrap().push(client.get_ref().1.server_name().map(str::to_owned));
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Starts a server of another protocol: what it says to whatever comes. Returns its port.
pub fn stranger(greeting: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            // Until the client has had enough.
            let _ = client.write_all(greeting);
            let _ = client.read_to_end(&mut Vec::new());
        }
    });
    port
}
