//! An entry of the shared store: its key, which hides the session's identifier, and its sealed value.
//!
//! The value is sealed under the farm key, and opens only with the Redis key that it was sealed for. A
//! removed entry leaves a tombstone.

use aws_lc_rs::digest;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::resumption::StoreKey;
use sessile_proto::sealed;
use sessile_proto::session::Gone;
use sessile_proto::verdict::Reason;

/// First byte of a tombstone. A tombstone has two bytes, and every sealed entry is longer.
const TOMBSTONE: u8 = 0;

/// The reasons that have a tombstone, and their bytes. The store itself forgets evicted and expired entries.
const REASONS: [(Gone, u8); 4] = [
    (Gone::Purged, 1),
    (Gone::Spent, 2),
    (Gone::Revoked, 3),
    (Gone::NotClosedCleanly, 4),
];

/// Digits of the hash that name the partition of a single-use entry: one of 4,096.
const PARTITION_DIGITS: usize = 3;

/// How long a partition is marked after a look-up that found no entry, in seconds.
///
/// After that time, every server rejects early data of the ClientHello that caused the look-up as too old.
/// Clocks may differ by ten seconds.
pub(super) const MISS_MARK_SECONDS: u64 = 20;

/// The result of a look-up in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum StoreLookup {
    /// The session's envelope.
    Found(Vec<u8>),
    /// A server of the farm removed the session.
    Removed(Gone),
    /// No entry and no tombstone.
    Missing,
    /// The store gave no answer, or the entry does not open.
    Unusable(Reason),
}

/// The key of an entry in the store: `sessile:<scope>:<hash>`.
///
/// For a single-use entry, the first digits of the hash are in braces. These digits name the entry's partition,
/// which is on one node of a cluster.
pub(super) struct RedisKey {
    text: String,
    hash: [u8; digest::SHA256_OUTPUT_LEN],
    is_single_use: bool,
}

impl RedisKey {
    /// The key of a session in the farm with that scope.
    pub(super) fn new(scope: &str, key: &StoreKey) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"sessile1 name");
        context.update(&(scope.len() as u64).to_be_bytes());
        context.update(scope.as_bytes());
        context.update(key.as_bytes());
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(context.finish().as_ref());
        let is_single_use = key.is_single_use();
        let mut text = String::with_capacity(scope.len() + 11 + 2 * hash.len());
        text.push_str("sessile:");
        text.push_str(scope);
        text.push(':');
        let digits = hash.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        for (n, digit) in digits.enumerate() {
            match n {
                0 if is_single_use => text.push('{'),
                PARTITION_DIGITS if is_single_use => text.push('}'),
                _ => {}
            }
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
        Self {
            text,
            hash,
            is_single_use,
        }
    }

    /// The key of the mark of a single-use entry's partition.
    pub(super) fn partition(&self) -> &str {
        let rest = 2 * self.hash.len() - PARTITION_DIGITS;
        &self.text[..self.text.len() - rest]
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Seals a session for the store. `None` if nothing can be sealed now.
pub(super) fn seal(schedule: &Schedule, key: &RedisKey, envelope: &[u8]) -> Option<Vec<u8>> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).ok()?;
    sealed::seal(schedule, Purpose::Store, salt, &key.hash, envelope)
}

/// The tombstone of an entry that was removed for that reason.
pub(super) fn tombstone(why: Gone) -> Option<[u8; 2]> {
    let known = REASONS.into_iter().find(|(gone, _)| *gone == why);
    known.map(|(_, byte)| [TOMBSTONE, byte])
}

/// Reads the value of a key.
pub(super) fn open(schedule: &Schedule, key: &RedisKey, value: &[u8]) -> StoreLookup {
    if let [TOMBSTONE, byte] = *value {
        let known = REASONS.into_iter().find(|(_, known)| *known == byte);
        return known.map_or(StoreLookup::Unusable(Reason::OldFormat), |(gone, _)| {
            StoreLookup::Removed(gone)
        });
    }
    let sealed = if key.is_single_use {
        split_stamp(value).map(|(_, sealed)| sealed)
    } else {
        Some(value)
    };
    let opened = sealed
        .ok_or(Reason::OldFormat)
        .and_then(|sealed| sealed::open(schedule, Purpose::Store, &key.hash, sealed));
    opened.map_or_else(StoreLookup::Unusable, StoreLookup::Found)
}

/// True if no server can have been given a single-use entry before, and no earlier hello asked for it.
///
/// `stamp` is from the node that gives the entry out. `is_marked` is true if a recent look-up in the partition
/// found no entry.
pub(super) fn is_certain(value: &[u8], stamp: &[u8], is_marked: bool) -> bool {
    // The node that stored the entry wrote its own stamp before the sealed part: `length 1 | stamp | sealed`.
    // Only a writer to the store can forge a stamp. Such a writer could also put back a consumed entry.
    let stored = split_stamp(value).and_then(|(stamp, _)| parse_stamp(stamp));
    let (Some((stored_by, then)), Some((node, now))) = (stored, parse_stamp(stamp)) else {
        return false;
    };
    // `then` and `now` are whole seconds of one clock, rounded down. So a difference of 20 can be a shorter
    // time.
    stored_by == node && (!is_marked || now.saturating_sub(then) > MISS_MARK_SECONDS)
}

/// The node and the seconds of its clock, from `<node> <seconds>`.
fn parse_stamp(stamp: &[u8]) -> Option<(&[u8], u64)> {
    let space = stamp.iter().rposition(|&byte| byte == b' ')?;
    let (node, seconds) = (&stamp[..space], &stamp[space + 1..]);
    let seconds = std::str::from_utf8(seconds).ok()?.parse().ok()?;
    (!node.is_empty()).then_some((node, seconds))
}

