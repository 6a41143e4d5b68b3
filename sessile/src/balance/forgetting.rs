//! What a server does with the sessions that it made, by how long they were idle; and what that says
//! of the server. Only sessions that were learned are followed: a ticket of TLS 1.3 is another one
//! each time.

use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::locks::locked;
use prometheus::core::Metric;
use prometheus::{Gauge, Histogram};
use sessile_proto::age_limit::{AgeLimit, AgedOffer, CountedFrom, OfferAges};

/// Upper bounds of the histograms' buckets, in seconds. Five minutes are finer than the rest: that is
/// where IIS and many after it clear idle connections away.
pub(super) const BUCKETS: [f64; 16] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 600.0, 1800.0, 3600.0, 7200.0,
    18_000.0, 36_000.0,
];

/// A change of an age limit by less than this part of it is not reported.
const SAME: u32 = 4;

/// What one server forgets.
pub(super) struct Forgetting {
    state: Mutex<State>,
    metrics: Metrics,
}

/// What is counted of it.
pub(super) struct Metrics {
    pub(super) accepted: Histogram,
    pub(super) refused: Histogram,
    /// Seconds after which sessions are forgotten; 0: they are not.
    pub(super) after: Gauge,
}

/// Offers of sessions that were idle for about as long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Idle {
    /// In seconds; `None`: longer than all others.
    pub(super) up_to: Option<f64>,
    pub(super) offers: u64,
}

#[derive(Default)]
struct State {
    ages: OfferAges,
    /// The longest that the server meant to accept a ticket.
    announced: Option<Duration>,
    said: Option<AgeLimit>,
}

/// A server forgets sessions before their time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Diagnosis {
    pub(super) age_limit: AgeLimit,
    /// How long they should have lived.
    due: Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// As the server's own tickets say.
    Announced(Duration),
    /// As `session.lifetime` here says.
    Expected(Duration),
}

