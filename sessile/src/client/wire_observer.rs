//! Reads a connection's clear bytes with the project's own parsers as they pass: what the client
//! really offered, and what the server did with it.

use std::fmt;
use std::time::Instant;

use sessile_proto::hello::{ClientHello, HelloReader, MAX_LIMIT};
use sessile_proto::verdict::How;
use sessile_proto::watch::{Outcome, Watch};

/// A session that a client offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// By what.
    pub how: How,
    /// The session ID, the ticket or the PSK identity: never empty.
    pub bytes: Vec<u8>,
}

impl Offer {
    /// The first bytes in hexadecimal. Most servers put a ticket key's name there.
    #[must_use]
    pub fn prefix(&self) -> String {
        hex(&self.bytes[..self.bytes.len().min(KEY_NAME_LEN)])
    }

    /// The last bytes in hexadecimal: they tell tickets of one key apart.
    #[must_use]
    pub fn suffix(&self) -> String {
        hex(&self.bytes[self.bytes.len().saturating_sub(SHOWN_LEN)..])
    }

    /// A session ID beside a ticket only echoes that the ticket was taken (RFC 5077, 3.4), and
    /// beside TLS 1.3 it is mostly noise: `session_id` tells whether it means a session.
    fn of(hello: &ClientHello<'_>, session_id: bool) -> Option<Self> {
        let identities = hello.pre_shared_key.map(|psks| psks.identities());
        let psk = identities
            .and_then(|mut all| all.next())
            .map(|psk| psk.identity);
        let ticket = hello.session_ticket.filter(|ticket| !ticket.is_empty());
        let session_id = Some(hello.session_id).filter(|id| session_id && !id.is_empty());
        let (how, bytes) = psk
            .map(|bytes| (How::Psk, bytes))
            .or(ticket.map(|bytes| (How::Ticket, bytes)))
            .or(session_id.map(|bytes| (How::SessionId, bytes)))?;
        Some(Self {
            how,
            bytes: bytes.to_vec(),
        })
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = self.how.as_str();
        if self.bytes.len() <= 2 * SHOWN_LEN {
            return write!(f, "{how} {}", hex(&self.bytes));
        }
        let head = hex(&self.bytes[..SHOWN_LEN]);
        write!(f, "{how} {head}…{}", self.suffix())
    }
}

/// Bytes of a ticket key's name (RFC 5077, 4).
const KEY_NAME_LEN: usize = 16;

/// Bytes shown of either end.
const SHOWN_LEN: usize = 4;

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Both directions of one connection, until the outcome is known.
pub(super) struct WireObserver {
    /// Whether a TLS 1.2 session was taken from the cache to be offered.
    tls12_session: bool,
    state: State,
    /// When the server's first byte came.
    pub(super) first_byte: Option<Instant>,
    pub(super) offered: Option<Offer>,
    pub(super) outcome: Option<Outcome>,
}

enum State {
    ExpectClientHello(HelloReader),
    ExpectOutcome(Watch),
    Done,
}

impl WireObserver {
    pub(super) fn new(tls12_session: bool) -> Self {
        Self {
            tls12_session,
            state: State::ExpectClientHello(HelloReader::new(MAX_LIMIT)),
            first_byte: None,
            offered: None,
            outcome: None,
        }
    }

    pub(super) fn client_sent(&mut self, bytes: &[u8]) {
        let State::ExpectClientHello(reader) = &mut self.state else {
            return;
        };
        match reader.push(bytes) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(hello) = reader.hello() else {
                    self.state = State::Done;
                    return;
                };
                self.offered = Offer::of(&hello, self.tls12_session);
                self.state = State::ExpectOutcome(Watch::new(&hello));
            }
            Err(_) => self.state = State::Done,
        }
    }

    pub(super) fn server_sent(&mut self, bytes: &[u8]) {
        if self.first_byte.is_none() && !bytes.is_empty() {
            self.first_byte = Some(Instant::now());
        }
        if let State::ExpectOutcome(watch) = &mut self.state
            && let Some(outcome) = watch.push(bytes)
        {
            self.outcome = Some(outcome);
            self.state = State::Done;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_shows_both_its_ends() {
        let how = How::Ticket;
        let bytes: Vec<u8> = (0..40).collect();
        let offer = Offer { how, bytes };
        assert_eq!(offer.to_string(), "ticket 00010203…24252627");
        assert_eq!(offer.prefix(), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(offer.suffix(), "24252627");
        let short = Offer {
            how,
            bytes: vec![1, 2],
        };
        assert_eq!(short.to_string(), "ticket 0102");
        assert_eq!(
            (short.prefix(), short.suffix()),
            ("0102".into(), "0102".into())
        );
    }
}
