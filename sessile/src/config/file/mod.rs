//! Reads the configuration file (TOML) into a [`Config`]. This module finds every problem of the text
//! and its place. It does not open the files that the text names, as `sessile check` does.

mod balance;
mod forget;
pub(super) mod problem;
pub(super) mod raw;
pub(super) mod reader;
mod shape;
mod sites;
mod upstreams;
mod validate;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::config::base::{Base, Credentials};
pub use balance::ServerRequest;
pub(crate) use balance::WEIGHT_OF_SERVICE;
pub use problem::Problem;
pub(crate) use problem::nearest;

/// Most bytes of a configuration file.
pub const MAX_BYTES: u64 = 1 << 20;

/// The environment variable that names the configuration file.
pub const PATH_VARIABLE: &str = "SESSILE_CONFIG";

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file is longer than [`MAX_BYTES`].
    #[error("{}: longer than {MAX_BYTES} bytes; this is not a configuration file", path.display())]
    TooLong { path: PathBuf },
    /// The text is wrong in at least one place.
    #[error("{}", in_lines(origin, problems))]
    Invalid {
        /// The file with the text.
        origin: PathBuf,
        /// The problems in the order of the text, at least one.
        problems: Vec<Problem>,
    },
}

fn in_lines(origin: &Path, problems: &[Problem]) -> String {
    let origin = origin.display();
    let lines = problems.iter().map(|problem| format!("{origin}:{problem}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The path of the configuration file: `given`, else `$SESSILE_CONFIG`, else `sessile.toml` in the
/// working folder.
#[must_use]
pub fn path_or_default(given: Option<PathBuf>) -> PathBuf {
    let set = || std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty());
    given
        .or_else(|| set().map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("sessile.toml"))
}

/// Reads and validates a configuration file, for a process that opens the files that it names.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    let credentials = Credentials::from_env_or(Credentials::Missing);
    parse_with(&read(path)?, path, credentials)
}

/// Reads and validates a configuration file, for a command that needs its settings only. Paths may begin
/// with `$CREDENTIALS_DIRECTORY`, also if this variable is not set.
pub fn load_settings(path: &Path) -> Result<Config, LoadError> {
    parse(&read(path)?, path)
}

/// Validates the text of a configuration file as [`load_settings`] does. Errors name the file by `origin`,
/// and relative paths in the text start at the folder of `origin`.
pub fn parse(text: &str, origin: &Path) -> Result<Config, LoadError> {
    let credentials = Credentials::from_env_or(Credentials::NotNeeded);
    parse_with(text, origin, credentials)
}

fn parse_with(text: &str, origin: &Path, credentials: Credentials) -> Result<Config, LoadError> {
    let base = Base::new(origin.parent().unwrap_or(Path::new("")), credentials);
    let outcome = shape::read(text, &base).and_then(validate::validate);
    outcome.map_err(|mut problems| {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        LoadError::Invalid {
            origin: origin.to_owned(),
            problems,
        }
    })
}

/// Reads the text of a configuration file, without parsing it.
pub fn read(path: &Path) -> Result<String, LoadError> {
    let failed = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(LoadError::TooLong {
            path: path.to_owned(),
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..valid]);
        let what = "not UTF-8 from here on; save the file as UTF-8";
        LoadError::Invalid {
            origin: path.to_owned(),
            problems: vec![Problem::at(&before, before.len(), what)],
        }
    })
}

#[cfg(test)]
mod tests;
