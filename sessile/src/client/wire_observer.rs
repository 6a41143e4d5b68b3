//! Parses the clear bytes of a connection as they pass. It finds the session that the client
//! offered, and the server's answer to the offer.

use std::fmt;
use std::time::Instant;

use sessile_proto::hello::{ClientHello, HelloReader, MAX_LIMIT};
use sessile_proto::key_names;
use sessile_proto::verdict::How;
use sessile_proto::watch::{Outcome, Watch};

/// A session that a client offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub how: How,
    /// The session ID, ticket or PSK identity; never empty.
    pub bytes: Vec<u8>,
}

impl Offer {
    /// The first bytes in hexadecimal. Most servers put the name of the ticket key there.
    #[must_use]
    pub fn prefix(&self) -> String {
        hex(&self.bytes[..self.bytes.len().min(key_names::LEN)])
    }

    /// The last bytes in hexadecimal, which distinguish tickets of one key.
    #[must_use]
    pub fn suffix(&self) -> String {
        hex(&self.bytes[self.bytes.len().saturating_sub(SUFFIX_LEN)..])
    }

    /// The offer in a ClientHello. `has_tls12_session` is true if rustls took a TLS 1.2 session for
    /// it.
    fn from_hello(hello: &ClientHello<'_>, has_tls12_session: bool) -> Option<Self> {
        let psk = hello
            .pre_shared_key
            .and_then(|psks| psks.identities().next());
        // With a ticket, the session ID only lets the client recognise that the server resumes (RFC
        // 5077, 3.4). With TLS 1.3, most clients send random bytes as the session ID.
        let (how, bytes) = if let Some(psk) = psk {
            (How::Psk, psk.identity)
        } else if let Some(ticket) = hello.session_ticket.filter(|ticket| !ticket.is_empty()) {
            (How::Ticket, ticket)
        } else if has_tls12_session && !hello.session_id.is_empty() {
            (How::SessionId, hello.session_id)
        } else {
            return None;
        };
        Some(Self {
            how,
            bytes: bytes.to_vec(),
        })
    }
}

/// The bytes without those in the middle.
impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = &self.bytes;
        if bytes.len() <= SHOWN_AT_START + SHOWN_AT_END {
            return f.write_str(&hex(bytes));
        }
        let start = hex(&bytes[..SHOWN_AT_START]);
        let end = hex(&bytes[bytes.len() - SHOWN_AT_END..]);
        write!(f, "{start}…{end}")
    }
}

/// The number of bytes of a suffix.
const SUFFIX_LEN: usize = 4;

/// The number of displayed bytes at the start.
const SHOWN_AT_START: usize = 4;

/// The number of displayed bytes at the end.
const SHOWN_AT_END: usize = 2;

/// The bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Observes both directions of one connection until the outcome is known.
pub(super) struct WireObserver {
    /// True if rustls took a TLS 1.2 session from the cache for the ClientHello.
    has_tls12_session: bool,
    state: ObserverState,
    /// The time at which the server's first byte arrived.
    pub(super) first_byte: Option<Instant>,
    pub(super) offered: Option<Offer>,
    pub(super) outcome: Option<Outcome>,
    /// The bytes that the client sent before the server's first byte.
    pub(super) first_flight: Vec<u8>,
    /// The server's first bytes, from its first record on.
    pub(super) server_bytes: Vec<u8>,
}

/// The bytes in which TLS 1.3 tickets are looked for: room for a handshake with large certificates.
const MAX_SERVER_BYTES: usize = 1 << 16;

/// The bytes of the first flight that are kept: room for a ClientHello with a large ticket, and early data.
const MAX_FIRST_FLIGHT: usize = 1 << 17;

enum ObserverState {
    ExpectClientHello(HelloReader),
    ExpectOutcome(Watch),
    Done,
}

impl WireObserver {
    pub(super) fn new(has_tls12_session: bool) -> Self {
        Self {
            has_tls12_session,
            state: ObserverState::ExpectClientHello(HelloReader::new(MAX_LIMIT)),
            first_byte: None,
            offered: None,
            outcome: None,
            first_flight: Vec::new(),
            server_bytes: Vec::new(),
        }
    }

    pub(super) fn client_sent(&mut self, bytes: &[u8]) {
        if self.first_byte.is_none() {
            let room = MAX_FIRST_FLIGHT - self.first_flight.len();
            let kept = &bytes[..bytes.len().min(room)];
            self.first_flight.extend_from_slice(kept);
        }
        let ObserverState::ExpectClientHello(reader) = &mut self.state else {
            return;
        };
        match reader.push(bytes) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(hello) = reader.hello() else {
                    self.state = ObserverState::Done;
                    return;
                };
                self.offered = Offer::from_hello(&hello, self.has_tls12_session);
                self.state = ObserverState::ExpectOutcome(Watch::new(&hello));
            }
            Err(_) => self.state = ObserverState::Done,
        }
    }

    pub(super) fn server_sent(&mut self, bytes: &[u8]) {
        if self.first_byte.is_none() && !bytes.is_empty() {
            self.first_byte = Some(Instant::now());
        }
        let room = MAX_SERVER_BYTES - self.server_bytes.len();
        let kept = &bytes[..bytes.len().min(room)];
        self.server_bytes.extend_from_slice(kept);
        if let ObserverState::ExpectOutcome(watch) = &mut self.state
            && let Some(outcome) = watch.push(bytes)
        {
            self.outcome = Some(outcome);
            self.state = ObserverState::Done;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_displays_its_first_and_last_bytes() {
        let how = How::Ticket;
        let bytes: Vec<u8> = (0..40).collect();
        let offer = Offer { how, bytes };
        assert_eq!(offer.to_string(), "00010203…2627");
        assert_eq!(offer.prefix(), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(offer.suffix(), "24252627");
        let short = Offer {
            how,
            bytes: vec![1, 2],
        };
        assert_eq!(short.to_string(), "0102");
        assert_eq!(
            (short.prefix(), short.suffix()),
            ("0102".into(), "0102".into())
        );
    }
}
