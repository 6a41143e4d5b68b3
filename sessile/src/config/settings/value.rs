//! The value of a setting, independent of the setting's Rust type.

use std::fmt;
use std::time::Duration;

/// A setting's type, as users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Count,
    Duration,
    Size,
    Text,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "true or false",
            Self::Count => "a whole number",
            Self::Duration => "a duration",
            Self::Size => "a number of bytes",
            Self::Text => "text",
        })
    }
}

impl Kind {
    /// One word for the type.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Count => "number",
            Self::Duration => "duration",
            Self::Size => "size",
            Self::Text => "text",
        }
    }
}

/// The text is not of the setting's type.
#[derive(Debug, thiserror::Error)]
#[error("{setting} takes {kind}")]
pub struct WrongKind {
    pub setting: &'static str,
    pub kind: Kind,
}

/// A setting's value, as TOML has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    Count(u64),
    Text(String),
}

/// Writes the value for people: text has no quotes.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Count(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

impl Value {
    /// The value as TOML.
    #[must_use]
    pub fn toml(&self) -> String {
        match self {
            Self::Text(value) => toml_edit::Value::from(value.as_str()).to_string(),
            other => other.to_string(),
        }
    }

    /// The value as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Bool(value) => (*value).into(),
            Self::Count(value) => (*value).into(),
            Self::Text(value) => value.as_str().into(),
        }
    }

    /// A value that implements `Display`, as text.
    pub(in crate::config) fn text(shown: impl fmt::Display) -> Self {
        Self::Text(shown.to_string())
    }

    /// A duration without spaces: `1h30m`.
    pub(in crate::config) fn duration(duration: Duration) -> Self {
        let spaced = humantime::format_duration(duration).to_string();
        Self::Text(spaced.replace(' ', ""))
    }
}
