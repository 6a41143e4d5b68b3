//! The TLS balancer: reads hellos, never decrypts. A client that comes back is led to the server
//! that can resume it; the others are placed by policy. It knows nothing of how servers serve.

mod connection;
mod control;
mod follow;
mod forgetting;
mod health;
mod kept;
mod key_names;
mod labels;
mod lookout;
mod metrics;
mod missed;
mod own;
mod relay;
mod report;
mod roster;
mod server;
mod session_fault;
mod snapshot;
mod splice;
mod standing;
mod states;

pub use metrics::Metrics;
pub use roster::SameNumber;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sessile_proto::affinity::Affinity;
use sessile_proto::session::Limits;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Command};
use crate::clock;
use crate::config::{Balance, Config, Role};
use crate::key::FileError;
use crate::lifecycle::{self, Workers};
use crate::listener::{Admission, BufferLimit, ListenError, Listeners};
use crate::locks::locked;
use kept::Kept;
use labels::Labels;
use metrics::ServerFamilies;
use roster::Roster;

/// Most bytes on the heap that are buffered for peers that do not read.
const MAX_BUFFERED_BYTES: usize = 64 * 1024 * 1024;

/// Why a balancer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Reload(#[from] ReloadError),
    #[error("cannot start a worker thread: {0}")]
    Thread(#[from] io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("the system gives no random bytes")]
    Random,
}

/// Why servers and pools cannot be as they are configured.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Key(#[from] FileError),
    #[error(transparent)]
    SameNumber(#[from] SameNumber),
}

/// What became of the servers when a configuration was taken over, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

/// A running balancer.
pub struct Balancer {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    workers: Workers,
    /// Where what was learned goes when it has drained.
    kept: Option<Kept>,
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
        let metrics = Metrics::register(registry, &affinity)?;
        let families = ServerFamilies::register(registry)?;
        let roster = first_roster(config, &families)?;
        let files = lifecycle::file_limit();
        let files = files.saturating_sub(splice::reserve(files));
        let max_connections = lifecycle::connection_limit(config.connection.max, files, 2);
        let shared = Arc::new(Shared {
            roster: watch::Sender::new(Arc::new(roster)),
            changing: Mutex::new(()),
            affinity,
            metrics,
            families,
            session_lifetime: config.session.lifetime,
            stop: stop.clone(),
        });
        states::register(registry, &shared)?;
        let buffer_limit = BufferLimit {
            bytes: MAX_BUFFERED_BYTES,
            pipes: splice::allowed(),
        };
        let admission = Admission::new(&config.connection, max_connections, buffer_limit);
        metrics::register_held(registry, &admission)?;
        let listeners = Listeners::bind(config, Role::Balance, &admission, &stop)?;
        // As late as can be: a start that fails has not used it up.
        let kept = Kept::new(config);
        if let Some(kept) = &kept {
            kept.restore(
                &mut locked(&shared.affinity),
                &shared.roster(),
                clock::now(),
            );
        }
        let addresses = listeners.addresses();
        let mut workers = Workers::default();
        let count = shared.metrics.connection_count(max_connections);
        let handler = Arc::clone(&shared);
        listeners.start(&mut workers, "balance", &count, move || {
            std::future::ready(Some(Arc::clone(&handler)))
        })?;
        let (commands, orders) = admin::channel();
        let overseen = Arc::clone(&shared);
        workers.spawn("balance-servers", move || async move {
            tokio::task::spawn_local(control::obey(Arc::clone(&overseen), orders));
            health::supervise(overseen).await;
        })?;
        Ok(Self {
            addresses,
            shared,
            commands,
            workers,
            kept,
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
        let roster = self.shared.roster();
        roster.labels.as_ref().map(|labels| labels.scope())
    }

    /// Where commands to it go.
    #[must_use]
    pub fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }

    /// Takes over the key, the pools and the servers of another configuration. Connections to
    /// servers that are gone are finished; what is known of those that stay, stays.
    ///
    /// # Errors
    /// Where they cannot be had so; nothing is changed then.
    pub fn reload(&self, config: &Config) -> Result<Changes, ReloadError> {
        let _turn = locked(&self.shared.changing);
        let had_one = self.shared.roster().labels.is_some();
        let labels = Labels::open(config, had_one)?.map(Arc::new);
        Ok(self.shared.replace(config.balance.clone(), labels)?)
    }

    /// Waits until its workers have drained, after the order to stop, and keeps what was learned for
    /// the next start.
    pub fn join(self) {
        self.workers.join();
        if let Some(kept) = self.kept {
            kept.save(&locked(&self.shared.affinity), &self.shared.roster());
        }
    }
}

fn first_roster(config: &Config, families: &ServerFamilies) -> Result<Roster, ReloadError> {
    let labels = Labels::open(config, false)?.map(Arc::new);
    Ok(Roster::new(config.balance.clone(), labels, None, families)?)
}

/// What the workers of a balancer share.
struct Shared {
    roster: watch::Sender<Arc<Roster>>,
    /// Held from reading the roster until another has taken its place.
    changing: Mutex<()>,
    affinity: Arc<Mutex<Affinity>>,
    metrics: Metrics,
    families: ServerFamilies,
    /// `session.lifetime`: what is expected of servers that do not say.
    session_lifetime: Duration,
    stop: CancellationToken,
}

impl Shared {
    /// The servers and pools that there are now.
    fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster.borrow())
    }

    /// Changes what is set of servers and pools; `None`: nothing was to be changed after all.
    fn change(&self, change: impl FnOnce(&mut Balance) -> Option<()>) -> Option<()> {
        let _turn = locked(&self.changing);
        let roster = self.roster();
        let mut balance = roster.balance.clone();
        change(&mut balance)?;
        self.replace(balance, roster.labels.clone())
            .ok()
            .map(|_| ())
    }

    /// Puts another roster in the place of this one. `changing` is held.
    fn replace(
        &self,
        balance: Balance,
        labels: Option<Arc<Labels>>,
    ) -> Result<Changes, SameNumber> {
        let before = self.roster();
        let after = Roster::new(balance, labels, Some(&before), &self.families)?;
        let mut changes = Changes::default();
        for (_, server) in before.servers() {
            let (name, id) = (server.name(), server.id());
            let settings = after.server(name).map(|server| &server.settings);
            if settings.is_none_or(|settings| settings.pool != server.settings.pool) {
                server.key_names.leave(id);
            }
            if settings.is_none() {
                self.families.remove(name);
                changes.removed.push(name.to_owned());
            }
            // What it knew, nobody else does.
            if settings.is_none_or(|settings| settings.address != server.address()) {
                locked(&self.affinity).forget_servers(|it| it == id);
                server.key_names.note(id, |names| names.forget(id));
            }
            if settings.is_some_and(|settings| *settings != server.settings) {
                changes.changed.push(name.to_owned());
            }
        }
        let new = after.servers().map(|(_, server)| server.name());
        let new = new.filter(|name| before.server(name).is_none());
        changes.added = new.map(str::to_owned).collect();
        self.roster.send_replace(Arc::new(after));
        Ok(changes)
    }
}
