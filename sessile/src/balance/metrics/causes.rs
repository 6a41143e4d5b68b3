//! The label values of the balancer's metrics. Each enum lists its values in `ALL`, in the order of their indices.

use sessile_proto::watch::Kind;

use crate::admission::Refusal;
use crate::detect::DetectError;

/// Why a connection got no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::balance) enum TurnAwayCause {
    NoHello,
    BadHello,
    Deadline,
    BadProxyHeader,
    UntrustedProxy,
    HelloLimit,
    SourceLimit,
    SourceConnections,
    SourceRate,
    UnknownName,
    NoServer,
    ClientGone,
}

impl TurnAwayCause {
    pub(super) const ALL: [Self; 12] = [
        Self::NoHello,
        Self::BadHello,
        Self::Deadline,
        Self::BadProxyHeader,
        Self::UntrustedProxy,
        Self::HelloLimit,
        Self::SourceLimit,
        Self::SourceConnections,
        Self::SourceRate,
        Self::UnknownName,
        Self::NoServer,
        Self::ClientGone,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::NoHello => "no-hello",
            Self::BadHello => "bad-hello",
            Self::Deadline => "deadline",
            Self::BadProxyHeader => "bad-proxy-header",
            Self::UntrustedProxy => "untrusted-proxy",
            Self::HelloLimit => "hello-limit",
            Self::SourceLimit => "source-limit",
            Self::SourceConnections => "source-connections",
            Self::SourceRate => "source-rate",
            Self::UnknownName => "unknown-name",
            Self::NoServer => "no-server",
            Self::ClientGone => "client-gone",
        }
    }
}

impl From<&DetectError> for TurnAwayCause {
    fn from(error: &DetectError) -> Self {
        match error {
            DetectError::Closed | DetectError::Io(_) => Self::NoHello,
            DetectError::Invalid(_) => Self::BadHello,
            DetectError::Deadline => Self::Deadline,
            DetectError::Proxy(_) => Self::BadProxyHeader,
            DetectError::Untrusted => Self::UntrustedProxy,
            DetectError::Refused(Refusal::Hellos) => Self::HelloLimit,
            DetectError::Refused(Refusal::Source) => Self::SourceLimit,
            DetectError::Refused(Refusal::Connections) => Self::SourceConnections,
            DetectError::Refused(Refusal::Rate) => Self::SourceRate,
        }
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
    use std::io;

    use sessile_proto::route::RoutedBy;
    use sessile_proto::{proxy_protocol, record};

    use super::*;

    fn are_indices(values: impl IntoIterator<Item = usize>) -> bool {
        values
            .into_iter()
            .enumerate()
            .all(|(at, value)| at == value)
    }

    #[test]
    fn every_value_is_its_own_index() {
        assert!(are_indices(TurnAwayCause::ALL.map(|value| value as usize)));
        assert!(are_indices(ExpiredTimeout::ALL.map(|value| value as usize)));
        assert!(are_indices(SessionOutcome::ALL.map(|value| value as usize)));
        assert!(are_indices(RoutedBy::ALL.map(|value| value as usize)));
    }

    #[test]
    fn a_connection_without_a_hello_is_counted_by_the_word_of_its_error() {
        let refusals = [
            Refusal::Hellos,
            Refusal::Source,
            Refusal::Connections,
            Refusal::Rate,
        ];
        let errors = [
            DetectError::Closed,
            DetectError::Io(io::ErrorKind::ConnectionReset.into()),
            DetectError::Invalid(record::Error::Incomplete),
            DetectError::Deadline,
            DetectError::Proxy(proxy_protocol::Error::Incomplete),
            DetectError::Untrusted,
        ];
        for error in errors.into_iter().chain(refusals.map(DetectError::Refused)) {
            assert_eq!(TurnAwayCause::from(&error).as_str(), error.cause());
        }
        let words = TurnAwayCause::ALL.map(TurnAwayCause::as_str);
        assert!(
            DetectError::CAUSES
                .iter()
                .all(|cause| words.contains(cause))
        );
    }
}
