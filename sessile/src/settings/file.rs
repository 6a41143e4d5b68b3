//! The file on disk: read under a lock, backed up before each change, replaced in one step.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Gid, Uid, fchown};

use super::edit::{self, EditError};
use crate::config::Config;
use crate::config::file::{LoadError, parse, read};
use crate::config::settings::{Setting, Value};
use crate::state_file::{folder_of, sync_folder};

/// Most backups in one second. The limit ends the search for a free name.
const MAX_BACKUPS_A_SECOND: u32 = 1000;

/// Why a configuration file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or its backup cannot be read, or is not valid.
    #[error(transparent)]
    Invalid(#[from] LoadError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error("{}: its folder has no backup of it (FILE.<time>.bak)", .0.display())]
    NoBackup(PathBuf),
    #[error("{}: the file does not exist", .0.display())]
    NoFile(PathBuf),
    #[error("{}: cannot be {what}: {source}", path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
}

/// The result of a change.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// The file had the same text already. Nothing was written.
    None,
    /// A new file was made.
    Made,
    /// The file was replaced. The backup has the old text.
    Replaced { backup: PathBuf },
}

/// A configuration file, locked for a change. Other `sessile settings` processes wait until the value
/// is dropped.
#[derive(Debug)]
pub struct SettingsFile {
    /// The path from the command line. Messages name this path, and relative paths in the file start
    /// at its folder.
    named: PathBuf,
    /// The path without symbolic links. This file is replaced.
    real: PathBuf,
    /// `None`: the file does not exist yet.
    text: Option<String>,
    /// Holds the lock.
    _folder: Option<File>,
}

impl SettingsFile {
    /// Opens a file, which need not exist.
    pub fn open(named: &Path) -> Result<Self, Error> {
        let failed = |source| failure(named, "opened", source);
        let real = match fs::canonicalize(named) {
            // A dangling link is an error, because a rename would replace the link.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named.is_symlink() => {
                let folder = fs::canonicalize(folder_of(named)).map_err(failed)?;
                folder.join(named.file_name().ok_or_else(|| failed(error))?)
            }
            real => real.map_err(failed)?,
        };
        // The file itself is replaced, so the folder is locked instead. Some network file systems
        // cannot lock a folder. On those, one of two simultaneous changes can be lost.
        let folder = File::open(folder_of(&real)).ok();
        if let Some(folder) = &folder {
            let _ = folder.lock();
        }
        let text = if real.exists() {
            Some(read(&real)?)
        } else {
            None
        };
        Ok(Self {
            named: named.to_owned(),
            real,
            text,
            _folder: folder,
        })
    }

    /// The text. Empty: the file does not exist.
    #[must_use]
    pub fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    /// True if the file exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.text.is_some()
    }

    /// Parses the text.
    pub fn config(&self) -> Result<Config, Error> {
        Ok(parse(self.text(), &self.named)?)
    }

    /// Gives a setting a value.
    pub fn set(&self, setting: &Setting, value: &Value, now: SystemTime) -> Result<Change, Error> {
        self.replace(&edit::set(self.text(), setting, value)?, now)
    }

    /// Removes a setting, which then has its default.
    pub fn unset(&self, setting: &Setting, now: SystemTime) -> Result<Change, Error> {
        match edit::unset(self.text(), setting)? {
            Some(text) => self.replace(&text, now),
            None => Ok(Change::None),
        }
    }

    /// Replaces the text, if the whole new text is valid.
    pub fn replace(&self, text: &str, now: SystemTime) -> Result<Change, Error> {
        parse(text, &self.named)?;
        if self.text() == text {
            return Ok(Change::None);
        }
        if !self.exists() {
            let made = self.write_beside(text)?.persist_noclobber(&self.real);
            made.map_err(|error| failure(&self.real, "made", error.error))?;
            // The new file is in place, even if the folder cannot be synced.
            let _ = sync_folder(&self.real);
            return Ok(Change::Made);
        }
        let backup = self.backup(now)?;
        let replaced = self.write_beside(text)?.persist(&self.real);
        replaced.map_err(|error| failure(&self.real, "replaced", error.error))?;
        let _ = sync_folder(&self.real);
        Ok(Change::Replaced { backup })
    }

    /// Writes a copy beside the file: `FILE.20260801T101112Z.bak`, or `FILE.20260801T101112Z-2.bak` if
    /// that name is taken. No backup is ever overwritten or removed.
    pub fn backup(&self, now: SystemTime) -> Result<PathBuf, Error> {
        let Some(text) = &self.text else {
            return Err(Error::NoFile(self.named.clone()));
        };
        let mut copy = self.write_beside(text)?;
        let time = humantime::format_rfc3339_seconds(now).to_string();
        let stamp = time.replace(['-', ':'], "");
        for number in 1..=MAX_BACKUPS_A_SECOND {
            let suffix = match number {
                1 => format!(".{stamp}.bak"),
                _ => format!(".{stamp}-{number}.bak"),
            };
            let mut name = self.real.clone().into_os_string();
            name.push(suffix);
            let path = PathBuf::from(name);
            match copy.persist_noclobber(&path) {
                Ok(_) => {
                    let _ = sync_folder(&self.real);
                    return Ok(path);
                }
                Err(taken) if taken.error.kind() == io::ErrorKind::AlreadyExists => {
                    copy = taken.file;
                }
                Err(error) => return Err(failure(&path, "written", error.error)),
            }
        }
        Err(failure(
            &self.real,
            "backed up",
            io::ErrorKind::AlreadyExists.into(),
        ))
    }

    /// Restores a backup: `given` (a path, or a name in the file's folder), or the newest backup. The
    /// replaced text is backed up, too. Returns the path of the restored backup.
    pub fn restore(
        &self,
        given: Option<&Path>,
        now: SystemTime,
    ) -> Result<(PathBuf, Change), Error> {
        let backup = match given {
            Some(path) if path.exists() => path.to_owned(),
            Some(name) => folder_of(&self.real).join(name),
            None => self.newest_backup()?,
        };
        let text = read(&backup)?;
        // Problems are reported with the lines of the backup.
        parse(&text, &backup)?;
        let change = self.replace(&text, now)?;
        Ok((backup, change))
    }

    fn newest_backup(&self) -> Result<PathBuf, Error> {
        let folder = folder_of(&self.real);
        let failed = |source| failure(folder, "read", source);
        let file_name = self.real.file_name().unwrap_or_default();
        let mut backups = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            backups.extend(backup_time(file_name, &name).map(|time| (time, name)));
        }
        let (_, name) = backups
            .into_iter()
            .max()
            .ok_or_else(|| Error::NoBackup(self.named.clone()))?;
        Ok(folder.join(name))
    }

    /// Writes the text to a temporary file in the same folder, with the mode and owner of the file.
    fn write_beside(&self, text: &str) -> Result<tempfile::NamedTempFile, Error> {
        let failed = |source| failure(&self.real, "written", source);
        let metadata = match &self.text {
            Some(_) => Some(fs::metadata(&self.real).map_err(failed)?),
            None => None,
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".sessile-").suffix(".tmp");
        if metadata.is_none() {
            // The umask of the process applies.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut beside = builder.tempfile_in(folder_of(&self.real)).map_err(failed)?;
        if let Some(metadata) = metadata {
            keep_owner_and_mode(beside.as_file(), &metadata)
                .map_err(|source| failure(&self.real, "replaced with its owner kept", source))?;
        }
        beside.write_all(text.as_bytes()).map_err(failed)?;
        beside.as_file().sync_all().map_err(failed)?;
        Ok(beside)
    }
}

