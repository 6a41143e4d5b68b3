//! The verdict on a handshake (resumed and how, or full and why), and the outcome of its early data.
//!
//! A verdict names only an observed reason. Without a refused offer it is
//! [`Reason::NothingOffered`]. An offer that was refused without a known cause is [`Reason::Unknown`].

use std::fmt;
use std::str::FromStr;

/// The mechanism that resumed a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// TLS 1.2 session ID ([RFC 5246, 7.3](https://www.rfc-editor.org/rfc/rfc5246#section-7.3)).
    SessionId,
    /// TLS 1.2 session ticket ([RFC 5077](https://www.rfc-editor.org/rfc/rfc5077)).
    Ticket,
    /// TLS 1.3 pre-shared key ([RFC 9846, 2.2](https://www.rfc-editor.org/rfc/rfc9846#section-2.2)).
    Psk,
}

impl How {
    /// Every mechanism.
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
/// A later reason takes precedence. If several offers were refused, the verdict is the reason of the offer that
/// passed the most checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The client offered no session.
    NothingOffered,
    /// The session is not known, or was removed too long ago.
    Unknown,
    /// No live route key opens the label. It is from another farm, changed, or very old.
    UnknownKey,
    /// This server stores no sessions.
    CacheDisabled,
    /// This server issues no tickets.
    TicketsDisabled,
    /// The store cannot be reached.
    StoreDown,
    /// The store did not answer in time.
    StoreTimeout,
    /// The issuing server has lost its state since then.
    Lost,
    /// Newer sessions displaced the session from the table.
    Evicted,
    /// The lifetime, counted from the full handshake, is over.
    Expired,
    /// The session was removed when its connection was reclaimed (`connection.purge-on-reclaim`).
    Purged,
    /// The session was for a single use and was used.
    Spent,
    /// The session was forgotten on request, or its key generation ended.
    Revoked,
    /// The connection did not end with close_notify (`session.require-close-notify`).
    NotClosedCleanly,
    /// The label is the farm's, but the ticket does not authenticate.
    BadTicket,
    /// Another version of sessile or of the TLS library made the session.
    OldFormat,
    /// The session was made for another server name or site.
    NameMismatch,
    /// The session was made for another protocol version.
    VersionMismatch,
    /// The session has a cipher suite that was not negotiated now.
    SuiteMismatch,
    /// Only one of the two handshakes has extended master secret
    /// ([RFC 7627, 5.3](https://www.rfc-editor.org/rfc/rfc7627#section-5.3)).
    EmsMismatch,
    /// The site's client authentication has changed, or the client's certificate is no longer valid.
    ClientAuth,
    /// The client does not offer resumption with (EC)DHE
    /// ([RFC 9846, 4.2.9](https://www.rfc-editor.org/rfc/rfc9846#section-4.2.9)).
    NoDheMode,
}

impl Reason {
    /// Every reason, in order of precedence.
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
    /// Every verdict, for metrics that start at zero.
    pub fn all() -> impl Iterator<Item = Self> {
        let resumed = How::ALL.into_iter().map(Self::Resumed);
        let full = Reason::ALL.into_iter().map(Self::Full);
        resumed.chain(full)
    }

    /// `resumed` or `full`.
    #[must_use]
    pub const fn outcome(self) -> &'static str {
        match self {
            Self::Resumed(_) => "resumed",
            Self::Full(_) => "full",
        }
    }

    /// The word after the slash: how a session was resumed, or why the handshake was full.
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

/// The outcome of a handshake's early data
/// ([RFC 9846, 2.3](https://www.rfc-editor.org/rfc/rfc9846#section-2.3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EarlyData {
    /// The client sent no early data.
    None,
    /// The server accepted the early data, and no other server can accept it again.
    Accepted,
    /// The server discarded the early data. The client sends it again after the handshake.
    Rejected(Rejection),
}

/// Why early data was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// Early data is off for the site, or for the first offered session.
    Off,
    /// The ticket age in the hello differs too much from the server's measurement.
    StaleHello,
    /// The application protocol differs from the session's.
    AlpnMismatch,
    /// A session other than the first offered one was resumed.
    NotFirstIdentity,
    /// The store did not release the session: it was spent or unknown, the answer was late, or another node
    /// answered.
    Store,
    /// A HelloRetryRequest asked the client for another key share.
    HelloRetry,
    /// The session was not resumed. The verdict says why.
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
    /// Every outcome, for metrics that start at zero.
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

/// The text is not an outcome of early data.
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
/// `resumed` is the TLS library's answer. `refused` has a reason for each offered session that was examined, in
/// any order.
#[must_use]
pub fn judge(resumed: Option<How>, refused: &[Reason]) -> Verdict {
    if let Some(how) = resumed {
        return Verdict::Resumed(how);
    }
    let reason = refused.iter().copied().max();
    Verdict::Full(reason.unwrap_or(Reason::NothingOffered))
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
