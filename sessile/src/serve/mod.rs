//! The TLS server: terminates TLS, answers from its sites, keeps its clients' sessions. It knows
//! nothing of balancers, and of TLS only what [`crate::tls`] says.

mod access_log;
mod awaited;
mod connection;
mod forget;
mod metrics;
mod proxy;
mod request;
mod respond;
mod routes;
mod site_files;
mod sites;

pub use access_log::AccessLog;
pub use forget::forget_scope;
pub use metrics::Metrics;
pub use site_files::SiteError;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use sessile_proto::ticket::Issuer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, Backlog};
use crate::clock;
use crate::config::{Config, Role};
use crate::detect::Entrance;
use crate::key::{self, KeyError, Keyring, Origin, Reloaded};
use crate::lifecycle::{self, Workers};
use crate::listen::{self, ListenError};
use crate::store::snapshot::SnapshotFile;
use crate::store::{Store, StoreError, WorkerStore};
use crate::tls::Sessions;
use site_files::LoadedSites;
use sites::Sites;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot start a worker thread: {0}")]
    Thread(#[from] io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What a server shares with the rest of the process.
#[derive(Clone)]
pub struct Surroundings {
    pub stop: CancellationToken,
    pub registry: prometheus::Registry,
    pub access_log: AccessLog,
}

/// A running server.
pub struct Server {
    addresses: Vec<SocketAddr>,
    shared: Shared,
    /// Where its sessions go when it has drained, and its incarnation with them.
    snapshot: Option<(SnapshotFile, u16)>,
    workers: Workers,
}

impl Server {
    /// Opens the key, binds every `serve` listener and starts its workers.
    ///
    /// # Errors
    /// With what stands in the way; nothing is left running then.
    pub fn start(config: &Config, around: &Surroundings) -> Result<Self, StartError> {
        let keys = Arc::new(Keyring::open(&config.key, config.session.lifetime)?);
        Self::start_with_key(config, keys, around)
    }

    /// Starts with a key that is open already.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_key(
        config: &Config,
        keys: Arc<Keyring>,
        around: &Surroundings,
    ) -> Result<Self, StartError> {
        let mut seed = [0; 10];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| KeyError::Random)?;
        let [incarnation @ .., _, _, _, _, _, _, _, _] = seed;
        let table_seed = u64::from_ne_bytes(*seed.last_chunk().expect("ten bytes end in eight"));
        let name = config.server.name.as_str();
        let granted = keys.schedule(clock::now()).max_lifetime();
        if config.session.lifetime > granted {
            tracing::warn!(
                session_lifetime = %humantime::format_duration(config.session.lifetime),
                max_lifetime = %humantime::format_duration(granted),
                "the farm key's max-lifetime is shorter than session.lifetime, and counts"
            );
        }
        // A connection's requests may each need one to an upstream, and most have one at a time.
        let sockets = if config.upstreams.is_empty() { 1 } else { 2 };
        let number = key::number(&config.server, keys.scope());
        let store = Store::new(config, &keys, number, &around.registry, table_seed)?;
        store.forget(&forget::rules(config, keys.scope()));
        let files = lifecycle::file_limit();
        let max_connections = lifecycle::connection_limit(config.connection.max, files, sockets);
        let mut shared = Shared {
            issuer: Issuer {
                server: number,
                incarnation: u16::from_ne_bytes(incarnation),
            },
            keys: Arc::clone(&keys),
            live: watch::Sender::new(Arc::new(LoadedSites::load(config)?)),
            max_connections,
            metrics: Arc::new(Metrics::register(&around.registry, name, &store)?),
            config: Arc::new(config.clone()),
            store: store.clone(),
            around: around.clone(),
        };
        // Before the first thread: a combination that the library refuses stops the start.
        shared.try_out(&shared.live.borrow())?;
        let admission = Admission::new(&config.connection, max_connections, Backlog::default());
        let mut listeners = Vec::new();
        for listener in config.listeners.iter().filter(|l| l.role == Role::Serve) {
            let count = lifecycle::worker_count(config.server.workers);
            let (admission, stop) = (Arc::clone(&admission), around.stop.clone());
            let entrance = Entrance::new(admission, &listener.proxies, stop);
            listeners.push((entrance, listen::bind(listener.address, count)?));
        }
        // As late as can be: a start that fails has not used the snapshot up.
        let file = snapshot_file(config, &keys);
        if let Some(kept) = file.as_ref().and_then(|file| restore(file, &keys, &store)) {
            shared.issuer.incarnation = kept;
        }
        let mut server = Self {
            snapshot: file.map(|file| (file, shared.issuer.incarnation)),
            addresses: Vec::new(),
            workers: Workers::default(),
            shared,
        };
        for (entrance, sockets) in listeners {
            server.addresses.push(sockets[0].local_addr()?);
            for socket in sockets {
                let (shared, entrance) = (server.shared.clone(), entrance.clone());
                let work = move || work(shared, entrance, socket);
                server.workers.spawn(name, work)?;
            }
        }
        Ok(server)
    }

    /// Where it listens, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its farm key.
    #[must_use]
    pub fn keys(&self) -> &Arc<Keyring> {
        &self.shared.keys
    }

    /// Its sessions.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Takes over the sites of a configuration that was read again, and reads the files that they name
    /// again. Connections that come from now on have the new sites, those that are open stay with
    /// theirs; sessions outlive it, but for those that it says are to be forgotten. What was forgotten
    /// before stays so. Nothing else of the configuration is looked at.
    ///
    /// # Errors
    /// With what is wrong; everything stays as it was then.
    pub fn reload(&self, config: &Config) -> Result<(), SiteError> {
        let live = LoadedSites::load(config)?;
        self.shared.try_out(&live)?;
        self.shared.live.send_replace(Arc::new(live));
        let rules = forget::rules(config, self.shared.keys.scope());
        self.shared.store.forget(&rules);
        Ok(())
    }

    /// Reads the farm key again and takes over what its file says.
    ///
    /// # Errors
    /// Where the file cannot be used; the key that the server has stays in place then.
    pub fn reload_key(&self) -> Result<Reloaded, KeyError> {
        let Shared { keys, store, .. } = &self.shared;
        let reloaded = keys.reload()?;
        store.apply_revocations(&keys.schedule(clock::now()));
        Ok(reloaded)
    }

    /// Counts an order to reload, whose parts its caller knows, for the operator's alerts.
    pub fn count_reload(&self, succeeded: bool) {
        self.shared.metrics.count_reload(succeeded);
    }

    /// Waits until its workers have drained, after the order to stop, and keeps what it has to for the
    /// next start.
    pub fn join(self) {
        self.workers.join();
        if let Some((file, incarnation)) = self.snapshot {
            let schedule = self.shared.keys.schedule(clock::now());
            let snapshot = self.shared.store.snapshot(incarnation, &schedule);
            let path = file.path().display();
            match file.save(&schedule, &snapshot) {
                Ok(sessions) => {
                    tracing::info!(file = %path, sessions, "kept the sessions for the next start");
                }
                Err(error) => tracing::warn!(
                    file = %path, %error,
                    "the sessions cannot be kept for the next start: clients without tickets pay a full handshake"
                ),
            }
        }
    }
}

