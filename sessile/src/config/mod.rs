//! The configuration that the rest of the program sees: validated, defaults filled in, every value
//! in its own type. What is written in files is read by [`mod@file`] and, for registry exports, by
//! [`reg`]; nothing outside this module sees the raw form.

pub mod file;
mod network;
pub mod reg;
pub mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::hello::DEFAULT_LIMIT;
use sessile_proto::proxy_protocol;
use sessile_proto::route::Policy;

pub use network::{Network, NotANetwork};
pub use store::StoreUrl;

/// One process's whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub server: Server,
    pub session: Session,
    pub key: Key,
    pub connection: Connection,
    pub tls: Tls,
    pub admin: Admin,
    pub log: Log,
    pub listeners: Vec<Listener>,
    pub sites: Vec<Site>,
    pub upstreams: Vec<Arc<Upstream>>,
    pub balance: Balance,
}

/// `[server]`: who this server is and where it keeps its state.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Names the server in logs, metrics and verdicts. Default: the host's name.
    pub name: String,
    /// The number that tickets carry, 24 bits; `None`: derived from the farm's scope and the name.
    pub number: Option<u32>,
    /// Where the key file lives. Default: `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/sessile`.
    pub state_dir: PathBuf,
    /// Worker threads for each listener; 0: one for each core.
    pub workers: usize,
}

/// `[session]`: what is remembered of a client, where and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Most entries in the session table; the oldest leaves first. 0: no server-side cache.
    pub max_entries: usize,
    /// Longest life of a session, counted from its full handshake. 0: nothing resumes.
    pub lifetime: Duration,
    /// Whether tickets are handed out (TLS 1.2 and 1.3).
    pub tickets: bool,
    /// Where sessions live.
    pub store: StoreUrl,
    /// How long one handshake waits for a shared store, all in all.
    pub store_timeout: Duration,
    /// On a drain the session table goes, sealed, to the state folder, and is read at the next start.
    pub snapshot: bool,
    /// Most bytes of early data (0-RTT) taken from a client; 0: none is taken.
    pub early_data: u32,
    /// Longest life of a session that sessile holds as a client.
    pub client_lifetime: Duration,
    /// Resume only sessions whose connection ended with close_notify.
    pub require_close_notify: bool,
    /// Sessions that are forgotten on request.
    pub forget: Vec<Forget>,
}

/// One of `session.forget`: these sessions do not resume where their full handshake was before then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    pub target: ForgetTarget,
    pub before: Time,
}

/// The sessions that one of `session.forget` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForgetTarget {
    Everything,
    /// The sessions of the site with this first name. Empty: of the site without names.
    Site(String),
    /// The sessions whose full handshake was with the server of this name.
    Server(String),
    /// The sessions whose full handshake was with the server of this number.
    Number(u32),
}

/// `[key]`: where the farm key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `key.file`; made at the first start where it is not there.
    File(PathBuf),
    /// `key.file = "none"`: made at each start, in memory, gone at a restart.
    Ephemeral,
}

/// `[connection]`: the object that stands for a client's connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    /// An idle connection is closed and its object reclaimed after this long.
    pub idle_timeout: Duration,
    /// The article's defect: reclaiming a connection also purges its session.
    pub purge_on_reclaim: bool,
    /// Most connections at once; 0: from the process's limit on open files.
    pub max: usize,
    /// Most connections whose ClientHello is awaited; 0: half of all.
    pub max_hellos: usize,
    /// Most bytes of hellos that are held at once.
    pub max_hello_bytes: usize,
    /// Most bytes of one ClientHello.
    pub max_hello_size: usize,
    /// Most connections open from one source prefix (/24, /56); 0: no limit.
    pub max_per_source: usize,
    /// Most new connections a second from one source prefix (/24, /56); 0: no limit.
    pub rate_per_source: u32,
    /// How long connections may take to finish once the order to stop has come.
    pub drain_timeout: Duration,
}

/// `[tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub kernel: KernelTls,
}

/// `tls.kernel`: record encryption in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelTls {
    /// Never.
    Off,
    /// Where it is possible and worth it. This version never finds it so.
    #[default]
    Auto,
}

/// `[admin]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Where `/healthz`, `/readyz`, `/metrics` and the API answer; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Holds what a request that changes something has to show; `None`: `admin.token` in the state folder.
    pub token_file: Option<PathBuf>,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least level of the program's own log, which goes to the standard error stream.
    pub level: tracing::level_filters::LevelFilter,
    /// One line for each handshake and each request.
    pub access: AccessLog,
}

/// `log.access`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    /// `"-"`: the standard output stream.
    #[default]
    Stdout,
    File(PathBuf),
}

/// `[[listener]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    pub role: Role,
    /// Proxies, whose connections begin with a PROXY header, and the only ones that are let in;
    /// empty: there are none, clients connect by themselves.
    pub proxies: Vec<Network>,
}

