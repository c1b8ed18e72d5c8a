//! A randomised run of faults between the function and its database. Whatever breaks, the caller
//! gets the right page or an honest error in time, and the right page once nothing is broken.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `SOAK_SEED` | the same seed makes the same faults | the time |
//! | `SOAK_FAULTS` | how many there are | 48 |
//! | `SOAK_FUNCTIONS` | how many functions share them, each with a database and a proxy of its own | 6 |
//! | `SOAK_ONLY` | the number of the only one of them to be made | all |
//! | `SOAK_CRASHES` | how often the server then crashes and restarts, which no other test must meet | 0 |

use std::{
    collections::BTreeMap,
    fmt,
    ops::AddAssign,
    sync::OnceLock,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::support::{
    block_on,
    cases::{self, Case, cases},
    database::{Database, cluster},
    function::{Function, NoOutcome, Outcome, ask, signal},
    gateway::Gateway,
    proxy::{Fault, Place, Plan, Proxy, Side},
};

/// How long the database may work on one statement.
const STATEMENT_TIMEOUT_MS: &str = "1000";

/// What happens to the function's connections.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// The open connection breaks between two requests.
    Struck(Fault),
    /// Connections break at a place. With `fresh` there is no open one when the request comes.
    Planned { plan: Plan, fresh: bool },
    /// No server listens.
    Refused,
    /// The server ends its sessions between two requests, as it does when it restarts.
    Terminated,
    /// The server has no connection left.
    Full,
    /// The server cancels the statement, or ends the session, in mid-work. With `again` what kept
    /// the statement from its end stays, so that the next try does not come through either.
    AtWork { stop: &'static str, again: bool },
    /// The process is stopped, and the connection breaks meanwhile.
    Frozen(Option<Fault>),
}

impl Trouble {
    fn random(random: &mut Random) -> Self {
        const SIDES: [Side; 2] = [Side::Client, Side::Server];
        let fault = match random.below(7) {
            0 => Fault::Reset,
            1 => Fault::Close,
            2 => Fault::Silence,
            3 => Fault::Mute(random.pick(SIDES)),
            4 => Fault::HalfClose(random.pick(SIDES)),
            5 => Fault::Stall,
            _ => Fault::Slow(Duration::from_millis(random.pick([0, 1]))),
        };
        let once = random.pick([true, false]);
        // From within the first message to beyond the last.
        let bytes = random.pick([1, 30, 300, 3_000, 9_000]);
        let byte = Place::Byte(random.pick(SIDES), random.below(bytes));
        match random.below(16) {
            0..3 => Self::Struck(fault),
            3 => Self::Planned { plan: Plan { fault, place: Place::Connect, once }, fresh: true },
            4..8 => Self::Planned { plan: Plan { fault, place: byte, once }, fresh: true },
            8..11 => Self::Planned { plan: Plan { fault, place: byte, once }, fresh: false },
            11 => Self::Refused,
            12 => Self::Terminated,
            13 => Self::Full,
            14 => Self::AtWork {
                stop: random.pick(["pg_terminate_backend", "pg_cancel_backend"]),
                again: random.pick([true, false]),
            },
            _ => Self::Frozen(random.pick([None, Some(fault)])),
        }
    }

    /// Whether nothing is broken any more by the time of the next request, but for a connection
    /// of which the function does not know.
    fn is_over(self) -> bool {
        match self {
            Self::Struck(fault) => !matches!(fault, Fault::Stall | Fault::Slow(_)),
            Self::Terminated | Self::Frozen(_) => true,
            _ => false,
        }
    }

    /// Whether the server may say that the password is wrong: it does so when it gets half of the
    /// proof that it is right, and then the client's end.
    fn may_refuse_password(self) -> bool {
        matches!(self, Self::Planned { plan, .. } if plan.fault == Fault::HalfClose(Side::Client))
    }
}

/// The line of the report that it belongs to.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = |fault| match fault {
            Fault::Reset => "reset",
            Fault::Close => "closed",
            Fault::Silence => "silent",
            Fault::Mute(_) => "silent in one direction",
            Fault::HalfClose(_) => "closed in one direction",
            Fault::Stall => "stalled",
            Fault::Slow(_) => "slow, byte by byte",
        };
        match self {
            Self::Struck(struck) => write!(f, "{} between requests", fault(*struck)),
            Self::Planned { plan: Plan { fault: planned, place: Place::Connect, .. }, .. } => {
                write!(f, "{} at connect", fault(*planned))
            }
            Self::Planned { plan, fresh: true } => {
                write!(f, "{} at a byte of a new connection", fault(plan.fault))
            }
            Self::Planned { plan, fresh: false } => {
                write!(f, "{} at a byte of a request", fault(plan.fault))
            }
            Self::Refused => f.write_str("connections refused"),
            Self::Terminated => f.write_str("sessions terminated between requests"),
            Self::Full => f.write_str("no connection left"),
            Self::AtWork { stop, .. } => write!(f, "{stop} during the statement"),
            Self::Frozen(_) => f.write_str("process stopped, connection broken or not"),
        }
    }
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[usize::try_from(self.below(N as u64)).unwrap()]
    }
}

