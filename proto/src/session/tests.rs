//! Compares the table with a simple model, and tests each rule alone.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const fn at(millis: u64) -> Time {
    Time::from_unix_millis(millis)
}

fn limits(max_entries: usize, lifetime: u64) -> Limits {
    Limits {
        max_entries,
        lifetime: Duration::from_millis(lifetime),
    }
}

fn stored(evicted: bool) -> Inserted {
    Inserted::Stored { evicted }
}

fn keys(table: &ShardedTable) -> Vec<Vec<u8>> {
    let entries = table.snapshot().into_iter();
    entries.map(|entry| entry.key).collect()
}

/// A simple model of the table: a list, oldest first, and every ghost.
struct Model {
    limits: Limits,
    entries: Vec<(Vec<u8>, Vec<u8>, Time)>,
    ghosts: Vec<(Vec<u8>, Gone)>,
}

impl Model {
    fn insert(&mut self, key: &[u8], value: &[u8], established: Time, now: Time) -> Inserted {
        let established = established.min(now);
        if self.limits.disabled() {
            return Inserted::Disabled;
        }
        if now.since(established) >= self.limits.lifetime {
            return Inserted::AlreadyExpired;
        }
        let mut evicted = false;
        self.entries.retain(|(other, ..)| other != key);
        if self.entries.len() == self.limits.max_entries {
            evicted = true;
            let (oldest, _, established) = self.entries.remove(0);
            let expired = now.since(established) >= self.limits.lifetime;
            self.bury(
                &oldest,
                if expired {
                    Gone::Expired
                } else {
                    Gone::Evicted
                },
            );
        }
        self.entries
            .push((key.to_vec(), value.to_vec(), established));
        stored(evicted)
    }

    fn get(&mut self, key: &[u8], now: Time) -> Lookup<Vec<u8>> {
        if self.limits.disabled() {
            return Lookup::Disabled;
        }
        let Some((_, value, established)) = self.entries.iter().find(|entry| entry.0 == key) else {
            let ghost = self.ghosts.iter().rev().find(|ghost| ghost.0 == key);
            return ghost.map_or(Lookup::Unknown, |ghost| Lookup::Gone(ghost.1));
        };
        if now.since(*established) >= self.limits.lifetime {
            self.remove(key, Gone::Expired);
            return Lookup::Gone(Gone::Expired);
        }
        Lookup::Found(value.clone())
    }

    fn remove(&mut self, key: &[u8], why: Gone) -> bool {
        let before = self.entries.len();
        self.entries.retain(|(other, ..)| other != key);
        let was_there = self.entries.len() < before;
        if was_there {
            self.bury(key, why);
        }
        was_there
    }

    fn bury(&mut self, key: &[u8], why: Gone) {
        self.ghosts.push((key.to_vec(), why));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert { key: u8, len: usize, age: u64 },
    Get(u8),
    Remove(u8),
    Revoke,
    Clock(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![20 => 0..200_usize, 2 => 3000..9000_usize];
    let step = prop_oneof![
        8 => (any::<u8>(), len, 0..60_u64).prop_map(|(key, len, age)| Step::Insert { key, len, age }),
        4 => any::<u8>().prop_map(Step::Get),
        4 => any::<u8>().prop_map(Step::Remove),
        1 => Just(Step::Revoke),
        2 => (-5..20_i64).prop_map(Step::Clock),
    ];
    prop::collection::vec(step, 0..400)
}

/// A key whose length also depends on `n`.
fn key(n: u8) -> Vec<u8> {
    vec![n; 1 + usize::from(n) % MAX_KEY]
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(
        max_entries in prop_oneof![0..4_usize, 0..200_usize],
        lifetime in prop_oneof![Just(0), 20..2000_u64],
        seed in any::<u64>(),
        steps in steps(),
    ) {
        let limits = limits(max_entries, lifetime);
        let table = ShardedTable::new(limits, seed);
        let mut model = Model { limits, entries: Vec::new(), ghosts: Vec::new() };
        let mut now = at(1_000_000);
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert { key: k, len, age } => {
                    let value = vec![n as u8; len];
                    let established = at(now.unix_millis() - age);
                    prop_assert_eq!(
                        table.insert(&key(k), &value, established, now),
                        model.insert(&key(k), &value, established, now)
                    );
                }
                Step::Get(k) => {
                    same(table.get(&key(k), now), model.get(&key(k), now))?;
                }
                Step::Remove(k) => {
                    prop_assert_eq!(table.remove(&key(k), Gone::Purged), model.remove(&key(k), Gone::Purged));
                }
                Step::Revoke => {
                    let keys: Vec<_> = model.entries.iter().map(|entry| entry.0.clone()).collect();
                    keys.iter().for_each(|key| { model.remove(key, Gone::Revoked); });
                    prop_assert!(table.apply_revocations(n as u32 + 1));
                }
                Step::Clock(by) => now = at(now.unix_millis().saturating_add_signed(by)),
            }
            let entries: Vec<_> = table.snapshot().into_iter().map(|e| (e.key, e.value, e.established)).collect();
            prop_assert_eq!(&entries, &model.entries);
            prop_assert_eq!(table.entries(), entries.len());
        }
    }
}

