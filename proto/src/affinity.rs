//! The learned table of a balancer: which server can resume a session ID or a ticket.
//!
//! The table is a session table whose values hold the number of a server. Each source prefix has a quota. A
//! prefix that has used up its quota displaces only its own entries. A handshake with one server never
//! overwrites a live entry of another server. The caller must report only completed handshakes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use aws_lc_rs::digest;

use crate::Time;
use crate::session::{Gone, Inserted, Limits, Part, TableEntry};

/// Longest session ID ([RFC 5246, 7.4.1.2](https://www.rfc-editor.org/rfc/rfc5246#section-7.4.1.2)).
const MAX_SESSION_ID: usize = 32;

/// Bytes of a ticket's hash that a key holds.
const TICKET_HASH: usize = 16;

/// Longest key: a byte for the kind, then the session ID or the hash.
const KEY: usize = 1 + MAX_SESSION_ID;

/// Every source prefix may hold at least this many entries.
const MIN_QUOTA: usize = 256;

/// A source prefix may hold the table's limit of entries divided by this number, if that is more than
/// [`MIN_QUOTA`].
const QUOTA_DIVISOR: usize = 10;

/// The identity of a returning client: a session ID or a ticket. A session ID never equals a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    bytes: [u8; KEY],
    len: u8,
}

impl AffinityKey {
    /// A session ID of TLS 1.2 or earlier. `None` if its length is not 1 to 32 bytes.
    #[must_use]
    pub fn session_id(id: &[u8]) -> Option<Self> {
        if id.is_empty() || id.len() > MAX_SESSION_ID {
            return None;
        }
        Some(Self::new(1, id))
    }

    /// The key of a ticket, which holds only a hash of the ticket. `None` if the ticket is empty.
    #[must_use]
    pub fn ticket(ticket: &[u8]) -> Option<Self> {
        if ticket.is_empty() {
            return None;
        }
        let hash = digest::digest(&digest::SHA256, ticket);
        Some(Self::new(2, &hash.as_ref()[..TICKET_HASH]))
    }

    /// The hash of an address and of what the clients there have in common. See [`crate::address_table`].
    pub(crate) fn address(hash: u64) -> Self {
        Self::new(3, &hash.to_be_bytes())
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

/// The result of [`Affinity::learn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LearnResult {
    /// The entry is new.
    New,
    /// The entry is new. The source had its whole quota, so its oldest entry was removed.
    Displacing,
    /// The entry was known, and its age is unchanged.
    Known,
    /// This other server has an entry with the same key, and the entry stays.
    Conflict(u32),
    /// The limits allow no entries at all.
    Disabled,
}

/// A session in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedSession {
    /// The server that can resume the session.
    pub server: u32,
    /// The source prefix whose quota the entry counts against.
    source: Source,
    /// The time of the full handshake. If the balancer did not see it, the time of the first handshake it
    /// saw.
    pub established: Time,
    /// The time of the last use.
    pub used: Time,
}

impl LearnedSession {
    /// Bytes of the value that the table holds for a key.
    const LEN: usize = 28;

