//! The table: an index over a log, and the ghosts of what left it.

use super::ghost::Ghosts;
use super::index::Index;
use super::log::Log;
use super::{Entry, Gone, Hasher, Inserted, Limits, Lookup, MAX_KEY, MAX_VALUE, Stats};
use crate::Time;

/// Fewest and most ghosts that a table keeps, of which `max_entries` is the wanted number.
const GHOSTS: (usize, usize) = (64, 65_536);

/// The session table.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    /// The limit that this table enforces itself: none in a part of a larger one.
    capacity: usize,
    hasher: Hasher,
    index: Index,
    log: Log,
    ghosts: Ghosts,
    /// The newest entry's sequence number.
    newest: u64,
    stats: Stats,
}

impl Table {
    /// An empty table. The seed has to be unpredictable: keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            capacity: limits.max_entries,
            ..Self::part(limits, 1, seed)
        }
    }

    /// One of `parts` tables that share the limits. It never evicts on its own account: whoever
    /// holds the parts calls [`Self::evict_oldest`] on the one that has the oldest entry.
    #[must_use]
    pub fn part(limits: Limits, parts: usize, seed: u64) -> Self {
        let expected = limits.max_entries.div_ceil(parts.max(1));
        let ghosts = match limits.disabled() {
            true => 0,
            false => limits
                .max_entries
                .clamp(GHOSTS.0, GHOSTS.1)
                .div_ceil(parts.max(1)),
        };
        Self {
            limits,
            capacity: usize::MAX,
            hasher: Hasher::new(seed),
            index: Index::default(),
            log: Log::new(expected),
            ghosts: Ghosts::new(ghosts),
            newest: 0,
            stats: Stats::default(),
        }
    }

    /// Stores a value. Where the key is there already, that entry is replaced and the new one is
    /// the newest. A handshake in the future counts as one that is happening now.
    pub fn insert(&mut self, key: &[u8], value: &[u8], established: Time, now: Time) -> Inserted {
        self.insert_as(self.newest.saturating_add(1), key, value, established, now)
    }

    /// [`Self::insert`] with the sequence number given, where it orders the entries of several
    /// tables. It has to be larger than those before it.
    pub fn insert_as(
        &mut self,
        sequence: u64,
        key: &[u8],
        value: &[u8],
        established: Time,
        now: Time,
    ) -> Inserted {
        if self.limits.disabled() {
            return Inserted::Disabled;
        }
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Inserted::TooLarge;
        }
        let established = established.min(now);
        if self.is_expired(established, now) {
            return Inserted::AlreadyExpired;
        }
        let hash = self.hasher.hash(key);
        self.newest = sequence.max(self.newest);
        let entry = Entry {
            key,
            value,
            established,
            sequence: self.newest,
        };
        let mut evicted = false;
        let old = self.find(hash, key);
        if let Some(place) = old {
            // Its ghost is not needed: the key is there again, and leaves another when it goes.
            self.drop_place(place);
        } else if self.len() >= self.capacity {
            evicted = self.evict_oldest(now).is_some();
        }
        let location = loop {
            match self.log.append(&entry) {
                Some(location) => break location,
                None => evicted = self.evict_oldest(now).is_some(),
            }
        };
        self.index.insert(hash, location);
        self.stats.entries += 1;
        self.stats.inserted += 1;
        self.stats.replaced += u64::from(old.is_some());
        Inserted::Stored { evicted }
    }

    /// Looks for a key. An entry that is too old leaves.
    pub fn get(&mut self, key: &[u8], now: Time) -> Lookup<&[u8]> {
        self.look(self.hasher.hash(key), key, now)
            .map(|place| self.log.entry(self.index.location(place)).value)
    }

    /// The entry with this key, whatever its age. Counts and changes nothing.
    #[must_use]
    pub fn peek(&self, key: &[u8]) -> Option<Entry<'_>> {
        let place = self.find(self.hasher.hash(key), key)?;
        Some(self.log.entry(self.index.location(place)))
    }

    /// Looks for a key and removes it: a second call finds it [`Gone::Spent`].
    pub fn take(&mut self, key: &[u8], now: Time) -> Lookup<Vec<u8>> {
        let hash = self.hasher.hash(key);
        self.look(hash, key, now).map(|place| {
            let value = self.log.entry(self.index.location(place)).value.to_vec();
            self.leave(place, hash, Gone::Spent);
            value
        })
    }

    /// Removes an entry and remembers why. False where there was none.
    pub fn remove(&mut self, key: &[u8], why: Gone) -> bool {
        let hash = self.hasher.hash(key);
        let Some(place) = self.find(hash, key) else {
            return false;
        };
        self.leave(place, hash, why);
        true
    }

    /// Removes every entry that `is_it` picks, and returns how many those were. Looks at each.
    pub fn remove_where(&mut self, why: Gone, mut is_it: impl FnMut(&Entry<'_>) -> bool) -> usize {
        let picked: Vec<Vec<u8>> = self
            .iter()
            .filter(|entry| is_it(entry))
            .map(|entry| entry.key.to_vec())
            .collect();
        for key in &picked {
            self.remove(key, why);
        }
        picked.len()
    }

    /// Removes the oldest entry, and says whether it was still alive ([`Gone::Evicted`]) or too old
    /// anyway ([`Gone::Expired`]). `None` where there is no entry.
    pub fn evict_oldest(&mut self, now: Time) -> Option<Gone> {
        let oldest = self.log.oldest()?;
        let why = match self.is_expired(oldest.established, now) {
            true => Gone::Expired,
            false => Gone::Evicted,
        };
        let hash = self.hasher.hash(oldest.key);
        let place = self.find(hash, oldest.key)?;
        self.leave(place, hash, why);
        Some(why)
    }

    /// Removes entries that are too old from the old end, up to the first that is not, and returns
    /// how many those were. Nothing has to call this: it only frees memory early.
    pub fn expire(&mut self, now: Time) -> usize {
        let before = self.len();
        while self
            .oldest()
            .is_some_and(|oldest| self.is_expired(oldest.established, now))
        {
            self.evict_oldest(now);
        }
        before - self.len()
    }

    /// The oldest entry.
    #[must_use]
    pub fn oldest(&self) -> Option<Entry<'_>> {
        self.log.oldest()
    }

    /// The oldest entry's sequence number.
    #[must_use]
    pub fn oldest_sequence(&self) -> Option<u64> {
        self.log.oldest().map(|entry| entry.sequence)
    }

    /// Every entry, oldest first, those that are too old included.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.log.iter()
    }

    /// Entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stats.entries
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a handshake at `established` is too old to resume.
    #[must_use]
    pub fn is_expired(&self, established: Time, now: Time) -> bool {
        now.since(established) >= self.limits.lifetime
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Bytes that the table takes on the heap.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.index.memory() + self.log.memory() + self.ghosts.memory()
    }

    /// The place in the index of a key that is there and young enough. Counts the look-up.
    fn look(&mut self, hash: u64, key: &[u8], now: Time) -> Lookup<usize> {
        if self.limits.disabled() {
            return Lookup::Disabled;
        }
        let found = self.find(hash, key);
        let Some(place) = found else {
            self.stats.misses += 1;
            return self.ghosts.find(hash).map_or(Lookup::Unknown, Lookup::Gone);
        };
        let entry = self.log.entry(self.index.location(place));
        if self.is_expired(entry.established, now) {
            self.stats.misses += 1;
            self.leave(place, hash, Gone::Expired);
            return Lookup::Gone(Gone::Expired);
        }
        self.stats.hits += 1;
        Lookup::Found(place)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.index
            .find(hash, |location| self.log.entry(location).key == key)
    }

    /// Removes the entry at a place of the index, counts it and keeps its ghost.
    fn leave(&mut self, place: usize, hash: u64, why: Gone) {
        self.drop_place(place);
        self.ghosts.insert(hash, why);
        match why {
            Gone::Evicted => self.stats.evicted += 1,
            Gone::Expired => self.stats.expired += 1,
            _ => self.stats.removed += 1,
        }
    }

    fn drop_place(&mut self, place: usize) {
        self.log.kill(self.index.location(place));
        self.index.remove(place);
        self.stats.entries -= 1;
        if self.log.is_sparse() {
            self.compact();
        }
    }

    /// Rewrites the log without holes. Its cost is paid for by the removals since the last time:
    /// there were more of them, in bytes, than there are entries to move.
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
