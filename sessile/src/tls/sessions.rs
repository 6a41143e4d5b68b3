//! How a server keeps its sessions: which store, which keys, and for how long. Each worker thread has
//! one.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use sessile_proto::resumption::{Cache, Policy};
use sessile_proto::ticket::{ClientAuth, Issuer};

use super::rustls_session;
use crate::config::Config;
use crate::key::Keyring;
use crate::store::WorkerStore;

/// A server's sessions.
pub struct Sessions {
    pub(super) store: WorkerStore,
    pub(super) keys: Arc<Keyring>,
    issuer: Issuer,
    /// Longest life of a session, from its full handshake.
    lifetime: Duration,
    tickets_enabled: bool,
    sessions_are_removable: bool,
}

impl Sessions {
    /// Sessions as configured.
    #[must_use]
    pub fn new(config: &Config, store: WorkerStore, keys: Arc<Keyring>, issuer: Issuer) -> Self {
        let lifetime = config.session.lifetime;
        let lifetime = lifetime.min(sessile_proto::keys::MAX_LIFETIME);
        Self {
            tickets_enabled: config.session.tickets && !lifetime.is_zero(),
            sessions_are_removable: config.sessions_are_removable(),
            lifetime,
            store,
            keys,
            issuer,
        }
    }

    /// The rules of a site on this server.
    pub(super) fn policy(&self, site: u64, client_auth: ClientAuth, early_data: u32) -> Policy {
        Policy {
            site,
            issuer: self.issuer,
            client_auth,
            lifetime: self.lifetime,
            tickets_enabled: self.tickets_enabled,
            sessions_are_removable: self.sessions_are_removable,
            cache: if self.store.is_shared() {
                Cache::Shared
            } else if self.store.is_enabled() {
                Cache::Local
            } else {
                Cache::Off
            },
            early_data,
            session_format: rustls_session::FORMAT,
        }
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
