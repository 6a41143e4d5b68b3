//! The keys that can be live at one moment, derived and ready for use. Immutable: a new one is
//! derived when time moves on.

use std::collections::BTreeMap;

use aws_lc_rs::cipher::{self, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{constant_time, hmac};

use super::{FarmKey, Generation, ROUTE_STEP, Secret};
use crate::Time;

/// How far ahead ticket keys are derived: two servers may each be an epoch off, in opposite
/// directions.
const EPOCHS_AHEAD: u64 = 2;

/// What seals and opens routing labels of one generation on one day.
pub(super) struct RouteKey {
    cipher: EncryptingKey,
    mac: hmac::Key,
}

impl RouteKey {
    fn derive(scope: &str, day: u64, chain_secret: &Secret) -> Self {
        let derive =
            |label: &[u8]| chain_secret.expand(&[label, scope.as_bytes(), &day.to_be_bytes()]);
        let (cipher, mac) = (derive(b"sessile1 route"), derive(b"sessile1 route mac"));
        let cipher = UnboundCipherKey::new(&cipher::AES_256, cipher.expose())
            .and_then(EncryptingKey::ctr)
            .expect("a 32-byte key fits AES-256");
        Self {
            cipher,
            mac: hmac::Key::new(hmac::HMAC_SHA256, mac.expose()),
        }
    }

    /// `info XOR AES-256(key, nonce)[0..8]`, its own inverse. One block of CTR mode with the nonce
    /// as the counter block is just that.
    pub(super) fn mask(&self, nonce: &[u8; 16], info: [u8; 8]) -> [u8; 8] {
        let mut block = info;
        let context = EncryptionContext::Iv128(FixedLength::from(*nonce));
        self.cipher
            .less_safe_encrypt(&mut block, context)
            .expect("CTR mode encrypts any 8 bytes");
        block
    }

    pub(super) fn tag(&self, nonce: &[u8; 16], masked: &[u8; 8]) -> [u8; 8] {
        let mut mac = hmac::Context::with_key(&self.mac);
        mac.update(b"srid1");
        mac.update(nonce);
        mac.update(masked);
        let mut short = [0; 8];
        short.copy_from_slice(&mac.sign().as_ref()[..8]);
        short
    }

    pub(super) fn verifies(&self, nonce: &[u8; 16], masked: &[u8; 8], tag: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&self.tag(nonce, masked), tag).is_ok()
    }
}

/// The route keys that can be live, the likeliest first. All that a balancer has.
pub struct RouteKeys {
    keys: Vec<RouteKey>,
}

impl RouteKeys {
    /// Derives the route keys of every generation that is accepted at `now`.
    #[must_use]
    pub fn derive(key: &FarmKey, now: Time) -> Self {
        let today = now.unix_secs() / ROUTE_STEP;
        // Today first, yesterday next: most tickets are young. Tomorrow last, for fast clocks.
        let past = (key.oldest_day(now)..=today).rev();
        let days: Vec<u64> = past.chain([today + 1]).collect();
        let sealing = sealing_generation(key, now).map(|generation| generation.number);
        let mut generations: Vec<&Generation> = accepted(key, now).collect();
        generations.sort_by_key(|generation| Some(generation.number) != sealing);
        let mut keys = Vec::with_capacity(days.len() * generations.len());
        for generation in generations {
            let by_day = walk(&generation.route, &days);
            keys.extend(days.iter().filter_map(|day| {
                let secret = by_day.get(day)?;
                Some(RouteKey::derive(&key.scope, *day, secret))
            }));
        }
        Self { keys }
    }

    /// The key for new labels: today's of the sealing generation.
    pub(super) fn newest(&self) -> Option<&RouteKey> {
        self.keys.first()
    }

    pub(crate) fn opens(&self, nonce: &[u8; 16], masked: &[u8; 8], tag: &[u8]) -> Option<[u8; 8]> {
        let key = self
            .keys
            .iter()
            .find(|key| key.verifies(nonce, masked, tag))?;
        Some(key.mask(nonce, *masked))
    }

    /// How many keys a label is tried with.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no label can be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// What a key seals besides tickets, each under a key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// An entry of a shared store.
    Store,
    /// A piece of a server's session table, for its next start.
    Snapshot,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Store, Self::Snapshot];

    const fn label(self) -> &'static [u8] {
        match self {
            Self::Store => b"sessile1 store",
            Self::Snapshot => b"sessile1 snapshot",
        }
    }
}

