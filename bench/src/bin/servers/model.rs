//! The programs, and the numbers that all measurements share.

use std::fmt;
use std::time::Duration;

/// Connections before a measurement. They warm the caches.
pub(super) const WARM_UP: usize = 200;

/// Pause before a thread's processor time is read. The kernel updates this time when the thread
/// sleeps.
pub(super) const SETTLE: Duration = Duration::from_millis(50);

/// The programs that the benchmarks start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Software {
    Sessile,
    Redis,
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sessile => "sessile",
            Self::Redis => "Redis",
        })
    }
}
