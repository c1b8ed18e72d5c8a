//! The release binary behind a Lambda Runtime API of our own (AWS Lambda Developer Guide, "Using
//! the Lambda runtime API"), which checks what it is sent.

use std::{
    io::Read,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, body::Incoming, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, sync::Mutex};

use super::{block_on, project};

/// What came of an invocation: the function's response, or the error that it reported.
pub type Outcome = Result<Value, Value>;

/// A running execution environment.
pub struct Function {
    process: Child,
    events: tokio::sync::mpsc::UnboundedSender<Bytes>,
    outcomes: mpsc::Receiver<Result<Bytes, Bytes>>,
    output: Option<JoinHandle<String>>,
}

impl Function {
    /// Starts the release binary with these variables and no others.
    pub fn start(variables: &[(&str, &str)]) -> Self {
        let (events, to_runtime) = tokio::sync::mpsc::unbounded_channel();
        let (from_runtime, outcomes) = mpsc::channel();
        let api = runtime_api(to_runtime, from_runtime);
        let mut process = Command::new(release_binary())
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
        Self { process, events, outcomes, output: Some(output) }
    }

    /// Sends one event and waits for what comes of it.
    pub fn invoke(&self, event: &[u8]) -> Outcome {
        self.timed(event).1
    }

    /// The same, and how long it took.
    pub fn timed(&self, event: &[u8]) -> (Duration, Outcome) {
        let event = Bytes::copy_from_slice(event);
        let start = Instant::now();
        self.events.send(event).unwrap();
        let outcome = self.outcomes.recv().unwrap();
        let time = start.elapsed();
        let json =
            |body: Bytes| serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}"));
        (time, outcome.map(json).map_err(json))
    }

    /// The most memory that the process has had resident so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Ends the process and returns all that it wrote to its standard output and error.
    pub fn stop(mut self) -> String {
        assert_eq!(self.process.try_wait().unwrap(), None, "the process ended by itself");
        self.process.kill().unwrap();
        self.output.take().unwrap().join().unwrap()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The binary as it is deployed, built if need be.
pub fn release_binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let build = Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--quiet"])
            .current_dir(project())
            // `cargo test` describes this package to its tests. Build scripts of dependencies watch
            // some of these variables, and would run again for them.
            .env_clear()
            .envs(std::env::vars().filter(|(name, _)| {
                !name.starts_with("CARGO_PKG_") && !name.starts_with("CARGO_MANIFEST")
            }))
            .status()
            .unwrap();
        assert!(build.success());
        // Beside the folder of this profile's binary.
        let this_profile = PathBuf::from(env!("CARGO_BIN_EXE_synapse-media-usage"));
        let target = this_profile.parent().unwrap().parent().unwrap();
        target.join("release").join(this_profile.file_name().unwrap())
    })
}

/// What the Runtime API shares between its connections.
struct State {
    events: Mutex<tokio::sync::mpsc::UnboundedReceiver<Bytes>>,
    outcomes: mpsc::Sender<Result<Bytes, Bytes>>,
    /// The number of the invocation under way; the next one is asked for only after its end.
    under_way: Mutex<Option<u64>>,
    count: std::sync::atomic::AtomicU64,
}

/// Serves a Runtime API on a free port of loopback, and returns its address.
fn runtime_api(
    events: tokio::sync::mpsc::UnboundedReceiver<Bytes>,
    outcomes: mpsc::Sender<Result<Bytes, Bytes>>,
) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let state = Arc::new(State {
        events: Mutex::new(events),
        outcomes,
        under_way: Mutex::new(None),
        count: 0.into(),
    });
    thread::spawn(move || {
        block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            // One connection after the other: the runtime has one worker, and its connection
            // ends with its process.
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let service = service_fn(|request| answer(Arc::clone(&state), request));
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                if state.events.lock().await.is_closed() {
                    break;
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
    let mut response = Response::new(Full::new(Bytes::new()));
    let path = path.strip_prefix("/2018-06-01/runtime/").unwrap_or_else(|| panic!("{path}"));
    if (parts.method.clone(), path) == (Method::GET, "invocation/next") {
        assert!(
            state.under_way.lock().await.is_none(),
            "asked for the next event before answering"
        );
        let Some(event) = state.events.lock().await.recv().await else {
            *response.status_mut() = StatusCode::GONE;
            return Ok(response);
        };
        let number = state.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        *state.under_way.lock().await = Some(number);
        let headers = response.headers_mut();
        headers.insert("lambda-runtime-aws-request-id", id(number).parse().unwrap());
        headers.insert("lambda-runtime-deadline-ms", "32503680000000".parse().unwrap());
        let arn = "arn:aws:lambda:eu-central-1:123456789012:function:synapse-media-usage";
        headers.insert("lambda-runtime-invoked-function-arn", arn.parse().unwrap());
        headers.insert(
            "lambda-runtime-trace-id",
            "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0".parse().unwrap(),
        );
        *response.body_mut() = Full::new(event);
        return Ok(response);
    }
    let number = state
        .under_way
        .lock()
        .await
        .take()
        .unwrap_or_else(|| panic!("{path} without an invocation"));
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
    state.outcomes.send(outcome).unwrap();
    *response.status_mut() = StatusCode::ACCEPTED;
    *response.body_mut() = Full::new(Bytes::from_static(b"{\"status\":\"OK\"}"));
    Ok(response)
}

fn id(number: u64) -> String {
    format!("8476a536-e9f4-11e8-9739-{number:012}")
}
