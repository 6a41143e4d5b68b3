//! The types of settings and of keys in tables. A type parses and shows its values, and has their bounds.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::DnsName;
use serde::de::DeserializeOwned;

use super::value::{Kind, Value};
use crate::config::base::Base;
use crate::config::file::problem::hint;
use crate::config::file::raw::{self, TimeSpan, Whole};
use crate::config::{
    AccessLog, Config, KernelTls, Key, ServerAddress, StoreUrl, parse_listen_address,
};

/// Most bytes of a server's name.
const MAX_NAME_LEN: usize = 255;

/// A duration of at most a year, which has 365.25 days in humantime.
pub(super) const ANY_DURATION: Span = Span(Duration::ZERO..=Duration::from_secs(31_557_600));
/// A duration that is not zero.
pub(in crate::config) const POSITIVE_DURATION: Span =
    Span(Duration::from_nanos(1)..=*ANY_DURATION.0.end());

/// The bounds of `session.store-timeout`, the time that a whole handshake may wait for the store.
pub(super) const STORE_TIMEOUT: Span = Span(Duration::from_nanos(1)..=Duration::from_secs(5));

/// The type of a value. `T` is the type of the field in the configuration.
pub(in crate::config) trait Type<T> {
    /// The form in a TOML file.
    type Written: DeserializeOwned;
    const KIND: Kind;

    /// Parses the value of `key`. A relative path starts at `base`. The error names the remedy.
    fn parse(&self, key: &str, written: Self::Written, base: &Base) -> Result<T, String>;

    /// The value for people and for TOML. `None`: not set.
    fn show(&self, value: &T) -> Option<Value>;
}

/// The kind of a type. The accessor of the field determines `T`.
pub(super) const fn kind_of<T, Y: Type<T>>(_: &Y, _: fn(&Config) -> &T) -> Kind {
    Y::KIND
}

/// A value that can be absent.
pub(super) struct Optional<Y>(pub(super) Y);

impl<T, Y: Type<T>> Type<Option<T>> for Optional<Y> {
    type Written = Y::Written;
    const KIND: Kind = Y::KIND;

    fn parse(&self, key: &str, written: Y::Written, base: &Base) -> Result<Option<T>, String> {
        self.0.parse(key, written, base).map(Some)
    }

    fn show(&self, value: &Option<T>) -> Option<Value> {
        self.0.show(value.as_ref()?)
    }
}

/// `true` or `false`.
pub(super) struct Flag;

impl Type<bool> for Flag {
    type Written = bool;
    const KIND: Kind = Kind::Bool;

    fn parse(&self, _: &str, written: bool, _: &Base) -> Result<bool, String> {
        Ok(written)
    }

    fn show(&self, value: &bool) -> Option<Value> {
        Some(Value::Bool(*value))
    }
}

/// A whole number in these bounds.
pub(in crate::config) struct Count(pub(in crate::config) RangeInclusive<i64>);

impl<N: Copy + TryFrom<i64> + TryInto<u64>> Type<N> for Count {
    type Written = Whole;
    const KIND: Kind = Kind::Count;

    fn parse(&self, key: &str, Whole(value): Whole, _: &Base) -> Result<N, String> {
        let number = N::try_from(value).ok();
        number
            .filter(|_| self.0.contains(&value))
            .ok_or_else(|| out_of_range(key, value, &self.0))
    }

    fn show(&self, value: &N) -> Option<Value> {
        (*value).try_into().ok().map(Value::Count)
    }
}

fn out_of_range(key: &str, value: i64, range: &RangeInclusive<impl Display>) -> String {
    let (least, most) = (range.start(), range.end());
    format!("`{key}` is {value}; write a number from {least} to {most}")
}

/// A number of bytes in these bounds, with or without a binary unit.
pub(in crate::config) struct Size(pub(in crate::config) RangeInclusive<u32>);

impl<N: Copy + TryFrom<u32> + TryInto<u64>> Type<N> for Size {
    type Written = raw::Size;
    const KIND: Kind = Kind::Size;

