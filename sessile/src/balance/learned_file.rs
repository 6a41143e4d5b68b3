//! The file with the learned table, written on a drain and read at the next start.
//!
//! The file is not sealed. Session IDs cross the network in clear, and the file has only hashes of tickets. A
//! program that can write to the state folder can lead clients to the wrong server. That costs a client a full
//! handshake.
//!
//! ```text
//! magic | checksum 32 | servers u32 | { server u32 | address length u8 | address, as text }… | learned table
//! ```
//!
//! The checksum is SHA-256 of all bytes after it. Files of an earlier version have another magic and no checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use sessile_proto::Time;
use sessile_proto::affinity::Affinity;

use crate::config::Config;
use crate::state_file::{self, TakeError};

const MAGIC: &[u8; 18] = b"sessile learned 3\n";

/// The magic of files without a checksum.
const MAGIC_2: &[u8; 18] = b"sessile learned 2\n";

/// Most bytes that are read from the file, enough for millions of entries.
const MAX_BYTES: u64 = 1 << 30;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
enum LearnedFileError {
    #[error(transparent)]
    Taken(#[from] TakeError),
    #[error("this version of sessile does not know the file's format")]
    Format,
    #[error("the file does not match its checksum: it was cut or damaged")]
    Damaged,
}

/// The file of one balancer.
pub(super) struct LearnedFile {
    path: PathBuf,
}

impl LearnedFile {
    /// `None` if `session.snapshot` is off.
    pub(super) fn new(config: &Config) -> Option<Self> {
        let server = &config.server;
        config.session.snapshot.then(|| Self {
            path: state_file::path(&server.state_dir, "learned", &server.name),
        })
    }

    /// Reads the file into the table, and removes the file. `servers`: each server's id with its current
    /// address.
    ///
    /// Entries of a server are dropped if the server is gone or has another address. No other machine has its
    /// sessions.
    pub(super) fn restore(
        &self,
        affinity: &mut Affinity,
        servers: impl Iterator<Item = (u32, SocketAddr)>,
        now: Time,
    ) {
        let file = self.path.display();
        let restored = take(&self.path).and_then(|bytes| {
            let Some(bytes) = bytes else { return Ok(None) };
            let entries = import(&bytes, affinity, servers, now);
            entries.map(Some).ok_or(LearnedFileError::Format)
        });
        match restored {
            Ok(None) => {}
            Ok(Some(entries)) => {
                tracing::info!(%file, entries, "restored the learned sessions of the last drain");
            }
            Err(error) => tracing::warn!(%file, %error, "the learned sessions are lost"),
        }
    }

