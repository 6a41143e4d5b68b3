//! The facts about early data (0-RTT).

use std::net::SocketAddr;

use sessile_proto::resumption_matrix::{Answer, ResumptionMatrix};
use strum::{IntoStaticStr, VariantArray};

/// Which servers accept early data. Empty if no server gives sessions for early data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EarlyDataFindings {
    /// One session of each server, offered to each server with early data.
    pub offers: Vec<EarlyDataOffer>,
    /// Early data that a server had accepted, sent again.
    pub replays: Vec<EarlyDataReplay>,
}

/// A session that was offered with early data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyDataOffer {
    /// The server that gave the session.
    pub origin: SocketAddr,
    /// The server to which it was offered.
    pub address: SocketAddr,
    pub outcome: EarlyDataOutcome,
    /// Why the handshake failed.
    pub error: Option<String>,
}

/// Early data that a server had accepted, and that was sent again in the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyDataReplay {
    /// The server that accepted the early data the first time. It gave the session, too.
    pub origin: SocketAddr,
    /// The server that got the same bytes again.
    pub address: SocketAddr,
    pub outcome: EarlyDataOutcome,
    /// The HTTP status with which the server answered the repeated request. The server answered before the client
    /// had finished the handshake.
    pub status: Option<u16>,
    /// Why the handshake failed.
    pub error: Option<String>,
}

/// A server's answer to early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum EarlyDataOutcome {
    Accepted,
    /// The server ignored the early data. The client has to send it again.
    Refused,
    /// The handshake failed.
    Failed,
    /// The probe could not send the same bytes again.
    Unknown,
}

impl EarlyDataFindings {
    /// True if nothing was tested.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.offers.is_empty() && self.replays.is_empty()
    }

    /// Who accepts early data with whose sessions. `Resumed` stands for accepted early data.
    #[must_use]
    pub fn matrix(&self, addresses: &[SocketAddr]) -> ResumptionMatrix {
        let mut matrix = ResumptionMatrix::new(addresses.len());
        let index = |address| addresses.iter().position(|known| *known == address);
        for offer in &self.offers {
            let answer = match offer.outcome {
                EarlyDataOutcome::Accepted => Answer::Resumed,
                EarlyDataOutcome::Refused => Answer::Refused,
                EarlyDataOutcome::Failed => Answer::Ended,
                EarlyDataOutcome::Unknown => continue,
            };
            if let (Some(from), Some(to)) = (index(offer.origin), index(offer.address)) {
                matrix.record(from, to, answer);
            }
        }
        matrix
    }

    /// True if the server accepted early data with a session of `origin`.
    pub(in crate::probe) fn is_accepted(&self, origin: SocketAddr, address: SocketAddr) -> bool {
        self.offers.iter().any(|offer| {
            let pair = (offer.origin, offer.address);
            pair == (origin, address) && offer.outcome == EarlyDataOutcome::Accepted
        })
    }
}