/// The table forgets ghosts, and the model does not. Any other difference is an error.
fn same(got: Lookup<Vec<u8>>, wanted: Lookup<Vec<u8>>) -> Result<(), TestCaseError> {
    if !matches!((&got, &wanted), (Lookup::Unknown, Lookup::Gone(_))) {
        prop_assert_eq!(got, wanted);
    }
    Ok(())
}

#[test]
fn zero_entries_or_no_lifetime_disable_the_table() {
    for limits in [limits(0, 1000), limits(10, 0)] {
        let table = ShardedTable::new(limits, 1);
        assert_eq!(
            table.insert(b"key", b"value", at(5), at(5)),
            Inserted::Disabled
        );
        assert_eq!(table.get(b"key", at(5)), Lookup::Disabled);
        assert!(!table.remove(b"key", Gone::Purged));
        assert_eq!(table.entries(), 0);
    }
}

#[test]
fn evicts_the_oldest_entry_when_full_even_if_it_was_just_used() {
    let table = ShardedTable::new(limits(2, 1000), 1);
    table.insert(b"a", b"1", at(0), at(0));
    table.insert(b"b", b"2", at(0), at(0));
    assert_eq!(table.get(b"a", at(1)), Lookup::Found(b"1".to_vec()));
    assert_eq!(table.insert(b"c", b"3", at(1), at(1)), stored(true));
    assert_eq!(table.get(b"a", at(1)), Lookup::Gone(Gone::Evicted));
    assert_eq!(keys(&table), [b"b", b"c"]);
}

#[test]
fn an_entry_that_is_stored_again_is_the_newest() {
    let table = ShardedTable::new(limits(2, 1000), 1);
    table.insert(b"a", b"1", at(0), at(0));
    table.insert(b"b", b"2", at(0), at(0));
    assert_eq!(table.insert(b"a", b"3", at(0), at(0)), stored(false));
    assert_eq!(keys(&table), [b"b", b"a"]);
    assert_eq!(table.get(b"a", at(0)), Lookup::Found(b"3".to_vec()));
}

#[test]
fn age_counts_from_the_full_handshake_and_not_from_storing_or_use() {
    let table = ShardedTable::new(limits(10, 1000), 1);
    table.insert(b"a", b"1", at(5000), at(5000));
    assert_eq!(table.insert(b"a", b"2", at(5000), at(5900)), stored(false));
    assert_eq!(table.get(b"a", at(5999)), Lookup::Found(b"2".to_vec()));
    assert_eq!(table.get(b"a", at(6000)), Lookup::Gone(Gone::Expired));
    assert_eq!(
        table.insert(b"a", b"3", at(5000), at(6000)),
        Inserted::AlreadyExpired
    );
    assert_eq!(table.entries(), 0);
}

#[test]
fn a_handshake_in_the_future_counts_from_now() {
    let table = ShardedTable::new(limits(10, 1000), 1);
    table.insert(b"a", b"1", at(u64::MAX), at(5000));
    assert_eq!(table.get(b"a", at(6000)), Lookup::Gone(Gone::Expired));
}

