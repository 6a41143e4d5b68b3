//! The farm key: hash chains from which every server derives the same keys for each epoch, without a
//! leader. A chain only moves forward: an earlier secret cannot be computed from a later one.
//!
//! [`clock_trust`] decides how far a key may move. Reading and writing key files happens elsewhere.

mod chain;
pub mod clock_trust;
mod exported;
mod generation;
mod schedule;
mod weak_secret;

pub use chain::{Chain, Secret};
pub use exported::{ExportedKey, ExportedKeys};
pub use generation::{CannotRotate, Generation, GenerationStatus};
pub use schedule::{Purpose, RouteKeys, Schedule};
pub use weak_secret::WeakSecret;
pub(crate) use weak_secret::published;

use std::time::Duration;

use crate::Time;

/// Step of the route chain, a day, in seconds.
pub const ROUTE_STEP: u64 = 24 * 60 * 60;

/// Longest maximum lifetime: seven days, the longest life of a ticket in TLS 1.3 (RFC 9846, 4.6.1).
pub const MAX_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Most epochs in a session's life: half of the epochs that 12 bits in a label can tell apart.
pub const MAX_EPOCHS: u64 = 2048;

/// Most generations in a key: a label has 4 bits for the number.
pub const MAX_GENERATIONS: usize = 16;

/// Most generations that are accepted at once. Each generation adds keys with which every label is tried.
pub const MAX_ACCEPTED: usize = 2;

/// Longest name of a farm, in bytes.
pub const MAX_SCOPE: usize = 255;

/// The longest time by which a key moves forward at once.
///
/// A clock that is further ahead of the key is probably wrong. A chain that followed the clock could not
/// come back. A server that was away for longer has no live session to lose, and can take another server's
/// key file.
pub const MAX_CATCH_UP: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// The secret that the servers of a farm share, with the terms under which it was made.
pub struct FarmKey {
    /// The farm's name, part of every derivation.
    pub scope: String,
    /// The length of an epoch: how long a ticket key seals.
    pub rotate: Duration,
    /// The longest life of a session sealed under this key.
    pub max_lifetime: Duration,
    /// Oldest first, never empty.
    pub generations: Vec<Generation>,
}

/// Why the terms of a farm key are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadTerms {
    /// `rotate` is under a second.
    #[error("rotate must be at least 1s, in whole seconds")]
    Rotate,
    /// The maximum lifetime is zero or over seven days.
    #[error("the maximum lifetime must be from 1s to 7days")]
    MaxLifetime,
    /// The maximum lifetime spans more than 2,048 epochs.
    #[error("the maximum lifetime may span 2048 rotations at most")]
    Epochs,
    /// No generation, more than 16, or two with the same number.
    #[error("there must be 1 to 16 generations, each with its own number")]
    Generations,
    /// The farm's name is empty or over 255 bytes.
    #[error("the farm's name must have 1 to 255 bytes")]
    Scope,
    /// A generation that has not ended has no ticket chain, while others have one.
    #[error("a generation that has not ended lacks its ticket chain")]
    Incomplete,
}

impl FarmKey {
    /// A key with one generation, which seals at once.
    ///
    /// `secrets` are 32 random bytes each, for the ticket chain and the route chain.
    ///
    /// # Errors
    /// If the terms are out of bounds.
    pub fn new(
        scope: String,
        rotate: Duration,
        max_lifetime: Duration,
        secrets: [Secret; 2],
        now: Time,
    ) -> Result<Self, BadTerms> {
        let mut key = Self {
            scope,
            rotate,
            max_lifetime,
            generations: Vec::new(),
        };
        let [ticket, route] = secrets;
        // The chains begin one lifetime in the past, like the chains of a key in use. So the position of
        // the chains tells when the key was made (`as_of`). Servers whose clocks are behind can seal too.
        key.generations.push(Generation {
            number: 0,
            activates: Some(0),
            ends: None,
            ticket: Some(Chain::new(key.oldest_epoch(now), ticket)),
            route: Chain::new(key.oldest_day(now), route),
        });
        key.check_terms()?;
        Ok(key)
    }

    /// Checks that the terms and the generations are within bounds.
    ///
    /// # Errors
    /// The first bound that is exceeded.
    pub fn check_terms(&self) -> Result<(), BadTerms> {
        if self.rotate.as_secs() == 0 || self.rotate.subsec_nanos() != 0 {
            return Err(BadTerms::Rotate);
        }
        if self.max_lifetime.as_secs() == 0 || self.max_lifetime > MAX_LIFETIME {
            return Err(BadTerms::MaxLifetime);
        }
        if self.lifetime_epochs() > MAX_EPOCHS {
            return Err(BadTerms::Epochs);
        }
        if self.scope.is_empty() || self.scope.len() > MAX_SCOPE {
            return Err(BadTerms::Scope);
        }
        let mut numbers = 0_u32;
        for generation in &self.generations {
            let bit = 1_u32 << (generation.number & 0x1f);
            if generation.number >= 16 || numbers & bit != 0 {
                return Err(BadTerms::Generations);
            }
            numbers |= bit;
            let needs_tickets = generation.ends.is_none() && !self.is_route_part();
            if needs_tickets && generation.ticket.is_none() {
                return Err(BadTerms::Incomplete);
            }
        }
        if self.generations.is_empty() {
            return Err(BadTerms::Generations);
        }
        Ok(())
    }

    /// The ticket epoch at `now`.
    #[must_use]
    pub fn epoch(&self, now: Time) -> u64 {
        now.unix_secs() / self.rotate.as_secs().max(1)
    }

