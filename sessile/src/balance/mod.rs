//! The TLS balancer: reads hellos, never decrypts. A client that comes back is led to the server
//! that can resume it; the others are placed by policy. It knows nothing of how servers serve.

mod connection;
mod follow;
mod labels;
mod metrics;
mod relay;
mod servers;

pub use metrics::Metrics;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use sessile_proto::affinity::Affinity;
use sessile_proto::session::Limits;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Role};
use crate::key::FileError;
use crate::lifecycle::{self, Workers};
use crate::listen::{self, ListenError};
use labels::Labels;
use servers::Servers;

/// Why a balancer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Key(#[from] FileError),
    #[error(
        "servers {one:?} and {other:?} have the same number, {number}, so that labels cannot tell them apart; set `number` \
         for one of them, here and as server.number there"
    )]
    SameNumber {
        one: String,
        other: String,
        number: u32,
    },
    #[error("cannot start a worker thread: {0}")]
    Thread(#[from] io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("the system gives no random bytes")]
    Random,
}

/// A running balancer.
pub struct Balancer {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    workers: Workers,
}

impl Balancer {
    /// Binds every `balance` listener and starts its workers.
    ///
    /// # Errors
    /// With what stands in the way; nothing is left running then.
    pub fn start(
        config: &Config,
        stop: CancellationToken,
        registry: &prometheus::Registry,
    ) -> Result<Self, StartError> {
        let mut seed = [0; 8];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| StartError::Random)?;
        let limits = Limits {
            max_entries: config.session.max_entries,
            lifetime: config.session.lifetime,
        };
        let affinity = Arc::new(Mutex::new(Affinity::new(limits, u64::from_ne_bytes(seed))));
        let labels = Labels::open(config)?;
        let scope = labels.as_ref().map(Labels::scope);
        let servers = Servers::new(&config.balance, scope.as_deref(), registry)?;
        let shared = Arc::new(Shared {
            metrics: Metrics::register(registry, &affinity)?,
            servers,
            labels,
            affinity,
            max_connections: lifecycle::connection_limit(config.connection.max, 2),
            stop,
        });
        let mut listeners = Vec::new();
        for listener in config.listeners.iter().filter(|l| l.role == Role::Balance) {
            let count = lifecycle::worker_count(config.server.workers);
            listeners.push(listen::bind(listener.address, count)?);
        }
        let mut addresses = Vec::new();
        let mut workers = Workers::default();
        for sockets in listeners {
            addresses.push(sockets[0].local_addr()?);
            for socket in sockets {
                let shared = Arc::clone(&shared);
                workers.spawn("balance", move || work(shared, socket))?;
            }
        }
        Ok(Self {
            addresses,
            shared,
            workers,
        })
    }

    /// Where it listens, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The farm whose labels it reads; `None`: it has no key, and reads none.
    #[must_use]
    pub fn farm(&self) -> Option<String> {
        self.shared.labels.as_ref().map(Labels::scope)
    }

    /// Reads the key file again. A bad file leaves the old keys in place.
    ///
    /// # Errors
    /// Where the file cannot be used.
    pub fn reload_key(&self) -> Result<(), FileError> {
        self.shared.labels.as_ref().map_or(Ok(()), Labels::reload)
    }

    /// Waits until its workers have drained, after the order to stop.
    pub fn join(self) {
        self.workers.join();
    }
}

/// What the workers of a balancer share.
struct Shared {
    servers: Servers,
    /// `None`: without a key.
    labels: Option<Labels>,
    affinity: Arc<Mutex<Affinity>>,
    metrics: Metrics,
    max_connections: usize,
    stop: CancellationToken,
}

async fn work(shared: Arc<Shared>, socket: std::net::TcpListener) {
    let connections = TaskTracker::new();
    let accepted = listen::accept(socket, shared.stop.cancelled(), |io, peer| {
        match shared.metrics.admit(shared.max_connections) {
            Some(open) => {
                connections.spawn_local(connection::run(Arc::clone(&shared), io, peer, open));
            }
            None => drop(io),
        }
    });
    if let Err(error) = accepted.await {
        tracing::error!(%error, "a worker cannot listen");
    }
    lifecycle::finish(&connections).await;
}
