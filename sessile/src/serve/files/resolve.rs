//! Finds the file of a path. Only regular files have content for clients. By default, only files inside the
//! folder are found.
//!
//! Everything here except [`relative_path`] can block, so it runs on the threads of a [`Pool`](super::pool).

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use percent_encoding::percent_decode_str;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2};
use rustix::io::Errno;

use super::validators::ModificationTime;
use crate::config::Symlinks;

/// The file that answers for a folder.
const INDEX: &str = "index.html";

/// Most lookups of a path while other processes rename folders.
const MAX_TRIES: usize = 8;

/// With `NONBLOCK`, a FIFO without a writer and a file with a lease do not block the call.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The target of a path.
#[derive(Debug)]
pub(super) enum Found {
    File(RegularFile),
    Folder,
    /// Nothing that a client may have.
    Nothing,
}

/// An open file. All fields describe the same file, even if the name leads to another file later.
#[derive(Debug)]
pub(super) struct RegularFile {
    pub(super) fd: OwnedFd,
    pub(super) identity: Identity,
}

/// Identifies a file, and one version of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) length: u64,
    pub(super) modified: ModificationTime,
    /// Seconds and nanoseconds of the last change of content, mode or links.
    pub(super) changed: (i64, i64),
}

impl Identity {
    fn of(status: &Stat) -> Self {
        Self {
            device: status.st_dev,
            inode: status.st_ino,
            length: u64::try_from(status.st_size).unwrap_or_default(),
            modified: ModificationTime {
                seconds: status.st_mtime,
                nanoseconds: u32::try_from(status.st_mtime_nsec).unwrap_or_default(),
            },
            changed: (status.st_ctime, status.st_ctime_nsec as i64),
        }
    }
}

/// The identity of an open file at this moment.
///
/// # Errors
/// The file system does not answer.
pub(super) fn identity(file: BorrowedFd<'_>) -> io::Result<Identity> {
    Ok(Identity::of(&fstat(file)?))
}

/// Decodes the part of a URL's path that lies below a route. A final slash becomes the index of the folder.
///
/// `None` if no file can have the path.
pub(super) fn relative_path(below: &str) -> Option<Cow<'_, Path>> {
    if let Some(path) = plain_path(below) {
        return Some(Cow::Borrowed(Path::new(path)));
    }
    let decoded: Vec<u8> = percent_decode_str(below).collect();
    if decoded.contains(&0) {
        return None;
    }
    let mut path = PathBuf::new();
    // Several slashes count as one, and an encoded slash counts as a slash.
    for name in decoded.split(|&byte| byte == b'/') {
        match name {
            b"" => {}
            b"." | b".." => return None,
            name => path.push(OsStr::from_bytes(name)),
        }
    }
    if decoded.ends_with(b"/") {
        path.push(INDEX);
    }
    Some(Cow::Owned(path))
}

/// A path without its first slash, if the path needs no other change.
fn plain_path(below: &str) -> Option<&str> {
    let path = below.strip_prefix('/')?;
    let is_encoded = path.bytes().any(|byte| matches!(byte, b'%' | 0));
    let is_plain = !is_encoded && path.split('/').all(|name| !matches!(name, "" | "." | ".."));
    is_plain.then_some(path)
}

/// Opens the file that a path below a folder names.
///
/// The folder is looked up each time, because a deployment can replace a link to it.
///
/// # Errors
/// The file system or this process cannot open the file now.
pub(super) fn find(folder: &Path, path: &Path, symlinks: Symlinks) -> io::Result<Found> {
    match open_file(folder, path, symlinks).and_then(classify) {
        Ok(found) => Ok(found),
        Err(errno) if is_missing(errno) => Ok(Found::Nothing),
        Err(errno) => Err(errno.into()),
    }
}

fn open_file(folder: &Path, path: &Path, symlinks: Symlinks) -> Result<OwnedFd, Errno> {
    match symlinks {
        Symlinks::Follow => open(folder.join(path), FILE, Mode::empty()),
        Symlinks::Inside => {
            let folder = open(folder, FOLDER, Mode::empty())?;
            if has_openat2() {
                open_beneath(&folder, path)
            } else {
                open_without_links(folder, path)
            }
        }
    }
}

