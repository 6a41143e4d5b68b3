//! Limits the log lines about an event that clients can repeat to one line a minute.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::locks::locked;

/// The shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

/// Says when a line may be logged again.
#[derive(Default)]
pub(crate) struct LogInterval(Mutex<Option<Instant>>);

impl LogInterval {
    /// True for the first caller in an interval.
    pub(crate) fn is_due(&self) -> bool {
        let mut last = locked(&self.0);
        let is_due = last.is_none_or(|last| last.elapsed() >= INTERVAL);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}
