//! An accepted TLS connection as a byte stream.
//!
//! The tickets of a TLS 1.3 handshake wait a few milliseconds for the first response. A response within
//! that time leaves in one write with the tickets.

use std::future::Future;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::closing::{self, LINGER};
use super::early_handshake::EarlyHandshake;
use super::handshake::Handshaking;
use super::io::{poll_read_tls, poll_write_tls};
use super::status::{Completion, LastOutput, Status};

/// How long tickets wait for the first response.
const TICKET_DELAY: Duration = Duration::from_millis(5);

/// Most bytes of plaintext that rustls buffers while the socket is blocked: two full records.
const MAX_BUFFERED: usize = 32 * 1024;

/// The server's side of a TLS connection.
pub struct Stream {
    io: TcpStream,
    /// Boxed, because a `ServerConnection` takes more than a kilobyte, and the stream is moved several
    /// times.
    tls: Box<ServerConnection>,
    /// The rest of a handshake whose early data was accepted.
    early_handshake: Option<EarlyHandshake>,
    /// Runs while tickets wait for the first response.
    ticket_timer: Option<Pin<Box<Sleep>>>,
    status: Rc<Status>,
    eof: bool,
    close_notify_sent: bool,
    /// Runs while the stream waits until the client closes the connection.
    linger_timer: Option<Pin<Box<Sleep>>>,
    /// Set after rustls refused bytes of the client.
    failure: Option<Failure>,
}

/// An error of the client. The stream stays open until the client has had time to read the alert.
struct Failure {
    error: rustls::Error,
    /// The number of bytes that came after the error and were discarded.
    discarded: usize,
}

impl Stream {
    /// Makes a stream. If early data was accepted, the client's Finished may still be missing.
    pub(super) fn new(
        io: TcpStream,
        mut tls: Box<ServerConnection>,
        handshaking: Handshaking,
    ) -> Self {
        let (early_handshake, completion, owned) = if tls.is_handshaking() {
            let early_handshake = EarlyHandshake::new(handshaking);
            (Some(early_handshake), Completion::UnderWay, Vec::new())
        } else {
            let owned = handshaking.resumption.lock().owned();
            (None, Completion::Done, owned)
        };
        tls.set_buffer_limit(Some(MAX_BUFFERED));
        // The segment with the client's Finished can also contain a request and close_notify.
        let state = tls.process_new_packets();
        let closed_cleanly = state.is_ok_and(|state| state.peer_has_closed());
        Self {
            io,
            early_handshake,
            ticket_timer: None,
            tls,
            status: Rc::new(Status::new(completion, closed_cleanly, owned)),
            eof: false,
            close_notify_sent: false,
            linger_timer: None,
            failure: None,
        }
    }

    /// The state of the stream, for use after the stream has moved.
    #[must_use]
    pub const fn status(&self) -> &Rc<Status> {
        &self.status
    }

