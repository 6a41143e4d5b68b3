//! One part of a table: an index over a log, and the ghosts of removed entries.

use super::ghost::Ghosts;
use super::hash::{Hashed, Hasher};
use super::index::Index;
use super::log::Log;
use super::{Gone, Inserted, Limits, Lookup, MAX_KEY, MAX_VALUE, TableEntry};
use crate::Time;

/// Fewest ghosts of a table. Otherwise a table has as many ghosts as entries.
const MIN_GHOSTS: usize = 64;

/// Most ghosts of a table.
const MAX_GHOSTS: usize = 65_536;

/// One of several parts that share the limits of a table, or the only part.
///
/// A part does not know when the table is full. The owner of the parts calls [`Self::evict_oldest`] on the part
/// with the oldest entry.
#[derive(Debug)]
pub(crate) struct Part {
    disabled: bool,
    /// In milliseconds, rounded up.
    lifetime: u64,
    hasher: Hasher,
    index: Index,
    log: Log,
    ghosts: Ghosts,
    len: usize,
}

impl Part {
    /// An empty part, one of `parts`. The seed must be unpredictable, because keys come from peers.
    pub(crate) fn new(limits: Limits, parts: usize, seed: u64) -> Self {
        let share = |all: usize| all.div_ceil(parts.max(1));
        let ghosts = if limits.disabled() {
            0
        } else {
            share(limits.max_entries.clamp(MIN_GHOSTS, MAX_GHOSTS))
        };
        let lifetime = limits.lifetime.as_nanos().div_ceil(1_000_000);
        Self {
            disabled: limits.disabled(),
            lifetime: u64::try_from(lifetime).unwrap_or(u64::MAX),
            hasher: Hasher::new(seed),
            index: Index::default(),
            log: Log::new(share(limits.max_entries)),
            ghosts: Ghosts::new(ghosts),
            len: 0,
        }
    }

