//! The farm key: hash chains from which every server derives the same ticket and route keys, epoch
//! by epoch, without a leader. Chains only move forward; what was left behind cannot be had back.
//!
//! Where a key lives and when its file may be rewritten is not decided here.

mod chain;
mod foreign;
mod generation;
mod schedule;
mod weak;

pub use chain::{Chain, Secret};
pub use foreign::{Foreign, ForeignKey};
pub use generation::{CannotRotate, Generation, Standing};
pub use schedule::{Purpose, RouteKeys, Schedule};
pub use weak::Weak;

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

/// Most generations that are added before an older one has ended: each costs every label look-ups.
pub const MAX_ACCEPTED: usize = 2;

/// Longest name of a farm, in bytes.
pub const MAX_SCOPE: usize = 255;

/// Furthest that a key moves forward in one go. Whoever was away for longer has no living session
/// to lose and can have a copy of another server's file; a clock that far ahead is likely wrong,
/// and a chain that followed it could not come back.
pub const MAX_CATCH_UP: Duration = Duration::from_secs(31 * 24 * 60 * 60);

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
    /// The farm's name is empty or over 255 bytes.
    Scope,
    /// A generation that has not ended has no ticket chain, while others have one.
    Incomplete,
}

impl std::fmt::Display for BadTerms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rotate => "rotate must be at least 1s, in whole seconds",
            Self::MaxLifetime => "the maximum lifetime must be from 1s to 7days",
            Self::Epochs => "the maximum lifetime may span 2048 rotations at most",
            Self::Generations => "there must be 1 to 16 generations, each with its own number",
            Self::Scope => "the farm's name must have 1 to 255 bytes",
            Self::Incomplete => "a generation that has not ended lacks its ticket chain",
        })
    }
}

impl std::error::Error for BadTerms {}

impl FarmKey {
    /// A key with one generation, which seals from the start.
    ///
    /// `secrets` are 32 random bytes each, for the ticket and the route chain. The chains begin where
    /// those of a key do that has been in use: what they stand at says what time it was
    /// ([`Self::as_of`]), and servers whose clocks are behind can follow.
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
        let mut key = Self {
            scope,
            rotate,
            max_lifetime,
            generations: Vec::new(),
        };
        let [ticket, route] = secrets;
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

    /// Whether this is what a balancer may have: route chains, and no ticket chain.
    #[must_use]
    pub fn is_route_part(&self) -> bool {
        self.generations.iter().all(|g| g.ticket.is_none())
    }

    /// The balancer's part: what reads labels and opens no ticket.
    #[must_use]
    pub fn route_part(&self, now: Time) -> Self {
        let accepted = generation::accepted(self, now);
        Self {
            scope: self.scope.clone(),
            generations: accepted
                .map(|generation| Generation {
                    ticket: None,
                    ..generation.clone()
                })
                .collect(),
            ..*self
        }
    }

    /// How far the ticket chains stand behind the oldest epoch that is needed at `now`.
    #[must_use]
    pub fn lag(&self, now: Time) -> Duration {
        let behind = |at: u64, wanted: u64, step: u64| wanted.saturating_sub(at) * step;
        let generations = self.generations.iter();
        let lags = generations.map(|generation| match &generation.ticket {
            Some(chain) => behind(chain.epoch(), self.oldest_epoch(now), self.rotate.as_secs()),
            None if self.is_route_part() => {
                behind(generation.route.epoch(), self.oldest_day(now), ROUTE_STEP)
            }
            None => 0,
        });
        Duration::from_secs(lags.max().unwrap_or(0))
    }

    /// How far ahead of `now` the ticket chains begin: nothing can be sealed until then. A key
    /// made, or moved, while the clock was wrong.
    #[must_use]
    pub fn lead(&self, now: Time) -> Duration {
        let chains = self.generations.iter().filter_map(|g| g.ticket.as_ref());
        let first = chains.map(Chain::epoch).max().unwrap_or(0);
        let ahead = first.saturating_sub(self.epoch(now));
        Duration::from_secs(ahead.saturating_mul(self.rotate.as_secs()))
    }

    /// Moves every chain forward to the oldest epoch that is still needed, forgetting what lies
    /// before, and drops what has ended. Returns whether anything changed.
    ///
    /// `now` has to be beyond doubt: what is forgotten does not come back. Further than
    /// [`MAX_CATCH_UP`] nothing moves.
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

    /// The time that the key says it was, by a clock that was not trusted alone, when it was made or last
    /// moved forward: the beginning of an epoch.
    #[must_use]
    pub fn as_of(&self) -> Time {
        self.start_of(self.stands_at().saturating_add(self.lifetime_epochs() + 1))
    }

    /// By how much `now` is behind a clock that has made or moved the key, where that is more than two servers
    /// have to allow for that are an epoch off in opposite directions. One of the clocks is wrong.
    #[must_use]
    pub fn clock_behind(&self, now: Time) -> Option<Duration> {
        let behind = self.as_of().since(now);
        (behind > self.rotate * 2).then_some(behind)
    }

    /// The latest time up to `now` for which the key can be moved forward without forgetting more than so
    /// many epochs that it has.
    #[must_use]
    pub fn within(&self, now: Time, epochs: u64) -> Time {
        let epoch = self.epoch(self.as_of()).saturating_add(epochs);
        now.min(self.start_of(epoch))
    }

    fn start_of(&self, epoch: u64) -> Time {
        let secs = epoch.saturating_mul(self.rotate.as_secs());
        Time::from_unix_millis(secs.saturating_mul(1000))
    }

    /// What tells keys apart and gives nothing away: 8 bytes, derived one way from a chain's
    /// secret at an epoch. Servers whose chains stand at different epochs agree on it. `None`
    /// where the chain has left that epoch behind.
    #[must_use]
    pub fn fingerprint(&self, chain: &Chain, epoch: u64) -> Option<[u8; 8]> {
        let mut chain = chain.clone();
        chain.move_to(epoch);
        let info: [&[u8]; 3] = [
            b"sessile1 fingerprint",
            self.scope.as_bytes(),
            &epoch.to_be_bytes(),
        ];
        let print = || chain.secret().expand(&info);
        (chain.epoch() == epoch).then(|| *print().expose().first_chunk().expect("32 bytes"))
    }
}
