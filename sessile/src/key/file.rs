//! Reads, locks and replaces the farm key's file. The file is always replaced as a whole, with mode 0600.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};
use sessile_proto::Time;
use sessile_proto::keys::FarmKey;
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use super::format::{self, Malformed};
use crate::state_file::{self, folder_of, make_folder, persist, sync_folder};

/// Longest key file, in bytes. A longer file is not a key file.
const MAX_LEN: u64 = 64 * 1024;

/// How long to wait for the lock. A reload that waits for the lock also delays the reaction to a stop
/// signal.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Pause before the lock is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Why a key file cannot be used. The message names the file, and the remedy if there is one.
#[derive(Debug, thiserror::Error)]
#[error("farm key {file}: {fault}{}", self.remedy(), file = .path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub fault: FileFault,
}

impl FileError {
    fn new(path: &Path, fault: impl Into<FileFault>) -> Self {
        Self {
            path: path.into(),
            fault: fault.into(),
        }
    }

    /// The remedy that needs the path.
    fn remedy(&self) -> String {
        if !matches!(self.fault, FileFault::Missing) {
            return String::new();
        }
        format!(
            "; run `sessile key new --file {}`, or copy the file from another server of the farm",
            self.path.display()
        )
    }
}

/// The problem with a key file.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    #[error("the file does not exist")]
    Missing,
    #[error(
        "the file exists, and sessile never overwrites a key; choose another --file, or move \
         this one away"
    )]
    Exists,
    #[error("this is a folder or a device, which cannot be replaced; choose another path")]
    NoFile,
    #[error("{0}")]
    Io(io::Error),
    #[error(
        "mode {mode:04o} lets other users read it; run `chmod 600 {file}`, and make a new key if \
         another user may have read it", file = .path.display()
    )]
    Readable { path: PathBuf, mode: u32 },
    #[error("a file of {0} bytes is too long for a farm key; check the path")]
    TooLong(u64),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(
        "this file has the route part only, which is for balancers; copy the \
         whole key from a server"
    )]
    RoutePart,
}

impl From<io::Error> for FileFault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::AlreadyExists => Self::Exists,
            _ => Self::Io(error),
        }
    }
}

/// Reads a whole key file. Refuses a file that is unsafe to use, and a balancer's part.
pub fn load(path: &Path) -> Result<FarmKey, FileError> {
    let key = load_any(path)?;
    if key.is_route_part() {
        return Err(FileError::new(path, FileFault::RoutePart));
    }
    Ok(key)
}

/// Reads a key file, whole or the balancer's part. Refuses a file that is unsafe to use.
pub fn load_any(path: &Path) -> Result<FarmKey, FileError> {
    read(path).map_err(|fault| FileError::new(path, fault))
}

fn read(path: &Path) -> Result<FarmKey, FileFault> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() > MAX_LEN {
        return Err(FileFault::TooLong(metadata.len()));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    io::Read::read_to_end(&mut &file, &mut bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Malformed::NotAKey)?;
    let parsed = format::parse(text);
    if matches!(parsed, Err(Malformed::NotAKey)) {
        // A new mode would not make this file a key.
        return Err(Malformed::NotAKey.into());
    }
    let mode = metadata.permissions().mode() & 0o7777;
    // On a read-only mount (a Kubernetes secret) the mode cannot be changed, so an unsafe mode only
    // causes a warning.
    if metadata.is_file() && mode & 0o077 != 0 && !is_on_read_only_mount(path) {
        let path = path.into();
        return Err(FileFault::Readable { path, mode });
    }
    Ok(parsed?)
}

fn is_on_read_only_mount(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// The reason why the key file cannot be replaced, if a check without writing finds one.
pub(super) fn read_only_reason(path: &Path) -> Option<&'static str> {
    if is_on_read_only_mount(path) {
        let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        return Some(if mode & 0o077 != 0 {
            "it is on a read-only mount and its mode lets other users read it"
        } else {
            "it is on a read-only mount"
        });
    }
    let folder = access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK);
    folder.err().map(|_| "this user cannot write to its folder")
}

/// Writes a new key file, and makes the folders above it. Fails if the file exists.
pub(super) fn write_new(path: &Path, key: &FarmKey) -> Result<(), FileError> {
    let write = || {
        make_folder(folder_of(path))?;
        let staged = stage(path, format::encode(key).as_bytes())?;
        staged.as_file().sync_all()?;
        staged.persist_noclobber(path)?;
        sync_folder(path)
    };
    write().map_err(|fault| FileError::new(path, fault))
}

