//! The session table of a drained server, sealed under the farm key, in a file for the next start.
//!
//! The file is removed before it is read, so it is read only once.
//!
//! Format: `magic | id 16 | pieces`, each piece `length 4 | sealed`. A piece is sealed for the server's name,
//! the id, the piece's number, and a flag for the last piece. The first piece begins with the incarnation, 2
//! bytes. Entries follow, oldest first: `established 8 | key length 1 | value length 2 | key | value`. No entry
//! is in two pieces.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sessile_proto::Time;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::session::{MAX_KEY, MAX_VALUE, OwnedEntry};
use sessile_proto::verdict::Reason;
use zeroize::Zeroizing;

use crate::state_file::{self, TakeError};

const MAGIC: &[u8; 19] = b"sessile snapshot 1\n";

/// Most bytes of entries. If the entries are longer, the oldest entries are left out.
const MAX_BYTES: usize = 256 << 20;

/// A piece with this many bytes is full.
const PIECE: usize = 1 << 20;

/// Most bytes of a sealed piece.
const MAX_SEALED: usize = PIECE + ENTRY_HEAD + MAX_KEY + MAX_VALUE + sealed::OVERHEAD;

const ENTRY_HEAD: usize = 8 + 1 + 2;

/// A server's snapshot file.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    server: String,
}

/// The sessions of a drained server.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The incarnation in the labels of the server's tickets.
    pub incarnation: u16,
    /// Oldest first.
    pub entries: Vec<OwnedEntry>,
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Taken(#[from] TakeError),
    #[error("the file cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error("this version of sessile does not know the file's format")]
    Format,
    #[error("the file was cut or changed, or sealed under another farm's key")]
    Forged,
    #[error("the file is older than the farm key's max-lifetime")]
    TooOld,
    #[error("the file was sealed under a generation of the farm key that has ended")]
    Revoked,
    #[error("this machine's clock does not fit the farm key; correct the clock")]
    NoKey,
}

