//! Forwards bytes both ways between a client and a server, with half-closes, resets and backpressure.
//!
//! An idle connection holds no buffer. Small amounts go through a buffer of the worker, and streams go through a
//! pipe in the kernel. A connection keeps only bytes that a peer does not take, within the limits of admission.

mod direction;
mod pipe;
mod socket;

pub(super) use pipe::{allow_pipes, max_pipes, pipe_files};
pub(super) use socket::readiness;

use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use self::direction::{Broken, Direction, DirectionState, Sink};
use crate::listener::Admitted;

/// How long a client may keep its side open without a byte after the server ended the other side.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(30);

/// After a server broke the connection, its last bytes have this long to reach the client. Then the client is
/// reset too.
const RESET_GRACE: Duration = Duration::from_millis(200);

/// Keep-alive probes are turned on after this time. Most connections end earlier, and save the system calls.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(60);

/// The time between two reports of a connection's byte counts.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Most bytes that a server sends when it closes an idle connection: close_notify and an HTTP/2 GOAWAY.
///
/// These bytes do not count as a use of the session.
const MAX_CLOSING_BYTES: u64 = 128;

/// The time limits of a connection, and the time between reports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// The longest time without a byte in either direction. Zero: no limit.
    pub(super) idle: Duration,
    /// The longest time from start to end. Zero: no limit.
    pub(super) total: Duration,
    /// The longest time without a byte after the server ended its side.
    pub(super) half_closed: Duration,
    /// The time between two reports of the byte counts.
    pub(super) report: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle: Duration::ZERO,
            total: Duration::ZERO,
            half_closed: HALF_CLOSED_TIMEOUT,
            report: REPORT_INTERVAL,
        }
    }
}

/// The functions that see the bytes of each side.
pub(super) struct Watches<C, S> {
    pub(super) client: C,
    pub(super) server: S,
}

/// Forwarded bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ByteCounts {
    /// From the client, without the ClientHello.
    pub(super) up: u64,
    /// From the server.
    pub(super) down: u64,
}

/// The end of a connection.
#[derive(Debug)]
pub(super) struct ConnectionEnd {
    /// True if a byte of the server went on to the client.
    pub(super) answered: bool,
    /// True if the server ended its side first.
    pub(super) by_server: bool,
    /// The last time that bytes moved. The few bytes with which a server closes an idle connection do not
    /// count.
    pub(super) last_used: Instant,
    pub(super) reason: EndReason,
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum EndReason {
    /// Both sides ended in order.
    Closed,
    /// One side broke. The other side was reset, because an orderly end would hide the failure.
    Broken(io::Error),
    /// The server ended its side, and then the client sent nothing.
    HalfClosed,
    /// `balance.idle-timeout`.
    Idle,
    /// `balance.total-timeout`.
    Total,
    /// Another source gets the place of the connection.
    Displaced,
}

/// Forwards bytes until both sides have ended.
///
/// The watches see the bytes of a side before the other side gets them. The balancer must know a session before
/// the client can use it. A watch breaks when it needs no more bytes. `report` gets the byte counts in parts.
/// `displaced` ends the connection.
pub(super) async fn run(
    client: &TcpStream,
    server: &TcpStream,
    admitted: &Admitted,
    timeouts: Timeouts,
    report: &dyn Fn(ByteCounts),
    watches: Watches<impl FnMut(&[u8]) -> ControlFlow<()>, impl FnMut(&[u8]) -> ControlFlow<()>>,
    displaced: impl Future<Output = ()>,
) -> ConnectionEnd {
    let end = {
        let started = Instant::now();
        let mut relay = Relay {
            up: Direction::new(client, server, admitted),
            down: Direction::new(server, client, admitted),
            watch_client: Some(watches.client),
            watch_server: Some(watches.server),
            report,
            reported: ByteCounts::default(),
            timeouts,
            started,
            last_active: started,
            last_used: started,
            keeps_alive: false,
            ended_by_server: false,
            half_closed_since: None,
            timer: TimerPurpose::Check,
        };
        let mut sleep = pin!(tokio::time::sleep_until(relay.next_check()));
        let reason = tokio::select! {
            biased;
            reason = poll_fn(|cx| relay.poll(cx, sleep.as_mut())) => reason,
            () = displaced => EndReason::Displaced,
        };
        relay.report();
        ConnectionEnd {
            answered: relay.down.forwarded > 0,
            by_server: relay.ended_by_server,
            last_used: relay.last_used,
            reason,
        }
    };
    if let EndReason::Broken(_) = end.reason {
        for side in [client, server] {
            let _ = SockRef::from(side).set_linger(Some(Duration::ZERO));
        }
    }
    end
}

struct Relay<'a, C, S> {
    up: Direction<'a>,
    down: Direction<'a>,
    /// `None` after the watch broke.
    watch_client: Option<C>,
    /// `None` after the watch broke.
    watch_server: Option<S>,
    report: &'a dyn Fn(ByteCounts),
    reported: ByteCounts,
    timeouts: Timeouts,
    started: Instant,
    /// The last time that bytes moved.
    last_active: Instant,
    /// See [`ConnectionEnd::last_used`].
    last_used: Instant,
    keeps_alive: bool,
    ended_by_server: bool,
    /// The time when the server ended its side while the client's side was open.
    half_closed_since: Option<Instant>,
    timer: TimerPurpose,
}

