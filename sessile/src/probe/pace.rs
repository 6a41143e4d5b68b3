//! Spaces the connections to each address, so that a probe is no load for a server.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The times at which each address may get its next connection.
#[derive(Debug)]
pub(super) struct Pace {
    gap: Duration,
    next: HashMap<SocketAddr, Instant>,
}

impl Pace {
    /// `rate` is the maximum number of connections in a second. 0: no limit.
    pub(super) fn new(rate: u32) -> Self {
        let gap = match rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        Self {
            gap,
            next: HashMap::new(),
        }
    }

    /// Waits until the address may get a connection.
    pub(super) async fn wait(&mut self, address: SocketAddr) {
        sleep_until(self.book(address, Instant::now())).await;
    }

    /// The time at which the address gets its next connection.
    pub(super) fn book(&mut self, address: SocketAddr, now: Instant) -> Instant {
        let start = self.next.get(&address).map_or(now, |next| now.max(*next));
        self.next.insert(address, start + self.gap);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_to_one_address_have_gaps_and_others_have_none() {
        let mut pace = Pace::new(5);
        let [one, other] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let now = Instant::now();
        let starts = [one, other, one, one].map(|address| pace.book(address, now) - now);
        assert_eq!(starts, [0, 0, 200, 400].map(Duration::from_millis));
        let mut unlimited = Pace::new(0);
        assert!(
            [one, one]
                .iter()
                .all(|address| unlimited.book(*address, now) == now)
        );
    }
}
