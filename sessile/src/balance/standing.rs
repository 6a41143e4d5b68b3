//! Whether a server takes connections, as far as checks and clients' connections have shown. Decided
//! from what happened and when, by the monotonic clock: nobody is ejected for an hour because the wall
//! clock was set back. Nothing here connects.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use sessile_proto::affinity::Source;

/// Checks in a row that have to fail before a server counts as down.
const FALL: u32 = 2;

/// Checks in a row that have to succeed before it counts as up again.
const RISE: u32 = 2;

/// Connections that a server took and ended without a word, each from another source prefix and none
/// between them that it answered: so many eject it where nothing checks it. One client alone may
/// well send what a server does not answer.
const CUT_SOURCES: usize = 3;

/// How long a server is ejected for the first time; twice as long each time after.
const FIRST_EJECTION: Duration = Duration::from_secs(5);

/// The longest ejection.
const LONGEST_EJECTION: Duration = Duration::from_secs(60);

/// The share of its weight, in a hundred, that a server begins with when it came up.
const FIRST_SHARE: u32 = 10;

/// What a server is to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It takes connections.
    Up,
    /// Clients' connections to it failed just now.
    Ejected,
    /// Checks say that it does not.
    Down,
}

/// What is known of one server. It is up until something else is known.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Checks watch over it.
    checked: bool,
    down: bool,
    /// Checks in a row that said the opposite of `down`.
    doubts: u32,
    ejection: Option<Ejection>,
    cut: Vec<Source>,
    up_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    until: Instant,
    length: Duration,
}

impl Standing {
    /// One that has been here from now on.
    pub(super) fn new_at(now: Instant) -> Self {
        Self {
            up_since: Some(now),
            ..Self::default()
        }
    }

    pub(super) fn state(&self, now: Instant) -> State {
        match self.ejection {
            _ if self.down => State::Down,
            Some(ejection) if now < ejection.until => State::Ejected,
            _ => State::Up,
        }
    }

    /// Takes note of a check. Returns whether the server is up, where that has changed.
    pub(super) fn checked(&mut self, well: bool, now: Instant) -> Option<bool> {
        self.checked = true;
        if well && self.ejection.is_some() {
            self.answered(now);
        }
        if well != self.down {
            self.doubts = 0;
            return None;
        }
        self.doubts += 1;
        if self.doubts < if self.down { RISE } else { FALL } {
            return None;
        }
        (self.doubts, self.down) = (0, !self.down);
        if well {
            self.up_since = Some(now);
        }
        Some(well)
    }

    /// Forgets what checks have said.
    pub(super) const fn forget_checks(&mut self) {
        (self.checked, self.down, self.doubts) = (false, false, 0);
    }

    /// Whether the last check said something else than those before it.
    pub(super) const fn is_in_doubt(&self) -> bool {
        self.doubts > 0
    }

