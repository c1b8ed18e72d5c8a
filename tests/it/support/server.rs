//! An HTTP/1.1 server on loopback that keeps to the bytes: it judges each request as it came over
//! the wire, and can be told to answer anything.

use std::{
    fmt::{self, Write as _},
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// A request.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The request line.
    pub line: String,
    /// In their order, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Sent {
    /// Compares the headers with those that are `required`, by name and value, and those that may
    /// come along, by name; no other may, and none twice.
    pub fn expect_headers(
        &self,
        required: &[(&str, &str)],
        optional: &[&str],
    ) -> Result<(), String> {
        for (name, value) in required {
            let sent: Vec<_> = self.headers.iter().filter(|(sent, _)| sent == name).collect();
            if !matches!(sent[..], [(_, sent)] if sent == value) {
                return Err(format!("{name} is not {value:?} once: {sent:?}"));
            }
        }
        for (name, _) in &self.headers {
            let is_required = required.iter().any(|(required, _)| required == name);
            let count = self.headers.iter().filter(|(other, _)| other == name).count();
            if count != 1 || !is_required && !optional.contains(&&**name) {
                return Err(format!("{name} came along, {count} times"));
            }
        }
        Ok(())
    }
}

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
    pub headers: Vec<(&'static str, String)>,
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

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn framed(self, framing: Framing) -> Self {
        Self { framing, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
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
pub type Judge = dyn Fn(&Sent) -> Result<Reply, String> + Send + Sync;

/// A running server. Dropping it fails the test if it was sent anything wrong.
pub struct Server {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    judge: Box<Judge>,
    requests: AtomicUsize,
    complaints: Mutex<Vec<String>>,
    has_ended: AtomicBool,
}

impl Server {
    /// Starts one whose requests all have this method and target; the rest is for `judge` to judge.
    pub fn start(
        method: &'static str,
        target: &str,
        judge: impl Fn(&Sent) -> Result<Reply, String> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let line = format!("{method} {target} HTTP/1.1");
        let host = format!("127.0.0.1:{port}");
        let judge = move |sent: &Sent| {
            if sent.line != line {
                return Err(format!("{:?} instead of {line:?}", sent.line));
            }
            // Everything else about headers is the judge's.
            if !sent.headers.contains(&("host".to_owned(), host.clone())) {
                return Err(format!("host is not {host}"));
            }
            judge(sent)
        };
        let shared = Arc::new(Shared {
            judge: Box::new(judge),
            requests: 0.into(),
            complaints: Mutex::default(),
            has_ended: false.into(),
        });
        let server = Self { port, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.has_ended.load(Ordering::SeqCst) {
                    break;
                }
                let (shared, stream) = (Arc::clone(&shared), stream.unwrap());
                thread::spawn(move || {
                    if let Err(complaint) = serve(&shared, &stream) {
                        shared.complaints.lock().unwrap().push(complaint);
                    }
                });
            }
        });
        server
    }

    /// How many requests have come, wrong ones too.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
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
fn serve(shared: &Shared, mut stream: &TcpStream) -> Result<(), String> {
    stream.set_nodelay(true).unwrap();
    loop {
        let Some((sent, length)) = read(stream)? else { return Ok(()) };
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let reply = (shared.judge)(&sent)?;
        if matches!(reply, Reply::Reset) {
            // Closing with something unread resets (RFC 2525, section 2.17).
            return Ok(());
        }
        stream.read_exact(&mut vec![0; length]).map_err(|error| error.to_string())?;
        // From here on the client may have gone, which is its right.
        let (bytes, pause, goes_on) = match reply {
            Reply::Answer(answer) => {
                (answer.bytes(), Duration::ZERO, answer.framing != Framing::Close)
            }
            Reply::Slow(answer, pause) => (answer.bytes(), pause, false),
            Reply::Cut(answer, count) => {
                let mut bytes = answer.bytes();
                bytes.truncate(bytes.len() - count);
                (bytes, Duration::ZERO, false)
            }
            Reply::Bytes(bytes) => (bytes, Duration::ZERO, false),
            Reply::Endless(status) => {
                let answer = Answer::new(status, "").framed(Framing::Close);
                if stream.write_all(&answer.bytes()).is_ok() {
                    while stream.write_all(&[b' '; 16 * 1024]).is_ok() {}
                }
                return Ok(());
            }
            Reply::Never => {
                let _ = stream.read(&mut [0]);
                return Ok(());
            }
            Reply::Reset => (Vec::new(), Duration::ZERO, false),
        };
        let is_sent = if pause.is_zero() {
            stream.write_all(&bytes).is_ok()
        } else {
            bytes.iter().all(|byte| {
                thread::sleep(pause);
                stream.write_all(&[*byte]).is_ok()
            })
        };
        if !is_sent || !goes_on {
            let _ = stream.shutdown(Shutdown::Write);
            // Until the client has closed too: closing earlier could reset what is on its way.
            while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
            return Ok(());
        }
    }
}

/// Looks at the next request and leaves it unread; `None` at the end of the connection. Also
/// returns its length.
fn read(stream: &TcpStream) -> Result<Option<(Sent, usize)>, String> {
    let mut buffer = vec![0; 256 * 1024];
    let mut patience = None;
    loop {
        let seen = match stream.peek(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if let Some(request) = parse(seen)? {
            return Ok(Some(request));
        }
        if *patience.get_or_insert_with(|| Instant::now() + Duration::from_secs(10))
            < Instant::now()
        {
            return Err(format!("half a request: {:?}", String::from_utf8_lossy(seen)));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The request that these bytes are, `None` if it has not all come yet.
fn parse(bytes: &[u8]) -> Result<Option<(Sent, usize)>, String> {
    let shown = String::from_utf8_lossy(bytes);
    if !bytes.first().is_none_or(u8::is_ascii_uppercase) {
        return Err(format!("no HTTP: {shown:?}"));
    }
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = str::from_utf8(&bytes[..end]).map_err(|_| format!("not UTF-8: {shown:?}"))?;
    if head
        .bytes()
        .any(|byte| !byte.is_ascii() || byte.is_ascii_control() && !b"\r\n".contains(&byte))
        || head.matches('\n').count() != head.matches("\r\n").count()
        || head.matches('\r').count() != head.matches("\r\n").count()
    {
        return Err(format!("a control character, or none of ASCII: {shown:?}"));
    }
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let header = |line: &str| match line.split_once(": ") {
        Some((name, value)) if value.trim() == value && !name.contains([' ', '\t']) => {
            Ok((name.to_lowercase(), value.to_owned()))
        }
        _ => Err(format!("no header: {line:?}")),
    };
    let headers = lines.map(header).collect::<Result<Vec<_>, _>>()?;
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = match length.map(|(_, value)| value.parse::<usize>()) {
        None => 0,
        Some(Ok(length)) => length,
        Some(Err(_)) => return Err(format!("no length: {shown:?}")),
    };
    let Some(body) = bytes.get(end + 4..end + 4 + length) else { return Ok(None) };
    if bytes.len() > end + 4 + length {
        return Err(format!("more than one request at once: {shown:?}"));
    }
    let body = str::from_utf8(body).map_err(|_| format!("not UTF-8: {shown:?}"))?.to_owned();
    Ok(Some((Sent { line, headers, body }, end + 4 + length)))
}
