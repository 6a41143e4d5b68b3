//! The request on its way to the upstream. The client must not stop sending for too long.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming};
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use super::failure::Failure;
use super::head::{BodyFraming, RequestHead, write_field};
use super::silence::Silence;

/// A request that is sent to an upstream.
pub(super) struct Upload {
    /// Bytes that are sent before `piece`: the head, or the size of a chunk.
    front: Vec<u8>,
    /// How many bytes of `front` are sent.
    front_sent: usize,
    /// A piece of the body.
    piece: Bytes,
    /// Bytes that are sent after `piece`.
    end: &'static [u8],
    /// `None` if all of the body was read.
    body: Option<ClientBody>,
    /// True if the request has or had a body.
    has_body: bool,
    /// True if the system has taken a byte of the request.
    is_begun: bool,
    /// True if the upstream takes no more of the request.
    is_broken: bool,
}

struct ClientBody {
    body: Incoming,
    framing: BodyFraming,
    /// How long the client may send nothing.
    timeout: Duration,
    /// Runs while the client sends nothing.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Why a request cannot be sent to its end.
pub(super) enum UploadError {
    Client(Failure),
    /// The upstream takes no more bytes.
    Upstream,
}

impl Upload {
    /// `timeout`: how long the client may send nothing.
    pub(super) fn new(head: RequestHead, body: Incoming, timeout: Duration) -> Self {
        Self {
            front: head.bytes,
            front_sent: 0,
            piece: Bytes::new(),
            end: b"",
            has_body: head.framing.is_some(),
            body: head.framing.map(|framing| ClientBody {
                body,
                framing,
                timeout,
                timer: None,
            }),
            is_begun: false,
            is_broken: false,
        }
    }

    /// True if the system has taken all bytes of the request.
    pub(super) const fn is_complete(&self) -> bool {
        self.body.is_none() && self.is_flushed()
    }

    /// True if the upstream may take more of the request.
    pub(super) const fn is_open(&self) -> bool {
        !self.is_broken && !self.is_complete()
    }

    /// True if all bytes that were sent can be sent again.
    pub(super) const fn can_rewind(&self) -> bool {
        !self.has_body || self.is_unsent()
    }

    /// True if no byte of the request was sent.
    pub(super) const fn is_unsent(&self) -> bool {
        !self.is_begun
    }

    /// Begins to send the request again.
    pub(super) fn rewind(&mut self) {
        self.front_sent = 0;
        self.is_begun = false;
        self.is_broken = false;
    }

    /// Sends the request. Ready when the system has taken all of it.
    ///
    /// `silence`: the upstream's silence before its response.
    pub(super) fn poll_send(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        mut silence: Option<&mut Silence>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        if self.is_broken {
            return Poll::Ready(Ok(()));
        }
        loop {
            // The first piece of the body leaves together with the head.
            let is_waiting =
                self.can_take_piece() && self.poll_piece(silence.as_deref_mut(), cx)?.is_pending();
            if !self.is_flushed() {
                let flushed = ready!(self.poll_flush(io, cx));
                self.is_broken = flushed.is_err();
                flushed.map_err(|_| UploadError::Upstream)?;
                if self.has_body
                    && let Some(silence) = silence.as_deref_mut()
                {
                    // The upstream took bytes, so it is not silent.
                    silence.restart();
                }
            }
            if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
            if is_waiting {
                return self.poll_stalled(silence, cx);
            }
        }
    }
}

impl Upload {
    const fn can_take_piece(&self) -> bool {
        self.body.is_some() && self.piece.is_empty() && self.end.is_empty()
    }

    const fn is_flushed(&self) -> bool {
        self.front_sent == self.front.len() && self.piece.is_empty() && self.end.is_empty()
    }

    /// Reads the next piece of the body.
    fn poll_piece(
        &mut self,
        silence: Option<&mut Silence>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        let Some(client) = &mut self.body else {
            return Poll::Ready(Ok(()));
        };
        let frame = ready!(Pin::new(&mut client.body).poll_frame(cx));
        client.timer = None;
        if let Some(silence) = silence {
            silence.restart();
        }
        if self.front_sent == self.front.len() {
            self.front.clear();
            self.front_sent = 0;
        }
        Poll::Ready(match frame.transpose() {
            Ok(frame) => self.add_frame(frame).map_err(UploadError::Client),
            Err(_) => Err(UploadError::Client(Failure::Client)),
        })
    }

    /// Adds a part of the body to the bytes that are sent next. `None`: the body has ended.
    fn add_frame(&mut self, frame: Option<Frame<Bytes>>) -> Result<(), Failure> {
        match frame.map(Frame::into_data) {
            Some(Ok(data)) => {
                self.add_data(data)?;
                if self
                    .body
                    .as_ref()
                    .is_some_and(|client| client.body.is_end_stream())
                {
                    self.end_body(None)?;
                }
                Ok(())
            }
            Some(Err(frame)) => self.end_body(frame.into_trailers().ok()),
            None => self.end_body(None),
        }
    }

    fn add_data(&mut self, data: Bytes) -> Result<(), Failure> {
        match self.body.as_mut().map(|client| &mut client.framing) {
            Some(BodyFraming::Bytes(left)) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Failure::Client)?;
            }
            Some(BodyFraming::Chunked(_)) if !data.is_empty() => {
                // A write to a vector cannot fail.
                let _ = write!(self.front, "{:x}\r\n", data.len());
                self.end = b"\r\n";
            }
            _ => {}
        }
        self.piece = data;
        Ok(())
    }

    /// # Errors
    /// The body is shorter than the head says.
    fn end_body(&mut self, trailers: Option<HeaderMap>) -> Result<(), Failure> {
        match self.body.take().map(|client| client.framing) {
            Some(BodyFraming::Bytes(1..)) => return Err(Failure::Client),
            Some(BodyFraming::Chunked(_)) if !self.piece.is_empty() => self.end = b"\r\n0\r\n\r\n",
            Some(BodyFraming::Chunked(allowed)) => {
                self.front.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().flatten() {
                    if allowed.contains(name) {
                        write_field(&mut self.front, name.as_str(), value.as_bytes());
                    }
                }
                self.front.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }

    fn poll_flush(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_flushed() {
            let mut io = Pin::new(&mut *io);
            let front = &self.front[self.front_sent..];
            let sent = if self.piece.is_empty() && self.end.is_empty() {
                ready!(io.as_mut().poll_write(cx, front))?
            } else {
                let parts = [front, &self.piece, self.end].map(IoSlice::new);
                ready!(io.as_mut().poll_write_vectored(cx, &parts))?
            };
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_begun = true;
            self.note_sent(sent);
        }
        Poll::Ready(Ok(()))
    }

    fn note_sent(&mut self, sent: usize) {
        let of_front = sent.min(self.front.len() - self.front_sent);
        self.front_sent += of_front;
        let of_piece = (sent - of_front).min(self.piece.len());
        drop(self.piece.split_to(of_piece));
        self.end = &self.end[sent - of_front - of_piece..];
    }

    /// Ready if the client has sent nothing for too long. Call this if there is nothing to read or send.
    fn poll_stalled(
        &mut self,
        silence: Option<&mut Silence>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        let Some(client) = &mut self.body else {
            return Poll::Ready(Ok(()));
        };
        if let Some(silence) = silence {
            silence.end();
        }
        let timeout = client.timeout;
        let timer = client
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(UploadError::Client(Failure::Stalled)))
    }
}
