//! Generations of a farm key. A new generation is a new secret: servers accept it before they seal with it.
//! After a theft, a new generation replaces all others at once.

use std::time::Duration;

use super::{Chain, FarmKey, MAX_ACCEPTED, MAX_GENERATIONS, Secret};
use crate::Time;

/// Two chains from independent secrets.
#[derive(Clone)]
pub struct Generation {
    /// 0 to 15, unique in the key. A label holds this number.
    pub number: u8,
    /// When this generation begins to seal, in seconds since the Unix epoch. `None`: not decided.
    pub activates: Option<u64>,
    /// When its tickets stop being accepted, in seconds since the Unix epoch. `None`: not planned.
    pub ends: Option<u64>,
    /// The ticket chain, at the oldest epoch kept. A step is one `rotate`.
    ///
    /// `None` in a balancer's part, and if the generation has ended.
    pub ticket: Option<Chain>,
    /// The route chain, at the oldest day kept.
    pub route: Chain,
}

/// How servers use a generation at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationStatus {
    /// Tickets are accepted; none is sealed yet.
    Waiting,
    /// New tickets are sealed under this generation.
    Sealing,
    /// Tickets are accepted; none is sealed any more.
    Outgoing,
    /// Tickets are refused. The number stays known, so that these tickets are not taken for another farm's.
    Ended,
}

/// Why the generations cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotRotate {
    /// This generation was added and does not seal yet.
    #[error("generation {0} is accepted already and waits for its activation")]
    Waiting(u8),
    /// This generation is still accepted beside the present generation, until this many seconds after the
    /// Unix epoch.
    #[error(
        "tickets of generation {0} are still accepted, and at most {MAX_ACCEPTED} generations can be accepted at \
         once"
    )]
    Outgoing(u8, u64),
    /// All sixteen numbers are in use.
    #[error(
        "it has {MAX_GENERATIONS} generations, the maximum; a server drops ended generations from its file, so take \
         a server's copy"
    )]
    Full,
    /// No generation waits to be activated.
    #[error("no generation waits for its activation")]
    NothingWaits,
    /// The clock that moved the key forward is this far ahead of the present clock.
    ///
    /// If the present clock is wrong, a planned end would come too early.
    #[error(
        "a clock that is {} minutes ahead of this machine's moved the key forward. If this machine's clock is behind, \
         the generation in use would end too early", .0.as_secs() / 60
    )]
    ClockBehind(Duration),
}

impl FarmKey {
    /// How servers use `generation` at `now`.
    #[must_use]
    pub fn status(&self, generation: &Generation, now: Time) -> GenerationStatus {
        let is_same = |other: &Generation| other.number == generation.number;
        if !accepted(self, now).any(is_same) {
            GenerationStatus::Ended
        } else if sealing(self, now).is_some_and(is_same) {
            GenerationStatus::Sealing
        } else if is_active(generation, now) {
            GenerationStatus::Outgoing
        } else {
            GenerationStatus::Waiting
        }
    }

    /// Adds a generation that is accepted from now on. Returns its number.
    ///
    /// The generation seals from `activates` on, or once [`Self::activate`] is called.
    ///
    /// # Errors
    /// If another generation waits, too many are accepted, or no number is free.
    pub fn add_generation(
        &mut self,
        secrets: [Secret; 2],
        activates: Option<Time>,
        now: Time,
    ) -> Result<u8, CannotRotate> {
        if let Some(waiting) = self.waiting(now) {
            return Err(CannotRotate::Waiting(waiting));
        }
        let accepted: Vec<&Generation> = accepted(self, now).collect();
        if let Some(oldest) = accepted.first()
            && accepted.len() >= MAX_ACCEPTED
        {
            let until = oldest.ends.unwrap_or(u64::MAX);
            return Err(CannotRotate::Outgoing(oldest.number, until));
        }
        let number = self.push(secrets, now)?;
        if let Some(at) = activates {
            self.activate(at, now)?;
        }
        Ok(number)
    }

    /// Makes the waiting generation seal from `at` on. Returns its number.
    ///
    /// The other generations end once no ticket that was sealed under them can be live.
    ///
    /// # Errors
    /// If no generation waits, or the clock is behind the key.
    pub fn activate(&mut self, at: Time, now: Time) -> Result<u8, CannotRotate> {
        if let Some(behind) = self.clock_behind(now) {
            return Err(CannotRotate::ClockBehind(behind));
        }
        let number = self.waiting(now).ok_or(CannotRotate::NothingWaits)?;
        // A server whose clock is behind seals under the old generation for another epoch.
        let last = at.plus(self.max_lifetime).plus(self.rotate * 2).unix_secs();
        for generation in &mut self.generations {
            if generation.number == number {
                generation.activates = Some(at.unix_secs());
            } else if generation.ends.is_none_or(|ends| now.unix_secs() < ends) {
                generation.ends = Some(last);
            }
        }
        Ok(number)
    }

