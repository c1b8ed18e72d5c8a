//! A server that speaks PostgreSQL's protocol (PostgreSQL, "Frontend/Backend Protocol") and says what no
//! PostgreSQL would, before it passes its clients on to a real one.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    thread,
};

use super::database::Database;

/// What a client is told after its startup message.
#[derive(Debug, Clone)]
pub enum Says {
    /// These bytes, and then nothing.
    Bytes(Vec<u8>),
    /// That it is logged in; and these bytes to its first question.
    ToQuestion(Vec<u8>),
    /// That it is logged in, and these bytes again and again.
    Endless(Vec<u8>),
    /// That it is logged in, and these bytes again and again to its first question.
    EndlessToQuestion(Vec<u8>),
    /// That it has to prove its password by so many iterations of SCRAM-SHA-256.
    Scram(u32),
}

/// A message of the server: its type and its body, with a length that is true.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// Starts one. Each connection is told the next thing of `script`, and the next one has no answer before
/// it has ended. Those after the last are the database's. Returns the function's URL for it.
pub fn start(database: &Database, script: Vec<Says>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = database.url().replace(&format!(":{}/", database.cluster.port), &format!(":{port}/"));
    let server = database.cluster.port;
    thread::spawn(move || {
        let mut script = script.into_iter();
        let turn = Arc::new(Mutex::new(()));
        for stream in listener.incoming() {
            let (stream, says, turn) = (stream.unwrap(), script.next(), Arc::clone(&turn));
            thread::spawn(move || {
                let _turn = turn.lock().unwrap();
                match says {
                    Some(says) => drop(speak(stream, &says)),
                    None => pass_on(stream, TcpStream::connect(("127.0.0.1", server)).unwrap()),
                }
            });
        }
    });
    url
}

fn speak(mut stream: TcpStream, says: &Says) -> io::Result<()> {
    // A request for TLS, which is declined, may come before the startup message.
    while read_body(&mut stream)?.get(..4) == Some(&80_877_103_u32.to_be_bytes()) {
        stream.write_all(b"N")?;
    }
    let logged_in = [message(b'R', &[0; 4]), message(b'K', &[0; 8]), message(b'Z', b"I")].concat();
    match says {
        Says::Bytes(bytes) => stream.write_all(bytes)?,
        Says::ToQuestion(bytes) => {
            stream.write_all(&logged_in)?;
            read_message(&mut stream)?;
            stream.write_all(bytes)?;
        }
        Says::Endless(bytes) => {
            stream.write_all(&message(b'R', &[0; 4]))?;
            write_endlessly(&mut stream, bytes)?;
        }
        Says::EndlessToQuestion(bytes) => {
            stream.write_all(&logged_in)?;
            read_message(&mut stream)?;
            write_endlessly(&mut stream, bytes)?;
        }
        Says::Scram(iterations) => {
            stream.write_all(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
            let first = String::from_utf8_lossy(&read_message(&mut stream)?).into_owned();
            let nonce = first.split_once(",r=").unwrap().1.split(',').next().unwrap().to_owned();
            let challenge = format!("r={nonce}x,s=c2FsdHNhbHRzYWx0c2FsdA==,i={iterations}");
            stream.write_all(&message(b'R', &[b"\0\0\0\x0b", challenge.as_bytes()].concat()))?;
        }
    }
    // Until the client has had enough.
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

fn write_endlessly(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let many = bytes.repeat(1 + (1 << 16) / bytes.len());
    loop {
        stream.write_all(&many)?;
    }
}

/// A message of the client, without its type.
fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    stream.read_exact(&mut [0])?;
    read_body(stream)
}

fn read_body(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// What a server says once too often.
#[derive(Debug, Clone, Copy)]
pub enum Repeats {
    /// `ReadyForQuery`, behind any of its messages.
    Ready,
    /// All of an answer.
    Answer,
}

/// A server that says something once too often.
pub struct Stutter {
    /// The function's URL for it.
    pub url: String,
    to_go: Arc<AtomicI64>,
}

impl Stutter {
    /// One that does not yet.
    pub fn start(database: &Database, repeats: Repeats) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = database.cluster.port;
        let url = database.url().replace(&format!(":{server}/"), &format!(":{port}/"));
        let url = format!("{url}?sslmode=disable");
        let to_go = Arc::new(AtomicI64::new(-1));
        let shared = Arc::clone(&to_go);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, to_go) = (client.unwrap(), Arc::clone(&shared));
                let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                copy(client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || stutter(server, client, repeats, &to_go));
            }
        });
        Self { url, to_go }
    }

    /// Has it do so behind so many more of its messages or answers.
    pub fn after(&self, count: i64) {
        self.to_go.store(count, Ordering::SeqCst);
    }

    /// Whether it has since.
    pub fn has_stuttered(&self) -> bool {
        self.to_go.load(Ordering::SeqCst) < 0
    }
}

fn stutter(
    mut server: TcpStream,
    mut client: TcpStream,
    repeats: Repeats,
    to_go: &AtomicI64,
) -> io::Result<()> {
    let mut answer = Vec::new();
    loop {
        let mut kind = [0];
        if server.read(&mut kind)? == 0 {
            return client.shutdown(std::net::Shutdown::Write);
        }
        let said = message(kind[0], &read_body(&mut server)?);
        let counts = kind == *b"Z" || matches!(repeats, Repeats::Ready);
        // Counted before it is passed on: whoever got an answer knows what came behind it.
        let stutters = counts && to_go.fetch_sub(1, Ordering::SeqCst) == 0;
        client.write_all(&said)?;
        answer.extend(said);
        if stutters {
            let ready = message(b'Z', b"I");
            client.write_all(if let Repeats::Answer = repeats { &answer } else { &ready })?;
        }
        if kind == *b"Z" {
            answer.clear();
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

fn pass_on(client: TcpStream, server: TcpStream) {
    copy(client.try_clone().unwrap(), server.try_clone().unwrap());
    copy(server, client);
}
