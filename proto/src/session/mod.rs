//! The session table: first in, first out, bounded in number and in time. It holds bytes under
//! keys and says of keys that it no longer holds why, as far as it remembers. It knows nothing of
//! TLS, of clocks or of threads.

mod ghost;
mod hash;
mod index;
mod log;
mod part;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::hash::{Hashed, Hasher};
pub use self::part::Part;
pub use self::table::Table;

use crate::Time;
use crate::verdict::Reason;

/// Most bytes of a key.
pub const MAX_KEY: usize = 64;

/// Most bytes of a value.
pub const MAX_VALUE: usize = u16::MAX as usize;

/// How large a table gets and how old its entries. Either at zero disables it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries; the oldest leaves first.
    pub max_entries: usize,
    /// Longest life of an entry, counted from `established`.
    pub lifetime: Duration,
}

impl Limits {
    /// Whether nothing is ever stored.
    #[must_use]
    pub const fn disabled(&self) -> bool {
        self.max_entries == 0 || self.lifetime.is_zero()
    }
}

/// Why an entry is no longer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gone {
    /// Pushed out by newer ones.
    Evicted,
    /// Older than the lifetime.
    Expired,
    /// Removed with its connection (`connection.purge-on-reclaim`).
    Purged,
    /// Single use, and used.
    Spent,
    /// Forgotten on request, or its key generation ended.
    Revoked,
    /// Its connection ended without close_notify (`session.require-close-notify`).
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

/// What looking for a key found; `V` is the value, borrowed or owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<V> {
    /// The entry's value.
    Found(V),
    /// It was there once.
    Gone(Gone),
    /// Never seen, or too long ago to say.
    Unknown,
    /// The limits allow no entries at all.
    Disabled,
}

impl<V> Lookup<V> {
    /// The value, where there is one.
    pub fn found(self) -> Option<V> {
        match self {
            Self::Found(value) => Some(value),
            _ => None,
        }
    }

    /// The same outcome with another form of the value.
    pub fn map<W>(self, f: impl FnOnce(V) -> W) -> Lookup<W> {
        match self {
            Self::Found(value) => Lookup::Found(f(value)),
            Self::Gone(gone) => Lookup::Gone(gone),
            Self::Unknown => Lookup::Unknown,
            Self::Disabled => Lookup::Disabled,
        }
    }
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is in the table.
    Stored {
        /// Whether the oldest entry had to leave for it.
        evicted: bool,
    },
    /// The limits allow no entries at all.
    Disabled,
    /// The key is longer than [`MAX_KEY`] or the value than [`MAX_VALUE`].
    TooLarge,
    /// Its lifetime is over already.
    AlreadyExpired,
}

/// An entry, as [`Table::iter`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it is found by.
    pub key: &'a [u8],
    /// What was stored.
    pub value: &'a [u8],
    /// When its full handshake was; never later than its insertion.
    pub established: Time,
    /// Rises with each insertion.
    pub sequence: u64,
}

/// What happened in a table since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries there are now.
    pub entries: usize,
    /// Insertions that stored something.
    pub inserted: u64,
    /// Insertions that took the place of an entry with the same key.
    pub replaced: u64,
    /// Entries that left for newer ones.
    pub evicted: u64,
    /// Entries that were found too old.
    pub expired: u64,
    /// Entries that were removed or taken.
    pub removed: u64,
    /// Look-ups that found an entry.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
}

impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.inserted += other.inserted;
        self.replaced += other.replaced;
        self.evicted += other.evicted;
        self.expired += other.expired;
        self.removed += other.removed;
        self.hits += other.hits;
        self.misses += other.misses;
    }
}
