//! An HTTP/1.1 server on loopback that keeps to the bytes: it judges each request as it came over
//! the wire, and can be told to answer anything.

use std::{
    fmt::{self, Write as _},
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{ServerConnection, StreamOwned};
use serde_json::Value;
use tokio::net::TcpSocket;

use super::http::{Certificate, Message, Tls};

/// How the end of an answer's body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length,
    /// As Synapse's is; some chunks are of one byte.
    Chunked,
    Close,
}

/// A whole answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub framing: Framing,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(500).collect();
        write!(f, "{} {:?} {:?} {body:?}", self.status, self.headers, self.framing)
    }
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: Vec::new(), body, framing: Framing::Length }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, body.to_string()).with("Content-Type", "application/json")
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn framed(self, framing: Framing) -> Self {
        Self { framing, ..self }
    }

    /// As they go over the wire. The answer to a HEAD tells the length of a body, and has none.
    fn bytes(&self, has_body: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Whatever\r\n", self.status);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let mut body = self.body.clone();
        match self.framing {
            // These have no body (RFC 9110, section 8.6).
            Framing::Length if matches!(self.status, 204 | 304) => (),
            Framing::Length => {
                let _ = write!(head, "Content-Length: {}\r\n", body.len());
            }
            Framing::Close => head.push_str("Connection: close\r\n"),
            Framing::Chunked => {
                head.push_str("Transfer-Encoding: chunked\r\n");
                let (first, rest) = body.split_at(body.len().min(1));
                let mut chunks = Vec::new();
                for chunk in [first, rest].into_iter().filter(|chunk| !chunk.is_empty()) {
                    chunks.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    chunks.extend(chunk);
                    chunks.extend(b"\r\n");
                }
                chunks.extend(b"0\r\n\r\n");
                body = chunks;
            }
        }
        if !has_body {
            body.clear();
        }
        [head.as_bytes(), b"\r\n", &body].concat()
    }
}

/// What comes of a request.
#[derive(Debug, Clone)]
pub enum Reply {
    Answer(Answer),
    /// The same, each byte alone, so long after the one before.
    Slow(Answer, Duration),
    /// The same without its last bytes, so many; then the end.
    Cut(Answer, usize),
    /// These bytes, and then the end.
    Bytes(Vec<u8>),
    /// A body that has no end.
    Endless(u16),
    /// Interim answers of this status without an end, and never a final one.
    EndlessInterim(u16),
    /// Not a word, until the client gives up.
    Never,
    /// The connection is reset.
    Reset,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

/// Judges a request: what to answer, or what is wrong with it.
type Judge = dyn Fn(&Message) -> Result<Reply, String> + Send + Sync;

/// A running server. Dropping it fails the test if it was sent anything wrong.
pub struct Server {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    judge: Box<Judge>,
    connections: AtomicUsize,
    complaints: Mutex<Vec<String>>,
    has_ended: AtomicBool,
}

impl Server {
    /// Starts one that speaks HTTP.
    pub fn start(
        judge: impl Fn(&Message) -> Result<Reply, String> + Send + Sync + 'static,
    ) -> Self {
        Self::listen(judge, |stream| stream)
    }

    /// One whose requests all have this method and target, and name it as their host; the rest is
    /// for `judge` to judge.
    pub fn start_at(
        method: &str,
        target: &str,
        judge: impl Fn(&Message) -> Result<Reply, String> + Send + Sync + 'static,
    ) -> Self {
        let line = format!("{method} {target} HTTP/1.1");
        let port = Arc::new(OnceLock::new());
        let host = Arc::clone(&port);
        let server = Self::start(move |request| {
            if request.start != line {
                return Err(format!("{:?} instead of {line:?}", request.start));
            }
            let host = format!("127.0.0.1:{}", host.wait());
            if request.header("host") != [&host] {
                return Err(format!("host is not {host}"));
            }
            judge(request)
        });
        port.set(server.port).unwrap();
        server
    }

    /// One that speaks HTTPS, to those who ask for its name.
    pub fn start_tls(
        tls: &Tls,
        certificate: Certificate,
        name: &'static str,
        judge: impl Fn(&Message) -> Result<Reply, String> + Send + Sync + 'static,
    ) -> Self {
        let config = tls.server(certificate, name);
        Self::listen(judge, move |stream| {
            StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream)
        })
    }

