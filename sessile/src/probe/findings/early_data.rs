//! Findings about early data that servers accept twice.

use sessile_proto::verdict::How;

use super::Found;
use crate::probe::finding::Code;
use crate::probe::report::{EarlyDataOutcome, EarlyDataReplay};

/// The status of a request that the server does not execute because it came as early data (RFC 8470, 5.2).
const TOO_EARLY: u16 = 425;

impl Found<'_> {
    /// Servers that accept early data that was accepted before.
    pub(super) fn early_data(&mut self) {
        let accepted = self.report.early_data.replays.iter();
        let accepted: Vec<&EarlyDataReplay> = accepted
            .filter(|replay| replay.outcome == EarlyDataOutcome::Accepted)
            .collect();
        for replay in &accepted {
            let is_own = replay.address == replay.origin;
            // A server that accepts its own early data twice is one finding.
            let is_known = |other: &EarlyDataReplay| {
                [other.origin, other.address] == [replay.address; 2]
                    && other.status == replay.status
            };
            if !is_own && accepted.iter().copied().any(is_known) {
                continue;
            }
            let bytes = if is_own {
                "accepted early data, and the same bytes again".to_owned()
            } else {
                let origin = self.report.server_label(replay.origin);
                format!("accepted early data that {origin} had accepted before")
            };
            let (code, deed) = match replay.status {
                Some(TOO_EARLY) => continue,
                Some(status) => {
                    let deed = format!(
                        "{bytes}. The repeated HEAD / was answered with {status} before the end of the handshake. \
                         Everybody who records such a request can have it executed twice, unless the application \
                         refuses it with 425."
                    );
                    (Code::EarlyDataReplayed, deed)
                }
                None => {
                    let deed = format!(
                        "{bytes}. The repeated HEAD / was not answered before the end of the handshake, which an \
                         attacker cannot reach. So the probe does not know whether requests can be executed twice."
                    );
                    (Code::AcceptsEarlyDataTwice, deed)
                }
            };
            self.observe(code, Some(How::Psk), replay.address, deed);
        }
    }
}
