//! Findings about the tickets that servers give.

use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;

use super::Found;
use crate::probe::attempt::{Attempt, FinishedHandshake};
use crate::probe::finding::Code;
use crate::probe::report::MechanismFindings;

impl Found<'_> {
    /// When tickets are given.
    pub(super) fn tickets(&mut self, tested: &MechanismFindings) {
        let resumed = |seen: &&FinishedHandshake| matches!(seen.kind, Kind::Resumed(_));
        for &address in &self.report.addresses {
            let at = tested
                .attempts
                .iter()
                .filter(|attempt| attempt.address == address)
                .filter_map(Attempt::seen);
            let returns: Vec<_> = at.filter(resumed).collect();
            let given = returns.iter().filter(|seen| seen.given).count();
            let label = self.report.server_label(address);
            match tested.how {
                How::Psk if !returns.is_empty() && given == 0 && tested.gives(address) => {
                    let text = format!(
                        "{label} gives TLS 1.3 tickets in full handshakes only. A client that uses each ticket \
                         once pays for a full handshake when its tickets are used up."
                    );
                    self.add(
                        Code::TicketsInFullHandshakesOnly,
                        Some(tested.how),
                        vec![address],
                        text,
                    );
                }
                How::Ticket if given > 0 => {
                    let text = format!(
                        "{label} gave a new ticket in {given} of {} resumed TLS 1.2 handshakes. OpenSSL clients \
                         that take sessions by callback lose their session by this.",
                        returns.len()
                    );
                    self.add(
                        Code::RenewsTls12Ticket,
                        Some(tested.how),
                        vec![address],
                        text,
                    );
                }
                How::SessionId | How::Ticket | How::Psk => {}
            }
        }
    }
}
