//! Counts the upstreams that a connection waits for. A client that waits for its answer is not idle;
//! `response-timeout` limits how long an upstream may take.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::locks::locked;

/// The upstreams that a connection waits for.
#[derive(Clone)]
pub(super) struct PendingUpstreams(Arc<Mutex<Pending>>);

struct Pending {
    count: usize,
    /// When the last wait ended.
    ended: Instant,
}

/// Counts one upstream as pending until it is dropped.
pub(super) struct PendingUpstream(PendingUpstreams);

impl PendingUpstreams {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Pending {
            count: 0,
            ended: Instant::now(),
        })))
    }

    pub(super) fn begin(&self) -> PendingUpstream {
        locked(&self.0).count += 1;
        PendingUpstream(self.clone())
    }

    /// The time since which no upstream is pending; the current time if an upstream is pending.
    pub(super) fn none_since(&self) -> Instant {
        let pending = locked(&self.0);
        match pending.count {
            0 => pending.ended,
            _ => Instant::now(),
        }
    }
}

impl Drop for PendingUpstream {
    fn drop(&mut self) {
        let mut pending = locked(&self.0.0);
        pending.count -= 1;
        pending.ended = Instant::now();
    }
}
