//! The farm key's file: TOML, mode 0600, replaced as a whole under a lock. Secrets are hex.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sessile_proto::Time;
use sessile_proto::keys::{BadTerms, Chain, FarmKey, Generation, Secret, Weak};
use zeroize::Zeroizing;

const HEAD: &str = "\
# sessile farm key. Whoever has this file can open and forge every ticket of the farm:
# keep it readable by its owner alone, and copy it over encrypted channels only.
";

const FORMAT: u32 = 1;

/// A key file over this many bytes is something else.
const MAX_LEN: u64 = 64 * 1024;

/// Why a key file cannot be used. Each names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("farm key {file}: not there", file = .path.display())]
    Missing { path: PathBuf },
    #[error("farm key {file}: already there; it is never overwritten", file = .path.display())]
    Exists { path: PathBuf },
    #[error("farm key {file}: {source}", file = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "farm key {file}: mode {mode:04o} lets others read it; run `chmod 600 {file}`, and if \
         others may have read it, make a new key", file = .path.display()
    )]
    Readable { path: PathBuf, mode: u32 },
    #[error("farm key {file}: {reason}", file = .path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error(
        "farm key {file}: format {format} is not known to this version of sessile, which reads \
         format {FORMAT}", file = .path.display()
    )]
    Format { path: PathBuf, format: u32 },
    #[error(
        "farm key {file}: the {chain} secret of generation {generation} is refused: {weak}",
        file = .path.display()
    )]
    Weak {
        path: PathBuf,
        chain: &'static str,
        generation: u8,
        weak: Weak,
    },
    #[error("farm key {file}: {terms}", file = .path.display())]
    Terms { path: PathBuf, terms: BadTerms },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    format: u32,
    scope: String,
    rotate: String,
    max_lifetime: String,
    generation: Vec<WrittenGeneration>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct WrittenGeneration {
    number: u8,
    activates: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends: Option<u64>,
    ticket_epoch: u64,
    ticket_secret: Zeroizing<String>,
    route_day: u64,
    route_secret: Zeroizing<String>,
}

/// Reads a key file, refusing what is unsafe to use.
pub(super) fn load(path: &Path) -> Result<FarmKey, FileError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing { path: path.into() },
        _ => FileError::Io {
            path: path.into(),
            source,
        },
    };
    let file = File::open(path).map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    if metadata.len() > MAX_LEN {
        return Err(FileError::Syntax {
            path: path.into(),
            reason: format!("{} bytes are too many for a key file", metadata.len()),
        });
    }
    check_mode(path, &metadata)?;
    let text = Zeroizing::new(io::read_to_string(file).map_err(io_error)?);
    parse(path, &text)
}

/// A regular file that others can read is refused; on a read-only mount (a Kubernetes secret) it
/// is the mount's business, and said.
fn check_mode(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_file() || mode & 0o077 == 0 {
        return Ok(());
    }
    let read_only = rustix::fs::statvfs(path)
        .is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    if !read_only {
        return Err(FileError::Readable {
            path: path.into(),
            mode,
        });
    }
    tracing::warn!(
        file = %path.display(),
        mode = format_args!("{mode:04o}"),
        "the farm key lies on a read-only mount: no forward secrecy, it cannot be moved forward"
    );
    Ok(())
}

fn parse(path: &Path, text: &str) -> Result<FarmKey, FileError> {
    let syntax = |reason: String| FileError::Syntax {
        path: path.into(),
        reason,
    };
    // The error's own display would quote the line, and with it a secret.
    let written: Written = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        syntax(format!("line {line}: {}", error.message()))
    })?;
    if written.format != FORMAT {
        return Err(FileError::Format {
            path: path.into(),
            format: written.format,
        });
    }
    let duration = |name: &str, value: &str| {
        humantime::parse_duration(value)
            .map_err(|error| syntax(format!("{name} = {value:?}: {error}")))
    };
    let key = FarmKey {
        rotate: duration("rotate", &written.rotate)?,
        max_lifetime: duration("max-lifetime", &written.max_lifetime)?,
        scope: written.scope,
        generations: written
            .generation
            .into_iter()
            .map(|generation| read_generation(path, &generation))
            .collect::<Result<_, _>>()?,
    };
    key.check_terms().map_err(|terms| FileError::Terms {
        path: path.into(),
        terms,
    })?;
    Ok(key)
}

fn read_generation(path: &Path, written: &WrittenGeneration) -> Result<Generation, FileError> {
    let secret = |chain: &'static str, hex: &str| {
        let bytes = Zeroizing::new(from_hex(hex).ok_or_else(|| FileError::Syntax {
            path: path.into(),
            reason: format!(
                "the {chain} secret of generation {} is not hex",
                written.number
            ),
        })?);
        Secret::new(&bytes).map_err(|weak| FileError::Weak {
            path: path.into(),
            chain,
            generation: written.number,
            weak,
        })
    };
    Ok(Generation {
        number: written.number,
        activates: written.activates,
        ends: written.ends,
        ticket: Chain::new(
            written.ticket_epoch,
            secret("ticket", &written.ticket_secret)?,
        ),
        route: Chain::new(written.route_day, secret("route", &written.route_secret)?),
    })
}

/// Writes a key file that must not be there yet, and the folders that lead to it.
pub(super) fn write_new(path: &Path, key: &FarmKey) -> Result<(), FileError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists { path: path.into() },
        _ => FileError::Io {
            path: path.into(),
            source,
        },
    };
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(io_error)?;
    }
    let staged = stage(path, key).map_err(io_error)?;
    staged
        .persist_noclobber(path)
        .map_err(|error| io_error(error.error))?;
    sync_folder(path).map_err(io_error)
}

