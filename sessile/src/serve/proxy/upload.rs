//! The request's body, which goes to the upstream, and how long an upstream has been silent.
//!
//! The time in which the proxy waits for the client does not count as silence of the upstream.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::serve::pending_upstreams::{PendingUpstream, PendingUpstreams};

/// The awaited event of a request that has no response yet.
enum WaitingFor {
    /// The upstream, since this time.
    Upstream(
        Instant,
        #[expect(dead_code, reason = "held, not read")] PendingUpstream,
    ),
    /// More of the request's body.
    Client,
    /// Nothing: the client's connection failed before the end of the request's body.
    Aborted,
    /// Nothing: the client sent no byte of the request's body for `connection.body-timeout`.
    Stalled,
}

/// Measures how long an upstream has been silent before its response.
///
/// While this clock waits for the upstream, the client's connection is not idle.
pub(super) struct SilenceClock {
    waiting_for: Rc<RefCell<WaitingFor>>,
    pending: PendingUpstreams,
}

impl SilenceClock {
    pub(super) fn start(pending: &PendingUpstreams) -> Self {
        let waiting_for = WaitingFor::Upstream(Instant::now(), pending.begin());
        Self {
            waiting_for: Rc::new(RefCell::new(waiting_for)),
            pending: pending.clone(),
        }
    }

    /// The start of the upstream's silence; the current time if the request does not wait for the
    /// upstream.
    pub(super) fn silent_since(&self) -> Instant {
        match *self.waiting_for.borrow() {
            WaitingFor::Upstream(since, _) => since,
            WaitingFor::Client | WaitingFor::Aborted | WaitingFor::Stalled => Instant::now(),
        }
    }

    /// True if the client stopped sending the request's body.
    pub(super) fn client_stalled(&self) -> bool {
        matches!(*self.waiting_for.borrow(), WaitingFor::Stalled)
    }

    /// True if the client's connection failed before the end of the request's body.
    pub(super) fn client_aborted(&self) -> bool {
        matches!(*self.waiting_for.borrow(), WaitingFor::Aborted)
    }
}

/// A request's body, which is sent to the upstream. The body fails if the client sends nothing for too
/// long.
pub(super) struct Upload {
    /// `None` is an empty body.
    body: Option<ClientBody>,
    /// A weak reference, because an upstream can answer before the end of the body. The answer drops the
    /// clock.
    waiting_for: Weak<RefCell<WaitingFor>>,
    pending: PendingUpstreams,
}

struct ClientBody {
    body: Incoming,
    /// How long the client may send nothing.
    timeout: Duration,
    /// Runs while the client sends nothing.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    /// `body`: `None` sends an empty body. `timeout`: how long the client may send nothing.
    pub(super) fn new(body: Option<Incoming>, clock: &SilenceClock, timeout: Duration) -> Self {
        let body = body.filter(|body| !body.is_end_stream());
        Self {
            body: body.map(|body| ClientBody {
                body,
                timeout,
                timer: None,
            }),
            waiting_for: Rc::downgrade(&clock.waiting_for),
            pending: clock.pending.clone(),
        }
    }

    fn wait_for(&self, next: WaitingFor) {
        if let Some(waiting_for) = self.waiting_for.upgrade() {
            waiting_for.replace(next);
        }
    }
}

impl ClientBody {
    /// Ready if the client has sent nothing for too long. Call this if there is nothing to read.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        timer.as_mut().poll(cx)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(client) = &mut self.body else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(&mut client.body).poll_frame(cx) else {
            let stalled = client.poll_stalled(cx);
            self.wait_for(if stalled.is_ready() {
                WaitingFor::Stalled
            } else {
                WaitingFor::Client
            });
            return stalled.map(|()| Some(Err(io::ErrorKind::TimedOut.into())));
        };
        client.timer = None;
        self.wait_for(match &frame {
            Some(Err(_)) => WaitingFor::Aborted,
            _ => WaitingFor::Upstream(Instant::now(), self.pending.begin()),
        });
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        let client = self.body.as_ref();
        client.is_none_or(|client| client.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let client = self.body.as_ref();
        client.map_or(SizeHint::with_exact(0), |client| client.body.size_hint())
    }
}
