//! The tables of a configuration file, for serde: keys and TOML types only. `validate` checks the
//! values, because serde stops at the first problem. Settings are not here: `config::settings` has them.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use toml::Spanned;
use toml::value::Datetime;

pub(super) type Text = Option<Spanned<String>>;
pub(super) type Number = Option<Spanned<Whole>>;
pub(super) type Span = Option<Spanned<TimeSpan>>;
pub(super) type Flag = Option<bool>;
pub(super) type Bytes = Option<Spanned<Size>>;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) server: Server,
    pub(super) session: Session,
    pub(super) key: Key,
    pub(super) connection: Connection,
    pub(super) tls: Tls,
    pub(super) files: Files,
    pub(super) admin: Admin,
    pub(super) log: Log,
    pub(super) listener: Vec<Spanned<Listener>>,
    pub(super) site: Vec<Spanned<Site>>,
    pub(super) upstream: Vec<Spanned<Upstream>>,
    pub(super) balance: Balance,
}

/// Sections that have settings only. The settings are taken out before serde reads the rest.
macro_rules! sections {
    ($($Section:ident),*) => {$(
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $Section {}
    )*};
}
sections!(Server, Key, Connection, Tls, Files, Admin, Log);

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Session {
    pub(super) forget: Vec<Spanned<Forget>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Forget {
    pub(super) site: Text,
    pub(super) server: Option<Spanned<NameOrNumber>>,
    pub(super) before: Option<Spanned<Moment>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Listener {
    pub(super) address: Text,
    pub(super) role: Text,
    pub(super) proxy_protocol: Flag,
    pub(super) proxy_trusted: Vec<Spanned<String>>,
    pub(super) kernel: Text,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Site {
    pub(super) names: Vec<Spanned<String>>,
    pub(super) certificates: Vec<Spanned<Certificate>>,
    pub(super) client_auth: Option<Spanned<ClientAuth>>,
    pub(super) early_data: Bytes,
    pub(super) route: Vec<Spanned<Route>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Certificate {
    pub(super) chain: Text,
    pub(super) key: Text,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct ClientAuth {
    pub(super) mode: Text,
    pub(super) ca: Text,
    pub(super) crl: Text,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Route {
    pub(super) path: Text,
    pub(super) files: Text,
    pub(super) symlinks: Text,
    pub(super) proxy: Text,
    pub(super) redirect: Text,
    pub(super) respond: Text,
    pub(super) status: Number,
    pub(super) verdict: Flag,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Upstream {
    pub(super) name: Text,
    pub(super) servers: Vec<Spanned<String>>,
    pub(super) connect_timeout: Span,
    pub(super) response_timeout: Span,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Balance {
    pub(super) pool: Vec<Spanned<BalancePool>>,
    pub(super) server: Vec<Spanned<BalanceServer>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct BalancePool {
    pub(super) name: Text,
    pub(super) names: Vec<Spanned<String>>,
    pub(super) alpn: Text,
    pub(super) policy: Text,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct BalanceServer {
    pub(super) name: Text,
    pub(super) address: Text,
    pub(super) number: Number,
    pub(super) weight: Number,
    pub(super) proxy_protocol: Text,
    pub(super) pool: Text,
    pub(super) drain: Flag,
    pub(super) max_connections: Number,
}

/// Reads a value from one or several TOML types, with its own error text.
macro_rules! value {
    ($Name:ident, $expected:literal, $($visit:ident($input:ident: $T:ty) => $value:expr),*) => {
        impl<'de> Deserialize<'de> for $Name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Expected;
                impl<'de> Visitor<'de> for Expected {
                    type Value = $Name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    $(fn $visit<E: Error>(self, $input: $T) -> Result<$Name, E> {
                        Ok($value)
                    })*
                }
                deserializer.deserialize_any(Expected)
            }
        }
    };
}

/// A whole number. The definition of the setting has the bounds.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Whole(pub(in crate::config) i64);

value!(Whole, "a whole number", visit_i64(number: i64) => Whole(number));

/// A duration: text, or the number 0, which needs no unit.
#[derive(Clone, Debug)]
pub(in crate::config) struct TimeSpan(pub(in crate::config) String);

value!(
    TimeSpan,
    "a duration in quotes and with a unit, such as \"5m\" or \"10h\"",
    visit_str(text: &str) => TimeSpan(text.to_owned()),
    visit_i64(number: i64) => TimeSpan(number.to_string())
);

/// A size: a number of bytes, or text with a unit.
#[derive(Clone, Debug)]
pub(in crate::config) struct Size(pub(in crate::config) String);

value!(
    Size,
    "a number of bytes, or a size in quotes such as \"16KiB\"",
    visit_str(text: &str) => Size(text.to_owned()),
    visit_i64(number: i64) => Size(number.to_string())
);

/// A server: its name or its number.
#[derive(Clone, Debug)]
pub(super) enum NameOrNumber {
    Name(String),
    Number(Whole),
}

value!(
    NameOrNumber,
    "a server's name or its number",
    visit_str(name: &str) => NameOrNumber::Name(name.to_owned()),
    visit_i64(number: i64) => NameOrNumber::Number(Whole(number))
);

/// A point in time: text, or a TOML date.
#[derive(Clone, Debug)]
pub(super) struct Moment(pub(super) String);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;
        impl<'de> Visitor<'de> for Expected {
            type Value = Moment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time in UTC, such as \"2026-11-24T10:00:00Z\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Moment, E> {
                Ok(Moment(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Moment, A::Error> {
                let time = Datetime::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Moment(time.to_string()))
            }
        }
        deserializer.deserialize_any(Expected)
    }
}
