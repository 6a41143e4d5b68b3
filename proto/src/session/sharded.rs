//! A table for several threads: parts, each behind a lock, that behave as one table.
//!
//! Every entry has a number from one counter. Each part publishes the number of its oldest entry. The entry with
//! the smallest number in all parts is evicted first.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::hash::{Hashed, Hasher};
use super::part::Part;
use super::{Gone, Inserted, Limits, Lookup};
use crate::Time;

/// Most shards, a power of two. An eviction reads the number of each shard's oldest entry.
const MAX_SHARDS: usize = 8;

/// Fewest entries for each shard.
const ENTRIES_PER_SHARD: usize = 512;

/// The published number of a shard without entries.
const EMPTY: u64 = u64::MAX;

/// A session table that threads share. A call waits only for other calls in the same shard.
#[derive(Debug)]
pub struct ShardedTable {
    limits: Limits,
    hasher: Hasher,
    shards: Box<[Shard]>,
    /// For each shard, the sequence number of the oldest entry times [`MAX_SHARDS`], plus the shard's number.
    ///
    /// The smallest value therefore names the shard of the oldest entry. Each value is written under the lock
    /// of its shard.
    oldest: Box<[AtomicU64]>,
    /// The sequence number of the next entry.
    sequence: AtomicU64,
    /// The number of entries in all shards. An entry that was just added is counted a moment later.
    ///
    /// The number is negative for a moment if an entry is removed before it is counted.
    entries: AtomicI64,
    /// The highest number of revocations that [`Self::apply_revocations`] was called with.
    revocations: AtomicU32,
    /// The number of revocations for which the table was last cleared.
    cleared: AtomicU32,
    clearing: Mutex<()>,
}

/// A part and its lock, on their own cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<Part>);

/// A copy of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedEntry {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The time of the full handshake.
    pub established: Time,
}

