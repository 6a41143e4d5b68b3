//! The definitions of all settings, section by section.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use sessile_proto::hello::{DEFAULT_LIMIT, MAX_LIMIT};
use sessile_proto::name_resolution::DEFAULT_MAX_WAIT;
use sessile_proto::route::Policy;
use tracing::level_filters::LevelFilter;

use super::registry::{Form, RegKey, RegValue};
use super::setting::Setting;
use super::types::{
    ACCESS_LOG, ADDRESS, ANY_DURATION, Count, DNS_NAME, Flag, KERNEL, KEY_FILE, LISTEN_ADDRESS,
    OneOf, Optional, PATH, POSITIVE_DURATION, SERVER_NAME, STORE, STORE_TIMEOUT, Size, Type,
    kind_of,
};
use crate::config::{
    AccessLog, BYTES_PER_ENTRY, BalancePool, BalanceServer, DEFAULT_CONNECT_TIMEOUT, Forget,
    Health, KernelTls, Key, MAX_NUMBER, Role, StoreUrl, UnknownName, default_state_dir, host_name,
    human_bytes,
};

/// Most bytes of `session.early-data`.
pub const MAX_EARLY_DATA: u32 = 64 * 1024;

const MAX_WORKERS: i64 = 1024;
/// Smallest `connection.max-hello-bytes`: room for some ClientHellos of the greatest size.
const MIN_HELLO_BYTES: i64 = 1 << 20;
/// Smallest `connection.max-hello-size`: clients of today send hellos of this size.
const MIN_HELLO_SIZE: u32 = 4096;
/// Largest `files.cache-max-file`.
const MAX_CACHED_FILE: u32 = 1 << 20;
const MAX_COUNT: i64 = u32::MAX as i64;
const TEN_HOURS: Duration = Duration::from_secs(10 * 60 * 60);

const LEVELS: [(&str, LevelFilter); 5] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
];
/// The placing policies: of `balance.policy`, and of a pool.
pub(in crate::config) const POLICIES: [(&str, Policy); 3] = [
    ("source", Policy::Source),
    ("least-connections", Policy::LeastConnections),
    ("round-robin", Policy::RoundRobin),
];
const UNKNOWN_NAMES: [(&str, UnknownName); 2] = [
    ("default", UnknownName::Default),
    ("refuse", UnknownName::Refuse),
];
const HEALTH_CHECKS: [(&str, Health); 3] = [
    ("tls", Health::Tls),
    ("tcp", Health::Tcp),
    ("off", Health::Off),
];

const SERVE: &[Role] = &[Role::Serve];
const BOTH: &[Role] = &[Role::Serve, Role::Balance];

fn cost_if(applies: bool, cost: &str) -> Option<String> {
    applies.then(|| cost.to_owned())
}

/// One setting: name, key, type, and the field below [`Config`](crate::config::Config). The rest are fields
/// of [`Setting`].
macro_rules! setting {
    ($name:expr, $key:expr, $type:expr, $($place:ident).+ { $($option:ident: $value:expr,)* }) => {
        Setting {
            name: $name,
            kind: kind_of(&$type, |config| &config.$($place).+),
            value: |config| $type.show(&config.$($place).+),
            differs: |one, other| one.$($place).+ != other.$($place).+,
            read: |reader, written, config| {
                reader.read_into(&$type, $key, written, &mut config.$($place).+)
            },
            $($option: $value,)*
            ..Setting::PLAIN
        }
    };
}

