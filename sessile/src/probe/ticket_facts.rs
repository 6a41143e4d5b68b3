//! Reads facts from the tickets of a server: their number, lengths, lifetimes and key names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;

use super::attempt::Attempt;
use super::report::{MechanismFindings, ProbeReport};
use super::ticket_bytes::{KEY_NAME_LEN, names_cached_session};
use crate::client::GivenTicket;

/// The facts about the tickets of one server and one mechanism. Each set has the different values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TicketFacts {
    /// The number of tickets in a full handshake.
    pub in_full_handshake: BTreeSet<usize>,
    /// The number of tickets in a resumed handshake.
    pub in_resumed_handshake: BTreeSet<usize>,
    /// The length of a ticket in bytes.
    pub bytes: BTreeSet<usize>,
    /// The lifetime that the server promises, in seconds. 0 with TLS 1.2: the server does not say.
    pub lifetime_seconds: BTreeSet<u32>,
    /// Most bytes of early data, for tickets that allow early data.
    pub max_early_data: BTreeSet<u32>,
    /// Whether the server resumed a ticket twice. `None` if that is not known.
    pub usable_twice: Option<bool>,
    /// The names of the keys, in hexadecimal. Empty if the tickets have no name that repeats.
    pub key_names: BTreeSet<String>,
}

/// Finds the key names among the tickets of a report.
///
/// Most servers put the name of the key into the first 16 bytes (RFC 5077, 4). These bytes are a name if different
/// tickets have them. Other servers begin with random bytes, which never repeat.
pub(super) struct KeyNames(BTreeSet<Vec<u8>>);

impl KeyNames {
    pub(super) fn of(report: &ProbeReport) -> Self {
        let mut tickets: BTreeMap<&[u8], BTreeSet<&[u8]>> = BTreeMap::new();
        for seen in report.attempts().filter_map(Attempt::seen) {
            for GivenTicket { bytes, .. } in &seen.tickets {
                if !names_cached_session(bytes) {
                    let with_name = tickets.entry(&bytes[..KEY_NAME_LEN]).or_default();
                    with_name.insert(bytes);
                }
            }
        }
        let repeated = tickets
            .into_iter()
            .filter(|(_, with_name)| with_name.len() > 1);
        Self(repeated.map(|(name, _)| name.to_vec()).collect())
    }

    /// The key name of a ticket.
    pub(super) fn name<'a>(&self, ticket: &'a [u8]) -> Option<&'a [u8]> {
        let name = ticket.get(..KEY_NAME_LEN)?;
        self.0.contains(name).then_some(name)
    }
}

impl TicketFacts {
    /// The facts about the tickets of `server`. `None` if the server gave no ticket.
    pub(super) fn of(
        report: &ProbeReport,
        tested: &MechanismFindings,
        names: &KeyNames,
        server: SocketAddr,
    ) -> Option<Self> {
        if tested.how == How::SessionId {
            return None;
        }
        let mut facts = Self::default();
        for seen in tested.finished_at(server) {
            let counts = if seen.is_resumed() {
                &mut facts.in_resumed_handshake
            } else {
                &mut facts.in_full_handshake
            };
            counts.insert(seen.tickets.len());
            for ticket in &seen.tickets {
                facts.bytes.insert(ticket.bytes.len());
                facts.lifetime_seconds.insert(ticket.lifetime);
                facts.max_early_data.extend(ticket.max_early_data);
                let name = names.name(&ticket.bytes);
                facts.key_names.extend(name.map(crate::client::hex));
            }
        }
        facts.usable_twice = usable_twice(report, tested, server);
        (!facts.bytes.is_empty()).then_some(facts)
    }

    /// The facts of each server that gave tickets. Servers with the same facts are one entry.
    pub(super) fn by_servers(
        report: &ProbeReport,
        tested: &MechanismFindings,
    ) -> Vec<(Self, Vec<SocketAddr>)> {
        let names = KeyNames::of(report);
        let mut entries: Vec<(Self, Vec<SocketAddr>)> = Vec::new();
        for &server in &report.addresses {
            let Some(facts) = Self::of(report, tested, &names, server) else {
                continue;
            };
            match entries.iter_mut().find(|(known, _)| *known == facts) {
                Some((_, servers)) => servers.push(server),
                None => entries.push((facts, vec![server])),
            }
        }
        entries
    }
}

/// Whether the server resumed one of its tickets twice. With TLS 1.2, the probe offers the same ticket again and again.
fn usable_twice(
    report: &ProbeReport,
    tested: &MechanismFindings,
    server: SocketAddr,
) -> Option<bool> {
    if tested.how == How::Psk {
        let mut known = report.usable_twice.iter();
        return known.find(|(known, _)| *known == server).map(|(_, is)| *is);
    }
    let mut resumed: BTreeMap<&[u8], usize> = BTreeMap::new();
    for seen in tested.finished_at(server) {
        if let (Some(offer), Kind::Resumed(_)) = (&seen.offered, seen.kind) {
            *resumed.entry(&offer.bytes).or_default() += 1;
        }
    }
    let most = resumed.values().max()?;
    (*most > 1).then_some(true)
}
