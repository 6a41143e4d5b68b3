//! How settings of each type are read from a file and shown. A type carries its bounds.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeValue, Error, ValueDeserializer};

use super::value::{Kind, Value};
use crate::config::file::problem::What;
use crate::config::file::raw::{self, Bytes, Number, Text, TimeSpan, Whole};
use crate::config::file::reader::Reader;
use crate::config::{AccessLog, Config, KernelTls, Key, MAX_NUMBER, StoreUrl};

/// A setting's type. `T` is the type of the field in the configuration.
pub(super) trait Type<T> {
    /// The form in a TOML file.
    type Written: DeserializeOwned;
    const KIND: Kind;

    /// Reads the value, or notes the problem in the reader.
    fn read(
        &self,
        reader: &mut Reader<'_>,
        key: &'static str,
        written: Option<Spanned<Self::Written>>,
    ) -> Option<T>;

    /// The value for people and for TOML. `None`: not set.
    fn show(&self, value: &T) -> Option<Value>;
}

/// Reads a TOML value into a field. A problem leaves the field as it is.
pub(super) fn read_into<T, Y: Type<T>>(
    r#type: &Y,
    reader: &mut Reader<'_>,
    key: &'static str,
    written: Spanned<DeValue<'_>>,
    field: &mut T,
) -> Result<(), Error> {
    let span = written.span();
    let value = serde::Deserialize::deserialize(ValueDeserializer::from(written))?;
    if let Some(value) = r#type.read(reader, key, Some(Spanned::new(span, value))) {
        *field = value;
    }
    Ok(())
}

/// The kind of a type. The field's accessor says which `T` is meant.
pub(super) const fn kind_of<T, Y: Type<T>>(_: &Y, _: fn(&Config) -> &T) -> Kind {
    Y::KIND
}

/// `true` or `false`.
pub(super) struct Flag;

impl Type<bool> for Flag {
    type Written = bool;
    const KIND: Kind = Kind::Bool;

    fn read(&self, _: &mut Reader<'_>, _: &str, written: Option<Spanned<bool>>) -> Option<bool> {
        written.map(Spanned::into_inner)
    }

    fn show(&self, value: &bool) -> Option<Value> {
        Some(Value::Bool(*value))
    }
}

/// A whole number in these bounds.
pub(super) struct Count(pub(super) RangeInclusive<i64>);

impl<N: Copy + TryFrom<i64> + TryInto<u64>> Type<N> for Count {
    type Written = Whole;
    const KIND: Kind = Kind::Count;

    fn read(&self, reader: &mut Reader<'_>, key: &'static str, written: Number) -> Option<N> {
        reader.number(key, written, *self.0.start(), *self.0.end())
    }

    fn show(&self, value: &N) -> Option<Value> {
        (*value).try_into().ok().map(Value::Count)
    }
}

/// A number of a server, or none.
pub(super) struct OptionalServerNumber;

impl Type<Option<u32>> for OptionalServerNumber {
    type Written = Whole;
    const KIND: Kind = Kind::Count;

    fn read(
        &self,
        reader: &mut Reader<'_>,
        key: &'static str,
        written: Number,
    ) -> Option<Option<u32>> {
        reader.number(key, written, 0, MAX_NUMBER.into()).map(Some)
    }

    fn show(&self, value: &Option<u32>) -> Option<Value> {
        value.map(|number| Value::Count(number.into()))
    }
}

/// A number of bytes in these bounds, with or without a unit.
pub(super) struct Size(pub(super) RangeInclusive<u32>);

impl<N: Copy + TryFrom<u32> + TryInto<u64>> Type<N> for Size {
    type Written = raw::Size;
    const KIND: Kind = Kind::Size;

    fn read(&self, reader: &mut Reader<'_>, key: &'static str, written: Bytes) -> Option<N> {
        let size = reader.size(key, written, self.0.clone());
        size.and_then(|size| N::try_from(size).ok())
    }

    fn show(&self, value: &N) -> Option<Value> {
        (*value).try_into().ok().map(Value::Count)
    }
}

/// A duration in these bounds.
pub(super) struct Span(pub(super) RangeInclusive<Duration>);

impl Type<Duration> for Span {
    type Written = TimeSpan;
    const KIND: Kind = Kind::Duration;

