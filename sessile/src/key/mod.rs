//! The farm key: its file, what servers and balancers make of it while they run, and what operators
//! do to it.

mod edit;
mod file;
mod format;
mod health;
mod kernel;
mod number;
mod ring;
mod routes;
mod witness;

pub use edit::{DEFAULT_MAX_LIFETIME, DEFAULT_ROTATE, Rotation, create, rotate};
pub use file::{FileError, Fixed};
pub use format::Malformed;
pub use health::{Concern, concerns};
pub use number::{Clash, clashes, number, server_number};
pub use ring::{Keyring, Origin, Reloaded};
pub use routes::RouteRing;
pub use witness::Astray;

use std::path::{Path, PathBuf};

use sessile_proto::Time;
use sessile_proto::keys::{BadTerms, CannotRotate, FarmKey};

/// Why there is no farm key, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot make a farm key: {0}")]
    Terms(#[from] BadTerms),
    #[error("farm key {file}: {source}", file = .path.display())]
    Rotate { path: PathBuf, source: CannotRotate },
    #[error(
        "farm key {file}: it is the key of farm {theirs:?}, and this server runs with that of \
         {ours:?}; restart it to change farms", file = .path.display()
    )]
    OtherFarm {
        path: PathBuf,
        ours: String,
        theirs: String,
    },
    #[error("the system gives no random bytes")]
    Random,
    #[error("cannot start the thread that keeps the farm key: {0}")]
    Thread(std::io::Error),
}

/// Reads a server's key file, refusing what is unsafe to use and what is a balancer's.
pub fn load(path: &Path) -> Result<FarmKey, FileError> {
    file::load(path)
}

/// Reads a key file, whole or the balancer's part, refusing what is unsafe to use.
pub fn load_any(path: &Path) -> Result<FarmKey, FileError> {
    file::load_any(path)
}

/// Writes the balancer's part of a key to a file: 0600, replaced as a whole.
pub fn write_route_part(path: &Path, key: &FarmKey, now: Time) -> Result<(), FileError> {
    file::write_secret(path, format::encode(&key.route_part(now)).as_bytes())
}

/// Replaces or makes a file of secrets that were derived from a key: 0600, as a whole, and never in
/// the place of a farm key.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    file::write_secret(path, bytes)
}

/// Makes a folder for such files, and those that lead to it; only its owner can look into it.
pub fn make_folder(folder: &Path) -> std::io::Result<()> {
    file::make_folder(folder)
}
