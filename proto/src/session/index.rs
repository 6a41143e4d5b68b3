//! The index of a part: a hash table from a key's hash to the entry's location in the log.
//!
//! A slot has eight bytes: a tag (the upper 32 bits of the hash) and a location. The tag gives the home, the
//! place where a search begins. A larger tag has a later home, and colliding slots are ordered by tag. So all
//! slots in use are sorted. A miss therefore ends as early as a hit. Growing is one sequential pass. Neither
//! growing nor removing reads a key again.
//!
//! hashbrown's `HashTable<u32>` was measured as a replacement. At 10,000 entries, `HashTable` takes 16 bytes
//! per entry instead of 11. When it grows, it reads every key again. `HashTable` inserts and removes twice as
//! fast as this index.

/// Slots that are compared at once. One branch for each slot would be slower. A processor cannot predict how
/// far a slot is from its home.
const WINDOW: usize = 4;

/// Slots after the last home, for collisions. More are added in groups of this size.
const SLACK: usize = 32;

/// Homes in the first array.
const FIRST_HOMES: usize = 32;

/// At most four of five homes are in use.
const MAX_LOAD: (usize, usize) = (4, 5);

/// A sorted array with gaps. Zero is an empty slot.
#[derive(Debug, Default)]
pub(super) struct Index {
    slots: Vec<u64>,
    homes: usize,
    len: usize,
}

impl Index {
    /// The place of the key with this hash. `matches` compares the entry at a location with the key.
    pub(super) fn find(&self, hash: u64, matches: impl Fn(u32) -> bool) -> Option<usize> {
        let tag = tag(hash);
        let mut place = self.home(tag);
        loop {
            let window: &[u64; WINDOW] = self.slots.get(place..)?.first_chunk()?;
            // Subtracting one wraps an empty slot to the largest number, so that it ends the search.
            let is_before = |slot: &&u64| slot.wrapping_sub(1) < (tag << 32) - 1;
            let before = window.iter().filter(is_before).count();
            place += before;
            if before < WINDOW {
                break;
            }
        }
        while let Some(&slot) = self.slots.get(place)
            && slot >> 32 == tag
        {
            if matches(slot as u32) {
                return Some(place);
            }
            place += 1;
        }
        None
    }

    /// The location at a place that [`Self::find`] returned.
    pub(super) fn location(&self, place: usize) -> u32 {
        self.slots[place] as u32
    }

    /// Adds a new key.
    pub(super) fn insert(&mut self, hash: u64, location: u32) {
        if (self.len + 1) * MAX_LOAD.1 > self.homes * MAX_LOAD.0 {
            self.grow();
        }
        self.len += 1;
        let tag = tag(hash);
        let mut carried = (tag << 32) | u64::from(location);
        let home = self.home(tag);
        for slot in &mut self.slots[home..] {
            if *slot == 0 {
                *slot = carried;
                break;
            }
            if *slot >> 32 > carried >> 32 {
                std::mem::swap(slot, &mut carried);
            }
        }
        self.lengthen();
    }

    /// Empties a place that [`Self::find`] returned, and moves the following slots closer to their homes.
    pub(super) fn remove(&mut self, place: usize) {
        self.len -= 1;
        let mut hole = place;
        while let Some(&next) = self.slots.get(hole + 1)
            && next != 0
            && self.home(next >> 32) <= hole
        {
            self.slots[hole] = next;
            hole += 1;
        }
        self.slots[hole] = 0;
    }

    /// Removes every key and keeps the array.
    pub(super) fn clear(&mut self) {
        self.slots.fill(0);
        self.len = 0;
    }

    /// Bytes on the heap.
    pub(super) fn memory(&self) -> usize {
        self.slots.capacity() * size_of::<u64>()
    }

    fn home(&self, tag: u64) -> usize {
        ((tag * self.homes as u64) >> 32) as usize
    }

    fn grow(&mut self) {
        // A quarter more homes: growing is cheap, and the array stays small.
        self.homes = FIRST_HOMES.max(self.homes / 4 * 5);
        let old = std::mem::replace(&mut self.slots, vec![0; self.homes + SLACK]);
        let mut free = 0;
        for slot in old.into_iter().filter(|&slot| slot != 0) {
            free = free.max(self.home(slot >> 32));
            self.slots[free] = slot;
            free += 1;
            self.lengthen();
        }
    }

    /// Keeps the last slots empty. They end every search.
    fn lengthen(&mut self) {
        let end = self.slots.len() - WINDOW;
        if self.slots[end..].iter().any(|&slot| slot != 0) {
            self.slots.reserve_exact(SLACK);
            self.slots.extend([0; SLACK]);
        }
    }
}

/// The upper bits of the hash, never zero: zero is an empty slot.
fn tag(hash: u64) -> u64 {
    (hash >> 32).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Hashes from a narrow range, so that homes collide and runs reach the end of the array.
        #[test]
        fn agrees_with_a_list(steps in prop::collection::vec((any::<bool>(), 0..300_u32, any::<bool>()), 0..600)) {
            let mut index = Index::default();
            let mut list: Vec<(u64, u32)> = Vec::new();
            for (insert, n, high) in steps {
                let hash = if high { u64::MAX - (u64::from(n / 4) << 32) } else { u64::from(n) << 57 };
                let known = list.iter().position(|&entry| entry == (hash, n));
                let place = index.find(hash, |location| location == n);
                prop_assert_eq!(place.is_some(), known.is_some());
                match (insert, known, place) {
                    (true, None, None) => {
                        index.insert(hash, n);
                        list.push((hash, n));
                    }
                    (false, Some(at), Some(place)) => {
                        index.remove(place);
                        list.swap_remove(at);
                    }
                    _ => {}
                }
                prop_assert_eq!(index.len, list.len());
                for &(hash, n) in &list {
                    let place = index.find(hash, |location| location == n);
                    prop_assert_eq!(place.map(|place| index.location(place)), Some(n));
                }
                let tags: Vec<_> = index.slots.iter().filter(|&&slot| slot != 0).map(|slot| slot >> 32).collect();
                prop_assert!(tags.is_sorted());
            }
        }
    }

    #[test]
    fn a_cleared_index_finds_nothing() {
        let mut index = Index::default();
        index.insert(42 << 32, 1);
        index.clear();
        assert_eq!(index.find(42 << 32, |_| true), None);
    }

    #[test]
    fn an_empty_index_finds_nothing() {
        assert_eq!(Index::default().find(u64::MAX, |_| true), None);
        assert_eq!(Index::default().memory(), 0);
    }
}
