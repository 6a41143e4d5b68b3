//! The configuration that the rest of the program sees. It is validated and complete, and its values
//! are typed. [`mod@file`] reads it from TOML, [`reg`] from registry exports. [`settings`] defines the
//! settings. The rest of the program never sees the raw form.

mod base;
pub mod file;
mod network;
pub mod reg;
mod server_address;
pub mod settings;
pub mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::proxy_protocol;
use sessile_proto::route::Policy;

pub use file::ServerRequest;
pub(crate) use file::WEIGHT_OF_SERVICE;
pub use network::{Network, NotANetwork, parse_listen_address, parse_port};
pub use server_address::{NotAServerAddress, ServerAddress};
pub use settings::{Admin, Balance, Connection, Files, Log, MAX_EARLY_DATA, Server, Session, Tls};
pub use store::StoreUrl;

/// The whole configuration of one process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub server: Server,
    pub session: Session,
    pub key: Key,
    pub connection: Connection,
    pub tls: Tls,
    pub files: Files,
    pub admin: Admin,
    pub log: Log,
    pub listeners: Vec<Listener>,
    pub sites: Vec<Site>,
    pub upstreams: Vec<Arc<Upstream>>,
    pub balance: Balance,
}

/// An entry of `session.forget`. Sessions do not resume if their full handshake was earlier than
/// `before`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    pub target: ForgetTarget,
    pub before: Time,
}

/// The sessions that a [`Forget`] concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForgetTarget {
    Everything,
    /// The sessions of the site with this first name. Empty: the site without names.
    Site(String),
    /// The sessions that the server with this name made.
    Server(String),
    /// The sessions that the server with this number made.
    Number(u32),
}

/// `key.file`: where the farm key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The key is in this file. If the file is missing, the first start makes it.
    File(PathBuf),
    /// `"none"`: each start makes a key in memory, which is lost at the end of the process.
    Ephemeral,
}

/// `tls.kernel`: record encryption in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelTls {
    /// Never.
    Off,
    /// Connections that send a large file, if the kernel has TLS.
    Auto,
    /// As [`Self::Auto`]. The server does not start if the kernel has no TLS.
    On,
}

/// `log.access`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    /// `"-"`: the standard output stream.
    Stdout,
    File(PathBuf),
}

/// `[[listener]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    pub role: Role,
    /// The proxies in front. Only these proxies may connect, and their connections begin with a PROXY
    /// header. Empty: clients connect directly.
    pub proxies: Vec<Network>,
    /// `kernel`: overrides `tls.kernel`.
    pub kernel: Option<KernelTls>,
}

impl Listener {
    /// A listener without proxies in front.
    #[must_use]
    pub const fn new(address: SocketAddr, role: Role) -> Self {
        Self {
            address,
            role,
            proxies: Vec::new(),
            kernel: None,
        }
    }
}

/// The role of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Terminate TLS and answer from the sites.
    Serve,
    /// Route to a server without decrypting.
    Balance,
}

/// A `[[site]]`: the certificates, routes and rules of its server names.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Server names (SNI), lower case; `*.example.org` matches one label. Empty: the default site.
    pub names: Vec<String>,
    /// One certificate for each key type, and at least one certificate.
    pub certificates: Vec<Certificate>,
    /// The rules for client certificates. `None`: clients are not asked for certificates.
    pub client_auth: Option<ClientAuth>,
    /// Most bytes of early data that the site accepts, at most `session.early-data`.
    pub early_data: u32,
    /// Longest matching path first.
    pub routes: Vec<SiteRoute>,
}

impl Site {
    /// The site with this title.
    #[must_use]
    pub fn called<'a>(title: &str, sites: &'a [Self]) -> Option<&'a Self> {
        sites.iter().find(|site| site.title() == title)
    }

    /// The first name, or `*` for the site without names.
    #[must_use]
    pub fn title(&self) -> &str {
        self.names.first().map_or("*", String::as_str)
    }

    /// The sessions of the site.
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

/// `client-auth` of a site: the certificates that clients show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    pub mode: ClientAuthMode,
    /// The authorities whose certificates are accepted, PEM.
    pub ca: PathBuf,
    /// The revocation lists of the authorities, PEM or DER.
    pub crl: Option<PathBuf>,
}

/// States if clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuthMode {
    Required,
    /// A client may come without a certificate. If a client shows a certificate, the certificate is
    /// verified.
    Optional,
}

/// `[[site.route]]`: requests whose path is `path` or lies below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteRoute {
    /// Absolute path without a trailing slash; `/` takes everything.
    pub path: String,
    pub action: Action,
}

