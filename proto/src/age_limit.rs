//! Finds the age limit of a server: the age above which the server refuses its own sessions.
//!
//! The limit, and the event from which the server counts the age, tell the cause. A server that refuses
//! sessions of any age has no age limit.

use std::fmt;
use std::time::Duration;

/// An age limit is shown by at least this many accepted offers and at least as many refused offers.
const MIN_OFFERS: u32 = 8;

/// At least this percentage of the offers on each side of the limit must agree with the limit.
const MIN_AGREEING: u32 = 90;

/// Most offers in a histogram. A full histogram halves all counts, so that recent offers weigh more.
const MAX_OFFERS: u32 = 2048;

/// Ages below 2^6 ms (64 ms) are not distinguished.
const UNIT_BITS: u32 = 6;

/// Enough buckets for ages of up to 49 days, four for each doubling of the age.
const BUCKETS: usize = 104;

/// A session that was offered to the server that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgedOffer {
    /// The time since a connection last used the session.
    pub idle: Duration,
    /// The time since the session's full handshake.
    pub age: Duration,
    /// True if the server resumed the session.
    pub accepted: bool,
}

/// The offers that one server accepted and refused, by idle time and by age.
#[derive(Clone, Debug, Default)]
pub struct OfferAges {
    idle: Histogram,
    age: Histogram,
}

/// The age above which a server refuses its own sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgeLimit {
    /// The longest age below the limit at which a session was resumed.
    pub longest_accepted: Duration,
    /// The shortest age above the limit at which a session was refused.
    pub shortest_refused: Duration,
    /// The event from which the server counts the age.
    pub counted_from: CountedFrom,
}

/// The event from which a server counts a session's age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CountedFrom {
    /// The session's last use: the server removes idle sessions.
    LastUse,
    /// The full handshake: the server has a lifetime, or a table that is too small for the load.
    FullHandshake,
    /// The offers fit both events: sessions come back only once, or always after the same time.
    Unclear,
}

impl OfferAges {
    /// Records one offer.
    pub fn record(&mut self, offer: AgedOffer) {
        self.idle.record(offer.idle, offer.accepted);
        self.age.record(offer.age, offer.accepted);
    }

    /// The age limit, if the offers show one.
    #[must_use]
    pub fn age_limit(&self) -> Option<AgeLimit> {
        let (edge, counted_from) = match (self.idle.edge(), self.age.edge()) {
            (Some(idle), Some(age)) => clearer(idle, age),
            (Some(idle), None) => (idle, CountedFrom::LastUse),
            (None, Some(age)) => (age, CountedFrom::FullHandshake),
            (None, None) => return None,
        };
        Some(AgeLimit {
            longest_accepted: edge.longest_accepted,
            shortest_refused: edge.shortest_refused,
            counted_from,
        })
    }
}

impl AgeLimit {
    /// The age halfway between the longest accepted age and the shortest refused age.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let below = self.longest_accepted.min(self.shortest_refused);
        let above = self.longest_accepted.max(self.shortest_refused);
        below + (above - below) / 2
    }

    /// True if the age limit is clearly below the announced lifetime (10 % margin).
    #[must_use]
    pub fn is_short_of(&self, lifetime: Duration) -> bool {
        self.shortest_refused + self.shortest_refused / 10 < lifetime
    }
}

impl fmt::Display for AgeLimit {
    /// `about 300 s`. `between 10 s and 400 s` if the longest accepted age is far from the shortest refused
    /// age.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.longest_accepted + self.longest_accepted / 4 >= self.shortest_refused {
            write!(f, "about {}", Seconds(self.estimate()))
        } else {
            write!(
                f,
                "between {} and {}",
                Seconds(self.longest_accepted),
                Seconds(self.shortest_refused)
            )
        }
    }
}

/// A duration in seconds, with a decimal place below ten seconds.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < Duration::from_secs(10) {
            write!(f, "{:.1} s", self.0.as_secs_f64())
        } else {
            write!(f, "{} s", (self.0 + Duration::from_millis(500)).as_secs())
        }
    }
}

/// Offers by idle time, or by the time since the full handshake.
#[derive(Clone, Debug)]
struct Histogram {
    buckets: Box<[Bucket; BUCKETS]>,
    offers: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    accepted: u32,
    refused: u32,
    /// The longest accepted age, in milliseconds.
    longest_accepted: u32,
    /// The shortest refused age, in milliseconds.
    shortest_refused: u32,
}

/// An age that divides accepted from refused offers.
#[derive(Clone, Copy, Debug)]
struct Edge {
    longest_accepted: Duration,
    shortest_refused: Duration,
    /// Offers on the wrong side of the edge.
    wrong: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: Box::new([Bucket::default(); BUCKETS]),
            offers: 0,
        }
    }
}