/// A request and its only right answer.
struct Request {
    name: String,
    event: String,
    status: u64,
    /// As it was read when nothing was broken.
    body: String,
}

/// What came of the faults of one kind.
#[derive(Debug, Clone, Default)]
struct Tally {
    faults: usize,
    met: usize,
    requests: usize,
    right: usize,
    failed: usize,
    unavailable: usize,
    timeout: usize,
    wrong: usize,
    logged_out: usize,
    late: usize,
    exits: usize,
    /// Requests until a right answer, at most.
    recovery: usize,
}

impl AddAssign<&Self> for Tally {
    fn add_assign(&mut self, other: &Self) {
        self.faults += other.faults;
        self.met += other.met;
        self.requests += other.requests;
        self.right += other.right;
        self.failed += other.failed;
        self.unavailable += other.unavailable;
        self.timeout += other.timeout;
        self.wrong += other.wrong;
        self.logged_out += other.logged_out;
        self.late += other.late;
        self.exits += other.exits;
        self.recovery = self.recovery.max(other.recovery);
    }
}

impl Tally {
    fn row(&self, name: &str) -> String {
        format!(
            "{name:<54} {:>6} {:>6} {:>8} {:>6} {:>5} {:>5} {:>5} {:>6} {:>8} {:>5} {:>6} {:>8}",
            self.faults,
            self.met,
            self.requests,
            self.right,
            self.failed,
            self.unavailable,
            self.timeout,
            self.wrong,
            self.logged_out,
            self.late,
            self.exits,
            self.recovery,
        )
    }

    fn is_good(&self) -> bool {
        [self.wrong, self.logged_out, self.late, self.exits] == [0; 4] && self.recovery == 1
    }
}

/// One function, its way to its database, and what has come of its faults.
struct Soak {
    database: Database,
    proxy: Proxy,
    url: String,
    function: Function,
    requests: &'static [Request],
    /// The first of the requests are the pages of walks, one after the other: how many there are, and
    /// which comes next.
    pages: usize,
    next_page: usize,
    /// Whether 500 is honest.
    may_fail: bool,
    tallies: BTreeMap<String, Tally>,
    /// Of the fault under way.
    complaints: Vec<String>,
    report: Vec<String>,
}

impl Soak {
    /// The number decides whether there is TLS and which statements answer.
    fn new(number: u64) -> Self {
        // The databases have the same rows.
        static REQUESTS: OnceLock<(Vec<Request>, usize)> = OnceLock::new();
        let mut database = block_on(Database::of_conformance("synapse-94"));
        if number % 4 > 1 {
            database = block_on(database.enlarge());
        }
        let proxy = Proxy::start();
        let tls = match &cluster().ca {
            Some(ca) if number.is_multiple_of(2) => format!("sslmode=verify-full&sslrootcert={ca}"),
            _ => "sslmode=disable".to_owned(),
        };
        let url = format!("{}?{tls}", proxy.url(&database));
        let function = start(&url);
        let (requests, pages) = REQUESTS.get_or_init(|| {
            let walks = walks(&url);
            let pages = walks.len();
            (walks.into_iter().chain(recorded(&function)).collect(), pages)
        });
        assert_eq!(ask(&function).0, 200);
        Self {
            database,
            proxy,
            url,
            function,
            requests,
            pages: *pages,
            next_page: 0,
            may_fail: false,
            tallies: BTreeMap::new(),
            complaints: Vec::new(),
            report: Vec::new(),
        }
    }

    /// The server crashes, the function asks meanwhile, and again when the server is back.
    fn crash(&mut self, random: &mut Random) -> Tally {
        let mut tally = Tally { faults: 1, met: 1, ..Tally::default() };
        block_on(async {
            let mut victim = self.database.superuser().await;
            let pid = "SELECT pg_backend_pid()";
            let pid: i32 = sqlx::query_scalar(pid).fetch_one(&mut victim).await.unwrap();
            // The server trusts no other process of its own any more, and starts anew.
            signal("KILL", pid.unsigned_abs());
        });
        thread::sleep(Duration::from_millis(random.below(100)));
        let request = self.random_request(random, false);
        self.ask(request, Duration::from_secs(5), &mut tally);
        while block_on(self.database.try_superuser()).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        self.recover(random, &mut tally);
        tally
    }