/// Opens a file, and follows links that stay inside the folder.
fn open_beneath(folder: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
    let mut tries = 1;
    loop {
        match openat2(folder, path, FILE, Mode::empty(), resolve) {
            // During a rename, the kernel cannot tell if a `..` in a link stays inside the folder.
            Err(Errno::AGAIN) if tries < MAX_TRIES => tries += 1,
            opened => return opened,
        }
    }
}

/// Opens a file, and follows no link below the folder.
fn open_without_links(folder: OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut at = folder;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        let flags = if names.peek().is_some() { FOLDER } else { FILE };
        at = openat(&at, name, flags.union(OFlags::NOFOLLOW), Mode::empty())?;
    }
    Ok(at)
}

/// True if the kernel has `openat2` (Linux 5.6) and no sandbox forbids it.
pub(super) fn has_openat2() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let probed = openat2(CWD, ".", FOLDER, Mode::empty(), ResolveFlags::BENEATH);
        // Some sandboxes answer EPERM to system calls that they do not know.
        !matches!(probed, Err(Errno::NOSYS | Errno::PERM))
    })
}

fn classify(fd: OwnedFd) -> Result<Found, Errno> {
    let status = fstat(&fd)?;
    Ok(match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => Found::File(RegularFile {
            fd,
            identity: Identity::of(&status),
        }),
        FileType::Directory => Found::Folder,
        _ => Found::Nothing,
    })
}

/// True if the error means that the client gets no file of this name.
fn is_missing(errno: Errno) -> bool {
    matches!(
        errno,
        // No such name, or a name that no file can have.
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::INVAL
            // Not readable for this process.
            | Errno::ACCESS | Errno::PERM
            // A link that leads out of the folder, or in a circle.
            | Errno::XDEV | Errno::LOOP
            // A socket, or a device without a driver.
            | Errno::NXIO | Errno::NODEV
    )
}

