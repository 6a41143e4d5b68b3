//! Servers that a DNS name stands for: which addresses of an answer are used, and when the name is looked up
//! again. The lookups themselves are elsewhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
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

/// The servers of an answer that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The servers. Of two servers with one address, the first counts.
    pub servers: Vec<FoundServer>,
    /// The number of records that are not used, because the answer has too many.
    pub left_out: usize,
    /// The number of addresses to which the balancer must not connect.
    pub unusable: usize,
}

/// The lookups of one name.
#[derive(Clone, Debug, Default)]
pub struct NameLookups {
    servers: Vec<FoundServer>,
    /// The addresses of the servers that the last answer did not have.
    absent: BTreeSet<SocketAddr>,
    /// The number of failed lookups in a row.
    failures: u32,
    /// True if the last answer had more than [`MAX_SERVERS`] servers.
    was_cut: bool,
    /// True if the last answer had addresses that are not used.
    had_unusable: bool,
    wait: Duration,
}

/// The effect of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// True if the lookup before failed.
    pub recovered: bool,
    /// The number of servers that are not used, if the answer before had no such servers.
    pub newly_left_out: Option<usize>,
    /// The number of addresses that are not used, if the answer before had no such addresses.
    pub newly_unusable: Option<usize>,
}

impl NameLookups {
    /// The servers of the last answer, and those of the answer before that the last answer did not have. They
    /// are sorted by address.
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
    /// A server leaves when two answers in a row do not have it. If there are too many servers, those in use
    /// stay, so that an answer in another order changes nothing.
    pub fn record_answer(
        &mut self,
        answer: Answer,
        lifetime: Duration,
        max_wait: Duration,
    ) -> Answered {
        let before: BTreeSet<SocketAddr> =
            self.servers.iter().map(|server| server.address).collect();
        let Selection {
            items: mut servers,
            left_out,
        } = select(
            answer.servers,
            |server| before.contains(&server.address),
            |server| server.address,
        );
        let present: BTreeSet<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let newly_absent = self.servers.iter().copied().filter(|server| {
            !present.contains(&server.address) && !self.absent.contains(&server.address)
        });
        let newly_absent: Vec<FoundServer> =
            newly_absent.take(MAX_SERVERS - servers.len()).collect();
        self.absent = newly_absent.iter().map(|server| server.address).collect();
        servers.extend(newly_absent);
        servers.sort_by_key(|server| server.address);
        self.servers = servers;
        let left_out = left_out + answer.left_out;
        let was_cut = std::mem::replace(&mut self.was_cut, left_out > 0);
        let had_unusable = std::mem::replace(&mut self.had_unusable, answer.unusable > 0);
        let failures = std::mem::take(&mut self.failures);
        self.wait = lifetime.min(max_wait).max(MIN_WAIT);
        Answered {
            recovered: failures > 0,
            newly_left_out: (left_out > 0 && !was_cut).then_some(left_out),
            newly_unusable: (answer.unusable > 0 && !had_unusable).then_some(answer.unusable),
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

/// The items of an answer that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection<T> {
    /// The items, sorted by their keys. The known items come first.
    pub items: Vec<T>,
    /// The number of items that are not used.
    pub left_out: usize,
}

/// Selects at most [`MAX_SERVERS`] items. Known items go first, and then items with low keys. Of two items with
/// one key, the first counts.
pub fn select<T, K: Ord>(
    mut items: Vec<T>,
    is_known: impl Fn(&T) -> bool,
    key: impl Fn(&T) -> K,
) -> Selection<T> {
    items.sort_by_cached_key(&key);
    items.dedup_by_key(|item| key(item));
    items.sort_by_cached_key(|item| !is_known(item));
    let left_out = items.len().saturating_sub(MAX_SERVERS);
    items.truncate(MAX_SERVERS);
    Selection { items, left_out }
}

/// The address to which a balancer connects. An IPv4 address in IPv6 form is that IPv4 address.
///
/// `None` if the address cannot be that of one server. A connection to the unspecified address reaches the
/// balancer's own host, and `listeners` are the balancer itself. `is_local`: the host has this address.
#[must_use]
pub fn usable_address(
    address: SocketAddr,
    listeners: &[SocketAddr],
    is_local: impl Fn(IpAddr) -> bool,
) -> Option<SocketAddr> {
    let ip = address.ip().to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || is_broadcast {
        return None;
    }
    let is_own = listeners.iter().any(|listener| {
        let own = listener.ip().to_canonical();
        listener.port() == address.port() && (own == ip || own.is_unspecified() && is_local(ip))
    });
    (!is_own).then(|| SocketAddr::new(ip, address.port()))
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

    /// An answer with these servers.
    fn answer(numbers: impl IntoIterator<Item = u32>) -> Answer {
        Answer {
            servers: servers(numbers),
            ..Answer::default()
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
            lookups.record_answer(answer([1]), lifetime, 2 * MINUTE);
            lookups.wait()
        };
        assert_eq!(wait(MINUTE), MINUTE);
        assert_eq!(wait(Duration::ZERO), MIN_WAIT);
        assert_eq!(wait(Duration::MAX), 2 * MINUTE);
        lookups.record_answer(answer([1]), MINUTE, Duration::from_nanos(1));
        assert_eq!(lookups.wait(), MIN_WAIT);
    }

    #[test]
    fn a_failure_keeps_the_servers_and_is_repeated_ever_later() {
        let mut lookups = NameLookups::default();
        lookups.record_answer(answer([2, 1]), MINUTE, DEFAULT_MAX_WAIT);
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
                .record_answer(answer([1]), MINUTE, DEFAULT_MAX_WAIT)
                .recovered
        );
        assert!(
            !lookups
                .record_answer(answer([1]), MINUTE, DEFAULT_MAX_WAIT)
                .recovered
        );
        assert!(lookups.record_failure());
        assert_eq!(lookups.wait(), FIRST_RETRY);
    }

    #[test]
    fn the_order_of_an_answer_does_not_matter() {
        let mut lookups = NameLookups::default();
        for order in [answer([3, 1, 2]), answer([2, 3, 1, 3])] {
            lookups.record_answer(order, MINUTE, DEFAULT_MAX_WAIT);
            assert_eq!(lookups.servers(), servers([1, 2, 3]));
        }
    }

    #[test]
    fn a_server_leaves_when_two_answers_in_a_row_do_not_have_it() {
        let mut lookups = NameLookups::default();
        for (present, used) in [
            (vec![1, 2], vec![1, 2]),
            (vec![1, 3], vec![1, 2, 3]),
            (vec![2, 3], vec![1, 2, 3]),
            (vec![3, 4], vec![2, 3, 4]),
            (vec![3], vec![3, 4]),
            (vec![3], vec![3]),
            (vec![5], vec![3, 5]),
        ] {
            lookups.record_answer(answer(present), MINUTE, DEFAULT_MAX_WAIT);
            assert_eq!(lookups.servers(), servers(used));
        }
        // A failed lookup is no answer.
        lookups.record_failure();
        assert_eq!(lookups.servers(), servers([3, 5]));
        lookups.record_answer(answer([5]), MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(lookups.servers(), servers([5]));
    }

    #[test]
    fn the_first_of_two_records_with_one_address_counts() {
        let weighted = |weight| FoundServer {
            weight: Some(weight),
            ..server(1)
        };
        let mut lookups = NameLookups::default();
        let answer = Answer {
            servers: vec![weighted(5), weighted(7)],
            ..Answer::default()
        };
        lookups.record_answer(answer, MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(lookups.servers(), [weighted(5)]);
    }

    #[test]
    fn servers_that_are_in_use_stay_if_an_answer_has_too_many() {
        let max = MAX_SERVERS as u32;
        let mut lookups = NameLookups::default();
        lookups.record_answer(answer([max + 7, max + 8]), MINUTE, DEFAULT_MAX_WAIT);
        let many = answer(0..max + 10);
        let first = lookups.record_answer(many.clone(), MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(first.newly_left_out, Some(10));
        let used = servers((0..max - 2).chain([max + 7, max + 8]));
        assert_eq!(lookups.servers(), used);
        let mut reversed = many.clone();
        reversed.servers.reverse();
        let second = lookups.record_answer(reversed, MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(second.newly_left_out, None);
        assert_eq!(lookups.servers(), used);
        lookups.record_answer(answer([1]), MINUTE, DEFAULT_MAX_WAIT);
        let more = Answer {
            left_out: 5,
            ..many
        };
        let third = lookups.record_answer(more, MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(third.newly_left_out, Some(15));
        // New servers go before servers that the answer does not have.
        let others = lookups.record_answer(answer(1000..1000 + max), MINUTE, DEFAULT_MAX_WAIT);
        assert_eq!(others.newly_left_out, None);
        assert_eq!(lookups.servers(), servers(1000..1000 + max));
    }

    #[test]
    fn addresses_that_cannot_be_used_are_reported_when_they_come() {
        let mut lookups = NameLookups::default();
        let mut reported = |unusable| {
            let answer = Answer {
                unusable,
                ..answer([1])
            };
            let answered = lookups.record_answer(answer, MINUTE, DEFAULT_MAX_WAIT);
            answered.newly_unusable
        };
        let reports = [0, 2, 3, 0, 1].map(&mut reported);
        assert_eq!(reports, [None, Some(2), None, None, Some(1)]);
    }

    #[test]
    fn addresses_that_are_no_server_or_the_balancer_itself_are_not_used() {
        let usable = |address: &str, listeners: &[&str]| {
            let listeners: Vec<_> = listeners.iter().map(|it| it.parse().unwrap()).collect();
            let is_local = |ip: IpAddr| ip.is_loopback();
            let used = usable_address(address.parse().unwrap(), &listeners, is_local);
            used.map(|address| address.to_string())
        };
        for address in [
            "0.0.0.0:443",
            "[::]:443",
            "[::ffff:0.0.0.0]:443",
            "224.0.0.1:443",
            "[ff02::1]:443",
            "255.255.255.255:443",
            "10.0.0.1:0",
        ] {
            assert_eq!(usable(address, &[]), None, "{address}");
        }
        let used = |address: &str| Some(address.to_owned());
        assert_eq!(usable("[::ffff:10.0.0.1]:443", &[]), used("10.0.0.1:443"));
        for (address, listener, is_used) in [
            ("10.0.0.1:443", "10.0.0.1:443", false),
            ("[::ffff:10.0.0.1]:443", "10.0.0.1:443", false),
            ("10.0.0.1:443", "10.0.0.1:444", true),
            ("10.0.0.1:443", "10.0.0.2:443", true),
            ("127.0.0.2:443", "0.0.0.0:443", false),
            ("127.0.0.2:443", "[::]:443", false),
            ("10.0.0.1:443", "0.0.0.0:443", true),
        ] {
            let expected = is_used.then(|| address.to_owned());
            assert_eq!(
                usable(address, &[listener]),
                expected,
                "{address} {listener}"
            );
        }
    }
}
