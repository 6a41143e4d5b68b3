//! What a balancer learns: which server can resume a session ID or a ticket. It is the session
//! table with a server's number for a value, a share of it for each source (which makes room of its own
//! for what is beyond), and a rule: what one server said is never overwritten by another. Whether something was said at all (only a
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
    /// So it is. Its source held its whole share of the table: the oldest entry of that has left for it.
    Displacing,
    /// It was known already. It is no younger for that.
    Known,
    /// It is known of this other server, and stays so.
    Conflict(u32),
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
    /// Every entry by its source and its place in the order of arrival, with its key's hash: a source's
    /// oldest is found without a look at those of others.
    arrivals: BTreeMap<(Source, u64), u64>,
}

impl Affinity {
    /// An empty table. The seed has to be unpredictable: keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            table: Table::new(limits, seed),
            max_entries: limits.max_entries,
            sources: BTreeMap::new(),
            arrivals: BTreeMap::new(),
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
            let sequence = entry.sequence;
            self.table.remove(key.as_bytes(), Gone::Expired);
            self.uncount(known.source, sequence);
        }
        let lesson = Lesson {
            server,
            source: Source::of(source),
            established,
            used: now,
        };
        self.insert(key.as_bytes(), lesson, now, now)
    }

    /// Makes room and puts an entry there, whose key is not there yet. One that is beyond its source's
    /// share takes the place of that source's oldest, and of no other's.
    fn insert(&mut self, key: &[u8], lesson: Lesson, learned: Time, now: Time) -> Learned {
        let source = lesson.source;
        let held = self.sources.get(&source).map_or(0, |&held| held as usize);
        let displaces = held >= QUOTA_FLOOR.max(self.max_entries / QUOTA_SHARE);
        if displaces {
            self.forget_oldest_of(source);
        } else if self.table.len() >= self.max_entries {
            self.forget_oldest(now);
        }
        match self.table.insert(key, &lesson.to_bytes(), learned, now) {
            Inserted::Stored { .. } => {}
            _ => return Learned::Disabled,
        }
        if let Some(entry) = self.table.peek(key) {
            let arrival = (source, entry.sequence);
            self.arrivals.insert(arrival, self.table.hash(key));
            *self.sources.entry(source).or_default() += 1;
        }
        match displaces {
            true => Learned::Displacing,
            false => Learned::New,
        }
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

    /// Forgets all that some servers taught: their state is lost. Looks at every entry.
    pub fn forget_servers(&mut self, is_one: impl Fn(u32) -> bool) -> usize {
        let mut gone = Vec::new();
        self.table.remove_where(Gone::Revoked, |entry| {
            let lesson = Lesson::of(entry);
            let is_it = is_one(lesson.server);
            if is_it {
                gone.push((lesson.source, entry.sequence));
            }
            is_it
        });
        for &(source, sequence) in &gone {
            self.uncount(source, sequence);
        }
        gone.len()
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
            if self.table.peek(key).is_none() && !self.table.is_expired(learned, now) {
                self.insert(key, Lesson::from_bytes(value), learned, now);
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
            let (source, sequence) = (Lesson::of(&oldest).source, oldest.sequence);
            self.table.evict_oldest(now);
            self.uncount(source, sequence);
        }
    }

    fn forget_oldest_of(&mut self, source: Source) {
        let mut its = self.arrivals.range((source, 0)..=(source, u64::MAX));
        if let Some((&(_, sequence), &hash)) = its.next() {
            self.table.remove_one(hash, sequence, Gone::Evicted);
            self.uncount(source, sequence);
        }
    }

    /// Takes an entry that has left off what is known of its source.
    fn uncount(&mut self, source: Source, sequence: u64) {
        self.arrivals.remove(&(source, sequence));
        if let Some(held) = self.sources.get_mut(&source) {
            *held -= 1;
            if *held == 0 {
                self.sources.remove(&source);
            }
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
mod tests;
