//! Servers that a DNS name stands for: which addresses of an answer are used, and when the name is looked up
//! again. The lookups themselves are elsewhere.

use std::net::SocketAddr;
use std::time::Duration;

/// The shortest time between two lookups of a name. Many records have a lifetime of zero.
pub const MIN_WAIT: Duration = Duration::from_secs(1);

/// The longest time between two lookups of a name, by default. Some records have a lifetime of days.
pub const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(60 * 60);

/// The time until a lookup that failed is repeated. Each further failure doubles the time.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The longest time until a lookup that failed is repeated.
pub const MAX_RETRY: Duration = Duration::from_secs(60);

/// Most servers of one name.
pub const MAX_SERVERS: usize = 64;

/// A server in the answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundServer {
    /// The IP address of the host and the port.
    pub address: SocketAddr,
    /// The weight in the SRV record. `None` for the address of a host.
    pub weight: Option<u16>,
}

/// The lookups of one name.
#[derive(Clone, Debug, Default)]
pub struct NameLookups {
    servers: Vec<FoundServer>,
    /// The number of failed lookups in a row.
    failures: u32,
    /// True if the last answer had more than [`MAX_SERVERS`] servers.
    was_cut: bool,
    wait: Duration,
}

/// The effect of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// True if the lookup before failed.
    pub recovered: bool,
    /// The number of servers that are not used, if the answer before had no such servers.
    pub newly_left_out: Option<usize>,
}

impl NameLookups {
    /// The servers of the last answer, by address.
    #[must_use]
    pub fn servers(&self) -> &[FoundServer] {
        &self.servers
    }

    /// The time from the last lookup to the next. Zero before the first lookup.
    #[must_use]
    pub const fn wait(&self) -> Duration {
        self.wait
    }

    /// Records an answer that is valid for the lifetime of its records. The next lookup follows when this time
    /// has passed, but after `max_wait` at the latest.
    ///
    /// Of two servers with one address, the first counts. If there are too many servers, those of the last
    /// answer stay, so that an answer in another order changes nothing.
    pub fn record_answer(
        &mut self,
        answer: &[FoundServer],
        lifetime: Duration,
        max_wait: Duration,
    ) -> Answered {
        let mut servers: Vec<FoundServer> = Vec::with_capacity(answer.len());
        for server in answer {
            if !contains(&servers, server) {
                servers.push(*server);
            }
        }
        servers.sort_by_key(|server| (!contains(&self.servers, server), server.address));
        let left_out = servers.len().saturating_sub(MAX_SERVERS);
        servers.truncate(MAX_SERVERS);
        servers.sort_by_key(|server| server.address);
        self.servers = servers;
        let was_cut = std::mem::replace(&mut self.was_cut, left_out > 0);
        let failures = std::mem::take(&mut self.failures);
        self.wait = lifetime.min(max_wait).max(MIN_WAIT);
        Answered {
            recovered: failures > 0,
            newly_left_out: (left_out > 0 && !was_cut).then_some(left_out),
        }
    }

    /// Records a lookup without an answer. The servers of the last answer stay.
    ///
    /// Returns true if the lookup before did not fail.
    pub fn record_failure(&mut self) -> bool {
        let factor = 2_u32.saturating_pow(self.failures);
        self.wait = FIRST_RETRY.saturating_mul(factor).min(MAX_RETRY);
        let is_first = self.failures == 0;
        self.failures = self.failures.saturating_add(1);
        is_first
    }
}

fn contains(servers: &[FoundServer], server: &FoundServer) -> bool {
    servers.iter().any(|other| other.address == server.address)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn server(n: u32) -> FoundServer {
        let ip = Ipv4Addr::from_bits(0x0a00_0000 + n);
        FoundServer {
            address: SocketAddr::from((ip, 443)),
            weight: None,
        }
    }

    fn servers(numbers: impl IntoIterator<Item = u32>) -> Vec<FoundServer> {
        numbers.into_iter().map(server).collect()
    }

    #[test]
    fn a_name_is_looked_up_again_when_its_records_end() {
        let mut lookups = NameLookups::default();
        assert_eq!(lookups.wait(), Duration::ZERO);
        let mut wait = |lifetime| {
            lookups.record_answer(&servers([1]), lifetime, 2 * MINUTE);
            lookups.wait()
        };
        assert_eq!(wait(MINUTE), MINUTE);
        assert_eq!(wait(Duration::ZERO), MIN_WAIT);
        assert_eq!(wait(Duration::MAX), 2 * MINUTE);
        lookups.record_answer(&servers([1]), MINUTE, Duration::from_nanos(1));
        assert_eq!(lookups.wait(), MIN_WAIT);
    }

    #[test]
    fn a_failure_keeps_the_servers_and_is_repeated_ever_later() {
        let mut lookups = NameLookups::default();
        lookups.record_answer(&servers([2, 1]), MINUTE, DEFAULT_MAX_WAIT);
        let mut fail = || (lookups.record_failure(), lookups.wait().as_secs());
        assert_eq!(fail(), (true, 1));
        let waits = [(); 7].map(|()| fail());
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60].map(|wait| (false, wait)));
        for _ in 0..100 {
            assert_eq!(fail(), (false, MAX_RETRY.as_secs()));
        }
        assert_eq!(lookups.servers(), servers([1, 2]));
        assert!(
            lookups
                .record_answer(&servers([1]), MINUTE, DEFAULT_MAX_WAIT)
                .recovered
        );
        assert!(
            !lookups
                .record_answer(&servers([1]), MINUTE, DEFAULT_MAX_WAIT)
                .recovered
        );
        assert!(lookups.record_failure());
        assert_eq!(lookups.wait(), FIRST_RETRY);
    }

    #[test]
    fn the_order_of_an_answer_does_not_matter() {
        let mut lookups = NameLookups::default();
        for answer in [servers([3, 1, 2]), servers([2, 3, 1, 3])] {
            lookups.record_answer(&answer, MINUTE, DEFAULT_MAX_WAIT);
            assert_eq!(lookups.servers(), servers([1, 2, 3]));
        }
    }

    #[test]
    fn the_first_of_two_records_with_one_address_counts() {
        let weighted = |weight| FoundServer {
            weight: Some(weight),
            ..server(1)
        };
        let mut lookups = NameLookups::default();
        lookups.record_answer(&[weighted(5), weighted(7)], MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(lookups.servers(), [weighted(5)]);
    }

    #[test]
    fn servers_that_are_in_use_stay_if_an_answer_has_too_many() {
        let max = MAX_SERVERS as u32;
        let mut lookups = NameLookups::default();
        lookups.record_answer(&servers([max + 7, max + 8]), MINUTE, DEFAULT_MAX_WAIT);
        let answer = servers(0..max + 10);
        let first = lookups.record_answer(&answer, MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(first.newly_left_out, Some(10));
        let used = servers((0..max - 2).chain([max + 7, max + 8]));
        assert_eq!(lookups.servers(), used);
        let reversed: Vec<_> = answer.iter().rev().copied().collect();
        let second = lookups.record_answer(&reversed, MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(second.newly_left_out, None);
        assert_eq!(lookups.servers(), used);
        lookups.record_answer(&servers([1]), MINUTE, DEFAULT_MAX_WAIT);
        let third = lookups.record_answer(&answer, MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(third.newly_left_out, Some(10));
    }
}