    fn listen<S: Read + Write>(
        judge: impl Fn(&Message) -> Result<Reply, String> + Send + Sync + 'static,
        session: impl Fn(TcpStream) -> S + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            judge: Box::new(judge),
            connections: 0.into(),
            complaints: Mutex::default(),
            has_ended: false.into(),
        });
        let server = Self { port, shared: Arc::clone(&shared) };
        let session = Arc::new(session);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.has_ended.load(Ordering::SeqCst) {
                    break;
                }
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (shared, session, tcp) =
                    (Arc::clone(&shared), Arc::clone(&session), stream.unwrap());
                thread::spawn(move || {
                    let mut stream = BufReader::new(session(tcp.try_clone().unwrap()));
                    if let Err(complaint) = serve(&shared, &tcp, &mut stream) {
                        shared.complaints.lock().unwrap().push(complaint);
                    }
                });
            }
        });
        server
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// What was wrong so far, which is then forgotten.
    pub fn complaints(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.complaints.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let complaints = self.complaints();
        if !thread::panicking() {
            assert!(complaints.is_empty(), "{}", complaints.join("\n"));
        }
    }
}

/// A port of loopback that refuses connections, and goes on doing so as long as this lives.
pub struct Refusing {
    pub port: u16,
    _bound: tokio::net::TcpSocket,
}

impl Refusing {
    pub fn new() -> Self {
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let port = bound.local_addr().unwrap().port();
        Self { port, _bound: bound }
    }
}

/// Answers a connection's requests until it ends.
fn serve<S: Read + Write>(
    shared: &Shared,
    tcp: &TcpStream,
    stream: &mut BufReader<S>,
) -> Result<(), String> {
    tcp.set_nodelay(true).unwrap();
    // Who goes between two requests is in their right, and so is who does not trust the certificate.
    while stream.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
        // A request comes whole, or not at all.
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let request = Message::read(stream, |_| true)?;
        tcp.set_read_timeout(None).unwrap();
        if !stream.buffer().is_empty() {
            return Err(format!("more than one request at once: {request:?}"));
        }
        let has_body = request.method_and_target().0 != "HEAD";
        let reply = (shared.judge)(&request)?;
        // From here on the client may have gone, which is its right.
        let stream = stream.get_mut();
        let (bytes, pause, goes_on) = match reply {
            Reply::Answer(answer) => {
                (answer.bytes(has_body), Duration::ZERO, answer.framing != Framing::Close)
            }
            Reply::Slow(answer, pause) => (answer.bytes(has_body), pause, false),
            Reply::Cut(answer, count) => {
                let mut bytes = answer.bytes(has_body);
                bytes.truncate(bytes.len() - count);
                (bytes, Duration::ZERO, false)
            }
            Reply::Bytes(bytes) => (bytes, Duration::ZERO, false),
            Reply::Endless(status) => {
                let answer = Answer::new(status, "").framed(Framing::Close);
                if stream.write_all(&answer.bytes(has_body)).is_ok() {
                    while stream.write_all(&[b' '; 16 * 1024]).is_ok() {}
                }
                return Ok(());
            }
            Reply::EndlessInterim(status) => {
                let many = format!("HTTP/1.1 {status} \r\n\r\n").repeat(4000);
                while stream.write_all(many.as_bytes()).is_ok() {}
                return Ok(());
            }
            Reply::Never => {
                let _ = stream.read(&mut [0]);
                return Ok(());
            }
            Reply::Reset => {
                // The end of a socket that does not linger is a reset.
                return TcpSocket::from_std_stream(tcp.try_clone().unwrap())
                    .set_zero_linger()
                    .map_err(|error| error.to_string());
            }
        };
        let is_sent = if pause.is_zero() {
            stream.write_all(&bytes).is_ok()
        } else {
            bytes.iter().all(|byte| {
                thread::sleep(pause);
                stream.write_all(&[*byte]).is_ok()
            })
        };
        if !is_sent || !goes_on || stream.flush().is_err() {
            let _ = tcp.shutdown(Shutdown::Write);
            // Until the client has closed too: closing earlier could reset what is on its way.
            while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
            return Ok(());
        }
    }
    Ok(())
}
