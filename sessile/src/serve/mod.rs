//! The TLS server: terminates TLS, answers requests from the sites, and keeps the sessions of the clients. This
//! module has no code for balancers, and all code for TLS records and handshakes is in [`crate::tls`].

mod access_log;
mod connection;
mod file_transfer;
mod files;
mod forget;
mod guarded_stream;
mod http2_tasks;
mod large_file;
mod metrics;
mod parking;
mod pending_upstreams;
mod proxy;
mod request;
mod request_log;
mod request_task;
mod respond;
mod routes;
mod site_files;
mod sites;
mod verdict_page;

pub use access_log::AccessLog;
pub use forget::forget_scope;
pub use metrics::{HandshakeFailure, Metrics};
pub use site_files::SiteError;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use sessile_proto::ticket::Issuer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::{Config, KernelTls, Role};
use crate::key::{self, KeyError, Keyring, Origin, Reloaded};
use crate::lifecycle::{self, ConnectionLimit, Workers};
use crate::listener::{Admission, BufferLimit, ListenError, Listeners};
use crate::store::snapshot::SnapshotFile;
use crate::store::{Store, StoreError, WorkerStore};
use crate::tls::{KernelSupport, Sessions, Unavailable};
use files::{FileCache, FileResources};
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
    #[error("tls.kernel is \"on\" for {listener}, but {cause}; or write tls.kernel = \"auto\"")]
    Kernel {
        listener: SocketAddr,
        cause: &'static Unavailable,
    },
    #[error("cannot start a worker thread: {0}")]
    Thread(#[from] io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// The parts of the process that a server shares.
#[derive(Clone)]
pub struct Environment {
    pub stop: CancellationToken,
    pub registry: prometheus::Registry,
    pub access_log: AccessLog,
}

/// A running server.
pub struct Server {
    addresses: Vec<SocketAddr>,
    shared: Shared,
    /// Where the sessions are saved after a drain.
    snapshot: Option<SnapshotFile>,
    workers: Workers,
}

impl Server {
    /// Opens the key, binds every `serve` listener and starts the workers.
    ///
    /// # Errors
    /// If the server cannot start. Nothing is left running then.
    pub fn start(config: &Config, env: &Environment) -> Result<Self, StartError> {
        let keys = Arc::new(Keyring::open(&config.key, config.session.lifetime)?);
        Self::start_with_key(config, keys, env)
    }

    /// Starts with a key that is open already.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_key(
        config: &Config,
        keys: Arc<Keyring>,
        env: &Environment,
    ) -> Result<Self, StartError> {
        warn_of_short_key_lifetime(config, &keys);
        files::warn_of_unusable_links(config);
        let mut shared = Shared::new(config, keys, env)?;
        // The sites are tried before the first thread starts. If the TLS library refuses a combination of
        // settings, the server does not start.
        shared.try_out(&shared.live.borrow())?;
        let connections = shared.metrics.connections.clone();
        // This limit is zero, because a server buffers responses within other limits.
        let buffers = BufferLimit::default();
        let admission = Admission::new(&config.connection, connections.max(), buffers);
        let listeners = Listeners::bind(config, Role::Serve, &admission, &env.stop)?;
        let snapshot = snapshot_file(config, &shared.keys);
        // The snapshot is read as late as possible, because reading deletes the file.
        if let Some(file) = &snapshot
            && let Some(incarnation) = restore(file, &shared.keys, &shared.store)
        {
            shared.issuer.incarnation = incarnation;
        }
        let addresses = listeners.addresses();
        let mut workers = Workers::default();
        let worker_shared = shared.clone();
        listeners.start(&mut workers, &config.server.name, &connections, move || {
            Worker::start(worker_shared.clone())
        })?;
        Ok(Self {
            addresses,
            shared,
            snapshot,
            workers,
        })
    }

    /// The addresses of the listeners, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The farm key.
    #[must_use]
    pub fn keys(&self) -> &Arc<Keyring> {
        &self.shared.keys
    }

    /// The sessions.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Takes over the sites of a new configuration and `session.forget`, and reads the files of the sites again.
    ///
    /// New connections have the new sites, and open connections keep the old ones. Sessions stay if
    /// `session.forget` does not name them. Forgotten sessions do not come back if a later reload removes the
    /// entry. Other settings are ignored.
    ///
    /// # Errors
    /// If a file, or a combination of settings, cannot be used. Nothing changes then.
    pub fn reload(&self, config: &Config) -> Result<(), SiteError> {
        let live = LoadedSites::load(config)?;
        self.shared.try_out(&live)?;
        self.shared.live.send_replace(Arc::new(live));
        let rules = forget::rules(config, self.shared.keys.scope());
        self.shared.store.forget(&rules);
        Ok(())
    }

    /// Reads the farm key file again and takes the key over.
    ///
    /// # Errors
    /// If the file cannot be used. The server keeps its key then.
    pub fn reload_key(&self) -> Result<Reloaded, KeyError> {
        let Shared { keys, store, .. } = &self.shared;
        let reloaded = keys.reload()?;
        store.apply_revocations(&keys.schedule(clock::now()));
        Ok(reloaded)
    }

    /// Counts an order to reload.
    pub fn count_reload(&self, succeeded: bool) {
        self.shared.metrics.count_reload(succeeded);
    }

    /// Waits until the workers have drained, after the order to stop, and saves the sessions for the next start.
    pub fn join(self) {
        self.workers.join();
        let Some(file) = self.snapshot else { return };
        let schedule = self.shared.keys.schedule(clock::now());
        let incarnation = self.shared.issuer.incarnation;
        let snapshot = self.shared.store.snapshot(incarnation, &schedule);
        let path = file.path().display();
        match file.save(&schedule, &snapshot) {
            Ok(sessions) => {
                tracing::info!(file = %path, sessions, "saved the sessions for the next start");
            }
            Err(error) => tracing::warn!(
                file = %path, %error,
                "cannot save the sessions for the next start: clients without tickets pay a full handshake"
            ),
        }
    }
}

