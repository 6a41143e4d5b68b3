//! Watches the clear bytes of a server. They show whether the handshake resumed a session, and how a client
//! can offer the new session. Messages that are not needed, such as Certificate, are skipped.

mod completion;

pub use completion::{Completion, CompletionWatch};

use std::mem;
use std::ops::ControlFlow::{self, Break, Continue};

use strum::{EnumDiscriminants, IntoStaticStr, VariantArray};

use crate::hello::{ClientHello, NewSessionTicket, ServerHello, TLS_1_2, kind};
use crate::record::{Deframer, Error, Item};
use crate::verdict::How;

/// Longest message that is held: a NewSessionTicket with the longest possible ticket.
const LIMIT: usize = 4 + 4 + 2 + u16::MAX as usize;

/// The alert level that ends no connection.
const WARNING: u8 = 1;

/// The alert that ends a connection at every level.
const CLOSE_NOTIFY: u8 = 0;

/// Follows one handshake in the bytes that the server sends.
///
/// Push the bytes before they go on to the client. Then the outcome is known before the client can return. A
/// connection that ends without an [`Outcome`] is a failed handshake.
#[derive(Clone, Debug)]
pub struct Watch {
    deframer: Deframer,
    handshake: Handshake,
}

/// The outcome of a handshake, read from the clear bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The negotiated version. 0 if there was no ServerHello.
    pub version: u16,
    /// The negotiated cipher suite. 0 if there was no ServerHello.
    pub cipher_suite: u16,
    /// Whether the handshake resumed a session.
    pub kind: Kind,
    /// How a client can offer the new session, in TLS 1.2 and earlier.
    pub learned: Vec<Learned>,
    /// The server's hint for how long it accepts the ticket, in seconds. 0 if there is no hint.
    pub lifetime_hint: u32,
    /// True if the server sent a HelloRetryRequest.
    pub hello_retry: bool,
}

/// Whether a session was resumed. [`SessionOutcome`] is the same without the mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumDiscriminants)]
#[strum_discriminants(
    name(SessionOutcome),
    doc = "The outcome for the session that a client offered, with the words of reports and metric labels.",
    derive(IntoStaticStr, VariantArray),
    strum(serialize_all = "kebab-case")
)]
pub enum Kind {
    /// The handshake resumed a session.
    Resumed(How),
    /// The client offered a session, and the handshake was full.
    Refused,
    /// The client offered no session.
    ///
    /// The session ID of a client that offers TLS 1.3 does not count as an offer. Most are random
    /// ([RFC 9846, 4.1.2](https://www.rfc-editor.org/rfc/rfc9846#section-4.1.2)).
    NotOffered,
    /// The server sent an alert, or bytes that are no TLS handshake.
    Failed,
}

/// A means to offer a session again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    /// A session ID of TLS 1.2 or earlier.
    SessionId(Vec<u8>),
    /// A ticket of TLS 1.2 or earlier.
    Ticket(Vec<u8>),
}

impl Outcome {
    /// An outcome that teaches no session.
    const fn new(version: u16, cipher_suite: u16, kind: Kind) -> Self {
        Self {
            version,
            cipher_suite,
            kind,
            learned: Vec::new(),
            lifetime_hint: 0,
            hello_retry: false,
        }
    }
}

impl Watch {
    /// Prepares to watch the server's answer to the client's first hello.
    #[must_use]
    pub fn new(hello: &ClientHello<'_>) -> Self {
        let kept = |kind| matches!(kind, kind::SERVER_HELLO | kind::NEW_SESSION_TICKET);
        Self {
            deframer: Deframer::new(LIMIT, kept),
            handshake: Handshake {
                offer: ClientOffer::new(hello),
                state: Awaited::ExpectServerHello,
                hello_retry: false,
                selected_identity: None,
            },
        }
    }