    fn read(
        &self,
        reader: &mut Reader<'_>,
        key: &'static str,
        written: raw::Span,
    ) -> Option<Duration> {
        reader.duration(key, written, self.0.clone())
    }

    fn show(&self, value: &Duration) -> Option<Value> {
        Some(Value::duration(*value))
    }
}

/// One of some words, each with its meaning.
pub(super) struct OneOf<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Type<T> for OneOf<T> {
    type Written = String;
    const KIND: Kind = Kind::Text;

    fn read(&self, reader: &mut Reader<'_>, key: &'static str, written: Text) -> Option<T> {
        reader.one_of(key, written, self.0)
    }

    fn show(&self, value: &T) -> Option<Value> {
        let word = self.0.iter().find(|(_, meaning)| meaning == value);
        word.map(|(word, _)| Value::text(word))
    }
}

/// Defines types that are text in the file: how the text is read, and how the value is shown.
macro_rules! text_types {
    ($($(#[$doc:meta])* $Name:ident for $T:ty { $read:expr, $show:expr $(,)? })*) => {$(
        $(#[$doc])*
        pub(super) struct $Name;

        impl Type<$T> for $Name {
            type Written = String;
            const KIND: Kind = Kind::Text;

            fn read(&self, reader: &mut Reader<'_>, key: &'static str, written: Text) -> Option<$T> {
                let read: fn(&mut Reader<'_>, &'static str, Text) -> Option<$T> = $read;
                read(reader, key, written)
            }

            fn show(&self, value: &$T) -> Option<Value> {
                let show: fn(&$T) -> Option<Value> = $show;
                show(value)
            }
        }
    )*};
}

text_types! {
    /// The name of a server.
    ServerName for String {
        |reader, _, written| reader.server_name(written),
        |name| Some(Value::text(name)),
    }

    /// A folder. A relative path starts at the file's folder.
    Folder for PathBuf {
        |reader, key, written| reader.path(key, written),
        |path| Some(Value::text(path.display())),
    }

    /// A file, or none. A relative path starts at the file's folder.
    OptionalFile for Option<PathBuf> {
        |reader, key, written| reader.path(key, written).map(Some),
        |path| path.as_ref().map(|path| Value::text(path.display())),
    }

    /// An IP address with a port, or none.
    OptionalAddress for Option<SocketAddr> {
        |reader, key, written| reader.address(key, written).map(Some),
        |address| address.map(Value::text),
    }

    /// A DNS name without a wildcard, or none.
    OptionalDnsName for Option<String> {
        |reader, key, written| reader.dns_name(key, written).map(Some),
        |name| name.as_ref().map(Value::text),
    }

    /// `memory`, or the URL of a shared store. The value is shown without its password.
    Store for StoreUrl {
        |reader, key, written| reader.store(key, written),
        |store| Some(Value::text(store)),
    }

    /// The file of the farm key, or `none`.
    KeyFile for Key {
        |reader, key, written| {
            let file = reader.text(key, written)?;
            Some(match file.get_ref().as_str() {
                "none" => Key::Ephemeral,
                path => Key::File(reader.resolve(path)),
            })
        },
        |key| Some(match key {
            Key::File(path) => Value::text(path.display()),
            Key::Ephemeral => Value::text("none"),
        }),
    }

    /// `auto` or `off`.
    Kernel for KernelTls {
        |reader, key, written| {
            match written {
                Some(on) if on.get_ref() == "on" => {
                    reader.note(on.span(), What::KernelIsOn);
                    None
                }
                written => KERNEL.read(reader, key, written),
            }
        },
        |kernel| KERNEL.show(kernel),
    }

    /// `-`, `off` or a file.
    AccessLogTarget for AccessLog {
        |reader, key, written| {
            let target = reader.text(key, written)?;
            Some(match target.get_ref().as_str() {
                "-" => AccessLog::Stdout,
                "off" => AccessLog::Off,
                path => AccessLog::File(reader.resolve(path)),
            })
        },
        |log| Some(match log {
            AccessLog::Off => Value::text("off"),
            AccessLog::Stdout => Value::text("-"),
            AccessLog::File(path) => Value::text(path.display()),
        }),
    }
}

const KERNEL: OneOf<KernelTls> = OneOf(&[("auto", KernelTls::Auto), ("off", KernelTls::Off)]);
