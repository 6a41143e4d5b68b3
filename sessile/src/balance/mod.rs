//! The TLS balancer: reads hellos, never decrypts. A client that comes back is led to the server
//! that can resume it; the others are placed by policy. It knows nothing of how servers serve.

mod connection;
mod metrics;
mod relay;
mod servers;

pub use metrics::Metrics;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use sessile_proto::Time;
use sessile_proto::affinity::{Affinity, AffinityKey};
use sessile_proto::hello::ClientHello;
use sessile_proto::route::RoutedBy;
use sessile_proto::session::Limits;
use sessile_proto::watch::Learned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Role};
use crate::lifecycle::{self, Workers};
use crate::listen::{self, ListenError};
use servers::Servers;

/// Why a balancer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
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
        let shared = Arc::new(Shared {
            metrics: Metrics::register(registry, &affinity)?,
            servers: Servers::new(&config.balance, registry)?,
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
        Ok(Self { addresses, workers })
    }

    /// Where it listens, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits until its workers have drained, after the order to stop.
    pub fn join(self) {
        self.workers.join();
    }
}

/// What the workers of a balancer share.
struct Shared {
    servers: Servers,
    affinity: Arc<Mutex<Affinity>>,
    metrics: Metrics,
    max_connections: usize,
    stop: CancellationToken,
}

impl Shared {
    /// The server that a hello leads to by what it offers, and by which rule.
    ///
    /// A TLS 1.3 client's random session ID cannot match: none is ever learned.
    fn follow(&self, hello: &ClientHello<'_>, now: Time) -> Option<(RoutedBy, usize)> {
        let ticket = AffinityKey::ticket(hello.session_ticket.unwrap_or_default());
        let id = AffinityKey::session_id(hello.session_id);
        let offers = [(RoutedBy::Ticket, ticket), (RoutedBy::SessionId, id)];
        let affinity = self.affinity.lock().unwrap_or_else(PoisonError::into_inner);
        offers.into_iter().find_map(|(by, key)| {
            let server = affinity.lookup(key?, now)?;
            Some((by, self.servers.position(server)?))
        })
    }

    /// Remembers which server made a session.
    fn learn(&self, learned: &[Learned], server: usize, source: IpAddr, now: Time) {
        let id = self.servers[server].id();
        let mut affinity = self.affinity.lock().unwrap_or_else(PoisonError::into_inner);
        for learned in learned {
            let key = match learned {
                Learned::SessionId(id) => AffinityKey::session_id(id),
                Learned::Ticket(ticket) => AffinityKey::ticket(ticket),
            };
            if let Some(key) = key {
                let lesson = affinity.learn(key, id, source, now);
                tracing::trace!(?lesson, server = self.servers[server].name(), "learned");
            }
        }
    }
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
