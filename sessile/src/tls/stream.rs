//! An accepted TLS connection as a byte stream.
//!
//! The tickets of a TLS 1.3 handshake wait a few milliseconds for the first response. A response within
//! that time leaves in one write with the tickets.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::closing::{self, LINGER};
use super::connection::Connection;
use super::early_handshake::EarlyHandshake;
use super::handshake::Handshaking;
use super::kernel::{self, FileSender, KernelSupport, OffloadError, Sent};
use super::record_layer::RecordLayer;
use super::status::{Completion, LastOutput, Status};

/// How long tickets wait for the first response.
const TICKET_DELAY: Duration = Duration::from_millis(5);

/// The shortest write with a frame of HTTP/2 that h2 flushes alone: 256 bytes and the head of the frame.
const LEAST_FLUSHED_FRAME: usize = 256 + 9;

/// The server's side of a TLS connection.
pub struct Stream {
    io: TcpStream,
    tls: RecordLayer,
    /// What the kernel can encrypt; `None` if the records of this connection stay in this process.
    kernel: Option<Arc<KernelSupport>>,
    /// The number of bytes that were written since the last flush.
    unflushed: usize,
    /// The rest of a handshake whose early data was accepted.
    early_handshake: Option<Box<EarlyHandshake>>,
    /// Runs while tickets wait for the first response.
    ticket_timer: Option<Pin<Box<Sleep>>>,
    status: Rc<Status>,
    eof: bool,
    close_notify_sent: bool,
    /// Runs while the stream waits until the client closes the connection.
    linger_timer: Option<Pin<Box<Sleep>>>,
    /// Set after rustls refused bytes of the client.
    failure: Option<Box<Failure>>,
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
        mut tls: Connection,
        kernel: Option<Arc<KernelSupport>>,
        handshaking: Handshaking,
    ) -> Self {
        let (early_handshake, completion, owned) = if tls.is_handshaking() {
            let early_handshake = EarlyHandshake::new(handshaking);
            (
                Some(Box::new(early_handshake)),
                Completion::UnderWay,
                Vec::new(),
            )
        } else {
            let owned = handshaking.resumption.lock().owned();
            (None, Completion::Done, owned)
        };
        // The segment with the client's Finished can also contain a request and close_notify.
        let closed_cleanly = tls.has_peer_closed();
        Self {
            io,
            early_handshake,
            ticket_timer: None,
            tls: RecordLayer::InProcess(tls),
            kernel,
            unflushed: 0,
            status: Rc::new(Status::new(completion, closed_cleanly, owned)),
            eof: false,
            close_notify_sent: false,
            linger_timer: None,
            failure: None,
        }
    }

    /// True if output waits for the socket, for a later write, or for the shutdown.
    pub fn has_output(&self) -> bool {
        self.tls.has_output()
    }

    /// The state of the stream, for use after the stream has moved.
    #[must_use]
    pub const fn status(&self) -> &Rc<Status> {
        &self.status
    }

    fn poll_flush_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stored(cx));
        self.ticket_timer = None;
        while self.tls.has_output() {
            let sent = self.tls.poll_send(&mut self.io, cx, self.close_notify_sent);
            self.status.is_blocked.set(sent.is_pending());
            ready!(sent)?;
            self.status.touch();
        }
        Poll::Ready(Ok(()))
    }

    /// True if the records are in the kernel, so that a [`FileSender`] can send files.
    #[must_use]
    pub const fn is_offloaded(&self) -> bool {
        matches!(self.tls, RecordLayer::Kernel(_))
    }

    /// False if the key in the kernel cannot encrypt so many bytes.
    #[must_use]
    pub const fn has_room_for(&self, bytes: u64) -> bool {
        self.tls.has_room_for(bytes)
    }

    /// Moves the records to the kernel, if the kernel takes them. Call this after a flush.
    ///
    /// # Errors
    /// The connection has lost its keys, and can only be dropped.
    pub fn offload(&mut self) -> io::Result<bool> {
        let Some(kernel) = self.kernel.take() else {
            return Ok(self.is_offloaded());
        };
        if self.early_handshake.is_some() || self.failure.is_some() || self.eof {
            self.kernel = Some(kernel);
            return Ok(false);
        }
        match self.tls.offload(&self.io, &kernel) {
            Ok(is_offloaded) => {
                self.kernel = (!is_offloaded).then_some(kernel);
                Ok(is_offloaded)
            }
            // The connection stays in this process, and the kernel is not asked again.
            Err(OffloadError::Refused(error)) => {
                tracing::debug!(%error, "a connection stays in user space");
                Ok(false)
            }
            Err(error @ OffloadError::Broken(_)) => Err(io::Error::other(error)),
        }
    }

    /// Makes a sender of files for an offloaded stream. Nothing else may use the stream until the sender is
    /// dropped.
    ///
    /// # Errors
    /// The process has too many open files, or the stream is not offloaded.
    pub fn file_sender(&mut self) -> io::Result<Arc<FileSender>> {
        self.tls.file_sender(&self.io)
    }

    /// Waits until an offloaded stream has room. Returns how many bytes a [`FileSender`] may send.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        ready!(self.poll_flush_tls(cx))?;
        let room = self.tls.poll_room(&self.io, cx);
        self.status.is_blocked.set(room.is_pending());
        room
    }

    /// Notes what a [`FileSender`] sent.
    pub fn note_file(&mut self, sent: Sent) {
        if sent.bytes > 0 {
            self.status.touch();
        }
        self.tls.count_file(sent);
    }

    /// True if the stream must end after the present response, because the kernel cannot take another key.
    #[must_use]
    pub const fn is_worn_out(&self) -> bool {
        self.tls.is_worn_out()
    }

    /// As `poll_write`. With `more_follows`, an offloaded stream waits for more bytes before it ends a record.
    pub fn poll_write_part(
        &mut self,
        cx: &mut Context<'_>,
        part: &[u8],
        more_follows: bool,
    ) -> Poll<io::Result<usize>> {
        if more_follows && self.is_offloaded() {
            ready!(self.poll_flush_tls(cx))?;
            let written = self.tls.poll_write_more(&self.io, cx, part);
            return self.note_kernel_write(written);
        }
        Pin::new(self).poll_write(cx, part)
    }

    fn poll_write_kernel(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.tls.poll_write(&mut self.io, cx, bufs);
        self.note_kernel_write(written)
    }

    fn note_kernel_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.status.is_blocked.set(written.is_pending());
        if let Poll::Ready(Ok(1..)) = written {
            self.status.touch();
        }
        written
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

    /// True if a flush sends nothing, so that several frames of HTTP/2 leave in one write.
    ///
    /// h2 flushes after each such frame, and again after the last one. If h2 does not, the caller of h2 has to
    /// poll the connection again ([`Status::take_held_output`]).
    fn holds_frame(&mut self) -> bool {
        let is_flushed_alone = std::mem::take(&mut self.unflushed) >= LEAST_FLUSHED_FRAME;
        let holds = is_flushed_alone && self.tls.is_http2() && !self.tls.is_output_full();
        self.status.holds_output.set(holds);
        holds
    }

    /// Sends pending tickets after [`TICKET_DELAY`]. Call this if there is nothing to read.
    fn poll_ticket_timer(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.tls.has_output() {
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
            match self.poll_receive(cx, &mut ReadBuf::new(&mut [])) {
                Poll::Ready(processed) => processed?.map_err(invalid)?,
                Poll::Pending => {
                    self.check_deadline(cx)?;
                    return Poll::Pending;
                }
            }
            ready!(self.poll_stored(cx));
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until the client closes the connection.
    ///
    /// A socket that is closed with unread bytes resets the connection. The client could then lose a
    /// response.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.tls.is_deaf() && self.status.waits_for_client.get() {
            return match poll_timer(&mut self.linger_timer, LINGER, cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => kernel::poll_end(&self.io, cx),
            };
        }
        while !self.eof && !self.status.closed_cleanly() && self.status.waits_for_client.get() {
            if poll_timer(&mut self.linger_timer, LINGER, cx).is_ready() {
                break;
            }
            let processed = ready!(self.poll_receive(cx, &mut ReadBuf::new(&mut [])));
            self.eof |= !matches!(processed, Ok(Ok(())));
            // The response is complete.
            self.tls.discard_plaintext();
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
        if self.is_offloaded() {
            return kernel::poll_end(&self.io, cx);
        }
        match &mut self.failure {
            Some(failure) => closing::poll_discard(&self.io, &mut failure.discarded, cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    /// Reads from the socket, and lets rustls process the bytes. The reader gets plaintext.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Result<(), rustls::Error>>> {
        let (len, processed) = ready!(self.tls.poll_receive(&mut self.io, cx, reader))?;
        self.eof = len == 0;
        if let (Some(early_handshake), RecordLayer::InProcess(tls)) =
            (&mut self.early_handshake, &self.tls)
        {
            early_handshake.advance(tls, &self.status);
        }
        if processed.is_err() {
            self.status.end(Completion::Refused);
        } else {
            self.status.closed_cleanly.set(self.tls.has_peer_closed());
        }
        Poll::Ready(Ok(processed))
    }

    /// Receives until plaintext is there, or the end of the stream. The reader gets the plaintext.
    fn poll_plaintext(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = reader.filled().len();
        loop {
            if self.failure.is_some() {
                reader.set_filled(start);
                ready!(self.poll_failure(cx));
                self.eof = true;
                return Poll::Ready(match self.failure.take() {
                    Some(failure) => Err(invalid(failure.error)),
                    None => Ok(()),
                });
            }
            ready!(self.poll_stored(cx));
            self.tls.read_early_data(reader)?;
            self.tls.read_plaintext(reader);
            // HTTP detects a message that is cut off by a close without close_notify.
            if reader.filled().len() > start || self.tls.has_plaintext() || self.is_at_end() {
                return Poll::Ready(Ok(()));
            }
            match self.poll_receive(cx, reader) {
                Poll::Ready(processed) => {
                    self.status.touch();
                    if let Err(error) = processed? {
                        // A request before the error is not answered either.
                        self.tls.discard_plaintext();
                        self.failure = Some(Box::new(Failure {
                            error,
                            discarded: 0,
                        }));
                    }
                }
                Poll::Pending => {
                    self.check_deadline(cx)?;
                    self.poll_ticket_timer(cx)?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// True if the client sends no more.
    fn is_at_end(&self) -> bool {
        self.eof || self.status.closed_cleanly()
    }

    /// Ready if a read returns plaintext, the end of the stream, or an error. Early data does not count.
    ///
    /// Records without plaintext, such as key updates, do not make the stream readable.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_plaintext(cx, &mut ReadBuf::new(&mut []))
            .map(drop)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_plaintext(cx, buf)
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
        if this.failure.is_some() {
            ready!(this.poll_failure(cx));
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.is_offloaded() {
            return this.poll_write_kernel(cx, bufs);
        }
        loop {
            let written = ready!(this.tls.poll_write(&mut this.io, cx, bufs))?;
            this.unflushed += written;
            if written > 0 || bufs.iter().all(|buf| buf.is_empty()) {
                if this.tls.is_output_full()
                    && this.status.last_output.get() != LastOutput::Announced
                {
                    // The socket may have no room. The next write or flush waits for it.
                    let _ = this.poll_flush_tls(cx)?;
                }
                return Poll::Ready(Ok(written));
            }
            ready!(this.poll_flush_tls(cx))?;
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds_last_output(cx) || self.holds_frame() {
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
