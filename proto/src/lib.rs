//! What TLS shows in clear, what a session is, and what was decided and why.
//!
//! Everything here is pure: no I/O, no clock, no logging. The present time and random bytes are
//! parameters, so that every decision can be replayed in a test.

pub mod affinity;
pub mod age_limit;
pub mod hello;
pub mod key_names;
pub mod keys;
pub mod proxy_protocol;
pub mod record;
pub mod route;
pub mod sealed;
pub mod session;
#[cfg(test)]
mod testdata;
pub mod ticket;
pub mod verdict;
pub mod watch;

use std::time::Duration;

/// A point in time: milliseconds since the Unix epoch, leap seconds ignored.
///
/// Sessions are dated by the wall clock because their age has to mean the same on every server of
/// a farm. Subtraction saturates: a clock that was set back makes an age of zero, not a panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The time that many milliseconds after the Unix epoch.
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

    /// How long ago `earlier` was, or zero where it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This time less `span`; the beginning of time where that is before it.
    #[must_use]
    pub const fn minus(self, span: Duration) -> Self {
        let millis = span.as_millis();
        if millis > self.0 as u128 {
            return Self(0);
        }
        Self(self.0 - millis as u64)
    }

    /// This time plus `span`; the far end of time where that overflows.
    #[must_use]
    pub const fn plus(self, span: Duration) -> Self {
        let millis = span.as_millis();
        if millis > u64::MAX as u128 {
            return Self(u64::MAX);
        }
        Self(self.0.saturating_add(millis as u64))
    }
}
