//! Changes what is written in a configuration file: one setting, a registry import, a backup put
//! back. Comments and layout stay. Every change is validated as a whole file before anything is
//! written, leaves a backup, and replaces the file in one step.

mod edit;
mod file;
mod registry;
pub mod table;

pub use edit::EditError;
pub use file::{Change, Error, SettingsFile};
pub use registry::{Import, ImportError, export_reg, export_toml, import};

/// Whether the text itself gives a setting a value.
#[must_use]
pub fn is_set(text: &str, setting: &table::Setting) -> bool {
    edit::written(text, setting).is_ok_and(|value| value.is_some())
}