/// Where a server keeps its sessions from a drain to the next start, where it does: under a key that
/// outlives it.
fn snapshot_file(config: &Config, keys: &Keyring) -> Option<SnapshotFile> {
    let wanted = config.session.snapshot && *keys.origin() != Origin::Ephemeral;
    let server = &config.server;
    wanted.then(|| SnapshotFile::new(&server.state_dir, &server.name))
}

/// Takes the snapshot of the last drain, if there is one to be used, and returns the incarnation that
/// goes on with it.
fn restore(file: &SnapshotFile, keys: &Keyring, store: &Store) -> Option<u16> {
    let path = file.path().display();
    let now = clock::now();
    match file.take(&keys.schedule(now)) {
        Ok(snapshot) => {
            let snapshot = snapshot?;
            let sessions = store.restore(&snapshot, now);
            tracing::info!(file = %path, sessions, "the sessions of the last drain are back");
            Some(snapshot.incarnation)
        }
        Err(error) => {
            tracing::warn!(file = %path, %error, "the sessions of the last drain are lost");
            None
        }
    }
}

/// What the workers of a server share.
#[derive(Clone)]
struct Shared {
    /// As the server was started with it; its sites are those of `live`.
    config: Arc<Config>,
    live: watch::Sender<Arc<LoadedSites>>,
    keys: Arc<Keyring>,
    store: Store,
    issuer: Issuer,
    metrics: Arc<Metrics>,
    max_connections: usize,
    around: Surroundings,
}

