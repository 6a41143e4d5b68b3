//! The label values of the balancer's metrics. Some are also indices of counters.

use sessile_proto::Word;
use strum::{IntoStaticStr, VariantArray};

use crate::listener::IntakeFailure;

/// Why a connection got no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::balance) enum TurnAwayCause {
    /// The client was turned away before the search for a server.
    #[strum(transparent)]
    Intake(IntakeFailure),
    /// No pool has the server name.
    UnknownName,
    /// No server took the connection.
    NoServer,
    /// The client closed the connection while servers were tried.
    ClientGone,
}

impl TurnAwayCause {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let intake = IntakeFailure::all().map(Self::Intake);
        intake.chain([Self::UnknownName, Self::NoServer, Self::ClientGone])
    }
}

impl From<IntakeFailure> for TurnAwayCause {
    fn from(failure: IntakeFailure) -> Self {
        Self::Intake(failure)
    }
}

/// The time limit that closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::balance) enum ExpiredTimeout {
    /// `balance.idle-timeout`.
    Idle,
    /// `balance.total-timeout`.
    Total,
    /// 30 seconds without a byte from the client, after the server ended its side.
    HalfClosed,
}

/// The direction of bytes: up from clients, down from servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum ByteDirection {
    Up,
    Down,
}

/// The answer of a server to a learned session that it had made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum OfferResult {
    Accepted,
    Refused,
}

/// The result of a lookup of a DNS name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::balance) enum LookupResult {
    Answered,
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_labels_stay() {
        let causes: Vec<&str> = TurnAwayCause::all().map(Into::into).collect();
        let listed = [
            "no-hello",
            "bad-hello",
            "deadline",
            "bad-proxy-header",
            "untrusted-proxy",
            "displaced",
            "hello-limit",
            "source-limit",
            "source-connections",
            "source-rate",
            "unknown-name",
            "no-server",
            "client-gone",
        ];
        assert_eq!(causes, listed);
        let timeouts: Vec<_> = ExpiredTimeout::all().map(Word::as_str).collect();
        assert_eq!(timeouts, ["idle", "total", "half-closed"]);
    }
}
