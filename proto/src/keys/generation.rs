//! Generations of a farm key: a new secret that is accepted before it seals, takes over when every
//! server has it, or stands in at once for one that was stolen.

use std::time::Duration;

use super::{Chain, FarmKey, MAX_ACCEPTED, MAX_GENERATIONS, Secret};
use crate::Time;

/// Two chains from independent secrets. A new generation is a new secret for both.
#[derive(Clone)]
pub struct Generation {
    /// 0 to 15, unique in the key; what a label names.
    pub number: u8,
    /// When this generation begins to seal, seconds since the Unix epoch; `None`: not decided.
    pub activates: Option<u64>,
    /// When its tickets stop being accepted, seconds since the Unix epoch; `None`: not planned.
    pub ends: Option<u64>,
    /// The ticket chain, at the oldest epoch kept; its step is `rotate`. `None` in a balancer's
    /// part, and where the generation was ended for good.
    pub ticket: Option<Chain>,
    /// The route chain, at the oldest day kept.
    pub route: Chain,
}

/// What a generation is for at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Accepted, and not used yet.
    Waiting,
    /// New tickets are sealed under it.
    Sealing,
    /// Accepted, and no longer used.
    Outgoing,
    /// No longer accepted; known, so that its tickets can be told from those of strangers.
    Ended,
}

/// Why generations cannot be changed as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CannotRotate {
    /// This generation has been added and does not seal yet.
    Waiting(u8),
    /// This generation is still accepted beside the present one; until then, seconds since the
    /// Unix epoch.
    Outgoing(u8, u64),
    /// All sixteen numbers are taken.
    Full,
    /// No generation waits to be activated.
    NothingWaits,
    /// It was moved forward by a clock that is so far ahead of this one. One of them is wrong; if it is this
    /// one, what it says to end in good time would end too early.
    ClockBehind(Duration),
}

impl std::fmt::Display for CannotRotate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Waiting(number) => write!(
                f,
                "generation {number} is accepted already and waits for its activation"
            ),
            Self::Outgoing(number, _) => write!(
                f,
                "tickets of generation {number} are still accepted, and of {MAX_ACCEPTED} \
                 generations at most"
            ),
            Self::Full => write!(
                f,
                "it has {MAX_GENERATIONS} generations; those that have ended are dropped when a \
                 server moves the file forward, so take a server's copy"
            ),
            Self::NothingWaits => f.write_str("no generation waits for its activation"),
            Self::ClockBehind(span) => write!(
                f,
                "it was moved forward by a clock that is {} minutes ahead of this one. If this one is behind, \
                 the generation in use would end before its time",
                span.as_secs() / 60
            ),
        }
    }
}

impl std::error::Error for CannotRotate {}

impl FarmKey {
    /// What each generation is for at `now`.
    #[must_use]
    pub fn standing(&self, generation: &Generation, now: Time) -> Standing {
        let is = |other: &Generation| other.number == generation.number;
        if !accepted(self, now).any(is) {
            Standing::Ended
        } else if sealing(self, now).is_some_and(is) {
            Standing::Sealing
        } else if is_active(generation, now) {
            Standing::Outgoing
        } else {
            Standing::Waiting
        }
    }

    /// Adds a generation that is accepted from now on and seals from `activates`; `None`: when
    /// [`Self::activate`] says so. Returns its number.
    ///
    /// # Errors
    /// Where another one waits, too many are accepted, or no number is free.
    pub fn add_generation(
        &mut self,
        secrets: [Secret; 2],
        activates: Option<Time>,
        now: Time,
    ) -> Result<u8, CannotRotate> {
        if let Some(waiting) = self.waiting(now) {
            return Err(CannotRotate::Waiting(waiting));
        }
        let mut live = accepted(self, now);
        let outgoing = live.next().map(|g| (g.number, g.ends.unwrap_or(u64::MAX)));
        if let Some((number, until)) = outgoing.filter(|_| 1 + live.count() >= MAX_ACCEPTED) {
            return Err(CannotRotate::Outgoing(number, until));
        }
        let number = self.push(secrets, now)?;
        if let Some(at) = activates {
            self.activate(at, now)?;
        }
        Ok(number)
    }