fn failure(path: &Path, what: &'static str, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        what,
        source,
    }
}

fn keep_owner_and_mode(file: &File, metadata: &Metadata) -> io::Result<()> {
    let current = file.metadata()?;
    if (current.uid(), current.gid()) != (metadata.uid(), metadata.gid()) {
        let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
        fchown(file, Some(uid), Some(gid))?;
    }
    file.set_permissions(metadata.permissions())
}

/// The time of a backup, and the number of the backup within that second. `None`: `name` is not a
/// backup of `file_name`.
fn backup_time(file_name: &OsStr, name: &OsStr) -> Option<(String, u32)> {
    let mut prefix = OsString::from(file_name);
    prefix.push(".");
    let rest = name.to_str()?.strip_prefix(prefix.to_str()?)?;
    let stamp = rest.strip_suffix(".bak")?;
    let (time, number) = stamp.split_once('-').unwrap_or((stamp, "1"));
    let is_digits = |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_digit());
    let (day, second) = time.strip_suffix('Z')?.split_once('T')?;
    if !is_digits(day, 8) || !is_digits(second, 6) {
        return None;
    }
    Some((time.to_owned(), number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::find;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_579_072)
    }

    fn set(path: &Path, name: &str, value: &str) -> Result<Change, Error> {
        let setting = find(name).expect("it is in the table");
        let value = setting.parse(value).expect("it is of the type");
        SettingsFile::open(path)?.set(setting, &value, now())
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("it is there");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("UTF-8")
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_change_leaves_a_backup_and_never_overwrites_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.toml");
        assert_eq!(
            set(&path, "session.lifetime", "1h").expect("made"),
            Change::Made
        );
        assert_eq!(
            set(&path, "session.lifetime", "1h").expect("same"),
            Change::None
        );
        for value in ["2h", "3h"] {
            set(&path, "session.lifetime", value).expect("changed");
        }
        let backups = [
            "s.toml",
            "s.toml.20260801T101112Z-2.bak",
            "s.toml.20260801T101112Z.bak",
        ];
        assert_eq!(names(folder.path()), backups);
        let first = fs::read_to_string(folder.path().join(backups[2])).expect("it is there");
        assert_eq!(first, "[session]\nlifetime = \"1h\"\n");
    }

    #[test]
    fn a_restore_uses_the_newest_backup_and_can_be_undone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.toml");
        let open = || SettingsFile::open(&path).expect("it is there");
        assert!(matches!(
            open().restore(None, now()),
            Err(Error::NoBackup(_))
        ));
        for value in ["1h", "2h", "3h"] {
            set(&path, "session.lifetime", value).expect("changed");
        }
        let later = now() + Duration::from_secs(5);
        let (backup, change) = open().restore(None, later).expect("restored");
        assert!(backup.ends_with("s.toml.20260801T101112Z-2.bak"));
        assert!(matches!(change, Change::Replaced { .. }));
        assert!(open().text().contains("2h"));
        open().restore(None, later).expect("undone");
        assert!(open().text().contains("3h"));
        open()
            .restore(Some(Path::new("s.toml.20260801T101112Z.bak")), later)
            .expect("by its name");
        assert!(open().text().contains("1h"));
    }

    #[test]
    fn an_invalid_change_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.toml");
        fs::write(&path, "[session]\nlifetime = '1h'\n").expect("written");
        let error = set(&path, "session.lifetime", "9 moons").expect_err("no duration");
        assert!(
            error.to_string().contains("s.toml:2:12: `lifetime`"),
            "{error}"
        );
        fs::write(folder.path().join("bad"), "[sesion]").expect("written");
        let open = SettingsFile::open(&path).expect("it is there");
        let error = open
            .restore(Some(Path::new("bad")), now())
            .expect_err("not valid");
        assert!(
            error.to_string().contains("bad:1:2: unknown key"),
            "{error}"
        );
        assert_eq!(names(folder.path()), ["bad", "s.toml"]);
        assert_eq!(open.text(), "[session]\nlifetime = '1h'\n");
    }

    #[test]
    fn an_invalid_value_can_be_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.toml");
        fs::write(&path, "[session]\nlifetime = '9 moons'\n").expect("written");
        let file = SettingsFile::open(&path).expect("it is there");
        file.unset(find("session.lifetime").expect("it is in the table"), now())
            .expect("the rest is right");
    }

    #[test]
    fn links_are_followed_and_the_mode_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().join("real");
        fs::create_dir(&real).expect("made");
        let path = real.join("r.toml");
        fs::write(&path, "").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        let link = folder.path().join("s.toml");
        symlink("real/r.toml", &link).expect("linked");
        set(&link, "tls.kernel", "off").expect("changed");
        assert!(link.is_symlink());
        assert_eq!(
            fs::read_to_string(&path).expect("read"),
            "[tls]\nkernel = \"off\"\n"
        );
        for name in names(&real) {
            let mode = fs::metadata(real.join(&name))
                .expect("there")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o640, "{name}");
        }
        let dangling = folder.path().join("d.toml");
        symlink("nowhere", &dangling).expect("linked");
        assert!(matches!(
            SettingsFile::open(&dangling),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn concurrent_changes_are_all_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.toml");
        fs::write(&path, "").expect("written");
        let changes = [
            ("session.lifetime", "1h"),
            ("session.max-entries", "5"),
            ("tls.kernel", "off"),
            ("server.name", "one"),
        ];
        std::thread::scope(|scope| {
            for (name, value) in changes {
                let path = &path;
                scope.spawn(move || set(path, name, value).expect("changed"));
            }
        });
        let text = fs::read_to_string(&path).expect("read");
        for (name, _) in changes {
            let setting = find(name).expect("it is in the table");
            assert!(
                edit::written(&text, setting).expect("TOML").is_some(),
                "{text}"
            );
        }
        assert_eq!(names(folder.path()).len(), 1 + changes.len());
    }

    #[test]
    fn backups_of_other_files_are_ignored() {
        let time = |name: &str| backup_time("s.toml".as_ref(), name.as_ref());
        assert!(time("s.toml.20260801T101112Z-10.bak") > time("s.toml.20260801T101112Z-9.bak"));
        assert!(time("s.toml.20260801T101113Z.bak") > time("s.toml.20260801T101112Z-9.bak"));
        for name in [
            "s.toml",
            "s.toml.bak",
            "s.toml.old.bak",
            "t.toml.20260801T101112Z.bak",
        ] {
            assert_eq!(time(name), None, "{name}");
        }
    }
}
