//! The release binary behind a Lambda Runtime API and Extensions API of our own (AWS Lambda
//! Developer Guide, "Using the Lambda runtime API" and "Using the Lambda Extensions API"), which
//! check what they are sent.

use std::{
    cell::RefCell,
    convert::Infallible,
    fs,
    future::pending,
    io::Read,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::HeaderValue,
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex, oneshot},
    task::JoinSet,
};

use super::{block_on, cases::request, gateway::Gateway, outer_variables, project};

/// What came of an invocation: the function's response, or the error that it reported.
pub type Outcome = Result<Value, Value>;

/// Why nothing came of an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoOutcome {
    /// The process ended.
    Exit,
    /// The process was silent until long after the deadline.
    Silence,
}

/// How long a real function has for an invocation, see template.yaml.
pub const TIMEOUT: Duration = Duration::from_secs(28);

/// A running execution environment.
pub struct Function {
    process: RefCell<Child>,
    events: tokio::sync::mpsc::UnboundedSender<Event>,
    outcomes: mpsc::Receiver<(Duration, Result<Bytes, Bytes>)>,
    output: Option<JoinHandle<String>>,
    state: Arc<State>,
    /// The APIs end when this is dropped.
    _end: oneshot::Sender<Infallible>,
}

/// An event, the time that the function has for it, and its tracing header.
struct Event {
    payload: Bytes,
    within: Duration,
    trace: HeaderValue,
}

/// That of an invocation which X-Ray does not keep.
const NOT_SAMPLED: &str = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0";

impl Function {
    /// Starts the release binary with these variables and no others.
    pub fn start(variables: &[(&str, &str)]) -> Self {
        Self::start_by(&[], variables)
    }

    /// The same, by a command that ends up as the binary.
    pub fn start_by(command: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_where(true, command, variables)
    }

    /// The same, where the Extensions API registers no extension: ten are the most (Lambda quotas).
    pub fn start_without_extensions(variables: &[(&str, &str)]) -> Self {
        Self::start_where(false, &[], variables)
    }

    fn start_where(extensions: bool, command: &[&str], variables: &[(&str, &str)]) -> Self {
        let (events, to_runtime) = tokio::sync::mpsc::unbounded_channel();
        let (from_runtime, outcomes) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let state = Arc::new(State {
            events: Mutex::new(to_runtime),
            outcomes: from_runtime,
            under_way: Mutex::new(None),
            count: 0.into(),
            waits: false.into(),
            extensions,
        });
        let api = serve(Arc::clone(&state), ended);
        let binary = release_binary().to_str().unwrap();
        let words = [command, &[binary]].concat();
        let mut process = Command::new(words[0])
            .args(&words[1..])
            .env_clear()
            .envs([
                ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
                ("AWS_LAMBDA_FUNCTION_NAME", "synapse-media-usage"),
                ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
                ("AWS_LAMBDA_RUNTIME_API", &api),
            ])
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdout, mut stderr) =
            (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        // Both are read at once, so that a full pipe never stops the process.
        let stderr = thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).unwrap();
            text
        });
        let output = thread::spawn(move || {
            let mut text = Vec::new();
            stdout.read_to_end(&mut text).unwrap();
            text.extend(stderr.join().unwrap());
            String::from_utf8_lossy(&text).into_owned()
        });
        let process = RefCell::new(process);
        Self { process, events, outcomes, output: Some(output), state, _end: end }
    }

    /// Sends one event and waits for what comes of it.
    pub fn invoke(&self, event: &[u8]) -> Outcome {
        self.timed(event).1
    }

    /// The same, with a deadline of one's own.
    pub fn invoke_within(&self, event: &[u8], within: Duration) -> Outcome {
        self.answer_within(event, within).unwrap_or_else(|failure| panic!("{failure:?}")).1
    }

    /// The same, with a tracing header of one's own.
    pub fn invoke_traced(&self, event: &[u8], trace: &str) -> Outcome {
        let (payload, trace) = (Bytes::copy_from_slice(event), trace.parse().unwrap());
        let answer = self.answer(Event { payload, within: TIMEOUT, trace });
        answer.unwrap_or_else(|failure| panic!("{failure:?}")).1
    }

    /// Sends one event, and tells how long it took until its response arrived.
    pub fn timed(&self, event: &[u8]) -> (Duration, Outcome) {
        self.answer_within(event, TIMEOUT).unwrap_or_else(|failure| panic!("{failure:?}"))
    }

    /// The same, with a deadline of one's own, and without taking an outcome for granted. After
    /// [`NoOutcome`] this function is of no more use.
    pub fn answer_within(
        &self,
        event: &[u8],
        within: Duration,
    ) -> Result<(Duration, Outcome), NoOutcome> {
        let trace = HeaderValue::from_static(NOT_SAMPLED);
        self.answer(Event { payload: Bytes::copy_from_slice(event), within, trace })
    }

    fn answer(&self, event: Event) -> Result<(Duration, Outcome), NoOutcome> {
        let within = event.within;
        self.events.send(event).unwrap_or_else(|_| panic!("the Runtime API has ended"));
        // Longer than an init that cannot connect.
        let patience = Instant::now() + within + Duration::from_secs(10);
        let (time, outcome) = loop {
            match self.outcomes.recv_timeout(Duration::from_millis(100)) {
                Ok(outcome) => break outcome,
                Err(RecvTimeoutError::Disconnected) => panic!("the Runtime API has ended"),
                Err(RecvTimeoutError::Timeout) if self.has_exited() => return Err(NoOutcome::Exit),
                Err(RecvTimeoutError::Timeout) if Instant::now() > patience => {
                    return Err(NoOutcome::Silence);
                }
                Err(RecvTimeoutError::Timeout) => (),
            }
        };
        let json =
            |body: Bytes| serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}"));
        Ok((time, outcome.map(json).map_err(json)))
    }

    /// Whether the process has ended by itself.
    pub fn has_exited(&self) -> bool {
        self.process.borrow_mut().try_wait().unwrap().is_some()
    }

    /// Stops the process as Lambda freezes an execution environment: once it has asked for the
    /// next event.
    pub fn pause(&self) {
        while !self.state.waits.load(Ordering::SeqCst) {
            assert!(!self.has_exited(), "the process ended by itself");
            thread::sleep(Duration::from_millis(1));
        }
        signal("STOP", self.process.borrow().id());
        // The third field: whether it runs, sleeps, or is stopped.
        let stat = format!("/proc/{}/stat", self.process.borrow().id());
        while !fs::read_to_string(&stat).unwrap().contains(") T ") {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets a stopped process go on.
    pub fn resume(&self) {
        signal("CONT", self.process.borrow().id());
    }

    /// Asks the process to end, as Lambda does with an execution environment that it removes, and
    /// returns all that it wrote, and how it ended.
    pub fn terminate(mut self) -> (String, ExitStatus) {
        assert!(!self.has_exited(), "the process ended by itself");
        signal("TERM", self.process.borrow().id());
        let patience = Instant::now() + Duration::from_secs(10);
        let status = loop {
            if let Some(status) = self.process.get_mut().try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < patience, "the process does not end");
            thread::sleep(Duration::from_millis(1));
        };
        (self.output.take().unwrap().join().unwrap(), status)
    }

    /// How many threads the process has.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.process.borrow().id())).unwrap().count()
    }

    /// The most memory that the process has had resident so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.process.borrow().id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Ends the process and returns all that it wrote to its standard output and error.
    pub fn stop(mut self) -> String {
        assert!(!self.has_exited(), "the process ended by itself");
        self.process.get_mut().kill().unwrap();
        self.output.take().unwrap().join().unwrap()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.process.get_mut().kill();
        let _ = self.process.get_mut().wait();
    }
}

