//! What stands between sqlx and a server. sqlx reserves the memory that a message announces before
//! it arrives. If there is not so much, the process ends, and no `catch_unwind` helps. Any server on a
//! wrong port is enough: SSH's greeting announces 1.4 GB. And while messages come without an end, sqlx
//! reads them without a pause in which its login could be dropped.
//!
//! TLS ends here, because sqlx would read from the server itself otherwise.

use std::{
    future::ready,
    io,
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use futures_util::{StreamExt, TryStreamExt};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::{
    io::split,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_util::{
    bytes::{Bytes, BytesMut},
    codec::{BytesCodec, Decoder, FramedRead, FramedWrite},
    io::ReaderStream,
};

use super::tls::{Stream, secured};

/// How much a server may say before the client's next word, in bytes: 60,000 users whose names have
/// a kB each.
const LONGEST_ANSWER: usize = 64 << 20;

/// How long one of its messages may be, in bytes. A row is in memory several times.
const LONGEST_MESSAGE: usize = 16 << 20;

/// Ends after the last word of either side was passed on.
pub(super) type Relay = JoinHandle<io::Result<()>>;

/// Leads a TCP connection through a relay, which ends it at an answer that is too long, and when the
/// sender of `logged_in` is dropped. A Unix socket is this machine's own. `authorities` are the PEM
/// text of those whose certificates are trusted beside those of the public web.
///
/// # Errors
///
/// The server cannot be reached, or not by TLS as the `sslmode` wants it.
pub(super) async fn relayed(
    options: PgConnectOptions,
    authorities: &[u8],
    logged_in: oneshot::Receiver<()>,
) -> Result<(PgConnectOptions, Relay), sqlx::Error> {
    if options.get_socket().is_some() || options.get_host().starts_with('/') {
        return Ok((options.ssl_mode(PgSslMode::Disable), tokio::spawn(async { Ok(()) })));
    }
    let server = TcpStream::connect((options.get_host(), options.get_port())).await?;
    server.set_nodelay(true)?;
    let server = secured(server, &options, authorities).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let relay = tokio::spawn(async move {
        tokio::select! {
            end = relay(listener, server) => end,
            Err(_) = logged_in => Ok(()),
        }
    });
    Ok((options.host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable), relay))
}

/// Passes on what both sides say, until one of them ends.
async fn relay(listener: TcpListener, server: Box<dyn Stream>) -> io::Result<()> {
    let (mut client, _) = listener.accept().await?;
    drop(listener);
    client.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = split(server);
    let said = AtomicUsize::new(0);
    let questions = ReaderStream::new(from_client).inspect_ok(|_| said.store(0, Relaxed));
    let answers = FramedRead::new(from_server, Messages { said: &said });
    // Whatever ends them, what came before is passed on.
    let answers = answers.take_while(|message| ready(message.is_ok()));
    tokio::select! {
        end = questions.forward(FramedWrite::new(to_server, BytesCodec::new())) => end,
        end = answers.forward(FramedWrite::new(to_client, BytesCodec::new())) => end,
    }
}

/// Takes a server's messages apart. Each is a type, the length of the rest, and the rest (PostgreSQL,
/// "Message Formats").
struct Messages<'a> {
    /// How much the server has said since the client's latest word, in bytes.
    said: &'a AtomicUsize,
}

impl Decoder for Messages<'_> {
    type Item = Bytes;
    type Error = io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<Bytes>> {
        let Some([_, length @ ..]) = from.first_chunk::<5>() else { return Ok(None) };
        let length = (u32::from_be_bytes(*length) as usize).saturating_add(1);
        if length > LONGEST_MESSAGE || self.said.load(Relaxed) + length > LONGEST_ANSWER {
            tracing::warn!("the server's answer is longer than any that is asked for");
            return Err(io::ErrorKind::InvalidData.into());
        }
        if from.len() < length {
            return Ok(None);
        }
        self.said.fetch_add(length, Relaxed);
        Ok(Some(from.split_to(length).freeze()))
    }
}
