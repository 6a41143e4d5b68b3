//! Bytes both ways between a client and a server, with half-closes and resets carried on.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes moved at once: one full TLS record, nearly.
const CHUNK: usize = 16 * 1024;

/// Moves bytes until both sides have ended. What the server sends is shown to `watch` before it
/// goes on, so that nothing that a client can act on is unknown when it arrives.
pub(super) async fn run(
    client: &mut TcpStream,
    server: &mut TcpStream,
    watch: impl FnMut(&[u8]),
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let moved = tokio::try_join!(
        async {
            match pump(&mut from_client, &mut to_server, |_| ()).await {
                // A server that takes no more may have answered already: that still passes.
                Err(Cut::Sink(_)) => Ok(()),
                moved => moved,
            }
        },
        pump(&mut from_server, &mut to_client, watch),
    );
    if moved.is_err() {
        // One side was cut off: so is the other, and it is not made to look like an orderly end.
        for side in [client, server] {
            let _ = SockRef::from(&*side).set_linger(Some(Duration::ZERO));
        }
    }
    match moved {
        Ok(_) => Ok(()),
        Err(Cut::Source(error) | Cut::Sink(error)) => Err(error),
    }
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
