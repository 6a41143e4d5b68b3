//! One direction of a connection: bytes go from a source to a sink as the sink takes them. What it does
//! not take is held back here as far as its client's source may, and else left where it is.

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use rustix::net::{RecvFlags, SendFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::super::splice::{self, Pipe};
use crate::listener::{Admitted, BufferGuard};

/// Bytes copied at once: one full TLS record, nearly.
pub(super) const CHUNK: usize = 16 * 1024;

/// After so many chunks that were full, one after the other, a direction is spliced.
const FULL_CHUNKS: u8 = 2;

/// A direction in which no more than this comes at once is copied again: two system calls on a
/// pipe cost more than copying so little.
const TRICKLE: usize = 4 * 1024;

/// Reads of one direction before the other has its turn.
const TURN: usize = 16;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// One direction.
pub(super) struct Direction<'a> {
    pub(super) from: ReadHalf<'a>,
    pub(super) to: WriteHalf<'a>,
    /// What its client's source may hold back.
    stay: &'a Admitted,
    held: Held<'a>,
    pub(super) state: State,
    /// Chunks in a row that were full.
    full_chunks: u8,
    /// Bytes that have gone on.
    pub(super) moved: u64,
}

/// What was read and not yet taken.
enum Held<'a> {
    Nothing,
    Bytes {
        bytes: Box<[u8]>,
        taken: usize,
        _back: BufferGuard<'a>,
    },
    Pipe {
        pipe: Pipe,
        /// Once the sink has not taken all of it.
        back: Option<BufferGuard<'a>>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// `copies`: splicing was refused.
    Open {
        copies: bool,
    },
    /// The sink takes nothing any more: what comes is read and thrown away.
    Nowhere,
    /// The source has ended: what is held goes on, then the end.
    Ending,
    Over,
}

/// What it means that a sink takes no more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    Needed,
    OrNowhere,
}

/// Which side ended a direction in the middle.
pub(super) enum Cut {
    Source(io::Error),
    Sink(io::Error),
}

/// What came of a read.
enum Came {
    Bytes,
    End,
}

impl<'a> Direction<'a> {
    pub(super) fn new(from: ReadHalf<'a>, to: WriteHalf<'a>, stay: &'a Admitted) -> Self {
        Self {
            from,
            to,
            stay,
            held: Held::Nothing,
            state: State::Open { copies: false },
            full_chunks: 0,
            moved: 0,
        }
    }

