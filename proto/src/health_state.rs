//! The health of one server behind a balancer, as health checks and client connections show it.
//!
//! Times are monotonic, so a wall clock that is set back cannot make an ejection longer.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use strum::{IntoStaticStr, VariantArray};

use crate::affinity::Source;

/// A server is down after this many failed checks in a row.
const FALL: u32 = 2;

/// A server that is down is up again after this many passed checks in a row.
const RISE: u32 = 2;

/// A server without health checks is ejected after cut connections from this many source prefixes in a
/// row.
///
/// One client alone can send a hello that no server answers, so each source counts once.
const MIN_CUT_SOURCES: usize = 3;

/// The length of the first ejection. Each further ejection is twice as long.
pub const FIRST_EJECTION: Duration = Duration::from_secs(5);

/// The longest ejection.
pub const MAX_EJECTION: Duration = Duration::from_secs(60);

/// A server that came up starts with this percentage of its weight.
const FIRST_SHARE: u32 = 10;

/// Whether a server takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// The server takes connections.
    Up,
    /// Connections of clients to the server failed a moment ago.
    Ejected,
    /// Health checks failed.
    Down,
}

/// How suitable a server is for new clients. The most suitable rank comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, VariantArray)]
pub enum PlacementRank {
    /// The server is up.
    Up,
    /// The server is ejected.
    Ejected,
    /// The server is down.
    Down,
    /// The operator drains the server.
    Draining,
}

/// The state of a server that users see. The words are those of the API and of metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum ServerState {
    /// The server takes its share of the new clients.
    Up,
    /// The server came up recently and takes less than its share of the new clients.
    SlowStart,
    /// Connections of clients to the server failed a moment ago.
    Ejected,
    /// Health checks failed.
    Down,
    /// The operator drains the server.
    Draining,
}

/// A change that the checks of a server decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthChange {
    /// The server was down, and is up.
    CameUp,
    /// The server was up, and is down.
    WentDown,
}

/// The effect of one check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckEffect {
    /// `None` if the server is up or down as before.
    pub change: Option<HealthChange>,
    /// True if the check ended an ejection.
    pub ended_ejection: bool,
    /// True if the check contradicts the checks before it, so that another check should follow soon.
    pub in_doubt: bool,
}

/// The health of one server. A new server is up until a check or a connection fails.
#[derive(Debug, Default)]
pub struct HealthState {
    is_checked: bool,
    /// True if the first check decides at once. Until then, the server counts as down.
    awaits_check: bool,
    is_down: bool,
    /// The number of checks in a row that contradict `is_down`.
    contradictions: u32,
    ejection: Option<Ejection>,
    /// The sources of cut connections since the last answer.
    cut_sources: Vec<Source>,
    up_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    until: Instant,
    length: Duration,
}

impl HealthState {
    /// The health of a server that was added at runtime and is not checked. Its slow start begins now.
    #[must_use]
    pub fn added_at(now: Instant) -> Self {
        Self {
            up_since: Some(now),
            ..Self::default()
        }
    }

    /// The health of a server that was added at runtime. It counts as down until it has passed a check.
    #[must_use]
    pub fn awaiting_check() -> Self {
        Self {
            awaits_check: true,
            ..Self::default()
        }
    }

    /// Whether the server takes connections.
    #[must_use]
    pub fn availability(&self, now: Instant) -> Availability {
        match self.ejection {
            _ if self.is_down || self.awaits_check => Availability::Down,
            Some(ejection) if now < ejection.until => Availability::Ejected,
            _ => Availability::Up,
        }
    }

    /// How suitable the server is for new clients. `drain`: the operator drains the server.
    #[must_use]
    pub fn rank(&self, drain: bool, now: Instant) -> PlacementRank {
        if drain {
            return PlacementRank::Draining;
        }
        match self.availability(now) {
            Availability::Up => PlacementRank::Up,
            Availability::Ejected => PlacementRank::Ejected,
            Availability::Down => PlacementRank::Down,
        }
    }

