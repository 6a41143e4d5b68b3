//! The cliff: the age beyond which a server refuses the sessions that it made. Below it they
//! resume, above it they do not; where it stands, and by which clock, tells the cause. Nothing is
//! said of a server whose refusals have no such edge.

use std::fmt;
use std::time::Duration;

/// Offers of each outcome that it takes to see a cliff.
const ENOUGH: u32 = 8;

/// Of a hundred offers on either side of the edge, at least so many have to agree with it.
const AGREEING: u32 = 90;

/// Offers that are remembered of each clock; beyond that all counts are halved, so that what a
/// server does now weighs more than what it did.
const REMEMBERED: u32 = 2048;

/// Ages in steps of a quarter of an octave, from 64 ms on.
const UNIT: u32 = 6;

/// Buckets for ages of up to 49 days.
const BUCKETS: usize = 104;

/// A session that was offered to the server that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Since a connection last used the session.
    pub idle: Duration,
    /// Since the session was first seen: since its full handshake.
    pub age: Duration,
    /// Whether the server resumed it.
    pub accepted: bool,
}

/// What one server did with the sessions that it was offered, by their age.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    idle: Histogram,
    age: Histogram,
}

/// From where on a server refuses its own sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cliff {
    /// The greatest age at which sessions were still resumed.
    pub kept: Duration,
    /// The least age from which on they were refused.
    pub lost: Duration,
    /// Counted from when.
    pub since: Since,
}

/// Which clock a cliff goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Since {
    /// The session's last use: something clears away what is idle.
    LastUse,
    /// The full handshake: a lifetime, or a table that is too small for the load.
    FullHandshake,
    /// The two cannot be told apart: sessions come back once, or always after the same time.
    Either,
}

impl Ages {
    /// Takes note of one offer.
    pub fn record(&mut self, offer: Offer) {
        self.idle.record(offer.idle, offer.accepted);
        self.age.record(offer.age, offer.accepted);
    }

    /// The cliff, where there is one.
    #[must_use]
    pub fn cliff(&self) -> Option<Cliff> {
        let idle = self.idle.edge();
        let age = self.age.edge();
        let (edge, since) = match (idle, age) {
            (Some(idle), Some(age)) => {
                // A clock that is not the server's own puts some offers on the wrong side.
                let clear = ENOUGH / 2;
                if idle.wrong + clear <= age.wrong {
                    (idle, Since::LastUse)
                } else if age.wrong + clear <= idle.wrong {
                    (age, Since::FullHandshake)
                } else {
                    (idle, Since::Either)
                }
            }
            (Some(idle), None) => (idle, Since::LastUse),
            (None, Some(age)) => (age, Since::FullHandshake),
            (None, None) => return None,
        };
        Some(Cliff {
            kept: edge.kept,
            lost: edge.lost,
            since,
        })
    }
}

impl Cliff {
    /// Where the edge is, as well as it is known: the middle of what was seen on either side.
    #[must_use]
    pub fn after(&self) -> Duration {
        let (kept, lost) = (self.kept.min(self.lost), self.kept.max(self.lost));
        kept + (lost - kept) / 2
    }

    /// Whether it is short of a lifetime, by more than what it cannot be known to.
    #[must_use]
    pub fn is_short_of(&self, lifetime: Duration) -> bool {
        self.lost + self.lost / 10 < lifetime
    }
}

impl fmt::Display for Cliff {
    /// `about 300 s`, or `between 10 s and 400 s` where no more is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let near = self.kept + self.kept / 4 >= self.lost;
        match near {
            true => write!(f, "about {}", Seconds(self.after())),
            false => write!(
                f,
                "between {} and {}",
                Seconds(self.kept),
                Seconds(self.lost)
            ),
        }
    }
}

/// A duration in seconds, with a decimal place where it is short.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 < Duration::from_secs(10) {
            true => write!(f, "{:.1} s", self.0.as_secs_f64()),
            false => write!(f, "{} s", (self.0 + Duration::from_millis(500)).as_secs()),
        }
    }
}

/// Offers by age.
#[derive(Clone, Debug)]
struct Histogram {
    buckets: Box<[Bucket; BUCKETS]>,
    offers: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    accepted: u32,
    refused: u32,
    /// The greatest age that was accepted, milliseconds.
    most_accepted: u32,
    /// The least age that was refused, milliseconds.
    least_refused: u32,
}

/// An age that divides what is accepted from what is refused.
#[derive(Clone, Copy, Debug)]
struct Edge {
    kept: Duration,
    lost: Duration,
    /// Offers that are on the wrong side of it.
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
        if self.offers >= REMEMBERED {
            self.fade();
        }
        self.offers += 1;
        let millis = u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
        let bucket = &mut self.buckets[bucket_of(millis)];
        if accepted {
            bucket.accepted += 1;
            bucket.most_accepted = bucket.most_accepted.max(millis);
        } else {
            let least = match bucket.refused {
                0 => millis,
                _ => bucket.least_refused.min(millis),
            };
            bucket.refused += 1;
            bucket.least_refused = least;
        }
    }

    fn fade(&mut self) {
        self.offers = 0;
        for bucket in &mut *self.buckets {
            bucket.accepted /= 2;
            bucket.refused /= 2;
            if bucket.accepted == 0 {
                bucket.most_accepted = 0;
            }
            self.offers += bucket.accepted + bucket.refused;
        }
    }

    /// The edge with the fewest offers on its wrong side, where nearly all agree with it.
    fn edge(&self) -> Option<Edge> {
        let refused: u32 = self.buckets.iter().map(|bucket| bucket.refused).sum();
        let accepted: u32 = self.buckets.iter().map(|bucket| bucket.accepted).sum();
        let (mut accepted_below, mut refused_below) = (0, 0);
        let mut best: Option<(u32, usize)> = None;
        // An edge goes through a bucket: what it holds counts for neither side.
        for (at, bucket) in self.buckets.iter().enumerate() {
            let accepted_above = accepted - accepted_below - bucket.accepted;
            let refused_above = refused - refused_below - bucket.refused;
            let enough = accepted_below + bucket.accepted >= ENOUGH
                && refused_above + bucket.refused >= ENOUGH;
            if enough
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
        let kept = self.buckets[..=at].iter().rev().find(|b| b.accepted > 0)?;
        let lost = self.buckets[at..].iter().find(|b| b.refused > 0)?;
        Some(Edge {
            kept: Duration::from_millis(kept.most_accepted.into()),
            lost: Duration::from_millis(lost.least_refused.into()),
            wrong,
        })
    }
}