/// Moves the file's chains forward: under a lock, from what the file says now (another command
/// may have changed it), replaced as a whole.
pub(super) fn move_forward(path: &Path, now: Time) -> Result<(), FileError> {
    let io_error = |source| FileError::Io {
        path: path.into(),
        source,
    };
    let _lock = lock(path).map_err(io_error)?;
    let mut key = load(path)?;
    if !key.move_forward(now) {
        return Ok(());
    }
    let owner = fs::metadata(path).map_err(io_error)?;
    let staged = stage(path, &key).map_err(io_error)?;
    // A file that root rewrites stays its owner's; where this may not be done the owner is us.
    let _ = std::os::unix::fs::fchown(staged.as_file(), Some(owner.uid()), Some(owner.gid()));
    staged
        .persist(path)
        .map_err(|error| io_error(error.error))?;
    sync_folder(path).map_err(io_error)
}

/// Held until dropped. A file of its own: the key file is replaced, and a lock on it with it.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(PathBuf::from(name))?;
    file.lock()?;
    Ok(file)
}

/// A complete file (0600, on the disk) beside the one that it is to become.
fn stage(path: &Path, key: &FarmKey) -> io::Result<tempfile::NamedTempFile> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut staged = tempfile::Builder::new()
        .prefix(".farm-key-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    staged.write_all(encode(key).as_bytes())?;
    staged.as_file().sync_all()?;
    Ok(staged)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn encode(key: &FarmKey) -> Zeroizing<String> {
    let written = Written {
        format: FORMAT,
        scope: key.scope.clone(),
        rotate: written_duration(key.rotate),
        max_lifetime: written_duration(key.max_lifetime),
        generation: key
            .generations
            .iter()
            .map(|generation| WrittenGeneration {
                number: generation.number,
                activates: generation.activates,
                ends: generation.ends,
                ticket_epoch: generation.ticket.epoch(),
                ticket_secret: to_hex(generation.ticket.secret()),
                route_day: generation.route.epoch(),
                route_secret: to_hex(generation.route.secret()),
            })
            .collect(),
    };
    let body = Zeroizing::new(
        toml::to_string(&written).expect("a table of strings and numbers has a TOML form"),
    );
    Zeroizing::new(format!("{HEAD}{}", *body))
}

fn written_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn to_hex(secret: &Secret) -> Zeroizing<String> {
    use std::fmt::Write as _;
    let mut hex = Zeroizing::new(String::with_capacity(64));
    for byte in secret.expose() {
        write!(hex, "{byte:02x}").expect("a string takes any text");
    }
    hex
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> FarmKey {
        super::super::fresh(super::super::DEFAULT_MAX_LIFETIME).unwrap()
    }

    fn written(change: impl Fn(String) -> String) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("farm.key");
        write_new(&path, &key()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(text)).unwrap();
        (folder, path)
    }

    #[test]
    fn a_key_reads_back_as_it_was_written_and_only_its_owner_can() {
        let (_folder, path) = written(|text| text);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let once = encode(&load(&path).unwrap());
        assert_eq!(*once, fs::read_to_string(&path).unwrap());
    }

    #[test]
    fn never_overwrites_a_key() {
        let (_folder, path) = written(|text| text);
        let error = write_new(&path, &key()).unwrap_err();
        assert!(matches!(error, FileError::Exists { .. }), "{error}");
    }

    #[test]
    fn refuses_a_file_that_others_can_read() {
        let (_folder, path) = written(|text| text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(&path).err().unwrap();
        assert!(matches!(error, FileError::Readable { mode: 0o644, .. }));
    }

    #[test]
    fn an_error_names_the_line_and_never_the_secret() {
        let (_folder, path) = written(|text| text.replace("ticket-secret = ", "ticket-secret "));
        let error = load(&path).err().unwrap();
        let text = format!("{error} {error:?}");
        assert!(text.contains("line "), "{text}");
        let secret = fs::read_to_string(&path).unwrap();
        let secret = secret
            .lines()
            .find(|line| line.starts_with("ticket-secret"));
        assert!(!text.contains(secret.unwrap().rsplit(' ').next().unwrap()));
    }

    #[test]
    fn refuses_weak_secrets_and_unknown_formats_by_name() {
        let zero = |text: String| {
            let line = text.lines().find(|line| line.starts_with("route-secret"));
            text.replace(
                line.unwrap(),
                &format!("route-secret = \"{}\"", "0".repeat(64)),
            )
        };
        let (_folder, path) = written(zero);
        let error = load(&path).err().unwrap().to_string();
        assert!(error.contains("route secret of generation 0"), "{error}");
        let (_folder, path) = written(|text| text.replace("format = 1", "format = 9"));
        let error = load(&path).err().unwrap();
        assert!(matches!(error, FileError::Format { format: 9, .. }));
    }

    #[test]
    fn moving_forward_forgets_the_past_and_keeps_the_rest() {
        let (_folder, path) = written(|text| text);
        let before = load(&path).unwrap();
        let later = crate::clock::now().plus(Duration::from_secs(3 * 24 * 60 * 60));
        move_forward(&path, later).unwrap();
        let after = load(&path).unwrap();
        assert_eq!(after.scope, before.scope);
        assert_eq!(
            after.generations[0].ticket.epoch(),
            after.oldest_epoch(later)
        );
        assert_ne!(
            after.generations[0].ticket.secret().expose(),
            before.generations[0].ticket.secret().expose()
        );
    }
}
