//! A limit that all sources share, and the share of each source.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A source may have at most the whole limit divided by this number.
const SHARE: usize = 4;

/// A source may also have at most the unused part of the limit divided by this number.
///
/// If `n` greedy sources grow together, each gets at most about `1 / (n + 2)` of the limit. So another source
/// finds room.
const SHARE_OF_FREE: usize = 2;

/// A limit and the used part of it.
pub(super) struct Quota {
    max: usize,
    source_max: usize,
    source_min: usize,
    used: AtomicUsize,
}

impl Quota {
    /// `min_share`: a source may have this much while enough is unused. `source_min`: a source may always have
    /// this much, within `max`.
    pub(super) fn new(max: usize, min_share: usize, source_min: usize) -> Self {
        Self {
            max,
            source_max: (max / SHARE).max(min_share),
            source_min,
            used: AtomicUsize::new(0),
        }
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.used() >= self.max
    }

    /// How much one source may have now.
    pub(super) fn source_share(&self) -> usize {
        let free = self.max.saturating_sub(self.used());
        let share = self.source_max.min(free / SHARE_OF_FREE);
        share.max(self.source_min)
    }

    /// Takes from the limit of all sources. Returns false if there is too little left.
    pub(super) fn take(&self, amount: usize) -> bool {
        add_up_to(&self.used, amount, self.max)
    }

    /// Takes from the share of one source, after [`Self::take`]. `own`: the counter of the source.
    pub(super) fn take_for_source(&self, own: &AtomicUsize, amount: usize) -> bool {
        add_up_to(own, amount, self.source_share())
    }

    pub(super) fn give_back(&self, amount: usize) {
        self.used.fetch_sub(amount, Ordering::Relaxed);
    }
}

/// Counts an amount as buffered until this guard is dropped.
pub struct BufferGuard<'a> {
    quota: &'a Quota,
    /// The counter of the source.
    own: &'a AtomicUsize,
    amount: usize,
}

impl<'a> BufferGuard<'a> {
    pub(super) fn new(quota: &'a Quota, own: &'a AtomicUsize, amount: usize) -> Self {
        quota.used.fetch_add(amount, Ordering::Relaxed);
        own.fetch_add(amount, Ordering::Relaxed);
        Self { quota, own, amount }
    }
}

impl Drop for BufferGuard<'_> {
    fn drop(&mut self) {
        self.quota.give_back(self.amount);
        self.own.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// Adds the amount and returns true, unless the sum would be more than `max`.
pub(super) fn add_up_to(counter: &AtomicUsize, amount: usize, max: usize) -> bool {
    let before = counter.fetch_add(amount, Ordering::Relaxed);
    let fits = before.saturating_add(amount) <= max;
    if !fits {
        counter.fetch_sub(amount, Ordering::Relaxed);
    }
    fits
}
