//! Ghosts: a bounded, lossy memory of removed entries and the reasons.
//!
//! A ghost matches by 61 bits of the key's hash. A table has at most 65,536 ghosts. An unknown key matches one
//! of so many ghosts with a probability of 2^-45.

use super::Gone;

/// Ghosts in one set, which fill a cache line. The newest is first; the last drops out.
const WAYS: usize = 8;

/// The low bits of a ghost, which hold the reason. The other bits are the key's hash.
const REASON: u64 = 7;

/// A set-associative array of ghosts. Zero is an empty place.
#[derive(Debug)]
pub(super) struct Ghosts {
    sets: Box<[[u64; WAYS]]>,
}

impl Ghosts {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            sets: vec![[0; WAYS]; capacity.div_ceil(WAYS)].into_boxed_slice(),
        }
    }

    pub(super) fn insert(&mut self, hash: u64, why: Gone) {
        let Some(set) = self.set(hash) else { return };
        // Replace an earlier ghost of the same key. If there is none, the oldest ghost of the set drops out.
        let last = set
            .iter()
            .position(|&ghost| is_of(ghost, hash))
            .unwrap_or(WAYS - 1);
        set.copy_within(..last, 1);
        set[0] = (hash & !REASON) | why as u64;
    }

    pub(super) fn find(&self, hash: u64) -> Option<Gone> {
        let set = self.sets.get(self.at(hash))?;
        let ghost = set.iter().find(|&&ghost| is_of(ghost, hash))?;
        Gone::from_repr((ghost & REASON) as u8)
    }

    /// Bytes on the heap.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.sets)
    }

    fn at(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.sets.len() as u128) >> 64) as usize
    }

    fn set(&mut self, hash: u64) -> Option<&mut [u64; WAYS]> {
        let at = self.at(hash);
        self.sets.get_mut(at)
    }
}

fn is_of(ghost: u64, hash: u64) -> bool {
    (ghost ^ hash) & !REASON == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_every_reason() {
        let mut ghosts = Ghosts::new(64);
        for why in (1..=6).filter_map(Gone::from_repr) {
            let hash = (why as u64) << 32;
            ghosts.insert(hash, why);
            assert_eq!(ghosts.find(hash), Some(why));
        }
    }

    #[test]
    fn the_last_reason_counts_and_takes_no_second_place() {
        let mut ghosts = Ghosts::new(WAYS);
        for n in 1..WAYS as u64 {
            ghosts.insert(n << 8, Gone::Evicted);
        }
        for _ in 0..3 {
            ghosts.insert(0xff00, Gone::Evicted);
            ghosts.insert(0xff00, Gone::Spent);
        }
        assert_eq!(ghosts.find(0xff00), Some(Gone::Spent));
        assert_eq!(ghosts.find(1 << 8), Some(Gone::Evicted));
    }

    #[test]
    fn the_oldest_of_a_full_set_is_forgotten() {
        let mut ghosts = Ghosts::new(WAYS);
        for n in 1..=WAYS as u64 + 1 {
            ghosts.insert(n << 8, Gone::Evicted);
        }
        assert_eq!(ghosts.find(1 << 8), None);
        assert_eq!(ghosts.find(2 << 8), Some(Gone::Evicted));
    }

    #[test]
    fn an_empty_place_is_no_ghost() {
        assert_eq!(Ghosts::new(64).find(0), None);
        assert_eq!(Ghosts::new(0).find(1), None);
    }
}
