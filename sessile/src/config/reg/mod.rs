//! The settings in the form of the Windows registry: reads, applies and writes exports (`.reg` files).
//!
//! This module opens no file; [`crate::settings`] does.

mod parse;

use std::fmt;

use super::settings::{RegKey, RegValue, Setting, all};
use super::{Config, MAX_TICKET_LIFETIME};
pub use parse::{Data, Edit, Entry, MAX_BYTES, RegFile, parse};

/// The result of an import, line by line.
#[derive(Debug, Default)]
pub struct Report {
    pub taken: Vec<Taken>,
    pub ignored: Vec<Ignored>,
}

/// A line that set a registry value, or deleted one.
#[derive(Clone, Debug)]
pub struct Taken {
    pub line: usize,
    pub value: RegValue,
    /// `None`: the value was deleted, and its settings have their defaults.
    pub number: Option<u32>,
}

impl Taken {
    /// The settings that the value stands for.
    pub fn settings(&self) -> impl Iterator<Item = &'static Setting> {
        settings_of(self.value)
    }

    /// Sets the settings of the value, or resets them to their defaults.
    pub fn apply(&self, config: &mut Config) {
        for setting in self.settings() {
            let value = match (self.number, setting.registry) {
                (Some(number), Some(registry)) => Some(registry.form.decode(number)),
                _ => (setting.value)(&Config::default()),
            };
            if let Some(value) = value {
                setting.assign(config, &value);
            }
        }
    }
}

/// A line that changed nothing.
#[derive(Clone, Debug)]
pub struct Ignored {
    pub line: usize,
    /// The key, and the name of the value if the line has one.
    pub path: String,
    pub why: Why,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.path, self.why)
    }
}

/// Why a line of a registry export changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("no setting of sessile corresponds to it")]
    NotOurs,
    #[error("it is in another control set than the current one")]
    OtherControlSet,
    #[error(
        "it is text (REG_SZ), and only REG_DWORD counts here; write dword: and hexadecimal digits"
    )]
    Text,
    #[error("it is of type {0}, and only REG_DWORD (type 4, four bytes) counts here")]
    Type(u32),
    #[error(
        "it has 64 bits (REG_QWORD), and Windows reads only REG_DWORD here; write dword: and hexadecimal digits, or \
         remove the line: Windows ignores it"
    )]
    Qword,
    #[error("it is longer than the 7 days that TLS 1.3 allows while session.tickets is on")]
    TooLongForTickets,
}

impl Why {
    /// True if an import must fail: the line names a setting, and its value is a mistake.
    #[must_use]
    pub const fn is_mistake(self) -> bool {
        matches!(self, Self::TooLongForTickets | Self::Qword)
    }
}

/// The type of `REG_QWORD`, which is `hex(b):` in an export.
const TYPE_QWORD: u32 = 11;

/// Applies a registry export to a configuration, line by line. The configuration stays valid: a line
/// that would make it invalid is ignored and reported.
pub fn apply(file: &RegFile, config: &mut Config) -> Report {
    let mut report = Report::default();
    for entry in &file.entries {
        let values = match locate(entry) {
            Ok(values) => values,
            Err(why) => {
                report.ignore(entry, why);
                continue;
            }
        };
        let number = match entry.edit {
            Edit::Set {
                data: Data::Dword(number),
                ..
            } => Some(number),
            _ => None,
        };
        for value in values {
            let taken = Taken {
                line: entry.line,
                value,
                number,
            };
            let mut changed = config.clone();
            taken.apply(&mut changed);
            if changed.session.tickets && changed.session.lifetime > MAX_TICKET_LIFETIME {
                report.ignore(entry, Why::TooLongForTickets);
                continue;
            }
            *config = changed;
            report.taken.push(taken);
        }
    }
    report
}

impl Report {
    fn ignore(&mut self, entry: &Entry, why: Why) {
        let path = match &entry.edit {
            Edit::DeleteKey => entry.key.clone(),
            Edit::Set { name, .. } | Edit::Delete { name } if name.is_empty() => {
                format!(r"{}\@", entry.key)
            }
            Edit::Set { name, .. } | Edit::Delete { name } => format!(r"{}\{name}", entry.key),
        };
        let line = entry.line;
        self.ignored.push(Ignored { line, path, why });
    }
}