impl ShardedTable {
    /// An empty table. The seed must be unpredictable, because keys come from peers.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        let full_shards = (limits.max_entries / ENTRIES_PER_SHARD).clamp(1, MAX_SHARDS);
        let shards = 1 << full_shards.ilog2();
        let shard = || Shard(Mutex::new(Part::new(limits, shards, seed)));
        Self {
            limits,
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            oldest: (0..shards).map(|_| AtomicU64::new(EMPTY)).collect(),
            sequence: AtomicU64::new(1),
            entries: AtomicI64::new(0),
            revocations: AtomicU32::new(0),
            cleared: AtomicU32::new(0),
            clearing: Mutex::new(()),
            hasher: Hasher::new(seed),
        }
    }

    /// Stores a value. An entry with the same key is replaced; the new entry is the newest.
    ///
    /// If the time of the handshake is in the future, `now` is used.
    pub fn insert(&self, key: &[u8], value: &[u8], established: Time, now: Time) -> Inserted {
        let (shard, key) = self.place(key);
        let mut part = self.lock(shard);
        let before = part.len();
        // The number is taken under the lock, so that numbers rise within each shard.
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
            // No entry was added, so the number of entries is the same, or smaller if the part had to evict.
            _ => {
                self.entries.fetch_add(more, Ordering::AcqRel);
                inserted
            }
        }
    }

    /// Looks up a key and copies the value.
    pub fn get(&self, key: &[u8], now: Time) -> Lookup<Vec<u8>> {
        self.read(key, now, <[u8]>::to_vec)
    }

    /// Looks up a key and passes the value to `f`, under the lock of the shard.
    pub fn read<R>(&self, key: &[u8], now: Time, f: impl FnOnce(&[u8]) -> R) -> Lookup<R> {
        let (shard, key) = self.place(key);
        self.with(shard, |part| part.get(key, now).map(f))
    }

    /// Removes an entry and remembers why. False if there was no entry.
    pub fn remove(&self, key: &[u8], why: Gone) -> bool {
        let (shard, key) = self.place(key);
        self.with(shard, |part| part.remove(key, why))
    }

    /// Revokes all entries if `revocations` is higher than in every earlier call ([`Schedule::revocations`]).
    ///
    /// False if an earlier call had a higher number: the caller's keys are out of date.
    ///
    /// [`Schedule::revocations`]: crate::keys::Schedule::revocations
    pub fn apply_revocations(&self, revocations: u32) -> bool {
        let is_new = || revocations > self.cleared.load(Ordering::Acquire);
        if is_new() {
            let _guard = self.clearing.lock().unwrap_or_else(PoisonError::into_inner);
            if is_new() {
                // Store the number before the shards are cleared. A thread that adds an entry to a cleared
                // shard then sees that the entry must be removed.
                self.revocations.store(revocations, Ordering::SeqCst);
                for shard in 0..self.shards.len() {
                    self.with(shard, |part| part.remove_where(Gone::Revoked, |_| true));
                }
                self.cleared.store(revocations, Ordering::Release);
            }
        }
        revocations == self.revocations.load(Ordering::SeqCst)
    }

    /// Copies every entry, oldest first, with expired ones. Each shard is copied at one moment.
    #[must_use]
    pub fn snapshot(&self) -> Vec<OwnedEntry> {
        let mut entries = Vec::new();
        for shard in 0..self.shards.len() {
            self.with(shard, |part| {
                entries.extend(part.iter().map(|entry| {
                    let owned = OwnedEntry {
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

    /// True if the limits allow no entries at all.
    #[must_use]
    pub fn disabled(&self) -> bool {
        self.limits.disabled()
    }

    /// The number of entries.
    #[must_use]
    pub fn entries(&self) -> usize {
        let shards = 0..self.shards.len();
        shards.map(|shard| self.lock(shard).len()).sum()
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn memory(&self) -> usize {
        let parts = (0..self.shards.len()).map(|shard| self.with(shard, |part| part.memory()));
        parts.sum::<usize>() + size_of_val(&*self.shards) + size_of_val(&*self.oldest)
    }

    /// The shard of a key, and the hashed key.
    fn place<'a>(&self, key: &'a [u8]) -> (usize, Hashed<'a>) {
        let key = self.hasher.hashed(key);
        (key.shard(self.shards.len()), key)
    }

    /// Counts an entry that was just added. Evicts the oldest entry instead if the table is full.
    ///
    /// Returns true if an entry was evicted.
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
            // If no entry can be evicted, other threads have removed entries and will soon correct the count.
            if self.evict_oldest(now) {
                return true;
            }
        }
    }

    /// Removes the oldest entry of all shards and does not change the count. False if there is no entry.
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
            // Another thread may have removed that entry meanwhile.
            if self.oldest[shard].load(Ordering::Relaxed) == oldest {
                part.evict_oldest(now);
                self.publish(shard, &part);
                return true;
            }
        }
    }

    /// Runs `f` on the part of a shard, and counts the entries that `f` removes.
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
        // Only the closure of `read` can panic, and the part is complete before the closure runs.
        self.shards[shard]
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, shard: usize, part: &Part) {
        let oldest = part.oldest().map_or(EMPTY, |entry| {
            entry.sequence * MAX_SHARDS as u64 + shard as u64
        });
        self.oldest[shard].store(oldest, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use super::*;

    const NOW: Time = Time::from_unix_millis(1_000_000);

    fn sharded(max_entries: usize) -> ShardedTable {
        let lifetime = Duration::from_secs(60);
        ShardedTable::new(
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

    fn keys(table: &ShardedTable) -> Vec<Vec<u8>> {
        let entries = table.snapshot().into_iter();
        entries.map(|entry| entry.key).collect()
    }

    #[test]
    fn has_one_shard_if_small_and_several_if_large() {
        let shards = |max_entries| sharded(max_entries).shards.len();
        assert_eq!(
            [0, 1, 1023, 1024, 10_000, 1_000_000].map(shards),
            [1, 1, 1, 2, 8, 8]
        );
    }

    #[test]
    fn a_revocation_removes_older_entries_for_good() {
        let table = sharded(2000);
        let insert = |n| table.insert(&key(n), b"value", NOW, NOW);
        (0..1000).map(insert).for_each(drop);
        assert!(table.apply_revocations(0));
        assert_eq!(table.get(&key(7), NOW), Lookup::Found(b"value".to_vec()));
        assert!(table.apply_revocations(1));
        assert!(keys(&table).is_empty());
        assert_eq!(table.get(&key(7), NOW), Lookup::Gone(Gone::Revoked));
        // A handshake that began before the revocation has old keys.
        assert!(!table.apply_revocations(0));
        insert(8);
        assert!(table.apply_revocations(1));
        assert_eq!(keys(&table).len(), 1);
    }

    /// Inserts, replaces and removes entries, and compares the table with a list, oldest first.
    fn assert_first_in_first_out(table: &ShardedTable, max_entries: usize) {
        let mut model = VecDeque::new();
        for n in 0..10_000_u64 {
            let (new, old) = (key(n), key(n / 2));
            match n % 7 {
                0..5 => {
                    table.insert(&new, &new, NOW, NOW);
                    model.push_back(new);
                }
                5 => {
                    let place = model.iter().position(|other| *other == old);
                    assert_eq!(table.remove(&old, Gone::Purged), place.is_some());
                    place.map(|place| model.remove(place));
                }
                _ => {
                    table.insert(&old, &old, NOW, NOW);
                    model.retain(|other| *other != old);
                    model.push_back(old);
                }
            }
            if model.len() > max_entries {
                let oldest = model.pop_front().unwrap();
                assert_eq!(table.get(&oldest, NOW), Lookup::Gone(Gone::Evicted));
            }
            if let Some(newest) = model.back() {
                assert_eq!(table.get(newest, NOW), Lookup::Found(newest.to_vec()));
            }
        }
        assert_eq!(model.len(), max_entries);
        assert!(keys(table).iter().eq(&model));
    }

    #[test]
    fn evicts_the_oldest_entry_first_with_one_part_and_with_several() {
        for (max_entries, shards) in [(900, 1), (3000, 4)] {
            let table = sharded(max_entries);
            assert_eq!(table.shards.len(), shards);
            assert_first_in_first_out(&table, max_entries);
        }
    }

    #[test]
    fn an_insertion_reports_an_eviction() {
        let table = sharded(2000);
        for n in 0..2500 {
            let evicted = n >= 2000;
            assert_eq!(
                table.insert(&key(n), b"", NOW, NOW),
                Inserted::Stored { evicted }
            );
        }
    }

    #[test]
    fn zero_entries_disable_the_table() {
        let table = sharded(0);
        assert!(table.disabled());
        assert_eq!(table.insert(b"key", b"value", NOW, NOW), Inserted::Disabled);
        assert_eq!(table.get(b"key", NOW), Lookup::Disabled);
    }

    #[test]
    fn threads_fill_the_table_and_never_exceed_its_limit() {
        const MAX: usize = 2048;
        let table = sharded(MAX);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let table = &table;
                scope.spawn(move || {
                    for n in 0..10_000_u64 {
                        let key = key(n << 8 | thread);
                        table.insert(&key, &key, NOW, NOW);
                        assert!(table.entries.load(Ordering::Acquire) <= MAX as i64);
                        if n % 3 == 0 {
                            table.remove(&key, Gone::Purged);
                        }
                        if let Lookup::Found(value) = table.get(&key, NOW) {
                            assert_eq!(value, key);
                        }
                    }
                });
            }
        });
        for n in 0..MAX as u64 {
            table.insert(&key(u64::MAX - n), b"", NOW, NOW);
        }
        assert_eq!(table.entries(), MAX);
        assert_eq!(table.snapshot().len(), MAX);
        let expected = (0..MAX as u64).map(|n| key(u64::MAX - n).to_vec());
        assert!(keys(&table).into_iter().eq(expected));
    }
}