    /// Makes the generation that waits seal from `at` on. The others end when the last ticket
    /// that a server may have sealed under them has. Returns its number.
    ///
    /// # Errors
    /// Where none waits, and where the clock is known to be behind.
    pub fn activate(&mut self, at: Time, now: Time) -> Result<u8, CannotRotate> {
        if let Some(behind) = self.clock_behind(now) {
            return Err(CannotRotate::ClockBehind(behind));
        }
        let number = self.waiting(now).ok_or(CannotRotate::NothingWaits)?;
        // A server whose clock is behind seals under the old one for an epoch more.
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

    /// Adds a generation that is used at once, and ends all others at once: their ticket chains
    /// are gone when this returns, whatever a server's clock says. Returns the new number.
    ///
    /// # Errors
    /// Where no number is free.
    pub fn replace(&mut self, secrets: [Secret; 2], now: Time) -> Result<u8, CannotRotate> {
        let number = self.push(secrets, now)?;
        for generation in &mut self.generations {
            if generation.number == number {
                generation.activates = Some(0);
            } else {
                let ends = generation.ends.unwrap_or(u64::MAX).min(now.unix_secs());
                generation.ends = Some(ends);
                generation.ticket = None;
            }
        }
        Ok(number)
    }

    /// Drops generations that ended so long ago that nobody can come back with a ticket of
    /// theirs, and the ticket chains of those that have ended. Returns whether there were any.
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
        let waits = |generation: &&Generation| !is_active(generation, now);
        accepted(self, now).find(waits).map(|g| g.number)
    }

    /// Appends a generation under the next free number. Its chains begin where the others stand:
    /// that is what the file's servers agree on, and no clock has a say in it.
    fn push(&mut self, secrets: [Secret; 2], now: Time) -> Result<u8, CannotRotate> {
        self.retire(self.borne_out(now));
        let taken = |number: u8| self.generations.iter().any(|g| g.number == number);
        let newest = self.generations.last().map_or(0, |g| g.number);
        let number = (1..=MAX_GENERATIONS as u8)
            .map(|step| (newest + step) % MAX_GENERATIONS as u8)
            .find(|&number| !taken(number))
            .ok_or(CannotRotate::Full)?;
        let [ticket, route] = secrets;
        let generations = self.generations.iter();
        let day = generations.map(|g| g.route.epoch()).max();
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
        let chains = self.generations.iter().filter_map(|g| g.ticket.as_ref());
        chains.map(Chain::epoch).max().unwrap_or(0)
    }

    /// The latest time up to `now` that the key itself bears out: it was moved to where it stands
    /// by a clock that was not trusted alone.
    fn borne_out(&self, now: Time) -> Time {
        self.within(now, 1)
    }
}

/// Generations whose tickets are accepted at `now`.
///
/// One that has an end and no ticket chain ended at once: there is nothing to accept tickets
/// with, even where the clock has not come to its end. In a balancer's part no one has any.
pub(super) fn accepted(key: &FarmKey, now: Time) -> impl Iterator<Item = &Generation> {
    let labels_only = key.is_route_part();
    key.generations.iter().filter(move |generation| {
        let in_time = generation.ends.is_none_or(|ends| now.unix_secs() < ends);
        in_time && (labels_only || generation.ticket.is_some())
    })
}

/// The generation that was activated last.
pub(super) fn sealing(key: &FarmKey, now: Time) -> Option<&Generation> {
    accepted(key, now)
        .filter(|generation| is_active(generation, now))
        .max_by_key(|generation| generation.activates)
}

fn is_active(generation: &Generation, now: Time) -> bool {
    let at = generation.activates;
    at.is_some_and(|at| at <= now.unix_secs())
}

/// Whether a generation ended a whole lifetime ago.
pub(super) fn is_over(generation: &Generation, lifetime: u64, now: Time) -> bool {
    let ends = generation.ends;
    ends.is_some_and(|ends| ends.saturating_add(lifetime) <= now.unix_secs())
}

#[cfg(test)]
pub(in crate::keys) mod tests;
