//! Ends connections so that the client can read a fatal alert.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sessile_proto::alert::AlertDescription;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// How long a client may take to end its side after our side has ended.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// Most bytes that are read and thrown away while the client has not ended its side.
const MAX_DISCARDED: usize = 256 * 1024;

/// Most bytes that are read at once.
const CHUNK: usize = 4096;

/// Turns away a connection that cannot be served, with a fatal alert in clear.
pub(crate) async fn refuse(mut io: TcpStream, alert: AlertDescription) {
    // A client that has gone needs no alert.
    let _ = io.write_all(&alert.record()).await;
    end(&mut io).await;
}

/// Ends our side of a connection, and waits for the client to end its side.
///
/// If a socket is closed while bytes still come in, the system resets the connection. The client could lose
/// the alert.
pub(crate) async fn end(io: &mut TcpStream) {
    let _ = io.shutdown().await;
    let mut discarded = 0;
    let done = std::future::poll_fn(|cx| poll_discard(io, &mut discarded, cx));
    let _ = tokio::time::timeout(LINGER, done).await;
}

/// Reads and throws away the bytes that the client still sends, up to a limit.
pub(crate) fn poll_discard(
    io: &TcpStream,
    discarded: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while *discarded < MAX_DISCARDED {
        ready!(io.poll_read_ready(cx))?;
        let mut chunk = [0; CHUNK];
        match io.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => *discarded += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}