impl Histogram {
    fn record(&mut self, age: Duration, accepted: bool) {
        if self.offers >= MAX_OFFERS {
            self.halve();
        }
        self.offers += 1;
        let millis = u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
        let bucket = &mut self.buckets[bucket_of(millis)];
        if accepted {
            bucket.accepted += 1;
            bucket.longest_accepted = bucket.longest_accepted.max(millis);
        } else {
            if bucket.refused == 0 || millis < bucket.shortest_refused {
                bucket.shortest_refused = millis;
            }
            bucket.refused += 1;
        }
    }

    fn halve(&mut self) {
        self.offers = 0;
        for bucket in &mut *self.buckets {
            bucket.accepted /= 2;
            bucket.refused /= 2;
            if bucket.accepted == 0 {
                bucket.longest_accepted = 0;
            }
            self.offers += bucket.accepted + bucket.refused;
        }
    }

    /// The edge with the fewest offers on the wrong side, if nearly all offers agree with it.
    fn edge(&self) -> Option<Edge> {
        let refused: u32 = self.buckets.iter().map(|bucket| bucket.refused).sum();
        let accepted: u32 = self.buckets.iter().map(|bucket| bucket.accepted).sum();
        let mut accepted_below = 0;
        let mut refused_below = 0;
        let mut best: Option<(u32, usize)> = None;
        // An edge goes through a bucket: the offers in the bucket count for neither side.
        for (at, bucket) in self.buckets.iter().enumerate() {
            let accepted_above = accepted - accepted_below - bucket.accepted;
            let refused_above = refused - refused_below - bucket.refused;
            let has_enough = accepted_below + bucket.accepted >= MIN_OFFERS
                && refused_above + bucket.refused >= MIN_OFFERS;
            if has_enough
                && agree(accepted_below, refused_below)
                && agree(refused_above, accepted_above)
            {
                let wrong = refused_below + accepted_above + bucket.disagreeing();
                if best.is_none_or(|(fewest, _)| wrong < fewest) {
                    best = Some((wrong, at));
                }
            }
            accepted_below += bucket.accepted;
            refused_below += bucket.refused;
        }
        let (wrong, at) = best?;
        let below = self.buckets[..=at].iter().rev().find(|b| b.accepted > 0)?;
        let above = self.buckets[at..].iter().find(|b| b.refused > 0)?;
        Some(Edge {
            longest_accepted: Duration::from_millis(below.longest_accepted.into()),
            shortest_refused: Duration::from_millis(above.shortest_refused.into()),
            wrong,
        })
    }
}

impl Bucket {
    /// The offers in this bucket that disagree with every edge through the bucket.
    fn disagreeing(&self) -> u32 {
        let is_mixed = self.accepted > 0 && self.refused > 0;
        if is_mixed && self.longest_accepted > self.shortest_refused {
            self.accepted.min(self.refused)
        } else {
            0
        }
    }
}

/// Chooses the edge that explains the offers better.
fn clearer(idle: Edge, age: Edge) -> (Edge, CountedFrom) {
    // A server limits the idle time or the time since the full handshake. An edge by the other time has some
    // offers on the wrong side.
    let margin = MIN_OFFERS / 2;
    if idle.wrong + margin <= age.wrong {
        (idle, CountedFrom::LastUse)
    } else if age.wrong + margin <= idle.wrong {
        (age, CountedFrom::FullHandshake)
    } else {
        (idle, CountedFrom::Unclear)
    }
}

/// True if nearly all offers on one side of an edge agree with the edge. `these` agree, and `others` do not. A
/// side without offers also agrees.
fn agree(these: u32, others: u32) -> bool {
    these * (100 - MIN_AGREEING) >= others * MIN_AGREEING
}

