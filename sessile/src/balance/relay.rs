//! Bytes both ways between a client and a server, with half-closes, resets and backpressure carried
//! on. A connection that is idle holds no memory for bytes: small amounts go through a buffer of the
//! worker's, and a stream of them through a pipe in the kernel. Only what a peer does not take yet
//! stays with the connection, within the limits of its client's source.

mod direction;

pub(super) use direction::known_state;

use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use self::direction::{Cut, Direction, Sink, State};
use crate::listener::Admitted;

/// How long a client may keep its side open once the server has ended, without a byte.
const AFTER_THE_SERVER: Duration = Duration::from_secs(30);

/// How long a server's last bytes have to reach the client before it is reset as well.
const RESET_GRACE: Duration = Duration::from_millis(200);

/// After this long the kernel is told to ask now and then whether the peers are still there. Most
/// connections are over by then, and are spared the system calls.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(60);

/// What moves is reported after this long, for the metrics of connections that stay.
const REPORT_EVERY: Duration = Duration::from_secs(60);

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
    stay: &Admitted,
    patience: Patience,
    report: &dyn Fn(Moved),
    watch: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Ended {
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let started = Instant::now();
        let mut relay = Relay {
            up: Direction::new(from_client, to_server, stay),
            down: Direction::new(from_server, to_client, stay),
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

#[cfg(test)]
mod tests;
