//! Measures how long an upstream has been silent. The time in which the proxy waits for the client does not
//! count.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::connections::Reader;
use crate::serve::pending_upstreams::{PendingUpstream, PendingUpstreams};

/// The silence of an upstream. While the proxy waits for the upstream, the client's connection is not idle.
pub(super) struct Silence {
    /// `None` while the upstream has nothing to do.
    since: Option<(Instant, PendingUpstream)>,
    /// How long an upstream may be silent.
    limit: Duration,
    pending: PendingUpstreams,
}

impl Silence {
    pub(super) fn begin(now: Instant, limit: Duration, pending: &PendingUpstreams) -> Self {
        Self {
            since: Some((now, pending.begin())),
            limit,
            pending: pending.clone(),
        }
    }

    /// Begins anew.
    pub(super) fn restart(&mut self) {
        self.since = Some((Instant::now(), self.pending.begin()));
    }

    /// Begins if the upstream is not silent yet. Returns when the silence will be too long.
    pub(super) fn go_on(&mut self) -> Instant {
        let begin = || (Instant::now(), self.pending.begin());
        let (since, _) = self.since.get_or_insert_with(begin);
        *since + self.limit
    }

    pub(super) fn end(&mut self) {
        self.since = None;
    }

    /// Ready if the upstream has been silent for too long.
    pub(super) fn poll_limit(&self, reader: &mut Reader, cx: &mut Context<'_>) -> Poll<()> {
        match &self.since {
            Some((since, _)) => reader.poll_deadline(*since + self.limit, cx),
            None => Poll::Pending,
        }
    }
}