    /// Adds a generation that seals at once, and ends all others at once. Returns the new number.
    ///
    /// # Errors
    /// If no number is free.
    pub fn replace(&mut self, secrets: [Secret; 2], now: Time) -> Result<u8, CannotRotate> {
        let number = self.push(secrets, now)?;
        for generation in &mut self.generations {
            if generation.number == number {
                generation.activates = Some(0);
            } else {
                let ends = generation.ends.unwrap_or(u64::MAX).min(now.unix_secs());
                generation.ends = Some(ends);
                // Without a ticket chain, the generation has ended for every server, even for one with a
                // slow clock.
                generation.ticket = None;
            }
        }
        Ok(number)
    }

    /// Drops the ticket chains of ended generations, and generations that ended a lifetime ago.
    /// Returns whether the key changed.
    pub(super) fn retire(&mut self, now: Time) -> bool {
        let before = self.generations.len();
        let lifetime = self.max_lifetime.as_secs();
        self.generations
            .retain(|generation| !is_over(generation, lifetime, now));
        let mut changed = self.generations.len() != before;
        if !self.is_route_part() {
            for generation in &mut self.generations {
                let ended = generation.ends.is_some_and(|ends| ends <= now.unix_secs());
                changed |= ended && generation.ticket.take().is_some();
            }
        }
        changed
    }

    fn waiting(&self, now: Time) -> Option<u8> {
        accepted(self, now)
            .find(|generation| !is_active(generation, now))
            .map(|generation| generation.number)
    }

    /// Appends a generation under the next free number.
    fn push(&mut self, secrets: [Secret; 2], now: Time) -> Result<u8, CannotRotate> {
        // A wrong clock must not drop a generation, so use the time that the key itself tells.
        self.retire(self.within(now, 1));
        let is_taken = |number: u8| self.generations.iter().any(|g| g.number == number);
        let newest = self.generations.last().map_or(0, |g| g.number);
        let number = (1..=MAX_GENERATIONS as u8)
            .map(|step| (newest + step) % MAX_GENERATIONS as u8)
            .find(|&number| !is_taken(number))
            .ok_or(CannotRotate::Full)?;
        let [ticket, route] = secrets;
        // The new chains begin at the epoch of the other chains: the servers agree on that epoch without a
        // clock.
        let day = self.generations.iter().map(|g| g.route.epoch()).max();
        self.generations.push(Generation {
            number,
            activates: None,
            ends: None,
            ticket: Some(Chain::new(self.stands_at(), ticket)),
            route: Chain::new(day.unwrap_or(0), route),
        });
        Ok(number)
    }

    /// The ticket epoch at which the key stands.
    pub(super) fn stands_at(&self) -> u64 {
        self.ticket_chains().map(Chain::epoch).max().unwrap_or(0)
    }
}

/// The generations whose tickets are accepted at `now`.
pub(super) fn accepted(key: &FarmKey, now: Time) -> impl Iterator<Item = &Generation> {
    let is_route_part = key.is_route_part();
    key.generations.iter().filter(move |generation| {
        // `replace` takes the ticket chain away. So the generation has ended even for a server with a slow
        // clock.
        let can_open = is_route_part || generation.ticket.is_some();
        can_open && generation.ends.is_none_or(|ends| now.unix_secs() < ends)
    })
}

/// The generation that was activated last.
pub(super) fn sealing(key: &FarmKey, now: Time) -> Option<&Generation> {
    accepted(key, now)
        .filter(|generation| is_active(generation, now))
        .max_by_key(|generation| generation.activates)
}

fn is_active(generation: &Generation, now: Time) -> bool {
    generation.activates.is_some_and(|at| at <= now.unix_secs())
}

/// True if a generation ended a lifetime ago or earlier: no client can offer a live ticket of it.
pub(super) fn is_over(generation: &Generation, lifetime: u64, now: Time) -> bool {
    generation
        .ends
        .is_some_and(|ends| ends.saturating_add(lifetime) <= now.unix_secs())
}

#[cfg(test)]
pub(in crate::keys) mod tests;
