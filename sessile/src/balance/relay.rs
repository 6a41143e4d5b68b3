//! Bytes both ways between a client and a server, with half-closes, resets and backpressure carried
//! on. A connection that is idle holds no memory for bytes: small amounts go through a buffer of the
//! worker's, and a stream of them through a pipe in the kernel. Only what a peer does not take yet
//! stays with the connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::net::SendFlags;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, Sleep};

use super::splice::{self, Pipe};

/// Bytes copied at once: one full TLS record, nearly.
const CHUNK: usize = 16 * 1024;

/// After so many chunks that were full, one after the other, a direction is spliced.
const FULL_CHUNKS: u8 = 2;

/// A direction in which no more than this comes at once is copied again: two system calls on a
/// pipe cost more than copying so little.
const TRICKLE: usize = 4 * 1024;

/// How long a client may keep its side open once the server has ended, without a byte.
const AFTER_THE_SERVER: Duration = Duration::from_secs(30);

/// How long a server's last bytes have to reach the client before it is reset as well.
const RESET_GRACE: Duration = Duration::from_millis(200);

/// After this long the kernel is told to ask now and then whether the peers are still there. Most
/// connections are over by then, and are spared the system calls.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(60);

/// What moves is reported after this long, for the metrics of connections that stay.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Reads of one direction before the other has its turn.
const TURN: usize = 16;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// Most bytes of what a server says when it clears an idle connection away, a close_notify and what
/// HTTP/2 says before it: nothing that uses a session.
const GOODBYE: u64 = 128;

/// How long a connection may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Without a byte in either direction; zero: for ever.
    pub(super) idle: Duration,
    /// In all; zero: for ever.
    pub(super) total: Duration,
    /// Without a byte, once the server has ended its side.
    pub(super) half_closed: Duration,
    /// Until what moves is reported.
    pub(super) report: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            idle: Duration::ZERO,
            total: Duration::ZERO,
            half_closed: AFTER_THE_SERVER,
            report: REPORT_EVERY,
        }
    }
}

/// Bytes that went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// From the client, the hello not counted.
    pub(super) up: u64,
    /// From the server.
    pub(super) down: u64,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// The server has said something that went on.
    pub(super) answered: bool,
    /// The server was the first to end its side.
    pub(super) by_server: bool,
    /// When bytes last moved that were more than a goodbye.
    pub(super) silent_since: Instant,
    pub(super) end: End,
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both sides ended.
    Orderly,
    /// One side was cut off, and so was the other: it is not made to look like an orderly end.
    Cut(io::Error),
    /// The server had ended its side, and the client fell silent.
    HalfClosed,
    /// `balance.idle-timeout`.
    Idle,
    /// `balance.total-timeout`.
    TooLong,
}

/// Moves bytes until both sides have ended. What the server sends is shown to `watch` before it
/// goes on, so that nothing that a client can act on is unknown when it arrives; until it breaks,
/// because it has seen enough. How much moved is told to `report`, in parts, all of it by the end.
pub(super) async fn run(
    client: &mut TcpStream,
    server: &mut TcpStream,
    patience: Patience,
    report: &dyn Fn(Moved),
    watch: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Ended {
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let started = Instant::now();
        let mut relay = Relay {
            up: Direction::new(from_client, to_server),
            down: Direction::new(from_server, to_client),
            watch: Some(watch),
            report,
            reported: Moved::default(),
            patience,
            started,
            active: started,
            used: started,
            kept_alive: false,
            by_server: false,
            half_closed: None,
            due: Due::Check,
        };
        let mut timer = pin!(tokio::time::sleep_until(relay.next_check()));
        let end = poll_fn(|cx| relay.poll(cx, timer.as_mut())).await;
        relay.report();
        Ended {
            answered: relay.down.moved > 0,
            by_server: relay.by_server,
            silent_since: relay.used,
            end,
        }
    };
    if let End::Cut(_) = ended.end {
        for side in [client, server] {
            let _ = SockRef::from(&*side).set_linger(Some(Duration::ZERO));
        }
    }
    ended
}