/// Most connections at once, if the process may open so many files.
#[must_use]
pub fn connection_limit(config: &Config, open_files: u64) -> ConnectionLimit {
    let reserved = files::max_open_files(open_files).into();
    // With upstreams, most connections need one more socket at a time.
    let sockets = if config.upstreams.is_empty() { 1 } else { 2 };
    ConnectionLimit::new(config.connection.max, open_files, reserved, sockets)
}

fn warn_of_short_key_lifetime(config: &Config, keys: &Keyring) {
    let max_lifetime = keys.schedule(clock::now()).max_lifetime();
    if config.session.lifetime > max_lifetime {
        tracing::warn!(
            session_lifetime = %humantime::format_duration(config.session.lifetime),
            max_lifetime = %humantime::format_duration(max_lifetime),
            "the farm key's max-lifetime is shorter than session.lifetime: sessions live for max-lifetime"
        );
    }
}

/// What the kernel can encrypt. `None` if no listener uses the kernel, or the kernel has no TLS.
///
/// # Errors
/// A listener needs the kernel, and the kernel has no TLS.
fn kernel_support(config: &Config) -> Result<Option<Arc<KernelSupport>>, StartError> {
    let settings = config
        .listeners
        .iter()
        .filter(|listener| listener.role == Role::Serve)
        .map(|listener| (listener.address, config.kernel_tls(listener)));
    if settings
        .clone()
        .all(|(_, setting)| setting == KernelTls::Off)
    {
        return Ok(None);
    }
    let cause = match KernelSupport::of_this_system() {
        Ok(support) => return Ok(Some(Arc::clone(support))),
        Err(cause) => cause,
    };
    match settings
        .clone()
        .find(|(_, setting)| *setting == KernelTls::On)
    {
        Some((listener, _)) => Err(StartError::Kernel { listener, cause }),
        None => Ok(None),
    }
}

/// The file that keeps the sessions from a drain to the next start. With an ephemeral key there is no file,
/// because the next start could not open it.
fn snapshot_file(config: &Config, keys: &Keyring) -> Option<SnapshotFile> {
    let wanted = config.session.snapshot && *keys.origin() != Origin::Ephemeral;
    let server = &config.server;
    wanted.then(|| SnapshotFile::new(&server.state_dir, &server.name))
}

/// Restores the snapshot of the last drain. Returns the incarnation in the snapshot, which this process
/// continues.
fn restore(file: &SnapshotFile, keys: &Keyring, store: &Store) -> Option<u16> {
    let path = file.path().display();
    let now = clock::now();
    match file.take(&keys.schedule(now)) {
        Ok(snapshot) => {
            let snapshot = snapshot?;
            let sessions = store.restore(&snapshot, now);
            tracing::info!(file = %path, sessions, "restored the sessions of the last drain");
            Some(snapshot.incarnation)
        }
        Err(error) => {
            tracing::warn!(file = %path, %error, "the sessions of the last drain are lost");
            None
        }
    }
}

/// The state that the workers of a server share.
#[derive(Clone)]
struct Shared {
    /// The configuration at the start. The current sites are in `live`.
    config: Arc<Config>,
    live: watch::Sender<Arc<LoadedSites>>,
    keys: Arc<Keyring>,
    store: Store,
    issuer: Issuer,
    metrics: Arc<Metrics>,
    /// What the kernel can encrypt, if a listener uses it.
    kernel: Option<Arc<KernelSupport>>,
    /// The threads for files. A reload keeps the threads of the folders that stay.
    files: Arc<FileResources>,
    env: Environment,
}

