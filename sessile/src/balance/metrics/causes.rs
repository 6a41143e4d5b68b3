//! The label values of the balancer's metrics. Each enum lists its values in `ALL`, in the order of their indices.

use sessile_proto::watch::Kind;

use crate::listener::IntakeFailure;

/// Why a connection got no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::balance) enum TurnAwayCause {
    /// The client was turned away before a server was looked for.
    Intake(IntakeFailure),
    /// No pool has the server name.
    UnknownName,
    /// No server took the connection.
    NoServer,
    /// The client closed the connection while servers were tried.
    ClientGone,
}

impl TurnAwayCause {
    /// The causes that do not come from the intake.
    const AFTER_INTAKE: [Self; 3] = [Self::UnknownName, Self::NoServer, Self::ClientGone];

    pub(super) fn all() -> impl Iterator<Item = Self> {
        let intake = IntakeFailure::ALL.into_iter().map(Self::Intake);
        intake.chain(Self::AFTER_INTAKE)
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Intake(failure) => failure.as_str(),
            Self::UnknownName => "unknown-name",
            Self::NoServer => "no-server",
            Self::ClientGone => "client-gone",
        }
    }
}

impl From<IntakeFailure> for TurnAwayCause {
    fn from(failure: IntakeFailure) -> Self {
        Self::Intake(failure)
    }
}

/// The time limit that closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::balance) enum ExpiredTimeout {
    /// `balance.idle-timeout`.
    Idle,
    /// `balance.total-timeout`.
    Total,
    /// The server had ended its side, and the client sent nothing.
    HalfClosed,
}

impl ExpiredTimeout {
    pub(super) const ALL: [Self; 3] = [Self::Idle, Self::Total, Self::HalfClosed];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Total => "total",
            Self::HalfClosed => "half-closed",
        }
    }
}

/// The outcome for the session that a client offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::balance) enum SessionOutcome {
    Resumed,
    Refused,
    NotOffered,
    Failed,
}

impl SessionOutcome {
    pub(in crate::balance) const ALL: [Self; 4] =
        [Self::Resumed, Self::Refused, Self::NotOffered, Self::Failed];

    pub(in crate::balance) const fn as_str(self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::Refused => "refused",
            Self::NotOffered => "not-offered",
            Self::Failed => "failed",
        }
    }
}

impl From<Kind> for SessionOutcome {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Resumed(_) => Self::Resumed,
            Kind::Refused => Self::Refused,
            Kind::NotOffered => Self::NotOffered,
            Kind::Failed => Self::Failed,
        }
    }
}

/// The direction of bytes: up from clients, down from servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteDirection {
    Up,
    Down,
}

impl ByteDirection {
    pub(super) const ALL: [Self; 2] = [Self::Up, Self::Down];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// The answer of a server to a learned session that it had made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfferResult {
    Accepted,
    Refused,
}

impl OfferResult {
    pub(super) const ALL: [Self; 2] = [Self::Accepted, Self::Refused];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use sessile_proto::route::RoutedBy;

    use super::*;

    fn are_indices(values: impl IntoIterator<Item = usize>) -> bool {
        values
            .into_iter()
            .enumerate()
            .all(|(at, value)| at == value)
    }

    #[test]
    fn every_value_is_its_own_index() {
        assert!(are_indices(ExpiredTimeout::ALL.map(|value| value as usize)));
        assert!(are_indices(SessionOutcome::ALL.map(|value| value as usize)));
        assert!(are_indices(RoutedBy::ALL.map(|value| value as usize)));
    }
}
