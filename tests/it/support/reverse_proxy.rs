//! The servers that `docs/` has configurations of, between a homeserver and an API of API Gateway.

use std::{
    fs, iter,
    net::{Ipv4Addr, UdpSocket},
    process::{Command, Stdio},
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use synapse_media_usage::service::PATH;
use tokio::net::TcpSocket;

use super::{
    block_on,
    database::Database,
    function::Function,
    http::{Certificate, Client, Message, Tls},
    http_api::{self, HttpApi},
    project, read,
    server::{Answer, Server},
    tool,
};

pub const HOMESERVER: &str = "matrix.example.org";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    Nginx,
    Haproxy,
    Caddy,
}

impl Proxy {
    fn tool(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    /// Those that can be had on this machine.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Nginx, Self::Haproxy, Self::Caddy].into_iter().filter(|proxy| {
            let can_be_had = proxy.can_be_had();
            // Of a test that fails, the last line tells with which proxy.
            println!("{proxy:?}{}", if can_be_had { "" } else { " cannot be had on this machine" });
            can_be_had
        })
    }

    /// Whether it is installed, or could be fetched.
    pub fn can_be_had(self) -> bool {
        static CAN: [OnceLock<bool>; 3] = [const { OnceLock::new() }; 3];
        *CAN[self as usize].get_or_init(|| {
            let tool = project().join("tests/tools/reverse-proxy");
            let mut bin = Command::new(tool);
            bin.args(["bin", self.tool()]).stdout(Stdio::null());
            bin.status().unwrap().success()
        })
    }

    fn configuration(self) -> String {
        read(match self {
            Self::Nginx => "docs/nginx.conf",
            Self::Haproxy => "docs/haproxy.cfg",
            Self::Caddy => "docs/Caddyfile",
        })
    }
}

/// What a proxy stands between.
pub struct Surroundings {
    pub tls: Tls,
    pub api: HttpApi,
    homeserver: Server,
    /// The requests that the homeserver was sent.
    asked: Arc<Mutex<Vec<Message>>>,
    name_server: u16,
}

impl Surroundings {
    pub fn new(certificate: Certificate, functions: Vec<Function>) -> Self {
        static TLS: OnceLock<Tls> = OnceLock::new();
        let names = ["localhost", HOMESERVER, http_api::NAME];
        let tls = TLS.get_or_init(|| Tls::for_names(&names)).clone();
        let api = HttpApi::start(&tls, certificate, functions);
        let asked = Arc::<Mutex<Vec<Message>>>::default();
        let requests = Arc::clone(&asked);
        let homeserver = Server::start(move |request| {
            requests.lock().unwrap().push(request.clone());
            let (method, target) = request.method_and_target();
            let body = json!({ "homeserver": format!("{method} {target}") }).to_string();
            Ok(Answer::new(200, body).with("Access-Control-Allow-Origin", "*").into())
        });
        Self { tls, api, homeserver, asked, name_server: serve_names() }
    }

    /// The requests that the homeserver was sent since this was last asked.
    pub fn asked(&self) -> Vec<Message> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Starts a proxy on its configuration with other words for its placeholders, and then what
    /// `change` makes of it.
    pub fn proxy(&self, proxy: Proxy, change: impl Fn(String) -> String) -> Running {
        // Held, so that nobody else gets the port; the proxy may listen on it, because nobody does.
        // Caddy takes the one of UDP too, for HTTP/3.
        let (port, number) = iter::repeat_with(|| {
            let port = TcpSocket::new_v4().unwrap();
            port.set_reuseaddr(true).unwrap();
            port.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let number = port.local_addr().unwrap().port();
            (port, number)
        })
        .find(|(_, number)| UdpSocket::bind((Ipv4Addr::LOCALHOST, *number)).is_ok())
        .unwrap();

        let api = self.api.server.port;
        let homeserver = format!("127.0.0.1:{}", self.homeserver.port);
        let name_server = format!("127.0.0.1:{}", self.name_server);
        let file = |name: &str| self.tls.file(name);
        let words = match proxy {
            Proxy::Nginx => vec![
                ("listen 443 ", format!("listen 127.0.0.1:{number} ")),
                ("/etc/letsencrypt/live/matrix.example.org/fullchain.pem", file("server.pem")),
                ("/etc/letsencrypt/live/matrix.example.org/privkey.pem", file("server.key")),
                ("/etc/ssl/certs/ca-certificates.crt", file("ca.pem")),
                ("resolver 127.0.0.53", format!("resolver {name_server}")),
                ("https://$media_usage$", format!("https://$media_usage:{api}$")),
                ("127.0.0.1:8008", homeserver),
            ],
            Proxy::Haproxy => vec![
                ("bind :443 ", format!("bind 127.0.0.1:{number} ")),
                ("/etc/haproxy/certs/matrix.example.org.pem", file("both.pem")),
                ("/etc/ssl/certs/ca-certificates.crt", file("ca.pem")),
                ("parse-resolv-conf", format!("nameserver test {name_server}")),
                (".amazonaws.com:443 ", format!(".amazonaws.com:{api} ")),
                ("127.0.0.1:8008", homeserver),
            ],
            // It asks the system for names, which knows of none here.
            Proxy::Caddy => vec![
                (
                    "\nmatrix.example.org {",
                    format!(
                        "\n{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n\
                         https://{HOMESERVER}:{number} {{\n\tbind 127.0.0.1\n\ttls {} {}\n",
                        file("server.pem"),
                        file("server.key"),
                    ),
                ),
                (
                    "https://abcdefghij.execute-api.eu-central-1.amazonaws.com {",
                    format!("https://127.0.0.1:{api} {{"),
                ),
                ("127.0.0.1:8008", homeserver),
            ],
        };
        let mut text = proxy.configuration();
        for (placeholder, word) in words {
            assert!(text.contains(placeholder), "{proxy:?} has no {placeholder}");
            text = text.replace(placeholder, &word);
        }
        let configuration = self.tls.file(&format!("{number}.conf"));
        fs::write(&configuration, change(text)).unwrap();
        let arguments = [&configuration, &number.to_string(), &self.tls.file("")];
        let arguments = arguments.map(String::as_str);
        let _: Value = tool("reverse-proxy", &[&[proxy.tool()], &arguments[..]].concat());
        let client = Client::new(&self.tls, HOMESERVER, number);
        Running { client, port: number, _port: port }
    }
}