/// Status and body of a first page.
pub fn ask(function: &Function) -> (u64, Value) {
    let event = Gateway::HttpApi.event(&request(Some("limit=1"))).unwrap();
    let response = function.invoke(event.to_string().as_bytes()).unwrap();
    let body = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
    (response["statusCode"].as_u64().unwrap(), body)
}

pub fn start(url: &str) -> Function {
    Function::start(&[("DATABASE_URL", url)])
}

/// Sends a signal to a process.
pub fn signal(name: &str, process: u32) {
    // Every shell has `kill`, while not every system has a program of that name.
    let kill =
        Command::new("sh").args(["-c", "kill -s $0 $1", name, &process.to_string()]).status();
    assert!(kill.unwrap().success());
}

/// The binary as it is deployed: the one that `make` names, which comes from `sam build`; without
/// `make`, one that is built here if need be.
pub fn release_binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(binary) = std::env::var_os("FUNCTION_BINARY") {
            return binary.into();
        }
        let build = Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--quiet"])
            .current_dir(project())
            .env_clear()
            .envs(outer_variables())
            .status()
            .unwrap();
        assert!(build.success());
        // Beside the folder of this profile's binary.
        let this_profile = PathBuf::from(env!("CARGO_BIN_EXE_synapse-media-usage"));
        let target = this_profile.parent().unwrap().parent().unwrap();
        target.join("release").join(this_profile.file_name().unwrap())
    })
}

/// What the APIs share between their connections.
struct State {
    events: Mutex<tokio::sync::mpsc::UnboundedReceiver<Event>>,
    outcomes: mpsc::Sender<(Duration, Result<Bytes, Bytes>)>,
    /// The number and the start of the invocation under way; the next one is asked for only after
    /// its end.
    under_way: Mutex<Option<(u64, Instant)>>,
    count: std::sync::atomic::AtomicU64,
    /// Whether the function has asked for an event that is not there yet.
    waits: AtomicBool,
    /// Whether extensions are registered.
    extensions: bool,
}

