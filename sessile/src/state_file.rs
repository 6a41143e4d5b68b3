//! Files in the state folder that a process leaves for the one after it: written as a whole or not at
//! all, for their owner alone, and where they are good for once only, taken away to be read.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

/// Why a file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("it cannot be removed, so that it could be read twice: {0}")]
    Removal(io::Error),
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no file of a size that was ever written")]
    Odd,
}

/// The path of a server's file; servers that share a folder have one each.
#[must_use]
pub fn path(folder: &Path, kind: &str, server: &str) -> PathBuf {
    const MAX_NAME: usize = 64;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let mut name: String = server
        .chars()
        .take(MAX_NAME)
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    if name != server {
        // Names that look alike now are still apart.
        let digest = digest::digest(&digest::SHA256, server.as_bytes());
        for byte in &digest.as_ref()[..4] {
            name.push_str(&format!("-{byte:02x}"));
        }
    }
    folder.join(format!("{kind}-{name}.snapshot"))
}

/// Puts what `write` writes in the place of a file that may be there.
///
/// # Errors
/// Where it cannot be written; the old file stays then.
pub fn replace<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut staged = tempfile::Builder::new()
        .prefix(".snapshot-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(folder)?;
    write(staged.as_file_mut())?;
    staged.as_file().sync_all()?;
    staged.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// Takes a file away to be read. `None` where there is none.
///
/// # Errors
/// Where it cannot be used; unless it cannot be removed it is gone then, too.
pub fn take(path: &Path, most: u64) -> Result<Option<File>, TakeError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    fs::remove_file(path).map_err(TakeError::Removal)?;
    of_size(file, most).map(Some)
}

/// Reads a file that stays. `None` where there is none.
///
/// # Errors
/// Where it cannot be used.
pub fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, TakeError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    of_size(file, most)?.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn of_size(file: File, most: u64) -> Result<File, TakeError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > most {
        return Err(TakeError::Odd);
    }
    Ok(file)
}
