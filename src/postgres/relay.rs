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
    io::{AsyncRead, AsyncWrite, split},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::{
    codec::{BytesCodec, FramedWrite, LengthDelimitedCodec, LengthDelimitedCodecError},
    io::ReaderStream,
    sync::CancellationToken,
};

use super::tls::secured;

/// How much a server may say before the client's next word, in bytes: 60,000 users whose names have
/// a kB each.
const LONGEST_ANSWER: usize = 64 << 20;

/// How long one of its messages may be, in bytes. A row is in memory several times.
const LONGEST_MESSAGE: usize = 16 << 20;

/// Ends after the last word of either side was passed on.
pub(super) type Relay = JoinHandle<Option<io::Result<()>>>;

/// Leads a TCP connection through a relay, which ends it at an answer that is too long, and when it is
/// `given_up`. A Unix socket is this machine's own. `authorities` are the PEM text of those whose
/// certificates are trusted beside those of the public web.
///
/// # Errors
///
/// The server cannot be reached, or not by TLS as the `sslmode` wants it.
pub(super) async fn relayed(
    options: PgConnectOptions,
    authorities: &[u8],
    given_up: CancellationToken,
) -> Result<(PgConnectOptions, Relay), sqlx::Error> {
    if options.get_socket().is_some() || options.get_host().starts_with('/') {
        return Ok((options.ssl_mode(PgSslMode::Disable), tokio::spawn(async { None })));
    }
    let server = TcpStream::connect((options.get_host(), options.get_port())).await?;
    server.set_nodelay(true)?;
    let server = secured(server, &options, authorities).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let relay = tokio::spawn(given_up.run_until_cancelled_owned(relay(listener, server)));
    Ok((options.host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable), relay))
}

/// Passes on what both sides say, until one of them ends.
async fn relay(listener: TcpListener, server: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (mut client, _) = listener.accept().await?;
    drop(listener);
    client.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = split(server);
    // How much the server has said since the client's latest word, in bytes.
    let said = AtomicUsize::new(0);
    let questions = ReaderStream::new(from_client).inspect_ok(|_| said.store(0, Relaxed));
    // Each is a type, the length of the rest, and the rest (PostgreSQL, "Message Formats"). Nothing
    // is reserved for one that is too long.
    let mut codec = LengthDelimitedCodec::builder();
    codec.length_field_offset(1).length_adjustment(1).num_skip(0);
    let messages = codec.max_frame_length(LONGEST_MESSAGE - 1).new_read(from_server);
    // Whatever ends them, the relay passes on what came before.
    let answers = messages.take_while(|message| {
        let is_too_long = match message {
            Ok(it) => said.fetch_add(it.len(), Relaxed) + it.len() > LONGEST_ANSWER,
            Err(it) => matches!(it.get_ref(), Some(it) if it.is::<LengthDelimitedCodecError>()),
        };
        if is_too_long {
            tracing::warn!("the server's answer is longer than any that is asked for");
        }
        ready(message.is_ok() && !is_too_long)
    });
    tokio::select! {
        end = questions.forward(FramedWrite::new(to_server, BytesCodec::new())) => end,
        end = answers.forward(FramedWrite::new(to_client, BytesCodec::new())) => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// A relay between a client and a server.
    async fn between() -> (TcpStream, DuplexStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, end) = duplex(1 << 16);
        tokio::spawn(relay(listener, end));
        (client, server)
    }

    fn message(kind: u8, length: usize) -> Vec<u8> {
        let mut message = vec![0; length];
        message[0] = kind;
        message[1..5].copy_from_slice(&u32::try_from(length - 1).unwrap().to_be_bytes());
        message
    }

    /// What a client gets of a server's words, which nothing follows.
    async fn passed_on(words: &[u8]) -> Vec<u8> {
        let (mut client, mut server) = between().await;
        let mut got = Vec::new();
        let said = async {
            let _ = server.write_all(words).await;
            drop(server);
        };
        let _ = futures_util::join!(said, client.read_to_end(&mut got));
        got
    }

    #[tokio::test]
    async fn what_came_before_an_end_is_passed_on_and_nothing_of_what_is_too_long() {
        let refusal = message(b'E', 100);
        let longest = message(b'D', LONGEST_MESSAGE);
        assert!(passed_on(&longest).await == longest);
        // So many make the longest answer.
        let most = LONGEST_ANSWER / LONGEST_MESSAGE;
        assert!(passed_on(&longest.repeat(most + 1)).await == longest.repeat(most));
        for rest in [&[][..], b"D\0", &message(b'D', LONGEST_MESSAGE + 1), b"SSH-2.0-OpenSSH"] {
            assert_eq!(passed_on(&[&refusal, rest].concat()).await, refusal);
        }
    }

    #[tokio::test]
    async fn each_word_of_the_client_begins_an_answer() {
        let (mut client, mut server) = between().await;
        let answer = message(b'D', LONGEST_MESSAGE);
        for _ in 0..2 * LONGEST_ANSWER / LONGEST_MESSAGE {
            client.write_all(b"Q").await.unwrap();
            server.read_u8().await.unwrap();
            let mut got = vec![0; answer.len()];
            let read = client.read_exact(&mut got);
            futures_util::try_join!(server.write_all(&answer), read).unwrap();
        }
    }

    #[tokio::test]
    async fn a_login_that_is_given_up_ends_its_relay() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port);
        let given_up = CancellationToken::new();
        let options = options.ssl_mode(PgSslMode::Disable);
        let (options, relay) = relayed(options, &[], given_up.clone()).await.unwrap();
        let _client = TcpStream::connect((options.get_host(), options.get_port())).await.unwrap();
        given_up.cancel();
        let end = tokio::time::timeout(std::time::Duration::from_secs(5), relay).await;
        assert!(end.is_ok(), "it lives on");
    }
}
