//! Findings about the tickets that servers give.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use sessile_proto::verdict::How;
use sessile_proto::weak_ticket_key::{WeakTicketKey, recognise};

use super::Found;
use crate::probe::finding::Code;
use crate::probe::report::MechanismFindings;
use crate::probe::ticket_bytes::KEY_NAME_LEN;

/// The longest lifetime of a TLS 1.3 ticket (RFC 9846, 4.6.1).
const SEVEN_DAYS: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The number of keys of a server that are tried. Without key names, each ticket can have another key.
const MAX_KEYS_TRIED: usize = 4;

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
            self.weak_key(tested, address);
            self.lifetimes(tested, address);
        }
    }

    /// A server that gives no ticket in resumed TLS 1.3 handshakes.
    fn missing_renewal(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let mut returns = tested
            .finished_at(address)
            .filter(|seen| seen.is_resumed())
            .peekable();
        if returns.peek().is_none() || returns.any(|seen| seen.given) || !tested.gives(address) {
            return;
        }
        let deed = "gave TLS 1.3 tickets in full handshakes only. A client that uses each ticket once pays for a \
                    full handshake when its tickets are used up.";
        let code = Code::TicketsInFullHandshakesOnly;
        self.observe(code, Some(tested.how), address, deed.to_owned());
    }

    /// A server that gives new tickets in resumed TLS 1.2 handshakes.
    fn renewed_tickets(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let mut returns = tested.finished_at(address).filter(|seen| seen.is_resumed());
        if !returns.any(|seen| seen.given) {
            return;
        }
        let deed = "gave new tickets in resumed TLS 1.2 handshakes. OpenSSL clients that take sessions by callback \
                    lose their session by this.";
        let code = Code::RenewsTls12Ticket;
        self.observe(code, Some(tested.how), address, deed.to_owned());
    }

    /// A server that gives the same ticket again.
    fn repeated_tickets(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let tickets = || tested.tickets_of(address).map(|(_, ticket)| &ticket.bytes);
        let different = tickets().collect::<BTreeSet<_>>().len();
        let count = tickets().count();
        if different == count {
            return;
        }
        let deed = format!(
            "gave {count} TLS 1.3 tickets, and only {different} of them differ. Everybody on the way can recognise \
             a client that offers the same ticket again."
        );
        self.observe(Code::RepeatsTickets, Some(tested.how), address, deed);
    }

    /// A server whose ticket key can be guessed.
    fn weak_key(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let mut key_names = BTreeSet::new();
        let of_each_key = tested
            .tickets_of(address)
            .filter(|(_, ticket)| key_names.insert(ticket.bytes.get(..KEY_NAME_LEN)));
        let mut tried = of_each_key.take(MAX_KEYS_TRIED);
        let Some(weak) = tried.find_map(|(_, ticket)| recognise(&ticket.bytes)) else {
            return;
        };
        let what = match weak {
            WeakTicketKey::Zero => "is all zero".to_owned(),
            WeakTicketKey::Repeated(byte) => format!("is the byte {byte:02x}, repeated"),
            WeakTicketKey::Sequence => "is a sequence of bytes, as in 00 01 02".to_owned(),
            WeakTicketKey::Published(place) => format!("is published: {place}"),
        };
        let deed = format!(
            "sealed tickets with a key that {what}. Everybody can open such a ticket, take over its session, and \
             read the connections that resume it with TLS 1.2."
        );
        self.observe(Code::WeakTicketKey, Some(tested.how), address, deed);
    }

    /// A server that promises to accept tickets for too long.
    fn lifetimes(&mut self, tested: &MechanismFindings, address: SocketAddr) {
        let lifetimes = || {
            tested.tickets_of(address).map(|(seen, ticket)| {
                let lifetime = Duration::from_secs(ticket.lifetime.into());
                (seen, lifetime)
            })
        };
        let longest = lifetimes().map(|(_, lifetime)| lifetime).max();
        if let Some(longest) = longest.filter(|longest| *longest > SEVEN_DAYS) {
            let lifetime = humantime::format_duration(longest);
            let deed =
                format!("promised to accept tickets for {lifetime}. TLS 1.3 allows seven days.");
            let code = Code::LifetimeOverSevenDays;
            self.observe(code, Some(tested.how), address, deed);
        }
        let outlives = lifetimes().find_map(|(seen, lifetime)| {
            let left = seen.certificate_left?;
            // A client refuses an expired certificate in a full handshake. It does not check it in a resumed one.
            (!left.is_zero() && lifetime > left).then_some((lifetime, left))
        });
        if let Some((lifetime, left)) = outlives {
            let deed = format!(
                "promised to accept tickets for {}, and has a certificate that ends in {}.",
                humantime::format_duration(lifetime),
                humantime::format_duration(Duration::from_secs(left.as_secs() / 60 * 60)),
            );
            let code = Code::OutlivesCertificate;
            self.observe(code, Some(tested.how), address, deed);
        }
    }
}
