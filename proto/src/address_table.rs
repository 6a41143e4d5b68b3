//! The address table of a balancer: which server took the clients of an address whose offers name no server.
//!
//! Some servers give tickets that look random (newer Go, rustls). Their clients are led by their address, their
//! server name and their fingerprint. Such a route is a guess. The caller must report only complete handshakes.

use std::net::IpAddr;

use crate::Time;
use crate::affinity::{Affinity, AffinityKey, LearnResult, site};
use crate::hello::ClientHello;
use crate::session::{Hasher, Limits};

/// The clients of one address with one server name and one fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressKey(AffinityKey);

/// Makes the keys of one process. A client cannot choose bytes that give the key of another client.
#[derive(Clone, Debug)]
pub struct AddressHasher(Hasher);

impl AddressHasher {
    /// The seed must be unpredictable, because clients choose what is hashed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(Hasher::new(seed))
    }

    /// The key of a client. Of an IPv6 address, only the first 56 bits count, as for the policy `source`.
    #[must_use]
    pub fn key(&self, source: IpAddr, hello: &ClientHello<'_>) -> AddressKey {
        let name = hello.server_name.unwrap_or_default();
        let mut bytes = Vec::with_capacity(16 + name.len());
        match source.to_canonical() {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(site(address).to_be_bytes()),
        }
        let fingerprint = hello.fingerprint(|part| self.0.hash(part));
        bytes.extend(fingerprint.to_be_bytes());
        bytes.extend(name.bytes().map(|byte| byte.to_ascii_lowercase()));
        AddressKey(AffinityKey::address(self.0.hash(&bytes)))
    }
}

/// The address table. It has the size, the lifetime and the quotas of the learned table.
#[derive(Debug)]
pub struct AddressTable(Affinity);

