//! The facts of a ClientHello that resumption depends on.

use super::store_key::StoreKey;
use crate::hello::{ClientHello, TLS_1_3};
use crate::keys::Schedule;
use crate::ticket::{self, Class, SRID_LEN};

/// Most identities of a hello that are looked at. Browsers offer one or two.
pub(super) const MAX_IDENTITIES: usize = 4;

/// The facts of a ClientHello that decide whether a session resumes.
#[derive(Clone, Debug)]
pub struct Offers {
    /// The version that will be negotiated, as on the wire: TLS 1.2 or TLS 1.3.
    pub version: u16,
    /// The server name (SNI) in lower case; empty if the client sent none.
    pub server_name: String,
    /// True if the master secret will be extended (RFC 7627). Always true in TLS 1.3.
    pub extended_master_secret: bool,
    /// True if the client resumes with a new key exchange (`psk_dhe_ke`, RFC 9846, 4.2.9).
    pub psk_dhe_ke: bool,
    /// True if a TLS 1.2 client takes tickets (RFC 5077, 3.2).
    pub accepts_ticket: bool,
    /// True if the client says how many TLS 1.3 tickets it wants (RFC 9149).
    pub requests_tickets: bool,
    /// True if a TLS 1.2 ticket comes with a hello that leads to TLS 1.3.
    pub offers_tls12_ticket_in_tls13: bool,
    /// The random of the hello.
    pub random: [u8; 32],
}

impl Offers {
    /// Reads the facts out of a hello.
    #[must_use]
    pub fn new(hello: &ClientHello<'_>) -> Self {
        let is_tls13 = hello.offers_tls13();
        let server_name = hello.server_name.map(str::to_ascii_lowercase);
        let offers_ticket = hello
            .session_ticket
            .is_some_and(|ticket| !ticket.is_empty());
        Self {
            version: hello.negotiated_version(),
            server_name: server_name.unwrap_or_default(),
            extended_master_secret: is_tls13 || hello.extended_master_secret,
            psk_dhe_ke: hello.psk_dhe_ke,
            accepts_ticket: hello.session_ticket.is_some(),
            requests_tickets: hello.ticket_request.is_some(),
            offers_tls12_ticket_in_tls13: is_tls13 && offers_ticket,
            // Only the SSLv2 form has a random of another length, and no server accepts this form.
            random: hello.random.first_chunk().copied().unwrap_or_default(),
        }
    }

    /// True if the handshake will be TLS 1.3.
    #[must_use]
    pub const fn is_tls13(&self) -> bool {
        self.version == TLS_1_3
    }
}

/// The keys of the stored sessions that a hello names: four at most.
///
/// An identity for single use has no label and looks random. If the store `is_shared`, every site looks
/// such an identity up. So a site loses no session when it turns early data on or off.
#[must_use]
pub fn stored_sessions(
    hello: &ClientHello<'_>,
    schedule: &Schedule,
    is_shared: bool,
) -> Vec<StoreKey> {
    let is_tls13 = hello.offers_tls13();
    let store_key = |token: &[u8]| {
        // Every stored session has a token of this length. Other tokens need no trial decryption.
        if token.len() != SRID_LEN {
            return None;
        }
        match ticket::read_label(schedule.routes(), token) {
            Some((id, label)) if label.class == Class::Stored => Some(StoreKey::stored(&id)),
            Some(_) => None,
            None if is_shared && is_tls13 => StoreKey::single_use(token),
            None => None,
        }
    };
    if is_tls13 {
        let identities = hello
            .pre_shared_key
            .iter()
            .flat_map(|psks| psks.identities());
        let tokens = identities.take(MAX_IDENTITIES).map(|psk| psk.identity);
        return tokens.filter_map(store_key).collect();
    }
    let ticket = hello.session_ticket.filter(|ticket| !ticket.is_empty());
    let named = match ticket {
        // The client invents the session ID beside a ticket (RFC 5077, 3.4).
        Some(ticket) => store_key(ticket),
        None => StoreKey::session_id(hello.session_id),
    };
    named.into_iter().collect()
}