impl Shared {
    fn new(config: &Config, keys: Arc<Keyring>, env: &Environment) -> Result<Self, StartError> {
        let (mut incarnation, mut table_seed) = ([0; 2], [0; 8]);
        for seed in [&mut incarnation[..], &mut table_seed[..]] {
            aws_lc_rs::rand::fill(seed).map_err(|_| KeyError::Random)?;
        }
        let table_seed = u64::from_ne_bytes(table_seed);
        let number = key::number(&config.server, keys.scope());
        let store = Store::new(config, &keys, number, &env.registry, table_seed)?;
        store.forget(&forget::rules(config, keys.scope()));
        let open_files = lifecycle::file_limit();
        let limit = connection_limit(config, open_files);
        limit.log_warning();
        let name = &config.server.name;
        let metrics = Metrics::register(&env.registry, name, &store, &keys, limit.max)?;
        let kernel = kernel_support(config)?;
        // A file that leaves through the kernel also needs a second descriptor of its socket.
        let descriptors = if kernel.is_some() { 2 } else { 1 };
        let max_open_files = usize::from(files::max_open_files(open_files)) / descriptors;
        let files = FileResources::new(max_open_files, &config.files);
        let entries = files.gauge(FileCache::entries);
        let bytes = files.gauge(FileCache::bytes);
        metrics::register_file_cache(&env.registry, name, entries, bytes)?;
        Ok(Self {
            config: Arc::new(config.clone()),
            live: watch::Sender::new(Arc::new(LoadedSites::load(config)?)),
            keys,
            store,
            issuer: Issuer {
                server: number,
                incarnation: u16::from_ne_bytes(incarnation),
            },
            metrics: Arc::new(metrics),
            kernel,
            files: Arc::new(files),
            env: env.clone(),
        })
    }

    /// What the kernel can encrypt for a listener with this setting.
    const fn kernel_for(&self, setting: KernelTls) -> Option<&Arc<KernelSupport>> {
        match setting {
            KernelTls::Off => None,
            KernelTls::Auto | KernelTls::On => self.kernel.as_ref(),
        }
    }

    fn sessions(&self, store: WorkerStore) -> Rc<Sessions> {
        let keys = Arc::clone(&self.keys);
        Rc::new(Sessions::new(&self.config, store, keys, self.issuer))
    }

    /// Makes sites as a worker does, so that unusable sites never reach a worker.
    fn try_out(&self, live: &LoadedSites) -> Result<(), SiteError> {
        let sessions = self.sessions(self.store.worker());
        self.sites(live, &sessions).map(drop)
    }

    fn sites(&self, live: &LoadedSites, sessions: &Rc<Sessions>) -> Result<Sites, SiteError> {
        let body_timeout = self.config.connection.body_timeout;
        let sites = Sites::new(live, sessions, body_timeout, &self.metrics, &self.files);
        Ok(sites?)
    }
}

/// The part of the server on one thread.
struct Worker {
    shared: Shared,
    store: WorkerStore,
    sessions: Rc<Sessions>,
    current: RefCell<Current>,
}

/// The sites of a worker, and the channel for the sites of a reload.
struct Current {
    live: watch::Receiver<Arc<LoadedSites>>,
    sites: Rc<Sites>,
}

impl Worker {
    async fn start(shared: Shared) -> Option<Rc<Self>> {
        let store = shared.store.worker();
        store.connect().await;
        match Self::new(shared, store) {
            Ok(worker) => Some(Rc::new(worker)),
            Err(error) => {
                tracing::error!(%error, "a worker thread cannot start");
                None
            }
        }
    }

    fn new(shared: Shared, store: WorkerStore) -> Result<Self, SiteError> {
        let sessions = shared.sessions(store.clone());
        let mut live = shared.live.subscribe();
        let sites = shared.sites(&live.borrow_and_update(), &sessions)?;
        Ok(Self {
            current: RefCell::new(Current {
                live,
                sites: Rc::new(sites),
            }),
            shared,
            store,
            sessions,
        })
    }

    /// The current sites. The first connection after a reload takes over the new sites. All other connections
    /// need no lock.
    fn sites(&self) -> Rc<Sites> {
        let mut current = self.current.borrow_mut();
        if current.live.has_changed().is_ok_and(|changed| changed) {
            let live = Arc::clone(&current.live.borrow_and_update());
            match self.shared.sites(&live, &self.sessions) {
                Ok(sites) => current.sites = Rc::new(sites),
                Err(error) => tracing::error!(
                    %error,
                    "a worker thread cannot use the new sites and keeps the old ones"
                ),
            }
        }
        Rc::clone(&current.sites)
    }
}
