//! A session as it lies in a shared store: under a name that does not tell its identifier, sealed
//! under the farm key for that name alone; and what is left of it when it was removed.

use aws_lc_rs::digest;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::session::Gone;
use sessile_proto::verdict::Reason;

use super::Key;

/// First byte of a tombstone; no sealed entry begins with it.
const TOMBSTONE: u8 = 0;

/// Reasons that a tombstone can give, and their bytes. What was evicted or has expired leaves none:
/// the store forgets it by itself.
const REASONS: [(Gone, u8); 4] = [
    (Gone::Purged, 1),
    (Gone::Spent, 2),
    (Gone::Revoked, 3),
    (Gone::NotClosedCleanly, 4),
];

/// An entry's name in the store: `sessile:<scope>:<hash of the key>`.
pub(super) struct Name {
    text: String,
    hash: [u8; digest::SHA256_OUTPUT_LEN],
    single_use: bool,
}

impl Name {
    /// The name of a key in the farm of that scope.
    pub(super) fn new(scope: &str, key: &Key) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"sessile1 name");
        context.update(&(scope.len() as u64).to_be_bytes());
        context.update(scope.as_bytes());
        context.update(key.as_bytes());
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(context.finish().as_ref());
        let mut text = String::with_capacity(scope.len() + 9 + 2 * hash.len());
        text.push_str("sessile:");
        text.push_str(scope);
        text.push(':');
        for byte in hash {
            for digit in [byte >> 4, byte & 0xf] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        Self {
            text,
            hash,
            single_use: key.is_single_use(),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Seals a session for the store; `None` where nothing can be sealed now.
pub(super) fn seal(schedule: &Schedule, name: &Name, envelope: &[u8]) -> Option<Vec<u8>> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).ok()?;
    sealed::seal(schedule, Purpose::Store, salt, &name.hash, envelope)
}

/// What is put in the place of an entry that was removed for that reason.
pub(super) fn tombstone(why: Gone) -> Option<[u8; 2]> {
    let known = REASONS.into_iter().find(|(gone, _)| *gone == why);
    known.map(|(_, byte)| [TOMBSTONE, byte])
}

/// Reads what lies under a name: a session's envelope, or why there is none.
pub(super) fn open(schedule: &Schedule, name: &Name, value: &[u8]) -> Result<Vec<u8>, Opened> {
    if let [TOMBSTONE, byte] = *value {
        let known = REASONS.into_iter().find(|(_, known)| *known == byte);
        let gone = known.map(|(gone, _)| gone);
        return Err(gone.map_or(Opened::Bad(Reason::OldFormat), Opened::Gone));
    }
    let sealed = match name.single_use {
        true => split_node(value).map(|(_, sealed)| sealed),
        false => Some(value),
    };
    let sealed = sealed.ok_or(Opened::Bad(Reason::OldFormat))?;
    sealed::open(schedule, Purpose::Store, &name.hash, sealed).map_err(Opened::Bad)
}

/// Whether an entry for single use was stored by that node of the store: `length 1 | node | sealed`.
///
/// In clear, because the node itself has to write it. Whoever could forge it writes to the store, and
/// could as well put the entry back.
pub(super) fn was_stored_by(value: &[u8], node: &[u8]) -> bool {
    !node.is_empty() && split_node(value).is_some_and(|(by, _)| by == node)
}

fn split_node(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = value.split_first()?;
    rest.split_at_checked(len.into())
}

/// Why there is no session in what lies under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// There was, and it was removed.
    Gone(Gone),
    /// It is not what a server of this farm has put there, or not in this version.
    Bad(Reason),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;
    use crate::key::Keyring;

    fn schedule() -> std::sync::Arc<Schedule> {
        let keys = Keyring::ephemeral(Duration::from_secs(3600)).unwrap();
        keys.schedule(clock::now())
    }

    fn name(id: &[u8]) -> Name {
        Name::new("farm", &Key::session_id(id).unwrap())
    }

    #[test]
    fn an_entry_opens_under_its_own_name_only() {
        let schedule = schedule();
        let (mine, yours) = (name(b"mine"), name(b"yours"));
        let entry = seal(&schedule, &mine, b"envelope").unwrap();
        assert_eq!(open(&schedule, &mine, &entry).unwrap(), b"envelope");
        let bad = Err(Opened::Bad(Reason::BadTicket));
        assert_eq!(open(&schedule, &yours, &entry), bad);
        let other_farm = Name::new("fan", &Key::session_id(b"mine").unwrap());
        assert_eq!(open(&schedule, &other_farm, &entry), bad);
    }

    #[test]
    fn a_name_tells_the_farm_and_not_the_identifier() {
        let one = name(b"identifier");
        assert!(one.as_str().starts_with("sessile:farm:"));
        assert_eq!(one.as_str().len(), "sessile:farm:".len() + 64);
        assert!(!one.as_str().contains("identifier"));
        let stored = Key::stored(&[b'a'; 16]);
        let session_id = Key::session_id(&[b'a'; 16]).unwrap();
        let names = [stored, session_id].map(|key| Name::new("farm", &key).hash);
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn an_entry_for_single_use_says_which_node_took_it() {
        let schedule = schedule();
        let name = Name::new("farm", &Key::single_use(&[7; 32]).unwrap());
        let stored_by = |node: &[u8]| {
            let entry = seal(&schedule, &name, b"envelope").unwrap();
            [&[node.len() as u8], node, &entry].concat()
        };
        let entry = stored_by(b"node");
        assert_eq!(open(&schedule, &name, &entry).unwrap(), b"envelope");
        assert!(was_stored_by(&entry, b"node"));
        for other in [&b"nod"[..], b"nodes", b"edon", b""] {
            assert!(!was_stored_by(&entry, other));
        }
        // A store that does not tell is no witness.
        let unsigned = stored_by(b"");
        assert_eq!(open(&schedule, &name, &unsigned).unwrap(), b"envelope");
        assert!(!was_stored_by(&unsigned, b""));
        for cut in 0..entry.len() {
            open(&schedule, &name, &entry[..cut]).unwrap_err();
        }
    }

    #[test]
    fn a_session_id_means_nothing_as_an_identity_for_single_use() {
        let id = [b'a'; 32];
        let keys = [Key::session_id(&id).unwrap(), Key::single_use(&id).unwrap()];
        let [session_id, single_use] = keys.map(|key| Name::new("farm", &key).hash);
        assert_ne!(session_id, single_use);
        assert!(!keys[0].is_single_use() && keys[1].is_single_use());
        assert!(Key::single_use(&id[1..]).is_none());
    }

    #[test]
    fn a_tombstone_says_why_and_anything_else_is_bad() {
        let (schedule, name) = (schedule(), name(b"x"));
        for (gone, _) in REASONS {
            let tombstone = tombstone(gone).unwrap();
            assert_eq!(open(&schedule, &name, &tombstone), Err(Opened::Gone(gone)));
        }
        assert_eq!(tombstone(Gone::Evicted), None);
        for value in [&b""[..], &[0], &[0, 99], &[0, 1, 2], b"hello", &[0x10; 41]] {
            let opened = open(&schedule, &name, value);
            assert!(matches!(opened, Err(Opened::Bad(_))), "{value:?}");
        }
    }
}
