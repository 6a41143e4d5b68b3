//! An established TLS connection as a byte stream. Tickets of a TLS 1.3 handshake wait a moment for
//! the first response, so that both leave in one write.

use std::future::Future;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ServerConnection;
use sessile_proto::resumption::StoreKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::closing::{self, LINGER};
use super::early_handshake::EarlyHandshake;
use super::io::{poll_read_tls, poll_write_tls};
use super::status::{Completion, Status};

/// How long tickets wait for a response to ride with.
const TICKET_DELAY: Duration = Duration::from_millis(5);

/// Most plaintext that is taken before the socket has to take ciphertext: two full records.
const MAX_BUFFERED: usize = 32 * 1024;

/// The server's side of a TLS connection.
pub struct Stream {
    io: TcpStream,
    /// In a box: a stream changes hands several times, and this is more than a kilobyte.
    tls: Box<ServerConnection>,
    /// The handshake, while early data is read and answered before it is over.
    early_handshake: Option<EarlyHandshake>,
    /// Runs while tickets are held back.
    held: Option<Pin<Box<Sleep>>>,
    status: Rc<Status>,
    eof: bool,
    said_goodbye: bool,
    /// Runs once our side has ended and the client's has not.
    linger: Option<Pin<Box<Sleep>>>,
    failed: Option<Failed>,
}

/// What the client sent was refused, and it may not have read the alert yet.
struct Failed {
    error: rustls::Error,
    /// Bytes that came after it, and were thrown away.
    discarded: usize,
}

impl Stream {
    /// `owned`: the stored sessions that belong to the connection.
    pub(super) fn new(io: TcpStream, tls: Box<ServerConnection>, owned: Vec<StoreKey>) -> Self {
        Self::with(io, tls, None, Completion::Done, owned)
    }

    /// A stream whose client may send early data, and has not finished.
    pub(super) fn early_handshake(
        io: TcpStream,
        tls: Box<ServerConnection>,
        early_handshake: EarlyHandshake,
    ) -> Self {
        let completion = Completion::UnderWay;
        Self::with(io, tls, Some(early_handshake), completion, Vec::new())
    }

    fn with(
        io: TcpStream,
        mut tls: Box<ServerConnection>,
        early_handshake: Option<EarlyHandshake>,
        completion: Completion,
        owned: Vec<StoreKey>,
    ) -> Self {
        tls.set_buffer_limit(Some(MAX_BUFFERED));
        // A client may have asked and said goodbye in the segment that ended the handshake.
        let state = tls.process_new_packets();
        let closed_cleanly = state.is_ok_and(|state| state.peer_has_closed());
        Self {
            io,
            early_handshake,
            held: None,
            tls,
            status: Rc::new(Status::new(completion, closed_cleanly, owned)),
            eof: false,
            said_goodbye: false,
            linger: None,
            failed: None,
        }
    }

    /// What can be known of it once something else has taken the stream.
    #[must_use]
    pub const fn status(&self) -> &Rc<Status> {
        &self.status
    }