    /// Writes the table to the file, unless the table is empty.
    pub(super) fn save(
        &self,
        affinity: &Affinity,
        servers: impl Iterator<Item = (u32, SocketAddr)>,
    ) {
        let entries = affinity.entries();
        if entries == 0 {
            return;
        }
        let file = self.path.display();
        let bytes = [encode_addresses(servers), affinity.export()].concat();
        let written = state_file::replace(&self.path, |file| {
            file.write_all(MAGIC)?;
            file.write_all(checksum(&bytes).as_ref())?;
            file.write_all(&bytes)
        });
        match written {
            Ok(()) => {
                tracing::info!(%file, entries, "saved the learned sessions for the next start")
            }
            Err(error) => tracing::warn!(
                %file, %error,
                "cannot save the learned sessions for the next start: their clients pay a full handshake"
            ),
        }
    }
}

fn encode_addresses(servers: impl Iterator<Item = (u32, SocketAddr)>) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    let mut count = 0_u32;
    for (server, address) in servers {
        let text = address.to_string();
        bytes.extend_from_slice(&server.to_be_bytes());
        bytes.push(text.len() as u8);
        bytes.extend_from_slice(text.as_bytes());
        count += 1;
    }
    bytes[..4].copy_from_slice(&count.to_be_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

/// Reads the file's bytes after the checksum. Returns the number of entries; `None` if the format is wrong.
fn import(
    bytes: &[u8],
    affinity: &mut Affinity,
    servers: impl Iterator<Item = (u32, SocketAddr)>,
    now: Time,
) -> Option<usize> {
    let addresses_now: BTreeMap<u32, String> = servers
        .map(|(server, address)| (server, address.to_string()))
        .collect();
    let (count, mut rest) = bytes.split_first_chunk()?;
    let mut unmoved = BTreeSet::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (server, tail) = rest.split_first_chunk()?;
        let (&length, tail) = tail.split_first()?;
        let (address, tail) = tail.split_at_checked(length.into())?;
        let server = u32::from_be_bytes(*server);
        let address_now = addresses_now.get(&server);
        if address_now.is_some_and(|now| now.as_bytes() == address) {
            unmoved.insert(server);
        }
        rest = tail;
    }
    let entries = affinity.import(rest, now)?;
    Some(entries - affinity.forget_servers(|server| !unmoved.contains(&server)))
}

/// Removes the file and returns the bytes after the checksum. `None` if there is no file.
fn take(path: &Path) -> Result<Option<Vec<u8>>, LearnedFileError> {
    let Some(mut file) = state_file::take(path, MAX_BYTES)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(TakeError::Io)?;
    let (magic, mut rest) = bytes.split_first_chunk().ok_or(LearnedFileError::Damaged)?;
    if magic == MAGIC {
        let (sum, after) = rest
            .split_at_checked(digest::SHA256_OUTPUT_LEN)
            .ok_or(LearnedFileError::Damaged)?;
        if sum != checksum(after).as_ref() {
            return Err(LearnedFileError::Damaged);
        }
        rest = after;
    } else if magic != MAGIC_2 {
        return Err(LearnedFileError::Format);
    }
    Ok(Some(rest.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use sessile_proto::affinity::AffinityKey;
    use sessile_proto::session::Limits;

    use super::*;

    const NOW: Time = Time::from_unix_millis(0);

    fn affinity() -> Affinity {
        let limits = Limits {
            max_entries: 10,
            lifetime: Duration::from_secs(1),
        };
        Affinity::new(limits, 1)
    }

    fn key(server: u32) -> AffinityKey {
        AffinityKey::session_id(&server.to_be_bytes()).unwrap()
    }

    /// The file of servers 1, 2 and so on at these addresses, with one session each.
    fn exported(addresses: &[&str]) -> Vec<u8> {
        let mut affinity = affinity();
        for server in 1..=addresses.len() as u32 {
            let source = IpAddr::from([192, 0, 2, 1]);
            affinity.learn(key(server), server, source, NOW, NOW);
        }
        [encode_addresses(at(addresses)), affinity.export()].concat()
    }

    fn at<'a>(addresses: &'a [&str]) -> impl Iterator<Item = (u32, SocketAddr)> + 'a {
        let addresses = addresses.iter();
        (1..).zip(addresses.map(|address| address.parse().unwrap()))
    }

    #[test]
    fn entries_of_a_server_at_another_address_are_dropped() {
        let bytes = exported(&[
            "10.0.0.1:443",
            "10.0.0.2:443",
            "[2001:db8::1]:443",
            "10.0.0.4:1",
        ]);
        let mut affinity = affinity();
        let now = at(&["10.0.0.1:443", "10.0.0.9:443", "[2001:db8::1]:443"]);
        assert_eq!(import(&bytes, &mut affinity, now, NOW), Some(2));
        let known = [1, 2, 3, 4].map(|server| affinity.lookup(key(server), NOW).is_some());
        assert_eq!(known, [true, false, true, false]);
    }

    #[test]
    fn a_truncated_file_is_not_read() {
        let servers = ["10.0.0.1:443", "10.0.0.2:443"];
        let bytes = exported(&servers);
        for end in 0..encode_addresses(at(&servers)).len() {
            let mut affinity = affinity();
            let entries = import(&bytes[..end], &mut affinity, at(&servers), NOW);
            assert_eq!(entries, None, "{end}");
            assert_eq!(affinity.entries(), 0);
        }
    }

    fn learned_file(folder: &Path) -> LearnedFile {
        LearnedFile {
            path: folder.join("learned"),
        }
    }

    fn restored(file: &LearnedFile, addresses: &[&str]) -> usize {
        let mut affinity = affinity();
        file.restore(&mut affinity, at(addresses), NOW);
        affinity.entries()
    }

    #[test]
    fn a_file_with_a_changed_or_missing_byte_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = learned_file(folder.path());
        let servers = ["10.0.0.1:443", "10.0.0.2:443"];
        let mut affinity = affinity();
        assert!(import(&exported(&servers), &mut affinity, at(&servers), NOW).is_some());
        file.save(&affinity, at(&servers));
        let whole = std::fs::read(&file.path).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                std::fs::write(&file.path, changed).unwrap();
                assert_eq!(restored(&file, &servers), 0, "{at} {bit}");
            }
            std::fs::write(&file.path, &whole[..at]).unwrap();
            assert_eq!(restored(&file, &servers), 0, "{at}");
        }
        std::fs::write(&file.path, whole).unwrap();
        assert_eq!(restored(&file, &servers), 2);
    }

    #[test]
    fn a_file_of_the_version_before_checksums_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = learned_file(folder.path());
        let servers = ["10.0.0.1:443", "10.0.0.2:443"];
        let bytes = [MAGIC_2.as_slice(), &exported(&servers)].concat();
        std::fs::write(&file.path, bytes).unwrap();
        assert_eq!(restored(&file, &servers), 2);
    }
}