/// The bucket of an age: four buckets for each doubling of the age.
fn bucket_of(millis: u32) -> usize {
    let units = millis >> UNIT_BITS;
    let bucket = match units.checked_ilog2() {
        None | Some(0 | 1) => units,
        Some(octave) => (octave - 1) * 4 + (units >> (octave - 2) & 3),
    };
    bucket as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// A server that refuses a session if `forgets` is true for its idle time and age.
    fn server(
        forgets: impl Fn(u64, u64) -> bool,
        offers: impl Iterator<Item = (u64, u64)>,
    ) -> OfferAges {
        let mut ages = OfferAges::default();
        for (idle, age) in offers {
            ages.record(AgedOffer {
                idle: secs(idle),
                age: secs(age),
                accepted: !forgets(idle, age),
            });
        }
        ages
    }

    /// Sessions with idle times up to 700 s and ages up to 6,700 s.
    fn mixed() -> impl Iterator<Item = (u64, u64)> {
        (0..200).map(|n| (n * 37 % 700, n * 37 % 700 + n * 101 % 6000))
    }

    #[test]
    fn buckets_rise_with_age_and_hold_every_age() {
        let ages = (0..40_000).map(|n| n * 5).chain([u32::MAX - 1, u32::MAX]);
        let buckets: Vec<_> = ages.map(bucket_of).collect();
        assert!(buckets.is_sorted());
        assert!(buckets.iter().all(|&bucket| bucket < BUCKETS));
        assert_eq!(bucket_of(300_000), bucket_of(310_000));
        assert_ne!(bucket_of(250_000), bucket_of(300_000));
    }

    #[test]
    fn an_idle_purge_is_told_from_a_lifetime() {
        let age_limit = server(|idle, _| idle >= 300, mixed()).age_limit().unwrap();
        assert_eq!(age_limit.counted_from, CountedFrom::LastUse);
        assert!(
            (290..310).contains(&age_limit.estimate().as_secs()),
            "{age_limit:?}"
        );
        assert_eq!(
            age_limit.to_string(),
            format!("about {} s", age_limit.estimate().as_secs_f64().round())
        );

        let age_limit = server(|_, age| age >= 3600, mixed()).age_limit().unwrap();
        assert_eq!(age_limit.counted_from, CountedFrom::FullHandshake);
        assert!(
            (3400..3800).contains(&age_limit.estimate().as_secs()),
            "{age_limit:?}"
        );
    }

    #[test]
    fn sessions_that_come_back_once_do_not_tell_what_is_counted() {
        let once = (0..100).map(|n| (n * 7, n * 7));
        let age_limit = server(|idle, _| idle >= 300, once).age_limit().unwrap();
        assert_eq!(age_limit.counted_from, CountedFrom::Unclear);
    }

    #[test]
    fn no_limit_is_seen_if_there_is_none() {
        assert_eq!(OfferAges::default().age_limit(), None);
        let all = server(|_, _| true, mixed());
        assert_eq!(all.age_limit(), None);
        let none = server(|_, _| false, mixed());
        assert_eq!(none.age_limit(), None);
        // Three servers without a common key answer in turn. So two of three offers are refused.
        let by_chance = server(|idle, age| (idle * 31 + age) % 3 > 0, mixed());
        assert_eq!(by_chance.age_limit(), None);
        // A few refusals prove nothing.
        let few = server(|idle, _| idle >= 300, mixed().take(12));
        assert_eq!(few.age_limit(), None);
    }

    #[test]
    fn a_few_refusals_for_other_reasons_do_not_hide_a_limit() {
        let age_limit = server(|idle, age| idle >= 300 || age % 40 == 7, mixed());
        assert_eq!(
            age_limit.age_limit().unwrap().counted_from,
            CountedFrom::LastUse
        );
    }

    #[test]
    fn a_wide_gap_is_reported_as_such() {
        let offers = (0..20).map(|n| (if n % 2 == 0 { 10 } else { 400 }, 400 + n));
        let age_limit = server(|idle, _| idle >= 300, offers).age_limit().unwrap();
        assert_eq!(age_limit.to_string(), "between 10 s and 400 s");
        assert!(age_limit.is_short_of(secs(36_000)));
        assert!(!age_limit.is_short_of(secs(400)));
    }

    #[test]
    fn a_limit_that_was_lifted_is_forgotten() {
        let mut ages = server(|idle, _| idle >= 300, mixed());
        for _ in 0..30 {
            for (idle, age) in mixed() {
                let (idle, age) = (secs(idle), secs(age));
                ages.record(AgedOffer {
                    idle,
                    age,
                    accepted: true,
                });
            }
        }
        assert_eq!(ages.age_limit(), None);
    }

    proptest! {
        #[test]
        fn an_idle_limit_is_found_at_any_age(
            edge in 2..5000_u64,
            seed in any::<u64>(),
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state >> 33
            };
            let offers: Vec<_> = (0..300)
                .map(|_| {
                    let idle = next() % (2 * edge);
                    (idle, idle + next() % (20 * edge))
                })
                .collect();
            let age_limit = server(|idle, _| idle >= edge, offers.into_iter()).age_limit().unwrap();
            prop_assert_eq!(age_limit.counted_from, CountedFrom::LastUse);
            prop_assert!(age_limit.longest_accepted < age_limit.shortest_refused);
            prop_assert!(age_limit.longest_accepted < secs(edge) && age_limit.shortest_refused >= secs(edge));
        }

        #[test]
        fn nothing_that_is_recorded_panics(
            offers in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..3000),
        ) {
            let mut ages = OfferAges::default();
            for (idle, age, accepted) in offers {
                ages.record(AgedOffer {
                    idle: Duration::from_millis(idle),
                    age: Duration::from_millis(age),
                    accepted,
                });
            }
            if let Some(age_limit) = ages.age_limit() {
                let _ = (age_limit.estimate(), age_limit.to_string());
            }
        }
    }
}
