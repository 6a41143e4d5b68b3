//! The store, keys and lifetime of a server's sessions.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use sessile_proto::resumption::{Cache, Policy};
use sessile_proto::ticket::{ClientAuth, Issuer};

use super::rustls_session;
use crate::config::Config;
use crate::key::Keyring;
use crate::store::WorkerStore;

/// The session settings of a server, with its store and keys. Each worker thread has its own
/// `Sessions`.
pub struct Sessions {
    pub(super) store: WorkerStore,
    pub(super) keys: Arc<Keyring>,
    issuer: Issuer,
    /// The longest life of a session after its full handshake.
    lifetime: Duration,
    tickets_enabled: bool,
    sessions_are_removable: bool,
}

impl Sessions {
    /// Makes the session settings of a configuration.
    #[must_use]
    pub fn new(config: &Config, store: WorkerStore, keys: Arc<Keyring>, issuer: Issuer) -> Self {
        let lifetime = config
            .session
            .lifetime
            .min(sessile_proto::keys::MAX_LIFETIME);
        Self {
            tickets_enabled: config.session.tickets && !lifetime.is_zero(),
            sessions_are_removable: config.sessions_are_removable(),
            lifetime,
            store,
            keys,
            issuer,
        }
    }

    /// The resumption policy of a site on this server. `early_data` is in bytes; 0 refuses early data.
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

/// The ID of a site: the first 64 bits of the SHA-256 of its first name.
///
/// The ID is the same on every server of a farm.
#[must_use]
pub fn site_id(first_name: &str) -> u64 {
    let digest = digest::digest(&digest::SHA256, first_name.as_bytes());
    let mut word = [0; 8];
    word.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(word)
}