impl SnapshotFile {
    /// The file of the server with that name. Servers can share a folder.
    #[must_use]
    pub fn new(folder: &Path, server: &str) -> Self {
        Self {
            path: state_file::path(folder, "sessions", server),
            server: server.to_owned(),
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes or replaces the file, with mode 0600. Returns the number of entries in it.
    ///
    /// # Errors
    /// If the snapshot cannot be written or sealed. An existing file then stays.
    pub fn save(&self, schedule: &Schedule, snapshot: &Snapshot) -> Result<usize, SnapshotError> {
        let entries = newest_within(&snapshot.entries, MAX_BYTES);
        state_file::replace(&self.path, |file| {
            self.write(schedule, snapshot.incarnation, entries, file)
        })?;
        Ok(entries.len())
    }

    fn write(
        &self,
        schedule: &Schedule,
        incarnation: u16,
        entries: &[OwnedEntry],
        file: &mut File,
    ) -> Result<(), SnapshotError> {
        let mut file = BufWriter::new(file);
        let id = random()?;
        file.write_all(MAGIC)?;
        file.write_all(&id)?;
        let mut piece = Zeroizing::new(Vec::with_capacity(MAX_SEALED));
        piece.extend_from_slice(&incarnation.to_be_bytes());
        let mut rest = entries;
        for number in 0_u32.. {
            while let Some((entry, later)) = rest.split_first().filter(|_| piece.len() < PIECE) {
                write_entry(entry, &mut piece);
                rest = later;
            }
            let last = rest.is_empty();
            let seal_id = self.seal_id(&id, number, last);
            let sealed = sealed::seal(schedule, Purpose::Snapshot, random()?, &seal_id, &piece)
                .ok_or(SnapshotError::NoKey)?;
            let len = u32::try_from(sealed.len()).map_err(|_| SnapshotError::Format)?;
            file.write_all(&len.to_be_bytes())?;
            file.write_all(&sealed)?;
            if last {
                break;
            }
            piece.clear();
        }
        file.flush()?;
        Ok(())
    }

    /// Removes the file and reads it. `None` if there is no file.
    ///
    /// # Errors
    /// If the snapshot cannot be used. An unusable file is removed too, if possible.
    pub fn take(&self, schedule: &Schedule) -> Result<Option<Snapshot>, SnapshotError> {
        // The limit is twice `MAX_BYTES`, because sealed pieces are longer than their entries.
        let Some(file) = state_file::take(&self.path, 2 * MAX_BYTES as u64)? else {
            return Ok(None);
        };
        self.read(schedule, &mut BufReader::new(file)).map(Some)
    }

    fn read(&self, schedule: &Schedule, file: &mut impl Read) -> Result<Snapshot, SnapshotError> {
        let magic: [u8; MAGIC.len()] = read_array(file)?;
        if magic != *MAGIC {
            return Err(SnapshotError::Format);
        }
        let id = read_array(file)?;
        let mut snapshot = Snapshot {
            incarnation: 0,
            entries: Vec::new(),
        };
        for number in 0_u32.. {
            let len = u32::from_be_bytes(read_array(file)?) as usize;
            if len > MAX_SEALED {
                return Err(SnapshotError::Forged);
            }
            let mut sealed = vec![0; len];
            file.read_exact(&mut sealed).map_err(read_error)?;
            let open = |last| {
                let seal_id = self.seal_id(&id, number, last);
                sealed::open(schedule, Purpose::Snapshot, &seal_id, &sealed)
            };
            let (piece, last) = match open(false) {
                Ok(piece) => (Zeroizing::new(piece), false),
                Err(_) => (Zeroizing::new(open(true).map_err(open_error)?), true),
            };
            let mut rest = piece.as_slice();
            if number == 0 {
                let incarnation = rest.split_off(..2).ok_or(SnapshotError::Format)?;
                snapshot.incarnation = u16::from_be_bytes([incarnation[0], incarnation[1]]);
            }
            while !rest.is_empty() {
                let entry = read_entry(&mut rest).ok_or(SnapshotError::Format)?;
                snapshot.entries.push(entry);
            }
            if last {
                break;
            }
        }
        Ok(snapshot)
    }

    /// The identifier under which a piece is sealed.
    fn seal_id(&self, id: &[u8; 16], number: u32, last: bool) -> Vec<u8> {
        let mut seal_id = self.server.clone().into_bytes();
        seal_id.extend_from_slice(id);
        seal_id.extend_from_slice(&number.to_be_bytes());
        seal_id.push(u8::from(last));
        seal_id
    }
}

/// The newest entries that fit into `bytes`.
fn newest_within(entries: &[OwnedEntry], bytes: usize) -> &[OwnedEntry] {
    let mut total = 0;
    let newest = entries.iter().rev().take_while(|entry| {
        total += ENTRY_HEAD + entry.key.len() + entry.value.len();
        total <= bytes
    });
    let first = entries.len() - newest.count();
    &entries[first..]
}

fn write_entry(entry: &OwnedEntry, out: &mut Vec<u8>) {
    let OwnedEntry {
        key,
        value,
        established,
    } = entry;
    // The table refuses longer keys and values.
    let (Ok(key_len), Ok(value_len)) = (u8::try_from(key.len()), u16::try_from(value.len())) else {
        return;
    };
    out.extend_from_slice(&established.unix_millis().to_be_bytes());
    out.push(key_len);
    out.extend_from_slice(&value_len.to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

fn read_entry(rest: &mut &[u8]) -> Option<OwnedEntry> {
    let (head, tail) = rest.split_first_chunk::<ENTRY_HEAD>()?;
    let (established, lengths) = head.split_first_chunk::<8>()?;
    let (key, tail) = tail.split_at_checked(lengths[0].into())?;
    let value_len = u16::from_be_bytes([lengths[1], lengths[2]]);
    let (value, tail) = tail.split_at_checked(value_len.into())?;
    *rest = tail;
    Some(OwnedEntry {
        key: key.to_vec(),
        value: value.to_vec(),
        established: Time::from_unix_millis(u64::from_be_bytes(*established)),
    })
}

fn read_array<const N: usize>(file: &mut impl Read) -> Result<[u8; N], SnapshotError> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).map_err(read_error)?;
    Ok(bytes)
}

fn read_error(error: io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::Forged,
        _ => SnapshotError::Io(error),
    }
}

fn open_error(reason: Reason) -> SnapshotError {
    match reason {
        Reason::Expired => SnapshotError::TooOld,
        Reason::OldFormat => SnapshotError::Format,
        Reason::Revoked => SnapshotError::Revoked,
        _ => SnapshotError::Forged,
    }
}

fn random() -> Result<[u8; 16], SnapshotError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SnapshotError::NoKey)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock;
    use crate::key::Keyring;

    fn schedule() -> Arc<Schedule> {
        let keys = Keyring::ephemeral(Duration::from_secs(3600)).unwrap();
        keys.schedule(clock::now())
    }

    fn snapshot(count: u64, value: usize) -> Snapshot {
        let entry = |n: u64| OwnedEntry {
            key: n.to_be_bytes().to_vec(),
            value: b"secret ".repeat(value / 7),
            established: Time::from_unix_millis(n),
        };
        Snapshot {
            incarnation: 0xbeef,
            entries: (0..count).map(entry).collect(),
        }
    }

    #[test]
    fn can_be_taken_once_in_one_piece_or_in_several() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(&folder.path().join("state"), "web1");
        let schedule = schedule();
        assert_eq!(file.take(&schedule).unwrap(), None);
        for (count, value) in [(0, 0), (3, 70), (50, 60_000)] {
            let snapshot = snapshot(count, value);
            let saved = file.save(&schedule, &snapshot).unwrap();
            assert_eq!(saved, snapshot.entries.len());
            let mode = fs::metadata(file.path()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let bytes = fs::read(file.path()).unwrap();
            assert!(!bytes.windows(6).any(|window| window == b"secret"));
            assert_eq!(file.take(&schedule).unwrap(), Some(snapshot));
            assert_eq!(file.take(&schedule).unwrap(), None);
        }
        let left = fs::read_dir(folder.path().join("state")).unwrap();
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_damaged_snapshot_is_refused_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(folder.path(), "web1");
        let schedule = schedule();
        file.save(&schedule, &snapshot(20, 60_000)).unwrap();
        let whole = fs::read(file.path()).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(file.path(), bytes).unwrap();
            let error = file.take(&schedule).unwrap_err();
            assert!(!file.path().exists());
            error
        };
        for at in (0..whole.len()).step_by(9973) {
            let mut forged = whole.clone();
            forged[at] ^= 1;
            refused(&forged);
            refused(&whole[..at]);
        }
        file.save(&schedule, &snapshot(3, 70)).unwrap();
        let small = fs::read(file.path()).unwrap();
        for at in 0..small.len() {
            for bit in 0..8 {
                let mut forged = small.clone();
                forged[at] ^= 1 << bit;
                refused(&forged);
            }
        }
        assert!(matches!(
            refused(b"sessile snapshot 0\n and so on"),
            SnapshotError::Format
        ));
        // The file ends after the first of several pieces.
        let len = u32::from_be_bytes(whole[35..39].try_into().unwrap()) as usize;
        assert!(matches!(refused(&whole[..39 + len]), SnapshotError::Forged));
    }

    #[test]
    fn does_not_open_for_another_farm_or_server() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (
            SnapshotFile::new(folder.path(), "web1"),
            SnapshotFile::new(folder.path(), "web2"),
        );
        let (schedule, another) = (schedule(), schedule());
        one.save(&schedule, &snapshot(1, 7)).unwrap();
        assert_eq!(other.take(&schedule).unwrap(), None);
        fs::copy(one.path(), other.path()).unwrap();
        assert!(matches!(other.take(&schedule), Err(SnapshotError::Forged)));
        assert!(matches!(one.take(&another), Err(SnapshotError::Forged)));
    }

    #[test]
    fn each_server_name_has_another_file_inside_the_folder() {
        let path = |name: &str| SnapshotFile::new(Path::new("state"), name).path;
        assert_eq!(path("web1"), Path::new("state/sessions-web1.snapshot"));
        for name in ["../../etc/x", "a/b", "", "ü", &"x".repeat(255)] {
            assert_eq!(path(name).parent(), Some(Path::new("state")), "{name}");
            assert!(path(name).as_os_str().len() < 120);
        }
        assert_ne!(path("a/b"), path("a_b"));
        assert_ne!(path("a/b"), path("a:b"));
    }

    #[test]
    fn leaves_out_the_oldest_entries_if_they_do_not_fit() {
        let entries = snapshot(10, 70).entries;
        let size = ENTRY_HEAD + 8 + 70;
        assert_eq!(newest_within(&entries, 3 * size + 1), &entries[7..]);
        assert_eq!(newest_within(&entries, usize::MAX), &entries[..]);
        assert!(newest_within(&entries, 1).is_empty());
    }
}
