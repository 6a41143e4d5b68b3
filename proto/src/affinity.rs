//! What a balancer learns: which server can resume a session ID or a ticket. It is the session
//! table with a server's number for a value, a share of it for each source, and a rule: what one
//! server said is never overwritten by another. Whether something was said at all (only a
//! handshake that was completed teaches) is for the caller to see to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use aws_lc_rs::digest;

use crate::Time;
use crate::session::{Entry, Gone, Inserted, Limits, Stats, Table};

/// Longest session ID (RFC 5246, 7.4.1.2).
const MAX_SESSION_ID: usize = 32;

/// Bytes kept of a ticket's hash.
const TICKET_HASH: usize = 16;

/// Bytes of a key: its kind and what identifies it.
const KEY: usize = 1 + MAX_SESSION_ID;

/// A source prefix may always hold this many entries.
const QUOTA_FLOOR: usize = 256;

/// Beyond that, this fraction of the table (one in so many).
const QUOTA_SHARE: usize = 10;

/// What a client brings to be recognised by. The kinds never match each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    bytes: [u8; KEY],
    len: u8,
}

impl AffinityKey {
    /// A TLS ≤ 1.2 session ID. `None` where it is empty or too long to be one.
    #[must_use]
    pub fn session_id(id: &[u8]) -> Option<Self> {
        (1..=MAX_SESSION_ID)
            .contains(&id.len())
            .then(|| Self::new(1, id))
    }

    /// A ticket, of which a hash is kept. `None` where it is empty.
    #[must_use]
    pub fn ticket(ticket: &[u8]) -> Option<Self> {
        let hash = || digest::digest(&digest::SHA256, ticket);
        (!ticket.is_empty()).then(|| Self::new(2, &hash().as_ref()[..TICKET_HASH]))
    }

