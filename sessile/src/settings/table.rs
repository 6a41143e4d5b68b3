//! The one table of settings: what `list` and `get` show, what `set` accepts, and what the
//! documentation says (a test holds them together).

use std::fmt;
use std::time::Duration;

use crate::check::BYTES_PER_ENTRY;
use crate::config::reg::{self, RegValue};
use crate::config::{AccessLog, Config, Health, KernelTls, Key, StoreUrl, UnknownName};

/// A setting: a value that stands once in a file, under `[section] key`.
#[derive(Debug)]
pub struct Setting {
    /// `section.key`
    pub name: &'static str,
    pub kind: Kind,
    /// The default as people read it.
    pub default: &'static str,
    pub meaning: &'static str,
    /// What it is in a configuration; `None`: not set and nothing stands in for it.
    pub value: fn(&Config) -> Option<Value>,
    /// What its present value costs, where that is worth knowing.
    pub cost: fn(&Config) -> Option<String>,
}

impl Setting {
    /// The section and the key in it.
    #[must_use]
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }

    /// The registry value that stands for it.
    #[must_use]
    pub fn registry(&self) -> Option<&'static RegValue> {
        reg::value_for(self.name)
    }

    /// A value of it, as TOML has it, with `***` in the place of a password.
    #[must_use]
    pub fn without_password(&self, toml: &str) -> String {
        if self.name != "session.store" {
            return toml.to_owned();
        }
        let value = toml.parse::<toml_edit::Value>().ok();
        let store = value.as_ref().and_then(|value| value.as_str());
        match store.and_then(|text| text.parse().ok()) {
            Some(StoreUrl::Redis(redis)) if redis.has_password() => {
                Value::Text(redis.to_string()).toml()
            }
            _ => toml.to_owned(),
        }
    }

    /// Reads a value as given on a command line. Only its type is looked at here.
    pub fn read(&self, text: &str) -> Result<Value, WrongKind> {
        let value = match self.kind {
            Kind::Bool => text.parse().ok().map(Value::Bool),
            Kind::Count => text.parse().ok().map(Value::Count),
            Kind::Size => Some(match text.parse() {
                Ok(bytes) => Value::Count(bytes),
                Err(_) => Value::Text(text.to_owned()),
            }),
            Kind::Duration | Kind::Text => Some(Value::Text(text.to_owned())),
        };
        value.ok_or(WrongKind {
            setting: self.name,
            kind: self.kind,
        })
    }
}

/// The setting of that name.
pub fn find(name: &str) -> Result<&'static Setting, UnknownSetting> {
    let found = SETTINGS.iter().find(|setting| setting.name == name);
    found.ok_or_else(|| {
        let names = SETTINGS.iter().map(|setting| setting.name);
        // People often know the key and not its section.
        let by_key = || SETTINGS.iter().find(|setting| setting.parts().1 == name);
        UnknownSetting {
            name: name.to_owned(),
            nearest: crate::config::file::nearest(name, names)
                .or_else(|| by_key().map(|setting| setting.name)),
        }
    })
}

/// No setting has that name.
#[derive(Debug)]
pub struct UnknownSetting {
    pub name: String,
    pub nearest: Option<&'static str>,
}

impl fmt::Display for UnknownSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no setting is called {:?}; ", self.name)?;
        match self.nearest {
            Some(nearest) => write!(f, "did you mean {nearest}?"),
            None => f.write_str("`sessile settings list` shows them all"),
        }
    }
}

impl std::error::Error for UnknownSetting {}

/// The text is not of the setting's type.
#[derive(Debug, thiserror::Error)]
#[error("{setting} takes {kind}")]
pub struct WrongKind {
    pub setting: &'static str,
    pub kind: Kind,
}

/// A setting's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Count,
    Duration,
    Size,
    Text,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "true or false",
            Self::Count => "a whole number",
            Self::Duration => "a duration",
            Self::Size => "a number of bytes",
            Self::Text => "text",
        })
    }
}

impl Kind {
    /// One word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Count => "number",
            Self::Duration => "duration",
            Self::Size => "size",
            Self::Text => "text",
        }
    }
}

/// A setting's value, as TOML has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    Count(u64),
    Text(String),
}

/// As people read it: text without quotes.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Count(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