    /// The state that users see. `drain`: the operator drains the server.
    #[must_use]
    pub fn server_state(&self, drain: bool, slow_start: Duration, now: Instant) -> ServerState {
        match self.rank(drain, now) {
            PlacementRank::Up if self.is_starting(slow_start, now) => ServerState::SlowStart,
            PlacementRank::Up => ServerState::Up,
            PlacementRank::Ejected => ServerState::Ejected,
            PlacementRank::Down => ServerState::Down,
            PlacementRank::Draining => ServerState::Draining,
        }
    }

    /// Records the result of a check.
    pub fn record_check(&mut self, passed: bool, now: Instant) -> CheckEffect {
        self.is_checked = true;
        let mut effect = CheckEffect {
            ended_ejection: passed && self.ejection.is_some(),
            ..CheckEffect::default()
        };
        if effect.ended_ejection {
            self.record_answer(now);
        }
        let is_first = std::mem::take(&mut self.awaits_check);
        if !is_first {
            if passed != self.is_down {
                self.contradictions = 0;
                return effect;
            }
            self.contradictions += 1;
            let needed = if self.is_down { RISE } else { FALL };
            if self.contradictions < needed {
                effect.in_doubt = true;
                return effect;
            }
        }
        self.contradictions = 0;
        self.is_down = !passed;
        effect.change = if passed {
            self.up_since = Some(now);
            Some(HealthChange::CameUp)
        } else {
            Some(HealthChange::WentDown)
        };
        effect
    }

    /// Forgets the results of all checks, because nothing checks the server any more.
    pub const fn forget_checks(&mut self) {
        self.is_checked = false;
        self.awaits_check = false;
        self.is_down = false;
        self.contradictions = 0;
    }

    /// Records a connection that the server did not take, and ejects the server.
    ///
    /// Returns the length of the ejection if the server was up before.
    pub fn record_failure(&mut self, now: Instant) -> Option<Duration> {
        let was_up = self.availability(now) == Availability::Up;
        let length = match self.ejection {
            None => FIRST_EJECTION,
            // An ejected server is tried when no other server is left. The failure of such an
            // attempt tells nothing new.
            Some(ejection) if now < ejection.until => ejection.length,
            Some(ejection) => (ejection.length * 2).min(MAX_EJECTION),
        };
        let until = now + length;
        self.ejection = Some(Ejection { until, length });
        was_up.then_some(length)
    }

    /// Records a connection that the server took and ended before it sent a byte.
    ///
    /// Returns the length of the ejection if this connection causes one. A checked server is never
    /// ejected: clients can cause cut connections, but they cannot make a check fail.
    pub fn record_cut(&mut self, source: IpAddr, now: Instant) -> Option<Duration> {
        if self.is_checked {
            return None;
        }
        let source = Source::of(source);
        if !self.cut_sources.contains(&source) {
            self.cut_sources.push(source);
        }
        if self.cut_sources.len() < MIN_CUT_SOURCES {
            return None;
        }
        self.cut_sources.clear();
        self.record_failure(now)
    }

    /// Records a connection that the server answered. Returns true if the answer ended an ejection.
    pub fn record_answer(&mut self, now: Instant) -> bool {
        self.cut_sources.clear();
        let was_ejected = self.ejection.take().is_some();
        if was_ejected {
            self.up_since = Some(now);
        }
        was_ejected
    }

    /// The percentage of its weight that the server has now. It grows to 100 over `slow_start`.
    #[must_use]
    pub fn share_percent(&self, slow_start: Duration, now: Instant) -> u32 {
        let since = self.up_since.map(|up| now.saturating_duration_since(up));
        match since {
            Some(since) if since < slow_start => {
                let percent = since.as_millis() * 100 / slow_start.as_millis().max(1);
                FIRST_SHARE.max(u32::try_from(percent).unwrap_or(100))
            }
            _ => 100,
        }
    }

    /// True if the server has less than its whole weight.
    #[must_use]
    pub fn is_starting(&self, slow_start: Duration, now: Instant) -> bool {
        self.share_percent(slow_start, now) < 100
    }
}

#[cfg(test)]
mod tests;