    /// One fault: trouble, requests meanwhile, the end of the trouble, requests until all is well.
    fn suffer(&mut self, trouble: Trouble, random: &mut Random) -> Tally {
        let mut tally = Tally { faults: 1, ..Tally::default() };
        let strikes = self.proxy.strikes();
        let sessions_end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                            WHERE usename = 'media_usage' AND datname = current_database()";
        let name = self.database.name.clone();
        let limit = |limit| format!("ALTER DATABASE {name} CONNECTION LIMIT {limit}");
        let mut at_work = None;
        match trouble {
            Trouble::Struck(fault) => self.proxy.strike(fault),
            Trouble::Planned { plan, fresh } => {
                if fresh {
                    self.proxy.strike(Fault::Reset);
                }
                self.proxy.plan(plan);
            }
            Trouble::Refused => {
                self.proxy.strike(Fault::Reset);
                self.proxy.refuse();
            }
            Trouble::Terminated => block_on(self.database.run(sessions_end)),
            Trouble::Full => {
                block_on(self.database.run(&limit(0)));
                block_on(self.database.run(sessions_end));
            }
            Trouble::AtWork { stop, again } => at_work = Some(self.stop_at_work(stop, again)),
            Trouble::Frozen(fault) => {
                self.function.pause();
                match fault {
                    Some(fault) => self.proxy.strike(fault),
                    None => block_on(self.database.run(sessions_end)),
                }
                thread::sleep(Duration::from_millis(random.below(200)));
                self.function.resume();
            }
        }
        self.may_fail = trouble.may_refuse_password();
        if !trouble.is_over() {
            for _ in 0..=random.below(2) {
                let within = Duration::from_secs(random.pick([3, 3, 3, 5, 28]));
                let request = self.random_request(random, at_work.is_some());
                self.ask(request, within, &mut tally);
            }
        }
        if let Some(at_work) = at_work {
            tally.met = at_work.join().unwrap();
        }
        if matches!(trouble, Trouble::Full) {
            block_on(self.database.run(&limit(-1)));
        }
        tally.met = usize::from(
            tally.met + self.proxy.strikes() > strikes
                || matches!(trouble, Trouble::Terminated | Trouble::Full | Trouble::Frozen(None)),
        );
        self.proxy.heal();
        self.may_fail = false;
        self.recover(random, &mut tally);
        tally
    }

    fn end(mut self) -> (BTreeMap<String, Tally>, Vec<String>) {
        let log = self.function.stop();
        assert!(!log.contains("panicked"), "{log}");
        if !self.report.is_empty() {
            self.report.push(log);
        }
        (self.tallies, self.report)
    }

    /// Asks until an answer is right.
    fn recover(&mut self, random: &mut Random, tally: &mut Tally) {
        while tally.recovery < 5 {
            tally.recovery += 1;
            let request = self.random_request(random, false);
            if self.ask(request, Duration::from_secs(28), tally) {
                return;
            }
        }
    }

    /// Enters what came of a fault in the report.
    fn account(&mut self, name: &str, fault: &str, tally: &Tally) {
        *self.tallies.entry(name.to_owned()).or_default() += tally;
        if tally.recovery > 1 {
            self.complaints.push(format!("recovered after {}", tally.recovery));
        }
        self.report
            .extend(self.complaints.drain(..).map(|complaint| format!("{fault}: {complaint}")));
    }

    fn random_request(&self, random: &mut Random, of_an_admin: bool) -> usize {
        if random.below(2) == 0 {
            return self.next_page;
        }
        // Refused tokens stand at the end.
        let refused = if !of_an_admin && random.below(5) == 0 { REFUSED.len() } else { 0 };
        let first = if refused > 0 { self.requests.len() - refused } else { 0 };
        let end = self.requests.len() - REFUSED.len() + refused;
        first + usize::try_from(random.below((end - first) as u64)).unwrap()
    }