/// Every key that a server needs at one moment.
pub struct Schedule {
    routes: RouteKeys,
    /// Ticket keys by generation and epoch.
    tickets: BTreeMap<(u8, u64), Secret>,
    /// The other keys of the same generations and epochs.
    kept: BTreeMap<(Purpose, u8, u64), Secret>,
    sealing: Option<(u8, u64)>,
    epoch: u64,
    rotate: u64,
    max_lifetime: std::time::Duration,
}

impl Schedule {
    /// Derives what is live at `now`. The key itself does not move.
    #[must_use]
    pub fn derive(key: &FarmKey, now: Time) -> Self {
        let epoch = key.epoch(now);
        let epochs: Vec<u64> = (key.oldest_epoch(now)..=epoch + EPOCHS_AHEAD).collect();
        let (mut tickets, mut kept) = (BTreeMap::new(), BTreeMap::new());
        for generation in accepted(key, now) {
            for (epoch, secret) in walk(&generation.ticket, &epochs) {
                let info: [&[u8]; 3] =
                    [b"sessile1 stek", key.scope.as_bytes(), &epoch.to_be_bytes()];
                tickets.insert((generation.number, epoch), secret.expand(&info));
                for purpose in Purpose::ALL {
                    let info: [&[u8]; 3] =
                        [purpose.label(), key.scope.as_bytes(), &epoch.to_be_bytes()];
                    kept.insert((purpose, generation.number, epoch), secret.expand(&info));
                }
            }
        }
        let sealing = sealing_generation(key, now)
            .map(|generation| (generation.number, epoch))
            .filter(|sealing| tickets.contains_key(sealing));
        Self {
            routes: RouteKeys::derive(key, now),
            tickets,
            kept,
            sealing,
            epoch,
            rotate: key.rotate.as_secs().max(1),
            max_lifetime: key.max_lifetime,
        }
    }

    /// What reads labels.
    #[must_use]
    pub const fn routes(&self) -> &RouteKeys {
        &self.routes
    }

    /// Whether `now` lies in the epoch for which this was derived.
    #[must_use]
    pub const fn is_current(&self, now: Time) -> bool {
        now.unix_secs() / self.rotate == self.epoch
    }

    /// The longest life of a session sealed under this farm's key.
    #[must_use]
    pub const fn max_lifetime(&self) -> std::time::Duration {
        self.max_lifetime
    }

    /// The generation and epoch that seal, where the clock and the key agree.
    pub(crate) const fn sealing(&self) -> Option<(u8, u64)> {
        self.sealing
    }

    pub(crate) fn ticket_key(&self, generation: u8, epoch: u64) -> Option<&Secret> {
        self.tickets.get(&(generation, epoch))
    }

    pub(crate) fn kept_key(&self, purpose: Purpose, generation: u8, epoch: u64) -> Option<&Secret> {
        self.kept.get(&(purpose, generation, epoch))
    }

    /// The epoch nearest to now whose 12 low bits are these.
    pub(crate) const fn nearest_epoch(&self, low: u16) -> u64 {
        let base = self.epoch & !0xfff | low as u64;
        if base > self.epoch + 0x800 {
            base.saturating_sub(0x1000)
        } else if base + 0x800 < self.epoch {
            base + 0x1000
        } else {
            base
        }
    }

    pub(crate) fn mask(&self, nonce: &[u8; 16], info: [u8; 8]) -> Option<([u8; 8], [u8; 8])> {
        let key = self.routes.newest()?;
        let masked = key.mask(nonce, info);
        Some((masked, key.tag(nonce, &masked)))
    }
}

impl std::fmt::Debug for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schedule")
            .field("epoch", &self.epoch)
            .field("ticket_keys", &self.tickets.len())
            .field("route_keys", &self.routes.len())
            .finish_non_exhaustive()
    }
}

/// Generations whose tickets are accepted at `now`.
fn accepted(key: &FarmKey, now: Time) -> impl Iterator<Item = &Generation> {
    key.generations
        .iter()
        .filter(move |generation| generation.ends.is_none_or(|ends| now.unix_secs() < ends))
}

/// The generation that was activated last.
fn sealing_generation(key: &FarmKey, now: Time) -> Option<&Generation> {
    accepted(key, now)
        .filter(|generation| generation.activates <= now.unix_secs())
        .max_by_key(|generation| generation.activates)
}

/// The chain's secrets at the given epochs, as far as they lie at or ahead of where it stands.
fn walk(chain: &super::Chain, epochs: &[u64]) -> BTreeMap<u64, Secret> {
    let mut wanted: Vec<u64> = epochs.to_vec();
    wanted.sort_unstable();
    let mut chain = chain.clone();
    let mut secrets = BTreeMap::new();
    for epoch in wanted {
        chain.move_to(epoch);
        if chain.epoch() == epoch {
            secrets.insert(epoch, chain.secret().clone());
        }
    }
    secrets
}