struct Relay<'a, W> {
    up: Direction<'a>,
    down: Direction<'a>,
    /// `None`: it has seen enough.
    watch: Option<W>,
    report: &'a dyn Fn(Moved),
    reported: Moved,
    patience: Patience,
    started: Instant,
    /// When bytes moved last.
    active: Instant,
    /// When bytes moved last that were more than a goodbye.
    used: Instant,
    kept_alive: bool,
    by_server: bool,
    /// When the server ended its side, the client's being open.
    half_closed: Option<Instant>,
    due: Due,
}

/// What the timer is for.
enum Due {
    /// To see whether the connection was idle, and to report. It is not set anew with each byte.
    Check,
    /// The server was cut off: what it said before is on its way to the client, and a reset at once
    /// would take it back.
    Reset(io::Error),
}

impl<W: FnMut(&[u8]) -> ControlFlow<()>> Relay<'_, W> {
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<End> {
        let before = (self.up.moved, self.down.moved);
        let polled = self.poll_directions(cx, timer.as_mut());
        let (up, down) = (self.up.moved - before.0, self.down.moved - before.1);
        if up + down > 0 {
            self.active = Instant::now();
            if up > 0 || down > GOODBYE {
                self.used = self.active;
            }
            let report = self.active + self.patience.report;
            if timer.deadline() > report {
                timer.as_mut().reset(report);
            }
        }
        if let Poll::Ready(end) = polled {
            return Poll::Ready(end);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let ControlFlow::Break(end) = self.on_time() {
                return Poll::Ready(end);
            }
            timer.as_mut().reset(self.next_check());
        }
        Poll::Pending
    }

    fn poll_directions(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<End> {
        if !self.up.is_over() {
            // What a client goes on sending has to be read, even where the server takes no more of
            // it: the connection to it would be reset with the answer on its way.
            match self
                .up
                .poll(cx, Sink::OrNowhere, self.down.is_over(), &mut None::<W>)
            {
                Poll::Ready(Err(Cut::Source(error) | Cut::Sink(error))) => {
                    return Poll::Ready(End::Cut(error));
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if !self.down.is_over() {
            let last = self.up.is_over();
            let polled = self.down.poll(cx, Sink::Needed, last, &mut self.watch);
            // A server that cannot be told anything any more has ended as well.
            self.by_server |= !last && matches!(polled, Poll::Ready(Ok(()) | Err(Cut::Source(_))));
            match polled {
                Poll::Ready(Ok(())) if !self.up.is_over() => {
                    self.half_closed = Some(Instant::now());
                    timer.reset(self.next_check());
                }
                Poll::Ready(Err(Cut::Source(error))) => {
                    self.down.state = State::Over;
                    self.due = Due::Reset(error);
                    timer.reset(Instant::now() + RESET_GRACE);
                }
                Poll::Ready(Err(Cut::Sink(error))) => return Poll::Ready(End::Cut(error)),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let waits = matches!(self.due, Due::Reset(_));
        match self.up.is_over() && self.down.is_over() && !waits {
            true => Poll::Ready(End::Orderly),
            false => Poll::Pending,
        }
    }

    /// The timer has fired.
    fn on_time(&mut self) -> ControlFlow<End> {
        match std::mem::replace(&mut self.due, Due::Check) {
            Due::Reset(error) => return ControlFlow::Break(End::Cut(error)),
            Due::Check => {}
        }
        let now = Instant::now();
        let Patience { idle, total, .. } = self.patience;
        if !total.is_zero() && now >= self.started + total {
            return ControlFlow::Break(End::TooLong);
        }
        if !idle.is_zero() && now >= self.active + idle {
            return ControlFlow::Break(End::Idle);
        }
        if self.half_closed_until().is_some_and(|until| now >= until) {
            return ControlFlow::Break(End::HalfClosed);
        }
        self.report();
        if !self.kept_alive && now >= self.started + KEEP_ALIVE_AFTER {
            self.kept_alive = true;
            keep_alive(self.up.from.as_ref());
            keep_alive(self.up.to.as_ref());
        }
        ControlFlow::Continue(())
    }

    fn next_check(&self) -> Instant {
        const FAR: Duration = Duration::from_secs(24 * 60 * 60);
        let Patience { idle, total, .. } = self.patience;
        let wanted = [
            (!idle.is_zero()).then(|| self.active + idle),
            (!total.is_zero()).then(|| self.started + total),
            (!self.kept_alive).then(|| self.started + KEEP_ALIVE_AFTER),
            self.half_closed_until(),
        ];
        let next = wanted.into_iter().flatten().min();
        next.unwrap_or_else(|| Instant::now() + FAR)
    }

    /// When a client that says nothing more after its server's end is cut off.
    fn half_closed_until(&self) -> Option<Instant> {
        let since = self.half_closed?.max(self.active);
        Some(since + self.patience.half_closed)
    }

    /// Reports what has moved since the last time.
    fn report(&mut self) {
        let Moved { up, down } = self.reported;
        self.reported = Moved {
            up: self.up.moved,
            down: self.down.moved,
        };
        (self.report)(Moved {
            up: self.up.moved - up,
            down: self.down.moved - down,
        });
    }
}

/// Makes the kernel ask now and then whether a peer is still there: one that vanished would hold
/// its connection until it counts as idle.
fn keep_alive(io: &TcpStream) {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    // A connection without it works as well, but for the one case.
    let _ = SockRef::from(io).set_tcp_keepalive(&probes);
}

/// One direction.
struct Direction<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    held: Held,
    state: State,
    /// Chunks in a row that were full.
    full_chunks: u8,
    /// Bytes that have gone on.
    moved: u64,
}

/// What was read and not yet taken.
enum Held {
    Nothing,
    Bytes { bytes: Box<[u8]>, taken: usize },
    Pipe(Pipe),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
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
enum Sink {
    Needed,
    OrNowhere,
}

/// Which side ended a direction in the middle.
enum Cut {
    Source(io::Error),
    Sink(io::Error),
}

/// What came of a read.
enum Came {
    Bytes,
    End,
}

impl<'a> Direction<'a> {
    fn new(from: ReadHalf<'a>, to: WriteHalf<'a>) -> Self {
        Self {
            from,
            to,
            held: Held::Nothing,
            state: State::Open { copies: false },
            full_chunks: 0,
            moved: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Moves what can be moved; ready once the end was passed on. `last`: the other direction is
    /// over, so that both sockets are about to be closed, and need not be told the end before.
    fn poll<W: FnMut(&[u8]) -> ControlFlow<()>>(
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
                Held::Bytes { bytes, taken } => {
                    let rest = &bytes[*taken..];
                    let written = ready!(Pin::new(&mut self.to).poll_write(cx, rest))?;
                    *taken += written;
                    self.moved += written as u64;
                    if *taken == bytes.len() {
                        self.held = Held::Nothing;
                    }
                }
                Held::Pipe(pipe) => {
                    let to = self.to.as_ref();
                    ready!(to.poll_write_ready(cx))?;
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
            && let Some(pipe) = Pipe::take()
        {
            return self.poll_splice(cx, pipe);
        }
        BUFFER.with_borrow_mut(|buffer| self.poll_copy(cx, buffer, watch))
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
                    self.held = Held::Pipe(pipe);
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
        if taken < bytes.len() {
            self.held = Held::Bytes {
                bytes: bytes[taken..].into(),
                taken: 0,
            };
        }
        Poll::Ready(Ok(if last { Came::End } else { Came::Bytes }))
    }
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
pub(super) fn known_state(io: &TcpStream) -> Ready {
    let state = pin!(io.ready(Interest::READABLE | Interest::ERROR));
    match state.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(state)) => state,
        Poll::Ready(Err(_)) | Poll::Pending => Ready::EMPTY,
    }
}

#[cfg(test)]
mod tests;

/// Sends bytes that the end follows at once, in the same segment.
fn send_before_the_end(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    to.try_io(Interest::WRITABLE, || {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        Ok(rustix::net::send(to, bytes, flags)?)
    })
}
