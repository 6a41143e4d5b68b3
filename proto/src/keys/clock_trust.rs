//! Decides how far the farm key may move forward, given the evidence for the wall clock.
//!
//! Moving forward destroys keys for good, and a wall clock can be wrong for days. The wall clock alone
//! therefore moves the key slowly. If the farm's shared clock contradicts the wall clock, the key does not
//! move.

use std::time::Duration;

use super::{FarmKey, MAX_CATCH_UP};
use crate::Time;

/// How long a report of the shared clock is valid. The monotonic clock extrapolates the report, and the
/// monotonic clock stops while a machine sleeps.
const REPORT_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// For this long after the start, NTP is not trusted. The shared clock may contradict NTP, and the first
/// report of the shared clock takes a moment.
const STARTUP_GRACE: Duration = Duration::from_secs(10);

/// Epochs that an unconfirmed clock may forget for each epoch that the monotonic clock measured.
///
/// With a pace of two, a key file that was left behind can catch up. A clock that is one day ahead destroys
/// one day of keys only after a day.
const UNCONFIRMED_PACE: u64 = 2;

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The monotonic clock, counted from the start of the process.
    pub uptime: Duration,
    /// The wall clock.
    pub wall: Time,
}

/// The present readings of the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// This machine's clocks.
    pub now: Moment,
    /// The kernel's wall clock, if the kernel says that NTP keeps it right.
    ///
    /// This clock differs from `now.wall` if a library gives the process another clock.
    pub ntp: Option<Time>,
}

/// The difference between the wall clock and the farm's shared clock, if it is more than one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// The wall clock is ahead of the shared clock.
    Ahead(Duration),
    /// The wall clock is behind the shared clock.
    Behind(Duration),
}

/// How far the key may follow the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Not at all: another clock contradicts the wall clock, or too little is known.
    Denied,
    /// At most this number of epochs, because only the monotonic clock agrees.
    Epochs(u64),
    /// Up to the present epoch: another clock agrees.
    Confirmed,
}

/// The evidence about the wall clock since the start of the process.
#[derive(Clone, Debug)]
pub struct ClockTrust {
    /// When the wall clock and the monotonic clock began to agree.
    agreed_since: Moment,
    /// Time that was measured before this uptime does not count. The key used that time to move, or the
    /// clocks disagreed.
    used_up_to: Duration,
    /// The last report of the shared clock.
    report: Option<Moment>,
}

impl ClockTrust {
    /// The state at the start of the process, when nothing is known yet. `wall` is the wall clock at uptime
    /// zero.
    #[must_use]
    pub const fn new(wall: Time) -> Self {
        Self {
            agreed_since: Moment {
                uptime: Duration::ZERO,
                wall,
            },
            used_up_to: Duration::ZERO,
            report: None,
        }
    }

    /// Records a report of the shared clock. `report.wall` is the time on the shared clock, and
    /// `report.uptime` is when the report arrived.
    ///
    /// Returns true if no earlier report was still valid.
    pub fn record_report(&mut self, report: Moment) -> bool {
        let is_first = self.shared_time(report.uptime).is_none();
        self.report = Some(report);
        is_first
    }

    /// The skew of the wall clock, if the shared clock reported lately and differs by more than an epoch.
    #[must_use]
    pub fn skew(&self, now: Moment, rotate: Duration) -> Option<Skew> {
        let shared = self.shared_time(now.uptime)?;
        let ahead = now.wall.since(shared);
        let behind = shared.since(now.wall);
        if ahead > rotate {
            Some(Skew::Ahead(ahead))
        } else if behind > rotate {
            Some(Skew::Behind(behind))
        } else {
            None
        }
    }

    /// Decides how far a key with epochs of `rotate` may move now.
    pub fn permit(&mut self, evidence: Evidence, rotate: Duration) -> Permit {
        Permit {
            trust: self.trust(evidence, rotate),
            now: evidence.now.wall,
        }
    }

    /// Records that the key moved. The time that was measured until `now` cannot move the key again.
    pub fn key_moved(&mut self, now: Moment) {
        self.used_up_to = now.uptime;
    }

    /// True if [`Self::permit`] found at `now` that the wall clock and the monotonic clock disagree.
    #[must_use]
    pub fn has_jumped(&self, now: Moment) -> bool {
        self.agreed_since == now && now.uptime > Duration::ZERO
    }

    fn trust(&mut self, evidence: Evidence, rotate: Duration) -> Trust {
        let now = evidence.now;
        self.notice_jump(now, rotate);
        if self.skew(now, rotate).is_some() {
            // The time that was measured with a contradicted clock must never count.
            self.used_up_to = now.uptime;
            return Trust::Denied;
        }
        if self.shared_time(now.uptime).is_some() {
            return Trust::Confirmed;
        }
        let is_ntp_time = evidence
            .ntp
            .is_some_and(|kernel| difference(kernel, now.wall) <= rotate);
        if is_ntp_time && now.uptime >= STARTUP_GRACE {
            return Trust::Confirmed;
        }
        match self.unused_epochs(now, rotate) {
            0 => Trust::Denied,
            epochs => Trust::Epochs(epochs * UNCONFIRMED_PACE),
        }
    }

    /// Restarts the measurement if the wall clock and the monotonic clock no longer agree.
    fn notice_jump(&mut self, now: Moment, rotate: Duration) {
        let start = self.agreed_since;
        let by_uptime = now.uptime.saturating_sub(start.uptime);
        let by_wall = now.wall.since(start.wall);
        if now.wall < start.wall || by_wall.abs_diff(by_uptime) >= rotate {
            self.agreed_since = now;
            self.used_up_to = now.uptime;
        }
    }

    /// Whole epochs that both clocks measured and that have not yet been used to move the key.
    fn unused_epochs(&self, now: Moment, rotate: Duration) -> u64 {
        let unused = now.uptime.saturating_sub(self.used_up_to);
        unused.as_secs() / rotate.as_secs().max(1)
    }

    /// The shared clock's time at `uptime`, extrapolated from its last report.
    fn shared_time(&self, uptime: Duration) -> Option<Time> {
        let report = self.report?;
        let age = uptime.saturating_sub(report.uptime);
        (age <= REPORT_LIFETIME).then(|| report.wall.plus(age))
    }
}

/// A decision of [`ClockTrust`], which holds for each copy of the key: in memory and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    trust: Trust,
    now: Time,
}

impl Permit {
    /// How far the key may follow the wall clock.
    #[must_use]
    pub const fn trust(self) -> Trust {
        self.trust
    }

    /// Moves the key forward, within the limit of the decision. Returns whether the key changed.
    pub fn advance(self, key: &mut FarmKey) -> bool {
        self.limit(key).is_some_and(|limit| key.move_forward(limit))
    }

    /// True if the clock is trusted, but the key is too far behind it to move at all.
    #[must_use]
    pub fn is_out_of_reach(self, key: &FarmKey) -> bool {
        self.trust != Trust::Denied && key.lag(self.now) > MAX_CATCH_UP
    }

    /// The time up to which this key may move.
    fn limit(self, key: &FarmKey) -> Option<Time> {
        if key.lag(self.now) > MAX_CATCH_UP {
            return None;
        }
        match self.trust {
            Trust::Denied => None,
            Trust::Epochs(epochs) => Some(key.within(self.now, epochs)),
            Trust::Confirmed => Some(self.now),
        }
    }
}

fn difference(a: Time, b: Time) -> Duration {
    a.since(b).max(b.since(a))
}

#[cfg(test)]
mod tests;
