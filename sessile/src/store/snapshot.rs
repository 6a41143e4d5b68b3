//! A drained server's session table, sealed under the farm key in the state folder, for its next
//! start. It is read once: taking it removes it. One that cannot be used is ignored and said to be.
//!
//! `magic | id 16 | pieces`, each `length 4 | sealed`, bound to the server's name, the id, its number
//! and whether it is the last. The first begins with the incarnation, 2 bytes; then entries:
//! `established 8 | key length 1 | value length 2 | key | value`, oldest first, none in two pieces.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sessile_proto::Time;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::session::{MAX_KEY, MAX_VALUE};
use zeroize::Zeroizing;

use super::memory::Entry;
use crate::state_file::{self, TakeError};

const MAGIC: &[u8; 19] = b"sessile snapshot 1\n";

/// Most bytes of entries, over which the oldest are left out.
const MAX_BYTES: usize = 256 << 20;

/// From here on a piece is full.
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

/// What a server knew when it drained.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What its labels said of its state.
    pub incarnation: u16,
    /// Oldest first.
    pub entries: Vec<Entry>,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error(transparent)]
    Taken(#[from] TakeError),
    #[error("it cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error("it is not in this version's format")]
    Format,
    #[error("it was cut or changed, or sealed under another farm's key")]
    Forged,
    #[error("it is older than the farm key's max-lifetime")]
    TooOld,
    #[error("the generation of the farm key that it was sealed under has ended")]
    Revoked,
    #[error("the clock and the farm key do not agree")]
    NoKey,
}

impl SnapshotFile {
    /// The file of a server of that name; servers that share a folder have one each.
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

    /// Writes a snapshot in the place of one that may be there; 0600, all of it or nothing. Returns how
    /// many entries are in it.
    ///
    /// # Errors
    /// Where it cannot be written or sealed.
    pub fn save(&self, schedule: &Schedule, snapshot: &Snapshot) -> Result<usize, Unusable> {
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
        entries: &[Entry],
        file: &mut File,
    ) -> Result<(), Unusable> {
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
            let bound = self.bound(&id, number, last);
            let sealed = sealed::seal(schedule, Purpose::Snapshot, random()?, &bound, &piece);
            let sealed = sealed.ok_or(Unusable::NoKey)?;
            let len = u32::try_from(sealed.len()).map_err(|_| Unusable::Format)?;
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

    /// Takes the snapshot away and reads it. `None` where there is none.
    ///
    /// # Errors
    /// Where it cannot be used; unless it cannot be removed it is gone then, too.
    pub fn take(&self, schedule: &Schedule) -> Result<Option<Snapshot>, Unusable> {
        // Twice the most: pieces are longer than what is in them.
        let Some(file) = state_file::take(&self.path, 2 * MAX_BYTES as u64)? else {
            return Ok(None);
        };
        self.read(schedule, &mut BufReader::new(file)).map(Some)
    }

    fn read(&self, schedule: &Schedule, file: &mut impl Read) -> Result<Snapshot, Unusable> {
        let magic: [u8; MAGIC.len()] = read_array(file)?;
        if magic != *MAGIC {
            return Err(Unusable::Format);
        }
        let id = read_array(file)?;
        let mut snapshot = Snapshot {
            incarnation: 0,
            entries: Vec::new(),
        };
        for number in 0_u32.. {
            let len = usize::try_from(u32::from_be_bytes(read_array(file)?));
            let len = len.ok().filter(|&len| len <= MAX_SEALED);
            let mut sealed = vec![0; len.ok_or(Unusable::Forged)?];
            file.read_exact(&mut sealed).map_err(cut)?;
            let open = |last| {
                let bound = self.bound(&id, number, last);
                sealed::open(schedule, Purpose::Snapshot, &bound, &sealed)
            };
            let (piece, last) = match open(false) {
                Ok(piece) => (piece, false),
                Err(_) => (open(true).map_err(unopened)?, true),
            };
            let piece = Zeroizing::new(piece);
            let mut rest = piece.as_slice();
            if number == 0 {
                let incarnation = rest.split_off(..2).ok_or(Unusable::Format)?;
                snapshot.incarnation = u16::from_be_bytes([incarnation[0], incarnation[1]]);
            }
            while !rest.is_empty() {
                let entry = read_entry(&mut rest).ok_or(Unusable::Format)?;
                snapshot.entries.push(entry);
            }
            if last {
                break;
            }
        }
        Ok(snapshot)
    }

    /// What a piece is sealed as.
    fn bound(&self, id: &[u8; 16], number: u32, last: bool) -> Vec<u8> {
        let mut bound = self.server.clone().into_bytes();
        bound.extend_from_slice(id);
        bound.extend_from_slice(&number.to_be_bytes());
        bound.push(u8::from(last));
        bound
    }
}

/// The newest entries, as many as fit.
fn newest_within(entries: &[Entry], bytes: usize) -> &[Entry] {
    let mut total = 0;
    let size = |entry: &Entry| ENTRY_HEAD + entry.key.len() + entry.value.len();
    let fit = entries.iter().rev().take_while(|entry| {
        total += size(entry);
        total <= bytes
    });
    let fit = fit.count();
    &entries[entries.len() - fit..]
}

fn write_entry(entry: &Entry, out: &mut Vec<u8>) {
    let Entry {
        key,
        value,
        established,
    } = entry;
    // The table takes nothing longer.
    let (Ok(key_len), Ok(value_len)) = (u8::try_from(key.len()), u16::try_from(value.len())) else {
        return;
    };
    out.extend_from_slice(&established.unix_millis().to_be_bytes());
    out.push(key_len);
    out.extend_from_slice(&value_len.to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

fn read_entry(rest: &mut &[u8]) -> Option<Entry> {
    let (head, tail) = rest.split_first_chunk::<ENTRY_HEAD>()?;
    let (established, lengths) = head.split_first_chunk::<8>()?;
    let (key, tail) = tail.split_at_checked(lengths[0].into())?;
    let value_len = u16::from_be_bytes([lengths[1], lengths[2]]);
    let (value, tail) = tail.split_at_checked(value_len.into())?;
    *rest = tail;
    Some(Entry {
        key: key.to_vec(),
        value: value.to_vec(),
        established: Time::from_unix_millis(u64::from_be_bytes(*established)),
    })
}

fn read_array<const N: usize>(file: &mut impl Read) -> Result<[u8; N], Unusable> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).map_err(cut)?;
    Ok(bytes)
}

fn cut(error: io::Error) -> Unusable {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Unusable::Forged,
        _ => Unusable::Io(error),
    }
}

