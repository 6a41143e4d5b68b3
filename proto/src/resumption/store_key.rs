//! The key under which a session is stored.

use std::fmt;

use crate::ticket::Id;

/// The bytes that a client presents, after one byte for the kind.
///
/// So a TLS 1.2 session ID that was read on the wire is no key of a TLS 1.3 session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreKey {
    bytes: [u8; Self::MAX_LEN],
    len: u8,
}

impl StoreKey {
    /// Most bytes of a key: one for the kind and 32 for a session ID or an identity.
    const MAX_LEN: usize = 33;

    const SESSION_ID: u8 = 0x12;
    const TICKET: u8 = 0x13;
    const SINGLE_USE: u8 = 0x30;

    /// The key of a TLS 1.2 session ID; `None` if the ID is empty or longer than 32 bytes.
    #[must_use]
    pub fn session_id(id: &[u8]) -> Option<Self> {
        (1..Self::MAX_LEN)
            .contains(&id.len())
            .then(|| Self::new(Self::SESSION_ID, id))
    }

    /// The key of a stored TLS 1.2 ticket or TLS 1.3 identity.
    #[must_use]
    pub fn stored(id: &Id) -> Self {
        Self::new(Self::TICKET, id)
    }

    /// The key of a TLS 1.3 session that can bring early data once. `None` if the identity does not
    /// have 32 bytes.
    #[must_use]
    pub fn single_use(identity: &[u8]) -> Option<Self> {
        (identity.len() + 1 == Self::MAX_LEN).then(|| Self::new(Self::SINGLE_USE, identity))
    }

    /// True if the session can be used only once. The shared store decides whether it was used, so
    /// the session is in no table and in no snapshot.
    #[must_use]
    pub const fn is_single_use(&self) -> bool {
        self.bytes[0] == Self::SINGLE_USE
    }

    /// The kind, and the bytes that the client presents.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }

    fn new(kind: u8, id: &[u8]) -> Self {
        let mut bytes = [0; Self::MAX_LEN];
        bytes[0] = kind;
        bytes[1..=id.len()].copy_from_slice(id);
        Self {
            bytes,
            len: id.len() as u8 + 1,
        }
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A session ID is no secret, but 33 bytes are too much for a log line.
        let [kind, a, b, c, d, ..] = self.bytes;
        write!(f, "StoreKey({kind:02x}:{a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_as_session_id_and_as_identity_are_two_keys() {
        let id = [7; 32];
        let session_id = StoreKey::session_id(&id).unwrap();
        let single_use = StoreKey::single_use(&id).unwrap();
        assert_ne!(session_id.as_bytes(), single_use.as_bytes());
        assert!(single_use.is_single_use() && !session_id.is_single_use());
        assert!(!StoreKey::stored(&[7; 16]).is_single_use());
    }

    #[test]
    fn other_lengths_name_nothing() {
        assert_eq!(StoreKey::session_id(&[]), None);
        assert_eq!(StoreKey::session_id(&[1; 33]), None);
        assert_eq!(StoreKey::single_use(&[1; 31]), None);
        assert_eq!(StoreKey::single_use(&[1; 33]), None);
        let shortest = StoreKey::session_id(&[1]).unwrap();
        assert_eq!(shortest.as_bytes(), [StoreKey::SESSION_ID, 1]);
    }

    #[test]
    fn a_log_line_shows_the_first_bytes() {
        let key = StoreKey::session_id(&[0xab; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "StoreKey(12:abababab..)");
    }
}
