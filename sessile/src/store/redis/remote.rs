//! The part of the shared store that all worker threads of a server use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use prometheus::Registry;

use super::connect::Connector;
use super::error::StoreError;
use super::metrics::StoreMetrics;
use super::server_number::NumberClaim;
use super::shared_forget_rules::SharedForgetRules;
use super::store_clock::StoreClock;
use crate::config::Server;
use crate::config::store::Redis;
use crate::key::Keyring;
use crate::store::forget_rules::KnownForgetRules;

/// The state of the shared store that all worker threads of a server use.
pub(in crate::store) struct RemoteStore {
    pub(super) connector: Connector,
    /// `session.store-timeout`.
    pub(super) timeout: Duration,
    /// The scope of the farm key.
    pub(super) scope: String,
    /// The server's name.
    pub(super) server: String,
    /// The store's address without passwords.
    pub(super) address: String,
    pub(super) metrics: StoreMetrics,
    pub(super) rules: SharedForgetRules,
    pub(super) claim: NumberClaim,
    pub(super) clock: StoreClock,
    logged: AtomicU8,
    refusal_logged: AtomicBool,
}

/// The state of the store that was last logged. Each change is logged once, for all workers.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum LoggedState {
    None,
    /// Every worker has a connection.
    Up,
    /// A worker has no connection.
    Down,
}

impl RemoteStore {
    pub(in crate::store) fn new(
        config: &Redis,
        timeout: Duration,
        server: &Server,
        number: u32,
        keys: &Arc<Keyring>,
        rules: &Arc<KnownForgetRules>,
        registry: &Registry,
    ) -> Result<Self, StoreError> {
        let name = server.name.as_str();
        Ok(Self {
            connector: Connector::new(config)?,
            timeout,
            scope: keys.scope().to_owned(),
            server: name.to_owned(),
            address: config.to_string(),
            metrics: StoreMetrics::register(registry, name)?,
            rules: SharedForgetRules::new(keys, rules, server),
            claim: NumberClaim::new(keys.scope(), number, name, registry)?,
            clock: StoreClock::new(keys, name, registry)?,
            logged: AtomicU8::new(LoggedState::None as u8),
            refusal_logged: AtomicBool::new(false),
        })
    }

    /// Records a state. Returns true if the state is new and must be logged.
    pub(super) fn should_log(&self, state: LoggedState) -> bool {
        self.logged.swap(state as u8, Ordering::Relaxed) != state as u8
    }

    /// Logs the first refused request.
    pub(super) fn log_refusal(&self, error: &redis::RedisError) {
        if !self.refusal_logged.swap(true, Ordering::Relaxed) {
            let server = &self.server;
            tracing::warn!(
                server,
                %error,
                "the session store refused a request; further refusals are only counted, in \
                 sessile_store_requests_total"
            );
        }
    }

    /// Releases the server's number for another process.
    pub(in crate::store) fn release_number(&self) {
        self.claim.release();
    }
}