#[test]
fn a_clock_that_is_set_back_expires_nothing() {
    let table = ShardedTable::new(limits(10, 1000), 1);
    table.insert(b"a", b"1", at(5000), at(5000));
    assert_eq!(table.get(b"a", at(10)), Lookup::Found(b"1".to_vec()));
    table.insert(b"b", b"2", at(10), at(10));
    assert_eq!(keys(&table), [b"a", b"b"]);
}

#[test]
fn the_oldest_entry_leaves_as_expired_when_it_is_too_old_anyway() {
    let table = ShardedTable::new(limits(1, 1000), 1);
    table.insert(b"a", b"1", at(0), at(0));
    table.insert(b"b", b"2", at(2000), at(2000));
    assert_eq!(table.get(b"a", at(2000)), Lookup::Gone(Gone::Expired));
}

#[test]
fn a_key_that_was_never_stored_is_unknown() {
    let table = ShardedTable::new(limits(10, 1000), 1);
    table.insert(b"a", b"1", at(0), at(0));
    assert_eq!(table.get(b"never", at(1)), Lookup::Unknown);
}

#[test]
fn a_key_that_comes_back_has_no_ghost() {
    let table = ShardedTable::new(limits(10, 1000), 1);
    table.insert(b"a", b"1", at(0), at(0));
    table.remove(b"a", Gone::Revoked);
    table.insert(b"a", b"2", at(0), at(0));
    assert_eq!(table.get(b"a", at(0)), Lookup::Found(b"2".to_vec()));
    table.remove(b"a", Gone::NotClosedCleanly);
    assert_eq!(table.get(b"a", at(0)), Lookup::Gone(Gone::NotClosedCleanly));
}

#[test]
fn keys_and_values_have_a_longest_length() {
    let table = ShardedTable::new(limits(10, 1000), 1);
    let (key, value) = ([7; MAX_KEY], vec![7; MAX_VALUE]);
    assert_eq!(table.insert(&key, &value, at(0), at(0)), stored(false));
    assert_eq!(table.get(&key, at(0)), Lookup::Found(value));
    let too_large = Inserted::TooLarge;
    assert_eq!(
        table.insert(&[7; MAX_KEY + 1], b"", at(0), at(0)),
        too_large
    );
    assert_eq!(
        table.insert(b"", &[7; MAX_VALUE + 1], at(0), at(0)),
        too_large
    );
    assert_eq!(table.insert(b"", b"", at(0), at(0)), stored(false));
    assert_eq!(table.get(b"", at(0)), Lookup::Found(b"".to_vec()));
}

/// A key of 32 bytes, as session IDs are.
fn session_id(n: u64) -> [u8; 32] {
    std::array::from_fn(|at| (n >> (at % 8 * 8)) as u8)
}

#[test]
fn ten_thousand_entries_cost_at_most_96_bytes_each_beyond_key_and_value() {
    let table = ShardedTable::new(limits(10_000, 1000), 1);
    for n in 0..35_000 {
        table.insert(&session_id(n), &[7; 120], at(0), at(0));
        let payload = table.entries() * (32 + 120);
        if table.entries() == 10_000 {
            let overhead = (table.memory() - payload) / table.entries();
            assert!(overhead <= 96, "{overhead} bytes");
        }
    }
    assert_eq!(table.entries(), 10_000);
}

#[test]
fn memory_stays_bounded_when_entries_are_removed_out_of_turn() {
    let table = ShardedTable::new(limits(1000, 1000), 1);
    table.insert(b"stays for ever", b"", at(0), at(0));
    for n in 0..50_000 {
        table.insert(&session_id(n), &[7; 120], at(0), at(0));
        assert!(table.remove(&session_id(n), Gone::Spent));
        assert!(table.memory() < 64 << 10, "{} bytes", table.memory());
    }
    assert_eq!(keys(&table), [b"stays for ever"]);
}

#[test]
fn values_of_changing_size_waste_at_most_half_of_the_memory() {
    let table = ShardedTable::new(limits(400, 1000), 1);
    for n in 0..2000 {
        let len = if n % 2 == 0 { 10 } else { 5000 };
        table.insert(&session_id(n), &vec![7; len], at(0), at(0));
    }
    let payload: usize = table
        .snapshot()
        .iter()
        .map(|entry| entry.key.len() + entry.value.len())
        .sum();
    assert!(
        table.memory() < payload * 2,
        "{} bytes for {payload}",
        table.memory()
    );
}
