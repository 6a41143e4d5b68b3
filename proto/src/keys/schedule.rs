//! The keys that can be live at one moment, derived and ready for use. Immutable: a new one is
//! derived when time moves on.

use std::collections::BTreeMap;
use std::ops::Range;

use aws_lc_rs::cipher::{self, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{constant_time, hmac};

use super::generation::{accepted, is_over, sealing};
use super::{FarmKey, Generation, ROUTE_STEP, Secret};
use crate::Time;
use crate::verdict::Reason;

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
    /// Whether the first one is today's of the generation that seals.
    labels: bool,
}

impl RouteKeys {
    /// Derives the route keys of every generation that is accepted at `now`.
    #[must_use]
    pub fn derive(key: &FarmKey, now: Time) -> Self {
        Self::of(key, now, accepted(key, now).collect())
    }

    /// The same for a server, which also has to tell tickets of ended generations from those of
    /// strangers.
    fn derive_known(key: &FarmKey, now: Time) -> Self {
        Self::of(
            key,
            now,
            accepted(key, now).chain(ended(key, now)).collect(),
        )
    }

    fn of(key: &FarmKey, now: Time, mut generations: Vec<&Generation>) -> Self {
        let today = now.unix_secs() / ROUTE_STEP;
        // Today first, yesterday next: most tickets are young. Tomorrow last, for fast clocks.
        let past = (key.oldest_day(now)..=today).rev();
        let days: Vec<u64> = past.chain([today + 1]).collect();
        let sealing = sealing(key, now).map(|generation| generation.number);
        generations.sort_by_key(|generation| Some(generation.number) != sealing);
        let mut keys = Vec::with_capacity(days.len() * generations.len());
        let mut labels = false;
        for generation in generations {
            let by_day = walk(&generation.route, &days);
            labels |= Some(generation.number) == sealing && by_day.contains_key(&today);
            keys.extend(days.iter().filter_map(|day| {
                let secret = by_day.get(day)?;
                Some(RouteKey::derive(&key.scope, *day, secret))
            }));
        }
        Self { keys, labels }
    }

    /// The key for new labels: today's of the sealing generation.
    pub(super) fn newest(&self) -> Option<&RouteKey> {
        self.keys.first().filter(|_| self.labels)
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
    /// Generations whose labels are known and whose tickets are refused.
    ended: Vec<u8>,
    epoch: u64,
    /// The oldest epoch that a session alive can name.
    oldest: u64,
    /// Seconds since the Unix epoch for which nothing of this changes.
    valid: Range<u64>,
    max_lifetime: std::time::Duration,
    /// See [`Self::revocations`].
    revocations: u32,
}

impl Schedule {
    /// Derives what is live at `now`. The key itself does not move.
    #[must_use]
    pub fn derive(key: &FarmKey, now: Time) -> Self {
        let epoch = key.epoch(now);
        let epochs: Vec<u64> = (key.oldest_epoch(now)..=epoch + EPOCHS_AHEAD).collect();
        let (mut tickets, mut kept) = (BTreeMap::new(), BTreeMap::new());
        for generation in accepted(key, now) {
            let Some(chain) = &generation.ticket else {
                continue;
            };
            for (epoch, secret) in walk(chain, &epochs) {
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
        let sealing = sealing(key, now)
            .map(|generation| (generation.number, epoch))
            .filter(|sealing| tickets.contains_key(sealing));
        Self {
            routes: RouteKeys::derive_known(key, now),
            tickets,
            kept,
            sealing,
            ended: ended(key, now).map(|g| g.number).collect(),
            epoch,
            oldest: key.oldest_epoch(now),
            valid: validity(key, now),
            max_lifetime: key.max_lifetime,
            revocations: 0,
        }
    }

    /// The same, of a key some of whose generations ended before their time while it was in use.
    #[must_use]
    pub fn after_revocations(mut self, revocations: u32) -> Self {
        self.revocations = revocations;
        self
    }

    /// The same keys to open with, and none to seal with: the clock does not say which it would be.
    #[must_use]
    pub fn without_sealing(mut self) -> Self {
        self.sealing = None;
        self
    }

    /// How many times generations ended before their time since this process has the key. Whoever keeps
    /// sessions in the clear has to forget, when it rises, those from before: a thief can have them.
    #[must_use]
    pub const fn revocations(&self) -> u32 {
        self.revocations
    }

    /// Whether anything can be sealed now: not where the clock and the key do not meet.
    #[must_use]
    pub const fn can_seal(&self) -> bool {
        self.sealing.is_some()
    }

    /// What reads labels.
    #[must_use]
    pub const fn routes(&self) -> &RouteKeys {
        &self.routes
    }

    /// Whether this is what would be derived at `now`.
    #[must_use]
    pub const fn is_current(&self, now: Time) -> bool {
        self.valid.start <= now.unix_secs() && now.unix_secs() < self.valid.end
    }

    /// When something changes next: an epoch or a day ends, a generation begins or ends.
    #[must_use]
    pub const fn changes(&self) -> Time {
        Time::from_unix_millis(self.valid.end.saturating_mul(1000))
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

    /// Whether tickets of this generation, sealed in this epoch, are refused because it ended: they
    /// could be alive otherwise.
    pub(crate) fn is_revoked(&self, generation: u8, epoch: u64) -> bool {
        self.ended.contains(&generation) && epoch >= self.oldest
    }

    pub(crate) fn kept_key(&self, purpose: Purpose, generation: u8, epoch: u64) -> Option<&Secret> {
        self.kept.get(&(purpose, generation, epoch))
    }

    /// Why there is no key to open something of that generation and epoch with.
    pub(crate) fn why_no_key(&self, generation: u8, epoch: u64) -> Reason {
        if self.is_revoked(generation, epoch) {
            Reason::Revoked
        } else if epoch < self.oldest {
            Reason::Expired
        } else {
            // Of an epoch to come, or from before this key was made: that is no lifetime's end.
            Reason::Unknown
        }
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

/// Generations that ended, and not so long ago that nobody can come back with a ticket of theirs.
fn ended(key: &FarmKey, now: Time) -> impl Iterator<Item = &Generation> {
    let lifetime = key.max_lifetime.as_secs();
    key.generations.iter().filter(move |generation| {
        let is = |other: &Generation| other.number == generation.number;
        !accepted(key, now).any(is) && !is_over(generation, lifetime, now)
    })
}

/// The seconds around `now` for which one schedule holds.
fn validity(key: &FarmKey, now: Time) -> Range<u64> {
    let secs = now.unix_secs();
    let mut valid = 0..u64::MAX;
    let mut changes_at = |at: u64| match at <= secs {
        true => valid.start = valid.start.max(at),
        false => valid.end = valid.end.min(at),
    };
    for step in [key.rotate.as_secs().max(1), ROUTE_STEP] {
        let start = secs - secs % step;
        changes_at(start);
        changes_at(start.saturating_add(step));
    }
    for generation in &key.generations {
        generation.activates.into_iter().for_each(&mut changes_at);
        if let Some(ends) = generation.ends {
            changes_at(ends);
            changes_at(ends.saturating_add(key.max_lifetime.as_secs()));
        }
    }
    valid
}

/// The chain's secrets at the given epochs, as far as they lie at or ahead of where it stands.
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