    /// Asks once, keeps account, and tells whether the answer was the right one.
    fn ask(&mut self, number: usize, within: Duration, tally: &mut Tally) -> bool {
        let request = &self.requests[number];
        tally.requests += 1;
        let complaint = match self.function.answer_within(request.event.as_bytes(), within) {
            Ok((time, outcome)) => {
                let late = (time > within).then(|| format!("late, after {time:?}"));
                tally.late += usize::from(late.is_some());
                match judge(request, &outcome) {
                    Verdict::Right => {
                        tally.right += 1;
                        if number == self.next_page {
                            self.next_page = (number + 1) % self.pages;
                        }
                        if late.is_none() {
                            return true;
                        }
                        late
                    }
                    Verdict::Failed if self.may_fail => {
                        tally.failed += 1;
                        late
                    }
                    Verdict::Unavailable => {
                        tally.unavailable += 1;
                        late
                    }
                    Verdict::Timeout => {
                        tally.timeout += 1;
                        late
                    }
                    Verdict::LoggedOut => {
                        tally.logged_out += 1;
                        Some(format!("{outcome:?}"))
                    }
                    Verdict::Failed | Verdict::Wrong => {
                        tally.wrong += 1;
                        Some(format!("{outcome:?}"))
                    }
                }
            }
            Err(failure) => {
                match failure {
                    NoOutcome::Exit => tally.exits += 1,
                    NoOutcome::Silence => tally.late += 1,
                }
                self.function = start(&self.url);
                Some(format!("{failure:?}"))
            }
        };
        self.complaints.extend(
            complaint.map(|complaint| format!("{} within {within:?}: {complaint}", request.name)),
        );
        false
    }

    /// Stops what works for the function once it waits for a lock; returns how many.
    fn stop_at_work(&self, stop: &'static str, again: bool) -> thread::JoinHandle<usize> {
        let name = self.database.name.clone();
        let (locked, is_locked) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            block_on(async {
                let database = Database { name, cluster: cluster() };
                let (mut holder, mut superuser) =
                    (database.superuser().await, database.superuser().await);
                sqlx::raw_sql("BEGIN; LOCK local_media_repository")
                    .execute(&mut holder)
                    .await
                    .unwrap();
                locked.send(()).unwrap();
                let stop = format!(
                    "SELECT {stop}(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                     AND usename = 'media_usage' AND datname = current_database()"
                );
                let patience = Instant::now() + Duration::from_secs(1);
                let mut stopped = 0;
                while Instant::now() < patience && (again || stopped == 0) {
                    let rows = sqlx::query(&stop).fetch_all(&mut superuser).await.unwrap();
                    stopped += rows.len();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                stopped
            })
        });
        is_locked.recv().unwrap();
        thread
    }
}

fn start(url: &str) -> Function {
    Function::start(&[("DATABASE_URL", url), ("STATEMENT_TIMEOUT_MS", STATEMENT_TIMEOUT_MS)])
}

/// Tokens of nobody, and of a user who is no admin.
const REFUSED: [&str; 2] = ["syt_nosuch", "syt_plain_user"];

/// The pages of walks, with the answers that a function gives that reads nothing ahead.
fn walks(url: &str) -> Vec<Request> {
    let function = Function::start(&[("DATABASE_URL", url), ("READ_AHEAD_SECONDS", "0")]);
    let mut requests = Vec::new();
    for query in ["order_by=user_id&limit=4", "order_by=media_length&dir=b&limit=3"] {
        let mut from = Some(0);
        while let Some(token) = from {
            let name = format!("{query}&from={token}");
            let event = Gateway::HttpApi.event(&cases::request(Some(&name))).unwrap().to_string();
            let answer = Gateway::HttpApi.answer(&function.invoke(event.as_bytes()).unwrap());
            assert_eq!(answer.status, 200, "{answer:?}");
            let page: Value = serde_json::from_str(&answer.body).unwrap();
            from = page["next_token"].as_i64();
            requests.push(Request { name, event, status: 200, body: answer.body });
        }
    }
    assert!(requests.len() > 30, "{}", requests.len());
    function.stop();
    requests
}

/// The recorded requests of an admin, and some of others, with the answers that the function gives
/// while nothing is broken.
fn recorded(function: &Function) -> Vec<Request> {
    const TOKEN: &str = "Bearer syt_admin_ok";
    let of_an_admin = |case: &Case| {
        case.method == "GET"
            && case.expect.as_ref().is_some_and(|expect| expect.status == 200)
            && case.headers.iter().any(|(_, value)| value == TOKEN)
    };
    let pages: Vec<_> = cases().into_iter().filter(of_an_admin).collect();
    assert!(pages.len() > 150, "{}", pages.len());
    let refused = REFUSED.map(|token| {
        let mut case = pages[0].clone();
        token.clone_into(&mut case.name);
        case.headers = vec![("Authorization".to_owned(), format!("Bearer {token}"))];
        case.expect = None;
        case
    });
    let mut requests = Vec::new();
    for case in pages.into_iter().chain(refused) {
        let Ok(event) = Gateway::HttpApi.event(&case) else { continue };
        let event = event.to_string();
        let answer = Gateway::HttpApi.answer(&function.invoke(event.as_bytes()).unwrap());
        if case.expect.is_some() {
            assert_eq!(case.complaint(&answer), None);
        } else {
            assert!(matches!(answer.status, 401 | 403), "{answer:?}");
        }
        let status = answer.status.into();
        requests.push(Request { name: case.name, event, status, body: answer.body });
    }
    requests
}

