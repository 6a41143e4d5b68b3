//! What the bytes of a ticket show.

pub(super) use sessile_proto::key_names::LEN as KEY_NAME_LEN;

/// Most bytes of an identity that only names a session in a cache.
const MAX_CACHE_IDENTITY: usize = 64;

/// True if the ticket has no room for a sealed session.
pub(super) const fn names_cached_session(ticket: &[u8]) -> bool {
    ticket.len() <= MAX_CACHE_IDENTITY
}

/// The start of a key name, for people.
pub(super) fn short(name: &str) -> String {
    let start: String = name.chars().take(SHORT_NAME).collect();
    format!("{start}…")
}

/// Characters of a key name that are displayed.
const SHORT_NAME: usize = 8;
