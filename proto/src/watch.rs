//! What a server's clear bytes tell a bystander: whether the handshake resumed a session, and by
//! what a session that was made can be known again. Bodies that are not needed, such as the
//! certificate chain, are skipped and never held.

use std::mem;
use std::ops::ControlFlow::{self, Break, Continue};

use crate::hello::{ClientHello, NewSessionTicket, ServerHello, TLS_1_2, kind};
use crate::record::{Deframer, Error, Item};
use crate::verdict::How;

/// Most bytes of a message that is held: a NewSessionTicket with the longest ticket there can be.
const LIMIT: usize = 4 + 4 + 2 + u16::MAX as usize;

/// Alert level of those that end nothing.
const WARNING: u8 = 1;

/// Alert that ends the connection whatever its level.
const CLOSE_NOTIFY: u8 = 0;

/// Follows one handshake in what the server sends.
///
/// It is fed before the bytes go on to the client, so that what it learned is known before the
/// client can come back with it. A connection that ends without an [`Outcome`] is a handshake that
/// failed.
#[derive(Clone, Debug)]
pub struct Watch {
    deframer: Deframer,
    handshake: Handshake,
}

/// What a handshake came to, as far as it shows in clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The version negotiated; 0 where it did not come to that.
    pub version: u16,
    /// The suite negotiated; 0 where it did not come to that.
    pub cipher_suite: u16,
    /// Resumed or not.
    pub kind: Kind,
    /// By what the session can be offered again, if TLS 1.2 or earlier made one.
    pub learned: Vec<Learned>,
    /// How long the server means to accept the ticket that it gave, in seconds; 0: it does not say.
    pub lifetime_hint: u32,
    /// The server asked for a second ClientHello.
    pub hello_retry: bool,
}

/// Whether a session was resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Yes, and by what.
    Resumed(How),
    /// The client offered one and the handshake was full.
    Refused,
    /// The client offered none. The session ID of a client that offers TLS 1.3 counts for none
    /// where the handshake was full: it is mostly noise, and nothing here tells when it is not.
    NotOffered,
    /// The server sent an alert, or something that is not a TLS handshake.
    Failed,
}

/// What a client will show when it comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    /// A session ID of TLS 1.2 or earlier.
    SessionId(Vec<u8>),
    /// A ticket of TLS 1.2 or earlier.
    Ticket(Vec<u8>),
}

impl Watch {
    /// Copies what it needs of the client's first hello.
    #[must_use]
    pub fn new(hello: &ClientHello<'_>) -> Self {
        let kept = |kind| matches!(kind, kind::SERVER_HELLO | kind::NEW_SESSION_TICKET);
        Self {
            deframer: Deframer::keeping(LIMIT, kept),
            handshake: Handshake {
                offer: Offer::new(hello),
                state: State::ExpectServerHello,
                hello_retry: false,
                selected_identity: None,
            },
        }
    }

    /// Takes what the server sent next. Gives the outcome once: when everything clear has been
    /// seen, or when it is certain that nothing more can be. Later bytes are ignored.
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

    /// Whether the outcome was given.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.handshake.state, State::Done)
    }

    /// Which identity was resumed, where the outcome is `Resumed(How::Psk)`. It counts in the
    /// client's **last** hello: after [`Outcome::hello_retry`] the first one does not tell.
    #[must_use]
    pub const fn selected_identity(&self) -> Option<u16> {
        self.handshake.selected_identity
    }
}

/// What came so far, apart from the bytes.
#[derive(Clone, Debug)]
struct Handshake {
    offer: Offer,
    state: State,
    hello_retry: bool,
    selected_identity: Option<u16>,
}

/// What is awaited.
#[derive(Clone, Debug)]
enum State {
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
    /// A message came that only a full handshake has.
    full: bool,
}

impl Handshake {
    fn take(&mut self, item: Item<'_>) -> Option<Outcome> {
        // Before TLS 1.3 some servers warn of an unknown name, and go on.
        if let Item::Alert { level, description } = item
            && level == WARNING
            && description != CLOSE_NOTIFY
        {
            return None;
        }
        let next = match mem::replace(&mut self.state, State::Done) {
            State::ExpectServerHello => self.expect_server_hello(item),
            State::ExpectChangeCipherSpec(flight) => self.expect_change_cipher_spec(flight, item),
            State::Done => Continue(State::Done),
        };
        match next {
            Continue(state) => {
                self.state = state;
                None
            }
            Break(outcome) => Some(outcome),
        }
    }

