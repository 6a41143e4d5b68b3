//! Files in the state folder, which one process leaves for the next. A file is written as a whole, and only
//! its owner can read it. A file that may be used only once is removed before it is read.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use tempfile::NamedTempFile;

/// Why a file cannot be read or taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("the file cannot be removed after reading, so it could be read twice: {0}")]
    Removal(io::Error),
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("the file is empty or too large")]
    Odd,
}

/// The path of a server's file. Servers can share a folder.
#[must_use]
pub fn path(folder: &Path, kind: &str, server: &str) -> PathBuf {
    const MAX_NAME: usize = 64;
    let mut name: String = server
        .chars()
        .take(MAX_NAME)
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    if name != server {
        // Different server names that become equal here must still have different files.
        let digest = digest::digest(&digest::SHA256, server.as_bytes());
        for byte in &digest.as_ref()[..4] {
            name.push_str(&format!("-{byte:02x}"));
        }
    }
    folder.join(format!("{kind}-{name}.snapshot"))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._".contains(c)
}

/// Makes or replaces a file with the output of `write`.
///
/// # Errors
/// If the file cannot be written. The old file then stays.
pub fn replace<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    make_folder(folder_of(path))?;
    let mut staged = stage(path, ".snapshot-")?;
    write(staged.as_file_mut())?;
    Ok(persist(staged, path)?)
}

/// Makes a temporary file that can become the file at `path`. Its name begins with `prefix`.
///
/// # Errors
/// If the system refuses to make the file.
pub fn stage(path: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(folder_of(path))
}

/// Replaces the file at `path` with a temporary file in the same folder. The change survives a power failure.
///
/// # Errors
/// If the file cannot be replaced.
pub fn persist(staged: NamedTempFile, path: &Path) -> io::Result<()> {
    staged.as_file().sync_all()?;
    staged.persist(path)?;
    sync_folder(path)
}

/// Syncs the folder of `path`, so that new, renamed and removed files survive a power failure.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Makes a folder that only its owner can open, and the folders above it.
///
/// # Errors
/// If the system refuses to make a folder.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// The folder of a file.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Opens a file of at most `max_len` bytes and removes it. `None` if there is no file.
///
/// # Errors
/// If the file cannot be used. An unusable file is removed too, if possible.
pub fn take(path: &Path, max_len: u64) -> Result<Option<File>, TakeError> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    fs::remove_file(path).map_err(TakeError::Removal)?;
    check_len(&file, max_len)?;
    Ok(Some(file))
}

/// Reads a file of at most `max_len` bytes, and leaves the file in place. `None` if there is no file.
///
/// # Errors
/// If the file cannot be read.
pub fn read(path: &Path, max_len: u64) -> Result<Option<Vec<u8>>, TakeError> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    check_len(&file, max_len)?;
    let mut bytes = Vec::new();
    file.take(max_len).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_len(file: &File, max_len: u64) -> Result<(), TakeError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > max_len {
        return Err(TakeError::Odd);
    }
    Ok(())
}
