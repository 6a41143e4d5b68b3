//! What happened to sessions after a gap: single returns, and the ages that a search found.

use std::net::SocketAddr;
use std::time::Duration;

use sessile_proto::age_search::FoundAge;
use sessile_proto::verdict::How;
use sessile_proto::watch::SessionOutcome;

use super::plan::{AgeLimits, FirstConnection};

/// A return after a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayedReturn {
    pub how: How,
    pub address: SocketAddr,
    pub gap: Duration,
    /// The time from the end of the full handshake to the return. It is longer than the gap if the return had to wait
    /// for its turn.
    pub age: Duration,
    /// What happened to the first connection.
    pub first_connection: FirstConnection,
    /// The time after which the server closed the idle first connection. `None` if it did not.
    pub closed_after: Option<Duration>,
    pub outcome: SessionOutcome,
    /// Why a handshake failed.
    pub error: Option<String>,
}

/// The age at which a server refuses its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionAge {
    pub how: How,
    pub address: SocketAddr,
    /// What happened to the first connection.
    pub first_connection: FirstConnection,
    /// The largest age that was to be tried is less than the lifetime that the server promised. A client offers no
    /// ticket after this time.
    pub limits: AgeLimits,
    /// `None` if no session came back.
    pub found: Option<FoundAge>,
    /// Why a handshake failed.
    pub error: Option<String>,
}

impl SessionAge {
    /// The largest age at which a session resumed.
    pub(super) fn kept(&self) -> Option<Duration> {
        match self.found? {
            FoundAge::NotReached { kept }
            | FoundAge::Between { kept, .. }
            | FoundAge::Contradictory { kept, .. } => Some(kept),
        }
    }

    /// The smallest age at which a session was refused.
    pub(super) fn refused(&self) -> Option<Duration> {
        match self.found? {
            FoundAge::NotReached { .. } => None,
            FoundAge::Between { refused, .. } | FoundAge::Contradictory { refused, .. } => {
                Some(refused)
            }
        }
    }
}