    /// Ready if a read returns plaintext, the end of the stream, or an error.
    ///
    /// Records without plaintext, such as key updates, do not make the stream readable.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.failure.is_none() && !self.eof && !self.has_plaintext() {
            if ready!(self.poll_receive(cx)).is_err() {
                // The socket has failed, so a read finds its end.
                self.eof = true;
            }
        }
        Poll::Ready(())
    }

    /// True if a read finds plaintext, close_notify, or the end of the stream in rustls.
    fn has_plaintext(&mut self) -> bool {
        !matches!(
            self.tls.reader().fill_buf(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock
        )
    }

    /// Reads from the socket, and lets rustls process the bytes.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match poll_read_tls(&mut self.io, &mut self.tls, cx) {
            Poll::Ready(read) => self.eof = read? == 0,
            Poll::Pending => {
                self.check_deadline(cx)?;
                self.poll_ticket_timer(cx)?;
                return Poll::Pending;
            }
        }
        self.status.touch();
        if let Err(error) = self.process_received() {
            self.failure = Some(Failure {
                error,
                discarded: 0,
            });
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stored(cx));
        self.ticket_timer = None;
        while self.tls.wants_write() {
            let written = poll_write_tls(&mut self.io, &mut self.tls, cx);
            self.status.is_blocked.set(written.is_pending());
            ready!(written)?;
            self.status.touch();
        }
        Poll::Ready(Ok(()))
    }

    /// True if output waits for the shutdown, which follows at once.
    ///
    /// hyper flushes twice before the shutdown. If no shutdown follows, a later flush sends the output.
    fn holds_last_output(&self, cx: &Context<'_>) -> bool {
        let last_output = &self.status.last_output;
        let next = match last_output.get() {
            LastOutput::Announced if self.early_handshake.is_none() => LastOutput::Flushed,
            LastOutput::Flushed => LastOutput::FlushedTwice,
            _ => return false,
        };
        last_output.set(next);
        cx.waker().wake_by_ref();
        true
    }

    /// Sends pending tickets after [`TICKET_DELAY`]. Call this if there is nothing to read.
    fn poll_ticket_timer(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.tls.wants_write() {
            self.ticket_timer = None;
            return Ok(());
        }
        if poll_timer(&mut self.ticket_timer, TICKET_DELAY, cx).is_ready()
            && let Poll::Ready(done) = self.poll_flush_tls(cx)
        {
            done?;
        }
        Ok(())
    }

    /// Ready if the new sessions are stored, so that bytes may be sent.
    fn poll_stored(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(early_handshake) = &mut self.early_handshake {
            ready!(early_handshake.poll_stored(cx));
            if early_handshake.is_finished() {
                self.early_handshake = None;
            }
        }
        Poll::Ready(())
    }

    /// Fails if the client's Finished is late. Call this if there is nothing to read.
    fn check_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(early_handshake) = &mut self.early_handshake
            && early_handshake.poll_deadline(cx).is_ready()
        {
            self.status.end(Completion::Deadline);
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Waits for the client's Finished, so that new tickets leave before the connection ends.
    fn poll_finished(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stored(cx));
        while self.early_handshake.is_some() && !self.eof && self.status.waits_for_client.get() {
            match poll_read_tls(&mut self.io, &mut self.tls, cx) {
                Poll::Ready(read) => self.eof = read? == 0,
                Poll::Pending => {
                    self.check_deadline(cx)?;
                    return Poll::Pending;
                }
            }
            self.process_received().map_err(invalid)?;
            ready!(self.poll_stored(cx));
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until the client closes the connection.
    ///
    /// A socket that is closed with unread bytes resets the connection. The client could then lose a
    /// response.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.eof && !self.status.closed_cleanly() && self.status.waits_for_client.get() {
            if poll_timer(&mut self.linger_timer, LINGER, cx).is_ready() {
                break;
            }
            let read = ready!(poll_read_tls(&mut self.io, &mut self.tls, cx));
            self.eof = !read.is_ok_and(|len| len > 0) || self.process_received().is_err();
            // Discard the plaintext: the response is complete.
            let mut plaintext = self.tls.reader();
            while let Ok(unread) = plaintext.fill_buf().map(<[u8]>::len)
                && unread > 0
            {
                plaintext.consume(unread);
            }
        }
        Poll::Ready(())
    }

    /// Sends the alert and waits until the client closes the connection.
    fn poll_failure(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if poll_timer(&mut self.linger_timer, LINGER, cx).is_ready()
            || ready!(self.poll_flush_tls(cx)).is_err()
            || ready!(Pin::new(&mut self.io).poll_shutdown(cx)).is_err()
        {
            return Poll::Ready(());
        }
        match &mut self.failure {
            Some(failure) => closing::poll_discard(&self.io, &mut failure.discarded, cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    /// Lets rustls process received bytes.
    fn process_received(&mut self) -> Result<(), rustls::Error> {
        let processed = self.tls.process_new_packets();
        if let Some(early_handshake) = &mut self.early_handshake {
            early_handshake.advance(&self.tls, &self.status);
        }
        if processed.is_err() {
            self.status.end(Completion::Refused);
        }
        let closed_cleanly = processed?.peer_has_closed();
        self.status.closed_cleanly.set(closed_cleanly);
        Ok(())
    }

    /// Reads early data. True if there was any. Early data stays readable after the client's Finished.
    fn read_early(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        let Some(mut early) = self.tls.early_data() else {
            return Ok(false);
        };
        let read = early.read(buf.initialize_unfilled())?;
        buf.advance(read);
        Ok(read > 0)
    }

    /// Reads plaintext that rustls has decrypted; `None` if rustls needs more bytes.
    fn read_plaintext(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<Option<()>> {
        let mut reader = self.tls.reader();
        // `read` would need an initialised buffer. To initialise kilobytes for each call is slow.
        match reader.fill_buf() {
            Ok([]) => Ok(Some(())),
            Ok(plaintext) => {
                let len = plaintext.len().min(buf.remaining());
                buf.put_slice(&plaintext[..len]);
                reader.consume(len);
                Ok(Some(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The client closed without close_notify. HTTP detects a truncated message by itself.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(())),
            Err(error) => Err(error),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.failure.is_some() {
                ready!(this.poll_failure(cx));
                this.eof = true;
                return Poll::Ready(match this.failure.take() {
                    Some(failure) => Err(invalid(failure.error)),
                    None => Ok(()),
                });
            }
            ready!(this.poll_stored(cx));
            if this.read_early(buf)? || this.read_plaintext(buf)?.is_some() || this.eof {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_receive(cx))?;
        }
    }
}

impl AsyncWrite for Stream {
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
        loop {
            let written = this.tls.writer().write_vectored(bufs)?;
            if written > 0 && this.status.last_output.get() == LastOutput::Announced {
                return Poll::Ready(Ok(written));
            }
            let flushed = this.poll_flush_tls(cx)?;
            if written > 0 || bufs.iter().all(|buf| buf.is_empty()) {
                return Poll::Ready(Ok(written));
            }
            // The buffer of rustls is full until the socket accepts more.
            ready!(flushed);
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds_last_output(cx) {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush_tls(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.close_notify_sent {
            if this.early_handshake.is_some() {
                // Send the response now: the client's Finished may never come.
                ready!(this.poll_flush_tls(cx))?;
                // An error here loses only the new tickets.
                let _ = ready!(this.poll_finished(cx));
            }
            this.close_notify_sent = true;
            this.tls.send_close_notify();
        }
        // If the timer runs, an earlier poll has already shut the socket down.
        if this.linger_timer.is_none() {
            ready!(this.poll_flush_tls(cx))?;
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        this.poll_linger(cx).map(Ok)
    }
}

/// Ready if this much time has passed since the first call.
fn poll_timer(
    timer: &mut Option<Pin<Box<Sleep>>>,
    after: Duration,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
    timer.as_mut().poll(cx)
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
