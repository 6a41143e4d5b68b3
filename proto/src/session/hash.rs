//! The seeded hash of keys: folded multiplication, sixteen bytes at a time.
//!
//! Keys come from peers, so the seed must be random and stay inside the process.

/// Odd constants without structure: digits of pi.
const PI: [u64; 3] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7345,
    0xa409_3822_299f_31d1,
];

/// A key and its hash. The hash chooses the shard, the place in the index and the ghost set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashed<'a> {
    pub(super) bytes: &'a [u8],
    pub(crate) hash: u64,
}

impl Hashed<'_> {
    /// The key's shard. `shards` is a power of two.
    pub(super) fn shard(&self, shards: usize) -> usize {
        // The index of a part uses the upper bits.
        self.hash as usize & (shards - 1)
    }
}

/// Hashes keys under one seed.
#[derive(Clone, Debug)]
pub(crate) struct Hasher {
    start: u64,
    mask: u64,
}

impl Hasher {
    /// A separate hash function for each seed.
    pub(crate) const fn new(seed: u64) -> Self {
        let start = fold(seed ^ PI[0], PI[1]);
        Self {
            start,
            mask: fold(start ^ PI[1], PI[2]) ^ seed,
        }
    }

    /// A hash of 64 bits. Upper and lower bits are equally good.
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        let mut state = self.start;
        let mut rest = key;
        while let Some((pair, more)) = rest.split_first_chunk::<16>() {
            state = self.step(state, pair);
            rest = more;
        }
        if !rest.is_empty() {
            let mut pair = [0; 16];
            pair[..rest.len()].copy_from_slice(rest);
            state = self.step(state, &pair);
        }
        // The length is mixed in last, because the bytes of a key could cancel an earlier length.
        fold(state ^ self.mask, PI[2] ^ key.len() as u64)
    }

    /// A key with its hash.
    pub(super) fn hashed<'a>(&self, key: &'a [u8]) -> Hashed<'a> {
        Hashed {
            bytes: key,
            hash: self.hash(key),
        }
    }

    const fn step(&self, state: u64, pair: &[u8; 16]) -> u64 {
        let pair = u128::from_le_bytes(*pair);
        fold(pair as u64 ^ self.mask, (pair >> 64) as u64 ^ state)
    }
}

const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_that_differ_in_one_bit_or_in_length_hash_differently() {
        let hasher = Hasher::new(7);
        let mut seen = HashSet::new();
        for len in 0..=64 {
            let mut key = vec![0; len];
            assert!(seen.insert(hasher.hash(&key)));
            for bit in 0..len * 8 {
                key[bit / 8] ^= 1 << (bit % 8);
                assert!(seen.insert(hasher.hash(&key)), "bit {bit} of {len} bytes");
                key[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn each_seed_gives_another_function() {
        let key = [1; 32];
        assert_ne!(Hasher::new(1).hash(&key), Hasher::new(2).hash(&key));
    }

    #[test]
    fn counted_keys_spread_over_both_halves_of_the_hash() {
        let hasher = Hasher::new(3);
        for shift in [0, 32, 56] {
            let mut counts = [0_u32; 256];
            for n in 0..65_536_u32 {
                let byte = (hasher.hash(&n.to_be_bytes()) >> shift) as u8;
                counts[usize::from(byte)] += 1;
            }
            // 256 are expected, give or take six standard deviations of 16.
            assert!(counts.iter().all(|count| (160..352).contains(count)));
        }
    }
}
