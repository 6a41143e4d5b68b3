//! The place of a request among those of an upstream.

use std::sync::Arc;

use prometheus::IntCounter;

use crate::serve::metrics::UpstreamResults;

/// One request of an upstream. Its result is counted once, however it ends.
pub(super) struct UpstreamSlot {
    results: Arc<UpstreamResults>,
    is_counted: bool,
}

impl UpstreamSlot {
    /// A slot, unless `limit` requests have one.
    pub(super) fn take(results: &Arc<UpstreamResults>, limit: usize) -> Option<Self> {
        // One reference is the upstream's own.
        (Arc::strong_count(results) <= limit).then(|| Self {
            results: Arc::clone(results),
            is_counted: false,
        })
    }

    /// Counts the result, unless one was counted.
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