/// Reads at most `length` bytes at `offset`. The result is empty at the end of the file.
///
/// # Errors
/// The file system cannot read the file.
pub(super) fn read(file: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(length);
    if length > 0 {
        rustix::io::pread(file, rustix::buffer::spare_capacity(&mut piece), offset)?;
    }
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    /// The content of a file, or a word for everything else.
    fn named(found: io::Result<Found>) -> String {
        match found.expect("no error") {
            Found::File(file) => {
                let text = read(file.fd.as_fd(), 0, 100).expect("its content");
                String::from_utf8(text).expect("text")
            }
            Found::Folder => "folder".to_owned(),
            Found::Nothing => "nothing".to_owned(),
        }
    }

    /// A folder `www` with files and links, and files beside it.
    fn folder() -> tempfile::TempDir {
        let parent = tempfile::tempdir().expect("a folder");
        let path = |name: &str| parent.path().join(name);
        fs::create_dir_all(path("www/sub")).expect("a folder");
        for (name, text) in [
            ("secret", "secret"),
            ("www/file", "file"),
            ("www/sub/deep", "deep"),
        ] {
            fs::write(path(name), text).expect("a file");
        }
        for (target, name) in [
            ("file", "www/inside"),
            ("../file", "www/sub/up"),
            ("sub", "www/linked-folder"),
            ("../secret", "www/outside"),
            ("../www/file", "www/out-and-in"),
            ("..", "www/parent"),
            ("circle", "www/circle"),
            ("missing", "www/dangling"),
            ("/proc/self/exe", "www/magic"),
        ] {
            symlink(target, path(name)).expect("a link");
        }
        symlink(path("www/file"), path("www/absolute")).expect("a link");
        rustix::fs::mknodat(CWD, path("www/fifo"), FileType::Fifo, 0o600.into(), 0)
            .expect("a FIFO");
        drop(UnixListener::bind(path("www/socket")).expect("a socket"));
        parent
    }

    #[test]
    fn names_are_decoded_and_stay_below_the_folder() {
        for (below, expected) in [
            ("/", Some("index.html")),
            ("//", Some("index.html")),
            ("/a", Some("a")),
            ("/a/b", Some("a/b")),
            ("//a///b", Some("a/b")),
            ("/a/", Some("a/index.html")),
            ("/a%20b%2fc", Some("a b/c")),
            ("/a%2F", Some("a/index.html")),
            ("/%252e%252e/a", Some("%2e%2e/a")),
            ("/...", Some("...")),
            ("/a\\..\\b", Some("a\\..\\b")),
            ("/..", None),
            ("/a/../b", None),
            ("/./a", None),
            ("/%2e%2e/a", None),
            ("/a%2f..%2fb", None),
            ("/a%00", None),
        ] {
            let found = relative_path(below).map(Cow::into_owned);
            assert_eq!(found, expected.map(PathBuf::from), "{below}");
        }
        let raw = relative_path("/%ff").expect("a path");
        assert_eq!(raw.as_os_str().as_bytes(), b"\xff");
    }

    #[test]
    fn links_are_followed_inside_the_folder_only() {
        assert!(
            has_openat2(),
            "this test needs Linux 5.6 without an old sandbox"
        );
        let parent = folder();
        let www = parent.path().join("www");
        for (path, inside, follow) in [
            ("file", "file", "file"),
            ("sub/deep", "deep", "deep"),
            ("sub", "folder", "folder"),
            ("inside", "file", "file"),
            ("sub/up", "file", "file"),
            ("linked-folder/deep", "deep", "deep"),
            ("linked-folder", "folder", "folder"),
            ("outside", "nothing", "secret"),
            ("out-and-in", "nothing", "file"),
            ("absolute", "nothing", "file"),
            ("parent", "nothing", "folder"),
            ("parent/secret", "nothing", "secret"),
            ("circle", "nothing", "nothing"),
            ("dangling", "nothing", "nothing"),
            ("missing", "nothing", "nothing"),
            ("file/below", "nothing", "nothing"),
        ] {
            let path = Path::new(path);
            let name = path.display();
            assert_eq!(named(find(&www, path, Symlinks::Inside)), inside, "{name}");
            assert_eq!(named(find(&www, path, Symlinks::Follow)), follow, "{name}");
        }
        let magic = find(&www, Path::new("magic"), Symlinks::Inside);
        assert!(matches!(magic, Ok(Found::Nothing)));
    }

    #[test]
    fn without_openat2_no_link_is_followed() {
        let parent = folder();
        let open = |path: &str| {
            let www = open(parent.path().join("www"), FOLDER, Mode::empty()).expect("a folder");
            open_without_links(www, Path::new(path)).and_then(classify)
        };
        for (path, expected) in [("file", "file"), ("sub/deep", "deep"), ("sub", "folder")] {
            assert_eq!(
                named(open(path).map_err(io::Error::from)),
                expected,
                "{path}"
            );
        }
        for path in [
            "inside",
            "linked-folder/deep",
            "outside",
            "parent/secret",
            "missing",
            "file/below",
        ] {
            let error = open(path).expect_err(path);
            assert!(is_missing(error), "{path}: {error}");
        }
    }

    #[test]
    fn only_regular_files_have_content() {
        let parent = folder();
        let www = parent.path().join("www");
        let long = "a".repeat(256);
        let deep = "a/".repeat(3000);
        for path in ["fifo", "socket", &long, &deep] {
            for symlinks in [Symlinks::Inside, Symlinks::Follow] {
                assert_eq!(
                    named(find(&www, Path::new(path), symlinks)),
                    "nothing",
                    "{path}"
                );
            }
        }
        assert_eq!(
            named(find(Path::new("/dev"), Path::new("null"), Symlinks::Inside)),
            "nothing"
        );
        assert_eq!(
            named(find(&www.join("none"), Path::new("file"), Symlinks::Inside)),
            "nothing"
        );
    }

    #[test]
    fn a_replaced_link_to_the_folder_takes_effect_at_once() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = |name: &str| parent.path().join(name);
        for version in ["one", "two"] {
            fs::create_dir(path(version)).expect("a folder");
            fs::write(path(version).join("file"), version).expect("a file");
        }
        let current = path("current");
        for version in ["one", "two"] {
            symlink(version, path("next")).expect("a link");
            fs::rename(path("next"), &current).expect("a new name");
            let found = find(&current, Path::new("file"), Symlinks::Inside);
            assert_eq!(named(found), version);
        }
    }
}