/// The purpose of the timer.
enum TimerPurpose {
    /// Checks the time limits, and reports the byte counts. Bytes do not postpone this timer.
    Check,
    /// Resets the client after the server broke.
    ///
    /// An immediate reset would destroy the server's last bytes on their way to the client.
    Reset(io::Error),
}

impl<C, S> Relay<'_, C, S>
where
    C: FnMut(&[u8]) -> ControlFlow<()>,
    S: FnMut(&[u8]) -> ControlFlow<()>,
{
    fn poll(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<EndReason> {
        let (up_before, down_before) = (self.up.forwarded, self.down.forwarded);
        let polled = self.poll_directions(cx, sleep.as_mut());
        let up = self.up.forwarded - up_before;
        let down = self.down.forwarded - down_before;
        if up + down > 0 {
            self.last_active = Instant::now();
            if up > 0 || down > MAX_CLOSING_BYTES {
                self.last_used = self.last_active;
            }
            let next_report = self.last_active + self.timeouts.report;
            if sleep.deadline() > next_report {
                sleep.as_mut().reset(next_report);
            }
        }
        if polled.is_ready() {
            return polled;
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if let ControlFlow::Break(end) = self.on_timer() {
                return Poll::Ready(end);
            }
            sleep.as_mut().reset(self.next_check());
        }
        Poll::Pending
    }

    fn poll_directions(&mut self, cx: &mut Context<'_>, sleep: Pin<&mut Sleep>) -> Poll<EndReason> {
        if !self.up.is_over() {
            // Read the client's bytes even if the server takes no more bytes. Unread bytes would make the
            // system reset the connection while the answer is on its way.
            let last = self.down.is_over();
            let watch = &mut self.watch_client;
            let polled = self.up.poll(cx, Sink::Discardable, last, watch);
            if let Poll::Ready(Err(Broken::Source(error) | Broken::Sink(error))) = polled {
                return Poll::Ready(EndReason::Broken(error));
            }
        }
        if !self.down.is_over() {
            let last = self.up.is_over();
            let polled = self
                .down
                .poll(cx, Sink::Required, last, &mut self.watch_server);
            let server_ended = matches!(polled, Poll::Ready(Ok(()) | Err(Broken::Source(_))));
            self.ended_by_server |= server_ended && !last;
            match polled {
                Poll::Ready(Ok(())) if !self.up.is_over() => {
                    self.half_closed_since = Some(Instant::now());
                    sleep.reset(self.next_check());
                }
                Poll::Ready(Err(Broken::Source(error))) => {
                    self.down.state = DirectionState::Over;
                    self.timer = TimerPurpose::Reset(error);
                    sleep.reset(Instant::now() + RESET_GRACE);
                }
                Poll::Ready(Err(Broken::Sink(error))) => {
                    return Poll::Ready(EndReason::Broken(error));
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let awaits_reset = matches!(self.timer, TimerPurpose::Reset(_));
        if self.up.is_over() && self.down.is_over() && !awaits_reset {
            Poll::Ready(EndReason::Closed)
        } else {
            Poll::Pending
        }
    }

    fn on_timer(&mut self) -> ControlFlow<EndReason> {
        let purpose = std::mem::replace(&mut self.timer, TimerPurpose::Check);
        if let TimerPurpose::Reset(error) = purpose {
            return ControlFlow::Break(EndReason::Broken(error));
        }
        let now = Instant::now();
        let Timeouts { idle, total, .. } = self.timeouts;
        if !total.is_zero() && now >= self.started + total {
            return ControlFlow::Break(EndReason::Total);
        }
        if !idle.is_zero() && now >= self.last_active + idle {
            return ControlFlow::Break(EndReason::Idle);
        }
        if self.half_closed_until().is_some_and(|until| now >= until) {
            return ControlFlow::Break(EndReason::HalfClosed);
        }
        self.report();
        if !self.keeps_alive && now >= self.started + KEEP_ALIVE_AFTER {
            self.keeps_alive = true;
            keep_alive(self.up.from);
            keep_alive(self.up.to);
        }
        ControlFlow::Continue(())
    }

    fn next_check(&self) -> Instant {
        const FAR: Duration = Duration::from_secs(24 * 60 * 60);
        let Timeouts { idle, total, .. } = self.timeouts;
        let checks = [
            (!idle.is_zero()).then(|| self.last_active + idle),
            (!total.is_zero()).then(|| self.started + total),
            (!self.keeps_alive).then(|| self.started + KEEP_ALIVE_AFTER),
            self.half_closed_until(),
        ];
        let next = checks.into_iter().flatten().min();
        next.unwrap_or_else(|| Instant::now() + FAR)
    }

    /// The time when a half-closed connection ends, if no more bytes move.
    fn half_closed_until(&self) -> Option<Instant> {
        let since = self.half_closed_since?.max(self.last_active);
        Some(since + self.timeouts.half_closed)
    }

    /// Reports the bytes since the last report.
    fn report(&mut self) {
        let ByteCounts { up, down } = self.reported;
        self.reported = ByteCounts {
            up: self.up.forwarded,
            down: self.down.forwarded,
        };
        (self.report)(ByteCounts {
            up: self.up.forwarded - up,
            down: self.down.forwarded - down,
        });
    }
}

/// Makes the kernel probe whether a peer is still there. A peer that vanished does not close the connection.
fn keep_alive(io: &TcpStream) {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    // On an error the connection goes on without probes.
    let _ = SockRef::from(io).set_tcp_keepalive(&probes);
}

#[cfg(test)]
mod tests;
