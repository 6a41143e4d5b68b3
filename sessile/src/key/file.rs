//! Reads, locks and replaces the farm key's file. The file is always replaced as a whole, with mode 0600.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};
use sessile_proto::Time;
use sessile_proto::keys::FarmKey;
use zeroize::Zeroizing;

use super::format::{self, Malformed};

/// Longest key file, in bytes. A longer file is not a key file.
const MAX_LEN: u64 = 64 * 1024;

/// How long to wait for the lock. A reload that waits also delays the signal to stop.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Pause before the lock is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Why a key file cannot be used. Each message names the file, and the remedy if there is one.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(
        "farm key {file}: the file does not exist; run `sessile key new`, or copy the file from another server of \
         the farm", file = .path.display()
    )]
    Missing { path: PathBuf },
    #[error(
        "farm key {file}: the file exists, and sessile never overwrites a key; choose another --file, or move \
         this one away", file = .path.display()
    )]
    Exists { path: PathBuf },
    #[error("farm key {file}: {source}", file = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "farm key {file}: mode {mode:04o} lets other users read it; run `chmod 600 {file}`, and make a new key if \
         another user may have read it", file = .path.display()
    )]
    Readable { path: PathBuf, mode: u32 },
    #[error(
        "farm key {file}: a file of {bytes} bytes is too long for a farm key; check the path", file = .path.display()
    )]
    TooLong { path: PathBuf, bytes: u64 },
    #[error("farm key {file}: {source}", file = .path.display())]
    Malformed { path: PathBuf, source: Malformed },
    #[error(
        "farm key {file}: this file has the route part only, which is for balancers; copy the \
         whole key from a server", file = .path.display()
    )]
    RoutePart { path: PathBuf },
}

/// Turns a system error into an error about this file.
fn io_error(path: &Path) -> impl Fn(io::Error) -> FileError {
    move |source| {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound => FileError::Missing { path },
            io::ErrorKind::AlreadyExists => FileError::Exists { path },
            _ => FileError::Io { path, source },
        }
    }
}

/// Reads a whole key file. Refuses a file that is unsafe to use, and a balancer's part.
pub fn load(path: &Path) -> Result<FarmKey, FileError> {
    let key = load_any(path)?;
    if key.is_route_part() {
        return Err(FileError::RoutePart { path: path.into() });
    }
    Ok(key)
}

/// Reads a key file, whole or the balancer's part. Refuses a file that is unsafe to use.
pub fn load_any(path: &Path) -> Result<FarmKey, FileError> {
    let io_error = io_error(path);
    let file = File::open(path).map_err(&io_error)?;
    let metadata = file.metadata().map_err(&io_error)?;
    if metadata.len() > MAX_LEN {
        return Err(FileError::TooLong {
            path: path.into(),
            bytes: metadata.len(),
        });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    // On a read-only mount (a Kubernetes secret) the mode cannot be changed, so it is only a warning.
    if metadata.is_file() && mode & 0o077 != 0 && !is_on_read_only_mount(path) {
        return Err(FileError::Readable {
            path: path.into(),
            mode,
        });
    }
    let text = Zeroizing::new(io::read_to_string(file).map_err(&io_error)?);
    format::parse(&text).map_err(|source| FileError::Malformed {
        path: path.into(),
        source,
    })
}

fn is_on_read_only_mount(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Why a key file cannot be replaced, and therefore not be moved forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnlyReason {
    /// The file is on a read-only mount. `open_to_others`: its mode lets other users read it.
    ReadOnlyMount { open_to_others: bool },
    /// This user may not write to the file's folder.
    Folder,
}

impl std::fmt::Display for ReadOnlyReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ReadOnlyMount {
                open_to_others: true,
            } => "it is on a read-only mount and its mode lets other users read it",
            Self::ReadOnlyMount { .. } => "it is on a read-only mount",
            Self::Folder => "this user cannot write to its folder",
        })
    }
}

/// The reason why the key file cannot be replaced, if a check without writing finds one.
pub(super) fn read_only_reason(path: &Path) -> Option<ReadOnlyReason> {
    if is_on_read_only_mount(path) {
        let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        return Some(ReadOnlyReason::ReadOnlyMount {
            open_to_others: mode & 0o077 != 0,
        });
    }
    access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK)
        .err()
        .map(|_| ReadOnlyReason::Folder)
}

/// Writes a new key file, and makes the folders above it. Fails if the file exists.
pub(super) fn write_new(path: &Path, key: &FarmKey) -> Result<(), FileError> {
    let io_error = io_error(path);
    make_folder(folder_of(path)).map_err(&io_error)?;
    let staged = stage(path, format::encode(key).as_bytes()).map_err(&io_error)?;
    staged
        .persist_noclobber(path)
        .map_err(|error| io_error(error.error))?;
    sync_folder(path).map_err(&io_error)
}

/// Reads a key file again under a lock, changes it and replaces it. Returns the key in the file.
///
/// `change` returns whether the key changed; if not, the file stays as it is.
pub(super) fn update<E: From<FileError>>(
    path: &Path,
    change: impl FnOnce(&mut FarmKey) -> Result<bool, E>,
) -> Result<FarmKey, E> {
    let io_error = io_error(path);
    let _lock = lock(path).map_err(&io_error)?;
    let mut key = load(path)?;
    if !change(&mut key)? {
        return Ok(key);
    }
    let owner = fs::metadata(path).map_err(&io_error)?;
    let staged = stage(path, format::encode(&key).as_bytes()).map_err(&io_error)?;
    // A file that root rewrites must keep its owner. For other users this fails, and they are the owner.
    let _ = fchown(staged.as_file(), Some(owner.uid()), Some(owner.gid()));
    staged
        .persist(path)
        .map_err(|error| io_error(error.error))?;
    sync_folder(path).map_err(&io_error)?;
    Ok(key)
}

