//! The settings as the Windows registry knows them: reads exports (`.reg` files), carries their
//! values over to a [`Config`], and writes them. It touches no file; `settings` does.

mod error;
mod parse;
mod values;

use std::fmt;

use super::{Config, MAX_TICKET_LIFETIME};
pub use error::{Place, RegError, Wrong};
pub use parse::{Data, Edit, Entry, MAX_BYTES, RegFile, parse};
pub use values::{Key, RegValue, VALUES, value_for};

/// What became of a registry export.
#[derive(Debug, Default)]
pub struct Report {
    pub taken: Vec<Taken>,
    pub ignored: Vec<Ignored>,
}

/// A line that changed the configuration (or confirmed what it said already).
#[derive(Clone, Debug)]
pub struct Taken {
    pub line: usize,
    pub value: &'static RegValue,
    /// The number, or `None` where the value was deleted: back to the default.
    pub number: Option<u32>,
}

impl Taken {
    /// Carries this one value over.
    pub fn apply(&self, config: &mut Config) {
        (self.value.take)(config, self.number);
    }
}

/// A line that changed nothing.
#[derive(Clone, Debug)]
pub struct Ignored {
    pub line: usize,
    /// The key, and the value's name where it is about one.
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
    #[error("no setting of sessile's corresponds to it")]
    NotOurs,
    #[error("it is in another control set than the current one")]
    OtherControlSet,
    #[error(
        "it is text (REG_SZ), and only REG_DWORD counts here; write dword: and hexadecimal digits"
    )]
    Text,
    #[error("it is of type {0}, and only REG_DWORD (type 4, four bytes) counts here")]
    Type(u32),
    #[error("it is longer than the 7 days that TLS 1.3 allows while session.tickets is on")]
    TooLongForTickets,
}

/// Carries the values of a registry export over to a configuration, in the order of the export. The
/// configuration stays valid: what would not be is reported as ignored.
pub fn apply(file: &RegFile, config: &mut Config) -> Report {
    let mut report = Report::default();
    for entry in &file.entries {
        let found = locate(entry);
        let (values, why) = match found {
            Ok(values) => (values, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let number = match entry.edit {
            Edit::Set {
                data: Data::Dword(number),
                ..
            } => Some(number),
            _ => None,
        };
        for value in values {
            let line = entry.line;
            let taken = Taken {
                line,
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
        if let Some(why) = why {
            report.ignore(entry, why);
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

/// The values that an entry is about, or why there is none.
fn locate(entry: &Entry) -> Result<Vec<&'static RegValue>, Why> {
    let written = parts(&entry.key);
    let name = match &entry.edit {
        Edit::DeleteKey => {
            let below = |value: &&RegValue| {
                !written.is_empty() && parts(value.key.path()).starts_with(&written)
            };
            let values: Vec<_> = VALUES.iter().filter(below).collect();
            return match values.len() {
                0 => Err(stray(&written)),
                _ => Ok(values),
            };
        }
        Edit::Set { name, .. } | Edit::Delete { name } => name,
    };
    let matches = |value: &&RegValue| {
        parts(value.key.path()) == written && value.name.eq_ignore_ascii_case(name)
    };
    let value = VALUES.iter().find(matches).ok_or_else(|| stray(&written))?;
    match entry.edit {
        Edit::Set {
            data: Data::Text(_),
            ..
        } => Err(Why::Text),
        Edit::Set {
            data: Data::Other(kind),
            ..
        } => Err(Why::Type(kind)),
        _ => Ok(vec![value]),
    }
}

/// Why a path leads to nothing of ours.
fn stray(written: &[String]) -> Why {
    match written.get(2) {
        Some(set) if set.starts_with("controlset") => Why::OtherControlSet,
        _ => Why::NotOurs,
    }
}

/// A key's path in one spelling. `ControlSet001` is what `CurrentControlSet` usually points to, and
/// what an export from a mounted disk calls it.
fn parts(path: &str) -> Vec<String> {
    let parts = path.split('\\').filter(|part| !part.is_empty());
    let mut parts: Vec<String> = parts.map(str::to_lowercase).collect();
    for (index, (abbreviated, full)) in [
        ("hklm", "hkey_local_machine"),
        ("system", "system"),
        ("controlset001", "currentcontrolset"),
    ]
    .into_iter()
    .enumerate()
    {
        match parts.get_mut(index) {
            Some(part) if part == abbreviated || part == full => full.clone_into(part),
            _ => break,
        }
    }
    parts
}

/// A configuration in the registry's form.
#[derive(Clone, Debug)]
pub struct Export {
    /// A `.reg` file's text, with the line ends that Windows expects.
    pub text: String,
    /// Settings that have a registry name, with values that the registry cannot say.
    pub left_out: Vec<&'static str>,
}

/// Writes what has a registry form.
#[must_use]
pub fn export(config: &Config) -> Export {
    let mut text = String::from("Windows Registry Editor Version 5.00\r\n");
    let mut left_out = Vec::new();
    for key in Key::ALL {
        text.push_str(&format!("\r\n[{}]\r\n", key.path()));
        for value in VALUES.iter().filter(|value| value.key == key) {
            match (value.give)(config) {
                Some(number) => {
                    text.push_str(&format!("\"{}\"=dword:{number:08x}\r\n", value.name));
                }
                None => left_out.extend_from_slice(value.settings),
            }
        }
    }
    Export { text, left_out }
}

/// Text as regedit writes it: UTF-16LE with a byte order mark.
#[must_use]
pub fn to_utf16(text: &str) -> Vec<u8> {
    let units = std::iter::once(0xfeff).chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests;
