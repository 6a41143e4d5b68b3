//! Searches for the age at which a server refuses its sessions: rounds of tries at evenly spaced ages, between the
//! oldest session that resumed and the youngest that was refused.

use std::time::Duration;

/// A search for one kind of session of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgeSearch {
    max: Duration,
    within: Duration,
    kept: Duration,
    refused: Option<Duration>,
    is_stuck: bool,
}

/// What a search has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundAge {
    /// No session was refused.
    NotReached {
        /// The largest age at which a session resumed.
        kept: Duration,
    },
    /// The age is between the two ages.
    Between {
        /// The largest age at which a session resumed. Zero: none did.
        kept: Duration,
        /// The smallest age at which a session was refused.
        refused: Duration,
    },
    /// A session was refused, and an older one resumed. Refusals do not depend on the age alone.
    Contradictory {
        /// The age of the session that resumed.
        kept: Duration,
        /// The age of the session that was refused.
        refused: Duration,
    },
}

impl AgeSearch {
    /// The number of sessions that wait at the same time in one round.
    pub const TRIES: u32 = 8;

    /// Searches for an age up to `max`, until it is known to `within`.
    #[must_use]
    pub const fn new(max: Duration, within: Duration) -> Self {
        Self {
            max,
            within,
            kept: Duration::ZERO,
            refused: None,
            is_stuck: false,
        }
    }

    /// The largest age that is tried.
    #[must_use]
    pub const fn max(&self) -> Duration {
        self.max
    }

    /// The ages of the next round, in ascending order. Empty if the search has ended.
    #[must_use]
    pub fn round(&self) -> Vec<Duration> {
        if self.is_stuck || self.kept >= self.max {
            return Vec::new();
        }
        let (end, has_end) = match self.refused {
            Some(refused) => (refused, true),
            None => (self.max, false),
        };
        let Some(span) = end.checked_sub(self.kept).filter(|span| !span.is_zero()) else {
            return Vec::new();
        };
        if !has_end && !self.kept.is_zero() && span <= self.within {
            return Vec::new();
        }
        let parts = span.as_nanos().div_ceil(self.within.as_nanos().max(1));
        // The end is already known if a session was refused there.
        let most = Self::TRIES + u32::from(has_end);
        let parts = u32::try_from(parts).unwrap_or(u32::MAX).min(most);
        let inner = if has_end { parts - 1 } else { parts };
        let age = |part| match part {
            part if part == parts => end,
            part => self.kept + span / parts * part,
        };
        (1..=inner).map(age).collect()
    }

    /// Records the answers of a round: the age of each session, and whether it resumed. The search ends if there is
    /// no answer.
    pub fn record(&mut self, answers: &[(Duration, bool)]) {
        let before = self.clone();
        for &(age, resumed) in answers {
            if resumed {
                self.kept = self.kept.max(age);
            } else {
                self.refused = Some(self.refused.map_or(age, |known| known.min(age)));
            }
        }
        self.is_stuck = *self == before;
    }

    /// What is known so far. `None` if no session was tried.
    #[must_use]
    pub fn found(&self) -> Option<FoundAge> {
        let kept = self.kept;
        match self.refused {
            Some(refused) if refused <= kept => Some(FoundAge::Contradictory { kept, refused }),
            Some(refused) => Some(FoundAge::Between { kept, refused }),
            None if kept.is_zero() => None,
            None => Some(FoundAge::NotReached { kept }),
        }
    }

    /// The largest number of rounds for these limits.
    #[must_use]
    pub fn most_rounds(max: Duration, within: Duration) -> u32 {
        let mut search = Self::new(max, within);
        let mut rounds = 0;
        // The search takes longest if the youngest session of each round is refused.
        while let Some(&youngest) = search.round().first() {
            search.record(&[(youngest, false)]);
            rounds += 1;
        }
        rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Searches at a server that keeps sessions for less than `lifetime`. Returns the rounds, too.
    fn search(lifetime: Duration, max: Duration, within: Duration) -> (Option<FoundAge>, u32) {
        let mut search = AgeSearch::new(max, within);
        let mut rounds = 0;
        loop {
            let ages = search.round();
            if ages.is_empty() {
                return (search.found(), rounds);
            }
            assert!(ages.len() <= 8 && ages.is_sorted(), "{ages:?}");
            assert!(ages.iter().all(|age| *age <= max && !age.is_zero()));
            rounds += 1;
            let answers: Vec<_> = ages.into_iter().map(|age| (age, age < lifetime)).collect();
            search.record(&answers);
        }
    }

    #[test]
    fn every_lifetime_is_found_within_the_bound() {
        let most = AgeSearch::most_rounds(secs(600), secs(10));
        assert_eq!(most, 2);
        for lifetime in 1..=600 {
            let (found, rounds) = search(secs(lifetime), secs(600), secs(10));
            let Some(FoundAge::Between { kept, refused }) = found else {
                panic!("{lifetime}: {found:?}");
            };
            assert!(kept < secs(lifetime) && secs(lifetime) <= refused);
            assert!(
                refused - kept <= secs(10),
                "{lifetime}: {kept:?} to {refused:?}"
            );
            assert!(rounds <= most);
        }
    }

    #[test]
    fn one_round_is_enough_if_the_bound_is_wide_or_nothing_is_refused() {
        assert_eq!(
            search(secs(601), secs(600), secs(1)),
            (Some(FoundAge::NotReached { kept: secs(600) }), 1)
        );
        let (found, rounds) = search(secs(1), secs(600), secs(600));
        let (kept, refused) = (Duration::ZERO, secs(600));
        assert_eq!(found, Some(FoundAge::Between { kept, refused }));
        assert_eq!(rounds, 1);
    }

    #[test]
    fn an_older_session_that_resumes_ends_the_search() {
        let mut search = AgeSearch::new(secs(80), secs(1));
        search.record(&[(secs(10), false), (secs(20), true)]);
        let (kept, refused) = (secs(20), secs(10));
        assert_eq!(
            search.found(),
            Some(FoundAge::Contradictory { kept, refused })
        );
        assert_eq!(search.round(), []);
    }

    #[test]
    fn ages_without_an_answer_end_the_search_within_the_bound() {
        let mut search = AgeSearch::new(secs(80), secs(10));
        let answers: Vec<_> = search.round().into_iter().map(|age| (age, true)).collect();
        search.record(&answers[..7]);
        assert_eq!(search.round(), []);
        let kept = secs(70);
        assert_eq!(search.found(), Some(FoundAge::NotReached { kept }));
    }

    #[test]
    fn a_round_without_answers_ends_the_search() {
        let mut search = AgeSearch::new(secs(80), secs(1));
        assert_eq!(search.found(), None);
        search.record(&[]);
        assert_eq!(search.round(), []);
        assert_eq!(search.found(), None);
    }

    #[test]
    fn no_limits_lead_to_endless_rounds() {
        for (max, within) in [
            (Duration::ZERO, Duration::ZERO),
            (secs(1), Duration::ZERO),
            (Duration::MAX, secs(1)),
            (Duration::from_nanos(1), secs(1)),
        ] {
            assert!(AgeSearch::most_rounds(max, within) < 40, "{max:?}");
        }
    }
}
