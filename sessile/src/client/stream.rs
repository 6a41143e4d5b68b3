//! The client side of TLS over a TCP connection. It drives rustls and shows every byte to a
//! [`WireObserver`]. The handshake is a separate step, so that the caller can time it.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ClientConnection;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::wire_observer::WireObserver;
use super::{Close, Error};
use crate::tls::io::{Blocking, pending_if_blocked};

/// The client's end of a TLS connection.
///
/// Reading returns 0 bytes after a close_notify, and `UnexpectedEof` after a close without one.
pub struct Stream {
    tcp: TcpStream,
    tls: ClientConnection,
    pub(super) observer: WireObserver,
    /// True if the client sends nothing after its first flight.
    pub(super) ends_with_first_flight: bool,
}

impl Stream {
    pub(super) const fn new(tcp: TcpStream, tls: ClientConnection, observer: WireObserver) -> Self {
        Self {
            tcp,
            tls,
            observer,
            ends_with_first_flight: false,
        }
    }

    /// The connection's state in rustls.
    #[must_use]
    pub const fn tls(&self) -> &ClientConnection {
        &self.tls
    }

    /// Ends the TCP connection by a reset.
    pub(crate) fn reset(self) {
        // Without the option, dropping the connection sends FIN, which the caller cannot mend.
        let _ = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
    }

    pub(super) async fn handshake(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.poll_handshake(cx)).await
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            // A server that refuses the handshake may close before it has read everything. Its
            // alert can still be read after a failed write.
            let flushed = match self.poll_write_tls(cx) {
                Poll::Ready(written) => written,
                Poll::Pending if self.tls.is_handshaking() => Ok(()),
                Poll::Pending => return Poll::Pending,
            };
            if !self.tls.is_handshaking() {
                // A server that has answered early data may close before it has read the client's Finished.
                if self.tls.is_early_data_accepted() {
                    return Poll::Ready(Ok(()));
                }
                return Poll::Ready(
                    flushed.map_err(|error| Error::ClosedEarly(Close::from(&error))),
                );
            }
            match ready!(self.poll_read_tls(cx)) {
                Ok(0) => return Poll::Ready(Err(Error::ClosedEarly(Close::Eof))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Error::ClosedEarly(Close::from(&error)))),
            }
            if let Err(error) = self.tls.process_new_packets() {
                // Try to send the alert. The handshake has failed even if the alert cannot be sent.
                let _ = self.poll_write_tls(cx);
                return Poll::Ready(Err(Error::from_tls(error)));
            }
        }
    }

    /// Reads until a TLS 1.3 ticket, data or close_notify has arrived. Consumes no data.
    ///
    /// The error is `UnexpectedEof` if the peer closed the connection before that.
    pub(super) async fn await_ticket(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            loop {
                let state = self.tls.process_new_packets().map_err(invalid_data)?;
                let seen = self.tls.tls13_tickets_received() > 0
                    || state.plaintext_bytes_to_read() > 0
                    || state.peer_has_closed();
                if seen {
                    return Poll::Ready(Ok(()));
                }
                if ready!(self.poll_read_tls(cx))? == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        })
        .await
    }

    fn poll_read_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self {
            tcp, tls, observer, ..
        } = self;
        let tcp = Blocking { io: tcp, cx };
        pending_if_blocked(tls.read_tls(&mut ObservedTcp { tcp, observer }))
    }

    fn poll_write_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ends_with_first_flight && self.observer.first_byte.is_some() {
            return Poll::Ready(Ok(()));
        }
        let Self {
            tcp, tls, observer, ..
        } = self;
        while tls.wants_write() {
            let tcp = Blocking { io: tcp, cx };
            let written = tls.write_tls(&mut ObservedTcp { tcp, observer });
            if ready!(pending_if_blocked(written))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.tls.reader().read(buf.initialize_unfilled()) {
                Ok(len) => {
                    buf.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(this.poll_read_tls(cx))?;
            if let Err(error) = this.tls.process_new_packets() {
                let _ = this.poll_write_tls(cx);
                return Poll::Ready(Err(invalid_data(error)));
            }
            // Send answers, for instance to a key update. If that fails, the next read fails too.
            let _ = this.poll_write_tls(cx);
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Send earlier data first, so that the buffer stays bounded.
        ready!(this.poll_write_tls(cx))?;
        let len = this.tls.writer().write(buf)?;
        // rustls has accepted these bytes. If they cannot be sent, the next call fails.
        let _ = this.poll_write_tls(cx);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_tls(cx))?;
        Pin::new(&mut this.tcp).poll_flush(cx)
    }

    /// Sends close_notify and FIN. Reading remains possible.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.tls.send_close_notify();
        ready!(this.poll_write_tls(cx))?;
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

/// The TCP connection as rustls sees it. It shows all bytes to the observer.
struct ObservedTcp<'a, 'b> {
    tcp: Blocking<'a, 'b>,
    observer: &'a mut WireObserver,
}

impl Read for ObservedTcp<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.tcp.read(buf)?;
        self.observer.server_sent(&buf[..len]);
        Ok(len)
    }
}

impl Write for ObservedTcp<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = self.tcp.write(buf)?;
        self.observer.client_sent(&buf[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn invalid_data(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