    /// Takes note of a connection that the server did not take. Returns how long it is ejected.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let length = match self.ejection {
            None => FIRST_EJECTION,
            // One that was tried for want of another has failed no more often for that.
            Some(ejection) if now < ejection.until => ejection.length,
            Some(ejection) => (ejection.length * 2).min(LONGEST_EJECTION),
        };
        let until = now + length;
        self.ejection = Some(Ejection { until, length });
        length
    }

    /// Takes note of a connection that the server took and ended without a word. Returns how long it
    /// is ejected, if it is: never while there are checks, which nobody's hello can make fail.
    pub(super) fn cut(&mut self, source: IpAddr, now: Instant) -> Option<Duration> {
        if self.checked {
            return None;
        }
        let source = Source::of(source);
        if !self.cut.contains(&source) {
            self.cut.push(source);
        }
        if self.cut.len() < CUT_SOURCES {
            return None;
        }
        self.cut.clear();
        Some(self.failed(now))
    }

    /// Takes note of a connection that the server answered. Returns whether that ended an ejection.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.cut.clear();
        let was_ejected = self.ejection.take().is_some();
        if was_ejected {
            self.up_since = Some(now);
        }
        was_ejected
    }

    /// Whether it was ejected and has not answered since.
    pub(super) const fn is_ejected(&self) -> bool {
        self.ejection.is_some()
    }

    /// The share of its weight, in a hundred, that the server has now: it grows over `slow_start`.
    pub(super) fn share(&self, slow_start: Duration, now: Instant) -> u32 {
        let since = self.up_since.map(|up| now.saturating_duration_since(up));
        match since {
            Some(since) if since < slow_start => {
                let share = since.as_millis() * 100 / slow_start.as_millis().max(1);
                FIRST_SHARE.max(u32::try_from(share).unwrap_or(100))
            }
            _ => 100,
        }
    }

    /// Whether it has less than its share.
    pub(super) fn is_starting(&self, slow_start: Duration, now: Instant) -> bool {
        self.share(slow_start, now) < 100
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn at(seconds: u64) -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START + Duration::from_secs(seconds)
    }

    fn source(n: u8) -> IpAddr {
        IpAddr::from([10, 0, n, 1])
    }

    #[test]
    fn two_failed_checks_take_a_server_down_and_two_good_ones_bring_it_back() {
        let mut standing = Standing::default();
        assert_eq!(standing.checked(false, at(1)), None);
        assert!(standing.is_in_doubt());
        assert_eq!(standing.checked(true, at(2)), None);
        assert_eq!(standing.checked(false, at(3)), None);
        assert_eq!(standing.checked(false, at(4)), Some(false));
        assert_eq!(standing.state(at(4)), State::Down);
        assert_eq!(standing.checked(true, at(5)), None);
        assert_eq!(standing.checked(false, at(6)), None);
        assert_eq!(standing.checked(true, at(7)), None);
        assert_eq!(standing.checked(true, at(8)), Some(true));
        assert_eq!(standing.state(at(8)), State::Up);
    }

    #[test]
    fn each_ejection_lasts_longer_until_the_server_answers() {
        let mut standing = Standing::default();
        let mut lengths = Vec::new();
        let mut now = at(0);
        for _ in 0..6 {
            let length = standing.failed(now);
            assert_eq!(standing.state(now), State::Ejected);
            assert_eq!(standing.failed(now), length);
            lengths.push(length.as_secs());
            now += length;
            assert_eq!(standing.state(now), State::Up);
        }
        assert_eq!(lengths, [5, 10, 20, 40, 60, 60]);
        standing.answered(now);
        assert_eq!(standing.failed(now), FIRST_EJECTION);
        standing.checked(true, now);
        assert_eq!(standing.state(now), State::Up);
    }

    #[test]
    fn one_source_ejects_no_server_by_what_it_sends() {
        let mut standing = Standing::default();
        for _ in 0..100 {
            assert_eq!(standing.cut(source(1), at(0)), None);
        }
        assert_eq!(standing.cut(source(2), at(0)), None);
        standing.answered(at(0));
        assert_eq!(standing.cut(source(3), at(0)), None);
        assert_eq!(standing.cut(source(1), at(0)), None);
        assert_eq!(standing.cut(source(2), at(0)), Some(FIRST_EJECTION));
    }

    #[test]
    fn no_number_of_sources_ejects_a_server_that_is_checked() {
        let mut standing = Standing::default();
        standing.checked(true, at(0));
        for n in 0..100 {
            assert_eq!(standing.cut(source(n), at(0)), None);
        }
        standing.forget_checks();
        let ejected = [1, 2, 3].map(|n| standing.cut(source(n), at(0)).is_some());
        assert_eq!(ejected, [false, false, true]);
    }

    #[test]
    fn a_server_that_came_up_gets_its_share_bit_by_bit() {
        let slow_start = Duration::from_secs(100);
        let mut standing = Standing::default();
        assert_eq!(standing.share(slow_start, at(0)), 100);
        standing.failed(at(0));
        standing.answered(at(10));
        let shares = [10, 15, 60, 109, 110].map(|now| standing.share(slow_start, at(now)));
        assert_eq!(shares, [10, 10, 50, 99, 100]);
        assert_eq!(standing.share(Duration::ZERO, at(10)), 100);
        assert!(Standing::new_at(at(0)).is_starting(slow_start, at(99)));
    }
}
