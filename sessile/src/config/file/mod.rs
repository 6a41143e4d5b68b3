//! The configuration file (TOML), and how it becomes a [`Config`]. This module finds every problem of
//! the text, with its place. It does not open the files that the text names: `sessile check` does.

mod balance;
mod forget;
pub(super) mod problem;
pub(super) mod raw;
pub(super) mod reader;
mod shape;
mod sites;
mod upstreams;
mod validate;

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::Config;
pub(crate) use problem::nearest;
pub use problem::{Problem, What};

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
    #[error(transparent)]
    Invalid(Invalid),
}

/// All problems of the text of a configuration file.
#[derive(Debug)]
pub struct Invalid {
    /// The file with the text.
    pub origin: PathBuf,
    /// In the order of the text; never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{problem}", self.origin.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// The path of the configuration file: `given`, else `$SESSILE_CONFIG`, else `sessile.toml` in the
/// working folder.
#[must_use]
pub fn path_or_default(given: Option<PathBuf>) -> PathBuf {
    let set = || std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty());
    given
        .or_else(|| set().map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("sessile.toml"))
}

/// Reads and validates a configuration file.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    parse(&read(path)?, path)
}

/// Validates the text of a configuration file. Errors name the file by `origin`, and relative paths in
/// the text start at the folder of `origin`.
pub fn parse(text: &str, origin: &Path) -> Result<Config, LoadError> {
    let folder = origin.parent().unwrap_or(Path::new(""));
    let outcome = shape::read(text, folder).and_then(validate::validate);
    outcome.map_err(|mut problems| {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        LoadError::Invalid(Invalid {
            origin: origin.to_owned(),
            problems,
        })
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
        LoadError::Invalid(Invalid {
            origin: path.to_owned(),
            problems: vec![Problem::at(&before, before.len(), What::NotUtf8)],
        })
    })
}

#[cfg(test)]
mod tests;
