//! What became of entries that left: a bounded, lossy set of fingerprints. It forgets, and it does
//! not guess: 61 bits of hash have to match, so that with the most ghosts there can be (65,536) a
//! key that never was in the table is taken for one with a probability of 2^-45.

use super::Gone;

/// Ghosts in one set: a cache line. The newest stands first, the oldest drops off the end.
const WAYS: usize = 8;

/// Low bits of a ghost that hold the reason; the others are the key's hash.
const REASON: u64 = 7;

/// A set-associative array of ghosts; zero is an empty place.
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
        let same = |ghost: &u64| (ghost ^ hash) & !REASON == 0;
        let last = set.iter().position(same).unwrap_or(WAYS - 1);
        set.copy_within(..last, 1);
        set[0] = (hash & !REASON) | why.code();
    }

    pub(super) fn find(&self, hash: u64) -> Option<Gone> {
        let set = self.sets.get(self.at(hash))?;
        let ghost = set.iter().find(|ghost| (*ghost ^ hash) & !REASON == 0)?;
        Gone::from_code(ghost & REASON)
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

impl Gone {
    /// Nonzero, so that a ghost is never taken for an empty place.
    const fn code(self) -> u64 {
        match self {
            Self::Evicted => 1,
            Self::Expired => 2,
            Self::Purged => 3,
            Self::Spent => 4,
            Self::Revoked => 5,
            Self::NotClosedCleanly => 6,
        }
    }

    const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Evicted,
            2 => Self::Expired,
            3 => Self::Purged,
            4 => Self::Spent,
            5 => Self::Revoked,
            6 => Self::NotClosedCleanly,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Gone; 6] = [
        Gone::Evicted,
        Gone::Expired,
        Gone::Purged,
        Gone::Spent,
        Gone::Revoked,
        Gone::NotClosedCleanly,
    ];

    #[test]
    fn remembers_every_reason() {
        let mut ghosts = Ghosts::new(64);
        for (at, why) in ALL.into_iter().enumerate() {
            let hash = (at as u64 + 1) << 32;
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
    fn an_empty_place_is_no_ghost_of_hash_zero() {
        assert_eq!(Ghosts::new(64).find(0), None);
        assert_eq!(Ghosts::new(0).find(1), None);
    }
}
