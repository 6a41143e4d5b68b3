//! The whole table, for one thread.

use super::{Entry, Gone, Hasher, Inserted, Limits, Lookup, Part, Stats};
use crate::Time;

/// The session table.
#[derive(Debug)]
pub struct Table {
    whole: Part,
    max_entries: usize,
    /// The newest entry's sequence number.
    sequence: u64,
}

impl Table {
    /// An empty table. The seed has to be unpredictable: keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            whole: Part::new(limits, 1, Hasher::new(seed)),
            max_entries: limits.max_entries,
            sequence: 0,
        }
    }

    /// Stores a value. Where the key is there already, that entry is replaced and the new one is
    /// the newest. A handshake in the future counts as one that is happening now.
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

    /// Looks for a key. An entry that is too old leaves.
    pub fn get(&mut self, key: &[u8], now: Time) -> Lookup<&[u8]> {
        self.whole.get(self.whole.hasher().hashed(key), now)
    }

    /// The entry with this key, whatever its age. Counts and changes nothing.
    #[must_use]
    pub fn peek(&self, key: &[u8]) -> Option<Entry<'_>> {
        self.whole.peek(self.whole.hasher().hashed(key))
    }

    /// The value of the entry with this key, whatever its age, to be changed in its place: the entry
    /// is no younger for it. Counts nothing.
    pub fn value_mut(&mut self, key: &[u8]) -> Option<&mut [u8]> {
        self.whole.value_mut(self.whole.hasher().hashed(key))
    }

    /// Looks for a key and removes it: a second call finds it [`Gone::Spent`].
    pub fn take(&mut self, key: &[u8], now: Time) -> Lookup<Vec<u8>> {
        self.whole.take(self.whole.hasher().hashed(key), now)
    }

    /// Removes an entry and remembers why. False where there was none.
    pub fn remove(&mut self, key: &[u8], why: Gone) -> bool {
        self.whole.remove(self.whole.hasher().hashed(key), why)
    }

    /// Removes the entry with this sequence number; see [`Part::remove_one`].
    pub fn remove_one(&mut self, hash: u64, sequence: u64, why: Gone) -> bool {
        self.whole.remove_one(hash, sequence, why)
    }

    /// What a key hashes to, for [`Self::remove_one`].
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.whole.hasher().hash(key)
    }

    /// Removes every entry that `is_it` picks, and returns how many those were. Looks at each.
    pub fn remove_where(&mut self, why: Gone, is_it: impl FnMut(&Entry<'_>) -> bool) -> usize {
        self.whole.remove_where(why, is_it)
    }

    /// Removes the oldest entry; see [`Part::evict_oldest`].
    pub fn evict_oldest(&mut self, now: Time) -> Option<Gone> {
        self.whole.evict_oldest(now)
    }

    /// Removes entries that are too old; see [`Part::expire`].
    pub fn expire(&mut self, now: Time) -> usize {
        self.whole.expire(now)
    }

    /// The oldest entry.
    #[must_use]
    pub fn oldest(&self) -> Option<Entry<'_>> {
        self.whole.oldest()
    }

    /// Every entry, oldest first, those that are too old included.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.whole.iter()
    }

    /// Entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.whole.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }

    /// Whether a handshake at `established` is too old to resume.
    #[must_use]
    pub fn is_expired(&self, established: Time, now: Time) -> bool {
        self.whole.is_expired(established, now)
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.whole.stats()
    }

    /// Bytes that the table takes on the heap.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.whole.memory()
    }
}