impl Forgetting {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            state: Mutex::default(),
            metrics,
        }
    }

    /// Takes note of how long the server means to accept a ticket, in seconds.
    pub(super) fn announced(&self, lifetime_hint: u32) {
        if lifetime_hint > 0 {
            let hint = Duration::from_secs(lifetime_hint.into());
            let mut state = self.state();
            state.announced = state.announced.max(Some(hint));
        }
    }

    /// Takes note of what became of an offer, and says so where that changes what is known.
    /// `lifetime`: how long sessions live where the server does not say.
    pub(super) fn record(&self, server: &str, offer: AgedOffer, lifetime: Duration) {
        let histogram = match offer.accepted {
            true => &self.metrics.accepted,
            false => &self.metrics.refused,
        };
        histogram.observe(offer.idle.as_secs_f64());
        let mut state = self.state();
        state.ages.record(offer);
        let found = state.diagnosis(lifetime);
        let age_limit = found.map(|found| found.age_limit);
        let after = age_limit.map_or(0.0, |age_limit| age_limit.estimate().as_secs_f64());
        self.metrics.after.set(after);
        let is_news = is_news(state.said, age_limit);
        if is_news {
            state.said = age_limit;
        }
        // Whoever reads the log slowly holds nobody else up.
        drop(state);
        if is_news {
            match found {
                Some(found) => tracing::warn!("{server} {found}"),
                None => {
                    tracing::info!("{server} does not forget sessions before their time any more")
                }
            }
        }
    }

    /// Offers that were accepted and refused, by how long their sessions were idle.
    pub(super) fn idle(&self) -> (Vec<Idle>, Vec<Idle>) {
        (steps(&self.metrics.accepted), steps(&self.metrics.refused))
    }

    /// What is known now.
    pub(super) fn diagnosis(&self, lifetime: Duration) -> Option<Diagnosis> {
        self.state().diagnosis(lifetime)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

impl State {
    fn diagnosis(&self, lifetime: Duration) -> Option<Diagnosis> {
        let age_limit = self.ages.age_limit()?;
        let (due, lives) = match self.announced {
            Some(announced) => (Due::Announced(announced), announced),
            None => (Due::Expected(lifetime), lifetime),
        };
        age_limit
            .is_short_of(lives)
            .then_some(Diagnosis { age_limit, due })
    }
}

/// A histogram's steps, each without those before it.
fn steps(histogram: &Histogram) -> Vec<Idle> {
    let metric = histogram.metric();
    let histogram = metric.get_histogram();
    let steps = histogram.get_bucket().iter();
    let mut ends: Vec<_> = steps
        .map(|step| (Some(step.upper_bound()), step.cumulative_count()))
        .collect();
    ends.push((None, histogram.get_sample_count()));
    let mut before = 0;
    let steps = ends.into_iter().map(|(up_to, count)| Idle {
        up_to,
        // Counted while it was read.
        offers: count.saturating_sub(std::mem::replace(&mut before, count)),
    });
    steps.collect()
}

/// Whether what is known now is worth a line beside what was said last.
fn is_news(said: Option<AgeLimit>, now: Option<AgeLimit>) -> bool {
    match (said, now) {
        (None, None) => false,
        (Some(said), Some(now)) => {
            let (before, after) = (said.estimate(), now.estimate());
            said.counted_from != now.counted_from || before.abs_diff(after) > before / SAME
        }
        _ => true,
    }
}

impl fmt::Display for Diagnosis {
    /// To be read behind the server's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age_limit = &self.age_limit;
        match age_limit.counted_from {
            CountedFrom::LastUse => write!(f, "forgets sessions after {age_limit} of idle time")?,
            CountedFrom::FullHandshake => {
                write!(f, "forgets sessions {age_limit} after their full handshake")?;
            }
            CountedFrom::Unclear => write!(
                f,
                "forgets sessions after {age_limit}, of idle time or since their full handshake"
            )?,
        }
        match self.due {
            Due::Announced(due) => write!(f, " though it announces {} s", due.as_secs())?,
            Due::Expected(due) => write!(f, " though {} s are expected", due.as_secs())?,
        }
        f.write_str(match age_limit.counted_from {
            CountedFrom::LastUse => ": as IIS 6.0 without EnableKernelSSL",
            CountedFrom::FullHandshake => {
                ": its session time-out, or a cache too small for the load"
            }
            CountedFrom::Unclear => ": which of the two, no client has shown yet",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn forgetting() -> Forgetting {
        let families =
            super::super::metrics::ServerFamilies::register(&prometheus::Registry::new());
        Forgetting::new(families.unwrap().forgetting("web2"))
    }

    /// Sessions that are used now and then, and come back after all idle times up to 500 s, at a
    /// server that clears away what is idle for 300 s.
    fn as_iis(forgetting: &Forgetting) {
        for n in 0..200 {
            let idle = n * 37 % 500;
            let offer = AgedOffer {
                idle: secs(idle),
                age: secs(idle + n * 101 % 3000),
                accepted: idle < 300,
            };
            forgetting.record("web2", offer, secs(36_000));
        }
    }

    #[test]
    fn the_articles_defect_is_named_with_its_figure() {
        let forgetting = forgetting();
        assert_eq!(forgetting.diagnosis(secs(36_000)), None);
        as_iis(&forgetting);
        let found = forgetting.diagnosis(secs(36_000)).unwrap().to_string();
        let (before, rest) = found.split_once(" s of idle time").unwrap();
        let seconds: u64 = before.rsplit(' ').next().unwrap().parse().unwrap();
        assert!((295..305).contains(&seconds), "{found}");
        assert_eq!(
            rest,
            " though 36000 s are expected: as IIS 6.0 without EnableKernelSSL"
        );
        assert!((295.0..305.0).contains(&forgetting.metrics.after.get()));
    }

    #[test]
    fn what_a_server_announces_is_what_it_is_held_to() {
        let forgetting = forgetting();
        as_iis(&forgetting);
        forgetting.announced(0);
        forgetting.announced(7200);
        let found = forgetting.diagnosis(secs(36_000)).unwrap().to_string();
        assert!(found.contains("though it announces 7200 s"), "{found}");
    }

    #[test]
    fn a_server_that_keeps_sessions_for_their_time_forgets_none() {
        let forgetting = forgetting();
        as_iis(&forgetting);
        assert_eq!(forgetting.diagnosis(secs(300)), None);
    }

    #[test]
    fn the_same_is_not_said_twice() {
        let age_limit = |seconds| AgeLimit {
            longest_accepted: secs(seconds),
            shortest_refused: secs(seconds),
            counted_from: CountedFrom::LastUse,
        };
        assert!(!is_news(None, None));
        assert!(is_news(None, Some(age_limit(300))));
        assert!(!is_news(Some(age_limit(300)), Some(age_limit(290))));
        assert!(is_news(Some(age_limit(300)), Some(age_limit(60))));
        assert!(is_news(Some(age_limit(300)), None));
    }
}
