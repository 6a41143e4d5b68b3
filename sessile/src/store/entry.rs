//! A session as it lies in a shared store: under a name that does not tell its identifier, sealed
//! under the farm key for that name alone; and what is left of it when it was removed.

use aws_lc_rs::digest;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::resumption::StoreKey;
use sessile_proto::sealed;
use sessile_proto::session::Gone;
use sessile_proto::verdict::Reason;

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

/// Digits of the hash that say in which part of the store an entry for single use is: one of 4,096.
const PART_DIGITS: usize = 3;

/// How long an identity that was asked for before its session came brings no early data, in seconds: until
/// the hello that asked is stale at every server, ten seconds off either way.
pub(super) const KEPT_OUT: u64 = 20;

/// An entry's name in the store: `sessile:<scope>:<hash of the key>`; where it is for single use, with
/// braces around the digits of its part, which keep that on one node of a cluster.
pub(super) struct Name {
    text: String,
    hash: [u8; digest::SHA256_OUTPUT_LEN],
    single_use: bool,
}

impl Name {
    /// The name of a key in the farm of that scope.
    pub(super) fn new(scope: &str, key: &StoreKey) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"sessile1 name");
        context.update(&(scope.len() as u64).to_be_bytes());
        context.update(scope.as_bytes());
        context.update(key.as_bytes());
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(context.finish().as_ref());
        let mut text = String::with_capacity(scope.len() + 11 + 2 * hash.len());
        text.push_str("sessile:");
        text.push_str(scope);
        text.push(':');
        let single_use = key.is_single_use();
        let digits = hash.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        for (n, digit) in digits.enumerate() {
            match n {
                0 if single_use => text.push('{'),
                PART_DIGITS if single_use => text.push('}'),
                _ => {}
            }
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
        Self {
            text,
            hash,
            single_use,
        }
    }

    /// The name of an entry's part, which many share.
    pub(super) fn part(&self) -> &str {
        let rest = 2 * self.hash.len() - PART_DIGITS;
        &self.text[..self.text.len() - rest]
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

/// Whether an entry for single use is sure to be unspent, and not to have come after a hello that asked for
/// it. `said` is what the node that gives it out says of itself; `missed`: something in its part of the
/// store was asked for in vain a short while ago.
///
/// What the node said of itself when it took the entry stands before it, in clear, because the node has to
/// write it: `length 1 | node, space, seconds | sealed`. Whoever could forge it writes to the store, and could
/// as well put the entry back.
pub(super) fn was_kept(value: &[u8], said: &[u8], missed: bool) -> bool {
    let stored = split_node(value).and_then(|(by, _)| node_and_time(by));
    let (Some((by, then)), Some((node, now))) = (stored, node_and_time(said)) else {
        return false;
    };
    // Both are whole seconds of one clock, rounded down.
    by == node && (!missed || now.saturating_sub(then) > KEPT_OUT)
}

fn node_and_time(said: &[u8]) -> Option<(&[u8], u64)> {
    let space = said.iter().rposition(|&byte| byte == b' ')?;
    let (node, seconds) = (&said[..space], &said[space + 1..]);
    let seconds = std::str::from_utf8(seconds).ok()?.parse().ok()?;
    (!node.is_empty()).then_some((node, seconds))
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
        Name::new("farm", &StoreKey::session_id(id).unwrap())
    }

    #[test]
    fn an_entry_opens_under_its_own_name_only() {
        let schedule = schedule();
        let (mine, yours) = (name(b"mine"), name(b"yours"));
        let entry = seal(&schedule, &mine, b"envelope").unwrap();
        assert_eq!(open(&schedule, &mine, &entry).unwrap(), b"envelope");
        let bad = Err(Opened::Bad(Reason::BadTicket));
        assert_eq!(open(&schedule, &yours, &entry), bad);
        let other_farm = Name::new("fan", &StoreKey::session_id(b"mine").unwrap());
        assert_eq!(open(&schedule, &other_farm, &entry), bad);
    }

    #[test]
    fn a_name_tells_the_farm_and_not_the_identifier() {
        let one = name(b"identifier");
        assert!(one.as_str().starts_with("sessile:farm:"));
        assert_eq!(one.as_str().len(), "sessile:farm:".len() + 64);
        assert!(!one.as_str().contains("identifier"));
        let stored = StoreKey::stored(&[b'a'; 16]);
        let session_id = StoreKey::session_id(&[b'a'; 16]).unwrap();
        let names = [stored, session_id].map(|key| Name::new("farm", &key).hash);
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn entries_for_single_use_are_in_few_parts_of_the_store() {
        let mut parts = std::collections::BTreeSet::new();
        for n in 0..10_000_u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            let name = Name::new("farm", &StoreKey::single_use(&id).unwrap());
            let digits = name.part().strip_prefix("sessile:farm:{").unwrap();
            assert_eq!(digits.len(), PART_DIGITS + 1);
            assert!(name.as_str().starts_with(name.part()));
            parts.insert(name.part().to_owned());
        }
        assert!((3000..=4096).contains(&parts.len()));
    }

    #[test]
    fn an_entry_for_single_use_says_which_node_took_it() {
        let schedule = schedule();
        let name = Name::new("farm", &StoreKey::single_use(&[7; 32]).unwrap());
        let stored_by = |node: &[u8]| {
            let entry = seal(&schedule, &name, b"envelope").unwrap();
            [&[node.len() as u8], node, &entry].concat()
        };
        let entry = stored_by(b"node 100");
        assert_eq!(open(&schedule, &name, &entry).unwrap(), b"envelope");
        assert!(was_kept(&entry, b"node 100", false));
        assert!(was_kept(&entry, b"node 2000", false));
        for other in [
            &b"nod 100"[..],
            b"nodes 100",
            b"node",
            b"node ",
            b"",
            b" 100",
        ] {
            assert!(!was_kept(&entry, other, false));
        }
        // A store that does not tell is no witness.
        for silent in [&b""[..], b" 100", b"node"] {
            let unsigned = stored_by(silent);
            assert_eq!(open(&schedule, &name, &unsigned).unwrap(), b"envelope");
            assert!(!was_kept(&unsigned, silent, false));
        }
        for cut in 0..entry.len() {
            open(&schedule, &name, &entry[..cut]).unwrap_err();
        }
    }

    #[test]
    fn what_was_asked_for_in_vain_may_have_been_an_entry_that_is_younger() {
        let entry = b"\x08node 100sealed";
        for (now, kept) in [("100", false), ("120", false), ("121", true), ("99", false)] {
            let said = format!("node {now}");
            assert_eq!(was_kept(entry, said.as_bytes(), true), kept, "{now}");
            assert!(was_kept(entry, said.as_bytes(), false));
        }
    }

    #[test]
    fn a_session_id_means_nothing_as_an_identity_for_single_use() {
        let id = [b'a'; 32];
        let keys = [
            StoreKey::session_id(&id).unwrap(),
            StoreKey::single_use(&id).unwrap(),
        ];
        let [session_id, single_use] = keys.map(|key| Name::new("farm", &key).hash);
        assert_ne!(session_id, single_use);
        assert!(!keys[0].is_single_use() && keys[1].is_single_use());
        assert!(StoreKey::single_use(&id[1..]).is_none());
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
