//! The farm key: its file, its use in servers and balancers that run, and the operator's changes.

mod catch_up;
mod edit;
mod file;
mod format;
mod kernel;
mod keyring;
mod number;
mod route_keyring;
mod warning;

pub use catch_up::{CatchUp, catch_up, note_clock};
pub use edit::{DEFAULT_MAX_LIFETIME, DEFAULT_ROTATE, Rotation, create, rotate};
pub use file::{FileError, FileFault, load, load_any, write_route_part, write_secret};
pub use format::Malformed;
pub use keyring::{Keyring, Origin, Reloaded};
pub use number::{Clash, clashes, number, server_number};
pub use route_keyring::RouteKeyring;
pub use warning::warnings;

use std::path::PathBuf;

use sessile_proto::keys::{BadTerms, CannotRotate};

/// Why a farm key cannot be opened, made or changed.
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
    #[error(
        "the operating system's random number generator failed; check that no sandbox blocks getrandom"
    )]
    Random,
    #[error("cannot start the thread that keeps the farm key: {0}")]
    Thread(std::io::Error),
}