/// A section: its struct, the defaults of the struct, and the definitions of its settings.
macro_rules! section {
    (
        $(#[$doc:meta])*
        $Section:ident, $section:ident {
            $($key:literal $field:ident: $T:ty = $default:expr, $type:expr => $options:tt)*
        }
        $(tables { $($(#[$table_doc:meta])* $table:ident: $Table:ty,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $Section {
            $(#[doc = concat!("`", stringify!($section), ".", $key, "`")] pub $field: $T,)*
            $($($(#[$table_doc])* pub $table: $Table,)*)?
        }

        impl Default for $Section {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    $($($table: <$Table>::default(),)*)?
                }
            }
        }

        impl $Section {
            pub(super) const SETTINGS: &'static [Setting] = &[
                $(setting!(
                    concat!(stringify!($section), ".", $key), $key, $type, $section.$field $options
                ),)*
            ];
        }
    };
}

section! {
    /// `[server]`: the identity of this server, and its state folder.
    Server, server {
        "name" name: String = host_name(), SERVER_NAME => {
            meaning: "the server's name in logs, metrics and verdicts; the server's number is derived from \
                    it and from the farm's scope",
            default_words: Some("the host's name"),
            example: Some("\"web1\""),
            restart: BOTH,
        }
        "number" number: Option<u32> = None, Optional(Count(0..=MAX_NUMBER as i64)) => {
            meaning: "the number in this server's tickets, from 0 to 16777215; different on each server of \
                    a farm",
            default_words: Some("from the farm's scope and the server's name"),
            example: Some("1"),
            restart: BOTH,
        }
        "state-dir" state_dir: PathBuf = default_state_dir(), PATH => {
            meaning: "the state folder: files that must survive a restart, such as the farm key",
            default_words: Some("$STATE_DIRECTORY, else $XDG_STATE_HOME/sessile, else ~/.local/state/sessile, without a $HOME /var/lib/sessile"),
            example: Some("\"/var/lib/sessile\""),
            restart: BOTH,
        }
        "workers" workers: usize = 0, Count(0..=MAX_WORKERS) => {
            meaning: "worker threads for each listener; 0: one for each core",
            restart: BOTH,
        }
    }
}

section! {
    /// `[session]`: where sessions are kept, and for how long.
    Session, session {
        "max-entries" max_entries: usize = 10_000, Count(0..=MAX_COUNT) => {
            meaning: "maximum entries in the session table; the oldest is removed first; 0: no server-side \
                    cache",
            restart: BOTH,
            registry: RegValue::some(RegKey::Schannel, "MaximumCacheSize", Form::Entries),
            cost: |config| match config.session.max_entries {
                0 => Some("clients without tickets never resume".to_owned()),
                entries => Some(format!(
                    "up to {} of memory when full (about {BYTES_PER_ENTRY} bytes an entry)",
                    human_bytes(entries as u64 * BYTES_PER_ENTRY as u64)
                )),
            },
        }
        "lifetime" lifetime: Duration = TEN_HOURS, ANY_DURATION => {
            meaning: "longest life of a session, counted from its full handshake; resuming does not extend \
                    it; 0: nothing resumes; at most 7d while tickets are on",
            restart: BOTH,
            registry: RegValue::some(RegKey::Schannel, "ServerCacheTime", Form::Milliseconds),
            cost: |config| cost_if(config.session.lifetime.is_zero(), "every handshake is full"),
        }
        "tickets" tickets: bool = true, Flag => {
            meaning: "issue tickets (TLS 1.2 and 1.3), which resume at every server with the same farm key",
            restart: SERVE,
            cost: |config| cost_if(
                !config.session.tickets,
                "each session takes an entry of the session table and resumes on its server only",
            ),
        }
        "store" store: StoreUrl = StoreUrl::Memory, STORE => {
            meaning: "where sessions live: \"memory\" (the session table of this process only), or also in \
                    a Redis or Valkey that the servers share: \
                    redis://[user:password@]host[:port][/database], with several hosts for a cluster",
            restart: SERVE,
        }
        "store-timeout" store_timeout: Duration = Duration::from_millis(20), STORE_TIMEOUT => {
            meaning: "how long a handshake waits for the session store; at most 5s",
            restart: SERVE,
            cost: |config| (config.session.store != StoreUrl::Memory).then(|| format!(
                "a session store that does not answer delays a few handshakes by up to {}, until it counts as down",
                humantime::format_duration(config.session.store_timeout)
            )),
        }
        "snapshot" snapshot: bool = true, Flag => {
            meaning: "on a drain the server saves its session table in the state folder, sealed under the \
                    farm key, and reads it at the next start; needs a key file. A balancer saves the \
                    sessions that it has learned, unsealed",
            restart: BOTH,
            cost: |config| cost_if(
                !config.session.snapshot,
                "a restart loses the sessions of clients without tickets",
            ),
        }
        "early-data" early_data: u32 = 0, Size(0..=MAX_EARLY_DATA) => {
            meaning: "maximum bytes of early data (0-RTT) accepted from a returning TLS 1.3 client, for \
                    example 16KiB, at most 64KiB; 0: none; needs a shared session.store; a [[site]] can \
                    set a lower early-data",
            cost: |config| cost_if(
                config.session.early_data > 0,
                "TLS 1.3 clients resume from the store, once for each session, instead of with tickets \
                 that survive a loss of the store",
            ),
        }
        "client-lifetime" client_lifetime: Duration = TEN_HOURS, ANY_DURATION => {
            meaning: "longest life of a session that sessile holds as a client; has no effect in this \
                    version",
            restart: SERVE,
            registry: RegValue::some(RegKey::Schannel, "ClientCacheTime", Form::Milliseconds),
        }
        "require-close-notify" require_close_notify: bool = false, Flag => {
            meaning: "resume only sessions whose connection ended with close_notify",
            restart: SERVE,
            registry: RegValue::some(RegKey::HttpParameters, "EnableSslCloseNotify", Form::Flag),
            cost: |config| cost_if(
                config.session.require_close_notify,
                "clients that close a connection without close_notify pay a full handshake; sessions \
                 are kept in the table, not in tickets",
            ),
        }
    }
    tables {
        /// The sessions that are forgotten on request.
        forget: Vec<Forget>,
    }
}

/// `[key]`. The configuration has the enum [`Key`] instead of a struct.
pub(super) const KEY_SETTINGS: &[Setting] = &[setting!(
    "key.file",
    "file",
    KEY_FILE,
    key {
        meaning: "the farm key, the same on every server; made at the first start; \"none\": a key in \
                    memory that is lost at a restart",
        default_words: Some("farm.key in the state folder"),
        example: Some("\"/var/lib/sessile/farm.key\""),
        restart: SERVE,
        cost: |config| cost_if(
            config.key == Key::Ephemeral,
            "a restart costs every client a full handshake, and no other server resumes its tickets",
        ),
    }
)];

section! {
    /// `[connection]`: limits and timeouts of client connections.
    Connection, connection {
        "idle-timeout" idle_timeout: Duration = Duration::from_secs(5 * 60), POSITIVE_DURATION => {
            meaning: "how long a connection may be idle before it is closed and its object reclaimed",
            restart: SERVE,
        }
        "body-timeout" body_timeout: Duration = Duration::from_secs(60), POSITIVE_DURATION => {
            meaning: "how long a client may send nothing of a request's body, or make no room \
                    for the next 16 KiB of the response, before the request ends",
            restart: SERVE,
        }
        "purge-on-reclaim" purge_on_reclaim: bool = false, Flag => {
            meaning: "the article's defect, on request: reclaiming a connection also purges its session",
            restart: SERVE,
            registry: RegValue::some(RegKey::HttpParameters, "EnableKernelSSL", Form::PurgeOnReclaim),
            cost: |config| cost_if(
                config.connection.purge_on_reclaim,
                "clients idle for longer than connection.idle-timeout pay a full handshake; \
                sessions are kept in the table, not in tickets",
            ),
        }
        "max" max: usize = 0, Count(0..=MAX_COUNT) => {
            meaning: "maximum connections at once; when one more comes, the source prefix (/24, /56) \
                    with the most gives way to one with fewer; 0: derived from the process's limit \
                    on open files",
            restart: BOTH,
            registry: RegValue::some(RegKey::HttpParameters, "MaxConnections", Form::Connections),
        }
        "max-hellos" max_hellos: usize = 0, Count(0..=MAX_COUNT) => {
            meaning: "maximum connections at once that wait for a ClientHello; when one more comes, \
                    the oldest one gives way; 0: half of all connections",
            restart: BOTH,
        }
        "max-hello-bytes" max_hello_bytes: usize = 64 << 20, Count(MIN_HELLO_BYTES..=MAX_COUNT) => {
            meaning: "maximum bytes of ClientHellos held at once; one source prefix may have a quarter of \
                    them, and at most half of those that are free; 1048576 or more",
            restart: BOTH,
        }
        "max-hello-size" max_hello_size: usize = DEFAULT_LIMIT, Size(MIN_HELLO_SIZE..=MAX_LIMIT as u32) => {
            meaning: "maximum bytes of one ClientHello, over all its records; from 4KiB to 64KiB",
            restart: BOTH,
        }
        "max-per-source" max_per_source: usize = 0, Count(0..=MAX_COUNT) => {
            meaning: "maximum connections at once from one source prefix (/24, /56); many clients can \
                    share one address; 0: no limit",
            restart: BOTH,
        }
        "rate-per-source" rate_per_source: u32 = 0, Count(0..=MAX_COUNT) => {
            meaning: "maximum new connections per second from one source prefix (/24, /56); many clients \
                    can share one address; 0: no limit",
            restart: BOTH,
        }
        "drain-timeout" drain_timeout: Duration = Duration::from_secs(10), ANY_DURATION => {
            meaning: "how long open connections may take to finish after a stop signal; then they are cut",
            restart: BOTH,
        }
    }
}

section! {
    /// `[tls]`: how TLS records are encrypted.
    Tls, tls {
        "kernel" kernel: KernelTls = KernelTls::Auto, KERNEL => {
            meaning: "TLS records in the kernel, for HTTP/1.1 connections that send a file of at least \
                    64KiB: auto, on or off; on: do not start without a kernel that has TLS",
            restart: SERVE,
            registry: RegValue::some(RegKey::HttpParameters, "EnableKernelSSL", Form::KernelTls),
        }
    }
}

section! {
    /// `[files]`: small files that are served from memory.
    Files, files {
        "cache-size" cache_size: u64 = 32 << 20, Size(0..=u32::MAX) => {
            meaning: "most bytes of small files in memory, with their names; 0: no file stays in memory",
            restart: SERVE,
        }
        "cache-max-file" cache_max_file: u64 = 64 << 10, Size(0..=MAX_CACHED_FILE) => {
            meaning: "a larger file is always read from the file system; at most 1MiB",
            restart: SERVE,
        }
        "cache-max-entries" cache_max_entries: usize = 10_000, Count(0..=MAX_COUNT) => {
            meaning: "most files in memory; 0: no file stays in memory",
            restart: SERVE,
        }
    }
}

section! {
    /// `[admin]`: where health, metrics and the API are served.
    Admin, admin {
        "listen" listen: Option<SocketAddr> = None, Optional(LISTEN_ADDRESS) => {
            meaning: "address and port where the page of the state (/), /healthz, /readyz, /metrics and the API answer",
            default_words: Some("nowhere"),
            example: Some("\"127.0.0.1:9443\""),
            restart: BOTH,
        }
        "token-file" token_file: Option<PathBuf> = None, Optional(PATH) => {
            meaning: "the file with the token that requests need to change something; if it does not \
                    exist, sessile makes it, readable only for its owner",
            default_words: Some("admin.token in the state folder"),
            example: Some("\"/var/lib/sessile/admin.token\""),
            restart: BOTH,
        }
    }
}

section! {
    /// `[log]`: the log of the program and the log of requests.
    Log, log {
        "level" level: LevelFilter = LevelFilter::INFO, OneOf(&LEVELS) => {
            meaning: "lowest level of the program's own log: off, error, warn, info or debug",
            restart: BOTH,
        }
        "access" access: AccessLog = AccessLog::Stdout, ACCESS_LOG => {
            meaning: "one line for each handshake and each request: \"-\" for the standard output, \
                    \"off\", or a file",
            restart: SERVE,
        }
    }
}

section! {
    /// `[balance]`: how clients are placed and servers are checked.
    Balance, balance {
        "policy" policy: Policy = Policy::Source, OneOf(&POLICIES) => {
            meaning: "how clients without a known session are placed: source, least-connections or \
                    round-robin",
        }
        "connect-timeout" connect_timeout: Duration = DEFAULT_CONNECT_TIMEOUT, POSITIVE_DURATION => {
            meaning: "how long a connection attempt to a server may take",
        }
        // This default is longer than servers keep idle connections, so that the server closes first.
        "idle-timeout" idle_timeout: Duration = Duration::from_secs(60 * 60), ANY_DURATION => {
            meaning: "a connection without a byte in either direction is closed after this long; 0: never",
        }
        "total-timeout" total_timeout: Duration = Duration::ZERO, ANY_DURATION => {
            meaning: "a connection through the balancer is closed at this age; 0: never",
        }
        "unknown-name" unknown_name: UnknownName = UnknownName::Default, OneOf(&UNKNOWN_NAMES) => {
            meaning: "what happens to a client whose server name is in no pool: default (the servers \
                    without a pool take it) or refuse",
        }
        "health" health: Health = Health::Tls, OneOf(&HEALTH_CHECKS) => {
            meaning: "how servers are checked: tls (a handshake, which also finds the names of their \
                    ticket keys), tcp (a connection) or off",
        }
        "health-interval" health_interval: Duration = Duration::from_secs(5), POSITIVE_DURATION => {
            meaning: "time between two health checks of a server",
        }
        "health-name" health_name: Option<String> = None, Optional(DNS_NAME) => {
            meaning: "the server name (SNI) that health checks send",
            default_words: Some("the pool's first name without a wildcard, else none"),
            example: Some("\"www.example.org\""),
        }
        "slow-start" slow_start: Duration = Duration::ZERO, ANY_DURATION => {
            meaning: "how long a server that came up takes to reach its full share of new clients; 0: at \
                    once",
        }
        "lookup-interval" lookup_interval: Duration = DEFAULT_MAX_WAIT, POSITIVE_DURATION => {
            meaning: "longest time between two lookups of a server's DNS name; the lifetime of the records \
                    can end before, but names are looked up at most once a second",
        }
        "resolver" resolver: Option<SocketAddr> = None, Optional(ADDRESS) => {
            meaning: "IP address and port of the DNS server that knows the names of servers; /etc/hosts \
                    goes first",
            default_words: Some("the DNS servers of /etc/resolv.conf"),
            example: Some("\"127.0.0.1:53\""),
        }
    }
    tables {
        /// The pools, without the default pool.
        pools: Vec<BalancePool>,
        /// The servers of all pools.
        servers: Vec<BalanceServer>,
        /// True if addresses lead no clients to a server. Only `sessile farm` sets this.
        ignores_addresses: bool,
    }
}