    pub(super) const fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Moves what can be moved; ready once the end was passed on. `last`: the other direction is
    /// over, so that both sockets are about to be closed, and need not be told the end before.
    pub(super) fn poll<W: FnMut(&[u8]) -> ControlFlow<()>>(
        &mut self,
        cx: &mut Context<'_>,
        sink: Sink,
        last: bool,
        watch: &mut Option<W>,
    ) -> Poll<Result<(), Cut>> {
        for _ in 0..TURN {
            match ready!(self.poll_write(cx)) {
                Ok(()) => {}
                Err(_) if sink == Sink::OrNowhere => {
                    self.held = Held::Nothing;
                    self.state = match self.state {
                        State::Ending => State::Over,
                        _ => State::Nowhere,
                    };
                }
                Err(error) => return Poll::Ready(Err(Cut::Sink(error))),
            }
            match self.state {
                State::Over => return Poll::Ready(Ok(())),
                State::Ending => {
                    let shut = match last {
                        true => Ok(()),
                        false => ready!(Pin::new(&mut self.to).poll_shutdown(cx)),
                    };
                    self.state = State::Over;
                    return Poll::Ready(match sink {
                        Sink::Needed => shut.map_err(Cut::Sink),
                        Sink::OrNowhere => Ok(()),
                    });
                }
                State::Open { .. } | State::Nowhere => {}
            }
            match ready!(self.poll_read(cx, watch)) {
                Ok(Came::Bytes) => {}
                Ok(Came::End) if self.state == State::Nowhere => self.state = State::Over,
                Ok(Came::End) => self.state = State::Ending,
                Err(error) => return Poll::Ready(Err(Cut::Source(error))),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Hands on what is held, all of it.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Bytes { bytes, taken, .. } => {
                    let rest = &bytes[*taken..];
                    let written = ready!(Pin::new(&mut self.to).poll_write(cx, rest))?;
                    *taken += written;
                    self.moved += written as u64;
                    if *taken == bytes.len() {
                        self.held = Held::Nothing;
                    }
                }
                Held::Pipe { pipe, back } => {
                    let to = self.to.as_ref();
                    let ready = to.poll_write_ready(cx);
                    if ready.is_pending() {
                        back.get_or_insert_with(|| self.stay.hold_pipe());
                    }
                    ready!(ready)?;
                    let before = pipe.held();
                    match pipe.drain(to) {
                        Ok(left) => {
                            self.moved += (before - left) as u64;
                            if left == 0 {
                                self.held = Held::Nothing;
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
    ) -> Poll<io::Result<Came>> {
        let streams = self.full_chunks >= FULL_CHUNKS && watch.is_none();
        if streams
            && self.state == (State::Open { copies: false })
            && self.stay.may_hold_pipe()
            && let Some(pipe) = Pipe::take()
        {
            return self.poll_splice(cx, pipe);
        }
        // What a server says until it has been seen is little, and has to be shown once.
        let holds =
            watch.is_some() || self.state == State::Nowhere || self.stay.may_buffer_bytes(CHUNK);
        BUFFER.with_borrow_mut(|buffer| match holds {
            true => self.poll_copy(cx, buffer, watch),
            false => self.poll_copy_what_is_taken(cx, buffer),
        })
    }

    fn poll_splice(&mut self, cx: &mut Context<'_>, mut pipe: Pipe) -> Poll<io::Result<Came>> {
        let from = self.from.as_ref();
        loop {
            ready!(from.poll_read_ready(cx))?;
            return match pipe.fill(from) {
                Ok(0) => Poll::Ready(Ok(Came::End)),
                Ok(len) => {
                    if len <= TRICKLE {
                        self.full_chunks = 0;
                    }
                    self.held = Held::Pipe { pipe, back: None };
                    Poll::Ready(Ok(Came::Bytes))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if splice::is_refused(&error) => {
                    self.state = State::Open { copies: true };
                    Poll::Ready(Ok(Came::Bytes))
                }
                Err(error) => Poll::Ready(Err(error)),
            };
        }
    }

    /// Through the worker's buffer, in which nothing may stay.
    fn poll_copy<W: FnMut(&[u8]) -> ControlFlow<()>>(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        watch: &mut Option<W>,
    ) -> Poll<io::Result<Came>> {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.from).poll_read(cx, &mut read))?;
        let bytes = read.filled();
        if bytes.is_empty() {
            return Poll::Ready(Ok(Came::End));
        }
        if let Some(show) = watch
            && show(bytes).is_break()
        {
            *watch = None;
        }
        self.full_chunks = match bytes.len() == CHUNK {
            true => self.full_chunks.saturating_add(1),
            false => 0,
        };
        if self.state == State::Nowhere {
            return Poll::Ready(Ok(Came::Bytes));
        }
        let last = bytes.len() < CHUNK && has_ended(self.from.as_ref());
        let taken = match last {
            true => send_before_the_end(self.to.as_ref(), bytes),
            false => match Pin::new(&mut self.to).poll_write(cx, bytes) {
                Poll::Ready(taken) => taken,
                Poll::Pending => Ok(0),
            },
        };
        // Where it failed, so does the next attempt, which is the one that is looked at.
        let taken = taken.unwrap_or(0);
        self.moved += taken as u64;
        self.hold(&bytes[taken..]);
        Poll::Ready(Ok(if last { Came::End } else { Came::Bytes }))
    }

    fn hold(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.held = Held::Bytes {
                bytes: bytes.into(),
                taken: 0,
                _back: self.stay.buffer_bytes(bytes.len()),
            };
        }
    }

    /// The same where nothing more may be held: the source keeps what the sink does not take. It takes
    /// a system call more, and a slow reader waits for nobody but itself.
    fn poll_copy_what_is_taken(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<Came>> {
        let mut seen = ReadBuf::new(buffer);
        let len = ready!(self.from.as_ref().poll_peek(cx, &mut seen))?;
        if len == 0 {
            return Poll::Ready(Ok(Came::End));
        }
        let written = ready!(Pin::new(&mut self.to).poll_write(cx, seen.filled()));
        // Where it failed, the bytes are held all the same, so that the next attempt is looked at.
        let taken = *written.as_ref().unwrap_or(&len);
        take_off(self.from.as_ref(), &mut buffer[..taken])?;
        match written {
            Ok(written) => self.moved += written as u64,
            Err(_) => self.hold(&buffer[..len]),
        }
        Poll::Ready(Ok(Came::Bytes))
    }
}

/// Takes bytes off a source that were seen there, and that are known: nothing is copied (tcp(7),
/// MSG_TRUNC). Not by way of the runtime, which may put a task off in the middle, and have it send the
/// same bytes again.
fn take_off(from: &TcpStream, mut seen: &mut [u8]) -> io::Result<()> {
    while !seen.is_empty() {
        let (_, taken) = from.try_io(Interest::READABLE, || {
            Ok(recv(from, &mut *seen, RecvFlags::TRUNC)?)
        })?;
        if taken == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let left = seen.len().saturating_sub(taken);
        seen = &mut seen[..left];
    }
    Ok(())
}

/// Whether the source of what was just read, which was less than there was room for, is known to have
/// ended: its end has come, so that the bytes were its last. Most clients end a connection with a
/// last record and the end in one go; to see it now is a read less, and a segment less to send on.
///
/// What is known of the socket has to be as old as the read: a worker is one thread, so that nothing
/// that came after the read can be known before the next await. With a runtime of several threads, bytes
/// and the end could come in between, and the bytes would be lost.
fn has_ended(from: &TcpStream) -> bool {
    let state = known_state(from);
    // A reset closes as well, and is to be read as what it is.
    state.is_read_closed() && !state.is_error()
}

/// What the runtime knows of a socket that may have something to read, without asking the system.
pub(in crate::balance) fn known_state(io: &TcpStream) -> Ready {
    let state = pin!(io.ready(Interest::READABLE | Interest::ERROR));
    match state.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(state)) => state,
        Poll::Ready(Err(_)) | Poll::Pending => Ready::EMPTY,
    }
}

/// Sends bytes that the end follows at once, in the same segment.
fn send_before_the_end(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    to.try_io(Interest::WRITABLE, || {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        Ok(rustix::net::send(to, bytes, flags)?)
    })
}
