//! Bytes both ways between a client and a server, with half-closes and resets carried on.

use std::io;
use std::pin::pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bytes moved at once: one full TLS record, nearly.
const CHUNK: usize = 16 * 1024;

/// How long a client may keep its side open once the server has ended.
const AFTER_THE_SERVER: Duration = Duration::from_secs(30);

/// Moves bytes until both sides have ended. What the server sends is shown to `watch` before it
/// goes on, so that nothing that a client can act on is unknown when it arrives.
pub(super) async fn run(
    client: &mut TcpStream,
    server: &mut TcpStream,
    watch: impl FnMut(&[u8]),
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let moved = {
        let mut up = pin!(pump(&mut from_client, &mut to_server, |_| ()));
        let mut down = pin!(pump(&mut from_server, &mut to_client, watch));
        tokio::select! {
            moved = &mut up => match moved {
                // A client may end its side and wait for its answer as long as it likes.
                Ok(()) => down.await,
                // A server that takes no more may have answered already, and that still passes.
                Err(Cut::Sink(_)) => {
                    let _ = down.await;
                    return Ok(());
                }
                cut => cut,
            },
            moved = &mut down => match moved {
                Ok(()) => timeout(AFTER_THE_SERVER, up).await.unwrap_or(Ok(())),
                cut => cut,
            },
        }
    };
    let Err(Cut::Source(error) | Cut::Sink(error)) = moved else {
        return Ok(());
    };
    // One side was cut off: so is the other, and it is not made to look like an orderly end.
    for side in [client, server] {
        let _ = SockRef::from(&*side).set_linger(Some(Duration::ZERO));
    }
    Err(error)
}

/// Makes the kernel ask now and then whether a peer is still there: one that vanished would hold
/// its connection for ever.
pub(super) fn keep_alive(io: &TcpStream) {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    // A connection without it works as well, but for the one case.
    let _ = SockRef::from(io).set_tcp_keepalive(&probes);
}

/// Which side ended a direction in the middle.
enum Cut {
    Source(io::Error),
    Sink(io::Error),
}

/// Moves bytes one way; the end is passed on as an end.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut show: impl FnMut(&[u8]),
) -> Result<(), Cut> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = from.read(&mut chunk).await.map_err(Cut::Source)?;
        if len == 0 {
            return to.shutdown().await.map_err(Cut::Sink);
        }
        show(&chunk[..len]);
        to.write_all(&chunk[..len]).await.map_err(Cut::Sink)?;
    }
}
