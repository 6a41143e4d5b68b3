//! Session loss: a server refuses its own sessions before their lifetime ends.
//!
//! Only learned sessions, which are of TLS 1.2 or earlier, show a loss. A TLS 1.3 client offers another ticket
//! each time. The decision is in [`sessile_proto::age_limit`]. This file counts, logs and explains.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use prometheus::Histogram;
use prometheus::core::Metric;
use sessile_proto::age_limit::{AgeLimit, AgedOffer, CountedFrom, OfferAges};

use crate::locks::locked;

/// Upper bounds of the histogram buckets, in seconds.
///
/// The buckets are finer around five minutes, because IIS 6.0 closes connections that are idle for so long.
pub(super) const BUCKETS: [f64; 16] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 600.0, 1800.0, 3600.0, 7200.0,
    18_000.0, 36_000.0,
];

/// A change of the age limit is logged if it is larger than the limit divided by this number.
const LOGGED_CHANGE: u32 = 4;

/// The offers of one server's learned sessions, and the age limit that they show.
#[derive(Default)]
pub(super) struct SessionLoss(Mutex<LossRecord>);

/// The offers in one bucket of a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct IdleBucket {
    /// The upper bound in seconds. `None`: no bound.
    pub(super) up_to: Option<f64>,
    pub(super) offers: u64,
}

#[derive(Default)]
struct LossRecord {
    ages: OfferAges,
    /// The longest lifetime that the server announced for a ticket.
    announced: Option<Duration>,
    logged: Option<AgeLimit>,
}

/// A server refuses its sessions above an age limit. The displayed text continues after the name of the
/// server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LossDiagnosis {
    pub(super) age_limit: AgeLimit,
    /// The lifetime that sessions should have.
    expected: Duration,
    /// True if the server announced the lifetime. Else `expected` is `session.lifetime` of the balancer.
    is_announced: bool,
}

impl SessionLoss {
    /// Records the lifetime hint of a ticket, in seconds. 0: no hint.
    pub(super) fn record_lifetime_hint(&self, seconds: u32) {
        if seconds > 0 {
            let hint = Duration::from_secs(seconds.into());
            let mut record = locked(&self.0);
            record.announced = record.announced.max(Some(hint));
        }
    }

    /// Records an offer, and logs a change of the diagnosis.
    ///
    /// `lifetime`: the expected lifetime of sessions if the server announces none.
    pub(super) fn record_offer(&self, server: &str, offer: AgedOffer, lifetime: Duration) {
        let mut record = locked(&self.0);
        record.ages.record(offer);
        let diagnosis = record.diagnosis(lifetime);
        let age_limit = diagnosis.map(|diagnosis| diagnosis.age_limit);
        if !is_worth_logging(record.logged, age_limit) {
            return;
        }
        record.logged = age_limit;
        // Log without the lock, because a slow reader of the log must not hold up other connections.
        drop(record);
        match diagnosis {
            Some(diagnosis) => tracing::warn!("{server} {diagnosis}"),
            None => tracing::info!("{server} keeps sessions for their whole lifetime again"),
        }
    }

    /// `None` if the server keeps its sessions for their lifetime.
    pub(super) fn diagnosis(&self, lifetime: Duration) -> Option<LossDiagnosis> {
        locked(&self.0).diagnosis(lifetime)
    }
}

impl LossRecord {
    fn diagnosis(&self, lifetime: Duration) -> Option<LossDiagnosis> {
        let age_limit = self.ages.age_limit()?;
        let expected = self.announced.unwrap_or(lifetime);
        let is_short = age_limit.is_short_of(expected);
        is_short.then_some(LossDiagnosis {
            age_limit,
            expected,
            is_announced: self.announced.is_some(),
        })
    }
}

/// The buckets of a histogram. The counts of Prometheus are cumulative, and these counts are not.
pub(super) fn buckets(histogram: &Histogram) -> Vec<IdleBucket> {
    let metric = histogram.metric();
    let cumulative = metric.get_histogram();
    let bounded = cumulative.get_bucket().iter();
    let counts = bounded.map(|bucket| (Some(bucket.upper_bound()), bucket.cumulative_count()));
    let all = (None, cumulative.get_sample_count());
    let mut before = 0;
    let buckets = counts.chain([all]).map(|(up_to, count)| {
        // Other threads count between these reads, so the difference can be negative.
        let offers = count.saturating_sub(before);
        before = count;
        IdleBucket { up_to, offers }
    });
    buckets.collect()
}

/// True if the age limit differs enough from the last age limit in the log.
fn is_worth_logging(logged: Option<AgeLimit>, now: Option<AgeLimit>) -> bool {
    match (logged, now) {
        (None, None) => false,
        (Some(logged), Some(now)) => {
            let before = logged.estimate();
            let difference = before.abs_diff(now.estimate());
            logged.counted_from != now.counted_from || difference > before / LOGGED_CHANGE
        }
        _ => true,
    }
}