    fn expect_server_hello(&mut self, item: Item<'_>) -> ControlFlow<Outcome, State> {
        let message = match item {
            Item::Handshake(message) => message,
            Item::Skipped(kind::HELLO_REQUEST) => return Continue(State::ExpectServerHello),
            // After a HelloRetryRequest it is there to please middleboxes (RFC 9846, D.4).
            Item::ChangeCipherSpec if self.hello_retry => {
                return Continue(State::ExpectServerHello);
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
        Continue(State::ExpectChangeCipherSpec(Flight {
            version: hello.version(),
            cipher_suite: hello.cipher_suite,
            session_id: hello.session_id.to_vec(),
            ticket: None,
            lifetime_hint: 0,
            full: false,
        }))
    }

    fn tls13(&mut self, hello: &ServerHello<'_>) -> ControlFlow<Outcome, State> {
        let again = hello.is_hello_retry_request();
        if !self.offer.tls13 || (again && self.hello_retry) {
            return Break(self.fail());
        }
        if again {
            self.hello_retry = true;
            return Continue(State::ExpectServerHello);
        }
        let kind = match hello.selected_identity {
            None => self.offer.full(),
            // The hello that answers a HelloRetryRequest can only have fewer identities.
            Some(index) if usize::from(index) < self.offer.psks => {
                self.selected_identity = Some(index);
                Kind::Resumed(How::Psk)
            }
            Some(_) => Kind::Failed,
        };
        Break(Outcome {
            version: hello.version(),
            cipher_suite: hello.cipher_suite,
            kind,
            learned: Vec::new(),
            lifetime_hint: 0,
            hello_retry: self.hello_retry,
        })
    }

    fn expect_change_cipher_spec(
        &self,
        mut flight: Flight,
        item: Item<'_>,
    ) -> ControlFlow<Outcome, State> {
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
        Continue(State::ExpectChangeCipherSpec(flight))
    }

    /// The end by something that may not stand here, or is not TLS.
    fn fail(&mut self) -> Outcome {
        match mem::replace(&mut self.state, State::Done) {
            State::ExpectChangeCipherSpec(flight) => flight.fail(),
            State::ExpectServerHello | State::Done => Outcome {
                version: 0,
                cipher_suite: 0,
                kind: Kind::Failed,
                learned: Vec::new(),
                lifetime_hint: 0,
                hello_retry: self.hello_retry,
            },
        }
    }
}

impl Flight {
    /// What was provisional holds from here on: on a full handshake the server sends its
    /// ChangeCipherSpec only after it has verified the client's Finished.
    fn end(self, offer: &Offer) -> Outcome {
        let same_id = !self.session_id.is_empty() && self.session_id == offer.session_id;
        let kind = match self.full {
            true => offer.full(),
            // A client may send a ticket without a session ID, so the ID does not tell whether the
            // handshake was abbreviated (RFC 5077, 3.4); where both came, the ticket is what counts.
            false if offer.ticket => Kind::Resumed(How::Ticket),
            false if same_id => Kind::Resumed(How::SessionId),
            false => return self.fail(),
        };
        let fresh_id = !self.session_id.is_empty() && !same_id;
        let session_id = fresh_id.then_some(Learned::SessionId(self.session_id));
        let ticket = self.ticket.filter(|ticket| !ticket.is_empty());
        Outcome {
            version: self.version,
            cipher_suite: self.cipher_suite,
            kind,
            learned: session_id
                .into_iter()
                .chain(ticket.map(Learned::Ticket))
                .collect(),
            lifetime_hint: self.lifetime_hint,
            hello_retry: false,
        }
    }

    fn fail(self) -> Outcome {
        Outcome {
            version: self.version,
            cipher_suite: self.cipher_suite,
            kind: Kind::Failed,
            learned: Vec::new(),
            lifetime_hint: 0,
            hello_retry: false,
        }
    }
}

/// What is needed of the client's hello.
#[derive(Clone, Debug)]
struct Offer {
    session_id: Vec<u8>,
    tls13: bool,
    ticket: bool,
    psks: usize,
}

impl Offer {
    fn new(hello: &ClientHello<'_>) -> Self {
        Self {
            session_id: hello.session_id.to_vec(),
            tls13: hello.offers_tls13(),
            ticket: hello.session_ticket.is_some_and(|it| !it.is_empty()),
            psks: hello.pre_shared_key.map_or(0, |psks| psks.count()),
        }
    }

    /// What a full handshake means for this offer.
    const fn full(&self) -> Kind {
        let session_id = !self.session_id.is_empty() && !self.tls13;
        if session_id || self.ticket || self.psks > 0 {
            Kind::Refused
        } else {
            Kind::NotOffered
        }
    }
}

#[cfg(test)]
mod tests;
