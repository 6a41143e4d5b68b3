//! The session table: a map of bytes to bytes, first in, first out, limited in entries and in lifetime.
//!
//! The table remembers for a while why an entry was removed. It knows nothing of TLS or clocks.

mod ghost;
mod hash;
mod index;
mod log;
mod part;
mod sharded;
#[cfg(test)]
mod tests;

use std::time::Duration;

use strum::FromRepr;

pub(crate) use self::hash::Hasher;
pub(crate) use self::part::Part;
pub use self::sharded::{OwnedEntry, ShardedTable};

use crate::Time;
use crate::verdict::Reason;

/// Longest key, in bytes.
pub const MAX_KEY: usize = 64;

/// Longest value, in bytes.
pub const MAX_VALUE: usize = u16::MAX as usize;

/// The limits of a table. If one limit is zero, the table is disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries. The oldest entry is removed first.
    pub max_entries: usize,
    /// Longest life of an entry, counted from the full handshake.
    pub lifetime: Duration,
}

impl Limits {
    /// True if nothing is ever stored.
    #[must_use]
    pub const fn disabled(&self) -> bool {
        self.max_entries == 0 || self.lifetime.is_zero()
    }
}

/// Why an entry was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromRepr)]
#[repr(u8)]
pub enum Gone {
    /// The table was full, and the entry was the oldest.
    // Never zero, because a zero ghost is an empty place.
    Evicted = 1,
    /// The entry was older than the lifetime.
    Expired,
    /// The connection was reclaimed (`connection.purge-on-reclaim`).
    Purged,
    /// The session was for a single use and was used.
    Spent,
    /// The session was forgotten on request, or the key generation ended.
    Revoked,
    /// The connection ended without close_notify (`session.require-close-notify`).
    NotClosedCleanly,
}

impl From<Gone> for Reason {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Evicted => Self::Evicted,
            Gone::Expired => Self::Expired,
            Gone::Purged => Self::Purged,
            Gone::Spent => Self::Spent,
            Gone::Revoked => Self::Revoked,
            Gone::NotClosedCleanly => Self::NotClosedCleanly,
        }
    }
}

/// The result of a look-up. `V` is the value, borrowed or owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<V> {
    /// The entry's value.
    Found(V),
    /// The entry was removed.
    Gone(Gone),
    /// There is no entry, and no ghost of a removed entry.
    Unknown,
    /// The limits allow no entries at all.
    Disabled,
}

impl<V> Lookup<V> {
    /// Converts the value.
    pub fn map<W>(self, f: impl FnOnce(V) -> W) -> Lookup<W> {
        match self {
            Self::Found(value) => Lookup::Found(f(value)),
            Self::Gone(gone) => Lookup::Gone(gone),
            Self::Unknown => Lookup::Unknown,
            Self::Disabled => Lookup::Disabled,
        }
    }
}

/// The result of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The entry is in the table.
    Stored {
        /// True if the oldest entry was removed to make room.
        evicted: bool,
    },
    /// The limits allow no entries at all.
    Disabled,
    /// The key is longer than [`MAX_KEY`], or the value is longer than [`MAX_VALUE`].
    TooLarge,
    /// The session is older than the lifetime.
    AlreadyExpired,
}

/// An entry, as [`Part::iter`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableEntry<'a> {
    /// The key.
    pub(crate) key: &'a [u8],
    /// The value.
    pub(crate) value: &'a [u8],
    /// The time of the full handshake, or the time of the insertion if the insertion was earlier.
    pub(crate) established: Time,
    /// Rises with each insertion.
    pub(crate) sequence: u64,
}
