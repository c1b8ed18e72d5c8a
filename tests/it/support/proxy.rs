//! A wire between the function and the database that can be watched and broken.

use std::{
    convert::Infallible,
    future::pending,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpSocket, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{oneshot, watch},
};

use super::{
    block_on,
    database::{Database, cluster},
    function::Function,
};

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// What a connection suffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Both ends are reset.
    Reset,
    /// Both ends are closed.
    Close,
    /// Whatever is sent vanishes for good, and so does the news that the server has closed.
    Silence,
    /// The same for what this side sends.
    Mute(Side),
    /// The other side hears that this one has closed, and nothing more.
    HalfClose(Side),
    /// Whatever is sent is held until the fault is lifted.
    Stall,
    /// Each byte travels alone, this long after the one before, until the fault is lifted.
    Slow(Duration),
}

impl Fault {
    /// Whether what this side sends is lost.
    fn swallows(self, from: Side) -> bool {
        match self {
            Self::Reset | Self::Close | Self::Silence => true,
            Self::Mute(side) | Self::HalfClose(side) => side == from,
            Self::Stall | Self::Slow(_) => false,
        }
    }
}

/// Which connections meet a fault, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// New ones, at once.
    Connect,
    /// Any, when this side sends one more byte than this many. Counting starts with the plan, or
    /// with the connection.
    Byte(Side, u64),
}

/// A fault that waits for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub fault: Fault,
    pub place: Place,
    /// Whether the first connection to meet it is the only one.
    pub once: bool,
}

/// A TCP proxy in front of the cluster, on a port of its own.
pub struct Proxy {
    port: u16,
    wire: Arc<Wire>,
    /// Its thread ends when this is dropped.
    _end: oneshot::Sender<Infallible>,
}

/// What the proxy's connections share.
#[derive(Default)]
struct Wire {
    links: Mutex<Vec<Weak<Link>>>,
    plan: Mutex<Option<Plan>>,
    /// Whether new connections are to be refused, and whether they are accepted yet.
    refuse: watch::Sender<bool>,
    accepts: AtomicBool,
    round_trips: AtomicUsize,
    strikes: AtomicUsize,
}

/// A connection: a client's and the one to the server that belongs to it.
struct Link {
    fault: watch::Sender<Option<Fault>>,
    talk: Mutex<Talk>,
}

struct Talk {
    latest: Side,
    /// How many bytes of the client and of the server have passed.
    passed: [u64; 2],
}

impl Proxy {
    pub fn start() -> Self {
        let socket = bind(0);
        let port = socket.local_addr().unwrap().port();
        let wire = Arc::<Wire>::default();
        let (end, ended) = oneshot::channel();
        let shared = Arc::clone(&wire);
        thread::spawn(move || {
            block_on(async {
                tokio::select! {
                    () = accept(socket, &shared) => (),
                    _ = ended => (),
                }
            });
        });
        let proxy = Self { port, wire, _end: end };
        proxy.wait_until_it_accepts(true);
        proxy
    }

    /// The URL of a database by way of this proxy.
    pub fn url(&self, database: &Database) -> String {
        database.url().replace(&format!(":{}/", cluster().port), &format!(":{}/", self.port))
    }

    /// How often the client has spoken after the server had.
    pub fn round_trips(&self) -> usize {
        self.wire.round_trips.load(Ordering::SeqCst)
    }

    /// How many connections have met a fault.
    pub fn strikes(&self) -> usize {
        self.wire.strikes.load(Ordering::SeqCst)
    }

    /// Makes the connections that there are meet a fault now.
    pub fn strike(&self, fault: Fault) {
        for link in self.wire.links() {
            self.wire.strike(&link, fault);
        }
    }

    /// Makes connections meet a fault later, instead of what was planned before.
    pub fn plan(&self, plan: Plan) {
        for link in self.wire.links() {
            link.talk.lock().unwrap().passed = [0, 0];
        }
        *self.wire.plan.lock().unwrap() = Some(plan);
    }

    /// Refuses new connections, as a host does on which no server runs.
    pub fn refuse(&self) {
        self.wire.refuse.send_replace(true);
        self.wait_until_it_accepts(false);
    }

    /// Lifts all faults. What is lost stays lost, and a connection that it was lost on broken.
    pub fn heal(&self) {
        *self.wire.plan.lock().unwrap() = None;
        for link in self.wire.links() {
            link.fault.send_if_modified(|fault| {
                fault.take_if(|fault| matches!(fault, Fault::Stall | Fault::Slow(_))).is_some()
            });
        }
        self.wire.refuse.send_replace(false);
        self.wait_until_it_accepts(true);
    }

    /// Silences every connection, or lets new ones be heard.
    pub fn silence(&self, silent: bool) {
        if silent {
            self.plan(Plan { fault: Fault::Silence, place: Place::Connect, once: false });
            self.strike(Fault::Silence);
        } else {
            self.heal();
        }
    }

    fn wait_until_it_accepts(&self, accepts: bool) {
        let begin = Instant::now();
        while self.wire.accepts.load(Ordering::SeqCst) != accepts {
            assert!(begin.elapsed() < Duration::from_secs(30), "the proxy's thread has ended");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Wire {
    fn links(&self) -> Vec<Arc<Link>> {
        self.links.lock().unwrap().iter().filter_map(Weak::upgrade).collect()
    }

    fn strike(&self, link: &Link, fault: Fault) {
        self.strikes.fetch_add(1, Ordering::SeqCst);
        link.fault.send_replace(Some(fault));
    }

    /// Strikes a connection with what is planned, if it is planned for there.
    fn strike_at(&self, link: &Link, there: impl Fn(Place) -> bool) -> bool {
        let mut plan = self.plan.lock().unwrap();
        let struck = plan.filter(|plan| link.fault.borrow().is_none() && there(plan.place));
        if let Some(struck) = struck {
            self.strike(link, struck.fault);
            if struck.once {
                *plan = None;
            }
        }
        struck.is_some()
    }

    fn new_link(&self) -> Arc<Link> {
        let link = Arc::new(Link {
            fault: watch::Sender::new(None),
            talk: Mutex::new(Talk { latest: Side::Server, passed: [0, 0] }),
        });
        let mut links = self.links.lock().unwrap();
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(&link));
        link
    }
}

/// A socket on a port of loopback. As long as nobody listens on it, connections are refused, and
/// nobody else gets the port.
fn bind(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    // Connections that were accepted there may still be open, and the socket before it.
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, port).into()).unwrap();
    socket
}