    fn new(kind: u8, id: &[u8]) -> Self {
        let mut bytes = [0; KEY];
        bytes[0] = kind;
        bytes[1..=id.len()].copy_from_slice(id);
        Self {
            bytes,
            len: 1 + id.len() as u8,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What became of a lesson.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It is new and remembered.
    New,
    /// It was known already. It is no younger for that.
    Known,
    /// It is known of this other server, and stays so.
    Conflict(u32),
    /// Its source holds its whole share of the table.
    OverQuota,
    /// The limits allow no entries at all.
    Disabled,
}

/// What is remembered of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// The server that can resume it.
    pub server: u32,
    /// When its full handshake was, as far as it was seen.
    pub established: Time,
    /// When a connection last used it.
    pub used: Time,
}

/// The learned table.
#[derive(Debug)]
pub struct Affinity {
    /// It never gets to evict by itself: every entry that leaves is taken off its source's count.
    table: Table,
    max_entries: usize,
    /// Entries of each source that has any. Ordered, so that no peer's choice makes it slow.
    sources: BTreeMap<Source, u32>,
}

impl Affinity {
    /// An empty table. The seed has to be unpredictable: keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            table: Table::new(limits, seed),
            max_entries: limits.max_entries,
            sources: BTreeMap::new(),
        }
    }

    /// Remembers that `server` can resume what `key` stands for, as a handshake from `source` that
    /// was completed just now has shown. `established`: when the session's full handshake was.
    pub fn learn(
        &mut self,
        key: AffinityKey,
        server: u32,
        source: IpAddr,
        established: Time,
        now: Time,
    ) -> Learned {
        self.expire(now);
        if let Some(entry) = self.table.peek(key.as_bytes()) {
            let known = Lesson::of(&entry);
            if !self.table.is_expired(entry.established, now) {
                return match known.server == server {
                    true => Learned::Known,
                    false => Learned::Conflict(known.server),
                };
            }
            self.table.remove(key.as_bytes(), Gone::Expired);
            uncount(&mut self.sources, known.source);
        }
        let source = Source::of(source);
        let held = self.sources.get(&source).map_or(0, |&held| held as usize);
        if held >= QUOTA_FLOOR.max(self.max_entries / QUOTA_SHARE) {
            return Learned::OverQuota;
        }
        if self.table.len() >= self.max_entries {
            self.forget_oldest(now);
        }
        let lesson = Lesson {
            server,
            source,
            established,
            used: now,
        };
        match self
            .table
            .insert(key.as_bytes(), &lesson.to_bytes(), now, now)
        {
            Inserted::Stored { .. } => {}
            _ => return Learned::Disabled,
        }
        *self.sources.entry(source).or_default() += 1;
        Learned::New
    }

    /// The server that can resume what `key` stands for, as far as is known.
    #[must_use]
    pub fn lookup(&self, key: AffinityKey, now: Time) -> Option<Recalled> {
        let entry = self.table.peek(key.as_bytes())?;
        let young = !self.table.is_expired(entry.established, now);
        let lesson = Lesson::of(&entry);
        young.then_some(Recalled {
            server: lesson.server,
            established: lesson.established,
            used: lesson.used,
        })
    }

    /// Takes note of the last use of a session. It is no younger for that, and known no longer.
    pub fn used(&mut self, key: AffinityKey, at: Time) {
        if let Some(value) = self.table.value_mut(key.as_bytes()) {
            let used = Lesson::from_bytes(value).used.max(at);
            value[Lesson::USED..].copy_from_slice(&used.unix_millis().to_le_bytes());
        }
    }

    /// Forgets all that one server taught: its state is lost. Looks at every entry.
    pub fn forget_server(&mut self, server: u32) -> usize {
        let sources = &mut self.sources;
        self.table.remove_where(Gone::Revoked, |entry| {
            let lesson = Lesson::of(entry);
            let is_it = lesson.server == server;
            if is_it {
                uncount(sources, lesson.source);
            }
            is_it
        })
    }

    /// All that is remembered, for [`Self::import`].
    ///
    /// `learned 8 | key length 1 | key | server 4 | source 8 | established 8 | used 8`…, oldest first
    #[must_use]
    pub fn export(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for entry in self.table.iter() {
            out.extend_from_slice(&entry.established.unix_millis().to_be_bytes());
            out.push(entry.key.len() as u8);
            out.extend_from_slice(entry.key);
            out.extend_from_slice(entry.value);
        }
        out
    }

    /// Remembers what another table did, into one that is empty, but for what is too old by now.
    /// Returns how much that is; `None` where it is not what [`Self::export`] wrote.
    pub fn import(&mut self, bytes: &[u8], now: Time) -> Option<usize> {
        let mut read = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (head, tail) = rest.split_first_chunk::<9>()?;
            let (learned, [length]) = head.split_first_chunk::<8>()? else {
                return None;
            };
            if !(2..=KEY).contains(&usize::from(*length)) {
                return None;
            }
            let (key, tail) = tail.split_at_checked(usize::from(*length))?;
            let (value, tail) = tail.split_first_chunk::<{ Lesson::LEN }>()?;
            let learned = Time::from_unix_millis(u64::from_be_bytes(*learned));
            read.push((learned, key, value));
            rest = tail;
        }
        for (learned, key, value) in read {
            if self.table.peek(key).is_some() {
                continue;
            }
            if self.table.len() >= self.max_entries {
                self.forget_oldest(now);
            }
            if let Inserted::Stored { .. } = self.table.insert(key, value, learned, now) {
                let source = Lesson::from_bytes(value).source;
                *self.sources.entry(source).or_default() += 1;
            }
        }
        Some(self.table.len())
    }

    /// What happened in the table so far. Look-ups are not counted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.table.stats()
    }

    /// Entries are as old as they have been here, so those that are too old are the first ones.
    fn expire(&mut self, now: Time) {
        while let Some(oldest) = self.table.oldest()
            && self.table.is_expired(oldest.established, now)
        {
            self.forget_oldest(now);
        }
    }

    fn forget_oldest(&mut self, now: Time) {
        if let Some(oldest) = self.table.oldest() {
            uncount(&mut self.sources, Lesson::of(&oldest).source);
            self.table.evict_oldest(now);
        }
    }
}

/// Takes one entry off a source's count.
fn uncount(sources: &mut BTreeMap<Source, u32>, source: Source) {
    if let Some(held) = sources.get_mut(&source) {
        *held -= 1;
        if *held == 0 {
            sources.remove(&source);
        }
    }
}

/// A source prefix: /24 of IPv4 (an address of IPv6 that maps one included), /56 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u64);

impl Source {
    /// The prefix that an address lies in.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
            // One bit more sets them apart.
            IpAddr::V6(address) => site(address) | 1 << SITE_BITS,
        })
    }
}

/// Bits of an IPv6 address that say whose network it is in: what follows, people change every day.
const SITE_BITS: u32 = 56;

/// The first bits of an IPv6 address, that a household or an office has to itself.
pub(crate) const fn site(address: Ipv6Addr) -> u64 {
    (address.to_bits() >> (u128::BITS - SITE_BITS)) as u64
}

/// What the table holds under a key.
#[derive(Clone, Copy, Debug)]
struct Lesson {
    server: u32,
    source: Source,
    established: Time,
    used: Time,
}

impl Lesson {
    const LEN: usize = 28;