/// Writes the balancer's part of a key to a file.
///
/// # Errors
/// If the file cannot be written, or holds a farm key.
pub fn write_route_part(path: &Path, key: &FarmKey, now: Time) -> Result<(), FileError> {
    write_secret(path, format::encode(&key.route_part(now)).as_bytes())
}

/// Makes or replaces a file of secrets that were derived from a key.
///
/// # Errors
/// If the file cannot be written, or holds a farm key: a farm key is never overwritten.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let io_error = io_error(path);
    let head = format::HEAD.as_bytes();
    let mut start = vec![0; head.len()];
    let is_farm_key = File::open(path)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut start))
        .is_ok_and(|()| start == head);
    if is_farm_key {
        return Err(FileError::Exists { path: path.into() });
    }
    let staged = stage(path, bytes).map_err(&io_error)?;
    staged
        .persist(path)
        .map_err(|error| io_error(error.error))?;
    sync_folder(path).map_err(&io_error)
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

/// Locks the key file until the result is dropped.
///
/// The lock is on a second file: replacing the key file would also replace a lock on it.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        // Any user who can open the file could hold the lock.
        .mode(0o600)
        .open(&name)?;
    // A command that root runs must not lock the server out.
    if let Ok(key) = fs::metadata(path) {
        let _ = fchown(&file, Some(key.uid()), Some(key.gid()));
    }
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other(format!(
                    "another program has held {} for {} seconds; find it with `fuser {}`",
                    name.display(),
                    LOCK_PATIENCE.as_secs(),
                    name.display()
                )));
            }
        }
    }
}

/// Writes a temporary file in the same folder and syncs it, ready to replace the file at `path`.
fn stage(path: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let mut staged = tempfile::Builder::new()
        .prefix(".farm-key-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(folder_of(path))?;
    staged.write_all(bytes)?;
    staged.as_file().sync_all()?;
    Ok(staged)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> FarmKey {
        super::super::edit::fresh(super::super::DEFAULT_MAX_LIFETIME).unwrap()
    }

    fn written() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("farm.key");
        write_new(&path, &key()).unwrap();
        (folder, path)
    }

    #[test]
    fn a_key_reads_back_as_it_was_written_and_only_its_owner_can() {
        let (_folder, path) = written();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let once = format::encode(&load(&path).unwrap());
        assert_eq!(*once, fs::read_to_string(&path).unwrap());
    }

    #[test]
    fn never_overwrites_a_key_and_replaces_an_export() {
        let (folder, path) = written();
        for error in [
            write_new(&path, &key()).unwrap_err(),
            write_secret(&path, b"export").unwrap_err(),
        ] {
            assert!(matches!(error, FileError::Exists { .. }), "{error}");
        }
        let export = folder.path().join("tickets");
        write_secret(&export, b"one").unwrap();
        write_secret(&export, b"two").unwrap();
        assert_eq!(fs::read(&export).unwrap(), b"two");
    }

    #[test]
    fn refuses_a_file_that_others_can_read() {
        let (_folder, path) = written();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(&path).err().unwrap();
        assert!(matches!(error, FileError::Readable { mode: 0o644, .. }));
    }

    #[test]
    fn a_route_part_is_a_balancers_and_refused_by_a_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("route.key");
        write_new(&path, &key().route_part(crate::clock::now())).unwrap();
        assert!(load_any(&path).unwrap().is_route_part());
        let error = load(&path).err().unwrap();
        assert!(
            error
                .to_string()
                .contains("this file has the route part only")
        );
    }

    #[test]
    fn an_update_starts_from_what_the_file_says_and_forgets_the_past() {
        let (_folder, path) = written();
        let before = load(&path).unwrap();
        let later = crate::clock::now().plus(Duration::from_secs(3 * 24 * 60 * 60));
        let after = update(&path, |key| Ok::<_, FileError>(key.move_forward(later))).unwrap();
        assert_eq!(
            *format::encode(&load(&path).unwrap()),
            *format::encode(&after)
        );
        assert_eq!(after.scope, before.scope);
        let [before, after] = [before, after].map(|mut key| key.generations[0].ticket.take());
        let [before, after] = [before.unwrap(), after.unwrap()];
        assert!(after.epoch() > before.epoch());
        assert_ne!(after.secret().expose(), before.secret().expose());
    }

    #[test]
    fn a_lock_that_is_never_given_up_is_waited_for_a_while_and_named() {
        let (_folder, path) = written();
        let _held = lock(&path).unwrap();
        let error = update(&path, |_| Ok::<_, FileError>(true)).err().unwrap();
        assert!(error.to_string().contains("farm.key.lock"), "{error}");
    }

    #[test]
    fn writers_at_the_same_time_lose_no_generation() {
        let (_folder, path) = written();
        let add = || {
            let secrets = super::super::edit::random_secrets().unwrap();
            let add = |key: &mut FarmKey| Ok(key.replace(secrets, crate::clock::now()).is_ok());
            update::<FileError>(&path, add).unwrap();
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(add);
            }
        });
        let numbers: Vec<u8> = load(&path)
            .unwrap()
            .generations
            .iter()
            .map(|g| g.number)
            .collect();
        assert_eq!(numbers, (0..=8).collect::<Vec<u8>>());
    }
}
