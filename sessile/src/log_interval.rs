//! Limits the log lines about an event that others can repeat to one line in a while.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::locks::locked;

/// Says when a line may be logged again.
#[derive(Debug)]
pub(crate) struct LogInterval {
    /// The shortest time between two lines.
    shortest: Duration,
    last: Mutex<Option<Instant>>,
}

impl LogInterval {
    /// One line a minute.
    pub(crate) const MINUTE: Duration = Duration::from_secs(60);

    pub(crate) const fn new(shortest: Duration) -> Self {
        Self {
            shortest,
            last: Mutex::new(None),
        }
    }

    /// True for the first caller in an interval.
    pub(crate) fn is_due(&self) -> bool {
        let mut last = locked(&self.last);
        let is_due = last.is_none_or(|last| last.elapsed() >= self.shortest);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}
