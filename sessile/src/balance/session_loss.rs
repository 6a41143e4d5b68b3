//! Session loss: a server refuses its own sessions before their lifetime ends.
//!
//! Only learned sessions show it, because a TLS 1.3 client offers another ticket each time. The decision is
//! [`sessile_proto::age_limit`]; this file counts, logs and explains.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use prometheus::core::Metric;
use prometheus::{Gauge, Histogram};
use sessile_proto::age_limit::{AgeLimit, AgedOffer, CountedFrom, OfferAges};

use crate::locks::locked;

/// Upper bounds of the histogram buckets, in seconds.
///
/// They are finer around five minutes, where IIS and many later servers close idle connections.
pub(super) const BUCKETS: [f64; 16] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 600.0, 1800.0, 3600.0, 7200.0,
    18_000.0, 36_000.0,
];

/// A change of the age limit is logged if it is larger than the limit divided by this number.
const LOGGED_CHANGE: u32 = 4;

/// The offers of one server's learned sessions, and the age limit that they show.
pub(super) struct SessionLoss {
    record: Mutex<LossRecord>,
    metrics: SessionLossMetrics,
}

/// The metrics of one server's session loss.
pub(super) struct SessionLossMetrics {
    pub(super) accepted: Histogram,
    pub(super) refused: Histogram,
    /// The age limit in seconds. 0: none is known.
    pub(super) age_limit: Gauge,
}

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

/// A server refuses its sessions above an age limit. Its text follows the name of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LossDiagnosis {
    pub(super) age_limit: AgeLimit,
    expected: ExpectedLifetime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpectedLifetime {
    /// From the server's tickets.
    Announced(Duration),
    /// From `session.lifetime` of the balancer.
    Configured(Duration),
}

impl SessionLoss {
    pub(super) fn new(metrics: SessionLossMetrics) -> Self {
        Self {
            record: Mutex::default(),
            metrics,
        }
    }

    /// Records the lifetime hint of a ticket, in seconds. 0: no hint.
    pub(super) fn record_lifetime_hint(&self, seconds: u32) {
        if seconds > 0 {
            let hint = Duration::from_secs(seconds.into());
            let mut record = locked(&self.record);
            record.announced = record.announced.max(Some(hint));
        }
    }

    /// Records an offer, and logs a change of the diagnosis.
    ///
    /// `lifetime`: the expected lifetime of sessions if the server announces none.
    pub(super) fn record_offer(&self, server: &str, offer: AgedOffer, lifetime: Duration) {
        let histogram = if offer.accepted {
            &self.metrics.accepted
        } else {
            &self.metrics.refused
        };
        histogram.observe(offer.idle.as_secs_f64());
        let mut record = locked(&self.record);
        record.ages.record(offer);
        let diagnosis = record.diagnosis(lifetime);
        let age_limit = diagnosis.map(|diagnosis| diagnosis.age_limit);
        let seconds = age_limit.map_or(0.0, |age_limit| age_limit.estimate().as_secs_f64());
        self.metrics.age_limit.set(seconds);
        if !is_worth_logging(record.logged, age_limit) {
            return;
        }
        record.logged = age_limit;
        // A slow reader of the log must not hold up other connections.
        drop(record);
        match diagnosis {
            Some(diagnosis) => tracing::warn!("{server} {diagnosis}"),
            None => tracing::info!("{server} keeps sessions for their whole lifetime again"),
        }
    }

    /// The accepted offers by idle time.
    pub(super) fn accepted(&self) -> Vec<IdleBucket> {
        buckets(&self.metrics.accepted)
    }

    /// The refused offers by idle time.
    pub(super) fn refused(&self) -> Vec<IdleBucket> {
        buckets(&self.metrics.refused)
    }

    /// `None` if the server keeps its sessions for their lifetime.
    pub(super) fn diagnosis(&self, lifetime: Duration) -> Option<LossDiagnosis> {
        locked(&self.record).diagnosis(lifetime)
    }
}