impl Bucket {
    /// Offers in it that no edge through it can account for.
    fn disagreeing(&self) -> u32 {
        let mixed = self.accepted > 0 && self.refused > 0;
        match mixed && self.most_accepted > self.least_refused {
            true => self.accepted.min(self.refused),
            false => 0,
        }
    }
}

/// Whether as good as all are of one kind; none at all are.
fn agree(these: u32, others: u32) -> bool {
    these * (100 - AGREEING) >= others * AGREEING
}

/// Four buckets to the octave.
fn bucket_of(millis: u32) -> usize {
    let units = millis >> UNIT;
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

    /// A server that forgets what `forgets` says, asked about sessions of these idle times and ages.
    fn server(
        forgets: impl Fn(u64, u64) -> bool,
        offers: impl Iterator<Item = (u64, u64)>,
    ) -> Ages {
        let mut ages = Ages::default();
        for (idle, age) in offers {
            ages.record(Offer {
                idle: secs(idle),
                age: secs(age),
                accepted: !forgets(idle, age),
            });
        }
        ages
    }

    /// Sessions that come back at all idle times up to 700 s, and were used for up to ten times that.
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
        let cliff = server(|idle, _| idle >= 300, mixed()).cliff().unwrap();
        assert_eq!(cliff.since, Since::LastUse);
        assert!((290..310).contains(&cliff.after().as_secs()), "{cliff:?}");
        assert_eq!(
            cliff.to_string(),
            format!("about {} s", cliff.after().as_secs_f64().round())
        );

        let cliff = server(|_, age| age >= 3600, mixed()).cliff().unwrap();
        assert_eq!(cliff.since, Since::FullHandshake);
        assert!((3400..3800).contains(&cliff.after().as_secs()), "{cliff:?}");
    }

    #[test]
    fn sessions_that_come_back_once_do_not_tell_the_clock() {
        let once = (0..100).map(|n| (n * 7, n * 7));
        let cliff = server(|idle, _| idle >= 300, once).cliff().unwrap();
        assert_eq!(cliff.since, Since::Either);
    }

    #[test]
    fn no_cliff_is_seen_where_there_is_none() {
        assert_eq!(Ages::default().cliff(), None);
        let all = server(|_, _| true, mixed());
        assert_eq!(all.cliff(), None);
        let none = server(|_, _| false, mixed());
        assert_eq!(none.cliff(), None);
        // Two of three servers without a common key, asked in turn.
        let by_chance = server(|idle, age| (idle * 31 + age) % 3 > 0, mixed());
        assert_eq!(by_chance.cliff(), None);
        // A handful of refusals is none.
        let few = server(|idle, _| idle >= 300, mixed().take(12));
        assert_eq!(few.cliff(), None);
    }

    #[test]
    fn a_few_refusals_for_other_reasons_do_not_hide_it() {
        let cliff = server(|idle, age| idle >= 300 || age % 40 == 7, mixed());
        assert_eq!(cliff.cliff().unwrap().since, Since::LastUse);
    }

    #[test]
    fn a_wide_gap_is_said_as_one() {
        let offers = (0..20).map(|n| (if n % 2 == 0 { 10 } else { 400 }, 400 + n));
        let cliff = server(|idle, _| idle >= 300, offers).cliff().unwrap();
        assert_eq!(cliff.to_string(), "between 10 s and 400 s");
        assert!(cliff.is_short_of(secs(36_000)));
        assert!(!cliff.is_short_of(secs(400)));
    }

    #[test]
    fn a_cliff_that_was_mended_is_forgotten() {
        let mut ages = server(|idle, _| idle >= 300, mixed());
        for _ in 0..30 {
            for (idle, age) in mixed() {
                let (idle, age) = (secs(idle), secs(age));
                ages.record(Offer {
                    idle,
                    age,
                    accepted: true,
                });
            }
        }
        assert_eq!(ages.cliff(), None);
    }

    proptest! {
        #[test]
        fn wherever_an_idle_purge_is_it_is_found(
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
            let cliff = server(|idle, _| idle >= edge, offers.into_iter()).cliff().unwrap();
            prop_assert_eq!(cliff.since, Since::LastUse);
            prop_assert!(cliff.kept < cliff.lost);
            prop_assert!(cliff.kept < secs(edge) && cliff.lost >= secs(edge));
        }

        #[test]
        fn nothing_that_is_recorded_panics(
            offers in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..3000),
        ) {
            let mut ages = Ages::default();
            for (idle, age, accepted) in offers {
                ages.record(Offer {
                    idle: Duration::from_millis(idle),
                    age: Duration::from_millis(age),
                    accepted,
                });
            }
            if let Some(cliff) = ages.cliff() {
                let _ = (cliff.after(), cliff.to_string());
            }
        }
    }
}
