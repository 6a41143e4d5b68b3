//! The rules of one site on one server.

use std::time::Duration;

use crate::ticket::{ClientAuth, Issuer};

/// Where a server keeps sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// The server keeps no sessions.
    Off,
    /// The server keeps sessions in its own table.
    Local,
    /// The server keeps sessions in a store that other servers also use, with its own table in
    /// front.
    Shared,
}

/// How a server gives tickets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tickets {
    /// The server gives no tickets and accepts none.
    Off,
    /// A ticket is the identifier of a stored session.
    Stored,
    /// A ticket holds the session, sealed under the farm key.
    Sealed,
}

/// The rules of one site on one server.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The site, as a number that is the same on every server of the farm.
    pub site: u64,
    /// The server that issues the tickets.
    pub issuer: Issuer,
    /// The client authentication of the site.
    pub client_auth: ClientAuth,
    /// Longest life of a session, counted from its full handshake.
    pub lifetime: Duration,
    /// True if the settings allow tickets (`session.tickets`).
    pub tickets_enabled: bool,
    /// True if a setting needs sessions that can be removed. Sealed tickets are then refused.
    pub sessions_are_removable: bool,
    /// Where sessions are kept.
    pub cache: Cache,
    /// Most bytes of early data; 0 if the site takes none.
    pub early_data: u32,
    /// Names the TLS library's encoding of sessions.
    pub session_format: u16,
}

impl Policy {
    /// How new tickets are given.
    #[must_use]
    pub fn tickets(&self) -> Tickets {
        // On the wire, the size of a sealed ticket would show whether its client has a certificate,
        // and which one.
        let size_tells = self.client_auth != ClientAuth::None && self.cache == Cache::Shared;
        let may_seal = !self.sessions_are_removable && !size_tells;
        if !self.tickets_enabled {
            Tickets::Off
        } else if may_seal {
            Tickets::Sealed
        } else if self.cache == Cache::Off {
            Tickets::Off
        } else {
            Tickets::Stored
        }
    }

    /// True if clients may send early data.
    ///
    /// Only a shared store can tell that a session was not used before. With client certificates,
    /// the server would act on early data before the client has proven that it is present.
    #[must_use]
    pub fn accepts_early_data(&self) -> bool {
        self.early_data > 0
            && self.client_auth == ClientAuth::None
            && self.tickets_enabled
            && self.cache == Cache::Shared
    }
}