/// Reads a key file again under a lock, changes it and replaces it. Returns the key in the file.
///
/// `change` returns whether the key changed; if not, the file stays as it is.
pub(super) fn update<E: From<FileError>>(
    path: &Path,
    change: impl FnOnce(&mut FarmKey) -> Result<bool, E>,
) -> Result<FarmKey, E> {
    let _lock = lock(path).map_err(|fault| FileError::new(path, fault))?;
    let mut key = load(path)?;
    if change(&mut key)? {
        replace(path, &key).map_err(|fault| FileError::new(path, fault))?;
    }
    Ok(key)
}

fn replace(path: &Path, key: &FarmKey) -> io::Result<()> {
    let staged = stage(path, format::encode(key).as_bytes())?;
    keep_owner(&staged, path);
    persist(staged, path)
}

/// Gives a staged file the owner of the file that it replaces, if there is one.
fn keep_owner(staged: &NamedTempFile, path: &Path) {
    if let Ok(replaced) = fs::metadata(path) {
        // A file that root rewrites must keep its owner. Other users cannot change the owner, but they own
        // the file already.
        let _ = fchown(staged.as_file(), Some(replaced.uid()), Some(replaced.gid()));
    }
}

/// Writes the balancer's part of a key to a file.
///
/// # Errors
/// If the file cannot be written, or holds a farm key.
pub fn write_route_part(path: &Path, key: &FarmKey, now: Time) -> Result<(), FileError> {
    write_secret(path, format::encode(&key.route_part(now)).as_bytes())
}

/// Makes or replaces a file of secrets that were derived from a key. The file keeps its owner.
///
/// # Errors
/// If the file cannot be written, or holds a farm key: a farm key is never overwritten.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let head = format::HEAD.as_bytes();
    let mut start = vec![0; head.len()];
    let is_farm_key = File::open(path)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut start))
        .is_ok_and(|()| start == head);
    if is_farm_key {
        return Err(FileError::new(path, FileFault::Exists));
    }
    // The file that replaces a symbolic link would leave the link's target as it is.
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&real).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(FileError::new(path, FileFault::NoFile));
    }
    stage(&real, bytes)
        .and_then(|staged| {
            keep_owner(&staged, &real);
            persist(staged, &real)
        })
        .map_err(|fault| FileError::new(path, fault))
}

/// Locks the key file until the result is dropped.
///
/// The lock is on a second file. A lock on the key file would be lost when the key file is replaced.
fn lock(path: &Path) -> io::Result<File> {
    let name = path.with_added_extension("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        // Every user who can open the lock file can hold the lock, so only its owner may open it.
        .mode(0o600)
        .open(&name)?;
    // If root makes the lock file, the server's user must still be able to open it.
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

/// Writes a temporary file in the same folder, which can replace the file at `path`.
fn stage(path: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut staged = state_file::stage(path, ".farm-key-")?;
    staged.write_all(bytes)?;
    Ok(staged)
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
            assert!(matches!(error.fault, FileFault::Exists), "{error}");
        }
        let export = folder.path().join("tickets");
        write_secret(&export, b"one").unwrap();
        write_secret(&export, b"two").unwrap();
        assert_eq!(fs::read(&export).unwrap(), b"two");
    }

    #[test]
    fn an_export_replaces_no_folder_and_no_device_and_goes_through_links() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/dev/null")] {
            let error = write_secret(path, b"export").unwrap_err();
            assert!(matches!(error.fault, FileFault::NoFile), "{error}");
        }
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_secret(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(link.is_symlink());
    }

    #[test]
    fn refuses_a_file_that_others_can_read() {
        let (_folder, path) = written();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(&path).err().unwrap();
        assert!(matches!(
            error.fault,
            FileFault::Readable { mode: 0o644, .. }
        ));
    }

    #[test]
    fn a_file_that_is_no_key_is_not_refused_for_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.pem");
        for contents in [
            &b"-----BEGIN CERTIFICATE-----\n"[..],
            b"",
            b"\xff",
            b"[server]\n",
        ] {
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            let error = load(&path).err().unwrap().to_string();
            assert!(error.contains("not a farm key"), "{error}");
            assert!(!error.contains("chmod"), "{error}");
        }
    }

    #[test]
    fn a_missing_key_names_the_command_that_makes_one() {
        let error = load("/nowhere/farm.key".as_ref())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("`sessile key new --file /nowhere/farm.key`"),
            "{error}"
        );
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
