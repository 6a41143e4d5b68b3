//! Spaces the connections to each address, so that a probe is no load for a server.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::locks::locked;

/// The times at which each address may get its next connection. Clones share the times, so several probes together
/// keep the limit.
#[derive(Clone, Debug)]
pub struct Pace {
    rate: u32,
    next: Arc<Mutex<HashMap<SocketAddr, Instant>>>,
}

impl Pace {
    /// `rate` is the maximum number of connections to one address in a second. 0: no limit.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        Self {
            rate,
            next: Arc::default(),
        }
    }

    /// The maximum number of connections to one address in a second. 0: no limit.
    #[must_use]
    pub const fn rate(&self) -> u32 {
        self.rate
    }

    /// Waits until the address may get a connection.
    pub(super) async fn wait(&self, address: SocketAddr) {
        sleep_until(self.book(address, Instant::now())).await;
    }

    /// The time at which the address gets its next connection.
    fn book(&self, address: SocketAddr, now: Instant) -> Instant {
        let mut next = locked(&self.next);
        let start = next.get(&address).map_or(now, |next| now.max(*next));
        let gap = match self.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        next.insert(address, start + gap);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_to_one_address_have_gaps_and_others_have_none() {
        let pace = Pace::new(5);
        let [one, other] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let now = Instant::now();
        let starts = [one, other, one, one].map(|address| pace.book(address, now) - now);
        assert_eq!(starts, [0, 0, 200, 400].map(Duration::from_millis));
        let unlimited = Pace::new(0);
        assert!(
            [one, one]
                .iter()
                .all(|address| unlimited.book(*address, now) == now)
        );
    }
}