impl Listener {
    /// A listener that clients connect to by themselves.
    #[must_use]
    pub const fn new(address: SocketAddr, role: Role) -> Self {
        Self {
            address,
            role,
            proxies: Vec::new(),
        }
    }
}

/// What a listener does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Terminate TLS and answer from the sites.
    Serve,
    /// Route to a server without decrypting.
    Balance,
}

/// `[[site]]`: what is served under some server names.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Server names (SNI), lower case; `*.example.org` matches one label. Empty: the default site.
    pub names: Vec<String>,
    /// One certificate for each key type, at least one in all.
    pub certificates: Vec<Certificate>,
    /// Whose certificates clients show; `None`: nobody is asked for one.
    pub client_auth: Option<ClientAuth>,
    /// Most bytes of early data taken here, as `session.early-data` and the site's own setting have it.
    pub early_data: u32,
    /// Longest matching path first.
    pub routes: Vec<SiteRoute>,
}

impl Site {
    /// The site that is called so: by its first name, or `*` for the one without names.
    #[must_use]
    pub fn called<'a>(title: &str, sites: &'a [Self]) -> Option<&'a Self> {
        sites.iter().find(|site| site.title() == title)
    }

    /// What it is called.
    #[must_use]
    pub fn title(&self) -> &str {
        self.names.first().map_or("*", String::as_str)
    }

    /// Its sessions.
    #[must_use]
    pub fn target(&self) -> ForgetTarget {
        ForgetTarget::Site(self.names.first().cloned().unwrap_or_default())
    }
}

/// A certificate chain and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// `client-auth` of a site: clients that show a certificate, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    pub mode: ClientAuthMode,
    /// The authorities whose certificates are accepted, PEM.
    pub ca: PathBuf,
    /// Their revocation lists, PEM or DER.
    pub crl: Option<PathBuf>,
}

/// Whether a client may come without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuthMode {
    Required,
    /// It may; one that it shows has to be accepted all the same.
    Optional,
}

/// `[[site.route]]`: requests whose path is `path` or lies below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteRoute {
    /// Absolute path without a trailing slash; `/` takes everything.
    pub path: String,
    pub action: Action,
}

/// What answers a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Static files below this folder.
    Files(PathBuf),
    /// 308 to this URL; the rest of the path is appended.
    Redirect(String),
    /// This text, as `text/plain`.
    Respond { status: u16, body: String },
    /// Handed on, path and all, to these servers.
    Proxy(Arc<Upstream>),
    /// The built-in page that names the server and shows the connection's verdict.
    Verdict,
}

/// `[[upstream]]`: servers behind this one, and how long they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// What routes call it by.
    pub name: String,
    /// Host and port, reached in plain HTTP; the first that takes a connection gets it.
    pub servers: Vec<String>,
    /// How long a connection attempt to one server may take.
    pub connect_timeout: Duration,
    /// How long a server may be silent, from the end of a request to the end of its response.
    pub response_timeout: Duration,
}

/// `[balance]`, `[[balance.pool]]` and `[[balance.server]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// How a client without a session that routes is placed.
    pub policy: Policy,
    /// How long a connection attempt to a server may take.
    pub connect_timeout: Duration,
    /// A connection without a byte in either direction is closed after this long; zero: never.
    pub idle_timeout: Duration,
    /// A connection is closed after this long in all; zero: never.
    pub total_timeout: Duration,
    /// What becomes of a client whose server name no pool has.
    pub unknown_name: UnknownName,
    pub health: Health,
    /// Between two checks of a server.
    pub health_interval: Duration,
    /// The server name (SNI) of a check; `None`: the first whole name of the server's pool.
    pub health_name: Option<String>,
    /// How long a server that came up has less than its share of new clients; zero: not at all.
    pub slow_start: Duration,
    /// Without the default pool.
    pub pools: Vec<BalancePool>,
    pub servers: Vec<BalanceServer>,
}

/// `balance.unknown-name`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownName {
    /// The servers without a pool take it.
    #[default]
    Default,
    /// It is turned away, with the alert unrecognized_name.
    Refuse,
}

/// `balance.health`: how it is found out whether a server is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// By a TLS handshake, which also shows how its tickets begin.
    #[default]
    Tls,
    /// By a TCP connection.
    Tcp,
    /// By nothing but clients' connections that fail.
    Off,
}

/// Servers for some server names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalancePool {
    pub name: String,
    /// Server names (SNI), lower case, at least one; `*.example.org` matches one label.
    pub names: Vec<String>,
    /// `None`: that of `[balance]`.
    pub policy: Option<Policy>,
}