impl fmt::Display for LossDiagnosis {
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
        let seconds = self.expected.as_secs();
        if self.is_announced {
            write!(f, " though it announces {seconds} s")?;
        } else {
            write!(f, " though {seconds} s are expected")?;
        }
        f.write_str(match age_limit.counted_from {
            CountedFrom::LastUse => ": as IIS 6.0 without EnableKernelSSL",
            CountedFrom::FullHandshake => {
                ": its session time-out, or a cache too small for the load"
            }
            CountedFrom::Unclear => ": no client has shown yet which of the two",
        })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Records the offers of a server that forgets sessions after 300 s of idle time, as IIS 6.0 did.
    ///
    /// The sessions have all idle times up to 500 s.
    fn record_offers_of_iis(loss: &SessionLoss) {
        for n in 0..200 {
            let idle = n * 37 % 500;
            let offer = AgedOffer {
                idle: secs(idle),
                age: secs(idle + n * 101 % 3000),
                accepted: idle < 300,
            };
            loss.record_offer("web2", offer, secs(36_000));
        }
    }

    #[test]
    fn the_defect_of_the_article_is_named_with_its_age_limit() {
        let loss = SessionLoss::default();
        assert_eq!(loss.diagnosis(secs(36_000)), None);
        record_offers_of_iis(&loss);
        let diagnosis = loss.diagnosis(secs(36_000)).unwrap().to_string();
        let (before, rest) = diagnosis.split_once(" s of idle time").unwrap();
        let seconds: u64 = before.rsplit(' ').next().unwrap().parse().unwrap();
        assert!((295..305).contains(&seconds), "{diagnosis}");
        assert_eq!(
            rest,
            " though 36000 s are expected: as IIS 6.0 without EnableKernelSSL"
        );
    }

    #[test]
    fn every_diagnosis_names_the_event_the_lifetime_and_the_cause() {
        let text = |counted_from, expected, is_announced| {
            let age_limit = AgeLimit {
                longest_accepted: secs(300),
                shortest_refused: secs(300),
                counted_from,
            };
            let diagnosis = LossDiagnosis {
                age_limit,
                expected,
                is_announced,
            };
            diagnosis.to_string()
        };
        let age = AgeLimit {
            longest_accepted: secs(300),
            shortest_refused: secs(300),
            counted_from: CountedFrom::LastUse,
        };
        assert_eq!(
            text(CountedFrom::FullHandshake, secs(7200), true),
            format!(
                "forgets sessions {age} after their full handshake though it announces 7200 s: \
                 its session time-out, or a cache too small for the load"
            )
        );
        assert_eq!(
            text(CountedFrom::Unclear, secs(36_000), false),
            format!(
                "forgets sessions after {age}, of idle time or since their full handshake though \
                 36000 s are expected: no client has shown yet which of the two"
            )
        );
    }

    #[test]
    fn a_server_is_measured_by_the_lifetime_that_it_announces() {
        let loss = SessionLoss::default();
        record_offers_of_iis(&loss);
        loss.record_lifetime_hint(0);
        loss.record_lifetime_hint(7200);
        let diagnosis = loss.diagnosis(secs(36_000)).unwrap().to_string();
        assert!(
            diagnosis.contains("though it announces 7200 s"),
            "{diagnosis}"
        );
    }

    #[test]
    fn a_server_that_keeps_sessions_for_their_lifetime_loses_none() {
        let loss = SessionLoss::default();
        record_offers_of_iis(&loss);
        assert_eq!(loss.diagnosis(secs(300)), None);
    }

    #[test]
    fn buckets_count_each_offer_once() {
        let histogram = Histogram::with_opts(HistogramOpts::new("offers", "help")).unwrap();
        for idle in [0.0, 0.0, 3.0, 100_000.0] {
            histogram.observe(idle);
        }
        let accepted = buckets(&histogram);
        let total: u64 = accepted.iter().map(|bucket| bucket.offers).sum();
        assert_eq!(total, 4);
        let last = accepted.last().unwrap();
        assert_eq!((last.up_to, last.offers), (None, 1));
    }

    #[test]
    fn the_same_age_limit_is_logged_once() {
        let age_limit = |seconds| AgeLimit {
            longest_accepted: secs(seconds),
            shortest_refused: secs(seconds),
            counted_from: CountedFrom::LastUse,
        };
        assert!(!is_worth_logging(None, None));
        assert!(is_worth_logging(None, Some(age_limit(300))));
        assert!(!is_worth_logging(
            Some(age_limit(300)),
            Some(age_limit(290))
        ));
        assert!(is_worth_logging(Some(age_limit(300)), Some(age_limit(60))));
        assert!(is_worth_logging(Some(age_limit(300)), None));
    }
}