    /// Takes the next bytes of the server. Returns the outcome once, when it is certain.
    ///
    /// Later bytes are ignored.
    pub fn push(&mut self, server_bytes: &[u8]) -> Option<Outcome> {
        let mut input = server_bytes;
        while !self.is_done() {
            let outcome = match self.deframer.next(&mut input) {
                Ok(item) => self.handshake.take(item),
                Err(Error::Incomplete) => return None,
                Err(_) => Some(self.handshake.fail()),
            };
            if outcome.is_some() {
                return outcome;
            }
        }
        None
    }

    /// True if the outcome was returned.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.handshake.state, Awaited::Done)
    }

    /// The index of the resumed identity, if the outcome is `Resumed(How::Psk)`.
    ///
    /// It counts the identities of the client's **last** hello. After [`Outcome::hello_retry`] that is the
    /// second hello.
    #[must_use]
    pub const fn selected_identity(&self) -> Option<u16> {
        self.handshake.selected_identity
    }
}

/// The state of a handshake.
#[derive(Clone, Debug)]
struct Handshake {
    offer: ClientOffer,
    state: Awaited,
    hello_retry: bool,
    selected_identity: Option<u16>,
}

/// The message that is awaited next.
#[derive(Clone, Debug)]
enum Awaited {
    ExpectServerHello,
    /// TLS 1.2 or earlier.
    ExpectChangeCipherSpec(Flight),
    Done,
}

/// The server's clear messages of TLS 1.2 or earlier.
#[derive(Clone, Debug)]
struct Flight {
    version: u16,
    cipher_suite: u16,
    session_id: Vec<u8>,
    ticket: Option<Vec<u8>>,
    lifetime_hint: u32,
    /// True if a message came that only a full handshake has.
    full: bool,
}

impl Handshake {
    fn take(&mut self, item: Item<'_>) -> Option<Outcome> {
        // Before TLS 1.3 some servers warn of an unknown name and continue.
        if let Item::Alert { level, description } = item
            && level == WARNING
            && description != CLOSE_NOTIFY
        {
            return None;
        }
        let next = match mem::replace(&mut self.state, Awaited::Done) {
            Awaited::ExpectServerHello => self.expect_server_hello(item),
            Awaited::ExpectChangeCipherSpec(flight) => self.expect_change_cipher_spec(flight, item),
            Awaited::Done => Continue(Awaited::Done),
        };
        match next {
            Continue(state) => {
                self.state = state;
                None
            }
            Break(outcome) => Some(outcome),
        }
    }

    fn expect_server_hello(&mut self, item: Item<'_>) -> ControlFlow<Outcome, Awaited> {
        let message = match item {
            Item::Handshake(message) => message,
            Item::Skipped(kind::HELLO_REQUEST) => return Continue(Awaited::ExpectServerHello),
            // After a HelloRetryRequest a ChangeCipherSpec is only for middleboxes (RFC 9846, D.4).
            Item::ChangeCipherSpec if self.hello_retry => {
                return Continue(Awaited::ExpectServerHello);
            }
            _ => return Break(self.fail()),
        };
        let Ok(hello) = ServerHello::parse(message) else {
            return Break(self.fail());
        };
        if hello.version() > TLS_1_2 {
            return self.tls13(&hello);
        }
        if self.hello_retry {
            return Break(self.fail());
        }
        Continue(Awaited::ExpectChangeCipherSpec(Flight {
            version: hello.version(),
            cipher_suite: hello.cipher_suite,
            session_id: hello.session_id.to_vec(),
            ticket: None,
            lifetime_hint: 0,
            full: false,
        }))
    }

    fn tls13(&mut self, hello: &ServerHello<'_>) -> ControlFlow<Outcome, Awaited> {
        let is_retry = hello.is_hello_retry_request();
        if !self.offer.tls13 || (is_retry && self.hello_retry) {
            return Break(self.fail());
        }
        if is_retry {
            self.hello_retry = true;
            return Continue(Awaited::ExpectServerHello);
        }
        let kind = match hello.selected_identity {
            None => self.offer.full(),
            // The hello after a HelloRetryRequest cannot have more identities than the first hello.
            Some(index) if usize::from(index) < self.offer.psks => {
                self.selected_identity = Some(index);
                Kind::Resumed(How::Psk)
            }
            Some(_) => Kind::Failed,
        };
        Break(Outcome {
            hello_retry: self.hello_retry,
            ..Outcome::new(hello.version(), hello.cipher_suite, kind)
        })
    }

