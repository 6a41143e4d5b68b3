//! The file with the learned table, written on a drain and read at the next start.
//!
//! The file is not sealed. Session IDs cross the network in clear, and the file has only hashes of tickets. A
//! program that can write to the state folder can lead clients to the wrong server. That costs a client a full
//! handshake.
//!
//! ```text
//! magic | servers u32 | { server u32 | address length u8 | address, as text }… | learned table
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use sessile_proto::Time;
use sessile_proto::affinity::Affinity;

use crate::config::Config;
use crate::state_file::{self, TakeError};

const MAGIC: &[u8; 18] = b"sessile learned 2\n";

/// Most bytes that are read from the file, enough for millions of entries.
const MAX_BYTES: u64 = 1 << 30;

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
        match take(&self.path) {
            Ok(None) => {}
            Ok(Some(bytes)) => match import(&bytes, affinity, servers, now) {
                Some(entries) => {
                    tracing::info!(%file, entries, "restored the learned sessions of the last drain");
                }
                None => {
                    tracing::warn!(
                        %file,
                        "the learned sessions are lost: this version of sessile does not know the file's format"
                    )
                }
            },
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
        let written = state_file::replace(&self.path, |file| {
            file.write_all(MAGIC)?;
            file.write_all(&encode_addresses(servers))?;
            file.write_all(&affinity.export())
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

/// Reads the file's bytes after the magic. Returns the number of entries; `None` if the format is wrong.
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

fn take(path: &Path) -> Result<Option<Vec<u8>>, TakeError> {
    let Some(mut file) = state_file::take(path, MAX_BYTES)? else {
        return Ok(None);
    };
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(TakeError::Odd);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
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
}
