//! Counts the upstreams that a connection waits for. A client that waits for its answer is not idle;
//! `response-timeout` limits how long an upstream may take.

use std::cell::Cell;
use std::rc::Rc;

use tokio::time::Instant;

/// The upstreams that a connection waits for.
#[derive(Clone)]
pub(super) struct PendingUpstreams(Rc<Pending>);

struct Pending {
    count: Cell<usize>,
    /// When the last wait ended.
    ended: Cell<Instant>,
}

/// Counts one upstream as pending until it is dropped.
pub(super) struct PendingUpstream(PendingUpstreams);

impl PendingUpstreams {
    pub(super) fn new() -> Self {
        Self(Rc::new(Pending {
            count: Cell::new(0),
            ended: Cell::new(Instant::now()),
        }))
    }

    pub(super) fn begin(&self) -> PendingUpstream {
        self.0.count.set(self.0.count.get() + 1);
        PendingUpstream(self.clone())
    }

    /// The time since which no upstream is pending; the current time if an upstream is pending.
    pub(super) fn none_since(&self) -> Instant {
        match self.0.count.get() {
            0 => self.0.ended.get(),
            _ => Instant::now(),
        }
    }
}

impl Drop for PendingUpstream {
    fn drop(&mut self) {
        let Self(PendingUpstreams(pending)) = self;
        pending.count.set(pending.count.get() - 1);
        pending.ended.set(Instant::now());
    }
}