fn unopened(reason: sessile_proto::verdict::Reason) -> Unusable {
    use sessile_proto::verdict::Reason;
    match reason {
        Reason::Expired => Unusable::TooOld,
        Reason::OldFormat => Unusable::Format,
        Reason::Revoked => Unusable::Revoked,
        _ => Unusable::Forged,
    }
}

fn random() -> Result<[u8; 16], Unusable> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Unusable::NoKey)?;
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
        let entry = |n: u64| Entry {
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
    fn is_there_once_and_as_it_was_in_however_many_pieces() {
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
    fn whatever_is_wrong_with_it_it_is_refused_and_gone() {
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
        assert!(matches!(
            refused(b"sessile snapshot 0\n and so on"),
            Unusable::Format
        ));
        // The first piece alone, which is not the last.
        let len = u32::from_be_bytes(whole[35..39].try_into().unwrap()) as usize;
        assert!(matches!(refused(&whole[..39 + len]), Unusable::Forged));
    }

    #[test]
    fn another_farm_and_another_server_cannot_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (
            SnapshotFile::new(folder.path(), "web1"),
            SnapshotFile::new(folder.path(), "web2"),
        );
        let (schedule, another) = (schedule(), schedule());
        one.save(&schedule, &snapshot(1, 7)).unwrap();
        assert_eq!(other.take(&schedule).unwrap(), None);
        fs::copy(one.path(), other.path()).unwrap();
        assert!(matches!(other.take(&schedule), Err(Unusable::Forged)));
        assert!(matches!(one.take(&another), Err(Unusable::Forged)));
    }

    #[test]
    fn a_name_makes_a_file_of_its_own_in_the_folder_and_nowhere_else() {
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
    fn the_oldest_are_left_out_where_not_all_fit() {
        let entries = snapshot(10, 70).entries;
        let size = ENTRY_HEAD + 8 + 70;
        assert_eq!(newest_within(&entries, 3 * size + 1), &entries[7..]);
        assert_eq!(newest_within(&entries, usize::MAX), &entries[..]);
        assert!(newest_within(&entries, 1).is_empty());
    }
}
