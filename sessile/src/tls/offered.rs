//! What a ClientHello offers, as far as this server may know it.

use sessile_proto::hello::ClientHello;
use sessile_proto::keys::Schedule;
use sessile_proto::ticket::{self, Class, SRID_LEN};
use sessile_proto::verdict::Reason;

use super::context::TLS13;
use crate::store::Key;

/// Most identities of a hello that are looked at; browsers offer one or two.
pub(super) const MAX_IDENTITIES: usize = 4;

/// What is refused unseen: a ticket of TLS 1.2 in a handshake that will be TLS 1.3. A session ID
/// beside it is noise, as far as anyone can tell.
pub(super) fn beside(hello: &ClientHello<'_>, version: u16) -> Vec<Reason> {
    let ticket = hello
        .session_ticket
        .is_some_and(|ticket| !ticket.is_empty());
    match version == TLS13 && ticket {
        true => vec![Reason::VersionMismatch],
        false => Vec::new(),
    }
}

/// 32 bytes in every form of hello that gets here.
pub(super) fn random(hello: &ClientHello<'_>) -> [u8; 32] {
    hello.random.first_chunk().copied().unwrap_or_default()
}

/// The keys of the stored sessions that a hello names, a handful at most.
///
/// An identity for single use has no label and looks like noise; where the store is `shared` it is asked
/// for at every site, so that early data can be turned on and off without a session lost.
pub(super) fn stored(
    hello: &ClientHello<'_>,
    schedule: &Schedule,
    version: u16,
    shared: bool,
) -> Vec<Key> {
    let key = |token: &[u8]| match ticket::read_label(schedule.routes(), token) {
        Some((id, label)) => (label.class == Class::Stored).then(|| Key::stored(&id)),
        None => Key::single_use(token).filter(|_| shared && version == TLS13),
    };
    // Only a token of an identifier's length can name a stored session: spare the others the work.
    let may_be_stored = |token: &&[u8]| token.len() == SRID_LEN;
    if version == TLS13 {
        let identities = hello
            .pre_shared_key
            .iter()
            .flat_map(|psks| psks.identities());
        let tokens = identities.take(MAX_IDENTITIES).map(|psk| psk.identity);
        return tokens.filter(may_be_stored).filter_map(key).collect();
    }
    match hello.session_ticket.filter(|ticket| !ticket.is_empty()) {
        // Where there is a ticket, the session ID is the client's own invention.
        Some(ticket) => Some(ticket).filter(may_be_stored).and_then(key),
        None => Key::session_id(hello.session_id),
    }
    .into_iter()
    .collect()
}
