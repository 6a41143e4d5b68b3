//! Decides when a failing connection is given up, and how long to wait before the next attempt.

use std::time::Duration;

use tokio::time::Instant;

/// Fewest failed requests in a row before a connection is given up.
const MIN_FAILURES: u32 = 5;

/// The failures must also last this many times `session.store-timeout`.
const MIN_TIMEOUTS: u32 = 5;

/// The failures must last at least this long, even if `session.store-timeout` is short.
const MIN_OUTAGE: Duration = Duration::from_millis(250);

/// The shortest wait before a new connection.
const MIN_BACKOFF: Duration = Duration::from_millis(100);

/// The longest wait before a new connection.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// After a connection that worked this long, the wait is [`MIN_BACKOFF`] again.
const BACKOFF_RESET: Duration = Duration::from_secs(5);

/// The failures in a row of one connection.
///
/// Neither the count nor the time alone shows an outage. Redis pauses for 30 ms to fork for a dump.
/// In that time, five requests of a busy server can fail. While the store fails, an idle server
/// sends one PING a second, so two failures last longer than [`MIN_OUTAGE`].
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    failures: u32,
    since: Option<Instant>,
}

impl CircuitBreaker {
    /// Counts a failed request. Returns true if the connection must be given up.
    pub(super) fn record_failure(&mut self, now: Instant, timeout: Duration) -> bool {
        self.failures = self.failures.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        let outage = (timeout * MIN_TIMEOUTS).max(MIN_OUTAGE);
        self.failures >= MIN_FAILURES && now.duration_since(since) >= outage
    }
}

/// The wait before the next connection. Doubles with each failure.
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) const fn new() -> Self {
        Self(MIN_BACKOFF)
    }

    /// How long to wait after a failure: from half of the wait to the whole wait, chosen by
    /// `random`.
    pub(super) fn after_failure(&mut self, random: u8) -> Duration {
        // The time is random, so that the servers of a farm do not connect all at once.
        let wait = self.0 / 2 + self.0 / 2 * u32::from(random) / 255;
        self.0 = (self.0 * 2).min(MAX_BACKOFF);
        wait
    }

    /// Records how long a connection worked. A long time resets the wait.
    pub(super) fn record_uptime(&mut self, uptime: Duration) {
        if uptime >= BACKOFF_RESET {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(20);

    /// True if failures after this many milliseconds end the connection.
    fn gives_up(timeout: Duration, failures: &[u64]) -> bool {
        let begin = Instant::now();
        let mut breaker = CircuitBreaker::default();
        failures.iter().fold(false, |_, millis| {
            breaker.record_failure(begin + Duration::from_millis(*millis), timeout)
        })
    }

    #[test]
    fn tolerates_many_failures_in_a_short_pause() {
        let burst: Vec<u64> = (0..249).collect();
        assert!(!gives_up(TIMEOUT, &burst));
        assert!(gives_up(TIMEOUT, &[0, 1, 2, 3, 250]));
    }

    #[test]
    fn tolerates_few_failures_over_a_long_time() {
        assert!(!gives_up(TIMEOUT, &[0, 1000, 2000, 3000]));
        assert!(gives_up(TIMEOUT, &[0, 1000, 2000, 3000, 4000]));
    }

    #[test]
    fn a_longer_timeout_allows_a_longer_pause() {
        let timeout = Duration::from_millis(100);
        assert!(!gives_up(timeout, &[0, 1, 2, 3, 4, 499]));
        assert!(gives_up(timeout, &[0, 1, 2, 3, 4, 500]));
    }

    #[test]
    fn the_wait_doubles_and_is_reset_by_a_long_connection() {
        let mut backoff = Backoff::new();
        let waits = [(); 8].map(|()| backoff.after_failure(255).as_millis());
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.record_uptime(Duration::from_secs(1));
        assert_eq!(backoff.after_failure(0), Duration::from_millis(2500));
        backoff.record_uptime(BACKOFF_RESET);
        assert_eq!(backoff.after_failure(0), Duration::from_millis(50));
    }
}
