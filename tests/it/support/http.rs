//! HTTP/1.1 over TLS, written out: what is sent and what arrives is seen byte for byte, and nothing
//! in between tidies it up.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::Deserialize;

use super::tool;

/// A request or a response.
#[derive(Debug, Clone)]
pub struct Message {
    /// The first line.
    pub start: String,
    /// Names in lower case, repeats and all.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Message {
    pub fn response(status: u16, headers: Vec<(String, String)>, body: String) -> Self {
        Self { start: format!("HTTP/1.1 {status} x"), headers, body }
    }

    /// The first word of the first line, and the second.
    pub fn method_and_target(&self) -> (&str, &str) {
        let mut words = self.start.split(' ');
        (words.next().unwrap(), words.next().unwrap())
    }

    pub fn status(&self) -> u16 {
        self.method_and_target().1.parse().unwrap()
    }

    /// All values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let values = self.headers.iter().filter(|header| header.0 == name);
        values.map(|(_, value)| value.as_str()).collect()
    }

    /// Reads a message; `None` if there is none any more.
    fn read(stream: &mut impl BufRead, has_body: impl Fn(&Self) -> bool) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line).ok()?;
            let line = String::from_utf8_lossy(&line);
            match line.strip_suffix("\r\n")? {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |line: String| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_lowercase(), value.trim().to_owned())
        };
        let mut lines = lines.into_iter();
        let mut message = Self {
            start: lines.next()?,
            headers: lines.map(header).collect(),
            body: String::new(),
        };
        assert!(message.header("transfer-encoding").is_empty(), "{message:?}");
        let length = message.header("content-length").first().map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; if has_body(&message) { length } else { 0 }];
        stream.read_exact(&mut body).ok()?;
        message.body = String::from_utf8(body).unwrap();
        Some(message)
    }

    fn write(&self, stream: &mut impl Write) -> std::io::Result<()> {
        let headers: String =
            self.headers.iter().flat_map(|(name, value)| [name, ": ", value, "\r\n"]).collect();
        let text = format!("{}\r\n{headers}\r\n{}", self.start, self.body);
        // At once, as clients do.
        stream.write_all(text.as_bytes())?;
        stream.flush()
    }
}

/// A throwaway authority and its certificates.
pub struct Tls {
    pub dir: PathBuf,
}

/// Which certificate a server shows.
#[derive(Debug, Clone, Copy)]
pub enum Certificate {
    /// One for its name.
    Right,
    /// One of the same authority for another name.
    Elsewhere,
}

impl Tls {
    pub fn for_names(names: &[&str]) -> Self {
        #[derive(Deserialize)]
        struct Folder {
            dir: PathBuf,
        }
        let Folder { dir } = tool("reverse-proxy", &[&["tls"], names].concat());
        Self { dir }
    }

    /// The path of one of the files.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.join("ca.pem")).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }

    /// For a server that answers only those who ask for its name.
    fn server(&self, certificate: Certificate, name: &'static str) -> Arc<ServerConfig> {
        let chain = match certificate {
            Certificate::Right => "server.pem",
            Certificate::Elsewhere => "elsewhere.pem",
        };
        let chain = vec![CertificateDer::from_pem_file(self.dir.join(chain)).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.dir.join("server.key")).unwrap();
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider()).unwrap());
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ByName { name, key }));
        Arc::new(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificate of a host that has many, such as those of AWS.
#[derive(Debug)]
struct ByName {
    name: &'static str,
    key: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        (hello.server_name() == Some(self.name)).then(|| Arc::clone(&self.key))
    }
}

/// A client that takes a port of loopback for the host that it names.
pub struct Client {
    port: u16,
    name: &'static str,
    config: Arc<ClientConfig>,
}

impl Client {
    pub fn new(tls: &Tls, name: &'static str, port: u16) -> Self {
        Self { port, name, config: tls.client() }
    }

    /// Sends a request on a connection of its own. `Host` is added where there is none, and the length of a body.
    pub fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Message {
        let mut message = Message {
            start: format!("{method} {target} HTTP/1.1"),
            headers: vec![("Connection".to_owned(), "close".to_owned())],
            body: body.to_owned(),
        };
        let pairs = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        message.headers.extend(pairs);
        if !headers.iter().any(|(name, _)| *name == "Host") {
            message.headers.push(("Host".to_owned(), self.name.to_owned()));
        }
        if !body.is_empty() {
            message.headers.push(("Content-Length".to_owned(), body.len().to_string()));
        }
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let name = ServerName::try_from(self.name).unwrap();
        let session = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(session, stream));
        message.write(stream.get_mut()).unwrap();
        let has_body = |answer: &Message| method != "HEAD" && answer.status() != 204;
        let answer = Message::read(&mut stream, has_body);
        let answer = answer.unwrap_or_else(|| panic!("no answer to {method} {target}"));
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{answer:?} and {}", String::from_utf8_lossy(&rest));
        answer
    }
}

/// A server on a free port of loopback. Its threads end with the process.
pub struct Server {
    pub port: u16,
    hangs_up: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// One that speaks HTTP.
    pub fn start(answer: impl Fn(Message) -> Message + Send + Sync + 'static) -> Self {
        Self::accept(answer, |stream| stream)
    }

    /// One that speaks HTTPS, to those who ask for its name.
    pub fn start_tls(
        tls: &Tls,
        certificate: Certificate,
        name: &'static str,
        answer: impl Fn(Message) -> Message + Send + Sync + 'static,
    ) -> Self {
        let config = tls.server(certificate, name);
        Self::accept(answer, move |stream| {
            StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream)
        })
    }

    fn accept<S: Read + Write>(
        answer: impl Fn(Message) -> Message + Send + Sync + 'static,
        session: impl Fn(TcpStream) -> S + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let hangs_up = Arc::<AtomicBool>::default();
        let shared = Arc::new((answer, session, Arc::clone(&hangs_up)));
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (answer, session, hangs_up) = &*shared;
                    let mut stream = BufReader::new(session(stream));
                    while let Some(request) = Message::read(&mut stream, |_| true) {
                        if hangs_up.load(Ordering::SeqCst) {
                            break;
                        }
                        let mut answer = answer(request.clone());
                        let length = answer.body.len().to_string();
                        answer.headers.push(("Content-Length".to_owned(), length));
                        if request.method_and_target().0 == "HEAD" {
                            answer.body.clear();
                        }
                        if answer.write(stream.get_mut()).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { port, hangs_up, connections }
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Answers nobody any more, or everybody again.
    pub fn hang_up(&self, hangs_up: bool) {
        self.hangs_up.store(hangs_up, Ordering::SeqCst);
    }
}
