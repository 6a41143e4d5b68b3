//! Parses the clear bytes of TLS, keeps sessions, and decides: routes, resumption, verdicts, key moves.
//!
//! Everything here is pure: no I/O, no clock, no logging. The present time and random bytes are parameters, so
//! a test can repeat every decision.

pub mod address_table;
pub mod affinity;
pub mod age_limit;
pub mod age_search;
pub mod alert;
pub mod chunked_body;
pub mod clear_replies;
pub mod control_record;
pub mod exchange;
pub mod fair_pool;
pub mod frame_budget;
pub mod health_state;
pub mod hello;
pub mod key_names;
pub mod keys;
pub mod learned_number;
pub mod name_resolution;
pub mod postgres;
pub mod proxy_protocol;
pub mod record;
pub mod request_framing;
pub mod response_head;
pub mod resumption;
pub mod resumption_matrix;
pub mod route;
pub mod sealed;
pub mod session;
pub mod session_events;
pub mod session_fault;
#[cfg(test)]
mod testdata;
pub mod ticket;
pub mod ticket_reader;
pub mod verdict;
pub mod watch;
pub mod weak_ticket_key;

use std::time::Duration;

use strum::VariantArray;

/// An enum that has a word for each value. Verdicts, logs, metric labels and reports use these words.
pub trait Word: VariantArray + Copy + Into<&'static str> {
    /// Every value, in the order of declaration.
    fn all() -> impl Iterator<Item = Self> {
        Self::VARIANTS.iter().copied()
    }

    /// The word for this value.
    #[must_use]
    fn as_str(self) -> &'static str {
        self.into()
    }
}

impl<E: VariantArray + Copy + Into<&'static str>> Word for E {}

/// A point in time by the wall clock: milliseconds since the Unix epoch, without leap seconds.
///
/// All servers of a farm must agree on a session's age, so a monotonic clock cannot date sessions.
/// Subtraction saturates: after a clock was set back, an age is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The time this many milliseconds after the Unix epoch.
    #[must_use]
    pub const fn from_unix_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn unix_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    #[must_use]
    pub const fn unix_secs(self) -> u64 {
        self.0 / 1000
    }

    /// The time since `earlier`, or zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This time minus `span`, at least the Unix epoch.
    #[must_use]
    pub const fn minus(self, span: Duration) -> Self {
        let millis = span.as_millis();
        if millis > self.0 as u128 {
            return Self(0);
        }
        Self(self.0 - millis as u64)
    }

    /// This time plus `span`, at most the largest time.
    #[must_use]
    pub const fn plus(self, span: Duration) -> Self {
        let millis = span.as_millis();
        if millis > u64::MAX as u128 {
            return Self(u64::MAX);
        }
        Self(self.0.saturating_add(millis as u64))
    }
}