/// A server behind the balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalanceServer {
    pub name: String,
    pub address: SocketAddr,
    /// The number its tickets carry; `None`: derived as the server itself does.
    pub number: Option<u32>,
    /// Share of new clients, 1 to 65,535.
    pub weight: u16,
    /// The PROXY header that its connections begin with; `None`: none.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// The pool that it belongs to; `None`: the default pool.
    pub pool: Option<String>,
    /// New clients go elsewhere.
    pub drain: bool,
    /// Most connections at once; 0: as many as come.
    pub max_connections: u32,
}

impl BalanceServer {
    /// A server of the default pool, with the defaults.
    #[must_use]
    pub const fn new(name: String, address: SocketAddr) -> Self {
        Self {
            name,
            address,
            number: None,
            weight: 1,
            proxy_protocol: None,
            pool: None,
            drain: false,
            max_connections: 0,
        }
    }
}

impl Config {
    /// Where the farm key is unless `key.file` says otherwise.
    #[must_use]
    pub fn default_key_file(&self) -> PathBuf {
        self.server.state_dir.join("farm.key")
    }

    /// Everywhere this configuration listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter().map(|listener| listener.address);
        listeners.chain(self.admin.listen).collect()
    }

    /// Whether a session may have to be removed from the outside (purged with its connection, dropped
    /// for want of close_notify): such a session is stored, never sealed into a ticket.
    #[must_use]
    pub const fn sessions_are_removable(&self) -> bool {
        self.connection.purge_on_reclaim || self.session.require_close_notify
    }
}

impl Default for Config {
    fn default() -> Self {
        let state_dir = default_state_dir();
        Self {
            key: Key::File(state_dir.join("farm.key")),
            server: Server {
                name: host_name(),
                number: None,
                state_dir,
                workers: 0,
            },
            session: Session::default(),
            connection: Connection::default(),
            tls: Tls::default(),
            admin: Admin::default(),
            log: Log::default(),
            listeners: Vec::new(),
            sites: Vec::new(),
            upstreams: Vec::new(),
            balance: Balance::default(),
        }
    }
}

/// Longest `session.lifetime` while tickets are handed out: seven days (RFC 9846, 4.7.1).
pub const MAX_TICKET_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Greatest number of a server: tickets carry 24 bits of it.
pub const MAX_NUMBER: u32 = (1 << 24) - 1;

/// `session.store-timeout` where it is not set.
pub const DEFAULT_STORE_TIMEOUT: Duration = Duration::from_millis(20);

/// Longest `session.store-timeout`: a handshake as a whole has twice that.
pub const MAX_STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// `response-timeout` of an upstream where it is not set.
pub const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// Most bytes of `session.early-data`: a request's head, and then some.
pub const MAX_EARLY_DATA: u32 = 64 * 1024;

/// `connect-timeout` of the balancer and of an upstream where it is not set.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// `balance.idle-timeout` where it is not set: longer than a server keeps a connection, so that it
/// is the server that ends one.
pub const DEFAULT_BALANCE_IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

impl Default for Session {
    fn default() -> Self {
        const TEN_HOURS: Duration = Duration::from_secs(10 * 60 * 60);
        Self {
            max_entries: 10_000,
            lifetime: TEN_HOURS,
            tickets: true,
            store: StoreUrl::Memory,
            store_timeout: DEFAULT_STORE_TIMEOUT,
            snapshot: true,
            early_data: 0,
            client_lifetime: TEN_HOURS,
            require_close_notify: false,
            forget: Vec::new(),
        }
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(5 * 60),
            purge_on_reclaim: false,
            max: 0,
            max_hellos: 0,
            max_hello_bytes: 64 << 20,
            max_hello_size: DEFAULT_LIMIT,
            max_per_source: 0,
            rate_per_source: 0,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            idle_timeout: DEFAULT_BALANCE_IDLE_TIMEOUT,
            total_timeout: Duration::ZERO,
            unknown_name: UnknownName::default(),
            health: Health::default(),
            health_interval: Duration::from_secs(5),
            health_name: None,
            slow_start: Duration::ZERO,
            pools: Vec::new(),
            servers: Vec::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: tracing::level_filters::LevelFilter::INFO,
            access: AccessLog::default(),
        }
    }
}

/// `$STATE_DIRECTORY` as systemd sets it, else the user's XDG state folder.
#[must_use]
pub fn default_state_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folders) = set("STATE_DIRECTORY") {
        // systemd separates several folders by colons; the first one is ours.
        if let Some(first) = std::env::split_paths(&folders).next() {
            return first;
        }
    }
    let base = match (set("XDG_STATE_HOME"), set("HOME")) {
        (Some(state), _) => PathBuf::from(state),
        (None, Some(home)) => PathBuf::from(home).join(".local/state"),
        (None, None) => PathBuf::from("/var/lib"),
    };
    base.join("sessile")
}

fn host_name() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().into_owned()
}
