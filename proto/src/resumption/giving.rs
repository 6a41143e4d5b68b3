//! New session IDs and tickets, and their end.

use std::time::Duration;

use aws_lc_rs::digest;

use super::handshake::{NewSession, Origin, Progress, Resumption};
use super::policy::{Cache, Tickets};
use super::store_key::StoreKey;
use crate::Time;
use crate::ticket::{self, Binding, Class, Envelope, Id, SRID_LEN};

/// Most bytes of a session in the TLS library's encoding. A client brings sealed sessions back in its hello.
/// Two such sessions have to fit into the part of a hello that is read.
const MAX_SESSION_LEN: usize = 6 * 1024;

/// A session ends this long before its certificate chain ends, because a client's clock can be ahead.
const CHAIN_MARGIN: Duration = Duration::from_secs(60);

impl Resumption {
    /// True if a full TLS 1.2 handshake gives a session ID. Call this when the server certificate is chosen.
    #[must_use]
    pub fn gives_session_id(&self) -> bool {
        // A client that takes a ticket does not come back with the session ID.
        let gives_ticket = self.inputs.policy.tickets() != Tickets::Off
            && self.inputs.offers.accepts_ticket
            && self.inputs.schedule.can_seal();
        let is_kept = self.inputs.policy.cache != Cache::Off && !gives_ticket;
        is_kept && self.has_life_left(self.new_origin().expires)
    }

    /// True if the handshake gives tickets of TLS 1.2 or TLS 1.3.
    ///
    /// In TLS 1.2 the library asks when it writes ServerHello, because ServerHello announces the ticket.
    #[must_use]
    pub fn gives_tickets(&self) -> bool {
        if self.inputs.policy.tickets() == Tickets::Off || self.is_single_use() {
            return false;
        }
        // If an OpenSSL client resumes and gets a new TLS 1.2 ticket, OpenSSL discards the old session.
        // OpenSSL passes the new session to no callback. So clients that rely on callbacks would resume only
        // every second time.
        self.inputs.offers.is_tls13()
            || !self.resumes_tls12() && self.has_life_left(self.new_origin().expires)
    }

    /// The lifetime that is announced with a ticket, in seconds.
    #[must_use]
    pub fn ticket_lifetime(&self) -> u32 {
        let left = self.origin().expires.since(self.inputs.now);
        u32::try_from(left.as_secs()).unwrap_or(u32::MAX)
    }

    /// Adds a TLS 1.3 identity for single use, or a TLS 1.2 session ID once the client's Finished is
    /// verified. Returns false if the ID or identity must not be announced.
    pub fn add_session(&mut self, id: &[u8], session: &[u8]) -> bool {
        let key = if self.inputs.offers.is_tls13() {
            StoreKey::single_use(id).filter(|_| self.is_single_use())
        } else {
            StoreKey::session_id(id).filter(|_| self.gives_session_id())
        };
        let Some(key) = key.filter(|_| self.may_announce(session)) else {
            return false;
        };
        self.state.tickets_given += 1;
        self.store(key, session);
        true
    }

    /// Makes a TLS 1.2 ticket or TLS 1.3 identity for a session in the library's encoding. `random` must
    /// never be used twice. `None` if the client gets no ticket.
    pub fn add_ticket(&mut self, session: &[u8], random: [u8; 32]) -> Option<Vec<u8>> {
        if !self.may_announce(session) {
            return None;
        }
        let id = self.fresh_id(&random);
        let (schedule, issuer) = (&self.inputs.schedule, self.inputs.policy.issuer);
        let ticket = match self.inputs.policy.tickets() {
            Tickets::Off => return None,
            Tickets::Sealed => ticket::seal(schedule, issuer, id, &self.envelope(session))?,
            Tickets::Stored => {
                let srid: [u8; SRID_LEN] = ticket::issue(schedule, issuer, Class::Stored, id)?;
                self.store(StoreKey::stored(&id), session);
                srid.to_vec()
            }
        };
        self.state.tickets_given += 1;
        Some(ticket)
    }

    /// Takes the sessions that have to be stored before anything more is sent.
    pub fn take_new_sessions(&mut self) -> Vec<NewSession> {
        std::mem::take(&mut self.state.new_sessions)
    }

    /// The full handshake that new sessions inherit from.
    ///
    /// The origin is inherited only if the handshake resumed, because the library can decline an admitted
    /// session.
    fn origin(&self) -> Origin {
        match self.resumed() {
            Some(resumed) => resumed.origin,
            None => self.new_origin(),
        }
    }

    /// The origin of sessions that begin with this handshake.
    fn new_origin(&self) -> Origin {
        let lifetime_end = self.inputs.now.plus(self.inputs.policy.lifetime);
        // When a browser resumes, it checks the certificate chain of the full handshake again.
        let chain_end = self.state.chain_end.map(|end| end.minus(CHAIN_MARGIN));
        Origin {
            established: self.inputs.now,
            expires: chain_end.map_or(lifetime_end, |end| end.min(lifetime_end)),
            server: self.inputs.policy.issuer.server,
            suite: self.state.suite,
        }
    }

    /// True if a session that ends at this time is worth announcing. A lifetime of 0 seconds means "unknown"
    /// in TLS 1.2 (RFC 5077, 3.3), so a session needs a second at least.
    fn has_life_left(&self, expires: Time) -> bool {
        expires.since(self.inputs.now) >= Duration::from_secs(1)
    }

    /// True if the library resumes a TLS 1.2 session that was admitted.
    fn resumes_tls12(&self) -> bool {
        let admitted = self.state.admitted.is_some();
        !self.inputs.offers.is_tls13() && admitted && !self.state.is_full_tls12
    }

    fn may_announce(&self, session: &[u8]) -> bool {
        let has_resumed = self.state.progress == Progress::Resumed;
        // A client that used one of its two tickets has two again after one new ticket.
        let has_enough =
            has_resumed && !self.inputs.offers.requests_tickets && self.state.tickets_given > 0;
        session.len() <= MAX_SESSION_LEN && !has_enough && self.has_life_left(self.origin().expires)
    }

    fn envelope<'a>(&'a self, session: &'a [u8]) -> Envelope<'a> {
        let origin = self.origin();
        Envelope {
            value_format: self.inputs.policy.session_format,
            binding: Binding {
                site: self.inputs.policy.site,
                server_name: &self.inputs.offers.server_name,
                client_auth: self.inputs.policy.client_auth,
                version: self.inputs.offers.version,
                suite: origin.suite,
                extended_master_secret: self.inputs.offers.extended_master_secret,
            },
            server: origin.server,
            established: origin.established,
            expires: origin.expires,
            value: session,
        }
    }

    fn store(&mut self, key: StoreKey, session: &[u8]) {
        let envelope = self.envelope(session);
        let mut bytes = Vec::with_capacity(envelope.encoded_len());
        envelope.encode(&mut bytes);
        let new_session = NewSession {
            key,
            established: envelope.established,
            expires: envelope.expires,
            envelope: bytes,
        };
        self.state.stored.push(key);
        self.state.new_sessions.push(new_session);
    }

    /// A nonce for a ticket. The hello's random is mixed in. So two copies of a virtual machine with the
    /// same generator state use different nonces.
    fn fresh_id(&self, random: &[u8; 32]) -> Id {
        let mut mixed = digest::Context::new(&digest::SHA256);
        mixed.update(random);
        mixed.update(&self.inputs.offers.random);
        let digest = mixed.finish();
        *digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
    }
}