impl AddressTable {
    /// An empty table. The seed must be unpredictable, because keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self(Affinity::new(limits, seed))
    }

    /// The server that took these clients, if it was less than the lifetime ago.
    #[must_use]
    pub fn lookup(&self, key: AddressKey, now: Time) -> Option<u32> {
        Some(self.0.lookup(key.0, now)?.server)
    }

    /// Records a complete handshake of a client from `source` with `server`.
    ///
    /// A later handshake with the same server extends the life of the entry. A handshake with another server
    /// changes the entry only if `is_usable` is false for the entry's server. So clients behind one address
    /// converge on one server.
    pub fn learn(
        &mut self,
        key: AddressKey,
        server: u32,
        source: IpAddr,
        is_usable: impl FnOnce(u32) -> bool,
        now: Time,
    ) -> LearnResult {
        let known = self.lookup(key, now);
        if let Some(other) = known
            && other != server
            && is_usable(other)
        {
            return LearnResult::Conflict(other);
        }
        // The new entry is the newest, so it leaves the table last.
        self.0.forget(key.0);
        let learned = self.0.learn(key.0, server, source, now, now);
        if known == Some(server) {
            LearnResult::Known
        } else {
            learned
        }
    }

    /// Removes the entries of a server, and returns their number. Reads every entry.
    pub fn forget_server(&mut self, server: u32) -> usize {
        self.0.forget_servers(|learned| learned == server)
    }

    /// The number of entries.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.0.entries()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::testdata::exchange;

    const LIFETIME: u64 = 1000;

    const fn at(millis: u64) -> Time {
        Time::from_unix_millis(millis)
    }

    fn table(max_entries: usize) -> AddressTable {
        let limits = Limits {
            max_entries,
            lifetime: Duration::from_millis(LIFETIME),
        };
        AddressTable::new(limits, 1)
    }

    fn hello() -> ClientHello<'static> {
        ClientHello::parse(&exchange("chromium-resumed").client[5..]).unwrap()
    }

    fn key(source: IpAddr) -> AddressKey {
        AddressHasher::new(7).key(source, &hello())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A client of a network of its own.
    fn client(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n << 8).into()
    }

    const USABLE: fn(u32) -> bool = |_| true;
    const UNUSABLE: fn(u32) -> bool = |_| false;

    #[test]
    fn the_key_has_the_address_the_name_and_the_fingerprint() {
        let hasher = AddressHasher::new(7);
        let key = |source, name, capture| {
            let client: &[u8] = exchange(capture).client;
            let mut hello = ClientHello::parse(&client[5..]).unwrap();
            hello.server_name = name;
            hasher.key(address(source), &hello)
        };
        let one = key("192.0.2.1", Some("shop.example"), "curl-full");
        assert_eq!(one, key("192.0.2.1", Some("Shop.Example"), "curl-resumed"));
        assert_eq!(
            one,
            key("::ffff:192.0.2.1", Some("shop.example"), "curl-full")
        );
        for other in [
            key("192.0.2.2", Some("shop.example"), "curl-full"),
            key("192.0.2.1", Some("example"), "curl-full"),
            key("192.0.2.1", None, "curl-full"),
            key("192.0.2.1", Some("shop.example"), "gnutls-full"),
        ] {
            assert_ne!(one, other);
        }
        let of = |source| key(source, None, "curl-full");
        assert_eq!(of("2001:db8::1"), of("2001:db8:0:ff:1::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:100::1"));
        let seeded = |seed| AddressHasher::new(seed).key(client(1), &hello());
        assert_ne!(seeded(1), seeded(2));
    }

    #[test]
    fn an_entry_lives_until_the_lifetime_after_its_last_use() {
        let (mut table, key) = (table(10), key(client(1)));
        assert_eq!(table.lookup(key, at(0)), None);
        let new = table.learn(key, 7, client(1), USABLE, at(0));
        assert_eq!(new, LearnResult::New);
        let known = table.learn(key, 7, client(1), USABLE, at(900));
        assert_eq!((known, table.entries()), (LearnResult::Known, 1));
        assert_eq!(table.lookup(key, at(1899)), Some(7));
        assert_eq!(table.lookup(key, at(1900)), None);
    }

    #[test]
    fn another_server_takes_over_only_from_a_server_that_takes_no_clients() {
        let (mut table, key) = (table(10), key(client(1)));
        table.learn(key, 7, client(1), USABLE, at(0));
        let kept = table.learn(key, 8, client(1), USABLE, at(900));
        assert_eq!(kept, LearnResult::Conflict(7));
        assert_eq!(table.lookup(key, at(999)), Some(7));
        assert_eq!(table.lookup(key, at(1000)), None, "a use of 8 is none of 7");
        table.learn(key, 7, client(1), USABLE, at(1000));
        table.learn(key, 8, client(1), UNUSABLE, at(1001));
        assert_eq!((table.lookup(key, at(1001)), table.entries()), (Some(8), 1));
    }

    #[test]
    fn a_server_that_leaves_takes_its_entries_along() {
        let mut table = table(10);
        for n in 0..6 {
            table.learn(key(client(n)), n % 2, client(n), USABLE, at(0));
        }
        assert_eq!(table.forget_server(1), 3);
        let servers = [0, 1, 2, 3].map(|n| table.lookup(key(client(n)), at(0)));
        assert_eq!(servers, [Some(0), None, Some(0), None]);
    }

    #[test]
    fn the_entry_that_was_not_used_for_longest_leaves_a_full_table() {
        let mut table = table(3);
        for n in 0..3 {
            table.learn(key(client(n)), 7, client(n), USABLE, at(0));
        }
        table.learn(key(client(0)), 7, client(0), USABLE, at(1));
        table.learn(key(client(3)), 7, client(3), USABLE, at(2));
        let known = [0, 1, 2, 3].map(|n| table.lookup(key(client(n)), at(2)).is_some());
        assert_eq!(known, [true, false, true, true]);
    }

    #[test]
    fn one_network_cannot_evict_the_entries_of_others() {
        const MAX: usize = 2560;
        let mut table = table(MAX);
        let honest = address("203.0.113.9");
        table.learn(key(honest), 7, honest, USABLE, at(0));
        let hasher = AddressHasher::new(7);
        let liar = address("192.0.2.1");
        let mut displaced = 0;
        // The liar invents a name for each handshake.
        for n in 0..2 * MAX {
            let name = n.to_string();
            let mut hello = hello();
            hello.server_name = Some(&name);
            let key = hasher.key(liar, &hello);
            let result = table.learn(key, 8, liar, USABLE, at(1));
            displaced += usize::from(result == LearnResult::Displacing);
        }
        assert_eq!(table.lookup(key(honest), at(1)), Some(7));
        assert_eq!(table.entries(), 1 + MAX / 10);
        assert_eq!(displaced, 2 * MAX - MAX / 10);
    }
}