/// Serves both APIs on a free port of loopback, and returns its address.
fn serve(state: Arc<State>, mut ended: oneshot::Receiver<Infallible>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            // The runtime has one connection, and an extension has one of its own.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    _ = &mut ended => break,
                    // What went wrong in a connection goes wrong here, and then in the test.
                    Some(connection) = connections.join_next() => connection.unwrap(),
                    stream = listener.accept() => {
                        let stream = stream.unwrap().0;
                        stream.set_nodelay(true).unwrap();
                        let state = Arc::clone(&state);
                        connections.spawn(async move {
                            let service = service_fn(|request| answer(Arc::clone(&state), request));
                            let _ = http1::Builder::new()
                                .serve_connection(TokioIo::new(stream), service)
                                .await;
                        });
                    }
                }
            }
        });
    });
    address
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = body.collect().await?.to_bytes();
    if let Some(path) = path.strip_prefix("/2020-01-01/extension/") {
        if !state.extensions {
            let mut response = Response::new(Full::new(Bytes::from_static(
                b"{\"errorType\":\"Extension.TooMany\",\"errorMessage\":\"too many\"}",
            )));
            *response.status_mut() = StatusCode::FORBIDDEN;
            return Ok(response);
        }
        return Ok(extension(&parts, path, &body).await);
    }
    let mut response = Response::new(Full::new(Bytes::new()));
    let path = path.strip_prefix("/2018-06-01/runtime/").unwrap_or_else(|| panic!("{path}"));
    if (parts.method.clone(), path) == (Method::GET, "invocation/next") {
        assert!(
            state.under_way.lock().await.is_none(),
            "asked for the next event before answering"
        );
        state.waits.store(true, Ordering::SeqCst);
        let Some(event) = state.events.lock().await.recv().await else {
            *response.status_mut() = StatusCode::GONE;
            return Ok(response);
        };
        state.waits.store(false, Ordering::SeqCst);
        let number = state.count.fetch_add(1, Ordering::Relaxed);
        *state.under_way.lock().await = Some((number, Instant::now()));
        let deadline = (SystemTime::now() + event.within).duration_since(UNIX_EPOCH).unwrap();
        let headers = response.headers_mut();
        headers.insert("lambda-runtime-aws-request-id", id(number).parse().unwrap());
        headers.insert(
            "lambda-runtime-deadline-ms",
            deadline.as_millis().to_string().parse().unwrap(),
        );
        let arn = "arn:aws:lambda:eu-central-1:123456789012:function:synapse-media-usage";
        headers.insert("lambda-runtime-invoked-function-arn", arn.parse().unwrap());
        headers.insert("lambda-runtime-trace-id", event.trace);
        *response.body_mut() = Full::new(event.payload);
        return Ok(response);
    }
    let (number, start) = state
        .under_way
        .lock()
        .await
        .take()
        .unwrap_or_else(|| panic!("{path} without an invocation"));
    let time = start.elapsed();
    let prefix = format!("invocation/{}/", id(number));
    // 6 MB, and what AWS allows beyond it (Lambda quotas).
    assert!(body.len() <= 6 * 1024 * 1024 + 100, "a response of {} bytes", body.len());
    let outcome = match (parts.method, path.strip_prefix(&prefix)) {
        (Method::POST, Some("response")) => Ok(body),
        (Method::POST, Some("error")) => {
            assert!(parts.headers.contains_key("lambda-runtime-function-error-type"));
            Err(body)
        }
        (method, _) => panic!("{method} {path}"),
    };
    // A test that has given up waiting is none that this harms.
    let _ = state.outcomes.send((time, outcome));
    *response.status_mut() = StatusCode::ACCEPTED;
    *response.body_mut() = Full::new(Bytes::from_static(b"{\"status\":\"OK\"}"));
    Ok(response)
}

/// What an extension gets that has subscribed to no events.
async fn extension(parts: &Parts, path: &str, body: &[u8]) -> Response<Full<Bytes>> {
    const IDENTIFIER: &str = "lambda-extension-identifier";
    const IT: &str = "3d2b7a4c-0000-4000-8000-000000000001";
    match (&parts.method, path) {
        (&Method::POST, "register") => {
            assert!(parts.headers.contains_key("lambda-extension-name"));
            let subscription: Value = serde_json::from_slice(body).unwrap();
            assert_eq!(subscription, json!({ "events": [] }));
            let function = json!({
                "functionName": "synapse-media-usage",
                "functionVersion": "$LATEST",
                "handler": "bootstrap",
            });
            let mut response = Response::new(Full::new(function.to_string().into()));
            response.headers_mut().insert(IDENTIFIER, HeaderValue::from_static(IT));
            response
        }
        (&Method::GET, "event/next") => {
            assert_eq!(parts.headers[IDENTIFIER], IT);
            pending().await
        }
        (method, _) => panic!("{method} {path}"),
    }
}

fn id(number: u64) -> String {
    format!("8476a536-e9f4-11e8-9739-{number:012}")
}
