//! How long to leave a store alone that has failed.

use std::time::Duration;

/// The shortest and the longest time.
const BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A connection that was well for this long has a clean slate.
const FORGIVEN_AFTER: Duration = Duration::from_secs(5);

/// Doubles from failure to failure.
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) const fn new() -> Self {
        Self { next: BOUNDS.0 }
    }

    /// How long to wait after a failure: between half of the time and the whole of it, as `random`
    /// says, so that the servers of a farm do not come back all at once.
    pub(super) fn failed(&mut self, random: u8) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(BOUNDS.1);
        whole / 2 + whole / 2 * u32::from(random) / 255
    }

    /// A connection that was well for that long has failed.
    pub(super) fn was_well(&mut self, long: Duration) {
        if long >= FORGIVEN_AFTER {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_longest_and_starts_anew_after_a_long_time_well() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..8).map(|_| backoff.failed(255).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.was_well(Duration::from_secs(1));
        assert_eq!(backoff.failed(0), Duration::from_millis(2500));
        backoff.was_well(FORGIVEN_AFTER);
        assert_eq!(backoff.failed(0), Duration::from_millis(50));
    }
}
