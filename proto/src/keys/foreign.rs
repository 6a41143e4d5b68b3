//! Ticket keys for servers that are not sessile. Derived from the ticket chain under a label of
//! their own: they open no ticket of sessile's, and every server's derivation agrees.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::chain::expand;
use super::schedule::walk;
use super::{FarmKey, Generation, Secret, generation};
use crate::Time;

/// Bytes of a key with AES-256: name (16), HMAC (32), AES (32).
const WIDE: usize = 80;

/// Bytes of a key with AES-128: name (16), then 16 and 16.
const NARROW: usize = 48;

/// The ticket key of one generation and epoch.
pub struct ForeignKey {
    /// The generation that it comes from.
    pub generation: u8,
    /// Its epoch.
    pub epoch: u64,
    bytes: Zeroizing<[u8; WIDE + NARROW]>,
}

impl ForeignKey {
    fn derive(scope: &str, generation: u8, epoch: u64, chain_secret: &Secret) -> Self {
        let info: [&[u8]; 3] = [b"sessile1 foreign", scope.as_bytes(), &epoch.to_be_bytes()];
        Self {
            generation,
            epoch,
            bytes: Zeroizing::new(expand(chain_secret.expose(), &info)),
        }
    }

    /// 80 bytes: name, HMAC-SHA-256 key, AES-256 key.
    #[must_use]
    pub fn wide(&self) -> &[u8; WIDE] {
        self.bytes.first_chunk().expect("it is that long")
    }

    /// 48 bytes, independent of the others: name and two keys of 16.
    #[must_use]
    pub fn narrow(&self) -> &[u8; NARROW] {
        self.bytes.last_chunk().expect("it is that long")
    }
}

/// The ticket keys of a moment.
pub struct Foreign {
    /// Seals now.
    pub current: ForeignKey,
    /// Seals next; accepted already, because another server may be there before.
    pub next: ForeignKey,
    /// Accepted: whatever a living ticket can be sealed under. The one that sealed before the
    /// present one comes first.
    pub previous: Vec<ForeignKey>,
}

impl Foreign {
    /// The ticket keys at `now`; `None` where the key and the clock do not agree.
    #[must_use]
    pub fn derive(key: &FarmKey, now: Time) -> Option<Self> {
        let step = key.rotate.as_secs().max(1);
        let start = |epoch: u64| epoch.saturating_mul(step);
        let epoch = key.epoch(now);
        let epochs: Vec<u64> = (key.oldest_epoch(now)..=epoch + 1).collect();
        let generations: Vec<&Generation> = generation::accepted(key, now).collect();
        let mut keys = BTreeMap::new();
        for generation in &generations {
            let number = generation.number;
            for (epoch, secret) in walk(generation.ticket.as_ref()?, &epochs) {
                let foreign = ForeignKey::derive(&key.scope, number, epoch, &secret);
                keys.insert((number, epoch), foreign);
            }
        }
        let sealing = generation::sealing(key, now)?.number;
        let then = Time::from_unix_millis(start(epoch + 1).saturating_mul(1000));
        let next = generation::sealing(key, then).map_or(sealing, |next| next.number);
        let current = keys.remove(&(sealing, epoch))?;
        let next = keys.remove(&(next, epoch + 1))?;

        let begins = |generation: &Generation| generation.activates.unwrap_or(u64::MAX);
        let mut previous: Vec<ForeignKey> = keys.into_values().collect();
        previous.sort_by_cached_key(|foreign| {
            let is = |generation: &&&Generation| generation.number == foreign.generation;
            let from = generations.iter().find(is).map_or(u64::MAX, |g| begins(g));
            let successors = generations.iter().map(|other| begins(other));
            let until = successors.filter(|&at| at > from).min();
            let first = start(foreign.epoch).max(from);
            let last = start(foreign.epoch + 1).min(until.unwrap_or(u64::MAX));
            // Where servers were told to activate at different times, any of these can be.
            let unlikely = first >= last || first > now.unix_secs();
            (unlikely, std::cmp::Reverse(last))
        });
        Some(Self {
            current,
            next,
            previous,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keys::generation::tests::{NOON, at, key, secrets};

    const HOUR: u64 = 60 * 60;

    fn names(keys: &[ForeignKey]) -> Vec<(u8, u64)> {
        keys.iter().map(|key| (key.generation, key.epoch)).collect()
    }

    #[test]
    fn servers_agree_wherever_their_chains_stand() {
        let mut moved = key();
        let stayed = key();
        let later = at(NOON + 100 * HOUR);
        assert!(moved.move_forward(later));
        let one = Foreign::derive(&moved, later).unwrap();
        let other = Foreign::derive(&stayed, later).unwrap();
        assert_eq!(one.current.wide(), other.current.wide());
        assert_eq!(one.current.narrow(), other.current.narrow());
        assert_eq!(one.next.wide(), other.next.wide());
        assert_eq!(one.previous.len(), 11);
        for (one, other) in one.previous.iter().zip(&other.previous) {
            assert_eq!(one.wide(), other.wide());
        }
    }

    #[test]
    fn what_seals_next_is_accepted_before_and_what_sealed_last_stays_first() {
        let key = key();
        let now = Foreign::derive(&key, at(NOON + 20 * HOUR)).unwrap();
        let hour_later = Foreign::derive(&key, at(NOON + 21 * HOUR)).unwrap();
        assert_eq!(now.next.wide(), hour_later.current.wide());
        assert_eq!(now.current.wide(), hour_later.previous[0].wide());
    }

    #[test]
    fn a_generation_that_took_over_in_mid_epoch_follows_the_old_one_of_that_epoch() {
        let mut key = key();
        let (now, epoch) = (NOON + 5 * HOUR, NOON / HOUR + 5);
        let activates = at(now + 60);
        let waiting = key.add_generation(secrets(5), Some(activates), at(now));
        assert_eq!(waiting, Ok(1));
        let before = Foreign::derive(&key, at(now)).unwrap();
        assert_eq!(
            names(&[before.current, before.next]),
            [(0, epoch), (1, epoch + 1)]
        );
        assert_eq!(names(&before.previous)[0], (0, epoch - 1));
        assert!(names(&before.previous).contains(&(1, epoch)));
        let after = Foreign::derive(&key, activates.plus(Duration::from_secs(1))).unwrap();
        assert_eq!(
            names(&[after.current, after.next]),
            [(1, epoch), (1, epoch + 1)]
        );
        assert_eq!(names(&after.previous)[..2], [(0, epoch), (0, epoch - 1)]);
    }

    #[test]
    fn they_are_not_the_keys_of_sealed_tickets_and_not_parts_of_each_other() {
        let key = key();
        let foreign = Foreign::derive(&key, at(NOON)).unwrap().current;
        let generation = &key.generations[0];
        let mut chain = generation.ticket.clone().unwrap();
        chain.move_to(foreign.epoch);
        assert!(
            !foreign
                .bytes
                .windows(32)
                .any(|w| w == chain.secret().expose())
        );
        assert_ne!(foreign.wide()[..48], foreign.narrow()[..]);
    }
}
