//! Imports settings from the registry, and exports them in the registry's form or as TOML.

use std::time::SystemTime;

use super::file::{Change, Error, SettingsFile};
use super::{edit, without_password};
use crate::config::Config;
use crate::config::file::Problem;
use crate::config::reg::{self, Ignored, RegFile, Report};
use crate::config::settings::{Setting, all};

/// The result of an import.
#[derive(Debug)]
pub struct Import {
    pub change: Change,
    /// One line for each registry value that was taken, with its number and the resulting settings.
    pub taken: Vec<String>,
    pub ignored: Vec<Ignored>,
}

/// Why an import changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The bytes are not a registry export.
    #[error(transparent)]
    NotAnExport(#[from] Problem),
    /// Settings cannot have the values of these lines.
    #[error("{}", in_lines(.0))]
    Unsuitable(Vec<Ignored>),
    #[error(transparent)]
    File(#[from] Error),
}

fn in_lines(mistakes: &[Ignored]) -> String {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Imports a registry export into a file. Unknown entries are ignored. An error leaves the file
/// unchanged.
pub fn import(file: &SettingsFile, bytes: &[u8], now: SystemTime) -> Result<Import, ImportError> {
    let export: RegFile = reg::parse(bytes)?;
    let before = file.config()?;
    let mut config = before.clone();
    let Report { taken, ignored } = reg::apply(&export, &mut config.clone());
    let (mistakes, ignored): (Vec<_>, Vec<_>) =
        ignored.into_iter().partition(|line| line.why.is_mistake());
    if !mistakes.is_empty() {
        return Err(ImportError::Unsuitable(mistakes));
    }
    let mut text = file.text().to_owned();
    let mut lines = Vec::new();
    for taken in taken {
        taken.apply(&mut config);
        let mut changes = Vec::new();
        for setting in taken.settings() {
            let name = setting.name;
            let value = (setting.value)(&config).filter(|_| taken.number.is_some());
            if let Some(value) = value {
                text = edit::set(&text, setting, &value).map_err(Error::from)?;
                let note = match (setting.has_default(&before), setting.has_default(&config)) {
                    (true, true) => " (the default already)",
                    (false, true) => " (the default)",
                    (_, false) => "",
                };
                changes.push(format!("{name} = {value}{note}"));
            } else {
                let without = edit::unset(&text, setting).map_err(Error::from)?;
                text = without.unwrap_or(text);
                changes.push(format!("{name} = {} (the default)", setting.default()));
            }
        }
        let number = match taken.number {
            Some(number) => format!("= {number:#010x} ({number})"),
            None => "deleted".to_owned(),
        };
        let (line, value, changes) = (taken.line, taken.value, changes.join(", "));
        lines.push(format!("line {line}: {value} {number}: {changes}"));
    }
    Ok(Import {
        change: file.replace(&text, now)?,
        taken: lines,
        ignored,
    })
}

/// The settings in the registry's form. Comments at the end list settings without such a form.
#[must_use]
pub fn export_reg(text: &str, config: &Config) -> String {
    let reg::Export {
        text: mut out,
        left_out,
    } = reg::export(config);
    let mut unexpressed: Vec<String> = Vec::new();
    for setting in all() {
        let value = if left_out.contains(&setting.name) {
            (setting.value)(config).map(|value| value.toml())
        } else if setting.registry.is_none() {
            written(text, setting)
        } else {
            None
        };
        unexpressed.extend(value.map(|value| format!("{} = {value}", setting.name)));
    }
    for (count, table) in [
        (config.listeners.len(), "[[listener]]"),
        (config.sites.len(), "[[site]]"),
        (config.balance.servers.len(), "[[balance.server]]"),
    ] {
        if count > 0 {
            unexpressed.push(format!("{table}, {count} in all"));
        }
    }
    if !unexpressed.is_empty() {
        out.push_str("\r\n; Settings that the registry has no form for:\r\n");
        for line in unexpressed {
            // Windows reads version 5 files in the machine's code page if they are not UTF-16.
            let ascii = line.replace(|c: char| !c.is_ascii(), "?");
            out.push_str(&format!("; {ascii}\r\n"));
        }
    }
    out
}

/// The settings as TOML. Settings that are not set are comments with the default. Listeners, sites and
/// servers are not settings, so they are left out.
#[must_use]
pub fn export_toml(text: &str) -> String {
    let mut out = String::new();
    let mut last_section = "";
    for setting in all() {
        let (section, key) = setting.parts();
        if section != last_section {
            let gap = if last_section.is_empty() { "" } else { "\n" };
            out.push_str(&format!("{gap}[{section}]\n"));
            last_section = section;
        }
        match written(text, setting) {
            Some(value) => out.push_str(&format!("{key} = {value}\n")),
            None => out.push_str(&format!("# {key}: {}\n", setting.default())),
        }
    }
    out
}

/// The TOML of a setting in the text: a relative path stays relative. A password is replaced by `***`,
/// which no configuration accepts.
fn written(text: &str, setting: &Setting) -> Option<String> {
    let value = edit::written(text, setting).unwrap_or_default()?;
    Some(without_password(setting, &value))
}
