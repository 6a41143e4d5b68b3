//! The address table of a balancer, with the hash of this process. [`sessile_proto::address_table`] decides.
//!
//! The table is never written to a file, and no other rule uses it.

use std::net::IpAddr;
use std::sync::Mutex;

use sessile_proto::Time;
use sessile_proto::address_table::{AddressHasher, AddressKey, AddressTable};
use sessile_proto::hello::ClientHello;
use sessile_proto::session::Limits;

use crate::locks::locked;

/// The address table, shared by the worker threads.
pub(super) struct Addresses {
    /// `None` if the table has no entries, so that no hello needs a key.
    hasher: Option<AddressHasher>,
    table: Mutex<AddressTable>,
}

impl Addresses {
    /// An empty table. The seeds must be unpredictable.
    pub(super) fn new(limits: Limits, seeds: [u64; 2]) -> Self {
        let [hasher, table] = seeds;
        Self {
            hasher: (limits.max_entries > 0).then(|| AddressHasher::new(hasher)),
            table: Mutex::new(AddressTable::new(limits, table)),
        }
    }

    /// The key of a client. `None` if the table is off.
    pub(super) fn key(&self, source: IpAddr, hello: &ClientHello<'_>) -> Option<AddressKey> {
        Some(self.hasher.as_ref()?.key(source, hello))
    }

    /// The server that last took these clients.
    pub(super) fn server(&self, key: AddressKey, now: Time) -> Option<u32> {
        locked(&self.table).lookup(key, now)
    }

    /// Changes the table. No other thread changes the table at the same time.
    pub(super) fn update(&self, change: impl FnOnce(&mut AddressTable)) {
        change(&mut locked(&self.table));
    }

    /// Removes the entries of a server that is down or has left.
    pub(super) fn forget_server(&self, server: u32) {
        let entries = locked(&self.table).forget_server(server);
        if entries > 0 {
            tracing::debug!(entries, "forgot the addresses of a server's clients");
        }
    }

    pub(super) fn entries(&self) -> usize {
        locked(&self.table).entries()
    }
}