impl Value {
    /// As TOML writes it.
    #[must_use]
    pub fn toml(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Count(value) => value.to_string(),
            Self::Text(value) => toml_edit::Value::from(value.as_str()).to_string(),
        }
    }

    /// As JSON writes it.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Bool(value) => (*value).into(),
            Self::Count(value) => (*value).into(),
            Self::Text(value) => value.as_str().into(),
        }
    }

    fn some(text: impl fmt::Display) -> Option<Self> {
        Some(Self::Text(text.to_string()))
    }

    fn count(number: usize) -> Option<Self> {
        Some(Self::Count(number as u64))
    }

    fn duration(duration: Duration) -> Option<Self> {
        Self::some(
            humantime::format_duration(duration)
                .to_string()
                .replace(' ', ""),
        )
    }
}

const FREE: fn(&Config) -> Option<String> = |_| None;

/// Every setting, in the order of the sections.
pub static SETTINGS: [Setting; 37] = [
    Setting {
        name: "server.name",
        kind: Kind::Text,
        default: "the host's name",
        meaning: "names the server in logs, metrics and verdicts; with the farm's scope it gives the server's number",
        value: |config| Value::some(&config.server.name),
        cost: FREE,
    },
    Setting {
        name: "server.number",
        kind: Kind::Count,
        default: "from the farm's scope and the server's name",
        meaning: "the number that tickets carry, from 0 to 16777215, another one for each server of a farm",
        value: |config| {
            config
                .server
                .number
                .map(|number| Value::Count(number.into()))
        },
        cost: FREE,
    },
    Setting {
        name: "server.state-dir",
        kind: Kind::Text,
        default: "$STATE_DIRECTORY, else $XDG_STATE_HOME/sessile, else ~/.local/state/sessile",
        meaning: "the state folder: what has to outlive a restart, the farm key first of all",
        value: |config| Value::some(config.server.state_dir.display()),
        cost: FREE,
    },
    Setting {
        name: "server.workers",
        kind: Kind::Count,
        default: "0",
        meaning: "worker threads for each listener; 0: one for each core",
        value: |config| Value::count(config.server.workers),
        cost: FREE,
    },
    Setting {
        name: "session.max-entries",
        kind: Kind::Count,
        default: "10000",
        meaning: "most entries in the session table; the oldest leaves first; 0: no server-side cache",
        value: |config| Value::count(config.session.max_entries),
        cost: |config| match config.session.max_entries {
            0 => Some("clients without tickets never resume".to_owned()),
            entries => Some(format!(
                "up to {} of memory when full (about {BYTES_PER_ENTRY} bytes an entry)",
                crate::check::bytes(entries as u64 * BYTES_PER_ENTRY as u64)
            )),
        },
    },
    Setting {
        name: "session.lifetime",
        kind: Kind::Duration,
        default: "10h",
        meaning: "a session's longest life, counted from its full handshake and never extended by resuming; 0: \
                  nothing resumes; at most 7d while tickets are on",
        value: |config| Value::duration(config.session.lifetime),
        cost: |config| {
            let none = config.session.lifetime.is_zero();
            none.then(|| "every handshake is full".to_owned())
        },
    },
    Setting {
        name: "session.tickets",
        kind: Kind::Bool,
        default: "true",
        meaning: "hand out tickets (TLS 1.2 and 1.3), which any server with the same farm key resumes",
        value: |config| Some(Value::Bool(config.session.tickets)),
        cost: |config| {
            let off = !config.session.tickets;
            off.then(|| {
                "each session takes an entry of the table and resumes on its own server only"
                    .to_owned()
            })
        },
    },
    Setting {
        name: "session.store",
        kind: Kind::Text,
        default: "memory",
        meaning: "where sessions live: \"memory\", the session table of this process, or a Redis or Valkey behind it that \
                  servers share: redis://[user:password@]host[:port][/database], several hosts for a cluster",
        value: |config| Value::some(&config.session.store),
        cost: FREE,
    },
    Setting {
        name: "session.store-timeout",
        kind: Kind::Duration,
        default: "20ms",
        meaning: "how long a handshake waits for a shared store; at most 5s",
        value: |config| Value::duration(config.session.store_timeout),
        cost: |config| {
            let shared = config.session.store != StoreUrl::Memory;
            let longest = humantime::format_duration(config.session.store_timeout);
            shared.then(|| {
                format!("a store that does not answer makes a few handshakes slower by up to {longest}, until it is taken for down")
            })
        },
    },
    Setting {
        name: "session.snapshot",
        kind: Kind::Bool,
        default: "true",
        meaning: "when the server drains, the session table goes to the state folder, sealed under the farm key, and is \
                  read at the next start; needs a key file. A balancer keeps what it has learned in the \
                  same way, unsealed",
        value: |config| Some(Value::Bool(config.session.snapshot)),
        cost: |config| {
            let off = !config.session.snapshot;
            off.then(|| "a restart loses the sessions of clients without tickets".to_owned())
        },
    },
    Setting {
        name: "session.early-data",
        kind: Kind::Size,
        default: "0",
        meaning: "most bytes of early data (0-RTT) taken from a TLS 1.3 client that returns, 16KiB for instance and at most \
                  64KiB; 0: none; needs a shared session.store; [[site]] early-data narrows it",
        value: |config| Some(Value::Count(config.session.early_data.into())),
        cost: |config| {
            let on = config.session.early_data > 0;
            on.then(|| "TLS 1.3 clients resume from the store, once for each session, and not with tickets that outlive it".to_owned())
        },
    },
    Setting {
        name: "session.client-lifetime",
        kind: Kind::Duration,
        default: "10h",
        meaning: "longest life of a session that sessile holds as a client; of this version only the probe is one, and it is done before",
        value: |config| Value::duration(config.session.client_lifetime),
        cost: FREE,
    },
    Setting {
        name: "session.require-close-notify",
        kind: Kind::Bool,
        default: "false",
        meaning: "resume only sessions whose connection ended with close_notify",
        value: |config| Some(Value::Bool(config.session.require_close_notify)),
        cost: |config| {
            let on = config.session.require_close_notify;
            on.then(|| "clients that just drop their connections pay a full handshake; sessions are kept in the table, not in tickets".to_owned())
        },
    },
    Setting {
        name: "key.file",
        kind: Kind::Text,
        default: "farm.key in the state folder",
        meaning: "the farm key, the same on every server; made at the first start; \"none\": a key in memory that is gone \
                  at a restart",
        value: |config| match &config.key {
            Key::File(path) => Value::some(path.display()),
            Key::Ephemeral => Value::some("none"),
        },
        cost: |config| {
            let none = config.key == Key::Ephemeral;
            none.then(|| "a restart costs every client a full handshake, and no other server resumes its tickets".to_owned())
        },
    },
    Setting {
        name: "connection.idle-timeout",
        kind: Kind::Duration,
        default: "5m",
        meaning: "an idle connection is closed and its object reclaimed after this long",
        value: |config| Value::duration(config.connection.idle_timeout),
        cost: FREE,
    },
    Setting {
        name: "connection.purge-on-reclaim",
        kind: Kind::Bool,
        default: "false",
        meaning: "the article's defect, on request: reclaiming a connection also purges its session",
        value: |config| Some(Value::Bool(config.connection.purge_on_reclaim)),
        cost: |config| {
            let on = config.connection.purge_on_reclaim;
            on.then(|| "clients idle for longer than connection.idle-timeout pay a full handshake; sessions are kept in the table, not in tickets".to_owned())
        },
    },
    Setting {
        name: "connection.max",
        kind: Kind::Count,
        default: "0",
        meaning: "most connections at once; 0: from the process's limit on open files",
        value: |config| Value::count(config.connection.max),
        cost: FREE,
    },
    Setting {
        name: "connection.max-hellos",
        kind: Kind::Count,
        default: "0",
        meaning: "most connections at once whose ClientHello is awaited, of which one source prefix (/24, /56) may have a quarter, and no more than half of what is free; 0: half of all connections",
        value: |config| Value::count(config.connection.max_hellos),
        cost: FREE,
    },
    Setting {
        name: "connection.max-hello-bytes",
        kind: Kind::Count,
        default: "67108864",
        meaning: "most bytes of ClientHellos that are held at once, of which one source prefix may have a quarter, and no more than half of what is free; at least 1048576",
        value: |config| Value::count(config.connection.max_hello_bytes),
        cost: FREE,
    },
    Setting {
        name: "connection.max-hello-size",
        kind: Kind::Size,
        default: "16384",
        meaning: "most bytes of one ClientHello, however many records it comes in; from 4KiB to 64KiB",
        value: |config| Value::count(config.connection.max_hello_size),
        cost: FREE,
    },
    Setting {
        name: "connection.max-per-source",
        kind: Kind::Count,
        default: "0",
        meaning: "most connections at once from one source prefix (/24, /56), where many clients can share an address; 0: no limit",
        value: |config| Value::count(config.connection.max_per_source),
        cost: FREE,
    },
    Setting {
        name: "connection.rate-per-source",
        kind: Kind::Count,
        default: "0",
        meaning: "most new connections a second from one source prefix (/24, /56), where many clients can share an address; 0: no limit",
        value: |config| Value::count(config.connection.rate_per_source as usize),
        cost: FREE,
    },
    Setting {
        name: "connection.drain-timeout",
        kind: Kind::Duration,
        default: "10s",
        meaning: "how long open connections may take to finish after the order to stop; then they are cut",
        value: |config| Value::duration(config.connection.drain_timeout),
        cost: FREE,
    },
    Setting {
        name: "tls.kernel",
        kind: Kind::Text,
        default: "auto",
        meaning: "record encryption in the kernel: auto or off; this version never finds it possible",
        value: |config| {
            Value::some(match config.tls.kernel {
                KernelTls::Off => "off",
                KernelTls::Auto => "auto",
            })
        },
        cost: FREE,
    },
    Setting {
        name: "admin.listen",
        kind: Kind::Text,
        default: "nowhere",
        meaning: "IP address and port where /healthz, /readyz, /metrics and the API answer",
        value: |config| config.admin.listen.and_then(Value::some),
        cost: FREE,
    },
    Setting {
        name: "admin.token-file",
        kind: Kind::Text,
        default: "admin.token in the state folder",
        meaning: "holds what a request has to show that changes something; made, for its owner alone, where it is not there",
        value: |config| {
            let file = config.admin.token_file.as_ref()?;
            Value::some(file.display())
        },
        cost: FREE,
    },
    Setting {
        name: "log.level",
        kind: Kind::Text,
        default: "info",
        meaning: "least level of the program's own log: off, error, warn, info, debug or trace",
        value: |config| Value::some(config.log.level),
        cost: FREE,
    },
    Setting {
        name: "log.access",
        kind: Kind::Text,
        default: "-",
        meaning: "one line for each handshake and each request: \"-\" for the standard output, \"off\", or a file",
        value: |config| match &config.log.access {
            AccessLog::Off => Value::some("off"),
            AccessLog::Stdout => Value::some("-"),
            AccessLog::File(path) => Value::some(path.display()),
        },
        cost: FREE,
    },
    Setting {
        name: "balance.policy",
        kind: Kind::Text,
        default: "source",
        meaning: "how a client is placed that brings nothing to route by: source, least-connections or round-robin",
        value: |config| Value::some(config.balance.policy),
        cost: FREE,
    },
    Setting {
        name: "balance.connect-timeout",
        kind: Kind::Duration,
        default: "2s",
        meaning: "how long a connection attempt to a server may take",
        value: |config| Value::duration(config.balance.connect_timeout),
        cost: FREE,
    },
    Setting {
        name: "balance.idle-timeout",
        kind: Kind::Duration,
        default: "1h",
        meaning: "a connection without a byte in either direction is closed after this long; 0: never",
        value: |config| Value::duration(config.balance.idle_timeout),
        cost: FREE,
    },
    Setting {
        name: "balance.total-timeout",
        kind: Kind::Duration,
        default: "0s",
        meaning: "a connection through the balancer is closed after this long in all; 0: never",
        value: |config| Value::duration(config.balance.total_timeout),
        cost: FREE,
    },
    Setting {
        name: "balance.unknown-name",
        kind: Kind::Text,
        default: "default",
        meaning: "a client whose server name no pool has: default (the servers without a pool take it) or refuse",
        value: |config| {
            Value::some(match config.balance.unknown_name {
                UnknownName::Default => "default",
                UnknownName::Refuse => "refuse",
            })
        },
        cost: FREE,
    },
    Setting {
        name: "balance.health",
        kind: Kind::Text,
        default: "tls",
        meaning: "how servers are checked: tls (a handshake, which also finds the names of their ticket keys), tcp (a \
                  connection) or off",
        value: |config| {
            Value::some(match config.balance.health {
                Health::Tls => "tls",
                Health::Tcp => "tcp",
                Health::Off => "off",
            })
        },
        cost: FREE,
    },
    Setting {
        name: "balance.health-interval",
        kind: Kind::Duration,
        default: "5s",
        meaning: "between two checks of a server",
        value: |config| Value::duration(config.balance.health_interval),
        cost: FREE,
    },
    Setting {
        name: "balance.health-name",
        kind: Kind::Text,
        default: "the first whole name of the server's pool, else none",
        meaning: "the server name (SNI) that checks send",
        value: |config| config.balance.health_name.as_ref().and_then(Value::some),
        cost: FREE,
    },
    Setting {
        name: "balance.slow-start",
        kind: Kind::Duration,
        default: "0s",
        meaning: "how long the share of new clients of a server that came up takes to grow to its own; 0: no time",
        value: |config| Value::duration(config.balance.slow_start),
        cost: FREE,
    },
];

#[cfg(test)]
mod tests;
