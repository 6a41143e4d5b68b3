//! The response's body, which goes to the client. The body fails if the upstream sends nothing for too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::connections::BusyConnection;
use super::slots::UpstreamSlot;
use crate::serve::pending_upstreams::{PendingUpstream, PendingUpstreams};

/// A response's body, which is sent to the client.
pub(in crate::serve) struct Download {
    body: Incoming,
    /// How long the upstream may send nothing.
    timeout: Duration,
    /// Runs while the upstream sends nothing.
    silence_timer: Option<(Pin<Box<Sleep>>, PendingUpstream)>,
    pending: PendingUpstreams,
    slot: UpstreamSlot,
    #[expect(dead_code, reason = "held, not read")]
    connection: BusyConnection,
}

impl Download {
    pub(super) const fn new(
        body: Incoming,
        connection: BusyConnection,
        timeout: Duration,
        pending: PendingUpstreams,
        slot: UpstreamSlot,
    ) -> Self {
        Self {
            body,
            timeout,
            silence_timer: None,
            pending,
            slot,
            connection,
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
            let (timer, _) = this.silence_timer.get_or_insert_with(|| {
                let timer = Box::pin(tokio::time::sleep(this.timeout));
                (timer, this.pending.begin())
            });
            return timer.as_mut().poll(cx).map(|()| {
                this.slot.end(|results| &results.cut);
                Some(Err(io::ErrorKind::TimedOut.into()))
            });
        };
        this.silence_timer = None;
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
        // hyper does not poll a body of known length again after its last byte.
        if self.body.is_end_stream() {
            self.slot.end(|results| &results.ok);
        }
    }
}
