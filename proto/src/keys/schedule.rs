//! The keys that can be live at one moment, derived and ready for use. A schedule never changes; a new one
//! is derived when time moves on.

use std::collections::BTreeMap;
use std::ops::Range;

use aws_lc_rs::cipher::{self, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{constant_time, hmac};
use strum::{IntoStaticStr, VariantArray};

use super::generation::{accepted, is_over, sealing};
use super::{FarmKey, Generation, ROUTE_STEP, Secret};
use crate::verdict::Reason;
use crate::{Time, Word};

/// How many epochs ahead ticket keys are derived. The clocks of two servers may each be off by an epoch,
/// in opposite directions.
const EPOCHS_AHEAD: u64 = 2;

/// Seals and opens the routing labels of one generation on one day.
pub(super) struct RouteKey {
    cipher: EncryptingKey,
    mac: hmac::Key,
}

impl RouteKey {
    fn derive(scope: &str, day: u64, chain_secret: &Secret) -> Self {
        let cipher_key = chain_secret.derive("sessile1 route", scope, day);
        let mac_key = chain_secret.derive("sessile1 route mac", scope, day);
        let cipher = UnboundCipherKey::new(&cipher::AES_256, cipher_key.expose())
            .and_then(EncryptingKey::ctr)
            .expect("a 32-byte key fits AES-256");
        Self {
            cipher,
            mac: hmac::Key::new(hmac::HMAC_SHA256, mac_key.expose()),
        }
    }

    /// Computes `info XOR AES-256(key, nonce)[0..8]`, which masks and unmasks.
    pub(super) fn mask(&self, nonce: &[u8; 16], info: [u8; 8]) -> [u8; 8] {
        // One block of CTR mode with the nonce as the counter block computes exactly this mask.
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

/// The route keys that can be live, the likeliest first.
pub struct RouteKeys {
    keys: Vec<RouteKey>,
    /// True if the first key is today's key of the sealing generation.
    can_label: bool,
}

impl RouteKeys {
    /// Derives a balancer's route keys: of every generation that is accepted at `now`.
    #[must_use]
    pub fn derive(key: &FarmKey, now: Time) -> Self {
        Self::of(key, now, accepted(key, now).collect())
    }

    /// Derives a server's route keys. They include the keys of ended generations. So a server can tell
    /// tickets of ended generations from tickets of another farm.
    fn derive_for_server(key: &FarmKey, now: Time) -> Self {
        let generations = accepted(key, now).chain(ended(key, now)).collect();
        Self::of(key, now, generations)
    }

    fn of(key: &FarmKey, now: Time, mut generations: Vec<&Generation>) -> Self {
        let today = now.unix_secs() / ROUTE_STEP;
        // Today comes first and yesterday next, because most tickets are young. Tomorrow comes last, for
        // servers with fast clocks.
        let days: Vec<u64> = (key.oldest_day(now)..=today)
            .rev()
            .chain([today + 1])
            .collect();
        let sealing = sealing(key, now).map(|generation| generation.number);
        generations.sort_by_key(|generation| Some(generation.number) != sealing);
        let mut keys = Vec::with_capacity(days.len() * generations.len());
        let mut can_label = false;
        for generation in generations {
            let by_day = walk(&generation.route, &days);
            can_label |= Some(generation.number) == sealing && by_day.contains_key(&today);
            for day in &days {
                if let Some(secret) = by_day.get(day) {
                    keys.push(RouteKey::derive(&key.scope, *day, secret));
                }
            }
        }
        Self { keys, can_label }
    }

    /// The key for new labels: today's key of the sealing generation.
    pub(super) fn newest(&self) -> Option<&RouteKey> {
        self.keys.first().filter(|_| self.can_label)
    }

    /// True if no label can be read: the clock does not fit the key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn opens(&self, nonce: &[u8; 16], masked: &[u8; 8], tag: &[u8]) -> Option<[u8; 8]> {
        let key = self
            .keys
            .iter()
            .find(|key| key.verifies(nonce, masked, tag))?;
        Some(key.mask(nonce, *masked))
    }
}

/// A use of the key. Each purpose has a separate key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
pub enum Purpose {
    /// A sealed ticket.
    #[strum(serialize = "sessile1 stek")]
    Ticket,
    /// An entry of the shared store.
    #[strum(serialize = "sessile1 store")]
    Store,
    /// A piece of a server's session table, for its next start.
    #[strum(serialize = "sessile1 snapshot")]
    Snapshot,
}

/// The keys that a server needs at one moment.
pub struct Schedule {
    routes: RouteKeys,
    /// By purpose, generation and epoch.
    keys: BTreeMap<(Purpose, u8, u64), Secret>,
    sealing: Option<(u8, u64)>,
    /// Generations whose tickets are refused, although their labels can be read.
    ended: Vec<u8>,
    epoch: u64,
    /// The oldest epoch that a live session can name.
    oldest: u64,
    /// The seconds since the Unix epoch for which this schedule holds.
    valid: Range<u64>,
    max_lifetime: std::time::Duration,
    /// See [`Self::revocations`].
    revocations: u32,
}

impl Schedule {
    /// Derives the keys that are live at `now`. The farm key does not move.
    #[must_use]
    pub fn derive(key: &FarmKey, now: Time) -> Self {
        let epoch = key.epoch(now);
        let epochs: Vec<u64> = (key.oldest_epoch(now)..=epoch + EPOCHS_AHEAD).collect();
        let mut keys = BTreeMap::new();
        for generation in accepted(key, now) {
            let Some(chain) = &generation.ticket else {
                continue;
            };
            for (epoch, secret) in walk(chain, &epochs) {
                for purpose in Purpose::all() {
                    let derived = secret.derive(purpose.as_str(), &key.scope, epoch);
                    keys.insert((purpose, generation.number, epoch), derived);
                }
            }
        }
        let sealing = sealing(key, now)
            .map(|generation| (generation.number, epoch))
            .filter(|&(number, epoch)| keys.contains_key(&(Purpose::Ticket, number, epoch)));
        Self {
            routes: RouteKeys::derive_for_server(key, now),
            keys,
            sealing,
            ended: ended(key, now).map(|g| g.number).collect(),
            epoch,
            oldest: key.oldest_epoch(now),
            valid: validity(key, now),
            max_lifetime: key.max_lifetime,
            revocations: 0,
        }
    }

    /// Sets the number of [`Self::revocations`].
    #[must_use]
    pub fn after_revocations(mut self, revocations: u32) -> Self {
        self.revocations = revocations;
        self
    }

    /// Takes away the permission to seal, because the clock cannot tell the present epoch.
    #[must_use]
    pub fn without_sealing(mut self) -> Self {
        self.sealing = None;
        self
    }

    /// How many times a generation ended early while this process had the key.
    ///
    /// When this number rises, unsealed sessions from before the rise must be forgotten, because a thief
    /// can know these sessions.
    #[must_use]
    pub const fn revocations(&self) -> u32 {
        self.revocations
    }

    /// True if tickets can be sealed: the clock and the key agree.
    #[must_use]
    pub const fn can_seal(&self) -> bool {
        self.sealing.is_some()
    }

    /// The keys that read labels.
    #[must_use]
    pub const fn routes(&self) -> &RouteKeys {
        &self.routes
    }

    /// True if the schedule still holds at `now`.
    #[must_use]
    pub const fn is_current(&self, now: Time) -> bool {
        self.valid.start <= now.unix_secs() && now.unix_secs() < self.valid.end
    }

    /// The end of this schedule: an epoch or a day ends, or a generation begins or ends.
    #[must_use]
    pub const fn changes(&self) -> Time {
        Time::from_unix_millis(self.valid.end.saturating_mul(1000))
    }

    /// The longest life of a session sealed under this farm's key.
    #[must_use]
    pub const fn max_lifetime(&self) -> std::time::Duration {
        self.max_lifetime
    }

    /// The generation and the epoch that seal, if the clock and the key agree.
    pub(crate) const fn sealing(&self) -> Option<(u8, u64)> {
        self.sealing
    }

    /// True if tickets of this generation and epoch would be live, but the generation has ended.
    pub(crate) fn is_revoked(&self, generation: u8, epoch: u64) -> bool {
        self.ended.contains(&generation) && epoch >= self.oldest
    }

    pub(crate) fn key(&self, purpose: Purpose, generation: u8, epoch: u64) -> Option<&Secret> {
        self.keys.get(&(purpose, generation, epoch))
    }

    /// Why there is no key of this generation and epoch.
    pub(crate) fn why_no_key(&self, generation: u8, epoch: u64) -> Reason {
        if self.is_revoked(generation, epoch) {
            Reason::Revoked
        } else if epoch < self.oldest {
            Reason::Expired
        } else {
            // The epoch is still to come, or ended before the key was made.
            Reason::Unknown
        }
    }

    /// The epoch with these 12 low bits that is nearest to the present epoch.
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

/// The generations that ended less than a lifetime ago: clients can still offer their tickets.
fn ended(key: &FarmKey, now: Time) -> impl Iterator<Item = &Generation> {
    let lifetime = key.max_lifetime.as_secs();
    key.generations.iter().filter(move |generation| {
        let is_accepted = accepted(key, now).any(|other| other.number == generation.number);
        !is_accepted && !is_over(generation, lifetime, now)
    })
}

/// The seconds around `now` for which one schedule holds: from the last change to the next one.
fn validity(key: &FarmKey, now: Time) -> Range<u64> {
    let secs = now.unix_secs();
    let mut changes = Vec::new();
    for step in [key.rotate.as_secs().max(1), ROUTE_STEP] {
        let start = secs - secs % step;
        changes.extend([start, start.saturating_add(step)]);
    }
    for generation in &key.generations {
        changes.extend(generation.activates);
        if let Some(ends) = generation.ends {
            changes.extend([ends, ends.saturating_add(key.max_lifetime.as_secs())]);
        }
    }
    let last = changes.iter().copied().filter(|&at| at <= secs).max();
    let next = changes.iter().copied().filter(|&at| at > secs).min();
    last.unwrap_or(0)..next.unwrap_or(u64::MAX)
}

/// The chain's secrets at the given epochs. Epochs before the chain's own are left out.
pub(super) fn walk(chain: &super::Chain, epochs: &[u64]) -> BTreeMap<u64, Secret> {
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
