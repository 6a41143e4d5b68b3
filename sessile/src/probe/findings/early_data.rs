//! Findings about early data that servers accept twice.

use sessile_proto::verdict::How;

use super::Found;
use crate::probe::early_data::{EarlyDataOutcome, EarlyDataReplay};
use crate::probe::finding::Code;

/// The status of a request that the server does not execute because it came as early data (RFC 8470, 5.2).
const TOO_EARLY: u16 = 425;

impl Found<'_> {
    /// Servers that accept early data that was accepted before.
    pub(super) fn early_data(&mut self) {
        let replays = &self.report.early_data.replays;
        let accepted = |replay: &&EarlyDataReplay| replay.outcome == EarlyDataOutcome::Accepted;
        for replay in replays.iter().filter(accepted) {
            let bytes = if replay.address == replay.origin {
                "accepted early data, and the same bytes again".to_owned()
            } else {
                let origin = self.report.server_label(replay.origin);
                format!("accepted early data that {origin} had accepted before")
            };
            let (code, deed) = match replay.status {
                Some(TOO_EARLY) => continue,
                Some(status) => {
                    let deed = format!(
                        "{bytes}. It answered the repeated HEAD / with {status} before the end of the handshake. \
                         Everybody who records the request of a client can have it executed twice."
                    );
                    (Code::EarlyDataReplayed, deed)
                }
                None => {
                    let deed = format!(
                        "{bytes}. It did not answer before the end of the handshake, which an attacker cannot reach."
                    );
                    (Code::AcceptsEarlyDataTwice, deed)
                }
            };
            self.observe(code, Some(How::Psk), replay.address, deed);
        }
    }
}
