//! Whether early data (0-RTT) may be accepted, decided before the TLS library sees the hello.
//!
//! The library makes further checks. No check replaces the store's statement that the session was not used
//! before (RFC 9846, 8.1).

use std::time::Duration;

use super::store_key::StoreKey;
use crate::Time;
use crate::hello::ClientHello;
use crate::verdict::{Reason, Rejection};

/// Most difference between the age of a session by the client's clock and by ours (RFC 9846, 8.3). The TLS
/// library allows 60 s, so it accepts the age of every session that passes this check.
const MAX_AGE_DIFFERENCE: Duration = Duration::from_secs(10);

/// The request of a hello, before the store was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyDataRequest {
    /// The hello announces no early data.
    None,
    /// Early data is refused, and the store is not asked.
    Refused(Rejection),
    /// The store has to consume this session, the first that the hello offers.
    Consume {
        /// The key of the session.
        key: StoreKey,
        /// The age of the session by the client's clock, obfuscated (RFC 9846, 4.2.11.1).
        obfuscated_age: u32,
    },
}

impl EarlyDataRequest {
    /// Reads the request out of a TLS 1.3 hello. `stored` holds the stored sessions that the hello
    /// names; `is_accepted` is false if the site takes no early data.
    #[must_use]
    pub fn new(hello: &ClientHello<'_>, stored: &[StoreKey], is_accepted: bool) -> Self {
        if !hello.early_data {
            return Self::None;
        }
        let psks = hello.pre_shared_key;
        let first = psks.and_then(|psks| psks.identities().next());
        let Some(first) = first.filter(|_| is_accepted) else {
            return Self::Refused(Rejection::Off);
        };
        match StoreKey::single_use(first.identity).filter(|key| stored.contains(key)) {
            Some(key) => Self::Consume {
                key,
                obfuscated_age: first.obfuscated_ticket_age,
            },
            None if stored.iter().any(StoreKey::is_single_use) => {
                Self::Refused(Rejection::NotFirstIdentity)
            }
            None => Self::Refused(Rejection::Off),
        }
    }
}

/// A session that the store gave out for early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumedSession {
    /// True if the store is certain that no server was given the session before.
    pub is_certain: bool,
    /// The age of the ticket; `None` if unreadable.
    pub age: Option<TicketAge>,
    /// The number of bytes that the client may send, as it was told with the session. `None` if
    /// unreadable.
    pub announced: Option<u32>,
}

/// The values that give the age of a TLS 1.3 ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketAge {
    /// When the ticket was made, in seconds since the Unix epoch.
    pub made: u64,
    /// `ticket_age_add`, in milliseconds (RFC 9846, 4.6.1).
    pub age_add: u32,
}

impl TicketAge {
    /// True if the client's clock and ours agree on the age of the ticket within ten seconds.
    fn matches(self, obfuscated_age: u32, now: Time) -> bool {
        let made = Time::from_unix_millis(self.made.saturating_mul(1000));
        let claimed = Duration::from_millis(obfuscated_age.wrapping_sub(self.age_add).into());
        now.since(made).abs_diff(claimed) <= MAX_AGE_DIFFERENCE
    }
}

/// The plan for the early data of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyDataPlan {
    /// The hello announces no early data.
    NotOffered,
    /// The store consumed this session, the first that the hello offers, for the early data.
    Granted(StoreKey),
    /// Early data is refused; the session may still resume.
    Refused(Rejection),
}

/// The limits of this server for early data at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyDataTerms {
    /// Most bytes that the site takes.
    pub limit: u32,
    /// True if new sessions for single use can be stored now.
    pub can_store: bool,
    /// The present time.
    pub now: Time,
}

impl EarlyDataPlan {
    /// Decides after the store was asked for the session under `key`.
    #[must_use]
    pub fn after_consume(
        key: StoreKey,
        obfuscated_age: u32,
        consumed: Result<ConsumedSession, Reason>,
        terms: EarlyDataTerms,
    ) -> Self {
        let certain = consumed
            .ok()
            .filter(|session| session.is_certain && terms.can_store);
        let Some(session) = certain else {
            return Self::Refused(Rejection::Store);
        };
        let is_fresh = |age: TicketAge| age.matches(obfuscated_age, terms.now);
        if !session.age.is_some_and(is_fresh) {
            return Self::Refused(Rejection::StaleHello);
        }
        // The client may send as many bytes as it was told when the session was made. The site may take
        // fewer bytes today.
        match session.announced {
            Some(announced) if announced <= terms.limit => Self::Granted(key),
            _ => Self::Refused(Rejection::Off),
        }
    }
}
