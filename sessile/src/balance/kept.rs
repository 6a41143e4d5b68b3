//! What a balancer learned, from its drain to its next start. Not sealed: session IDs pass the network
//! in clear and of tickets there are hashes; whoever can write to the state folder can lead clients
//! to another of the balancer's servers, for a full handshake.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sessile_proto::Time;
use sessile_proto::affinity::Affinity;

use crate::config::Config;
use crate::state_file::{self, TakeError};

const MAGIC: &[u8; 18] = b"sessile learned 1\n";

/// Most bytes that are read: some millions of entries.
const MAX_BYTES: u64 = 1 << 30;

/// The file of one balancer.
pub(super) struct Kept {
    path: PathBuf,
}

impl Kept {
    /// `None` where nothing is to be kept.
    pub(super) fn new(config: &Config) -> Option<Self> {
        let server = &config.server;
        config.session.snapshot.then(|| Self {
            path: state_file::path(&server.state_dir, "learned", &server.name),
        })
    }

    /// Puts back what the last drain left, if it did.
    pub(super) fn restore(&self, affinity: &mut Affinity, now: Time) {
        let file = self.path.display();
        match take(&self.path) {
            Ok(None) => {}
            Ok(Some(bytes)) => match affinity.import(&bytes, now) {
                Some(entries) => {
                    tracing::info!(%file, entries, "what was learned before the last drain is back");
                }
                None => {
                    tracing::warn!(%file, "what was learned is lost: it is not in this version's format")
                }
            },
            Err(error) => tracing::warn!(%file, %error, "what was learned is lost"),
        }
    }

    /// Leaves what is known to the next start. Nothing is no reason to write.
    pub(super) fn save(&self, affinity: &Affinity) {
        let entries = affinity.stats().entries;
        if entries == 0 {
            return;
        }
        let file = self.path.display();
        let written = state_file::replace(&self.path, |file| {
            file.write_all(MAGIC)?;
            file.write_all(&affinity.export())
        });
        match written {
            Ok(()) => tracing::info!(%file, entries, "kept what was learned for the next start"),
            Err(error) => tracing::warn!(
                %file, %error,
                "what was learned cannot be kept for the next start: clients that are known by it pay a full handshake"
            ),
        }
    }
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
