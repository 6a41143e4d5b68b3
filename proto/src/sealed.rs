//! Seals data that leaves a server's memory: entries of the shared store and pieces of a snapshot.
//!
//! A sealed piece is bound to the farm key of its epoch and to its identifier. It does not open under another
//! identifier, or at another place in a file.
//!
//! `version 4 bit, generation 4 bit | epoch 8 | salt 16 | AES-256-GCM ciphertext | tag 16`

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::keys::{Purpose, Schedule};
use crate::verdict::Reason;

/// 16 random bytes that are never used twice.
pub type Salt = [u8; 16];

/// Bytes that sealing adds.
pub const OVERHEAD: usize = HEAD_LEN + TAG_LEN;

const HEAD_LEN: usize = 1 + 8 + 16;

const TAG_LEN: usize = 16;

const VERSION: u8 = 1;

/// Seals `clear` and binds it to the identifier `bound`.
///
/// `None` if the clock and the key do not agree: then nothing can be sealed.
#[must_use]
pub fn seal(
    schedule: &Schedule,
    purpose: Purpose,
    salt: Salt,
    bound: &[u8],
    clear: &[u8],
) -> Option<Vec<u8>> {
    let (generation, epoch) = schedule.sealing()?;
    let info: [&[u8]; 3] = [b"sealed", &salt, bound];
    let key = OneTimeKey::derive(schedule, purpose, generation, epoch, &info)?;
    let mut sealed = Vec::with_capacity(clear.len() + OVERHEAD);
    sealed.push(VERSION << 4 | generation & 0xf);
    sealed.extend_from_slice(&epoch.to_be_bytes());
    sealed.extend_from_slice(&salt);
    sealed.extend_from_slice(clear);
    key.seal(HEAD_LEN, sealed)
}