    fn expect_change_cipher_spec(
        &self,
        mut flight: Flight,
        item: Item<'_>,
    ) -> ControlFlow<Outcome, Awaited> {
        match item {
            Item::ChangeCipherSpec => return Break(flight.end(&self.offer)),
            Item::Skipped(kind) => flight.full |= kind::ONLY_WHERE_FULL.contains(&kind),
            Item::Handshake(message) => match NewSessionTicket::parse(message) {
                Ok(parsed) if flight.ticket.is_none() => {
                    flight.ticket = Some(parsed.ticket.to_vec());
                    flight.lifetime_hint = parsed.lifetime_hint;
                }
                _ => return Break(flight.fail()),
            },
            Item::Alert { .. } | Item::ApplicationData(_) => return Break(flight.fail()),
        }
        Continue(Awaited::ExpectChangeCipherSpec(flight))
    }

    /// Ends the handshake after a message that is not allowed here, or that is not TLS.
    fn fail(&mut self) -> Outcome {
        match mem::replace(&mut self.state, Awaited::Done) {
            Awaited::ExpectChangeCipherSpec(flight) => flight.fail(),
            Awaited::ExpectServerHello | Awaited::Done => Outcome {
                hello_retry: self.hello_retry,
                ..Outcome::new(0, 0, Kind::Failed)
            },
        }
    }
}

impl Flight {
    /// Ends the handshake at the server's ChangeCipherSpec.
    ///
    /// In a full handshake, the server sends its ChangeCipherSpec only after it has verified the client's
    /// Finished. So the balancer learns nothing from an abandoned handshake.
    fn end(self, offer: &ClientOffer) -> Outcome {
        let is_offered_id = !self.session_id.is_empty() && self.session_id == offer.session_id;
        let kind = if self.full {
            offer.full()
        } else if offer.ticket {
            // If a client sends a ticket, the session ID proves nothing (RFC 5077, 3.4).
            Kind::Resumed(How::Ticket)
        } else if is_offered_id {
            Kind::Resumed(How::SessionId)
        } else {
            return self.fail();
        };
        let mut learned = Vec::new();
        if !self.session_id.is_empty() && !is_offered_id {
            learned.push(Learned::SessionId(self.session_id));
        }
        if let Some(ticket) = self.ticket
            && !ticket.is_empty()
        {
            learned.push(Learned::Ticket(ticket));
        }
        Outcome {
            learned,
            lifetime_hint: self.lifetime_hint,
            ..Outcome::new(self.version, self.cipher_suite, kind)
        }
    }

    fn fail(self) -> Outcome {
        Outcome::new(self.version, self.cipher_suite, Kind::Failed)
    }
}

/// The sessions that the client offered.
#[derive(Clone, Debug)]
struct ClientOffer {
    session_id: Vec<u8>,
    tls13: bool,
    ticket: bool,
    psks: usize,
}

impl ClientOffer {
    fn new(hello: &ClientHello<'_>) -> Self {
        Self {
            session_id: hello.session_id.to_vec(),
            tls13: hello.offers_tls13(),
            ticket: hello
                .session_ticket
                .is_some_and(|ticket| !ticket.is_empty()),
            psks: hello.pre_shared_key.map_or(0, |psks| psks.count()),
        }
    }

    /// The kind of a full handshake after this offer.
    const fn full(&self) -> Kind {
        let offers_session_id = !self.session_id.is_empty() && !self.tls13;
        if offers_session_id || self.ticket || self.psks > 0 {
            Kind::Refused
        } else {
            Kind::NotOffered
        }
    }
}

#[cfg(test)]
mod tests;