async fn accept(mut socket: TcpSocket, wire: &Arc<Wire>) {
    let port = socket.local_addr().unwrap().port();
    let mut refuse = wire.refuse.subscribe();
    loop {
        let _ = refuse.wait_for(|refuse| !refuse).await;
        let listener = socket.listen(128).unwrap();
        wire.accepts.store(true, Ordering::SeqCst);
        loop {
            tokio::select! {
                biased;
                _ = refuse.wait_for(|refuse| *refuse) => break,
                client = listener.accept() => {
                    tokio::spawn(connect(client.unwrap().0, Arc::clone(wire)));
                }
            }
        }
        // Before the other one is closed, so that no client on this machine gets its port in between.
        socket = bind(port);
        drop(listener);
        wire.accepts.store(false, Ordering::SeqCst);
    }
}

async fn connect(mut client: TcpStream, wire: Arc<Wire>) {
    let link = wire.new_link();
    wire.strike_at(&link, |place| place == Place::Connect);
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, cluster().port)).await.unwrap();
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
    }
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            biased;
            end = link.broken() => end,
            end = async {
                tokio::try_join!(
                    link.pump(&wire, Side::Client, from_client, to_server),
                    link.pump(&wire, Side::Server, from_server, to_client),
                )
            } => end.err().unwrap_or(Fault::Close),
        }
    };
    if end == Fault::Reset {
        for end in [client, server] {
            let _ = end.set_zero_linger();
        }
    }
}

impl Link {
    /// Waits for a fault that ends the connection.
    async fn broken(&self) -> Fault {
        let mut faults = self.fault.subscribe();
        let breaks = |fault: &Option<Fault>| matches!(fault, Some(Fault::Reset | Fault::Close));
        let fault = *faults.wait_for(breaks).await.unwrap();
        fault.unwrap()
    }

    /// Passes on what a side sends until it closes; or else returns how the connection ends.
    async fn pump(
        &self,
        wire: &Wire,
        from: Side,
        mut source: ReadHalf<'_>,
        mut sink: WriteHalf<'_>,
    ) -> Result<(), Fault> {
        let mut faults = self.fault.subscribe();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let fault = *faults.borrow_and_update();
            if fault == Some(Fault::HalfClose(from)) {
                let _ = sink.shutdown().await;
            }
            let read = tokio::select! {
                biased;
                _ = faults.changed() => continue,
                read = source.read(&mut buffer) => read,
            };
            if let Ok(length @ 1..) = read {
                self.note(wire, from);
                self.pass(wire, from, &buffer[..length], &mut sink).await?;
                continue;
            }
            let _ = faults.wait_for(|fault| *fault != Some(Fault::Stall)).await;
            let lost = self.fault.borrow().is_some_and(|fault| fault.swallows(from));
            return match (from, read) {
                (Side::Server, _) if lost => pending().await,
                // A server hears of it in the end. Here it does at once, or it would run out of
                // connections.
                (Side::Client, _) if lost => Err(Fault::Close),
                (_, Err(_)) => Err(Fault::Reset),
                (_, Ok(_)) => {
                    let _ = sink.shutdown().await;
                    Ok(())
                }
            };
        }
    }

    async fn pass(
        &self,
        wire: &Wire,
        from: Side,
        mut bytes: &[u8],
        sink: &mut WriteHalf<'_>,
    ) -> Result<(), Fault> {
        let mut faults = self.fault.subscribe();
        while !bytes.is_empty() {
            let passed = self.talk.lock().unwrap().passed[from as usize];
            let to_go = |place| match place {
                Place::Byte(side, after) if side == from => after.saturating_sub(passed),
                _ => u64::MAX,
            };
            wire.strike_at(self, |place| to_go(place) == 0);
            let fault = *faults.borrow_and_update();
            let most = match fault {
                Some(fault) if fault.swallows(from) => return Ok(()),
                Some(Fault::Stall) => {
                    let _ = faults.changed().await;
                    continue;
                }
                Some(Fault::Slow(_)) => 1,
                Some(_) => u64::MAX,
                None => wire.plan.lock().unwrap().map_or(u64::MAX, |plan| to_go(plan.place)),
            };
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
            sink.write_all(&bytes[..most]).await.map_err(|_| Fault::Close)?;
            self.talk.lock().unwrap().passed[from as usize] += most as u64;
            bytes = &bytes[most..];
            match fault {
                // A timer takes a millisecond at least.
                Some(Fault::Slow(Duration::ZERO)) => tokio::task::yield_now().await,
                Some(Fault::Slow(pause)) => tokio::time::sleep(pause).await,
                _ => (),
            }
        }
        Ok(())
    }

    /// Keeps account of who speaks when.
    fn note(&self, wire: &Wire, from: Side) {
        let mut talk = self.talk.lock().unwrap();
        if from == Side::Client && talk.latest == Side::Server {
            wire.round_trips.fetch_add(1, Ordering::SeqCst);
        }
        talk.latest = from;
    }
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
