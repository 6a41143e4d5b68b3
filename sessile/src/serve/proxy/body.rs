//! Bodies on their way through, and the clock of an upstream's silence: it stands still while it is
//! the client that has to send or to read.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::slot::UpstreamSlot;
use crate::locks::locked;
use crate::serve::pending_upstreams::{PendingUpstream, PendingUpstreams};

/// What a request waits for before there is a response.
enum Waits {
    /// For the upstream, since then.
    ForUpstream(
        Instant,
        #[expect(dead_code, reason = "held, not read")] PendingUpstream,
    ),
    /// For more of the request's body.
    ForClient,
    /// For nothing any more: the client's body ended before its end.
    Cut,
}

/// How long whoever waits for a response has waited, and for whom. Nobody waits any more once it is gone.
pub(super) struct Clock {
    waits: Arc<Mutex<Waits>>,
    pending: PendingUpstreams,
}

impl Clock {
    pub(super) fn start(pending: &PendingUpstreams) -> Self {
        let waits = Waits::ForUpstream(Instant::now(), pending.begin());
        Self {
            waits: Arc::new(Mutex::new(waits)),
            pending: pending.clone(),
        }
    }

    /// Since when it is the upstream that nothing comes from; now, where it is the client.
    pub(super) fn silent_since(&self) -> Instant {
        match *locked(&self.waits) {
            Waits::ForUpstream(since, _) => since,
            Waits::ForClient | Waits::Cut => Instant::now(),
        }
    }

    pub(super) fn was_cut(&self) -> bool {
        matches!(*locked(&self.waits), Waits::Cut)
    }
}

/// A request's body on its way to the upstream.
pub(super) struct Upload {
    body: Option<Incoming>,
    /// The clock's, which need not last as long: an upstream may answer before it has the whole body.
    waits: Weak<Mutex<Waits>>,
    pending: PendingUpstreams,
}

impl Upload {
    /// `None`: there is no body.
    pub(super) fn new(body: Option<Incoming>, clock: &Clock) -> Self {
        Self {
            body,
            waits: Arc::downgrade(&clock.waits),
            pending: clock.pending.clone(),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if let Some(waits) = self.waits.upgrade() {
            *locked(&waits) = match &polled {
                Poll::Pending => Waits::ForClient,
                Poll::Ready(Some(Err(_))) => Waits::Cut,
                Poll::Ready(_) => Waits::ForUpstream(Instant::now(), self.pending.begin()),
            };
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.body.as_ref();
        body.map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A response's body on its way to the client.
pub(in crate::serve) struct Download {
    body: Incoming,
    /// How long the upstream may be silent.
    timeout: Duration,
    /// Runs while it is.
    silence: Option<(Pin<Box<Sleep>>, PendingUpstream)>,
    pending: PendingUpstreams,
    slot: UpstreamSlot,
}

impl Download {
    pub(super) const fn new(
        body: Incoming,
        timeout: Duration,
        pending: PendingUpstreams,
        slot: UpstreamSlot,
    ) -> Self {
        Self {
            body,
            timeout,
            silence: None,
            pending,
            slot,
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let (silence, _) = this.silence.get_or_insert_with(|| {
                let over = Box::pin(tokio::time::sleep(this.timeout));
                (over, this.pending.begin())
            });
            return silence.as_mut().poll(cx).map(|()| {
                this.slot.end(|results| &results.cut);
                Some(Err(io::ErrorKind::TimedOut.into()))
            });
        };
        this.silence = None;
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => {
                this.slot.end(|results| &results.cut);
                Some(Err(io::Error::other(error)))
            }
            None => {
                this.slot.end(|results| &results.ok);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Nobody asks for more than there is: a body of a known length is not read to its `None`.
        if self.body.is_end_stream() {
            self.slot.end(|results| &results.ok);
        }
    }
}