enum Verdict {
    Right,
    Failed,
    Unavailable,
    Timeout,
    /// What makes an admin UI throw a good token away.
    LoggedOut,
    Wrong,
}

fn judge(request: &Request, outcome: &Outcome) -> Verdict {
    let Ok(response) = outcome else { return Verdict::Wrong };
    let status = response["statusCode"].as_u64().unwrap_or_default();
    let body = response["body"].as_str().unwrap_or_default();
    let headers = &response["headers"];
    let has_cors = headers["access-control-allow-origin"] == "*";
    let error: Value = serde_json::from_str(body).unwrap_or_default();
    let is_matrix_error = has_cors && error["errcode"] == "M_UNKNOWN" && error["error"].is_string();
    match status {
        _ if status == request.status && body == request.body && has_cors => Verdict::Right,
        500 if is_matrix_error => Verdict::Failed,
        503 if is_matrix_error && headers["retry-after"].is_string() => Verdict::Unavailable,
        504 if is_matrix_error => Verdict::Timeout,
        401 | 403 if request.status == 200 => Verdict::LoggedOut,
        _ => Verdict::Wrong,
    }
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

#[test]
fn whatever_breaks_the_answer_is_right_or_honest_and_in_time() {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = variable("SOAK_SEED").unwrap_or_else(clock);
    let faults = variable("SOAK_FAULTS").unwrap_or(48);
    let functions = variable("SOAK_FUNCTIONS").unwrap_or(6);
    let only = variable("SOAK_ONLY");
    println!("SOAK_SEED={seed} SOAK_FAULTS={faults} SOAK_FUNCTIONS={functions}");
    let start = Instant::now();
    // A fault depends on its number only, and not on what came of others.
    let random_of = move |fault| Random(Random(seed).next() ^ fault);
    let threads: Vec<_> = (0..functions)
        .map(|number| {
            thread::spawn(move || {
                let mut soak = Soak::new(number);
                for fault in (number..faults).step_by(usize::try_from(functions).unwrap()) {
                    if only.is_some_and(|only| only != fault) {
                        continue;
                    }
                    let mut random = random_of(fault);
                    let trouble = Trouble::random(&mut random);
                    let tally = soak.suffer(trouble, &mut random);
                    let name = trouble.to_string();
                    soak.account(&name, &format!("fault {fault}, {trouble:?}"), &tally);
                }
                soak.end()
            })
        })
        .collect();
    let mut reports: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let crashes = variable("SOAK_CRASHES").unwrap_or(0);
    if crashes > 0 {
        let mut soak = Soak::new(0);
        for crash in 0..crashes {
            let tally = soak.crash(&mut random_of(faults + crash));
            soak.account("server crashed and restarted", &format!("crash {crash}"), &tally);
        }
        reports.push(soak.end());
    }
    let mut tallies = BTreeMap::<String, Tally>::new();
    for (name, tally) in reports.iter().flat_map(|(tallies, _)| tallies) {
        *tallies.entry(name.clone()).or_default() += tally;
    }
    let complaints: Vec<_> = reports.into_iter().flat_map(|(_, complaints)| complaints).collect();
    let mut all = Tally::default();
    println!(
        "{:<54} {:>6} {:>6} {:>8} {:>6} {:>5} {:>5} {:>5} {:>6} {:>8} {:>5} {:>6} {:>8}",
        "",
        "faults",
        "met",
        "requests",
        "right",
        "500",
        "503",
        "504",
        "wrong",
        "401, 403",
        "late",
        "exits",
        "recovery"
    );
    for (name, tally) in &tallies {
        println!("{}", tally.row(name));
        all += tally;
    }
    println!("{}", all.row("all"));
    println!("{} s", start.elapsed().as_secs());
    assert!(all.is_good(), "SOAK_SEED={seed}:\n{}", complaints.join("\n"));
}