    /// The offset of the last field, the time of the last use.
    const USED: usize = Self::LEN - 8;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.server.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.source.0.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.established.unix_millis().to_le_bytes());
        bytes[Self::USED..].copy_from_slice(&self.used.unix_millis().to_le_bytes());
        bytes
    }

    fn of(entry: &TableEntry<'_>) -> Self {
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

/// The learned table.
#[derive(Debug)]
pub struct Affinity {
    /// The table never evicts by itself, so that each removed entry is subtracted from its source's count.
    table: Part,
    max_entries: usize,
    /// The sequence number of the newest entry.
    sequence: u64,
    /// The number of entries of each source. The map is a tree, because peers could choose sources whose
    /// hashes collide.
    sources: BTreeMap<Source, u32>,
    /// The hash of each entry's key, by source and sequence number. The order gives a source's oldest entry.
    arrivals: BTreeMap<(Source, u64), u64>,
}

impl Affinity {
    /// An empty table. The seed must be unpredictable, because keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            table: Part::new(limits, 1, seed),
            max_entries: limits.max_entries,
            sequence: 0,
            sources: BTreeMap::new(),
            arrivals: BTreeMap::new(),
        }
    }

    /// Records that `server` can resume the session of `key`. A handshake from `source` has just proved this.
    ///
    /// `established` is the time of the session's full handshake.
    pub fn learn(
        &mut self,
        key: AffinityKey,
        server: u32,
        source: IpAddr,
        established: Time,
        now: Time,
    ) -> LearnResult {
        self.expire(now);
        let hashed = self.table.hashed(key.as_bytes());
        if let Some(entry) = self.table.peek(hashed) {
            let known = LearnedSession::of(&entry);
            if !self.table.is_expired(entry.established, now) {
                return if known.server == server {
                    LearnResult::Known
                } else {
                    LearnResult::Conflict(known.server)
                };
            }
            let sequence = entry.sequence;
            self.table.remove(hashed, Gone::Expired);
            self.subtract(known.source, sequence);
        }
        let learned = LearnedSession {
            server,
            source: Source::of(source),
            established,
            used: now,
        };
        self.insert(key.as_bytes(), learned, now, now)
    }

    /// Makes room and inserts an entry with a new key.
    fn insert(
        &mut self,
        key: &[u8],
        entry: LearnedSession,
        learned: Time,
        now: Time,
    ) -> LearnResult {
        let source = entry.source;
        let held = self.sources.get(&source).map_or(0, |&held| held as usize);
        // A source at its quota displaces only its own oldest entry.
        let displaces = held >= MIN_QUOTA.max(self.max_entries / QUOTA_DIVISOR);
        if displaces {
            self.forget_oldest_of(source);
        } else if self.table.len() >= self.max_entries {
            self.forget_oldest(now);
        }
        self.sequence += 1;
        let (sequence, key) = (self.sequence, self.table.hashed(key));
        let value = entry.to_bytes();
        let inserted = self.table.insert(sequence, key, &value, learned, now);
        if !matches!(inserted, Inserted::Stored { .. }) {
            return LearnResult::Disabled;
        }
        self.arrivals.insert((source, sequence), key.hash);
        *self.sources.entry(source).or_default() += 1;
        if displaces {
            LearnResult::Displacing
        } else {
            LearnResult::New
        }
    }

    /// The session of `key`, if the table knows it.
    #[must_use]
    pub fn lookup(&self, key: AffinityKey, now: Time) -> Option<LearnedSession> {
        let entry = self.table.peek(self.table.hashed(key.as_bytes()))?;
        let is_expired = self.table.is_expired(entry.established, now);
        (!is_expired).then(|| LearnedSession::of(&entry))
    }

    /// Records a use of a session. This does not extend the entry's life.
    pub fn used(&mut self, key: AffinityKey, at: Time) {
        let key = self.table.hashed(key.as_bytes());
        if let Some(value) = self.table.value_mut(key) {
            let used = LearnedSession::from_bytes(value).used.max(at);
            value[LearnedSession::USED..].copy_from_slice(&used.unix_millis().to_le_bytes());
        }
    }

    /// Removes the entry of a key.
    pub(crate) fn forget(&mut self, key: AffinityKey) {
        let key = self.table.hashed(key.as_bytes());
        if let Some(entry) = self.table.peek(key) {
            let (source, sequence) = (LearnedSession::of(&entry).source, entry.sequence);
            self.table.remove(key, Gone::Revoked);
            self.subtract(source, sequence);
        }
    }

    /// Removes the entries of the servers that `is_lost` picks, and returns the number of removed entries.
    /// Reads every entry.
    pub fn forget_servers(&mut self, is_lost: impl Fn(u32) -> bool) -> usize {
        let mut gone = Vec::new();
        self.table.remove_where(Gone::Revoked, |entry| {
            let learned = LearnedSession::of(entry);
            let is_gone = is_lost(learned.server);
            if is_gone {
                gone.push((learned.source, entry.sequence));
            }
            is_gone
        });
        for &(source, sequence) in &gone {
            self.subtract(source, sequence);
        }
        gone.len()
    }

    /// All entries, for [`Self::import`].
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

    /// Adds the entries of an [`Self::export`] that have not expired. Returns how many entries the table then
    /// has.
    ///
    /// `None` if the bytes are not an export. The table is then unchanged.
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
            let (value, tail) = tail.split_first_chunk::<{ LearnedSession::LEN }>()?;
            let learned = Time::from_unix_millis(u64::from_be_bytes(*learned));
            read.push((learned, key, value));
            rest = tail;
        }
        for (learned, key, value) in read {
            let is_known = self.table.peek(self.table.hashed(key)).is_some();
            if !is_known && !self.table.is_expired(learned, now) {
                self.insert(key, LearnedSession::from_bytes(value), learned, now);
            }
        }
        Some(self.table.len())
    }

    /// The number of entries.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.table.len()
    }

    fn expire(&mut self, now: Time) {
        // The age of an entry counts from its arrival, so the oldest entries expire first.
        while let Some(oldest) = self.table.oldest()
            && self.table.is_expired(oldest.established, now)
        {
            self.forget_oldest(now);
        }
    }

    fn forget_oldest(&mut self, now: Time) {
        if let Some(oldest) = self.table.oldest() {
            let source = LearnedSession::of(&oldest).source;
            let sequence = oldest.sequence;
            self.table.evict_oldest(now);
            self.subtract(source, sequence);
        }
    }

    fn forget_oldest_of(&mut self, source: Source) {
        let oldest = self.arrivals.range((source, 0)..=(source, u64::MAX)).next();
        if let Some((&(_, sequence), &hash)) = oldest {
            self.table.remove_one(hash, sequence, Gone::Evicted);
            self.subtract(source, sequence);
        }
    }

    /// Subtracts a removed entry from the count of its source.
    fn subtract(&mut self, source: Source, sequence: u64) {
        self.arrivals.remove(&(source, sequence));
        if let Some(held) = self.sources.get_mut(&source) {
            *held -= 1;
            if *held == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

/// A source prefix: a /24 of IPv4 or IPv4-mapped IPv6, a /56 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u64);

impl Source {
    /// The prefix of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
            // One more bit tells IPv6 prefixes from IPv4 prefixes.
            IpAddr::V6(address) => site(address) | 1 << SITE_BITS,
        })
    }

    /// Maps the prefix to a number below `parts`. Neighbouring prefixes mostly have different numbers.
    #[must_use]
    pub const fn spread(self, parts: usize) -> usize {
        // The multiplier is 2^64 divided by the golden ratio (Fibonacci hashing).
        let mixed = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 32) as usize % parts
    }
}

/// Bits of an IPv6 address that name the client's network. Privacy extensions change the rest daily.
const SITE_BITS: u32 = 56;

/// The first bits of an IPv6 address. All addresses of one household or office share these bits.
pub(crate) const fn site(address: Ipv6Addr) -> u64 {
    (address.to_bits() >> (u128::BITS - SITE_BITS)) as u64
}

#[cfg(test)]
mod tests;