/// The action that answers a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Static files.
    Files(Folder),
    /// 308 to this URL, with the rest of the path appended.
    Redirect(String),
    /// This text, as `text/plain`.
    Respond { status: u16, body: String },
    /// One of these servers gets the request, with its whole path.
    Proxy(Arc<Upstream>),
    /// The built-in page that names the server and shows the connection's verdict.
    Verdict,
}

/// `files` and `symlinks` of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    pub path: PathBuf,
    pub symlinks: Symlinks,
}

/// Says which symbolic links in a folder are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Symlinks {
    /// Relative links that stay inside the folder.
    Inside,
    /// All links.
    Follow,
}

/// `[[upstream]]`: servers behind this server, and their timeouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The name that `proxy` of a route refers to.
    pub name: String,
    /// `host:port`, in plain HTTP. The first server that accepts a connection gets the request.
    pub servers: Vec<String>,
    /// Longest time for a connection attempt to one server.
    pub connect_timeout: Duration,
    /// Longest silence of a server before or during its response. Time in which the proxy waits for
    /// the client does not count.
    pub response_timeout: Duration,
}

/// `balance.unknown-name`: how a client is treated if no pool has its server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownName {
    /// The servers without a pool accept the client.
    Default,
    /// The client is refused with the alert unrecognized_name.
    Refuse,
}

/// `balance.health`: how servers are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// By a TLS handshake, which also shows the server's ticket key name.
    Tls,
    /// By a TCP connection.
    Tcp,
    /// By failed client connections only.
    Off,
}

/// `[[balance.pool]]`: the clients of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalancePool {
    pub name: String,
    /// Server names (SNI), lower case. `*.example.org` matches one label. Empty: every name, if the pool has a
    /// protocol.
    pub names: Vec<String>,
    /// The protocol (ALPN) that clients of the pool offer. `None`: clients may offer any protocol.
    pub alpn: Option<String>,
    /// The policy of this pool. `None`: `balance.policy` applies.
    pub policy: Option<Policy>,
}

/// `[[balance.server]]`: a server behind the balancer, or the servers of a DNS name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalanceServer {
    pub name: String,
    pub address: ServerAddress,
    /// The number in the tickets of the server. `None`: derived from the name, or learned from tickets.
    pub number: Option<u32>,
    /// Share of new clients, 1 to 65,535. SRV records have their own weights.
    pub weight: u16,
    /// The version of the PROXY header that the server expects.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// `None`: the default pool.
    pub pool: Option<String>,
    /// True if new clients go to other servers.
    pub drain: bool,
    /// Most connections at once. 0: no limit.
    pub max_connections: u32,
}

impl BalanceServer {
    /// A server of the default pool.
    #[must_use]
    pub fn new(name: String, address: impl Into<ServerAddress>) -> Self {
        Self {
            name,
            address: address.into(),
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
    /// The farm key's file if `key.file` is not set.
    #[must_use]
    pub fn default_key_file(&self) -> PathBuf {
        self.server.state_dir.join(KEY_FILE)
    }

    /// True if a listener has this role.
    #[must_use]
    pub fn has_role(&self, role: Role) -> bool {
        self.listeners.iter().any(|listener| listener.role == role)
    }

    /// All addresses that the process listens on.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter().map(|listener| listener.address);
        listeners.chain(self.admin.listen).collect()
    }

    /// Where the TLS records of a listener may be.
    #[must_use]
    pub fn kernel_tls(&self, listener: &Listener) -> KernelTls {
        listener.kernel.unwrap_or(self.tls.kernel)
    }

    /// True if the end of a connection can remove its session. Sessions are then stored, and tickets
    /// hold only their identifiers.
    #[must_use]
    pub const fn sessions_are_removable(&self) -> bool {
        self.connection.purge_on_reclaim || self.session.require_close_notify
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::File(default_state_dir().join(KEY_FILE))
    }
}

/// The default name of the farm key's file in the state folder.
const KEY_FILE: &str = "farm.key";

/// Approximate bytes of one entry of the session table: the session, the identifier, and a share of
/// the table.
pub const BYTES_PER_ENTRY: usize = 205;

/// Longest `session.lifetime` with tickets: seven days (RFC 9846, 4.7.1).
pub const MAX_TICKET_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Greatest number of a server. Tickets have 24 bits for this number.
pub const MAX_NUMBER: u32 = (1 << 24) - 1;

/// The default `response-timeout` of an upstream.
pub const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// The default `connect-timeout` of the balancer and of an upstream.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// `$STATE_DIRECTORY`, which systemd sets, else the user's XDG state folder.
#[must_use]
pub fn default_state_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folders) = set("STATE_DIRECTORY") {
        // systemd separates several folders by colons. The first one is for sessile.
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

/// A number of bytes in the unit that people would choose.
#[must_use]
pub fn human_bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (size, unit) in UNITS {
        if count >= size {
            let tenths = u128::from(count) * 10 / u128::from(size);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} bytes")
}