/// The node's stamp and the sealed part of a single-use entry.
fn split_stamp(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = value.split_first()?;
    rest.split_at_checked(len.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock;
    use crate::key::Keyring;

    fn schedule() -> Arc<Schedule> {
        let keys = Keyring::ephemeral(Duration::from_secs(3600)).unwrap();
        keys.schedule(clock::now())
    }

    fn key(id: &[u8]) -> RedisKey {
        RedisKey::new("farm", &StoreKey::session_id(id).unwrap())
    }

    fn found(envelope: &[u8]) -> StoreLookup {
        StoreLookup::Found(envelope.to_vec())
    }

    #[test]
    fn an_entry_opens_under_its_own_key_only() {
        let schedule = schedule();
        let (mine, yours) = (key(b"mine"), key(b"yours"));
        let entry = seal(&schedule, &mine, b"envelope").unwrap();
        assert_eq!(open(&schedule, &mine, &entry), found(b"envelope"));
        let bad = StoreLookup::Unusable(Reason::BadTicket);
        assert_eq!(open(&schedule, &yours, &entry), bad);
        let other_farm = RedisKey::new("fan", &StoreKey::session_id(b"mine").unwrap());
        assert_eq!(open(&schedule, &other_farm, &entry), bad);
    }

    #[test]
    fn a_key_shows_the_farm_and_hides_the_identifier() {
        let one = key(b"identifier");
        assert!(one.as_str().starts_with("sessile:farm:"));
        assert_eq!(one.as_str().len(), "sessile:farm:".len() + 64);
        assert!(!one.as_str().contains("identifier"));
        let stored = StoreKey::stored(&[b'a'; 16]);
        let session_id = StoreKey::session_id(&[b'a'; 16]).unwrap();
        let [stored, session_id] = [stored, session_id].map(|key| RedisKey::new("farm", &key).hash);
        assert_ne!(stored, session_id);
    }

    #[test]
    fn single_use_entries_are_in_few_partitions() {
        let mut partitions = BTreeSet::new();
        for n in 0..10_000_u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            let key = RedisKey::new("farm", &StoreKey::single_use(&id).unwrap());
            let digits = key.partition().strip_prefix("sessile:farm:{").unwrap();
            assert_eq!(digits.len(), PARTITION_DIGITS + 1);
            assert!(key.as_str().starts_with(key.partition()));
            partitions.insert(key.partition().to_owned());
        }
        assert!((3000..=4096).contains(&partitions.len()));
    }

    #[test]
    fn a_single_use_entry_is_certain_only_from_the_node_that_stored_it() {
        let schedule = schedule();
        let key = RedisKey::new("farm", &StoreKey::single_use(&[7; 32]).unwrap());
        let stored_by = |stamp: &[u8]| {
            let entry = seal(&schedule, &key, b"envelope").unwrap();
            [&[stamp.len() as u8], stamp, &entry].concat()
        };
        let entry = stored_by(b"node 100");
        assert_eq!(open(&schedule, &key, &entry), found(b"envelope"));
        assert!(is_certain(&entry, b"node 100", false));
        assert!(is_certain(&entry, b"node 2000", false));
        let others = [
            &b"nod 100"[..],
            b"nodes 100",
            b"node",
            b"node ",
            b"",
            b" 100",
        ];
        for other in others {
            assert!(!is_certain(&entry, other, false));
        }
        // A store that reports no identity makes no entry certain.
        for stamp in [&b""[..], b" 100", b"node"] {
            let entry = stored_by(stamp);
            assert_eq!(open(&schedule, &key, &entry), found(b"envelope"));
            assert!(!is_certain(&entry, stamp, false));
        }
        for cut in 0..entry.len() {
            let opened = open(&schedule, &key, &entry[..cut]);
            assert!(matches!(opened, StoreLookup::Unusable(_)), "{cut}");
        }
    }

    #[test]
    fn an_entry_that_is_too_young_is_not_certain_in_a_marked_partition() {
        let entry = b"\x08node 100sealed";
        for (now, is_old_enough) in [("100", false), ("120", false), ("121", true), ("99", false)] {
            let stamp = format!("node {now}");
            assert_eq!(
                is_certain(entry, stamp.as_bytes(), true),
                is_old_enough,
                "{now}"
            );
            assert!(is_certain(entry, stamp.as_bytes(), false));
        }
    }

    #[test]
    fn a_session_id_and_a_single_use_identity_have_different_keys() {
        let id = [b'a'; 32];
        let keys = [
            StoreKey::session_id(&id).unwrap(),
            StoreKey::single_use(&id).unwrap(),
        ];
        let [session_id, single_use] = keys.map(|key| RedisKey::new("farm", &key).hash);
        assert_ne!(session_id, single_use);
        assert!(!keys[0].is_single_use() && keys[1].is_single_use());
        assert!(StoreKey::single_use(&id[1..]).is_none());
    }

    #[test]
    fn a_tombstone_has_its_reason_and_other_values_are_unusable() {
        let (schedule, key) = (schedule(), key(b"x"));
        for (gone, _) in REASONS {
            let tombstone = tombstone(gone).unwrap();
            assert_eq!(
                open(&schedule, &key, &tombstone),
                StoreLookup::Removed(gone)
            );
        }
        assert_eq!(tombstone(Gone::Evicted), None);
        for value in [&b""[..], &[0], &[0, 99], &[0, 1, 2], b"hello", &[0x10; 41]] {
            let opened = open(&schedule, &key, value);
            assert!(matches!(opened, StoreLookup::Unusable(_)), "{value:?}");
        }
    }
}
