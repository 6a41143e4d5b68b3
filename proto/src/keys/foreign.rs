//! Ticket keys for servers that are not sessile. Derived from the ticket chain under a label of
//! their own: they open no ticket of sessile's, and every server's derivation agrees.

use zeroize::Zeroizing;

use super::chain::expand;
use super::{FarmKey, Generation, generation};
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
    fn derive(key: &FarmKey, generation: &Generation, epoch: u64) -> Option<Self> {
        let mut chain = generation.ticket.clone()?;
        chain.move_to(epoch);
        let info: [&[u8]; 3] = [
            b"sessile1 foreign",
            key.scope.as_bytes(),
            &epoch.to_be_bytes(),
        ];
        (chain.epoch() == epoch).then(|| Self {
            generation: generation.number,
            epoch,
            bytes: Zeroizing::new(expand(chain.secret().expose(), &info)),
        })
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
        let at = |secs: u64| Time::from_unix_millis(secs.saturating_mul(1000));
        let epoch = key.epoch(now);
        let sealing = generation::sealing(key, now)?;
        let current = ForeignKey::derive(key, sealing, epoch)?;
        let then = generation::sealing(key, at(start(epoch + 1))).unwrap_or(sealing);
        let next = ForeignKey::derive(key, then, epoch + 1)?;

        let generations: Vec<&Generation> = generation::accepted(key, now).collect();
        let begins = |generation: &Generation| generation.activates.unwrap_or(u64::MAX);
        let mut previous = Vec::new();
        for generation in &generations {
            let from = begins(generation);
            let successors = generations.iter().map(|other| begins(other));
            let until = successors.filter(|&at| at > from).min();
            for epoch in key.oldest_epoch(now)..=epoch + 1 {
                let first = start(epoch).max(from);
                let last = start(epoch + 1).min(until.unwrap_or(u64::MAX));
                // Where servers were told to activate at different times, any of these can be.
                let unlikely = first >= last || first > now.unix_secs();
                let is = |known: &ForeignKey| {
                    (known.generation, known.epoch) == (generation.number, epoch)
                };
                if !is(&current)
                    && !is(&next)
                    && let Some(foreign) = ForeignKey::derive(key, generation, epoch)
                {
                    previous.push((unlikely, std::cmp::Reverse(last), foreign));
                }
            }
        }
        previous.sort_by_key(|(unlikely, last, _)| (*unlikely, *last));
        Some(Self {
            current,
            next,
            previous: previous.into_iter().map(|(_, _, key)| key).collect(),
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
