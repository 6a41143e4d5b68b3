//! A clock whose seconds begin at its start, so that the age of a new session in whole seconds is right.

use std::time::{Duration, Instant};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

#[derive(Debug)]
pub(super) struct AgeClock {
    start: UnixTime,
    since: Instant,
}

impl AgeClock {
    pub(super) fn start() -> Self {
        Self {
            start: UnixTime::now(),
            since: Instant::now(),
        }
    }
}

impl TimeProvider for AgeClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.start.as_secs() + self.since.elapsed().as_secs();
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
