//! The configuration file's shape, for serde. Keys and TOML types only: what a value has to be beyond
//! its type is `validate`'s, which reports every such problem and not just the first.

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
    pub(super) admin: Admin,
    pub(super) log: Log,
    pub(super) listener: Vec<Spanned<Listener>>,
    pub(super) site: Vec<Spanned<Site>>,
    pub(super) upstream: Vec<Spanned<Upstream>>,
    pub(super) balance: Balance,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) name: Text,
    pub(super) number: Number,
    pub(super) state_dir: Text,
    pub(super) workers: Number,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Session {
    pub(super) max_entries: Number,
    pub(super) lifetime: Span,
    pub(super) tickets: Flag,
    pub(super) store: Text,
    pub(super) store_timeout: Span,
    pub(super) snapshot: Flag,
    pub(super) early_data: Bytes,
    pub(super) client_lifetime: Span,
    pub(super) require_close_notify: Flag,
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
pub(super) struct Key {
    pub(super) file: Text,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Connection {
    pub(super) idle_timeout: Span,
    pub(super) purge_on_reclaim: Flag,
    pub(super) max: Number,
    pub(super) max_hellos: Number,
    pub(super) max_hello_bytes: Number,
    pub(super) max_hello_size: Bytes,
    pub(super) max_per_source: Number,
    pub(super) rate_per_source: Number,
    pub(super) drain_timeout: Span,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) kernel: Text,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) listen: Text,
    pub(super) token_file: Text,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) level: Text,
    pub(super) access: Text,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Listener {
    pub(super) address: Text,
    pub(super) role: Text,
    pub(super) proxy_protocol: Flag,
    pub(super) proxy_trusted: Vec<Spanned<String>>,
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
    pub(super) policy: Text,
    pub(super) connect_timeout: Span,
    pub(super) idle_timeout: Span,
    pub(super) total_timeout: Span,
    pub(super) unknown_name: Text,
    pub(super) health: Text,
    pub(super) health_interval: Span,
    pub(super) health_name: Text,
    pub(super) slow_start: Span,
    pub(super) pool: Vec<Spanned<BalancePool>>,
    pub(super) server: Vec<Spanned<BalanceServer>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct BalancePool {
    pub(super) name: Text,
    pub(super) names: Vec<Spanned<String>>,
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

/// A whole number; its bounds are the setting's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole(pub(super) i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Awaited;
        impl Visitor<'_> for Awaited {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number))
            }
        }
        deserializer.deserialize_i64(Awaited)
    }
}

/// A duration as written: text, or the number 0, which needs no unit.
#[derive(Clone, Debug)]
pub(super) struct TimeSpan(pub(super) String);

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Awaited;
        impl Visitor<'_> for Awaited {
            type Value = TimeSpan;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration in quotes and with a unit, such as \"5m\" or \"10h\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<TimeSpan, E> {
                Ok(TimeSpan(text.to_owned()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<TimeSpan, E> {
                Ok(TimeSpan(number.to_string()))
            }
        }
        deserializer.deserialize_any(Awaited)
    }
}

/// A size as written: a number of bytes, or text with a unit.
#[derive(Clone, Debug)]
pub(super) struct Size(pub(super) String);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Awaited;
        impl Visitor<'_> for Awaited {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a size in quotes such as \"16KiB\"")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Size, E> {
                Ok(Size(number.to_string()))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                Ok(Size(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Awaited)
    }
}

/// A point in time as written: text, or TOML's own form.
#[derive(Clone, Debug)]
pub(super) struct Moment(pub(super) String);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Awaited;
        impl<'de> Visitor<'de> for Awaited {
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
        deserializer.deserialize_any(Awaited)
    }
}

/// A server as written: its name or its number.
#[derive(Clone, Debug)]
pub(super) enum NameOrNumber {
    Name(String),
    Number(Whole),
}

impl<'de> Deserialize<'de> for NameOrNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Awaited;
        impl Visitor<'_> for Awaited {
            type Value = NameOrNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a server's name or its number")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<NameOrNumber, E> {
                Ok(NameOrNumber::Name(name.to_owned()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<NameOrNumber, E> {
                Ok(NameOrNumber::Number(Whole(number)))
            }
        }
        deserializer.deserialize_any(Awaited)
    }
}
