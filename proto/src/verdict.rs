//! The outcome of a handshake in one word: resumed and how, or full and why; and what became of the
//! data that came with its first flight.
//!
//! A reason is only ever what was seen. Where it cannot be known for certain it is
//! [`Reason::Unknown`]; nothing here guesses.

use std::fmt;
use std::str::FromStr;

/// What a resumed session was found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// TLS 1.2 session ID (RFC 5246, 7.3).
    SessionId,
    /// TLS 1.2 session ticket (RFC 5077).
    Ticket,
    /// TLS 1.3 pre-shared key (RFC 9846, 2.2).
    Psk,
}

impl How {
    /// Every way to resume.
    pub const ALL: [Self; 3] = [Self::SessionId, Self::Ticket, Self::Psk];

    /// The word used in verdicts and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SessionId => "session-id",
            Self::Ticket => "ticket",
            Self::Psk => "psk",
        }
    }
}

/// Why a handshake was full.
///
/// The order is the order of precedence: where several offers were refused, the verdict is the
/// reason of the one that got furthest, and that is the greatest here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The client offered no session.
    NothingOffered,
    /// Never seen, or too long ago to say.
    Unknown,
    /// No live route key knows its label: another farm's, tampered with, or very old.
    UnknownKey,
    /// Session IDs and stored sessions are not kept here.
    CacheDisabled,
    /// Tickets are not handed out here.
    TicketsDisabled,
    /// The store cannot be reached.
    StoreDown,
    /// The store did not answer in time.
    StoreTimeout,
    /// Its server's state was lost since.
    Lost,
    /// Pushed out of the session table by newer sessions.
    Evicted,
    /// Past its lifetime, counted from the full handshake.
    Expired,
    /// Removed when its connection was reclaimed (`connection.purge-on-reclaim`).
    Purged,
    /// Single use, and used.
    Spent,
    /// Forgotten on request, or the generation of its key ended.
    Revoked,
    /// Its connection did not end with close_notify (`session.require-close-notify`).
    NotClosedCleanly,
    /// Our label, but the ticket does not authenticate.
    BadTicket,
    /// Written by another version of sessile or of its TLS library.
    OldFormat,
    /// Made for another server name or site.
    NameMismatch,
    /// Made for another protocol version.
    VersionMismatch,
    /// Made with a cipher suite that is not negotiated now.
    SuiteMismatch,
    /// Extended master secret then and not now, or now and not then (RFC 7627, 5.3).
    EmsMismatch,
    /// Client authentication: another policy now, or the certificate is no longer valid.
    ClientAuth,
    /// The client does not allow resumption with (EC)DHE (RFC 9846, 4.2.9).
    NoDheMode,
}

impl Reason {
    /// Every reason, least telling first.
    pub const ALL: [Self; 22] = [
        Self::NothingOffered,
        Self::Unknown,
        Self::UnknownKey,
        Self::CacheDisabled,
        Self::TicketsDisabled,
        Self::StoreDown,
        Self::StoreTimeout,
        Self::Lost,
        Self::Evicted,
        Self::Expired,
        Self::Purged,
        Self::Spent,
        Self::Revoked,
        Self::NotClosedCleanly,
        Self::BadTicket,
        Self::OldFormat,
        Self::NameMismatch,
        Self::VersionMismatch,
        Self::SuiteMismatch,
        Self::EmsMismatch,
        Self::ClientAuth,
        Self::NoDheMode,
    ];

    /// The word used in verdicts and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NothingOffered => "nothing-offered",
            Self::Unknown => "unknown",
            Self::UnknownKey => "unknown-key",
            Self::CacheDisabled => "cache-disabled",
            Self::TicketsDisabled => "tickets-disabled",
            Self::StoreDown => "store-down",
            Self::StoreTimeout => "store-timeout",
            Self::Lost => "lost",
            Self::Evicted => "evicted",
            Self::Expired => "expired",
            Self::Purged => "purged",
            Self::Spent => "spent",
            Self::Revoked => "revoked",
            Self::NotClosedCleanly => "not-closed-cleanly",
            Self::BadTicket => "bad-ticket",
            Self::OldFormat => "old-format",
            Self::NameMismatch => "name-mismatch",
            Self::VersionMismatch => "version-mismatch",
            Self::SuiteMismatch => "suite-mismatch",
            Self::EmsMismatch => "ems-mismatch",
            Self::ClientAuth => "client-auth",
            Self::NoDheMode => "no-dhe-mode",
        }
    }
}

/// The outcome of one finished handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// An abbreviated handshake.
    Resumed(How),
    /// A full handshake.
    Full(Reason),
}

impl Verdict {
    /// Every verdict there is, for metrics that start at zero.
    pub fn all() -> impl Iterator<Item = Self> {
        let resumed = How::ALL.into_iter().map(Self::Resumed);
        resumed.chain(Reason::ALL.into_iter().map(Self::Full))
    }

    /// `resumed` or `full`.
    #[must_use]
    pub const fn outcome(self) -> &'static str {
        match self {
            Self::Resumed(_) => "resumed",
            Self::Full(_) => "full",
        }
    }

    /// The word after the slash: how it was resumed, or why it was not.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Resumed(how) => how.as_str(),
            Self::Full(reason) => reason.as_str(),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.outcome(), self.detail())
    }
}

/// The text is not a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAVerdict;

impl fmt::Display for NotAVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a verdict: expected resumed/<how> or full/<reason>")
    }
}

