//! How a server keeps its sessions: which store, which keys, sealed or stored, for how long. One
//! for each worker thread; what is shared behind it is behind `Arc`.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use sessile_proto::ticket::Issuer;

use crate::config::Config;
use crate::key::Keyring;
use crate::store::Local;

/// A server's sessions.
pub struct Sessions {
    pub(super) store: Local,
    pub(super) keys: Arc<Keyring>,
    pub(super) issuer: Issuer,
    /// Longest life of a session, from its full handshake.
    pub(super) lifetime: Duration,
    /// Whether tickets are handed out.
    pub(super) tickets: bool,
    /// Whether tickets are sealed; otherwise they are identifiers of stored sessions.
    pub(super) sealed: bool,
}

impl Sessions {
    /// Sessions as configured.
    #[must_use]
    pub fn new(config: &Config, store: Local, keys: Arc<Keyring>, issuer: Issuer) -> Self {
        let lifetime = config.session.lifetime;
        let lifetime = lifetime.min(sessile_proto::keys::MAX_LIFETIME);
        Self {
            tickets: config.session.tickets && !lifetime.is_zero(),
            sealed: !config.sessions_are_removable(),
            lifetime,
            store,
            keys,
            issuer,
        }
    }

    /// Whether the server hands out tickets: neither turned off nor without a place to keep what
    /// they name.
    pub(super) fn issues_tickets(&self) -> bool {
        self.tickets && (self.sealed || self.store.is_enabled())
    }
}

/// A site's number, the same on every server of the farm: 64 bits of SHA-256 of its first name.
#[must_use]
pub fn site_id(first_name: &str) -> u64 {
    let digest = digest::digest(&digest::SHA256, first_name.as_bytes());
    let mut word = [0; 8];
    word.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(word)
}