impl LossRecord {
    fn diagnosis(&self, lifetime: Duration) -> Option<LossDiagnosis> {
        let age_limit = self.ages.age_limit()?;
        let expected = match self.announced {
            Some(announced) => ExpectedLifetime::Announced(announced),
            None => ExpectedLifetime::Configured(lifetime),
        };
        let is_short = age_limit.is_short_of(expected.duration());
        is_short.then_some(LossDiagnosis {
            age_limit,
            expected,
        })
    }
}

impl ExpectedLifetime {
    const fn duration(self) -> Duration {
        match self {
            Self::Announced(lifetime) | Self::Configured(lifetime) => lifetime,
        }
    }
}

/// The buckets of a histogram. Prometheus counts cumulatively; these counts are per bucket.
fn buckets(histogram: &Histogram) -> Vec<IdleBucket> {
    let metric = histogram.metric();
    let cumulative = metric.get_histogram();
    let mut buckets = Vec::with_capacity(BUCKETS.len() + 1);
    let mut before = 0;
    let mut push = |up_to, count: u64| {
        // Other threads count between these reads, so the difference can be negative.
        let offers = count.saturating_sub(before);
        buckets.push(IdleBucket { up_to, offers });
        before = count;
    };
    for bucket in cumulative.get_bucket() {
        push(Some(bucket.upper_bound()), bucket.cumulative_count());
    }
    push(None, cumulative.get_sample_count());
    buckets
}

/// True if the age limit differs enough from the last one in the log.
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
        let seconds = self.expected.duration().as_secs();
        match self.expected {
            ExpectedLifetime::Announced(_) => write!(f, " though it announces {seconds} s")?,
            ExpectedLifetime::Configured(_) => write!(f, " though {seconds} s are expected")?,
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

    fn session_loss() -> SessionLoss {
        let histogram = || Histogram::with_opts(HistogramOpts::new("offers", "help")).unwrap();
        SessionLoss::new(SessionLossMetrics {
            accepted: histogram(),
            refused: histogram(),
            age_limit: Gauge::new("age_limit", "help").unwrap(),
        })
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
        let loss = session_loss();
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
        assert!((295.0..305.0).contains(&loss.metrics.age_limit.get()));
    }

    #[test]
    fn every_diagnosis_names_the_event_the_lifetime_and_the_cause() {
        let text = |counted_from, expected| {
            let age_limit = AgeLimit {
                longest_accepted: secs(300),
                shortest_refused: secs(300),
                counted_from,
            };
            let diagnosis = LossDiagnosis {
                age_limit,
                expected,
            };
            diagnosis.to_string()
        };
        let announced = ExpectedLifetime::Announced(secs(7200));
        let configured = ExpectedLifetime::Configured(secs(36_000));
        let age = AgeLimit {
            longest_accepted: secs(300),
            shortest_refused: secs(300),
            counted_from: CountedFrom::LastUse,
        };
        assert_eq!(
            text(CountedFrom::FullHandshake, announced),
            format!(
                "forgets sessions {age} after their full handshake though it announces 7200 s: \
                 its session time-out, or a cache too small for the load"
            )
        );
        assert_eq!(
            text(CountedFrom::Unclear, configured),
            format!(
                "forgets sessions after {age}, of idle time or since their full handshake though \
                 36000 s are expected: no client has shown yet which of the two"
            )
        );
    }

    #[test]
    fn a_server_is_measured_by_the_lifetime_that_it_announces() {
        let loss = session_loss();
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
        let loss = session_loss();
        record_offers_of_iis(&loss);
        assert_eq!(loss.diagnosis(secs(300)), None);
    }

    #[test]
    fn buckets_count_each_offer_once() {
        let loss = session_loss();
        for idle in [0, 0, 3, 100_000] {
            let offer = AgedOffer {
                idle: secs(idle),
                age: secs(idle),
                accepted: true,
            };
            loss.record_offer("web2", offer, secs(36_000));
        }
        let accepted = loss.accepted();
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
