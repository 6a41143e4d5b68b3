//! Where sessions live: the session table of this process. A shared store will stand behind the
//! same calls, which is why they are asynchronous; a handshake waits for them under a deadline and
//! never blocks its thread.

pub mod memory;

use std::sync::Arc;

use sessile_proto::Time;
use sessile_proto::session::{Gone, Limits, Lookup};

use memory::Memory;

/// A session's key: what the client presents, set apart by protocol version, so that a TLS 1.2
/// session ID that was seen on the wire means nothing as a TLS 1.3 identity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl Key {
    const MAX: usize = 33;

    /// A TLS 1.2 session ID; `None` where it is empty or over 32 bytes.
    #[must_use]
    pub fn session_id(id: &[u8]) -> Option<Self> {
        (1..Self::MAX)
            .contains(&id.len())
            .then(|| Self::new(0x12, id))
    }

    /// The identifier of a stored TLS 1.2 ticket or TLS 1.3 identity.
    #[must_use]
    pub fn stored(id: &sessile_proto::ticket::Id) -> Self {
        Self::new(0x13, id)
    }

    fn new(kind: u8, id: &[u8]) -> Self {
        let mut bytes = [0; Self::MAX];
        bytes[0] = kind;
        bytes[1..=id.len()].copy_from_slice(id);
        Self {
            bytes,
            len: id.len() as u8 + 1,
        }
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A session ID is no secret, and in full it is noise in a log.
        let [kind, a, b, c, d, ..] = self.bytes;
        write!(f, "Key({kind:02x}:{a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// The session store of one server, shared by its threads.
#[derive(Clone)]
pub struct Store {
    memory: Arc<Memory>,
}

impl Store {
    #[must_use]
    pub fn new(settings: &crate::config::Session, seed: u64) -> Self {
        let limits = Limits {
            max_entries: settings.max_entries,
            lifetime: settings.lifetime,
        };
        Self {
            memory: Arc::new(Memory::new(limits, seed)),
        }
    }

    /// Whether sessions are kept at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.memory.disabled()
    }

    /// Looks a session up and leaves it where it is.
    #[expect(
        clippy::unused_async,
        reason = "a shared store answers over the network"
    )]
    pub async fn find(&self, key: &Key, now: Time) -> Lookup<Vec<u8>> {
        self.memory.get(key.as_bytes(), now)
    }

    /// Stores a session; its life counts from `established`.
    #[expect(
        clippy::unused_async,
        reason = "a shared store answers over the network"
    )]
    pub async fn put(&self, key: &Key, envelope: &[u8], established: Time, now: Time) {
        self.memory
            .insert(key.as_bytes(), envelope, established, now);
    }

    /// Removes a session, to be remembered as gone for that reason.
    pub fn remove(&self, key: &Key, why: Gone) -> bool {
        self.memory.remove(key.as_bytes(), why)
    }

    /// The table in front, for its figures.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}
