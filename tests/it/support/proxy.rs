//! A wire between the function and the database that can be watched.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    database::{Database, cluster},
    function::Function,
};

/// A TCP proxy in front of the cluster, on a port of its own.
pub struct Proxy {
    port: u16,
    round_trips: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq)]
enum From {
    Client,
    Server,
}

impl Proxy {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let round_trips = Arc::new(AtomicUsize::new(0));
        let silent = Arc::new(AtomicBool::new(false));
        let (count, silence) = (Arc::clone(&round_trips), Arc::clone(&silent));
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(("127.0.0.1", cluster().port)).unwrap();
                let latest = Arc::new(Mutex::new(From::Server));
                for (from, source, sink) in
                    [(From::Client, &client, &server), (From::Server, &server, &client)]
                {
                    source.set_nodelay(true).unwrap();
                    let (source, sink) = (source.try_clone().unwrap(), sink.try_clone().unwrap());
                    let (latest, count, silence) =
                        (Arc::clone(&latest), Arc::clone(&count), Arc::clone(&silence));
                    thread::spawn(move || copy(source, sink, from, &latest, &count, &silence));
                }
            }
        });
        Self { port, round_trips, silent }
    }

    /// The URL of a database by way of this proxy.
    pub fn url(&self, database: &Database) -> String {
        database.url().replace(&format!(":{}/", cluster().port), &format!(":{}/", self.port))
    }

    /// Keeps what is sent, in either direction, from arriving: for good.
    pub fn silence(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    /// How often the client has spoken after the server had.
    pub fn round_trips(&self) -> usize {
        self.round_trips.load(Ordering::SeqCst)
    }
}

fn copy(
    mut source: TcpStream,
    mut sink: TcpStream,
    from: From,
    latest: &Mutex<From>,
    round_trips: &AtomicUsize,
    silence: &AtomicBool,
) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = source.read(&mut buffer) {
        let mut latest = latest.lock().unwrap();
        if from == From::Client && *latest == From::Server {
            round_trips.fetch_add(1, Ordering::SeqCst);
        }
        *latest = from;
        drop(latest);
        if silence.load(Ordering::SeqCst) {
            continue;
        }
        if sink.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = sink.shutdown(Shutdown::Both);
}

/// How many round trips each of these events takes once all have been asked before.
pub fn round_trips<const N: usize>(database: &Database, events: [&str; N]) -> [usize; N] {
    let proxy = Proxy::start();
    let function = Function::start(&[("DATABASE_URL", &proxy.url(database))]);
    for event in events {
        function.invoke(event.as_bytes()).unwrap();
    }
    let counts = events.map(|event| {
        let before = proxy.round_trips();
        function.invoke(event.as_bytes()).unwrap();
        proxy.round_trips() - before
    });
    function.stop();
    counts
}
