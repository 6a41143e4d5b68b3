//! Route misses. A connection misses if a rule leads it to a server, and the client is not placed at that
//! server. The policy leads to no particular server, so the policy causes no misses.

use sessile_proto::health_state::Availability;
use sessile_proto::route::RoutedBy;
use strum::{IntoStaticStr, VariantArray};

/// The rules that lead a session to a server.
pub(super) const SESSION_RULES: [RoutedBy; 5] = [
    RoutedBy::Label,
    RoutedBy::SessionId,
    RoutedBy::Ticket,
    RoutedBy::KeyName,
    RoutedBy::Address,
];

/// Why a server is skipped. Among several servers of a rule the first reason in this order counts.
///
/// Metric labels and the API use the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum SkipReason {
    /// The server has more than its share of the connections.
    #[strum(serialize = "share")]
    OverShare,
    /// The server has `max-connections` connections.
    Full,
    /// The server is ejected.
    Ejected,
    /// Health checks say that the server is down.
    Down,
    /// The server refused this connection, or did not take it in time.
    Unreachable,
    /// The server took this connection and closed it before it sent a byte.
    #[strum(serialize = "hung-up")]
    ClosedWithoutReply,
    /// This host could not make the connection.
    #[strum(serialize = "own-failure")]
    LocalError,
    /// The server is not in this pool.
    #[strum(serialize = "elsewhere")]
    NotInPool,
}

impl SkipReason {
    /// `None` if the server takes connections.
    pub(super) const fn for_availability(availability: Availability) -> Option<Self> {
        match availability {
            Availability::Up => None,
            Availability::Ejected => Some(Self::Ejected),
            Availability::Down => Some(Self::Down),
        }
    }
}

/// A rule and the reason why its server was skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RouteMiss {
    pub(super) rule: RoutedBy,
    pub(super) reason: SkipReason,
}

/// The first route miss of a connection. Later misses are consequences of the first.
#[derive(Debug, Default)]
pub(super) struct FirstMiss(Option<RouteMiss>);

impl FirstMiss {
    pub(super) fn record(&mut self, rule: RoutedBy, reason: SkipReason) {
        if SESSION_RULES.contains(&rule) {
            self.0.get_or_insert(RouteMiss { rule, reason });
        }
    }

    /// The miss of a connection. `placed_by`: the rule that placed the connection in the end. `None`: no
    /// server took the connection.
    ///
    /// A connection that the same rule placed at another server counts as no miss. That server can resume the
    /// session too.
    pub(super) fn of_connection(self, placed_by: Option<RoutedBy>) -> Option<RouteMiss> {
        self.0.filter(|miss| Some(miss.rule) != placed_by)
    }
}

#[cfg(test)]
mod tests {
    use sessile_proto::Word;

    use super::*;

    const fn miss(rule: RoutedBy, reason: SkipReason) -> RouteMiss {
        RouteMiss { rule, reason }
    }

    #[test]
    fn the_first_miss_counts_unless_the_same_rule_places_the_connection() {
        let label_down = miss(RoutedBy::Label, SkipReason::Down);
        let ticket_full = miss(RoutedBy::Ticket, SkipReason::Full);
        let policy_unreachable = miss(RoutedBy::Policy, SkipReason::Unreachable);
        let result = |misses: &[RouteMiss], placed_by| {
            let mut first = FirstMiss::default();
            for miss in misses {
                first.record(miss.rule, miss.reason);
            }
            first.of_connection(placed_by)
        };
        let both = [label_down, ticket_full];
        assert_eq!(result(&both, Some(RoutedBy::Policy)), Some(label_down));
        assert_eq!(result(&both, Some(RoutedBy::Ticket)), Some(label_down));
        assert_eq!(result(&both, Some(RoutedBy::Label)), None);
        assert_eq!(
            result(&[policy_unreachable, ticket_full], None),
            Some(ticket_full)
        );
        assert_eq!(result(&[policy_unreachable], None), None);
    }

    #[test]
    fn rules_and_reasons_are_their_own_indices() {
        for (at, rule) in SESSION_RULES.into_iter().enumerate() {
            assert_eq!(rule as usize, at);
        }
        for (at, reason) in SkipReason::all().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }
}