    fn parse(&self, key: &str, raw::Size(text): raw::Size, _: &Base) -> Result<N, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text[digits.len()..].trim_start() {
            "" | "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            _ => None,
        };
        let number = digits.trim_end().parse::<i64>().ok();
        let Some(value) = unit.and_then(|unit: i64| number?.checked_mul(unit)) else {
            return Err(format!(
                "`{key}` is {text:?}, which is not a size; write a number of bytes, or \"16KiB\""
            ));
        };
        let size = u32::try_from(value)
            .ok()
            .filter(|size| self.0.contains(size));
        size.and_then(|size| N::try_from(size).ok())
            .ok_or_else(|| out_of_range(key, value, &self.0))
    }

    fn show(&self, value: &N) -> Option<Value> {
        (*value).try_into().ok().map(Value::Count)
    }
}

/// A duration in these bounds.
pub(in crate::config) struct Span(pub(super) RangeInclusive<Duration>);

impl Type<Duration> for Span {
    type Written = TimeSpan;
    const KIND: Kind = Kind::Duration;

    fn parse(&self, key: &str, TimeSpan(text): TimeSpan, _: &Base) -> Result<Duration, String> {
        match humantime::parse_duration(&text) {
            Ok(value) if self.0.contains(&value) => Ok(value),
            Ok(value) if value.is_zero() => Err(format!(
                "`{key}` is zero; write a longer duration, such as \"1s\""
            )),
            Ok(value) => Err(format!(
                "`{key}` is {}; at most {} is allowed",
                humantime::format_duration(value),
                humantime::format_duration(*self.0.end())
            )),
            Err(_) => Err(format!(
                "`{key}` is {text:?}, which is not a duration; write a number and a unit, such as \"5m\" or \"10h\""
            )),
        }
    }

    fn show(&self, value: &Duration) -> Option<Value> {
        Some(Value::duration(*value))
    }
}

/// One of several words, each with the value that it means.
pub(in crate::config) struct OneOf<'a, T>(pub(in crate::config) &'a [(&'a str, T)]);

impl<T: Copy + PartialEq> Type<T> for OneOf<'_, T> {
    type Written = String;
    const KIND: Kind = Kind::Text;

    fn parse(&self, key: &str, written: String, _: &Base) -> Result<T, String> {
        let found = self.0.iter().find(|(word, _)| *word == written);
        found.map(|&(_, meaning)| meaning).ok_or_else(|| {
            let known = self.0.iter().map(|(word, _)| *word);
            format!("`{key}` is {written:?}; {}", hint(&written, known))
        })
    }

    fn show(&self, value: &T) -> Option<Value> {
        let word = self.0.iter().find(|(_, meaning)| meaning == value);
        word.map(|(word, _)| Value::text(word))
    }
}

/// A type that is text in the file: how the text is parsed, and how the value is shown.
pub(in crate::config) struct TextType<T: 'static> {
    parse: fn(&str, String, &Base) -> Result<T, String>,
    show: fn(&T) -> Value,
}

impl<T> Type<T> for TextType<T> {
    type Written = String;
    const KIND: Kind = Kind::Text;

    fn parse(&self, key: &str, written: String, base: &Base) -> Result<T, String> {
        (self.parse)(key, written, base)
    }

    fn show(&self, value: &T) -> Option<Value> {
        Some((self.show)(value))
    }
}

/// Refuses empty text.
pub(in crate::config) fn not_empty(key: &str, text: String) -> Result<String, String> {
    if text.is_empty() {
        return Err(format!(
            "`{key}` is empty; give it a value, or remove the line for the default"
        ));
    }
    Ok(text)
}

/// The name of a server, an upstream or a pool.
pub(in crate::config) const SERVER_NAME: TextType<String> = TextType {
    parse: |_, name, _| {
        if name.is_empty() || name.len() > MAX_NAME_LEN || name.chars().any(char::is_control) {
            return Err(format!(
                "`name` is {name:?}; a server's name is 1 to 255 characters without control characters"
            ));
        }
        Ok(name)
    },
    show: |name| Value::text(name),
};

