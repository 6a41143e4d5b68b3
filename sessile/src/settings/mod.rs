//! Edits a configuration file: sets one setting, imports a registry export, or restores a backup.
//!
//! Comments and layout stay. The whole new file is validated before it is written. Each change leaves a
//! backup and replaces the file atomically.

mod edit;
mod file;
mod registry;
mod template;

use crate::config::StoreUrl;
use crate::config::settings::Setting;

pub use edit::EditError;
pub use file::{Change, Error, SettingsFile};
pub use registry::{Import, ImportError, export_reg, export_toml, import};
pub use template::{Place, template};

/// True if the text gives the setting a value.
#[must_use]
pub fn is_set(text: &str, setting: &Setting) -> bool {
    edit::written(text, setting).is_ok_and(|value| value.is_some())
}

/// The TOML of a setting's value, with `***` instead of a password.
#[must_use]
pub fn without_password(setting: &Setting, toml: &str) -> String {
    if setting.name != "session.store" {
        return toml.to_owned();
    }
    let value = toml.parse::<toml_edit::Value>().ok();
    let url = value.as_ref().and_then(|value| value.as_str());
    match url.and_then(|url| url.parse().ok()) {
        Some(StoreUrl::Redis(redis)) if redis.has_password() => {
            toml_edit::Value::from(redis.to_string()).to_string()
        }
        _ => toml.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::find;

    #[test]
    fn a_password_in_a_setting_is_not_shown() {
        let store = find("session.store").expect("it is there");
        let shown = |toml| without_password(store, toml);
        assert_eq!(shown("'redis://u:secret@h'"), r#""redis://u:***@h:6379""#);
        assert_eq!(shown("'redis://h'"), "'redis://h'");
        let text = "session.store = 'redis://u:secret@h'";
        let config = crate::config::file::parse(text, "s.toml".as_ref()).expect("it is right");
        let value = (store.value)(&config).expect("it is set");
        assert_eq!(value.to_string(), "redis://u:***@h:6379");
    }
}
