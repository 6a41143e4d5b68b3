//! The decrypted stream below hyper. hyper accepts HTTP/1 requests with two lengths, and floods of
//! HTTP/2 frames without requests or data. This stream refuses both.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use sessile_proto::exchange::Exchange;
use sessile_proto::frame_budget::{Exhausted, FrameBudget};
use sessile_proto::request_framing::{Refusal, RequestFraming};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::request_task::RequestTask;
use super::respond::Connection;
use crate::tls;

/// How long the end of a flooded connection may take: GOAWAY, and the wait for the client to close.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);

/// A byte that is invalid in a head (RFC 9110, 5.5). hyper answers this byte with 400.
const INVALID: u8 = 0;

/// A client's stream, with the checks of its protocol.
pub(super) struct GuardedStream {
    stream: tls::Stream,
    guard: Guard,
    connection: Rc<Connection>,
    /// Bytes that hyper read and did not use. The guard has checked them.
    unread: Bytes,
}

enum Guard {
    Http1 {
        framing: RequestFraming,
        task: RequestTask,
    },
    Http2 {
        budget: FrameBudget,
        started: Instant,
    },
    /// The client has flooded the connection. Only the farewell remains.
    Flooded(Farewell),
}

/// The last bytes to a client, and the deadline for them.
struct Farewell {
    goaway: Vec<u8>,
    timer: Pin<Box<Sleep>>,
}

impl GuardedStream {
    /// `task`: the task of the connection.
    pub(super) fn new(
        stream: tls::Stream,
        connection: &Rc<Connection>,
        task: &RequestTask,
    ) -> Self {
        let guard = if connection.handshake.http2 {
            Guard::Http2 {
                budget: FrameBudget::new(),
                started: Instant::now(),
            }
        } else {
            Guard::Http1 {
                framing: RequestFraming::new(),
                task: task.clone(),
            }
        };
        Self {
            stream,
            guard,
            connection: Rc::clone(connection),
            unread: Bytes::new(),
        }
    }

    /// The stream without checks, for a response that hyper does not write.
    pub(super) const fn stream(&mut self) -> &mut tls::Stream {
        &mut self.stream
    }

    /// Puts bytes that were read in front of the next bytes.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        // Bytes of an earlier call can be left, because hyper reads less at first.
        self.unread = if self.unread.is_empty() {
            bytes
        } else {
            [&bytes[..], &self.unread].concat().into()
        };
    }

    /// Ready if a read returns a byte of a request, the end of the stream, or an error.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.unread.is_empty() {
            return Poll::Ready(());
        }
        self.stream.poll_readable(cx)
    }

    /// Notes an event of an HTTP/1 connection.
    fn note(&self, event: impl FnOnce(Exchange) -> Exchange) {
        if let Guard::Http1 { task, .. } = &self.guard {
            task.update_exchange(event);
        }
    }

    /// Checks HTTP/2 frames that were read. Returns the farewell if the client floods the connection.
    fn check(&mut self, bytes: &[u8]) -> Option<Farewell> {
        match &mut self.guard {
            Guard::Http2 { budget, started } => match budget.receive(bytes, started.elapsed()) {
                Ok(()) => {
                    self.connection.note_work(budget);
                    None
                }
                Err(Exhausted) => {
                    self.connection.count_flood();
                    Some(Farewell {
                        goaway: budget.goaway().map(Vec::from).unwrap_or_default(),
                        timer: Box::pin(tokio::time::sleep(FAREWELL_DEADLINE)),
                    })
                }
            },
            Guard::Http1 { .. } | Guard::Flooded(_) => None,
        }
    }

    const fn is_flooded(&self) -> bool {
        matches!(self.guard, Guard::Flooded(_))
    }

    /// Sends GOAWAY and closes the connection.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Guard::Flooded(farewell) = &mut self.guard else {
            return Poll::Ready(());
        };
        if farewell.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut stream = Pin::new(&mut self.stream);
        while !farewell.goaway.is_empty() {
            match ready!(stream.as_mut().poll_write(cx, &farewell.goaway)) {
                Ok(written) if written > 0 => drop(farewell.goaway.drain(..written)),
                _ => return Poll::Ready(()),
            }
        }
        stream.poll_shutdown(cx).map(drop)
    }

    /// Counts bytes that were written.
    fn count_sent(&mut self, bufs: &[IoSlice<'_>], mut written: usize) {
        let Guard::Http2 { budget, .. } = &mut self.guard else {
            return;
        };
        for buf in bufs {
            let part = &buf[..buf.len().min(written)];
            budget.send(part);
            written -= part.len();
        }
        self.connection.note_work(budget);
    }
}

/// Reads bytes of HTTP/1 requests, up to the first byte that is refused.
///
/// hyper answers a refused head with 400, and a head that ends at its limit with 431. A refused body is an
/// error, because hyper accepts each byte at some places of a body.
fn poll_read_requests(
    framing: &mut RequestFraming,
    stream: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let refused = || Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
    if let Some(Refusal::Body | Refusal::LongHead) = framing.refusal() {
        return refused();
    }
    let before = buf.filled().len();
    ready!(stream.poll_read(cx, buf))?;
    let Some(index) = framing.find_refused(&buf.filled()[before..]) else {
        return Poll::Ready(Ok(()));
    };
    let place = before + index;
    if framing.refusal() == Some(Refusal::Head) {
        buf.filled_mut()[place] = INVALID;
        return Poll::Ready(Ok(()));
    }
    buf.set_filled(place);
    if index == 0 {
        // Without an error, hyper would see the end of the stream.
        return refused();
    }
    Poll::Ready(Ok(()))
}

/// The error of each operation after the farewell.
fn flooded() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.unread.is_empty() {
            let len = this.unread.len().min(buf.remaining());
            buf.put_slice(&this.unread.split_to(len));
            return Poll::Ready(Ok(()));
        }
        if let Guard::Http1 { framing, task } = &mut this.guard {
            let before = buf.filled().len();
            let polled = poll_read_requests(framing, Pin::new(&mut this.stream), cx, buf);
            let received = buf.filled().len() > before;
            let is_awaited = task.exchange() == Exchange::ExpectRead;
            task.update_exchange(|exchange| match polled {
                Poll::Pending => exchange.read_blocked(framing),
                Poll::Ready(Ok(())) if received => exchange.received(),
                Poll::Ready(_) => exchange.closed(),
            });
            if is_awaited && task.exchange() != Exchange::ExpectRead {
                // The client has the whole response, and owes the next request from now on.
                this.connection.last_work.set(Instant::now());
            }
            return polled;
        }
        if !this.is_flooded() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let Some(farewell) = this.check(&buf.filled()[before..]) else {
                return Poll::Ready(Ok(()));
            };
            buf.set_filled(before);
            this.guard = Guard::Flooded(farewell);
        }
        this.poll_farewell(cx).map(|()| Err(flooded()))
    }
}

// After a flood, writes and reads continue the farewell, because hyper may never read again.
impl AsyncWrite for GuardedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.is_flooded() {
            return this.poll_farewell(cx).map(|()| Err(flooded()));
        }
        this.note(Exchange::write_begun);
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.count_sent(bufs, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_flooded() {
            return self.poll_farewell(cx).map(|()| Err(flooded()));
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // Output that waits for the shutdown is not in the socket.
        if !self.stream.has_output() {
            self.note(Exchange::flushed);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_flooded() {
            return self.poll_farewell(cx).map(Ok);
        }
        self.note(Exchange::closed);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
