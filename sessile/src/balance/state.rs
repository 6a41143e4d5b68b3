//! The state that the threads of a balancer share, and the replacement of its server set.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sessile_proto::affinity::Affinity;
use sessile_proto::health_state::Availability;
use sessile_proto::name_resolution::FoundServer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
use super::labels::read_ticket_label;
use super::metrics::{BalancerMetrics, ServerFamilies, ServerReading};
use super::names::table::Names;
use super::numbers::SameNumber;
use super::server::PoolServer;
use super::server_list::SetInputs;
use super::servers::ServerSet;
use crate::clock;
use crate::config::ServerAddress;
use crate::locks::locked;
use crate::log_interval::LogInterval;

/// The servers that a new configuration added, changed and removed, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

/// The shared state of a balancer.
pub(super) struct BalancerState {
    pub(super) servers: watch::Sender<Arc<ServerSet>>,
    /// Locked from the read of the server set until the replacement of the set.
    pub(super) replacing: Mutex<()>,
    /// The servers that are found by DNS names.
    pub(super) names: Names,
    pub(super) learned: Arc<Mutex<Affinity>>,
    pub(super) addresses: Arc<Addresses>,
    pub(super) metrics: BalancerMetrics,
    pub(super) families: ServerFamilies,
    /// `session.lifetime`: the expected lifetime of sessions at servers that announce no lifetime.
    pub(super) session_lifetime: Duration,
    /// Clients choose how often they come, so a log line about them is limited.
    pub(super) log_postgres: LogInterval,
    pub(super) stop: CancellationToken,
}

impl BalancerState {
    /// The servers and pools at this time.
    pub(super) fn server_set(&self) -> Arc<ServerSet> {
        Arc::clone(&self.servers.borrow())
    }

    /// Logs that a PostgreSQL client found no pool.
    pub(super) fn warn_about_postgres(&self, server_name: Option<&str>) {
        if self.log_postgres.is_due() {
            tracing::warn!(
                server_name,
                "a PostgreSQL client came, but no pool has PostgreSQL servers for it; add alpn = \"postgresql\" to the \
                 [[balance.pool]] of these servers; logged once a minute"
            );
        }
    }

    /// The state of each server, for metrics.
    pub(super) fn read_servers(&self) -> Vec<ServerReading> {
        let set = self.server_set();
        let now = Instant::now();
        let reading = |server: &PoolServer| {
            let id = server.id();
            let diagnosis = server.stats.session_loss.diagnosis(self.session_lifetime);
            ServerReading {
                name: server.name().to_owned(),
                state: server.state(set.inputs.balance.slow_start, now),
                is_down: server.availability(now) == Availability::Down,
                has_session_fault: server.has_session_fault(),
                age_limit: diagnosis.map_or(0.0, |loss| loss.age_limit.estimate().as_secs_f64()),
                key_names: server.key_names.read(|names| names.names_of(id).count()),
                siblings: server.key_names.read(|names| names.group(id).len()),
            }
        };
        set.servers().map(|(_, server)| reading(server)).collect()
    }

    /// Changes the inputs of the server set, and replaces the set.
    ///
    /// # Errors
    /// `change` returned an error, or the changed servers are not usable. Then nothing changes.
    pub(super) fn change<E: From<SameNumber>>(
        &self,
        change: impl FnOnce(&mut SetInputs) -> Result<(), E>,
    ) -> Result<Changes, E> {
        let _replacing = locked(&self.replacing);
        let mut inputs = self.server_set().inputs.clone();
        change(&mut inputs)?;
        Ok(self.replace(inputs)?)
    }

    /// Takes over the servers in the answer for a name.
    pub(super) fn set_found(&self, name: &ServerAddress, servers: Vec<FoundServer>) -> Changes {
        if self.server_set().inputs.found.get(name) == Some(&servers) {
            return Changes::default();
        }
        let change = |inputs: &mut SetInputs| {
            inputs.found.insert(name.clone(), servers);
            Ok::<(), SameNumber>(())
        };
        // Servers that were found have no configured numbers, which alone could be an error.
        self.change(change).unwrap_or_default()
    }

    /// Records the number in the label of a server's ticket, if the server was found by a DNS name.
    pub(super) fn learn_number(&self, server: &PoolServer, ticket: &[u8]) {
        let set = self.server_set();
        let Some(keyring) = set.inputs.route_keys.as_ref().filter(|_| server.is_found()) else {
            return;
        };
        let Some(label) = read_ticket_label(keyring, ticket, clock::now()) else {
            return;
        };
        if !server.stats.learn_number(label.server) {
            return;
        }
        tracing::info!(
            server = server.name(),
            number = label.server,
            "learned the number of a server from its ticket: labels lead clients to the server"
        );
        // The new set has the numbers of all servers again.
        let _ = self.change(|_| Ok::<(), SameNumber>(()));
    }

    /// Replaces the server set. The caller holds `replacing`.
    pub(super) fn replace(&self, inputs: SetInputs) -> Result<Changes, SameNumber> {
        let before = self.server_set();
        let after = ServerSet::new(inputs, Some(&before), &self.families)?;
        let reported: HashSet<u32> = before.clashes.iter().map(|clash| clash.number).collect();
        let clashes = after.clashes.iter();
        for clash in clashes.filter(|clash| !reported.contains(&clash.number)) {
            log_clash(clash);
        }
        let mut changes = Changes::default();
        let mut forgotten = Vec::new();
        for (_, server) in before.servers() {
            let (name, id) = (server.name(), server.id());
            let settings = after.server(name).map(|server| &server.settings);
            if settings.is_none_or(|settings| settings.pool != server.settings.pool) {
                server.key_names.leave(id);
                forgotten.push(id);
            }
            if settings.is_none() {
                self.families.remove(name);
                changes.removed.push(name.to_owned());
            }
            let moved_to = after.server(name).map(|server| server.address());
            if moved_to != Some(server.address()) {
                // The server is gone or has another address. No other machine has its sessions.
                locked(&self.learned).forget_servers(|learned| learned == id);
                forgotten.push(id);
                server.key_names.update(id, |names| names.forget(id));
            }
            if settings.is_some_and(|settings| *settings != server.settings) {
                changes.changed.push(name.to_owned());
            }
        }
        let names = after.servers().map(|(_, server)| server.name());
        changes.added = names
            .filter(|name| before.server(name).is_none())
            .map(str::to_owned)
            .collect();
        self.servers.send_replace(Arc::new(after));
        // Connections of the old set learn addresses until the new set is published.
        for id in forgotten {
            self.addresses.forget_server(id);
        }
        Ok(changes)
    }
}

/// Logs that labels cannot tell two servers apart, of which at least one was found by a DNS name.
fn log_clash(clash: &SameNumber) {
    let SameNumber { one, other, number } = clash;
    tracing::warn!(
        one,
        other,
        number,
        "the tickets of two servers have the same number, so labels cannot tell the servers apart; set another \
         server.number in the file of one of them, or give both addresses to one DNS name"
    );
}
