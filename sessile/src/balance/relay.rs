//! Bytes both ways between a client and a server, with half-closes and resets carried on.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bytes moved at once: one full TLS record, nearly.
const CHUNK: usize = 16 * 1024;

/// How long a client may keep its side open once the server has ended.
const AFTER_THE_SERVER: Duration = Duration::from_secs(30);

/// How long a server's last bytes have to reach the client before it is reset as well.
const RESET_GRACE: Duration = Duration::from_millis(200);

/// Bytes that were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// From the client, the hello not counted.
    pub(super) up: u64,
    /// From the server.
    pub(super) down: u64,
}

/// How a connection ended.
pub(super) struct Ended {
    pub(super) moved: Moved,
    /// The server was the first to end its side.
    pub(super) by_server: bool,
    pub(super) outcome: io::Result<()>,
}

/// Moves bytes until both sides have ended. What the server sends is shown to `watch` before it
/// goes on, so that nothing that a client can act on is unknown when it arrives.
pub(super) async fn run(
    client: &mut TcpStream,
    server: &mut TcpStream,
    mut watch: impl FnMut(&[u8]),
) -> Ended {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let mut moved = Moved::default();
    let Moved { up, down } = &mut moved;
    let mut by_server = false;
    let cut = {
        let mut up = pin!(async {
            let mut server = OrNowhere {
                server: &mut to_server,
                refused: false,
            };
            pump(&mut from_client, &mut server, |bytes| {
                *up += bytes.len() as u64
            })
            .await
        });
        let mut down = pin!(async {
            let show = |bytes: &[u8]| {
                *down += bytes.len() as u64;
                watch(bytes);
            };
            let cut = pump(&mut from_server, &mut to_client, show).await;
            if matches!(cut, Err(Cut::Source(_))) {
                // What the server said before it cut the connection off is on its way to the
                // client. A reset at once would take it back.
                tokio::time::sleep(RESET_GRACE).await;
            }
            cut
        });
        tokio::select! {
            cut = &mut up => match cut {
                // A client may end its side and wait for its answer as long as it likes.
                Ok(()) => down.await,
                cut => cut,
            },
            cut = &mut down => {
                by_server = true;
                match cut {
                    Ok(()) => timeout(AFTER_THE_SERVER, up).await.unwrap_or(Ok(())),
                    cut => cut,
                }
            }
        }
    };
    let outcome = match cut {
        Ok(()) => Ok(()),
        Err(Cut::Source(error) | Cut::Sink(error)) => {
            reset_both(client, server);
            Err(error)
        }
    };
    Ended {
        moved,
        by_server,
        outcome,
    }
}

/// One side was cut off: so is the other, and it is not made to look like an orderly end.
fn reset_both(client: &TcpStream, server: &TcpStream) {
    for side in [client, server] {
        let _ = SockRef::from(side).set_linger(Some(Duration::ZERO));
    }
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

/// Writes to a server for as long as it takes anything, and then nowhere: what a client goes on
/// sending has to be read, or the connection to it would be reset with the answer on its way.
struct OrNowhere<'a, W> {
    server: &'a mut W,
    refused: bool,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for OrNowhere<'_, W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.refused {
            match ready!(Pin::new(&mut *this.server).poll_write(cx, buf)) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(_) => this.refused = true,
            }
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().server).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.refused {
            true => Poll::Ready(Ok(())),
            false => Pin::new(&mut *this.server).poll_shutdown(cx),
        }
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