/// Every registry value that stands for a setting, each once.
fn values() -> Vec<RegValue> {
    let mut values: Vec<RegValue> = Vec::new();
    for value in all().filter_map(|setting| setting.registry) {
        if !values.iter().any(|known| known.name == value.name) {
            values.push(value);
        }
    }
    values
}

/// The settings that a value stands for, from the last section to the first. So the first setting of
/// `EnableKernelSSL` is `tls.kernel`.
fn settings_of(value: RegValue) -> impl Iterator<Item = &'static Setting> {
    all().rev().filter(move |setting| {
        let same = |known: RegValue| (known.key, known.name) == (value.key, value.name);
        setting.registry.is_some_and(same)
    })
}

/// The values that an entry sets or deletes.
fn locate(entry: &Entry) -> Result<Vec<RegValue>, Why> {
    let path = parts(&entry.key);
    let concerns = |value: &RegValue| match &entry.edit {
        Edit::DeleteKey => !path.is_empty() && parts(value.key.path()).starts_with(&path),
        Edit::Set { name, .. } | Edit::Delete { name } => {
            parts(value.key.path()) == path && value.name.eq_ignore_ascii_case(name)
        }
    };
    let values: Vec<RegValue> = values().into_iter().filter(concerns).collect();
    match &entry.edit {
        _ if values.is_empty() => Err(why_unknown(&path)),
        Edit::Set {
            data: Data::Text(_),
            ..
        } => Err(Why::Text),
        Edit::Set {
            data: Data::Other(TYPE_QWORD),
            ..
        } => Err(Why::Qword),
        Edit::Set {
            data: Data::Other(kind),
            ..
        } => Err(Why::Type(*kind)),
        _ => Ok(values),
    }
}

/// Says why no setting corresponds to a path.
fn why_unknown(path: &[String]) -> Why {
    match path.get(2) {
        Some(set) if set.starts_with("controlset") => Why::OtherControlSet,
        _ => Why::NotOurs,
    }
}

/// The parts of a key's path, in one spelling. `ControlSet001` counts as `CurrentControlSet`, because
/// exports from a mounted disk have that name.
fn parts(path: &str) -> Vec<String> {
    const SPELLINGS: [(&str, &str); 3] = [
        ("hklm", "hkey_local_machine"),
        ("system", "system"),
        ("controlset001", "currentcontrolset"),
    ];
    let mut parts: Vec<String> = path
        .split('\\')
        .filter(|part| !part.is_empty())
        .map(str::to_lowercase)
        .collect();
    for (part, (short, full)) in parts.iter_mut().zip(SPELLINGS) {
        if part != short && part != full {
            break;
        }
        full.clone_into(part);
    }
    parts
}

/// A configuration in the registry's form.
#[derive(Clone, Debug)]
pub struct Export {
    /// A `.reg` file's text, with the line ends that Windows expects.
    pub text: String,
    /// Settings that have a registry name, but a value that the registry cannot express.
    pub left_out: Vec<&'static str>,
}

/// Writes the settings that have a registry form.
#[must_use]
pub fn export(config: &Config) -> Export {
    let mut text = String::from("Windows Registry Editor Version 5.00\r\n");
    let mut left_out = Vec::new();
    for key in RegKey::ALL {
        text.push_str(&format!("\r\n[{}]\r\n", key.path()));
        for value in values().into_iter().filter(|value| value.key == key) {
            match number(value, config) {
                Some(number) => {
                    text.push_str(&format!("\"{}\"=dword:{number:08x}\r\n", value.name));
                }
                None => left_out.extend(settings_of(value).map(|setting| setting.name)),
            }
        }
    }
    Export { text, left_out }
}

/// The number of a registry value. `None`: the registry cannot express the settings.
fn number(value: RegValue, config: &Config) -> Option<u32> {
    let mut numbers = settings_of(value).map(|setting| {
        let value = (setting.value)(config)?;
        setting.registry?.form.encode(&value)
    });
    let first = numbers.next()??;
    // Two settings of one value can contradict each other.
    numbers.all(|number| number == Some(first)).then_some(first)
}

/// Encodes a text in regedit's form: UTF-16LE with a byte order mark.
#[must_use]
pub fn to_utf16(text: &str) -> Vec<u8> {
    let units = std::iter::once(0xfeff).chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests;
