//! HTTP/1.1 and TLS, written out: what is sent and what arrives is seen byte for byte, and nothing in
//! between tidies it up.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
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
    /// In their order, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Message {
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

    /// Compares the headers with those that are `required`, by name and value, and those that may
    /// come along, by name; no other may, and none twice.
    pub fn expect_headers(
        &self,
        required: &[(&str, &str)],
        optional: &[&str],
    ) -> Result<(), String> {
        for (name, value) in required {
            let sent = self.header(name);
            if sent != [*value] {
                return Err(format!("{name} is not {value:?} once: {sent:?}"));
            }
        }
        for (name, _) in &self.headers {
            let is_required = required.iter().any(|(required, _)| required == name);
            let count = self.header(name).len();
            if count != 1 || !is_required && !optional.contains(&&**name) {
                return Err(format!("{name} came along, {count} times"));
            }
        }
        Ok(())
    }

    /// Reads a message, and tells what is wrong with one that is not plain HTTP/1.1.
    pub fn read(
        stream: &mut impl BufRead,
        has_body: impl Fn(&Self) -> bool,
    ) -> Result<Self, String> {
        let mut head = Vec::new();
        let cut_off = |head: &[u8]| format!("half a message: {:?}", String::from_utf8_lossy(head));
        while !head.ends_with(b"\r\n\r\n") {
            // Looked at first, because what is not HTTP may have no lines.
            let next = stream.fill_buf().map_err(|_| cut_off(&head))?;
            if next.is_empty() {
                return Err(cut_off(&head));
            }
            if head.is_empty() && !next[0].is_ascii_uppercase() {
                return Err(format!("no HTTP: {:?}", String::from_utf8_lossy(next)));
            }
            stream.read_until(b'\n', &mut head).map_err(|_| cut_off(&head))?;
        }
        let mut message = Self::parse(&head[..head.len() - 4])?;
        if has_body(&message) {
            let length = match message.header("content-length")[..] {
                [] => 0,
                [length] => length.parse().map_err(|_| format!("no length: {message:?}"))?,
                _ => return Err(format!("more than one length: {message:?}")),
            };
            let mut body = vec![0; length];
            stream.read_exact(&mut body).map_err(|_| cut_off(&head))?;
            message.body =
                String::from_utf8(body).map_err(|_| format!("not UTF-8: {message:?}"))?;
        }
        Ok(message)
    }

    fn parse(head: &[u8]) -> Result<Self, String> {
        let shown = String::from_utf8_lossy(head);
        let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\r' | b'\n');
        let lines: Vec<_> = shown.split("\r\n").collect();
        if !head.iter().all(is_text) || lines.iter().any(|line| line.contains(['\r', '\n'])) {
            return Err(format!("a control character, or none of ASCII: {shown:?}"));
        }
        let header = |line: &&str| match line.split_once(": ") {
            Some((name, value)) if value.trim() == value && !name.contains(' ') => {
                Ok((name.to_lowercase(), value.to_owned()))
            }
            _ => Err(format!("no header: {line:?}")),
        };
        let headers: Vec<_> = lines[1..].iter().map(header).collect::<Result<_, _>>()?;
        let message = Self { start: lines[0].to_owned(), headers, body: String::new() };
        if message.header("transfer-encoding").is_empty() {
            Ok(message)
        } else {
            Err(format!("no plain body: {message:?}"))
        }
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
#[derive(Debug, Clone)]
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
    pub fn server(&self, certificate: Certificate, name: &'static str) -> Arc<ServerConfig> {
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
        let answer = answer.unwrap_or_else(|error| panic!("{method} {target}: {error}"));
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{answer:?} and {}", String::from_utf8_lossy(&rest));
        answer
    }
}
