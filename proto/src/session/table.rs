//! A table with a single part, for one thread.

use super::hash::Hasher;
use super::part::Part;
use super::{Gone, Inserted, Limits, Lookup, Stats, TableEntry};
use crate::Time;

/// A session table for one thread.
#[derive(Debug)]
pub struct Table {
    whole: Part,
    max_entries: usize,
    /// The sequence number of the newest entry.
    sequence: u64,
}

impl Table {
    /// An empty table. The seed must be unpredictable, because keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            whole: Part::new(limits, 1, Hasher::new(seed)),
            max_entries: limits.max_entries,
            sequence: 0,
        }
    }

    /// Stores a value. An entry with the same key is replaced; the new entry is the newest.
    ///
    /// If the time of the handshake is in the future, `now` is used.
    pub fn insert(&mut self, key: &[u8], value: &[u8], established: Time, now: Time) -> Inserted {
        self.sequence += 1;
        let key = self.whole.hasher().hashed(key);
        let inserted = self
            .whole
            .insert(self.sequence, key, value, established, now);
        if self.len() > self.max_entries {
            self.whole.evict_oldest(now);
            return Inserted::Stored { evicted: true };
        }
        inserted
    }

    /// Looks up a key. An expired entry is removed.
    pub fn get(&mut self, key: &[u8], now: Time) -> Lookup<&[u8]> {
        self.whole.get(self.whole.hasher().hashed(key), now)
    }

    /// The entry with this key, even if it has expired. Counts no look-up and changes nothing.
    #[must_use]
    pub fn peek(&self, key: &[u8]) -> Option<TableEntry<'_>> {
        self.whole.peek(self.whole.hasher().hashed(key))
    }

    /// The value of the entry with this key, even if it has expired, for a change in place. Counts nothing.
    pub fn value_mut(&mut self, key: &[u8]) -> Option<&mut [u8]> {
        self.whole.value_mut(self.whole.hasher().hashed(key))
    }

    /// Looks up a key and removes the entry. A second call returns [`Gone::Spent`].
    pub fn take(&mut self, key: &[u8], now: Time) -> Lookup<Vec<u8>> {
        self.whole.take(self.whole.hasher().hashed(key), now)
    }

    /// Removes an entry and remembers why. False if there was no entry.
    pub fn remove(&mut self, key: &[u8], why: Gone) -> bool {
        self.whole.remove(self.whole.hasher().hashed(key), why)
    }

    /// Removes the entry with this sequence number and hash. False if there is none.
    ///
    /// A later entry with the same key has another sequence number, and stays.
    pub fn remove_one(&mut self, hash: u64, sequence: u64, why: Gone) -> bool {
        self.whole.remove_one(hash, sequence, why)
    }

    /// The hash of a key, for [`Self::remove_one`].
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.whole.hasher().hash(key)
    }

    /// Removes every entry that `picks` selects, and returns their number. Reads every entry.
    pub fn remove_where(&mut self, why: Gone, picks: impl FnMut(&TableEntry<'_>) -> bool) -> usize {
        self.whole.remove_where(why, picks)
    }

    /// Removes the oldest entry. Returns [`Gone::Expired`] if it had expired, else [`Gone::Evicted`].
    ///
    /// `None` if there is no entry.
    pub fn evict_oldest(&mut self, now: Time) -> Option<Gone> {
        self.whole.evict_oldest(now)
    }

    /// Removes the oldest entries while they have expired, and returns their number.
    ///
    /// This only frees memory early: expired entries are never returned.
    pub fn expire(&mut self, now: Time) -> usize {
        self.whole.expire(now)
    }

    /// The oldest entry.
    #[must_use]
    pub fn oldest(&self) -> Option<TableEntry<'_>> {
        self.whole.oldest()
    }

    /// All entries, oldest first, with expired ones.
    pub fn iter(&self) -> impl Iterator<Item = TableEntry<'_>> {
        self.whole.iter()
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.whole.len()
    }

    /// True if there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if a handshake at `established` is too old to resume.
    #[must_use]
    pub fn is_expired(&self, established: Time, now: Time) -> bool {
        self.whole.is_expired(established, now)
    }

    /// The counters of the table.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.whole.stats()
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.whole.memory()
    }
}
