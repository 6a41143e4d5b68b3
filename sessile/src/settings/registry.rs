//! Settings in and out in the registry's form, and out as TOML.

use std::time::SystemTime;

use super::file::{Change, Error, SettingsFile};
use super::{edit, without_password};
use crate::config::Config;
use crate::config::reg::{self, Ignored, RegError, RegFile, Report, Why};
use crate::config::settings::{Setting, all};

/// What an import did.
#[derive(Debug)]
pub struct Import {
    pub change: Change,
    /// One line for each registry value that was taken: what it was and what it is now.
    pub taken: Vec<String>,
    pub ignored: Vec<Ignored>,
}

/// Why an import changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The bytes are no registry export.
    #[error(transparent)]
    NotAnExport(#[from] RegError),
    /// A value was understood, and the file cannot have it.
    #[error("{0}")]
    Unsuitable(Ignored),
    #[error(transparent)]
    File(#[from] Error),
}

/// Takes a registry export over into a file; all of it or, where anything is wrong, nothing.
pub fn import(file: &SettingsFile, bytes: &[u8], now: SystemTime) -> Result<Import, ImportError> {
    let export: RegFile = reg::parse(bytes)?;
    let mut config = file.config()?;
    let Report { taken, mut ignored } = reg::apply(&export, &mut config.clone());
    if let Some(at) = (ignored.iter()).position(|line| line.why == Why::TooLongForTickets) {
        return Err(ImportError::Unsuitable(ignored.swap_remove(at)));
    }
    let mut text = file.text().to_owned();
    let mut lines = Vec::new();
    for taken in taken {
        taken.apply(&mut config);
        let mut now_is = Vec::new();
        for setting in taken.value.settings() {
            let value = (setting.value)(&config).filter(|_| taken.number.is_some());
            let edited = match &value {
                Some(value) => edit::set(&text, setting, value).map(Some),
                None => edit::unset(&text, setting),
            };
            if let Some(edited) = edited.map_err(Error::from)? {
                text = edited;
            }
            now_is.push(match value {
                Some(value) => format!("{} = {value}", setting.name),
                None => format!("{} = {} (the default)", setting.name, setting.default()),
            });
        }
        let was = match taken.number {
            Some(number) => format!("= {number:#010x} ({number})"),
            None => "deleted".to_owned(),
        };
        let (line, value, now_is) = (taken.line, taken.value, now_is.join(", "));
        lines.push(format!("line {line}: {value} {was}: {now_is}"));
    }
    Ok(Import {
        change: file.replace(&text, now)?,
        taken: lines,
        ignored,
    })
}

/// What is set, in the registry's form; what has none is listed at the end, as comments.
#[must_use]
pub fn export_reg(text: &str, config: &Config) -> String {
    let reg::Export {
        text: mut out,
        left_out,
    } = reg::export(config);
    let mut without: Vec<String> = Vec::new();
    for setting in all() {
        let value = if left_out.contains(&setting.name) {
            (setting.value)(config).map(|value| value.toml())
        } else if setting.registry.is_none() {
            written(text, setting)
        } else {
            None
        };
        without.extend(value.map(|value| format!("{} = {value}", setting.name)));
    }
    for (count, what) in [
        (config.listeners.len(), "[[listener]]"),
        (config.sites.len(), "[[site]]"),
        (config.balance.servers.len(), "[[balance.server]]"),
    ] {
        if count > 0 {
            without.push(format!("{what}, {count} in all"));
        }
    }
    if !without.is_empty() {
        out.push_str("\r\n; Not said above, because the registry has no form for it:\r\n");
        for line in without {
            // Version 5 files are read in the machine's code page where they are not UTF-16.
            let ascii: String = line
                .chars()
                .map(|c| if c.is_ascii() { c } else { '?' })
                .collect();
            out.push_str(&format!("; {ascii}\r\n"));
        }
    }
    out
}

/// Every setting as TOML: what is set, and as comments the defaults of what is not. Listeners, sites
/// and servers are no settings, and are not in it.
#[must_use]
pub fn export_toml(text: &str) -> String {
    let mut out = String::new();
    let mut before = "";
    for setting in all() {
        let (section, key) = setting.parts();
        if section != before {
            let gap = if before.is_empty() { "" } else { "\n" };
            out.push_str(&format!("{gap}[{section}]\n"));
            before = section;
        }
        match written(text, setting) {
            Some(value) => out.push_str(&format!("{key} = {value}\n")),
            None => out.push_str(&format!("# {key}: {}\n", setting.default())),
        }
    }
    out
}

/// A setting's value as it stands in the text: a relative path stays relative. What leaves the file
/// has no password in it, and is refused when it is taken back without one.
fn written(text: &str, setting: &Setting) -> Option<String> {
    let value = edit::written(text, setting).unwrap_or_default()?;
    Some(without_password(setting, &value))
}
