//! The definition of a setting, and the operations on every setting.

use toml::Spanned;
use toml::de::{DeValue, Error};

use super::registry::RegValue;
use super::value::{Kind, Value, WrongKind};
use crate::config::base::Base;
use crate::config::file::reader::Reader;
use crate::config::{Config, Role};

/// A setting: one value under `[section] key`.
#[derive(Debug)]
pub struct Setting {
    /// `section.key`
    pub name: &'static str,
    pub kind: Kind,
    pub meaning: &'static str,
    /// Describes a default that depends on the host or on other settings. `None`: the default is the
    /// value in [`Config::default`].
    pub default_words: Option<&'static str>,
    /// An example in TOML, for a setting with `default_words`.
    pub(super) example: Option<&'static str>,
    /// Roles that apply a change only after a restart.
    pub restart: &'static [Role],
    /// The registry value that stands for the setting.
    pub registry: Option<RegValue>,
    /// The cost of the configured value. `None`: the value has no cost.
    pub cost: fn(&Config) -> Option<String>,
    /// The value in a configuration. `None`: the setting is not set and has no default.
    pub value: fn(&Config) -> Option<Value>,
    /// True if two configurations do not have the same value. Different passwords are a difference.
    pub(super) differs: fn(&Config, &Config) -> bool,
    /// Reads a value of a configuration file. A value of another TOML type is an error; other
    /// problems are noted in the reader.
    pub(in crate::config) read:
        fn(&mut Reader<'_>, Spanned<DeValue<'_>>, &mut Config) -> Result<(), Error>,
}

impl Setting {
    /// A base for definitions, with the values that most settings have.
    pub(super) const PLAIN: Self = Self {
        name: "",
        kind: Kind::Text,
        meaning: "",
        default_words: None,
        example: None,
        restart: &[],
        registry: None,
        cost: |_| None,
        value: |_| None,
        differs: |_, _| false,
        read: |_, _, _| Ok(()),
    };

    /// The section and the key in it.
    #[must_use]
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }

    /// The last part of the name.
    pub(in crate::config) fn key(&self) -> &'static str {
        self.parts().1
    }

    /// The default as text for people.
    #[must_use]
    pub fn default(&self) -> String {
        match self.default_words {
            Some(words) => words.to_owned(),
            None => (self.value)(&Config::default()).map_or_else(String::new, |v| v.to_string()),
        }
    }

    /// A value in TOML for a file to begin with: the default, or an example if the default depends on the host
    /// or on other settings.
    #[must_use]
    pub fn example(&self) -> String {
        let default = || (self.value)(&Config::default()).map(|value| value.toml());
        let example = self.example.map(str::to_owned);
        example.or_else(default).unwrap_or_default()
    }

    /// True if a configuration has the default value.
    #[must_use]
    pub fn has_default(&self, config: &Config) -> bool {
        self.default_words.is_none() && !(self.differs)(config, &Config::default())
    }

    /// Parses a value from a command line. Bounds are checked when the configuration is read.
    ///
    /// # Errors
    /// If the text is not of the setting's type.
    pub fn parse(&self, text: &str) -> Result<Value, WrongKind> {
        let value = match self.kind {
            Kind::Bool => text.parse().ok().map(Value::Bool),
            Kind::Count => text.parse().ok().map(Value::Count),
            Kind::Size => Some(
                text.parse()
                    .map_or_else(|_| Value::text(text), Value::Count),
            ),
            Kind::Duration | Kind::Text => Some(Value::text(text)),
        };
        value.ok_or(WrongKind {
            setting: self.name,
            kind: self.kind,
        })
    }

    /// Gives the setting a value, as a configuration file would. A value out of bounds changes
    /// nothing.
    pub(in crate::config) fn assign(&self, config: &mut Config, value: &Value) {
        let toml = value.toml();
        let base = Base::working_folder();
        let mut reader = Reader::new(&toml, &base);
        if let Ok(value) = DeValue::parse(&toml) {
            let _ = (self.read)(&mut reader, value, config);
        }
    }
}

/// No setting has that name.
#[derive(Debug, thiserror::Error)]
#[error("no setting is called {name:?}; {}", advice(*nearest))]
pub struct UnknownSetting {
    pub name: String,
    pub nearest: Option<&'static str>,
}

fn advice(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || "`sessile settings list` shows them all".to_owned(),
        |nearest| format!("did you mean {nearest}?"),
    )
}
