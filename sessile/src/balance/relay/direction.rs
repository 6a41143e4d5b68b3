//! One direction of a connection: forwards bytes from a source to a sink as fast as the sink takes them.
//!
//! Bytes that the sink does not take are buffered within the limits of admission. Beyond these limits they
//! stay in the source's socket.

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::task::{Context, Poll, ready};

use rustix::net::SendFlags;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::pipe::{self, Pipe};
use super::socket::{self, poll_recv, poll_send, try_send};
use crate::listener::{Admitted, BufferGuard};

/// Bytes that are copied at once: nearly one full TLS record.
pub(super) const CHUNK: usize = 16 * 1024;

/// A direction is spliced after this many full chunks in a row.
const FULL_CHUNKS: u8 = 2;

/// A spliced direction is copied again if at most this many bytes come at once.
///
/// For so few bytes, the two system calls of a pipe cost more than the copy.
const TRICKLE: usize = 4 * 1024;

/// Most reads of one direction before the other direction is polled.
const READS_PER_TURN: usize = 16;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// One direction of a connection.
pub(super) struct Direction<'a> {
    pub(super) from: &'a TcpStream,
    pub(super) to: &'a TcpStream,
    /// Limits the buffered bytes of the client's source.
    admitted: &'a Admitted,
    buffered: Buffered<'a>,
    pub(super) state: DirectionState,
    /// The number of full chunks in a row.
    full_chunks: u8,
    /// The number of bytes that went on.
    pub(super) forwarded: u64,
}

/// Bytes that were read and that the sink did not take yet.
enum Buffered<'a> {
    Nothing,
    Bytes {
        bytes: Box<[u8]>,
        sent: usize,
        _counted: BufferGuard<'a>,
    },
    Pipe {
        pipe: Pipe,
        /// Set when the sink did not take everything at once.
        counted: Option<BufferGuard<'a>>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DirectionState {
    /// `copies`: the system refused to splice these sockets.
    Open {
        copies: bool,
    },
    /// The sink takes no more bytes. Bytes from the source are read and discarded.
    Discarding,
    /// The source ended. The sink still gets the buffered bytes, and then the end.
    Ending,
    Over,
}

/// The consequence if a sink takes no more bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    /// The direction is broken.
    Required,
    /// The direction discards its bytes.
    Discardable,
}

/// The side that broke.
pub(super) enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

/// The result of a read.
enum ReadResult {
    Bytes,
    End,
}

impl<'a> Direction<'a> {
    pub(super) const fn new(
        from: &'a TcpStream,
        to: &'a TcpStream,
        admitted: &'a Admitted,
    ) -> Self {
        Self {
            from,
            to,
            admitted,
            buffered: Buffered::Nothing,
            state: DirectionState::Open { copies: false },
            full_chunks: 0,
            forwarded: 0,
        }
    }

    pub(super) const fn is_over(&self) -> bool {
        matches!(self.state, DirectionState::Over)
    }

