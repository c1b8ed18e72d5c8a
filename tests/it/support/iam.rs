//! A database that takes tokens of IAM: what AWS puts before PostgreSQL, as far as a client sees
//! it. The token is asked for as a password in the clear, and the session is a real one.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    thread,
};

use super::database::Database;

/// A port of loopback that lets in whoever shows a token, and remembers the tokens.
pub struct IamDatabase {
    pub port: u16,
    tokens: Arc<Mutex<Vec<String>>>,
}

/// `SSLRequest` (PostgreSQL, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

impl IamDatabase {
    pub fn start(database: &Database) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = format!("{}/.s.PGSQL.{}", database.cluster.socket_dir, database.cluster.port);
        let tokens = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&tokens);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (socket, seen) = (socket.clone(), Arc::clone(&seen));
                thread::spawn(move || serve(client.unwrap(), &socket, &seen));
            }
        });
        Self { port, tokens }
    }

    /// The tokens that were shown, in their order.
    pub fn tokens(&self) -> Vec<String> {
        self.tokens.lock().unwrap().clone()
    }
}

fn serve(mut client: TcpStream, socket: &str, tokens: &Mutex<Vec<String>>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut start = message(&mut client)?;
    if start == SSL_REQUEST {
        client.write_all(b"N")?;
        start = message(&mut client)?;
    }
    // AuthenticationCleartextPassword
    client.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3])?;
    let mut kind = [0];
    client.read_exact(&mut kind)?;
    assert_eq!(kind, *b"p");
    let password = message(&mut client)?;
    let token = password[4..].strip_suffix(b"\0").unwrap();
    tokens.lock().unwrap().push(String::from_utf8(token.to_vec()).unwrap());

    // The same start, to where nobody asks for a password.
    let mut server = UnixStream::connect(socket)?;
    server.write_all(&start)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || io::copy(&mut from_client, &mut to_server));
    io::copy(&mut server, &mut client)?;
    client.shutdown(std::net::Shutdown::Both)
}

/// A message that begins with its length.
fn message(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    message[..4].copy_from_slice(&length);
    client.read_exact(&mut message[4..])?;
    Ok(message)
}
