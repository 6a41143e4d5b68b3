//! When a connection that answers nothing is given up. Requests alone do not tell: a busy server has five
//! under way in the 30 ms that the store takes to fork for a dump, an idle one in as many seconds.

use std::time::Duration;

use tokio::time::Instant;

/// So many requests in a row without an answer, at least.
const TOLERATED: u32 = 5;

/// For so many times the store's time-out, at least, since the first of them was noticed.
const TIMEOUTS: u32 = 5;

/// And for no less than this.
const SHORTEST: Duration = Duration::from_millis(250);

/// The failures in a row of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    since: Option<Instant>,
}

impl Breaker {
    /// One more request failed. Whether that is enough.
    #[must_use]
    pub(super) fn failed(mut self, now: Instant, timeout: Duration) -> (Self, bool) {
        self.failures = self.failures.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        let long = (timeout * TIMEOUTS).max(SHORTEST);
        let is_enough = self.failures >= TOLERATED && now.duration_since(since) >= long;
        (self, is_enough)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(20);

    /// Whether failures after so many milliseconds open it.
    fn opens(timeout: Duration, after: &[u64]) -> bool {
        let begin = Instant::now();
        let mut breaker = Breaker::default();
        let mut opened = false;
        for millis in after {
            let now = begin + Duration::from_millis(*millis);
            (breaker, opened) = breaker.failed(now, timeout);
        }
        opened
    }

    #[test]
    fn many_failures_in_a_short_pause_are_tolerated() {
        let burst: Vec<u64> = (0..249).collect();
        assert!(!opens(TIMEOUT, &burst));
        assert!(opens(TIMEOUT, &[0, 1, 2, 3, 250]));
    }

    #[test]
    fn few_failures_over_a_long_time_are_tolerated() {
        assert!(!opens(TIMEOUT, &[0, 1000, 2000, 3000]));
        assert!(opens(TIMEOUT, &[0, 1000, 2000, 3000, 4000]));
    }

    #[test]
    fn a_longer_time_out_is_given_more_time() {
        let timeout = Duration::from_millis(100);
        assert!(!opens(timeout, &[0, 1, 2, 3, 4, 499]));
        assert!(opens(timeout, &[0, 1, 2, 3, 4, 500]));
    }
}
