//! Entries for a single use: the scripts that store them and give them out.
//!
//! Before a server accepts early data, it must know that no other server got the entry. So the scripts record
//! which node stored the entry, and report which node gives it out. In a cluster and behind a proxy, a script
//! runs on the node that has the key. A transaction (MULTI) does not guarantee this.

use redis::{Cmd, Value};
use sessile_proto::keys::Schedule;
use sessile_proto::session::Gone;
use sessile_proto::verdict::Reason;

use super::entry::{self, RedisKey, StoreLookup};

/// Reads the node's identity: its process (`run_id`), its data (`master_replid`) and its clock.
///
/// The result is empty unless the store reports all of these.
macro_rules! node_stamp {
    () => {
        "local said = redis.call('INFO', 'server') .. redis.call('INFO', 'replication') \
         local run, data = said:match('run_id:(%x+)'), said:match('master_replid:(%x+)') \
         local seconds = said:match('uptime_in_seconds:(%d+)') \
         local node = run and data and seconds and run .. data .. ' ' .. seconds or '' "
    };
}

/// Stores the stamp of the node, followed by an entry, if the key is free.
///
/// A retried request must not bring back an entry that was consumed meanwhile.
const PUT: &str = concat!(
    node_stamp!(),
    "return redis.call('SET', KEYS[1], string.char(#node) .. node .. ARGV[1], 'NX', 'PX', ARGV[2])"
);

/// Returns an entry, and replaces it with a tombstone that keeps the expiry time of the entry.
///
/// If there is no entry, it may still be on its way to the store. A recorded ClientHello could then be replayed
/// when the entry has arrived. The script cannot tell such a ClientHello from a made-up one. The script
/// therefore marks the partition of the key for [`entry::MISS_MARK_SECONDS`]. Meanwhile, servers reject early
/// data with entries of the partition that are not older than the mark's lifetime ([`entry::is_certain`]).
/// There are never more marks than partitions, so made-up ClientHellos cannot fill the store.
const CONSUME: &str = concat!(
    "local held = redis.call('GET', KEYS[1]) \
     if not held then redis.call('SET', KEYS[2], '', 'EX', ARGV[2]) return {held, '', 0} end \
     local missed = redis.call('GET', KEYS[2]) and 1 or 0 \
     if #held > #ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL') end ",
    node_stamp!(),
    "return {held, node, missed}"
);

/// The answer to [`consume`].
pub(in crate::store) struct ConsumedEntry {
    pub(in crate::store) lookup: StoreLookup,
    /// True if no server can have been given the entry before.
    pub(in crate::store) is_certain: bool,
}

impl ConsumedEntry {
    /// An entry that cannot be used for that reason.
    pub(super) const fn unusable(reason: Reason) -> Self {
        Self::uncertain(StoreLookup::Unusable(reason))
    }

    const fn uncertain(lookup: StoreLookup) -> Self {
        Self {
            lookup,
            is_certain: false,
        }
    }

    /// Reads the answer of the store.
    pub(super) fn read(schedule: &Schedule, key: &RedisKey, answer: &Value) -> Self {
        let Value::Array(parts) = answer else {
            return Self::unusable(Reason::OldFormat);
        };
        match parts.as_slice() {
            [Value::Nil, ..] => Self::uncertain(StoreLookup::Missing),
            [
                Value::BulkString(entry),
                Value::BulkString(stamp),
                Value::Int(is_marked),
            ] => Self {
                lookup: entry::open(schedule, key, entry),
                is_certain: entry::is_certain(entry, stamp, *is_marked != 0),
            },
            _ => Self::unusable(Reason::OldFormat),
        }
    }
}

/// The command that stores an entry for `life` milliseconds.
pub(super) fn put(key: &RedisKey, entry: &[u8], life: u64) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(PUT).arg(1).arg(key.as_str());
    command.arg(entry).arg(life);
    command
}

/// The command that takes an entry out of the store.
pub(super) fn consume(key: &RedisKey) -> Cmd {
    let tombstone = entry::tombstone(Gone::Spent).expect("this reason has a tombstone");
    let mut command = redis::cmd("EVAL");
    command.arg(CONSUME).arg(2).arg(key.as_str());
    command.arg(key.partition());
    command.arg(&tombstone[..]).arg(entry::MISS_MARK_SECONDS);
    command
}
