//! Counters by rule, outcome and direction, for the balancer and for each server.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use sessile_proto::Word;
use sessile_proto::route::RoutedBy;
use sessile_proto::watch::SessionOutcome;

use super::super::relay::ByteCounts;
use super::causes::ByteDirection;

/// Connections by rule and outcome.
pub(in crate::balance) struct RoutedCounters(Vec<Vec<IntCounter>>);

/// Bytes by direction.
pub(in crate::balance) struct ByteCounters {
    pub(in crate::balance) up: IntCounter,
    pub(in crate::balance) down: IntCounter,
}

/// A count of connections by rule, and by outcome or skip reason.
pub(in crate::balance) struct RuleCount {
    pub(in crate::balance) rule: RoutedBy,
    /// The word of the outcome or of the reason.
    pub(in crate::balance) word: &'static str,
    pub(in crate::balance) count: u64,
}

impl RoutedCounters {
    /// `counter` finds a counter by the words of a rule and an outcome.
    pub(super) fn new(counter: impl Fn(&'static str, &'static str) -> IntCounter) -> Self {
        let by_outcome = |rule: RoutedBy| {
            SessionOutcome::all()
                .map(|outcome| counter(rule.as_str(), outcome.as_str()))
                .collect()
        };
        Self(RoutedBy::all().map(by_outcome).collect())
    }

    pub(in crate::balance) fn count(&self, rule: RoutedBy, outcome: SessionOutcome) {
        self.0[rule as usize][outcome as usize].inc();
    }

    /// Connections by rule and outcome, without zeros.
    pub(in crate::balance) fn by_rule(&self) -> Vec<RuleCount> {
        let mut counts = Vec::new();
        for (rule, outcomes) in RoutedBy::all().zip(&self.0) {
            for (outcome, counter) in SessionOutcome::all().zip(outcomes) {
                push_count(&mut counts, rule, outcome.as_str(), counter);
            }
        }
        counts
    }

    /// Connections with this outcome.
    pub(in crate::balance) fn total(&self, outcome: SessionOutcome) -> u64 {
        let rules = self.0.iter();
        rules.map(|outcomes| outcomes[outcome as usize].get()).sum()
    }
}

impl ByteCounters {
    /// `counter` finds a counter by the word of a direction.
    pub(super) fn new(counter: impl Fn(&'static str) -> IntCounter) -> Self {
        Self {
            up: counter(ByteDirection::Up.as_str()),
            down: counter(ByteDirection::Down.as_str()),
        }
    }

    pub(in crate::balance) fn add(&self, bytes: ByteCounts) {
        self.up.inc_by(bytes.up);
        self.down.inc_by(bytes.down);
    }
}

pub(super) fn push_count(
    counts: &mut Vec<RuleCount>,
    rule: RoutedBy,
    word: &'static str,
    counter: &IntCounter,
) {
    let count = counter.get();
    if count > 0 {
        counts.push(RuleCount { rule, word, count });
    }
}

/// Counts a connection as open until it is dropped.
pub(in crate::balance) struct OpenConnection(IntGauge);

impl OpenConnection {
    pub(in crate::balance) fn count(open: &IntGauge) -> Self {
        open.inc();
        Self(open.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

pub(super) fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let family = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

pub(super) fn counter(
    registry: &Registry,
    name: &str,
    help: &str,
) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}