/// A proxy that runs.
pub struct Running {
    pub client: Client,
    pub port: u16,
    _port: TcpSocket,
}

impl Running {
    /// Waits until it has found the API.
    pub fn ready(self) -> Self {
        let patience = Instant::now() + Duration::from_secs(20);
        while self.client.send("GET", PATH, &[], "").status() == 503 {
            assert!(Instant::now() < patience, "the API is not found");
            thread::sleep(Duration::from_millis(20));
        }
        self
    }
}

/// A proxy that runs and has found the API, whose function has the rows behind the recorded cases.
pub struct Split {
    pub proxy: Proxy,
    pub surroundings: Surroundings,
    pub running: Running,
}

impl Split {
    /// One of each proxy that can be had.
    pub fn of_each_proxy() -> impl Iterator<Item = Self> {
        Proxy::available().map(|proxy| Self::of(proxy, |text| text))
    }

    /// One whose configuration is what `change` makes of it.
    pub fn of(proxy: Proxy, change: impl Fn(String) -> String) -> Self {
        // Nobody writes to it.
        static DATABASE: OnceLock<Database> = OnceLock::new();
        let database = DATABASE.get_or_init(|| block_on(Database::of_conformance("synapse-94")));
        Self::with(database, proxy, change)
    }

    /// The same with the rows of another database.
    pub fn with(database: &Database, proxy: Proxy, change: impl Fn(String) -> String) -> Self {
        Self::with_concurrency(1, database, proxy, change)
    }

    /// The same with so many execution environments of the function.
    pub fn with_concurrency(
        concurrency: usize,
        database: &Database,
        proxy: Proxy,
        change: impl Fn(String) -> String,
    ) -> Self {
        let url = database.url();
        let functions = (0..concurrency).map(|_| Function::start(&[("DATABASE_URL", &url)]));
        let surroundings = Surroundings::new(Certificate::Right, functions.collect());
        let running = surroundings.proxy(proxy, change).ready();
        surroundings.api.events();
        Self { proxy, surroundings, running }
    }

    pub fn get(&self, query: &str, headers: &[(&str, &str)]) -> Message {
        self.running.client.send("GET", &format!("{PATH}?{query}"), headers, "")
    }

    /// The event that the function was sent.
    pub fn event(&self) -> Value {
        let mut events = self.surroundings.api.events();
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }
}

/// The value of the one header without which a browser shows nothing; `None` if it is missing.
pub fn allowed_origin(answer: &Message) -> Option<&str> {
    let values = answer.header("access-control-allow-origin");
    assert!(values.len() <= 1, "{answer:?}");
    values.first().copied()
}

/// A name server that takes every name for this machine.
fn serve_names() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut query = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut query).unwrap();
            // The name, by labels after their lengths, and then its type and class.
            let mut end = 12;
            while query[end] != 0 {
                end += usize::from(query[end]) + 1;
            }
            end += 5;
            assert!(end <= length);
            let is_ipv4 = query[end - 4..end - 2] == [0, 1];
            let mut answer = query[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
            answer.extend(&query[12..end]);
            if is_ipv4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            socket.send_to(&answer, client).unwrap();
        }
    });
    port
}
