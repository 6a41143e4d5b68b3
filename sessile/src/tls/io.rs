//! Moves TLS records between a tokio socket and rustls, whose I/O is synchronous.

use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use sessile_proto::record::separate_messages;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// Reads bytes from the socket into rustls. Returns their number; 0 at the end of the stream.
pub(super) async fn read_tls(io: &mut TcpStream, tls: &mut ServerConnection) -> io::Result<usize> {
    poll_fn(|cx| poll_read_tls(io, tls, cx)).await
}

/// Writes all pending output of rustls to the socket.
pub(super) async fn write_tls(io: &mut TcpStream, tls: &mut ServerConnection) -> io::Result<()> {
    while tls.wants_write() {
        poll_fn(|cx| poll_write_tls(io, tls, cx)).await?;
    }
    Ok(())
}

/// Writes a flight of TLS 1.2 to a client that asks for small records (RFC 6066, 4, and RFC 8449).
///
/// rustls neither reads nor answers these extensions. A server may send small records even if it does
/// not answer the extension. rustls joins the messages of a flight before it splits them into records.
/// Some small devices cannot read a split message. Here each message begins a new record, so only a
/// message that is longer than a record is split.
pub(super) async fn write_in_small_records(
    io: &mut TcpStream,
    tls: &mut ServerConnection,
    max_fragment_size: usize,
) -> io::Result<()> {
    let mut flight = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut flight)?;
    }
    let flight = separate_messages(&flight, max_fragment_size).unwrap_or(flight);
    io.write_all(&flight).await
}

pub(super) fn poll_read_tls(
    io: &mut TcpStream,
    tls: &mut ServerConnection,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    pending_if_blocked(tls.read_tls(&mut Blocking { io, cx }))
}

pub(super) fn poll_write_tls(
    io: &mut TcpStream,
    tls: &mut ServerConnection,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    match ready!(pending_if_blocked(tls.write_tls(&mut Blocking { io, cx }))) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(written),
    }
}

pub(crate) fn pending_if_blocked(result: io::Result<usize>) -> Poll<io::Result<usize>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        done => Poll::Ready(done),
    }
}

/// A synchronous view of the socket. A call that would block returns `WouldBlock` and registers the
/// task's waker.
pub(crate) struct Blocking<'a, 'b> {
    pub(crate) io: &'a mut TcpStream,
    pub(crate) cx: &'a mut Context<'b>,
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Blocking<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        or_would_block(Pin::new(&mut *self.io).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl Write for Blocking<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