    /// The maximum lifetime in epochs, rounded up.
    #[must_use]
    pub fn lifetime_epochs(&self) -> u64 {
        self.max_lifetime
            .as_secs()
            .div_ceil(self.rotate.as_secs().max(1))
    }

    /// The oldest ticket epoch that the label of a live session can have at `now`.
    #[must_use]
    pub fn oldest_epoch(&self, now: Time) -> u64 {
        self.epoch(now).saturating_sub(self.lifetime_epochs() + 1)
    }

    /// The oldest day whose route key a live session can need at `now`.
    #[must_use]
    pub fn oldest_day(&self, now: Time) -> u64 {
        (now.unix_secs() / ROUTE_STEP).saturating_sub(self.lifetime_days())
    }

    fn lifetime_days(&self) -> u64 {
        self.max_lifetime.as_secs().div_ceil(ROUTE_STEP)
    }

    /// True for a balancer's part: it has route chains and no ticket chain.
    #[must_use]
    pub fn is_route_part(&self) -> bool {
        self.generations.iter().all(|g| g.ticket.is_none())
    }

    /// The balancer's part: it reads labels and opens no ticket.
    #[must_use]
    pub fn route_part(&self, now: Time) -> Self {
        Self {
            scope: self.scope.clone(),
            generations: generation::accepted(self, now)
                .map(|generation| Generation {
                    ticket: None,
                    ..generation.clone()
                })
                .collect(),
            ..*self
        }
    }

    /// How far the ticket chains stand behind the oldest epoch that is needed at `now`.
    ///
    /// In a balancer's part: how far the route chains stand behind the oldest day that is needed at `now`.
    #[must_use]
    pub fn lag(&self, now: Time) -> Duration {
        let lag = if self.is_route_part() {
            let chains = self.generations.iter().map(|generation| &generation.route);
            longest_lag(chains, self.oldest_day(now)) * ROUTE_STEP
        } else {
            longest_lag(self.ticket_chains(), self.oldest_epoch(now)) * self.rotate.as_secs()
        };
        Duration::from_secs(lag)
    }

    /// How far ahead of `now` the ticket chains begin. Nothing can be sealed before they begin.
    ///
    /// This is not zero if the clock was wrong when the key was made or moved.
    #[must_use]
    pub fn lead(&self, now: Time) -> Duration {
        let ahead = self.stands_at().saturating_sub(self.epoch(now));
        Duration::from_secs(ahead.saturating_mul(self.rotate.as_secs()))
    }

    /// Moves every chain forward to the oldest epoch or day that is needed at `now`. Drops the ticket
    /// chains of ended generations, and generations that ended a lifetime ago. Returns whether the key
    /// changed.
    ///
    /// The earlier secrets are lost for good, so the caller must be sure of `now`. A key that is more than
    /// [`MAX_CATCH_UP`] behind does not move.
    pub fn move_forward(&mut self, now: Time) -> bool {
        if self.lag(now) > MAX_CATCH_UP {
            return false;
        }
        let (epoch, day) = (self.oldest_epoch(now), self.oldest_day(now));
        let mut moved = self.retire(now);
        for generation in &mut self.generations {
            if let Some(ticket) = &mut generation.ticket {
                moved |= ticket.move_to(epoch);
            }
            moved |= generation.route.move_to(day);
        }
        moved
    }

    /// The time at which the key was made or last moved, rounded down to the start of an epoch.
    #[must_use]
    pub fn as_of(&self) -> Time {
        self.start_of(self.stands_at().saturating_add(self.lifetime_epochs() + 1))
    }

    /// How far `now` is behind the clock that made or moved the key, if that is over two epochs.
    ///
    /// Two clocks may each be off by an epoch, in opposite directions. If they differ by more, one of the
    /// clocks is wrong.
    #[must_use]
    pub fn clock_behind(&self, now: Time) -> Option<Duration> {
        let behind = self.as_of().since(now);
        (behind > self.rotate * 2).then_some(behind)
    }

    /// The latest time up to `now` to which the key can move without forgetting more than `epochs` epochs.
    #[must_use]
    pub fn within(&self, now: Time, epochs: u64) -> Time {
        let epoch = self.epoch(self.as_of()).saturating_add(epochs);
        now.min(self.start_of(epoch))
    }

    /// The start of a ticket epoch.
    fn start_of(&self, epoch: u64) -> Time {
        let secs = epoch.saturating_mul(self.rotate.as_secs());
        Time::from_unix_millis(secs.saturating_mul(1000))
    }

    /// A fingerprint of a chain at an epoch, which tells keys apart and reveals no secret.
    ///
    /// Servers whose chains stand at different epochs compute the same fingerprint. `None` if the chain is
    /// past the epoch.
    #[must_use]
    pub fn fingerprint(&self, chain: &Chain, epoch: u64) -> Option<[u8; 8]> {
        let mut chain = chain.clone();
        chain.move_to(epoch);
        if chain.epoch() != epoch {
            return None;
        }
        let secret = chain.secret();
        let derived = secret.derive("sessile1 fingerprint", &self.scope, epoch);
        derived.expose().first_chunk().copied()
    }

    fn ticket_chains(&self) -> impl Iterator<Item = &Chain> {
        self.generations.iter().filter_map(|g| g.ticket.as_ref())
    }
}

/// The largest number of epochs by which one of these chains is behind `wanted`.
fn longest_lag<'a>(chains: impl Iterator<Item = &'a Chain>, wanted: u64) -> u64 {
    chains
        .map(|chain| wanted.saturating_sub(chain.epoch()))
        .max()
        .unwrap_or(0)
}
