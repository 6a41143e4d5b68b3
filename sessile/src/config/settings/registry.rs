//! The form of a setting in the Windows registry: key, name and number.

use std::fmt;
use std::time::Duration;

use super::value::Value;

/// A registry key with values that are settings of sessile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegKey {
    /// `…\Control\SecurityProviders\SCHANNEL`
    Schannel,
    /// `…\Services\HTTP\Parameters`
    HttpParameters,
}

impl RegKey {
    pub(in crate::config) const ALL: [Self; 2] = [Self::Schannel, Self::HttpParameters];

    pub(in crate::config) const fn path(self) -> &'static str {
        match self {
            Self::Schannel => {
                r"HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\SecurityProviders\SCHANNEL"
            }
            Self::HttpParameters => {
                r"HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Services\HTTP\Parameters"
            }
        }
    }

    /// The end of the path, as users see it.
    const fn short(self) -> &'static str {
        match self {
            Self::Schannel => "SCHANNEL",
            Self::HttpParameters => r"HTTP\Parameters",
        }
    }
}

/// A registry value (`REG_DWORD`), and the meaning of its number for one setting. `EnableKernelSSL`
/// stands for two settings.
#[derive(Clone, Copy, Debug)]
pub struct RegValue {
    pub key: RegKey,
    pub name: &'static str,
    pub form: Form,
}

impl RegValue {
    /// Makes a value in the definition of a setting.
    pub(super) const fn some(key: RegKey, name: &'static str, form: Form) -> Option<Self> {
        Some(Self { key, name, form })
    }
}

impl fmt::Display for RegValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r"{}\{}", self.key.short(), self.name)
    }
}

/// The meaning of a registry value's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Entries,
    /// The number of connections. Windows has no 0, which means "from the file limit" in sessile.
    Connections,
    Milliseconds,
    /// 0 is false, another number true.
    Flag,
    /// `EnableKernelSSL` for `tls.kernel`: 0 is `off`, another number `auto`.
    KernelTls,
    /// `EnableKernelSSL` for `connection.purge-on-reclaim`: 0 is true.
    PurgeOnReclaim,
}

impl Form {
    /// The unit of the number. Empty: none.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Entries => "entries",
            Self::Connections => "connections",
            Self::Milliseconds => "ms",
            Self::Flag | Self::KernelTls | Self::PurgeOnReclaim => "",
        }
    }

    /// The value of the setting for a number.
    #[must_use]
    pub fn decode(self, number: u32) -> Value {
        match self {
            Self::Entries | Self::Connections => Value::Count(number.into()),
            Self::Milliseconds => Value::duration(Duration::from_millis(number.into())),
            Self::Flag => Value::Bool(number != 0),
            Self::KernelTls => Value::text(if number == 0 { "off" } else { "auto" }),
            Self::PurgeOnReclaim => Value::Bool(number == 0),
        }
    }

    /// The number for a value of the setting, if the registry has one.
    #[must_use]
    pub fn encode(self, value: &Value) -> Option<u32> {
        match (self, value) {
            (Self::Entries, Value::Count(count)) => u32::try_from(*count).ok(),
            (Self::Connections, Value::Count(count)) => {
                u32::try_from(*count).ok().filter(|&count| count > 0)
            }
            (Self::Milliseconds, Value::Text(text)) => {
                let duration = humantime::parse_duration(text).ok()?;
                let whole = duration.subsec_nanos().is_multiple_of(1_000_000);
                u32::try_from(duration.as_millis()).ok().filter(|_| whole)
            }
            (Self::Flag, Value::Bool(flag)) => Some((*flag).into()),
            (Self::KernelTls, Value::Text(kernel)) => Some((kernel != "off").into()),
            (Self::PurgeOnReclaim, Value::Bool(purge)) => Some((!purge).into()),
            _ => None,
        }
    }
}