impl std::error::Error for NotAVerdict {}

impl FromStr for Verdict {
    type Err = NotAVerdict;

    fn from_str(text: &str) -> Result<Self, NotAVerdict> {
        Self::all()
            .find(|verdict| text.split_once('/') == Some((verdict.outcome(), verdict.detail())))
            .ok_or(NotAVerdict)
    }
}

/// What became of a handshake's early data (0-RTT, RFC 9846, 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EarlyData {
    /// The client sent none.
    None,
    /// It was taken, once and nowhere else.
    Accepted,
    /// It was thrown away; the client sends it again once the handshake is done.
    Rejected(Rejection),
}

/// Why early data was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// It is not on: for the site, or for the session that was offered first.
    Off,
    /// The hello is older than the client says, or comes from a clock of its own.
    StaleHello,
    /// Another application protocol than that of the session.
    AlpnMismatch,
    /// Another session than the first that was offered resumed.
    NotFirstIdentity,
    /// The store did not give the session out for it: spent, not there, no answer in time, or not the
    /// node that took it.
    Store,
    /// The client had to send its hello again, with another key share.
    HelloRetry,
    /// The session was there and did not resume: the verdict says why.
    NotResumed,
}

impl Rejection {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Off,
        Self::StaleHello,
        Self::AlpnMismatch,
        Self::NotFirstIdentity,
        Self::Store,
        Self::HelloRetry,
        Self::NotResumed,
    ];

    /// The word behind `rejected/`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::StaleHello => "stale-hello",
            Self::AlpnMismatch => "alpn-mismatch",
            Self::NotFirstIdentity => "not-first-identity",
            Self::Store => "store",
            Self::HelloRetry => "hello-retry",
            Self::NotResumed => "not-resumed",
        }
    }
}

impl EarlyData {
    /// Every outcome there is, for metrics that start at zero.
    pub fn all() -> impl Iterator<Item = Self> {
        let rejected = Rejection::ALL.into_iter().map(Self::Rejected);
        [Self::None, Self::Accepted].into_iter().chain(rejected)
    }
}

impl fmt::Display for EarlyData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Accepted => f.write_str("accepted"),
            Self::Rejected(why) => write!(f, "rejected/{}", why.as_str()),
        }
    }
}

/// The text does not say what became of early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotEarlyData;

impl fmt::Display for NotEarlyData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an outcome of early data: expected none, accepted or rejected/<reason>")
    }
}

impl std::error::Error for NotEarlyData {}

impl FromStr for EarlyData {
    type Err = NotEarlyData;

    fn from_str(text: &str) -> Result<Self, NotEarlyData> {
        let word = match text {
            "none" => return Ok(Self::None),
            "accepted" => return Ok(Self::Accepted),
            other => other.strip_prefix("rejected/").ok_or(NotEarlyData)?,
        };
        let found = Rejection::ALL.into_iter().find(|why| why.as_str() == word);
        found.map(Self::Rejected).ok_or(NotEarlyData)
    }
}

/// Decides the verdict of a handshake that finished.
///
/// `resumed` is what the TLS library says of it; `refused` holds one reason for each session that
/// was offered and looked at, in any order.
#[must_use]
pub fn judge(resumed: Option<How>, refused: &[Reason]) -> Verdict {
    match resumed {
        Some(how) => Verdict::Resumed(how),
        None => Verdict::Full(
            refused
                .iter()
                .copied()
                .max()
                .unwrap_or(Reason::NothingOffered),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_reads_back_from_its_text() {
        for verdict in Verdict::all() {
            assert_eq!(verdict.to_string().parse(), Ok(verdict));
        }
        assert_eq!("resumed/expired".parse::<Verdict>(), Err(NotAVerdict));
    }

    #[test]
    fn every_outcome_of_early_data_reads_back_from_its_text() {
        let words: Vec<_> = EarlyData::all().map(|early| early.to_string()).collect();
        let listed = [
            "none",
            "accepted",
            "rejected/off",
            "rejected/stale-hello",
            "rejected/alpn-mismatch",
            "rejected/not-first-identity",
            "rejected/store",
            "rejected/hello-retry",
            "rejected/not-resumed",
        ];
        assert_eq!(words, listed);
        for early in EarlyData::all() {
            assert_eq!(early.to_string().parse(), Ok(early));
        }
        for other in ["", "rejected", "rejected/", "rejected/none", "accepted/off"] {
            assert_eq!(other.parse::<EarlyData>(), Err(NotEarlyData));
        }
    }

    #[test]
    fn all_reasons_are_listed_once_and_in_order() {
        assert!(Reason::ALL.is_sorted());
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn the_offer_that_got_furthest_gives_the_reason() {
        let judged = |refused: &[Reason]| judge(None, refused);
        assert_eq!(judged(&[]), Verdict::Full(Reason::NothingOffered));
        assert_eq!(
            judged(&[Reason::Unknown, Reason::Expired, Reason::UnknownKey]),
            Verdict::Full(Reason::Expired)
        );
        assert_eq!(
            judged(&[Reason::NameMismatch, Reason::Evicted]),
            Verdict::Full(Reason::NameMismatch)
        );
    }

    #[test]
    fn a_resumed_handshake_is_resumed_whatever_else_was_refused() {
        assert_eq!(
            judge(Some(How::Psk), &[Reason::Expired]),
            Verdict::Resumed(How::Psk)
        );
    }
}