/// A file or a folder. A relative path starts at the folder of the configuration file, or at the folder of
/// credentials.
pub(in crate::config) const PATH: TextType<PathBuf> = TextType {
    parse: |key, path, base| base.resolve(key, not_empty(key, path)?.as_ref()),
    show: |path| Value::text(path.display()),
};

/// An address to listen on.
pub(in crate::config) const LISTEN_ADDRESS: TextType<SocketAddr> = TextType {
    parse: |key, text, _| {
        parse_listen_address(&text).ok_or_else(|| {
            format!(
                "`{key}` is {text:?}, which is not an address to listen on; write for example \"0.0.0.0:443\", \
                 \":443\" or \"localhost:443\" (other names are not looked up)"
            )
        })
    },
    show: |address| Value::text(address),
};

/// An IP address with a port.
pub(in crate::config) const ADDRESS: TextType<SocketAddr> = TextType {
    parse: |key, text, _| {
        text.parse().map_err(|_| {
            format!(
                "`{key}` is {text:?}, which is not an IP address with a port; write for example \"0.0.0.0:443\" or \
                 \"[::]:443\" (host names are not looked up)"
            )
        })
    },
    show: |address| Value::text(address),
};

/// An IP address with a port, a host name with a port, or the name of SRV records.
pub(in crate::config) const SERVER_ADDRESS: TextType<ServerAddress> = TextType {
    parse: |key, text, _| {
        let parsed = text.parse::<ServerAddress>();
        parsed.map_err(|error| format!("`{key}` is {text:?}, {error}"))
    },
    show: |address| Value::text(address),
};

/// A DNS name without a wildcard, in lower case.
pub(super) const DNS_NAME: TextType<String> = TextType {
    parse: |key, text, _| {
        let name = not_empty(key, text)?;
        if DnsName::try_from(name.as_str()).is_err() {
            return Err(format!(
                "{name:?} is not a server name for health checks; write a DNS name in ASCII form that a client would send"
            ));
        }
        Ok(name.to_ascii_lowercase())
    },
    show: |name| Value::text(name),
};

/// `memory`, or the URL of a shared store. Errors and the shown value contain no password.
pub(super) const STORE: TextType<StoreUrl> = TextType {
    parse: |key, text, base| {
        let mut store = not_empty(key, text)?
            .parse::<StoreUrl>()
            .map_err(|bad| format!("`store` {bad}"))?;
        if let StoreUrl::Redis(redis) = &mut store {
            for file in redis.files_mut() {
                *file = base.resolve(key, file)?;
            }
        }
        Ok(store)
    },
    show: |store| Value::text(store),
};

/// The file of the farm key, or `none`.
pub(super) const KEY_FILE: TextType<Key> = TextType {
    parse: |key, file, base| match file.as_str() {
        "none" => Ok(Key::Ephemeral),
        _ => PATH.parse(key, file, base).map(Key::File),
    },
    show: |key| match key {
        Key::File(path) => Value::text(path.display()),
        Key::Ephemeral => Value::text("none"),
    },
};

/// `auto`, `on` or `off`.
pub(super) const KERNEL: TextType<KernelTls> = TextType {
    parse: |key, word, base| OneOf(&KERNEL_WORDS).parse(key, word, base),
    show: |kernel| match kernel {
        KernelTls::Auto => Value::text("auto"),
        KernelTls::On => Value::text("on"),
        KernelTls::Off => Value::text("off"),
    },
};

/// The words for the records of the kernel.
pub(in crate::config) const KERNEL_WORDS: [(&str, KernelTls); 3] = [
    ("auto", KernelTls::Auto),
    ("on", KernelTls::On),
    ("off", KernelTls::Off),
];

/// `-`, `off` or a file.
pub(super) const ACCESS_LOG: TextType<AccessLog> = TextType {
    parse: |key, target, base| match target.as_str() {
        "-" => Ok(AccessLog::Stdout),
        "off" => Ok(AccessLog::Off),
        _ => PATH.parse(key, target, base).map(AccessLog::File),
    },
    show: |log| match log {
        AccessLog::Off => Value::text("off"),
        AccessLog::Stdout => Value::text("-"),
        AccessLog::File(path) => Value::text(path.display()),
    },
};
