//! The farm key: hash chains from which every server derives the same ticket and route keys, epoch
//! by epoch, without a leader. Chains only move forward; what was left behind cannot be had back.
//!
//! Where a key lives and when its file may be rewritten is not decided here.

mod chain;
mod schedule;

pub use chain::{Chain, Secret, Weak};
pub use schedule::{Purpose, RouteKeys, Schedule};

use std::time::Duration;

use crate::Time;

/// Step of the route chain: a day, in seconds.
pub const ROUTE_STEP: u64 = 24 * 60 * 60;

/// Longest `maximum lifetime`: what TLS 1.3 allows a ticket (RFC 9846, 4.6.1).
pub const MAX_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Most epochs that a session may live: half of what the 12 bits in a label can tell apart.
pub const MAX_EPOCHS: u64 = 2048;

/// Most generations in a key: what the 4 bits in a label can tell apart.
pub const MAX_GENERATIONS: usize = 16;

/// The secret that the servers of a farm share, with what was decided when it was made.
pub struct FarmKey {
    /// The farm's name; part of every derivation.
    pub scope: String,
    /// How long a ticket key seals.
    pub rotate: Duration,
    /// The longest life of a session sealed under this key.
    pub max_lifetime: Duration,
    /// Oldest first; never empty.
    pub generations: Vec<Generation>,
}

/// Two chains from independent secrets. A new generation is a new secret for both.
#[derive(Clone)]
pub struct Generation {
    /// 0 to 15, unique in the key; what a label names.
    pub number: u8,
    /// When this generation begins to seal, seconds since the Unix epoch.
    pub activates: u64,
    /// When its tickets stop being accepted, seconds since the Unix epoch; `None`: not planned.
    pub ends: Option<u64>,
    /// The ticket chain, at the oldest epoch kept; its step is `rotate`.
    pub ticket: Chain,
    /// The route chain, at the oldest day kept.
    pub route: Chain,
}

/// Why a farm key's terms cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadTerms {
    /// `rotate` is under a second.
    Rotate,
    /// The maximum lifetime is zero or over seven days.
    MaxLifetime,
    /// The maximum lifetime spans more than 2,048 epochs.
    Epochs,
    /// No generation, more than 16, or two with the same number.
    Generations,
}

impl std::fmt::Display for BadTerms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rotate => "rotate must be at least 1s, in whole seconds",
            Self::MaxLifetime => "the maximum lifetime must be from 1s to 7days",
            Self::Epochs => "the maximum lifetime may span 2048 rotations at most",
            Self::Generations => "there must be 1 to 16 generations, each with its own number",
        })
    }
}

impl std::error::Error for BadTerms {}

impl FarmKey {
    /// A key with one generation, which seals from the start.
    ///
    /// `secrets` are 32 random bytes each, for the ticket and the route chain. The chains begin
    /// two epochs back, so that servers whose clocks are behind can follow.
    ///
    /// # Errors
    /// Where the terms are out of bounds.
    pub fn new(
        scope: String,
        rotate: Duration,
        max_lifetime: Duration,
        secrets: [Secret; 2],
        now: Time,
    ) -> Result<Self, BadTerms> {
        let [ticket, route] = secrets;
        let step = rotate.as_secs().max(1);
        let key = Self {
            scope,
            rotate,
            max_lifetime,
            generations: vec![Generation {
                number: 0,
                activates: 0,
                ends: None,
                ticket: Chain::new((now.unix_secs() / step).saturating_sub(2), ticket),
                route: Chain::new((now.unix_secs() / ROUTE_STEP).saturating_sub(2), route),
            }],
        };
        key.check_terms()?;
        Ok(key)
    }

    /// Whether rotation, lifetime and generations are within bounds.
    ///
    /// # Errors
    /// With the first that is not.
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
        let mut numbers = 0_u32;
        for generation in &self.generations {
            let bit = 1_u32 << (generation.number & 0x1f);
            if generation.number >= 16 || numbers & bit != 0 {
                return Err(BadTerms::Generations);
            }
            numbers |= bit;
        }
        if self.generations.is_empty() {
            return Err(BadTerms::Generations);
        }
        Ok(())
    }

    /// The ticket epoch at a time.
    #[must_use]
    pub fn epoch(&self, now: Time) -> u64 {
        now.unix_secs() / self.rotate.as_secs().max(1)
    }

    /// How many epochs a session can live, rounded up.
    #[must_use]
    pub fn lifetime_epochs(&self) -> u64 {
        self.max_lifetime
            .as_secs()
            .div_ceil(self.rotate.as_secs().max(1))
    }

    /// The oldest ticket epoch that a session alive at `now` can name.
    #[must_use]
    pub fn oldest_epoch(&self, now: Time) -> u64 {
        self.epoch(now).saturating_sub(self.lifetime_epochs() + 1)
    }

    /// The oldest day whose route key a session alive at `now` can need.
    #[must_use]
    pub fn oldest_day(&self, now: Time) -> u64 {
        (now.unix_secs() / ROUTE_STEP).saturating_sub(self.lifetime_days())
    }

    fn lifetime_days(&self) -> u64 {
        self.max_lifetime.as_secs().div_ceil(ROUTE_STEP)
    }

    /// Moves every chain forward to the oldest epoch that is still needed, forgetting what lies
    /// before. Returns whether anything moved.
    pub fn move_forward(&mut self, now: Time) -> bool {
        let (epoch, day) = (self.oldest_epoch(now), self.oldest_day(now));
        let mut moved = false;
        for generation in &mut self.generations {
            moved |= generation.ticket.move_to(epoch);
            moved |= generation.route.move_to(day);
        }
        moved
    }
}