    /// Forwards all bytes that can go on now. Ready after the source's end was passed on.
    ///
    /// `last`: the other direction is over. Then both sockets close soon, and the end needs no shutdown.
    pub(super) fn poll<W: FnMut(&[u8]) -> ControlFlow<()>>(
        &mut self,
        cx: &mut Context<'_>,
        sink: Sink,
        last: bool,
        watch: &mut Option<W>,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..READS_PER_TURN {
            match ready!(self.poll_write(cx)) {
                Ok(()) => {}
                Err(_) if sink == Sink::Discardable => {
                    self.buffered = Buffered::Nothing;
                    self.state = match self.state {
                        DirectionState::Ending => DirectionState::Over,
                        _ => DirectionState::Discarding,
                    };
                }
                Err(error) => return Poll::Ready(Err(Broken::Sink(error))),
            }
            match self.state {
                DirectionState::Over => return Poll::Ready(Ok(())),
                DirectionState::Ending => {
                    let shut = if last { Ok(()) } else { socket::end(self.to) };
                    self.state = DirectionState::Over;
                    return Poll::Ready(match sink {
                        Sink::Required => shut.map_err(Broken::Sink),
                        Sink::Discardable => Ok(()),
                    });
                }
                DirectionState::Open { .. } | DirectionState::Discarding => {}
            }
            match ready!(self.poll_read(cx, watch)) {
                Ok(ReadResult::Bytes) => {}
                Ok(ReadResult::End) if self.state == DirectionState::Discarding => {
                    self.state = DirectionState::Over;
                }
                Ok(ReadResult::End) => self.state = DirectionState::Ending,
                Err(error) => return Poll::Ready(Err(Broken::Source(error))),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes all buffered bytes.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.buffered {
                Buffered::Nothing => return Poll::Ready(Ok(())),
                Buffered::Bytes { bytes, sent, .. } => {
                    let rest = &bytes[*sent..];
                    let written = ready!(poll_send(self.to, cx, rest))?;
                    *sent += written;
                    self.forwarded += written as u64;
                    if *sent == bytes.len() {
                        self.buffered = Buffered::Nothing;
                    }
                }
                Buffered::Pipe { pipe, counted } => {
                    let to = self.to;
                    let writable = to.poll_write_ready(cx);
                    if writable.is_pending() {
                        counted.get_or_insert_with(|| self.admitted.hold_pipe());
                    }
                    ready!(writable)?;
                    let before = pipe.len();
                    match pipe.drain(to) {
                        Ok(left) => {
                            self.forwarded += (before - left) as u64;
                            if left == 0 {
                                self.buffered = Buffered::Nothing;
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
    }

    fn poll_read<W: FnMut(&[u8]) -> ControlFlow<()>>(
        &mut self,
        cx: &mut Context<'_>,
        watch: &mut Option<W>,
    ) -> Poll<io::Result<ReadResult>> {
        let is_stream = self.full_chunks >= FULL_CHUNKS && watch.is_none();
        if is_stream
            && self.state == (DirectionState::Open { copies: false })
            && self.admitted.may_hold_pipe()
            && let Some(pipe) = Pipe::take()
        {
            return self.poll_splice(cx, pipe);
        }
        // `watch` must see each byte exactly once, so watched bytes cannot stay in the socket. They are few.
        let may_buffer = watch.is_some()
            || self.state == DirectionState::Discarding
            || self.admitted.may_buffer_bytes(CHUNK);
        BUFFER.with_borrow_mut(|buffer| {
            if may_buffer {
                self.poll_copy(cx, buffer, watch)
            } else {
                self.poll_copy_unbuffered(cx, buffer)
            }
        })
    }

    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        mut pipe: Pipe,
    ) -> Poll<io::Result<ReadResult>> {
        let from = self.from;
        loop {
            ready!(from.poll_read_ready(cx))?;
            return match pipe.fill(from) {
                Ok(0) => Poll::Ready(Ok(ReadResult::End)),
                Ok(len) => {
                    if len <= TRICKLE {
                        self.full_chunks = 0;
                    }
                    let counted = None;
                    self.buffered = Buffered::Pipe { pipe, counted };
                    Poll::Ready(Ok(ReadResult::Bytes))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if pipe::cannot_splice(&error) => {
                    self.state = DirectionState::Open { copies: true };
                    Poll::Ready(Ok(ReadResult::Bytes))
                }
                Err(error) => Poll::Ready(Err(error)),
            };
        }
    }

    /// Copies through the worker's buffer. Bytes that the sink does not take are buffered.
    fn poll_copy<W: FnMut(&[u8]) -> ControlFlow<()>>(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        watch: &mut Option<W>,
    ) -> Poll<io::Result<ReadResult>> {
        let len = ready!(poll_recv(self.from, cx, buffer))?;
        let bytes = &buffer[..len];
        if bytes.is_empty() {
            return Poll::Ready(Ok(ReadResult::End));
        }
        if let Some(show) = watch
            && show(bytes).is_break()
        {
            *watch = None;
        }
        if bytes.len() == CHUNK {
            self.full_chunks = self.full_chunks.saturating_add(1);
        } else {
            self.full_chunks = 0;
        }
        if self.state == DirectionState::Discarding {
            return Poll::Ready(Ok(ReadResult::Bytes));
        }
        let has_ended = bytes.len() < CHUNK && socket::is_known_to_have_ended(self.from);
        let flags = if has_ended {
            // The bytes leave in the same segment as the end that follows.
            SendFlags::MORE
        } else {
            SendFlags::empty()
        };
        // Ignore an error here. The next write of the buffered bytes fails again, and its error is handled.
        let sent = try_send(self.to, bytes, flags).unwrap_or(0);
        self.forwarded += sent as u64;
        self.buffer(&bytes[sent..]);
        Poll::Ready(Ok(if has_ended {
            ReadResult::End
        } else {
            ReadResult::Bytes
        }))
    }

    fn buffer(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.buffered = Buffered::Bytes {
                bytes: bytes.into(),
                sent: 0,
                _counted: self.admitted.buffer_bytes(bytes.len()),
            };
        }
    }

    /// Copies, but buffers nothing. Bytes that the sink does not take stay in the source's socket.
    ///
    /// This costs one more system call than [`Self::poll_copy`].
    fn poll_copy_unbuffered(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<ReadResult>> {
        let mut peeked = ReadBuf::new(buffer);
        let len = ready!(self.from.poll_peek(cx, &mut peeked))?;
        if len == 0 {
            return Poll::Ready(Ok(ReadResult::End));
        }
        let written = ready!(poll_send(self.to, cx, peeked.filled()));
        // After an error, buffer the bytes. The next write fails again, and its error is handled.
        let taken = *written.as_ref().unwrap_or(&len);
        socket::remove_peeked(self.from, &mut buffer[..taken])?;
        match written {
            Ok(written) => self.forwarded += written as u64,
            Err(_) => self.buffer(&buffer[..len]),
        }
        Poll::Ready(Ok(ReadResult::Bytes))
    }
}
