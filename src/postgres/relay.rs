//! What stands between sqlx and a server. sqlx reserves the memory that a message announces before
//! it arrives. If there is not so much, the process ends, and no `catch_unwind` helps. Any server on a
//! wrong port is enough: SSH's greeting announces 1.4 GB. And while messages come without an end, sqlx
//! reads them without a pause in which its login could be dropped.
//!
//! TLS ends here, because sqlx would read from the server itself otherwise.

use std::{
    io,
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter, ReadHalf, split},
    net::{TcpListener, TcpStream, tcp::WriteHalf},
    sync::oneshot,
    task::JoinHandle,
};

use super::tls::{Stream, secured};

/// How much a server may say before the client's next word, in bytes: 60,000 users whose names have
/// a kB each.
const LONGEST_ANSWER: u64 = 64 << 20;

/// How long one of its messages may be, in bytes. A row is in memory several times.
const LONGEST_MESSAGE: u32 = 16 << 20;

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
    let (mut from_client, to_client) = client.split();
    let (from_server, mut to_server) = split(server);
    let said = AtomicU64::new(0);
    let questions = async {
        let mut buffer = Vec::with_capacity(8192);
        while from_client.read_buf(&mut buffer).await? > 0 {
            said.store(0, Relaxed);
            to_server.write_all(&buffer).await?;
            to_server.flush().await?;
            buffer.clear();
        }
        Ok(())
    };
    tokio::select! {
        end = questions => end,
        end = answers(BufReader::new(from_server), BufWriter::new(to_client), &said) => end,
    }
}

/// Passes on a server's messages. Each is a type, the length of the rest, and the rest (PostgreSQL,
/// "Message Formats").
async fn answers(
    mut from: BufReader<ReadHalf<Box<dyn Stream>>>,
    mut to: BufWriter<WriteHalf<'_>>,
    said: &AtomicU64,
) -> io::Result<()> {
    loop {
        let (kind, length) = (from.read_u8().await?, from.read_u32().await?);
        let said = said.fetch_add(1 + u64::from(length), Relaxed) + u64::from(length);
        if said > LONGEST_ANSWER || length > LONGEST_MESSAGE {
            tracing::warn!("the server's answer is longer than any that is asked for");
            to.flush().await?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        to.write_u8(kind).await?;
        to.write_u32(length).await?;
        let mut rest = (length as usize).saturating_sub(4);
        while rest > 0 {
            let bytes = from.fill_buf().await?;
            let length = bytes.len().min(rest);
            if length == 0 {
                return to.flush().await;
            }
            to.write_all(&bytes[..length]).await?;
            from.consume(length);
            rest -= length;
        }
        // The next one may be long in coming.
        if from.buffer().len() < 5 {
            to.flush().await?;
        }
    }
}
