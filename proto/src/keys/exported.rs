//! Ticket keys for other TLS servers (nginx, HAProxy, Apache), derived from the ticket chain.
//!
//! These keys have their own derivation label, so they open no ticket of sessile. All servers of the farm
//! derive the same keys.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::chain::expand;
use super::schedule::walk;
use super::{FarmKey, Generation, Secret, generation};
use crate::Time;

/// Bytes of a ticket key with AES-256: name (16), HMAC key (32), AES key (32).
const AES256_LEN: usize = 80;

/// Bytes of a ticket key with AES-128: name (16), HMAC key (16), AES key (16).
const AES128_LEN: usize = 48;

/// The ticket key of one generation and epoch.
pub struct ExportedKey {
    /// The generation of the chain.
    pub generation: u8,
    /// The epoch of the chain.
    pub epoch: u64,
    bytes: Zeroizing<[u8; AES256_LEN + AES128_LEN]>,
}

impl ExportedKey {
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
    pub fn aes256(&self) -> &[u8; AES256_LEN] {
        self.bytes.first_chunk().expect("it is that long")
    }

    /// 48 bytes, independent of [`Self::aes256`]: name, HMAC key, AES-128 key.
    #[must_use]
    pub fn aes128(&self) -> &[u8; AES128_LEN] {
        self.bytes.last_chunk().expect("it is that long")
    }
}

/// The ticket keys that another TLS server needs at one moment.
pub struct ExportedKeys {
    /// The key that seals now.
    pub current: ExportedKey,
    /// The key that seals next. It is accepted now, because another server's clock may be ahead.
    pub next: ExportedKey,
    /// The other keys under which a live ticket can be sealed, the most recent first.
    pub previous: Vec<ExportedKey>,
}

impl ExportedKeys {
    /// The ticket keys at `now`. `None` if the clock and the key do not agree.
    #[must_use]
    pub fn derive(key: &FarmKey, now: Time) -> Option<Self> {
        let epoch = key.epoch(now);
        let epochs: Vec<u64> = (key.oldest_epoch(now)..=epoch + 1).collect();
        let generations: Vec<&Generation> = generation::accepted(key, now).collect();
        let mut keys = BTreeMap::new();
        for generation in &generations {
            let number = generation.number;
            for (epoch, secret) in walk(generation.ticket.as_ref()?, &epochs) {
                let exported = ExportedKey::derive(&key.scope, number, epoch, &secret);
                keys.insert((number, epoch), exported);
            }
        }
        let sealing = generation::sealing(key, now)?.number;
        let sealing_next =
            generation::sealing(key, key.start_of(epoch + 1)).map_or(sealing, |next| next.number);
        let current = keys.remove(&(sealing, epoch))?;
        let next = keys.remove(&(sealing_next, epoch + 1))?;
        let mut previous: Vec<ExportedKey> = keys.into_values().collect();
        previous.sort_by_cached_key(|exported| {
            let (first, last) = sealing_time(key, &generations, exported);
            // A key may have sealed before its time, because servers may have been told different times of
            // activation.
            let is_unlikely = first >= last || first > now.unix_secs();
            (is_unlikely, Reverse(last))
        });
        Some(Self {
            current,
            next,
            previous,
        })
    }
}

/// When a key begins and stops to seal. It seals during its epoch, from the activation of its generation to
/// the activation of the next generation.
fn sealing_time(key: &FarmKey, generations: &[&Generation], exported: &ExportedKey) -> (u64, u64) {
    let activated = generations
        .iter()
        .find(|generation| generation.number == exported.generation)
        .map_or(u64::MAX, |generation| activation_of(generation));
    let succeeded = generations
        .iter()
        .map(|generation| activation_of(generation))
        .filter(|&at| at > activated)
        .min()
        .unwrap_or(u64::MAX);
    let first = key.start_of(exported.epoch).unix_secs().max(activated);
    let last = key.start_of(exported.epoch + 1).unix_secs().min(succeeded);
    (first, last)
}

fn activation_of(generation: &Generation) -> u64 {
    generation.activates.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keys::generation::tests::{NOON, at, key, secrets};

    const HOUR: u64 = 60 * 60;

    fn names(keys: &[ExportedKey]) -> Vec<(u8, u64)> {
        keys.iter().map(|key| (key.generation, key.epoch)).collect()
    }

    #[test]
    fn servers_agree_wherever_their_chains_stand() {
        let mut moved = key();
        let stayed = key();
        let later = at(NOON + 100 * HOUR);
        assert!(moved.move_forward(later));
        let one = ExportedKeys::derive(&moved, later).unwrap();
        let other = ExportedKeys::derive(&stayed, later).unwrap();
        assert_eq!(one.current.aes256(), other.current.aes256());
        assert_eq!(one.current.aes128(), other.current.aes128());
        assert_eq!(one.next.aes256(), other.next.aes256());
        assert_eq!(one.previous.len(), 11);
        for (one, other) in one.previous.iter().zip(&other.previous) {
            assert_eq!(one.aes256(), other.aes256());
        }
    }

    #[test]
    fn what_seals_next_is_accepted_before_and_what_sealed_last_stays_first() {
        let key = key();
        let now = ExportedKeys::derive(&key, at(NOON + 20 * HOUR)).unwrap();
        let hour_later = ExportedKeys::derive(&key, at(NOON + 21 * HOUR)).unwrap();
        assert_eq!(now.next.aes256(), hour_later.current.aes256());
        assert_eq!(now.current.aes256(), hour_later.previous[0].aes256());
    }

    #[test]
    fn a_generation_that_took_over_in_mid_epoch_follows_the_old_one_of_that_epoch() {
        let mut key = key();
        let (now, epoch) = (NOON + 5 * HOUR, NOON / HOUR + 5);
        let activates = at(now + 60);
        let waiting = key.add_generation(secrets(5), Some(activates), at(now));
        assert_eq!(waiting, Ok(1));
        let before = ExportedKeys::derive(&key, at(now)).unwrap();
        assert_eq!(
            names(&[before.current, before.next]),
            [(0, epoch), (1, epoch + 1)]
        );
        assert_eq!(names(&before.previous)[0], (0, epoch - 1));
        assert!(names(&before.previous).contains(&(1, epoch)));
        let after = ExportedKeys::derive(&key, activates.plus(Duration::from_secs(1))).unwrap();
        assert_eq!(
            names(&[after.current, after.next]),
            [(1, epoch), (1, epoch + 1)]
        );
        assert_eq!(names(&after.previous)[..2], [(0, epoch), (0, epoch - 1)]);
    }

    #[test]
    fn exported_keys_are_independent_of_ticket_keys_and_of_each_other() {
        let key = key();
        let exported = ExportedKeys::derive(&key, at(NOON)).unwrap().current;
        let generation = &key.generations[0];
        let mut chain = generation.ticket.clone().unwrap();
        chain.move_to(exported.epoch);
        assert!(
            !exported
                .bytes
                .windows(32)
                .any(|w| w == chain.secret().expose())
        );
        assert_ne!(exported.aes256()[..48], exported.aes128()[..]);
    }
}
