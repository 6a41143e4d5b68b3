//! A part of a table: an index over a log, and the ghosts of what left it.

use super::ghost::Ghosts;
use super::index::Index;
use super::log::Log;
use super::{Entry, Gone, Hashed, Hasher, Inserted, Limits, Lookup, MAX_KEY, MAX_VALUE, Stats};
use crate::Time;

/// Fewest and most ghosts that a table keeps, of which `max_entries` is the wanted number.
const GHOSTS: (usize, usize) = (64, 65_536);

/// One of several tables that share their limits, or the whole of one table. It takes keys hashed,
/// and never evicts on its own account: whoever holds the parts calls [`Self::evict_oldest`] on
/// the one that has the oldest entry.
#[derive(Debug)]
pub struct Part {
    disabled: bool,
    /// In milliseconds, rounded up: times have no fractions.
    lifetime: u64,
    hasher: Hasher,
    index: Index,
    log: Log,
    ghosts: Ghosts,
    /// The newest entry's sequence number.
    newest: u64,
    stats: Stats,
}

impl Part {
    /// An empty part, one of `parts`. The keys that it is given have to be hashed by this hasher.
    #[must_use]
    pub fn new(limits: Limits, parts: usize, hasher: Hasher) -> Self {
        let share = |all: usize| all.div_ceil(parts.max(1));
        let ghosts = match limits.disabled() {
            true => 0,
            false => share(limits.max_entries.clamp(GHOSTS.0, GHOSTS.1)),
        };
        let lifetime = limits.lifetime.as_nanos().div_ceil(1_000_000);
        Self {
            disabled: limits.disabled(),
            lifetime: u64::try_from(lifetime).unwrap_or(u64::MAX),
            hasher,
            index: Index::default(),
            log: Log::new(share(limits.max_entries)),
            ghosts: Ghosts::new(ghosts),
            newest: 0,
            stats: Stats::default(),
        }
    }

    /// Stores a value. Where the key is there already, that entry is replaced and the new one is
    /// the newest. A handshake in the future counts as one that is happening now.
    ///
    /// The sequence number orders the entries of several parts. It has to be larger than those
    /// before it.
    pub fn insert(
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
        self.newest = sequence.max(self.newest);
        let entry = Entry {
            key: key.bytes,
            value,
            established,
            sequence: self.newest,
        };
        if let Some(place) = self.find(key) {
            // It needs no ghost: the key is there again, and leaves one when it goes.
            self.drop_place(place);
            self.stats.replaced += 1;
        }
        let mut evicted = false;
        let location = loop {
            match self.log.append(&entry) {
                Some(location) => break location,
                None => evicted = self.evict_oldest(now).is_some(),
            }
        };
        self.index.insert(key.hash, location);
        self.stats.entries += 1;
        self.stats.inserted += 1;
        Inserted::Stored { evicted }
    }

    /// Looks for a key. An entry that is too old leaves.
    pub fn get(&mut self, key: Hashed<'_>, now: Time) -> Lookup<&[u8]> {
        self.look(key, now)
            .map(|place| self.log.entry(self.index.location(place)).value)
    }

    /// The entry with this key, whatever its age. Counts and changes nothing.
    #[must_use]
    pub fn peek(&self, key: Hashed<'_>) -> Option<Entry<'_>> {
        let place = self.find(key)?;
        Some(self.log.entry(self.index.location(place)))
    }

    /// The value of the entry with this key, whatever its age, to be changed in its place: the entry
    /// is no younger for it. Counts nothing.
    pub fn value_mut(&mut self, key: Hashed<'_>) -> Option<&mut [u8]> {
        let place = self.find(key)?;
        Some(self.log.value_mut(self.index.location(place)))
    }

    /// Looks for a key and removes it: a second call finds it [`Gone::Spent`].
    pub fn take(&mut self, key: Hashed<'_>, now: Time) -> Lookup<Vec<u8>> {
        self.look(key, now).map(|place| {
            let value = self.log.entry(self.index.location(place)).value.to_vec();
            self.leave(place, key.hash, Gone::Spent);
            value
        })
    }

    /// Removes an entry and remembers why. False where there was none.
    pub fn remove(&mut self, key: Hashed<'_>, why: Gone) -> bool {
        let Some(place) = self.find(key) else {
            return false;
        };
        self.leave(place, key.hash, why);
        true
    }

    /// Removes the entry with this sequence number and a key with this hash. False where it is not there
    /// any more: another that came under its key since is another entry.
    pub fn remove_one(&mut self, hash: u64, sequence: u64, why: Gone) -> bool {
        let is_it = |location| self.log.entry(location).sequence == sequence;
        let Some(place) = self.index.find(hash, is_it) else {
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
            self.remove(self.hasher.hashed(key), why);
        }
        picked.len()
    }

    /// Removes the oldest entry, and says whether it was still alive ([`Gone::Evicted`]) or too old
    /// anyway ([`Gone::Expired`]). `None` where there is no entry.
    pub fn evict_oldest(&mut self, now: Time) -> Option<Gone> {
        let (location, oldest) = self.log.oldest()?;
        let why = match self.is_expired(oldest.established, now) {
            true => Gone::Expired,
            false => Gone::Evicted,
        };
        let hash = self.hasher.hash(oldest.key);
        let place = self.index.find(hash, |other| other == location)?;
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
        self.log.oldest().map(|(_, entry)| entry)
    }

    /// The oldest entry's sequence number.
    #[must_use]
    pub fn oldest_sequence(&self) -> Option<u64> {
        self.oldest().map(|entry| entry.sequence)
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
        now.unix_millis().saturating_sub(established.unix_millis()) >= self.lifetime
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

    /// The hasher of the keys.
    #[must_use]
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// The place in the index of a key that is there and young enough. Counts the look-up.
    fn look(&mut self, key: Hashed<'_>, now: Time) -> Lookup<usize> {
        if self.disabled {
            return Lookup::Disabled;
        }
        let Some(place) = self.find(key) else {
            self.stats.misses += 1;
            let ghost = self.ghosts.find(key.hash);
            return ghost.map_or(Lookup::Unknown, Lookup::Gone);
        };
        let location = self.index.location(place);
        if self.is_expired(self.log.entry(location).established, now) {
            self.stats.misses += 1;
            self.leave(place, key.hash, Gone::Expired);
            return Lookup::Gone(Gone::Expired);
        }
        self.stats.hits += 1;
        Lookup::Found(place)
    }

    /// The place of a key in the index.
    fn find(&self, key: Hashed<'_>) -> Option<usize> {
        self.index.find(key.hash, |location| {
            same(self.log.entry(location).key, key.bytes)
        })
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

/// Whether two keys are the same. They nearly always are, and are short: worth no call.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    a.iter()
        .zip(b)
        .all(|(a, b)| u128::from_ne_bytes(*a) == u128::from_ne_bytes(*b))
        && (a_rest.is_empty() || a_rest == b_rest)
}
