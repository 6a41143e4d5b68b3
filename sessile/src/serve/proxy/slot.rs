//! Limits the concurrent requests of an upstream, and counts their results.

use std::sync::Arc;

use prometheus::IntCounter;

use crate::serve::metrics::UpstreamResults;

/// A request in progress at an upstream. Its result is counted once; at the latest when it is dropped.
pub(super) struct UpstreamSlot {
    results: Arc<UpstreamResults>,
    is_counted: bool,
}

impl UpstreamSlot {
    /// Takes a slot; `None` if `limit` requests already have one.
    pub(super) fn take(results: &Arc<UpstreamResults>, limit: usize) -> Option<Self> {
        // The upstream itself has one reference, so the count is one above the number of slots.
        (Arc::strong_count(results) <= limit).then(|| Self {
            results: Arc::clone(results),
            is_counted: false,
        })
    }

    /// Counts the result of the request if none was counted yet.
    pub(super) fn end(&mut self, counter: impl FnOnce(&UpstreamResults) -> &IntCounter) {
        if !self.is_counted {
            self.is_counted = true;
            counter(&self.results).inc();
        }
    }
}

impl Drop for UpstreamSlot {
    fn drop(&mut self) {
        self.end(|results| &results.abandoned);
    }
}