    /// Where the time of the last use begins, which is the last field.
    const USED: usize = Self::LEN - 8;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.server.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.source.0.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.established.unix_millis().to_le_bytes());
        bytes[Self::USED..].copy_from_slice(&self.used.unix_millis().to_le_bytes());
        bytes
    }

    fn of(entry: &Entry<'_>) -> Self {
        Self::from_bytes(entry.value)
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        const WRITTEN: &str = "written by `to_bytes`";
        let (server, words) = bytes.split_first_chunk().expect(WRITTEN);
        let (words, _) = words.as_chunks();
        let [source, established, used] = *words else {
            unreachable!("{WRITTEN}");
        };
        Self {
            server: u32::from_le_bytes(*server),
            source: Source(u64::from_le_bytes(source)),
            established: Time::from_unix_millis(u64::from_le_bytes(established)),
            used: Time::from_unix_millis(u64::from_le_bytes(used)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const LIFETIME: u64 = 1000;

    const fn at(millis: u64) -> Time {
        Time::from_unix_millis(millis)
    }

    fn affinity(max_entries: usize) -> Affinity {
        let lifetime = Duration::from_millis(LIFETIME);
        Affinity::new(
            Limits {
                max_entries,
                lifetime,
            },
            1,
        )
    }

    /// Where a key leads.
    fn server(affinity: &Affinity, key: AffinityKey, now: Time) -> Option<u32> {
        Some(affinity.lookup(key, now)?.server)
    }

    fn id(n: u32) -> AffinityKey {
        AffinityKey::session_id(&n.to_be_bytes()).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_learned_session_leads_to_its_server_until_its_lifetime_is_over() {
        let mut affinity = affinity(10);
        assert_eq!(affinity.learn(id(1), 7, A, at(0), at(0)), Learned::New);
        assert_eq!(
            affinity.learn(id(1), 7, A, at(500), at(500)),
            Learned::Known
        );
        assert_eq!(server(&affinity, id(1), at(999)), Some(7));
        assert_eq!(server(&affinity, id(1), at(1000)), None);
        assert_eq!(server(&affinity, id(2), at(0)), None);
    }

    #[test]
    fn a_use_is_remembered_and_makes_no_lesson_younger() {
        let mut affinity = affinity(10);
        affinity.learn(id(1), 7, A, at(3), at(10));
        affinity.used(id(1), at(400));
        affinity.used(id(1), at(300));
        affinity.used(id(2), at(400));
        let recalled = Recalled {
            server: 7,
            established: at(3),
            used: at(400),
        };
        assert_eq!(affinity.lookup(id(1), at(1009)), Some(recalled));
        assert_eq!(affinity.lookup(id(1), at(1010)), None);
    }

    #[test]
    fn what_one_table_remembered_another_does() {
        let mut first = affinity(10);
        for n in 0..4_u32 {
            let net = address(&format!("192.0.{n}.1"));
            first.learn(id(n), n, net, at(u64::from(n)), at(u64::from(n) * 100));
        }
        first.used(id(3), at(800));
        let bytes = first.export();
        let mut second = affinity(2);
        // The first is too old by now, the second had to make room.
        assert_eq!(second.import(&bytes, at(1050)), Some(2));
        let found = [0, 1, 2, 3].map(|n| second.lookup(id(n), at(1050)));
        assert_eq!(
            found,
            [
                None,
                None,
                first.lookup(id(2), at(1050)),
                first.lookup(id(3), at(1050))
            ]
        );
        assert_eq!(second.sources.values().sum::<u32>(), 2);
        assert_eq!(second.import(&bytes, at(1050)), Some(2));
        assert_eq!(second.import(&[], at(1050)), Some(2));
    }

    #[test]
    fn what_is_no_export_is_refused_as_a_whole() {
        let mut first = affinity(10);
        first.learn(id(1), 7, A, at(0), at(0));
        first.learn(id(2), 7, A, at(0), at(0));
        let bytes = first.export();
        let one = bytes.len() / 2;
        for end in (0..bytes.len()).filter(|end| end % one != 0) {
            let mut second = affinity(10);
            assert_eq!(second.import(&bytes[..end], at(1)), None, "{end}");
            assert_eq!(second.stats().entries, 0);
        }
        let mut longer = bytes;
        longer[8] = 200;
        assert_eq!(affinity(10).import(&longer, at(1)), None);
    }

    #[test]
    fn no_server_overwrites_what_another_said() {
        let mut affinity = affinity(10);
        affinity.learn(id(1), 7, A, at(0), at(0));
        assert_eq!(
            affinity.learn(id(1), 8, A, at(1), at(1)),
            Learned::Conflict(7)
        );
        assert_eq!(server(&affinity, id(1), at(1)), Some(7));
        assert_eq!(
            affinity.learn(id(1), 8, A, at(1000), at(1000)),
            Learned::New
        );
        assert_eq!(server(&affinity, id(1), at(1000)), Some(8));
    }

    #[test]
    fn kinds_of_keys_do_not_match_each_other() {
        let hash = digest::digest(&digest::SHA256, b"ticket");
        let as_id = AffinityKey::session_id(&hash.as_ref()[..TICKET_HASH]);
        assert_ne!(AffinityKey::ticket(b"ticket"), as_id);
        assert_ne!(
            AffinityKey::ticket(b"ticket"),
            AffinityKey::ticket(b"ticket ")
        );
        assert_ne!(
            AffinityKey::session_id(&[0]),
            AffinityKey::session_id(&[0, 0])
        );
        assert_eq!(AffinityKey::session_id(&[]), None);
        assert_eq!(AffinityKey::session_id(&[0; 33]), None);
        assert!(AffinityKey::session_id(&[0; 32]).is_some());
        assert_eq!(AffinityKey::ticket(&[]), None);
    }

    #[test]
    fn the_oldest_lesson_is_forgotten_first() {
        let mut affinity = affinity(2);
        for n in 0..3 {
            affinity.learn(id(n), n, A, at(0), at(0));
        }
        assert_eq!(
            [0, 1, 2].map(|n| server(&affinity, id(n), at(0))),
            [None, Some(1), Some(2)]
        );
    }

    #[test]
    fn a_server_that_lost_its_state_is_forgotten_and_the_others_are_not() {
        let mut affinity = affinity(1000);
        for n in 0..240 {
            affinity.learn(id(n), n % 3, A, at(0), at(0));
        }
        assert_eq!(affinity.forget_server(1), 80);
        assert_eq!(affinity.stats().entries, 160);
        assert_eq!(server(&affinity, id(1), at(0)), None);
        assert_eq!(server(&affinity, id(2), at(0)), Some(2));
    }

    #[test]
    fn a_source_prefix_holds_at_most_its_share() {
        let mut affinity = affinity(10_000);
        for n in 0..1000 {
            let near = address(&format!("192.0.2.{}", n % 256));
            assert_eq!(affinity.learn(id(n), 7, near, at(0), at(0)), Learned::New);
        }
        let mapped = address("::ffff:192.0.2.77");
        assert_eq!(
            affinity.learn(id(5000), 7, mapped, at(0), at(0)),
            Learned::OverQuota
        );
        assert_eq!(affinity.learn(id(3), 7, A, at(0), at(0)), Learned::Known);
        assert_eq!(
            affinity.learn(id(5000), 7, address("192.0.3.1"), at(0), at(0)),
            Learned::New
        );
        assert_eq!(
            affinity.learn(id(5001), 7, A, at(1000), at(1000)),
            Learned::New
        );
    }

    #[test]
    fn a_small_table_is_not_divided_further_than_its_floor() {
        let mut affinity = affinity(300);
        let learned: Vec<_> = (0..257)
            .map(|n| affinity.learn(id(n), 7, A, at(0), at(0)))
            .collect();
        assert_eq!(
            learned
                .iter()
                .position(|&learned| learned == Learned::OverQuota),
            Some(QUOTA_FLOOR)
        );
    }

    #[test]
    fn sources_are_told_apart_by_prefix() {
        let of = |text| Source::of(address(text));
        assert_eq!(of("2001:db8:0:100::1"), of("2001:db8:0:1ff:ffff::"));
        assert_ne!(of("2001:db8:0:100::1"), of("2001:db8:0:200::1"));
        assert_ne!(of("::"), of("0.0.0.0"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.255"));
    }

    #[test]
    fn nothing_is_learned_where_the_table_is_disabled() {
        let mut affinity = affinity(0);
        assert_eq!(affinity.learn(id(1), 7, A, at(0), at(0)), Learned::Disabled);
        assert_eq!(server(&affinity, id(1), at(0)), None);
        assert!(affinity.sources.is_empty());
    }

    proptest! {
        /// Whatever happens, the counts are those of the entries that are there.
        #[test]
        fn counts_of_sources_stay_right(
            max_entries in 0..40_usize,
            steps in prop::collection::vec((0..60_u32, 0..4_u32, 0..5_u8, -20..200_i64), 0..300),
        ) {
            let mut affinity = affinity(max_entries);
            let mut now = at(10_000);
            for (n, server, net, by) in steps {
                now = at(now.unix_millis().saturating_add_signed(by));
                match n {
                    0 => { affinity.forget_server(server); }
                    _ => { affinity.learn(id(n), server, address(&format!("10.0.{net}.1")), now, now); }
                }
                let mut counts = BTreeMap::new();
                for entry in affinity.table.iter() {
                    *counts.entry(Lesson::of(&entry).source).or_default() += 1;
                }
                prop_assert_eq!(&counts, &affinity.sources);
                prop_assert!(affinity.table.len() <= max_entries);
            }
        }
    }
}