impl Shared {
    fn sessions(&self, store: WorkerStore) -> Rc<Sessions> {
        let keys = Arc::clone(&self.keys);
        Rc::new(Sessions::new(&self.config, store, keys, self.issuer))
    }

    /// Makes sites as a worker does: what none could use must not reach one.
    fn try_out(&self, live: &LoadedSites) -> Result<(), SiteError> {
        let sessions = self.sessions(self.store.worker());
        Ok(Sites::new(live, &sessions, &self.metrics).map(drop)?)
    }
}

/// One thread's part of the server.
struct Worker {
    shared: Shared,
    store: WorkerStore,
    sessions: Rc<Sessions>,
    current: RefCell<Current>,
}

/// The sites as a worker has them, and where newer ones show.
struct Current {
    live: watch::Receiver<Arc<LoadedSites>>,
    sites: Rc<Sites>,
}

impl Worker {
    fn new(shared: Shared, store: WorkerStore) -> Result<Self, SiteError> {
        let sessions = shared.sessions(store.clone());
        let mut live = shared.live.subscribe();
        let sites = Rc::new(Sites::new(
            &live.borrow_and_update(),
            &sessions,
            &shared.metrics,
        )?);
        Ok(Self {
            current: RefCell::new(Current { live, sites }),
            shared,
            store,
            sessions,
        })
    }

    /// The sites as they are now: the first connection after a reload takes it up, without a lock on
    /// the way of the others.
    fn sites(&self) -> Rc<Sites> {
        let mut current = self.current.borrow_mut();
        if current.live.has_changed().is_ok_and(|changed| changed) {
            let live = Arc::clone(&current.live.borrow_and_update());
            match Sites::new(&live, &self.sessions, &self.shared.metrics) {
                Ok(sites) => current.sites = Rc::new(sites),
                Err(error) => tracing::error!(%error, "a worker stays with its old sites"),
            }
        }
        Rc::clone(&current.sites)
    }
}

async fn work(shared: Shared, entrance: Entrance, socket: listen::Socket) {
    let store = shared.store.worker();
    store.connect().await;
    let worker = match Worker::new(shared, store) {
        Ok(worker) => Rc::new(worker),
        Err(error) => return tracing::error!(%error, "a worker cannot start"),
    };
    let entrance = Rc::new(entrance);
    let connections = TaskTracker::new();
    let stop = worker.shared.around.stop.clone();
    let accepted = listen::accept(socket, stop.cancelled(), |io, peer| {
        match worker.shared.metrics.admit(worker.shared.max_connections) {
            Some(open) => {
                let (worker, entrance) = (Rc::clone(&worker), Rc::clone(&entrance));
                connections.spawn_local(connection::run(worker, entrance, io, peer, open));
            }
            // Over the limit: closing at once is the cheapest way to say so.
            None => drop(io),
        }
    });
    if let Err(error) = accepted.await {
        tracing::error!(%error, "a worker cannot listen");
    }
    worker.shared.store.release_number();
    lifecycle::finish(&connections, worker.shared.config.connection.drain_timeout).await;
}