    /// Stores a value. An entry with the same key is replaced; the new entry is the newest.
    ///
    /// If the time of the handshake is in the future, `now` is used. `sequence` orders the entries of all
    /// parts, and must be larger than every number before.
    pub(crate) fn insert(
        &mut self,
        sequence: u64,
        key: Hashed<'_>,
        value: &[u8],
        established: Time,
        now: Time,
    ) -> Inserted {
        if self.disabled {
            return Inserted::Disabled;
        }
        if key.bytes.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Inserted::TooLarge;
        }
        let established = established.min(now);
        if self.is_expired(established, now) {
            return Inserted::AlreadyExpired;
        }
        let entry = TableEntry {
            key: key.bytes,
            value,
            established,
            sequence,
        };
        if let Some(place) = self.find(key) {
            // The replaced entry needs no ghost, because its key stays in the table.
            self.remove_place(place);
        }
        let mut evicted = false;
        let location = loop {
            match self.log.append(&entry) {
                Some(location) => break location,
                None => evicted = self.evict_oldest(now).is_some(),
            }
        };
        self.index.insert(key.hash, location);
        self.len += 1;
        Inserted::Stored { evicted }
    }

    /// Looks up a key. An expired entry is removed.
    pub(super) fn get(&mut self, key: Hashed<'_>, now: Time) -> Lookup<&[u8]> {
        self.look(key, now)
            .map(|place| self.log.entry(self.index.location(place)).value)
    }

    /// The entry with this key, even if it has expired. Changes nothing.
    pub(crate) fn peek(&self, key: Hashed<'_>) -> Option<TableEntry<'_>> {
        let place = self.find(key)?;
        Some(self.log.entry(self.index.location(place)))
    }

    /// The value of the entry with this key, even if it has expired, for a change in place.
    pub(crate) fn value_mut(&mut self, key: Hashed<'_>) -> Option<&mut [u8]> {
        let place = self.find(key)?;
        Some(self.log.value_mut(self.index.location(place)))
    }

    /// Removes an entry and remembers why. False if there was no entry.
    pub(crate) fn remove(&mut self, key: Hashed<'_>, why: Gone) -> bool {
        let Some(place) = self.find(key) else {
            return false;
        };
        self.bury(place, key.hash, why);
        true
    }

    /// Removes the entry with this sequence number and hash. False if there is no such entry.
    ///
    /// A later entry with the same key has another sequence number, and stays.
    pub(crate) fn remove_one(&mut self, hash: u64, sequence: u64, why: Gone) -> bool {
        let place = self.index.find(hash, |location| {
            self.log.entry(location).sequence == sequence
        });
        let Some(place) = place else {
            return false;
        };
        self.bury(place, hash, why);
        true
    }

    /// Removes every entry that `picks` selects. Reads every entry.
    pub(crate) fn remove_where(
        &mut self,
        why: Gone,
        mut picks: impl FnMut(&TableEntry<'_>) -> bool,
    ) {
        let picked: Vec<Vec<u8>> = self
            .iter()
            .filter(|entry| picks(entry))
            .map(|entry| entry.key.to_vec())
            .collect();
        for key in &picked {
            self.remove(self.hashed(key), why);
        }
    }

    /// Removes the oldest entry. Returns [`Gone::Expired`] if it had expired, else [`Gone::Evicted`].
    ///
    /// `None` if there is no entry.
    pub(crate) fn evict_oldest(&mut self, now: Time) -> Option<Gone> {
        let (location, oldest) = self.log.oldest()?;
        let why = if self.is_expired(oldest.established, now) {
            Gone::Expired
        } else {
            Gone::Evicted
        };
        let hash = self.hasher.hash(oldest.key);
        let place = self.index.find(hash, |other| other == location)?;
        self.bury(place, hash, why);
        Some(why)
    }

    /// The oldest entry.
    pub(crate) fn oldest(&self) -> Option<TableEntry<'_>> {
        self.log.oldest().map(|(_, entry)| entry)
    }

    /// All entries, oldest first, with expired ones.
    pub(crate) fn iter(&self) -> impl Iterator<Item = TableEntry<'_>> {
        self.log.iter()
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// True if a handshake at `established` is too old to resume.
    pub(crate) fn is_expired(&self, established: Time, now: Time) -> bool {
        now.unix_millis().saturating_sub(established.unix_millis()) >= self.lifetime
    }

    /// Bytes on the heap.
    pub(super) fn memory(&self) -> usize {
        self.index.memory() + self.log.memory() + self.ghosts.memory()
    }

    /// A key with its hash.
    pub(crate) fn hashed<'a>(&self, key: &'a [u8]) -> Hashed<'a> {
        self.hasher.hashed(key)
    }

    /// The place of a key in the index, if the entry has not expired.
    fn look(&mut self, key: Hashed<'_>, now: Time) -> Lookup<usize> {
        if self.disabled {
            return Lookup::Disabled;
        }
        let Some(place) = self.find(key) else {
            let ghost = self.ghosts.find(key.hash);
            return ghost.map_or(Lookup::Unknown, Lookup::Gone);
        };
        let location = self.index.location(place);
        if self.is_expired(self.log.entry(location).established, now) {
            self.bury(place, key.hash, Gone::Expired);
            return Lookup::Gone(Gone::Expired);
        }
        Lookup::Found(place)
    }

    /// The place of a key in the index.
    fn find(&self, key: Hashed<'_>) -> Option<usize> {
        self.index.find(key.hash, |location| {
            is_same_key(self.log.entry(location).key, key.bytes)
        })
    }

    /// Removes the entry at a place of the index, and keeps a ghost.
    fn bury(&mut self, place: usize, hash: u64, why: Gone) {
        self.remove_place(place);
        self.ghosts.insert(hash, why);
    }

    fn remove_place(&mut self, place: usize) {
        self.log.remove(self.index.location(place));
        self.index.remove(place);
        self.len -= 1;
        if self.log.is_sparse() {
            self.compact();
        }
    }

    /// Rewrites the log without holes.
    ///
    /// Since the last compaction, more bytes were removed than must be moved now. So the cost of each removal
    /// is bounded.
    fn compact(&mut self) {
        let fresh = self.log.successor();
        let mut old = std::mem::replace(&mut self.log, fresh);
        self.index.clear();
        let (hasher, index) = (&self.hasher, &mut self.index);
        while self.log.take_oldest_segment(&mut old, |key, location| {
            index.insert(hasher.hash(key), location);
        }) {}
    }
}

/// Compares two keys.
#[inline]
fn is_same_key(a: &[u8], b: &[u8]) -> bool {
    // Keys are short and nearly always equal, so a call of `memcmp` costs more than this comparison.
    if a.len() != b.len() {
        return false;
    }
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    a.iter()
        .zip(b)
        .all(|(a, b)| u128::from_ne_bytes(*a) == u128::from_ne_bytes(*b))
        && (a_rest.is_empty() || a_rest == b_rest)
}
