//! Which registry values there are, and how each goes into a configuration and comes out of one.

use std::fmt;
use std::time::Duration;

use crate::config::{Config, Connection, KernelTls, Session};

/// A registry key that holds values of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `…\Control\SecurityProviders\SCHANNEL`
    Schannel,
    /// `…\Services\HTTP\Parameters`
    HttpParameters,
}

impl Key {
    pub(super) const ALL: [Self; 2] = [Self::Schannel, Self::HttpParameters];

    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Schannel => {
                r"HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\SecurityProviders\SCHANNEL"
            }
            Self::HttpParameters => {
                r"HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Services\HTTP\Parameters"
            }
        }
    }

    /// The path's last part or parts, enough to tell people which key is meant.
    const fn short(self) -> &'static str {
        match self {
            Self::Schannel => "SCHANNEL",
            Self::HttpParameters => r"HTTP\Parameters",
        }
    }
}

/// A registry value (`REG_DWORD`) that corresponds to one or two settings.
#[derive(Debug)]
pub struct RegValue {
    pub key: Key,
    pub name: &'static str,
    /// What its number counts; empty where it counts nothing.
    pub unit: &'static str,
    /// The settings it stands for.
    pub settings: &'static [&'static str],
    /// Puts the registry's number, or for `None` the default, into a configuration.
    pub(super) take: fn(&mut Config, Option<u32>),
    /// The number that says what a configuration says, where there is one.
    pub(super) give: fn(&Config) -> Option<u32>,
}

impl fmt::Display for RegValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r"{}\{}", self.key.short(), self.name)
    }
}

/// Every registry value that is understood.
pub static VALUES: [RegValue; 6] = [
    RegValue {
        key: Key::Schannel,
        name: "MaximumCacheSize",
        unit: "entries",
        settings: &["session.max-entries"],
        take: |config, number| {
            let default = Session::default().max_entries;
            config.session.max_entries = count(number, default);
        },
        give: |config| u32::try_from(config.session.max_entries).ok(),
    },
    RegValue {
        key: Key::Schannel,
        name: "ServerCacheTime",
        unit: "ms",
        settings: &["session.lifetime"],
        take: |config, number| {
            config.session.lifetime = number.map_or(Session::default().lifetime, from_millis);
        },
        give: |config| millis(config.session.lifetime),
    },
    RegValue {
        key: Key::Schannel,
        name: "ClientCacheTime",
        unit: "ms",
        settings: &["session.client-lifetime"],
        take: |config, number| {
            let default = Session::default().client_lifetime;
            config.session.client_lifetime = number.map_or(default, from_millis);
        },
        give: |config| millis(config.session.client_lifetime),
    },
    RegValue {
        key: Key::HttpParameters,
        name: "EnableSslCloseNotify",
        unit: "",
        settings: &["session.require-close-notify"],
        take: |config, number| config.session.require_close_notify = number.is_some_and(|n| n != 0),
        give: |config| Some(config.session.require_close_notify.into()),
    },
    RegValue {
        key: Key::HttpParameters,
        name: "EnableKernelSSL",
        unit: "",
        settings: &["tls.kernel", "connection.purge-on-reclaim"],
        take: |config, number| {
            let off = number == Some(0);
            config.tls.kernel = if off { KernelTls::Off } else { KernelTls::Auto };
            config.connection.purge_on_reclaim = off;
        },
        // The other two combinations are none that Windows could have.
        give: |config| match (config.tls.kernel, config.connection.purge_on_reclaim) {
            (KernelTls::Off, true) => Some(0),
            (KernelTls::Auto, false) => Some(1),
            _ => None,
        },
    },
    RegValue {
        key: Key::HttpParameters,
        name: "MaxConnections",
        unit: "connections",
        settings: &["connection.max"],
        take: |config, number| config.connection.max = count(number, Connection::default().max),
        // 0, "from the file limit", is nothing that Windows knows.
        give: |config| {
            u32::try_from(config.connection.max)
                .ok()
                .filter(|&max| max > 0)
        },
    },
];

fn count(number: Option<u32>, default: usize) -> usize {
    // A number that is too large for this machine is as good as the largest it has.
    number.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

fn from_millis(number: u32) -> Duration {
    Duration::from_millis(number.into())
}

fn millis(duration: Duration) -> Option<u32> {
    let whole = duration.subsec_nanos().is_multiple_of(1_000_000);
    u32::try_from(duration.as_millis()).ok().filter(|_| whole)
}

/// The registry value that stands for a setting.
#[must_use]
pub fn value_for(setting: &str) -> Option<&'static RegValue> {
    VALUES
        .iter()
        .find(|value| value.settings.contains(&setting))
}
