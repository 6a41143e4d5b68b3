//! Every setting that is one value. A setting is defined once: its key, type, bounds, default,
//! documentation, registry value, and which roles need a restart. The reader of configuration files,
//! `sessile settings`, the documentation and the reload follow from the definitions.
//! Tables with names (`[[site]]`, `[[listener]]` …) are not settings: `config::file` reads them.

mod definitions;
mod registry;
mod setting;
pub(super) mod types;
mod value;

pub(super) use definitions::POLICIES;
pub use definitions::{
    Admin, Balance, Connection, Files, Log, MAX_EARLY_DATA, Server, Session, Tls,
};
pub use registry::{Form, RegKey, RegValue};
pub use setting::{Setting, UnknownSetting};
pub use value::{Kind, Value, WrongKind};

use super::file::problem::nearest;
use super::{Config, Role};

/// The sections in the order of the documentation, and the settings of each.
pub(super) static SECTIONS: [(&str, &[Setting]); 9] = [
    ("server", Server::SETTINGS),
    ("session", Session::SETTINGS),
    ("key", definitions::KEY_SETTINGS),
    ("connection", Connection::SETTINGS),
    ("tls", Tls::SETTINGS),
    ("files", Files::SETTINGS),
    ("admin", Admin::SETTINGS),
    ("log", Log::SETTINGS),
    ("balance", Balance::SETTINGS),
];

/// The sections, each with its settings.
pub fn by_section() -> impl Iterator<Item = (&'static str, &'static [Setting])> {
    SECTIONS.iter().copied()
}

/// Every setting, in the order of the sections.
pub fn all() -> impl DoubleEndedIterator<Item = &'static Setting> {
    SECTIONS.iter().flat_map(|(_, settings)| *settings)
}

/// The setting with that name.
///
/// # Errors
/// If no setting has the name. The error suggests the nearest name.
pub fn find(name: &str) -> Result<&'static Setting, UnknownSetting> {
    all()
        .find(|setting| setting.name == name)
        .ok_or_else(|| UnknownSetting {
            name: name.to_owned(),
            nearest: nearest(name, all().map(|setting| setting.name)).or_else(|| {
                // People often know a key and not its section.
                let same_key = all().find(|setting| setting.key() == name);
                same_key.map(|setting| setting.name)
            }),
        })
}

/// The names of changed settings that a process of this role applies only after a restart.
#[must_use]
pub fn changes_for_restart(role: Role, running: &Config, written: &Config) -> Vec<&'static str> {
    let changed =
        |setting: &&Setting| setting.restart.contains(&role) && (setting.differs)(running, written);
    let mut names: Vec<_> = all().filter(changed).map(|setting| setting.name).collect();
    if running.listeners != written.listeners {
        names.push("[[listener]]");
    }
    names
}

#[cfg(test)]
mod tests;
