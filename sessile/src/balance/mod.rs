//! The TLS balancer reads ClientHellos and never decrypts. It leads a returning client to a server that can
//! resume the session, and places other clients by policy. It uses no code of the server role.
//!
//! A file imports only files of the lines below its own:
//!
//! ```text
//! mod              start, reload and end of a balancer
//! commands         commands of the admin API
//! api, connection, health/{mod, key_name_discovery, check}, names/mod
//! handshake        follows the handshake of a connection
//! outcome          learned sessions, counts and log of a connection
//! state            the shared state of all threads
//! routing          the rules
//! servers          server set and pools
//! server           one server: settings, health, load
//! names/{table, resolver}, numbers
//! server_list      the servers by configuration, DNS and API
//! metrics/{mod, per_server, server_gauges, counters, causes}
//! addresses, connect, key_names, labels, learned_file, pool_names, relay/, route_miss, session_loss
//! ```

mod addresses;
mod api;
mod commands;
mod connect;
mod connection;
mod handshake;
mod health;
mod key_names;
mod labels;
mod learned_file;
mod metrics;
mod names;
mod numbers;
mod outcome;
mod pool_names;
mod relay;
mod route_miss;
mod routing;
mod server;
mod server_list;
mod servers;
mod session_loss;
mod state;

pub use numbers::SameNumber;
pub use state::Changes;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use sessile_proto::affinity::Affinity;
use sessile_proto::session::Limits;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Command};
use crate::clock;
use crate::config::{Config, Role};
use crate::key::FileError;
use crate::lifecycle::{self, ConnectionLimit, Workers};
use crate::listener::{Admission, BufferLimit, ListenError, Listeners};
use crate::locks::locked;
use crate::log_interval::LogInterval;
use addresses::Addresses;
use labels::open_route_keys;
use learned_file::LearnedFile;
use metrics::{BalancerMetrics, LookupCounters, ServerFamilies};
use names::table::Names;
use server_list::SetInputs;
use servers::ServerSet;
use state::BalancerState;

/// Most buffered bytes of all connections whose peers do not read, without the bytes in pipes.
const MAX_BUFFERED_BYTES: usize = 64 * 1024 * 1024;

/// Why a balancer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Reload(#[from] ReloadError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(
        "the operating system's random number generator failed; check that no sandbox blocks getrandom"
    )]
    Random,
}

/// Why a balancer cannot use the servers and pools of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Key(#[from] FileError),
    #[error(transparent)]
    SameNumber(#[from] SameNumber),
}

/// A running balancer.
pub struct Balancer {
    addresses: Vec<SocketAddr>,
    state: Arc<BalancerState>,
    /// A channel for commands to the balancer.
    pub commands: mpsc::Sender<Command>,
    workers: Workers,
    /// The file is written after the drain.
    learned_file: Option<LearnedFile>,
}

/// Most connections at once, if the process may open so many files.
#[must_use]
pub fn connection_limit(config: &Config, files: u64) -> ConnectionLimit {
    let reserved = relay::pipe_files(files);
    // Each client has a connection to a server.
    ConnectionLimit::new(config.connection.max, files, reserved, 2)
}

