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
        pump(&mut from_client, &mut to_server, |_| ()),
        pump(&mut from_server, &mut to_client, watch),
    );
    if moved.is_err() {
        // One side was cut off: so is the other, and it is not made to look like an orderly end.
        for side in [client, server] {
            let _ = SockRef::from(&*side).set_linger(Some(Duration::ZERO));
        }
    }
    moved.map(|_| ())
}

/// Moves bytes one way; the end is passed on as an end.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut show: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = from.read(&mut chunk).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        show(&chunk[..len]);
        to.write_all(&chunk[..len]).await?;
    }
}
