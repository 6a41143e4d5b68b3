//! A client that did not come to the server that its session leads to: by which rule it would have, and
//! why it did not. Policy leads nobody home, and misses nothing.

use sessile_proto::route::RoutedBy;

use super::standing::State;

/// Rules that lead home.
pub(super) const RULES: [RoutedBy; 4] = [
    RoutedBy::Label,
    RoutedBy::SessionId,
    RoutedBy::Ticket,
    RoutedBy::KeyName,
];

/// Why a server is passed over. Of several servers the least reason counts, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Miss {
    /// It has more than its share of connections.
    Share,
    /// It has all the connections that it may have.
    Full,
    /// Clients' connections to it failed just now.
    Ejected,
    /// Checks say that it takes none.
    Down,
    /// It refused this connection, or did not take it in time.
    Unreachable,
    /// It took it and ended it without a word.
    HungUp,
    /// This host could not make it.
    OwnFailure,
    /// It is not in this pool, or gone.
    Elsewhere,
}

impl Miss {
    pub(super) const ALL: [Self; 8] = [
        Self::Share,
        Self::Full,
        Self::Ejected,
        Self::Down,
        Self::Unreachable,
        Self::HungUp,
        Self::OwnFailure,
        Self::Elsewhere,
    ];

    /// The cause that is counted.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Full => "full",
            Self::Ejected => "ejected",
            Self::Down => "down",
            Self::Unreachable => "unreachable",
            Self::HungUp => "hung-up",
            Self::OwnFailure => "own-failure",
            Self::Elsewhere => "elsewhere",
        }
    }

    /// Why a server that stands so is not tried.
    pub(super) const fn of(state: State) -> Option<Self> {
        match state {
            State::Up => None,
            State::Ejected => Some(Self::Ejected),
            State::Down => Some(Self::Down),
        }
    }
}

/// The first miss of a connection, which is the one that counts: what comes after it is its consequence.
#[derive(Debug, Default)]
pub(super) struct Missed(Option<(RoutedBy, Miss)>);

impl Missed {
    pub(super) fn note(&mut self, by: RoutedBy, why: Miss) {
        if RULES.contains(&by) {
            self.0.get_or_insert((by, why));
        }
    }

    /// What was missed by a client that came to a server by this rule; `None`: to none. Another server
    /// by the same rule is as good.
    pub(super) fn of_one_that_came(self, by: Option<RoutedBy>) -> Option<(RoutedBy, Miss)> {
        self.0.filter(|(missed, _)| Some(*missed) != by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_miss_counts_unless_its_rule_leads_elsewhere() {
        let noted = |misses: &[(RoutedBy, Miss)]| {
            let mut missed = Missed::default();
            misses.iter().for_each(|&(by, why)| missed.note(by, why));
            missed
        };
        let down = (RoutedBy::Label, Miss::Down);
        let full = (RoutedBy::Ticket, Miss::Full);
        let refused = (RoutedBy::Policy, Miss::Unreachable);
        let came = |misses: &[_], by| noted(misses).of_one_that_came(by);
        assert_eq!(came(&[down, full], Some(RoutedBy::Policy)), Some(down));
        assert_eq!(came(&[down, full], Some(RoutedBy::Ticket)), Some(down));
        assert_eq!(came(&[down, full], Some(RoutedBy::Label)), None);
        assert_eq!(came(&[refused, full], None), Some(full));
        assert_eq!(came(&[refused], None), None);
    }
}
