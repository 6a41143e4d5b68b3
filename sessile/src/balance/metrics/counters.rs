//! Counters by rule, outcome and direction, for the balancer and for each server.

use prometheus::IntCounter;
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

    /// Connections by rule and outcome.
    pub(in crate::balance) fn by_rule(&self) -> Vec<RuleCount> {
        rule_counts::<SessionOutcome>(RoutedBy::all(), &self.0)
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

/// The counts of a table of counters. A row has a counter for each value of `W`, an outcome or a reason.
pub(super) fn rule_counts<W: Word>(
    rules: impl IntoIterator<Item = RoutedBy>,
    table: &[Vec<IntCounter>],
) -> Vec<RuleCount> {
    let mut counts = Vec::new();
    for (rule, row) in rules.into_iter().zip(table) {
        let row = row.iter().map(IntCounter::get);
        counts.extend(
            W::all()
                .map(Word::as_str)
                .zip(row)
                .map(|(word, count)| RuleCount { rule, word, count }),
        );
    }
    counts
}