/// Opens what [`seal`] sealed under the identifier `bound`.
///
/// # Errors
///
/// - [`Reason::OldFormat`]: the bytes have another format.
/// - [`Reason::BadTicket`]: the bytes do not authenticate.
/// - [`Reason::Revoked`]: the generation has ended.
/// - [`Reason::Expired`]: the epoch is older than any live session.
/// - [`Reason::Unknown`]: the key is missing for any other reason.
pub fn open(
    schedule: &Schedule,
    purpose: Purpose,
    bound: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, Reason> {
    let (head, body) = sealed
        .split_first_chunk::<HEAD_LEN>()
        .ok_or(Reason::OldFormat)?;
    let [first, rest @ ..] = head;
    if first >> 4 != VERSION {
        return Err(Reason::OldFormat);
    }
    let (epoch, rest) = rest.split_first_chunk().ok_or(Reason::OldFormat)?;
    let epoch = u64::from_be_bytes(*epoch);
    let salt: &Salt = rest.first_chunk().ok_or(Reason::OldFormat)?;
    let generation = first & 0xf;
    OneTimeKey::derive(
        schedule,
        purpose,
        generation,
        epoch,
        &[b"sealed", salt, bound],
    )
    .ok_or_else(|| schedule.why_no_key(generation, epoch))?
    .open(head, body)
}

/// The key of one sealed piece or ticket. Nothing else is sealed under this key, so the cipher's nonce can be
/// zero.
pub(crate) struct OneTimeKey(LessSafeKey);

impl OneTimeKey {
    /// The key that `info` identifies. `None` if there is no key for the generation and the epoch.
    pub(crate) fn derive(
        schedule: &Schedule,
        purpose: Purpose,
        generation: u8,
        epoch: u64,
        info: &[&[u8]],
    ) -> Option<Self> {
        let secret = schedule.key(purpose, generation, epoch)?.expand(info);
        let key = UnboundKey::new(&AES_256_GCM, secret.expose());
        Some(Self(LessSafeKey::new(
            key.expect("a 32-byte key fits AES-256"),
        )))
    }

    /// Encrypts the bytes after the head in place, and appends the tag. The tag covers the head too.
    pub(crate) fn seal(&self, head_len: usize, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let (head, body) = bytes.split_at_mut(head_len);
        let sealed = self
            .0
            .seal_in_place_separate_tag(zero_nonce(), Aad::from(&*head), body);
        bytes.extend_from_slice(sealed.ok()?.as_ref());
        Some(bytes)
    }

    /// Opens what [`Self::seal`] sealed behind this head.
    pub(crate) fn open(&self, head: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Reason> {
        let mut clear = sealed.to_vec();
        let opened = self
            .0
            .open_in_place(zero_nonce(), Aad::from(head), &mut clear);
        let len = opened.map_err(|_| Reason::BadTicket)?.len();
        clear.truncate(len);
        Ok(clear)
    }
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Time;
    use crate::keys::{FarmKey, Secret};

    const HOUR: Duration = Duration::from_secs(3600);
    const NOW: Time = Time::from_unix_millis(1_800_000_000_000);
    const SALT: Salt = [9; 16];

    fn farm(first: u8) -> FarmKey {
        let secret = |n: u8| {
            let bytes: Vec<u8> = (0..32).map(|i| i ^ n).collect();
            Secret::new(&bytes).unwrap()
        };
        let secrets = [secret(first), secret(first + 1)];
        FarmKey::new("farm".to_owned(), HOUR, 10 * HOUR, secrets, NOW).unwrap()
    }

    fn sealed(bound: &[u8]) -> (Schedule, Vec<u8>) {
        let schedule = Schedule::derive(&farm(1), NOW);
        let sealed = seal(&schedule, Purpose::Store, SALT, bound, b"session").unwrap();
        (schedule, sealed)
    }

    #[test]
    fn opens_as_what_it_was_sealed_as_and_as_nothing_else() {
        let (schedule, sealed) = sealed(b"one");
        assert_eq!(sealed.len(), b"session".len() + OVERHEAD);
        let open = |purpose, bound| open(&schedule, purpose, bound, &sealed);
        assert_eq!(open(Purpose::Store, b"one"), Ok(b"session".to_vec()));
        assert_eq!(open(Purpose::Store, b"two"), Err(Reason::BadTicket));
        assert_eq!(open(Purpose::Snapshot, b"one"), Err(Reason::BadTicket));
    }

    #[test]
    fn the_clear_text_is_not_in_it() {
        let (_, sealed) = sealed(b"one");
        assert!(!sealed.windows(7).any(|window| window == b"session"));
    }

    #[test]
    fn opens_an_hour_later_at_a_server_whose_clock_is_an_epoch_off_and_not_after_its_life() {
        let (_, sealed) = sealed(b"one");
        let at = |now| {
            let mut key = farm(1);
            key.move_forward(now);
            open(
                &Schedule::derive(&key, now),
                Purpose::Store,
                b"one",
                &sealed,
            )
        };
        let earlier = Time::from_unix_millis(NOW.unix_millis() - 3_600_000);
        for now in [earlier, NOW.plus(HOUR), NOW.plus(11 * HOUR)] {
            assert_eq!(at(now), Ok(b"session".to_vec()));
        }
        assert_eq!(at(NOW.plus(12 * HOUR)), Err(Reason::Expired));
    }

    #[test]
    fn every_byte_counts() {
        let (schedule, sealed) = sealed(b"one");
        for at in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[at] ^= 1;
            open(&schedule, Purpose::Store, b"one", &forged).unwrap_err();
            open(&schedule, Purpose::Store, b"one", &sealed[..at]).unwrap_err();
        }
    }

    #[test]
    fn another_farm_opens_nothing() {
        let (_, sealed) = sealed(b"one");
        let other = Schedule::derive(&farm(2), NOW);
        let opened = open(&other, Purpose::Store, b"one", &sealed);
        assert_eq!(opened, Err(Reason::BadTicket));
    }
}
