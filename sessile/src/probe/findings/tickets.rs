//! Findings about the tickets that servers give.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;

use super::Found;
use crate::probe::attempt::FinishedHandshake;
use crate::probe::finding::Code;
use crate::probe::report::MechanismFindings;
use crate::probe::ticket_facts::given;

/// The longest lifetime of a TLS 1.3 ticket (RFC 9846, 4.6.1).
const SEVEN_DAYS: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Found<'_> {
    pub(super) fn tickets(&mut self, tested: &MechanismFindings) {
        for &address in &self.report.addresses {
            match tested.how {
                How::SessionId => {}
                How::Ticket => self.renewed_tickets(tested, address),
                How::Psk => {
                    self.missing_renewal(tested, address);
                    self.repeated_tickets(tested, address);
                }
            }
            self.lifetimes(tested, address);
        }
    }

    /// A server that gives no ticket in resumed TLS 1.3 handshakes.
    fn missing_renewal(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let mut returns = tested.finished_at(address).filter(is_resumed).peekable();
        if returns.peek().is_none() || returns.any(|seen| seen.given) || !tested.gives(address) {
            return;
        }
        let text = format!(
            "{} gives TLS 1.3 tickets in full handshakes only. A client that uses each ticket once pays for a full \
             handshake when its tickets are used up.",
            self.report.server_label(address)
        );
        let code = Code::TicketsInFullHandshakesOnly;
        self.add(code, Some(tested.how), vec![address], text);
    }

    /// A server that gives new tickets in resumed TLS 1.2 handshakes.
    fn renewed_tickets(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let returns = || tested.finished_at(address).filter(is_resumed);
        let given = returns().filter(|seen| seen.given).count();
        if given == 0 {
            return;
        }
        let text = format!(
            "{} gave a new ticket in {given} of {} resumed TLS 1.2 handshakes. OpenSSL clients that take sessions \
             by callback lose their session by this.",
            self.report.server_label(address),
            returns().count()
        );
        let code = Code::RenewsTls12Ticket;
        self.add(code, Some(tested.how), vec![address], text);
    }

    /// A server that gives the same ticket again.
    fn repeated_tickets(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let tickets = || given(tested, address).map(|(_, ticket)| &ticket.bytes);
        let different = tickets().collect::<BTreeSet<_>>().len();
        let count = tickets().count();
        if different == count {
            return;
        }
        let text = format!(
            "{} gave {count} TLS 1.3 tickets, and only {different} of them differ. Everybody on the way can \
             recognise a client that offers the same ticket again.",
            self.report.server_label(address)
        );
        self.add(Code::RepeatsTickets, Some(tested.how), vec![address], text);
    }

    /// A server that promises to accept tickets for too long.
    fn lifetimes(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let label = self.report.server_label(address);
        let lifetimes = || {
            given(tested, address).map(|(seen, ticket)| {
                let lifetime = Duration::from_secs(ticket.lifetime.into());
                (seen, lifetime)
            })
        };
        let longest = lifetimes().map(|(_, lifetime)| lifetime).max();
        if let Some(longest) = longest.filter(|longest| *longest > SEVEN_DAYS) {
            let lifetime = humantime::format_duration(longest);
            let mut text = format!("{label} promises to accept its tickets for {lifetime}.");
            text += match tested.how {
                How::Psk => " TLS 1.3 allows seven days.",
                How::SessionId | How::Ticket => {
                    " Who steals the ticket key in this time reads the connections. TLS 1.3 allows seven days."
                }
            };
            let code = Code::LifetimeOverSevenDays;
            self.add(code, Some(tested.how), vec![address], text);
        }
        let outlives = lifetimes().find_map(|(seen, lifetime)| {
            let left = seen.certificate_left?;
            // A client refuses an expired certificate in a full handshake. It does not check it in a resumed one.
            (!left.is_zero() && lifetime > left).then_some((lifetime, left))
        });
        if let Some((lifetime, left)) = outlives {
            let text = format!(
                "{label} promises to accept its tickets for {}. Its certificate ends in {}.",
                humantime::format_duration(lifetime),
                humantime::format_duration(Duration::from_secs(left.as_secs() / 60 * 60)),
            );
            let code = Code::OutlivesCertificate;
            self.add(code, Some(tested.how), vec![address], text);
        }
    }
}

fn is_resumed(seen: &&FinishedHandshake) -> bool {
    matches!(seen.kind, Kind::Resumed(_))
}
