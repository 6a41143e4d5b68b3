//! The session table of one process, shared by its threads: several parts, each behind a lock of its
//! own, that behave as one table. First in, first out holds over all of them: every entry has a
//! number from one counter, each part publishes the number of its oldest entry, and what leaves is
//! the smallest of these.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::locks::locked;
use sessile_proto::Time;
use sessile_proto::session::{Gone, Hashed, Hasher, Inserted, Limits, Lookup, Part, Stats};

/// Most shards, a power of two. Finding the oldest entry looks at each.
const MAX_SHARDS: usize = 8;

/// Fewest entries that are worth a shard.
const ENTRIES_PER_SHARD: usize = 512;

/// What a shard without entries publishes.
const EMPTY: u64 = u64::MAX;

/// The session part. Every method may be called from any thread; none of them waits for anything
/// but another thread's turn in the same shard.
#[derive(Debug)]
pub struct Memory {
    limits: Limits,
    hasher: Hasher,
    shards: Box<[Shard]>,
    /// Each shard's smallest sequence number and, in the bits below, its own: the smallest of all
    /// names its shard. Written under the shard's lock. Together, because they are read together.
    oldest: Box<[AtomicU64]>,
    /// The next entry's sequence number.
    sequence: AtomicU64,
    /// Entries in all shards, but for those that were just added and not counted yet. It may pass
    /// below zero for a moment, when such an entry is taken away first.
    entries: AtomicI64,
    /// See [`Self::follow`]: what nothing may be added from before, and what nothing is left from before.
    revocations: AtomicU32,
    cleared: AtomicU32,
    clearing: Mutex<()>,
}

/// A lock and what it guards, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<Part>);

/// An entry in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is found by.
    pub key: Vec<u8>,
    /// What was stored.
    pub value: Vec<u8>,
    /// When its full handshake was.
    pub established: Time,
}