    fn poll_flush_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stored(cx));
        self.held = None;
        while self.tls.wants_write() {
            let written = poll_write_tls(&mut self.io, &mut self.tls, cx);
            self.status.set_blocked(written.is_pending());
            ready!(written)?;
            self.status.touch();
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing to read for now: what is held back leaves when its time has come.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.tls.wants_write() {
            self.held = None;
            return Ok(());
        }
        let held = self
            .held
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(TICKET_DELAY)));
        if held.as_mut().poll(cx).is_ready()
            && let Poll::Ready(done) = self.poll_flush_tls(cx)
        {
            done?;
        }
        Ok(())
    }

    /// New sessions are in the store before anything leaves that follows the client's last flight.
    fn poll_stored(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(early_handshake) = &mut self.early_handshake {
            ready!(early_handshake.poll_stored(cx));
            if early_handshake.is_over() {
                self.early_handshake = None;
            }
        }
        Poll::Ready(())
    }

    /// Nothing came from the client: it may not take for ever over the end of its handshake.
    fn check_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(early_handshake) = &mut self.early_handshake
            && early_handshake.poll_deadline(cx).is_ready()
        {
            self.status.end(Completion::Deadline);
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Waits for the client to finish, so that it gets its new tickets before the connection ends.
    fn poll_finished(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stored(cx));
        while self.early_handshake.is_some() && !self.eof && self.status.lingers() {
            match poll_read_tls(&mut self.io, &mut self.tls, cx) {
                Poll::Ready(read) => self.eof = read? == 0,
                Poll::Pending => {
                    self.check_deadline(cx)?;
                    return Poll::Pending;
                }
            }
            self.take_in().map_err(invalid)?;
            ready!(self.poll_stored(cx));
        }
        Poll::Ready(Ok(()))
    }

    /// Reads on until the client has ended its side too. A socket that is closed while bytes come
    /// in resets the connection, and what is still on its way to the client is lost.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.eof && !self.status.closed_cleanly() && self.status.lingers() {
            let linger = self
                .linger
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
            if linger.as_mut().poll(cx).is_ready() {
                break;
            }
            let read = ready!(poll_read_tls(&mut self.io, &mut self.tls, cx));
            self.eof = !read.is_ok_and(|len| len > 0) || self.take_in().is_err();
            // What a client still has to say is read and thrown away.
            let mut plaintext = self.tls.reader();
            while let Ok(unread) = plaintext.fill_buf().map(<[u8]>::len)
                && unread > 0
            {
                plaintext.consume(unread);
            }
        }
        Poll::Ready(())
    }

    /// Sends the alert and waits until the client has ended its side.
    fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self
            .linger
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if linger.as_mut().poll(cx).is_ready()
            || ready!(self.poll_flush_tls(cx)).is_err()
            || ready!(Pin::new(&mut self.io).poll_shutdown(cx)).is_err()
        {
            return Poll::Ready(());
        }
        match &mut self.failed {
            Some(failed) => closing::poll_discard(&self.io, &mut failed.discarded, cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    /// Lets the library take in what was received.
    fn take_in(&mut self) -> Result<(), rustls::Error> {
        let processed = self.tls.process_new_packets();
        if let Some(early_handshake) = &mut self.early_handshake {
            early_handshake.advance(&self.tls, &self.status);
        }
        if processed.is_err() {
            self.status.end(Completion::Refused);
        }
        self.status.set_closed_cleanly(processed?.peer_has_closed());
        Ok(())
    }

    /// Early data that was not read yet. None of it is lost or late where the client has finished since.
    fn read_early(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        let Some(mut early) = self.tls.early_data() else {
            return Ok(false);
        };
        let read = early.read(buf.initialize_unfilled())?;
        buf.advance(read);
        Ok(read > 0)
    }

    /// Plaintext that the library has at hand; `None`: it needs more from the socket.
    fn read_plaintext(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<Option<()>> {
        let mut reader = self.tls.reader();
        // Not `read`: it wants a buffer that is initialised, and callers bring kilobytes.
        match reader.fill_buf() {
            Ok([]) => Ok(Some(())),
            Ok(plaintext) => {
                let len = plaintext.len().min(buf.remaining());
                buf.put_slice(&plaintext[..len]);
                reader.consume(len);
                Ok(Some(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The end without close_notify. HTTP knows by itself whether something is missing.
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
            if this.failed.is_some() {
                ready!(this.poll_failed(cx));
                this.eof = true;
                let error = this.failed.take().map(|failed| invalid(failed.error));
                return Poll::Ready(error.map_or(Ok(()), Err));
            }
            ready!(this.poll_stored(cx));
            if this.read_early(buf)? || this.read_plaintext(buf)?.is_some() || this.eof {
                return Poll::Ready(Ok(()));
            }
            match poll_read_tls(&mut this.io, &mut this.tls, cx) {
                Poll::Ready(read) => this.eof = read? == 0,
                Poll::Pending => {
                    this.check_deadline(cx)?;
                    this.poll_held(cx)?;
                    return Poll::Pending;
                }
            }
            this.status.touch();
            if let Err(error) = this.take_in() {
                let discarded = 0;
                this.failed = Some(Failed { error, discarded });
            }
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
            let taken = this.tls.writer().write_vectored(bufs)?;
            let flushed = this.poll_flush_tls(cx)?;
            if taken > 0 || bufs.iter().all(|buf| buf.is_empty()) {
                return Poll::Ready(Ok(taken));
            }
            // Nothing was taken because too much is waiting for the socket.
            ready!(flushed);
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush_tls(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.said_goodbye {
            // What was answered already does not wait for the client to finish.
            ready!(this.poll_flush_tls(cx))?;
            // Where it does not, it has had its answer all the same.
            let _ = ready!(this.poll_finished(cx));
            this.said_goodbye = true;
            this.tls.send_close_notify();
        }
        // While it lingers, all of this is done already.
        if this.linger.is_none() {
            ready!(this.poll_flush_tls(cx))?;
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        this.poll_linger(cx).map(Ok)
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