impl Balancer {
    /// Binds every `balance` listener and starts its workers.
    ///
    /// # Errors
    /// A listener, the key, the server set or a thread is not usable. Then nothing is left running.
    pub fn start(
        config: &Config,
        stop: CancellationToken,
        registry: &prometheus::Registry,
    ) -> Result<Self, StartError> {
        let (learned, addresses) = empty_tables(config)?;
        let metrics = BalancerMetrics::register(registry)?;
        metrics::register_learned(registry, &learned, &addresses)?;
        let families = ServerFamilies::register(registry)?;
        let names = Names::new(LookupCounters::register(registry)?);
        let set = first_server_set(config, &names, &families)?;
        let files = lifecycle::file_limit();
        relay::allow_pipes(files);
        let limit = connection_limit(config, files);
        limit.log_warning();
        let max_connections = limit.max;
        let state = Arc::new(BalancerState {
            servers: watch::Sender::new(Arc::new(set)),
            replacing: Mutex::new(()),
            names,
            learned,
            addresses,
            metrics,
            families,
            session_lifetime: config.session.lifetime,
            log_postgres: LogInterval::new(LogInterval::MINUTE),
            stop: stop.clone(),
        });
        let read = Arc::downgrade(&state);
        metrics::register_servers(registry, move || {
            let state = read.upgrade();
            state.map_or_else(Vec::new, |state| state.read_servers())
        })?;
        let buffer_limit = BufferLimit {
            bytes: MAX_BUFFERED_BYTES,
            pipes: relay::max_pipes(),
        };
        let admission = Admission::new(&config.connection, max_connections, buffer_limit);
        metrics::register_buffered(registry, &admission)?;
        let listeners = Listeners::bind(config, Role::Balance, &admission, &stop)?;
        state.names.set_listeners(listeners.addresses());
        // Reading removes the file, so read it after the steps above. If one of these steps fails, the file
        // must stay.
        let learned_file = LearnedFile::new(config);
        if let Some(file) = &learned_file {
            let set = state.server_set();
            let mut learned = locked(&state.learned);
            file.restore(&mut learned, set.addresses(), clock::now());
        }
        let addresses = listeners.addresses();
        let mut workers = Workers::default();
        let count = state.metrics.connection_count(max_connections);
        let handler = Arc::clone(&state);
        listeners.start(&mut workers, "balance", &count, move || {
            std::future::ready(Some(Arc::clone(&handler)))
        })?;
        let (commands, received) = admin::channel();
        let checked = Arc::clone(&state);
        workers.spawn("balance-servers", move || async move {
            tokio::task::spawn_local(commands::run(Arc::clone(&checked), received));
            tokio::task::spawn_local(names::supervise(Arc::clone(&checked)));
            health::supervise(checked).await;
        })?;
        Ok(Self {
            addresses,
            state,
            commands,
            workers,
            learned_file,
        })
    }

    /// The addresses of the listeners, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The farm whose labels the balancer reads. `None` without a key.
    #[must_use]
    pub fn farm(&self) -> Option<String> {
        let set = self.state.server_set();
        set.inputs
            .route_keys
            .as_ref()
            .map(|keyring| keyring.scope())
    }

    /// Applies the key, the pools and the servers of another configuration. Open connections continue. The
    /// statistics of remaining servers stay, and so do the servers that the API added. The names of servers are
    /// looked up again.
    ///
    /// # Errors
    /// The key or the servers are not usable. Then nothing changes.
    pub fn reload(&self, config: &Config) -> Result<Changes, ReloadError> {
        let had_key = self.state.server_set().inputs.route_keys.is_some();
        // A file system can be slow. So read the key before the server set is locked.
        let route_keys = open_route_keys(config, had_key)?;
        let changes = self.state.change(|inputs| {
            inputs.reload(config.balance.clone(), route_keys);
            Ok::<(), ReloadError>(())
        })?;
        self.state.names.repeat_lookups();
        Ok(changes)
    }

    /// Waits until the workers have drained, and writes the learned table for the next start.
    pub fn join(self) {
        self.workers.join();
        if let Some(file) = self.learned_file {
            let set = self.state.server_set();
            file.save(&locked(&self.state.learned), set.addresses());
        }
    }
}

/// The learned table and the address table, without entries.
fn empty_tables(config: &Config) -> Result<(Arc<Mutex<Affinity>>, Arc<Addresses>), StartError> {
    let limits = Limits {
        max_entries: config.session.max_entries,
        lifetime: config.session.lifetime,
    };
    let mut address_limits = limits;
    if config.balance.ignores_addresses {
        address_limits.max_entries = 0;
    }
    let learned = Affinity::new(limits, random_seed()?);
    let seeds = [random_seed()?, random_seed()?];
    let addresses = Addresses::new(address_limits, seeds);
    Ok((Arc::new(Mutex::new(learned)), Arc::new(addresses)))
}

/// A seed for the hash of a table whose keys come from peers.
fn random_seed() -> Result<u64, StartError> {
    let mut seed = [0; 8];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| StartError::Random)?;
    Ok(u64::from_ne_bytes(seed))
}

/// The configured addresses of the listeners. The port may still be 0.
fn configured_listeners(config: &Config) -> Vec<SocketAddr> {
    let listeners = config.listeners.iter();
    let own = listeners.filter(|listener| listener.role == Role::Balance);
    own.map(|listener| listener.address).collect()
}

fn first_server_set(
    config: &Config,
    names: &Names,
    families: &ServerFamilies,
) -> Result<ServerSet, StartError> {
    let route_keys = open_route_keys(config, false).map_err(ReloadError::from)?;
    names.set_listeners(configured_listeners(config));
    let mut inputs = SetInputs::new(config.balance.clone(), route_keys);
    inputs.found = names::look_up_first(names, &config.balance)?;
    Ok(ServerSet::new(inputs, None, families).map_err(ReloadError::from)?)
}