impl Memory {
    /// An empty table. The seed has to be unpredictable: keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        let worth = (limits.max_entries / ENTRIES_PER_SHARD).clamp(1, MAX_SHARDS);
        let shards = 1 << worth.ilog2();
        let hasher = Hasher::new(seed);
        let shard = || Shard(Mutex::new(Part::new(limits, shards, hasher.clone())));
        Self {
            limits,
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            oldest: (0..shards).map(|_| AtomicU64::new(EMPTY)).collect(),
            sequence: AtomicU64::new(1),
            entries: AtomicI64::new(0),
            revocations: AtomicU32::new(0),
            cleared: AtomicU32::new(0),
            clearing: Mutex::new(()),
            hasher,
        }
    }

    /// Stores a value; see [`Part::insert`].
    pub fn insert(&self, key: &[u8], value: &[u8], established: Time, now: Time) -> Inserted {
        let (shard, key) = self.place(key);
        let mut part = self.lock(shard);
        let before = part.len();
        // Drawn under the lock, so that numbers rise within each shard.
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let inserted = part.insert(sequence, key, value, established, now);
        let more = part.len() as i64 - before as i64;
        if before == 0 || more != 1 {
            self.publish(shard, &part);
        }
        drop(part);
        match inserted {
            Inserted::Stored { evicted } if more > 0 => Inserted::Stored {
                evicted: self.make_room(now) || evicted,
            },
            // It took the place of others: of one, as a rule.
            _ => {
                self.entries.fetch_add(more, Ordering::AcqRel);
                inserted
            }
        }
    }

    /// Looks for a key and copies its value.
    pub fn get(&self, key: &[u8], now: Time) -> Lookup<Vec<u8>> {
        self.read(key, now, <[u8]>::to_vec)
    }

    /// Looks for a key and hands its value to `f`, which other users of the shard wait for.
    pub fn read<R>(&self, key: &[u8], now: Time, f: impl FnOnce(&[u8]) -> R) -> Lookup<R> {
        let (shard, key) = self.place(key);
        self.with(shard, |part| part.get(key, now).map(f))
    }

    /// Looks for a key and removes it: of all that ask, one finds it, the others learn that it is
    /// [`Gone::Spent`].
    pub fn take(&self, key: &[u8], now: Time) -> Lookup<Vec<u8>> {
        let (shard, key) = self.place(key);
        self.with(shard, |part| part.take(key, now))
    }

    /// Removes an entry and remembers why. False where there was none.
    pub fn remove(&self, key: &[u8], why: Gone) -> bool {
        let (shard, key) = self.place(key);
        self.with(shard, |part| part.remove(key, why))
    }

    /// Removes every entry that `is_it` picks, and returns how many those were. Looks at each.
    pub fn remove_where(
        &self,
        why: Gone,
        mut is_it: impl FnMut(&sessile_proto::session::TableEntry<'_>) -> bool,
    ) -> usize {
        (0..self.shards.len())
            .map(|shard| self.with(shard, |part| part.remove_where(why, &mut is_it)))
            .sum()
    }

    /// Follows the farm key: where its generations ended before their time once more than the table knows of
    /// ([`Schedule::revocations`]), everything in it is [`Gone::Revoked`] when this returns. False where the
    /// table knows of more: whoever asks goes by what is over.
    ///
    /// [`Schedule::revocations`]: sessile_proto::keys::Schedule::revocations
    pub fn follow(&self, revocations: u32) -> bool {
        let cleared = || self.cleared.load(Ordering::Acquire);
        if revocations > cleared() {
            let _turn = locked(&self.clearing);
            if revocations > cleared() {
                // First, so that whoever adds something behind the clearing finds that it may not stay.
                self.revocations.store(revocations, Ordering::SeqCst);
                self.remove_where(Gone::Revoked, |_| true);
                self.cleared.store(revocations, Ordering::Release);
            }
        }
        revocations == self.revocations.load(Ordering::SeqCst)
    }

    /// Frees the memory of entries that are too old, as far as nothing older is still alive, and
    /// returns how many those were.
    pub fn expire(&self, now: Time) -> usize {
        (0..self.shards.len())
            .map(|shard| self.with(shard, |part| part.expire(now)))
            .sum()
    }

    /// Every entry, oldest first, those that are too old included. Each shard is copied at one moment.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for shard in 0..self.shards.len() {
            self.with(shard, |part| {
                entries.extend(part.iter().map(|entry| {
                    let owned = Entry {
                        key: entry.key.to_vec(),
                        value: entry.value.to_vec(),
                        established: entry.established,
                    };
                    (entry.sequence, owned)
                }));
            });
        }
        entries.sort_unstable_by_key(|(sequence, _)| *sequence);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Whether the limits allow no entries at all.
    #[must_use]
    pub fn disabled(&self) -> bool {
        self.limits.disabled()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for shard in 0..self.shards.len() {
            sum += self.with(shard, |part| part.stats());
        }
        sum
    }

    /// Bytes that the table takes on the heap.
    #[must_use]
    pub fn memory(&self) -> usize {
        let parts = (0..self.shards.len()).map(|shard| self.with(shard, |part| part.memory()));
        parts.sum::<usize>() + size_of_val(&*self.shards) + size_of_val(&*self.oldest)
    }

    /// The shard of a key, and the key hashed.
    fn place<'a>(&self, key: &'a [u8]) -> (usize, Hashed<'a>) {
        let key = self.hasher.hashed(key);
        (key.shard(self.shards.len()), key)
    }

    /// Counts an entry that was just added; where the table is full, the oldest gives up its place
    /// instead. True when it did.
    fn make_room(&self, now: Time) -> bool {
        let max = i64::try_from(self.limits.max_entries).unwrap_or(i64::MAX);
        let one_more = |entries| (entries < max).then(|| entries + 1);
        loop {
            let counted = self
                .entries
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
            if counted.is_ok() {
                return false;
            }
            // Where there is nothing to evict, others are about to uncount what they removed.
            if self.evict_oldest(now) {
                return true;
            }
        }
    }

    /// Removes the oldest entry of all shards without counting it. False where there is none.
    fn evict_oldest(&self, now: Time) -> bool {
        loop {
            let published = self
                .oldest
                .iter()
                .map(|oldest| oldest.load(Ordering::Acquire));
            let oldest = published.min().unwrap_or(EMPTY);
            if oldest == EMPTY {
                return false;
            }
            let shard = oldest as usize % MAX_SHARDS;
            let mut part = self.lock(shard);
            // Another thread may have been faster: look again.
            if self.oldest[shard].load(Ordering::Relaxed) == oldest {
                part.evict_oldest(now);
                self.publish(shard, &part);
                return true;
            }
        }
    }

    /// Runs `f`, which may remove entries, on a shard's part.
    fn with<R>(&self, shard: usize, f: impl FnOnce(&mut Part) -> R) -> R {
        let mut part = self.lock(shard);
        let before = part.len();
        let result = f(&mut part);
        let more = part.len() as i64 - before as i64;
        if more != 0 {
            self.publish(shard, &part);
            self.entries.fetch_add(more, Ordering::AcqRel);
        }
        result
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Part> {
        // Only a reader's closure can panic, and the table is whole before it runs.
        locked(&self.shards[shard].0)
    }

    fn publish(&self, shard: usize, part: &Part) {
        let oldest = part.oldest_sequence().map_or(EMPTY, |sequence| {
            sequence * MAX_SHARDS as u64 + shard as u64
        });
        self.oldest[shard].store(oldest, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use sessile_proto::session::Table;

    use super::*;

    const NOW: Time = Time::from_unix_millis(1_000_000);

    fn memory(max_entries: usize) -> Memory {
        let lifetime = Duration::from_secs(60);
        Memory::new(
            Limits {
                max_entries,
                lifetime,
            },
            1,
        )
    }

    fn key(n: u64) -> [u8; 8] {
        n.to_be_bytes()
    }

    fn keys(memory: &Memory) -> Vec<Vec<u8>> {
        let entries = memory.snapshot().into_iter();
        entries.map(|entry| entry.key).collect()
    }

    #[test]
    fn small_tables_are_one_shard_and_large_ones_several() {
        let shards = |max_entries| memory(max_entries).shards.len();
        assert_eq!(
            [0, 1, 1023, 1024, 10_000, 1_000_000].map(shards),
            [1, 1, 1, 2, 8, 8]
        );
    }

    #[test]
    fn what_is_from_before_a_revocation_leaves_and_does_not_come_back() {
        let memory = memory(2000);
        let insert = |n| memory.insert(&key(n), b"value", NOW, NOW);
        (0..1000).map(insert).for_each(drop);
        assert!(memory.follow(0));
        assert_eq!(memory.get(&key(7), NOW).found(), Some(b"value".to_vec()));
        assert!(memory.follow(1));
        assert!(keys(&memory).is_empty());
        assert_eq!(memory.get(&key(7), NOW), Lookup::Gone(Gone::Revoked));
        // A handshake that began before it is told so.
        assert!(!memory.follow(0));
        insert(8);
        assert!(memory.follow(1));
        assert_eq!(keys(&memory).len(), 1);
    }

    /// What every store has to do alike.
    trait Store {
        fn insert(&mut self, key: &[u8]);
        fn get(&mut self, key: &[u8]) -> Lookup<Vec<u8>>;
        fn remove(&mut self, key: &[u8]) -> bool;
        /// Oldest first.
        fn keys(&mut self) -> Vec<Vec<u8>>;
    }

    impl Store for Memory {
        fn insert(&mut self, key: &[u8]) {
            Self::insert(self, key, key, NOW, NOW);
        }

        fn get(&mut self, key: &[u8]) -> Lookup<Vec<u8>> {
            Self::get(self, key, NOW)
        }

        fn remove(&mut self, key: &[u8]) -> bool {
            Self::remove(self, key, Gone::Purged)
        }

        fn keys(&mut self) -> Vec<Vec<u8>> {
            keys(self)
        }
    }

    impl Store for Table {
        fn insert(&mut self, key: &[u8]) {
            Self::insert(self, key, key, NOW, NOW);
        }

        fn get(&mut self, key: &[u8]) -> Lookup<Vec<u8>> {
            Self::get(self, key, NOW).map(<[u8]>::to_vec)
        }

        fn remove(&mut self, key: &[u8]) -> bool {
            Self::remove(self, key, Gone::Purged)
        }

        fn keys(&mut self) -> Vec<Vec<u8>> {
            self.iter().map(|entry| entry.key.to_vec()).collect()
        }
    }

    /// Insertions, replacements and removals beside a list, oldest first.
    fn the_oldest_leaves_first(store: &mut impl Store, max_entries: usize) {
        let mut model = VecDeque::new();
        for n in 0..10_000_u64 {
            let (new, old) = (key(n), key(n / 2));
            match n % 7 {
                0..5 => {
                    store.insert(&new);
                    model.push_back(new);
                }
                5 => {
                    let was_there = model.iter().position(|other| *other == old);
                    assert_eq!(store.remove(&old), was_there.is_some());
                    was_there.map(|at| model.remove(at));
                }
                _ => {
                    store.insert(&old);
                    model.retain(|other| *other != old);
                    model.push_back(old);
                }
            }
            if model.len() > max_entries {
                let oldest = model.pop_front().unwrap();
                assert_eq!(store.get(&oldest), Lookup::Gone(Gone::Evicted));
            }
            if let Some(newest) = model.back() {
                assert_eq!(store.get(newest), Lookup::Found(newest.to_vec()));
            }
        }
        assert_eq!(model.len(), max_entries);
        assert!(store.keys().iter().eq(&model));
    }

    #[test]
    fn the_oldest_leaves_first_from_one_table_and_from_several_shards() {
        let mut memory = memory(3000);
        assert!(memory.shards.len() > 1);
        the_oldest_leaves_first(&mut memory, 3000);
        the_oldest_leaves_first(&mut Table::new(memory.limits, 1), 3000);
    }

    #[test]
    fn an_insertion_tells_whether_another_entry_left_for_it() {
        let memory = memory(2000);
        for n in 0..2500 {
            let evicted = n >= 2000;
            assert_eq!(
                memory.insert(&key(n), b"", NOW, NOW),
                Inserted::Stored { evicted }
            );
        }
    }

    #[test]
    fn zero_entries_disable_the_table() {
        let memory = memory(0);
        assert!(memory.disabled());
        assert_eq!(
            memory.insert(b"key", b"value", NOW, NOW),
            Inserted::Disabled
        );
        assert_eq!(memory.get(b"key", NOW), Lookup::Disabled);
    }

    #[test]
    fn entries_that_are_too_old_can_be_freed_early() {
        let memory = memory(2000);
        let later = NOW.plus(Duration::from_secs(60));
        for n in 0..1500 {
            memory.insert(&key(n), b"value", NOW, NOW);
        }
        memory.insert(b"young", b"value", later, later);
        assert_eq!(memory.expire(later), 1500);
        assert_eq!(memory.get(&key(1499), later), Lookup::Gone(Gone::Expired));
        assert_eq!(keys(&memory), [b"young"]);
    }

    #[test]
    fn of_all_threads_that_take_an_entry_one_has_it() {
        let memory = memory(100);
        for n in 0..100 {
            memory.insert(&key(n), b"value", NOW, NOW);
        }
        let taken = std::thread::scope(|scope| {
            let take_all = || {
                (0..100)
                    .filter(|&n| memory.take(&key(n), NOW).found().is_some())
                    .count()
            };
            let threads = [(); 4].map(|()| scope.spawn(take_all));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(taken.iter().sum::<usize>(), 100);
        assert_eq!(memory.stats().removed, 100);
    }

    #[test]
    fn threads_keep_the_table_full_and_never_over_its_limit() {
        const MAX: usize = 2048;
        let memory = memory(MAX);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let memory = &memory;
                scope.spawn(move || {
                    for n in 0..10_000_u64 {
                        let key = key(n << 8 | thread);
                        memory.insert(&key, &key, NOW, NOW);
                        assert!(memory.entries.load(Ordering::Acquire) <= MAX as i64);
                        if n % 3 == 0 {
                            memory.remove(&key, Gone::Purged);
                        }
                        if let Lookup::Found(value) = memory.get(&key, NOW) {
                            assert_eq!(value, key);
                        }
                    }
                });
            }
        });
        for n in 0..MAX as u64 {
            memory.insert(&key(u64::MAX - n), b"", NOW, NOW);
        }
        let stats = memory.stats();
        assert_eq!(stats.entries, MAX);
        assert_eq!(stats.inserted, MAX as u64 + stats.evicted + stats.removed);
        assert_eq!(memory.snapshot().len(), MAX);
        assert!(
            keys(&memory).iter().rev().eq(&(0..MAX as u64)
                .rev()
                .map(|n| key(u64::MAX - n).to_vec())
                .collect::<Vec<_>>())
        );
    }
}
