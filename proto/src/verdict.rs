//! The verdict on a handshake (resumed and how, or full and why), and the outcome of its early data.
//!
//! A verdict names only an observed reason. Without a refused offer it is
//! [`Reason::NothingOffered`]. An offer that was refused without a known cause is [`Reason::Unknown`].

use std::fmt;

use strum::{IntoStaticStr, VariantArray};

use crate::Word;

/// The mechanism that resumed a session. The words are those of verdicts and metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum How {
    /// TLS 1.2 session ID ([RFC 5246, 7.3](https://www.rfc-editor.org/rfc/rfc5246#section-7.3)).
    SessionId,
    /// TLS 1.2 session ticket ([RFC 5077](https://www.rfc-editor.org/rfc/rfc5077)).
    Ticket,
    /// TLS 1.3 pre-shared key ([RFC 9846, 2.2](https://www.rfc-editor.org/rfc/rfc9846#section-2.2)).
    Psk,
}

/// Why a handshake was full.
///
/// The reasons are declared in the order of precedence, the strongest last. If several offers were refused, the
/// verdict is the reason of the offer that passed the most checks. The words are those of verdicts and metric
/// labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Reason {
    /// The client offered no session.
    NothingOffered,
    /// The session is not known, or was removed too long ago.
    Unknown,
    /// No live route key opens the label. The ticket is from another farm, changed, or very old.
    UnknownKey,
    /// This server stores no sessions.
    CacheDisabled,
    /// This server issues no tickets.
    TicketsDisabled,
    /// The store cannot be reached.
    StoreDown,
    /// The store did not answer in time.
    StoreTimeout,
    /// The issuing server has lost its state since it made the session.
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

/// The outcome of one finished handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// An abbreviated handshake.
    Resumed(How),
    /// A full handshake.
    Full(Reason),
}

impl How {
    const fn meaning(self) -> &'static str {
        match self {
            Self::SessionId => {
                "Your session resumed: the server still had the session of your session ID."
            }
            Self::Ticket => {
                "Your session resumed: the server opened the ticket that your client kept."
            }
            Self::Psk => {
                "Your session resumed: the server accepted the TLS 1.3 ticket that your client kept."
            }
        }
    }
}

impl Reason {
    const fn meaning(self) -> &'static str {
        match self {
            Self::NothingOffered => {
                "Your client offered no session: it is new here, or it keeps no sessions."
            }
            Self::Unknown => "This server does not know the session that your client offered.",
            Self::UnknownKey => {
                "This server does not have the key of the ticket that your client offered."
            }
            Self::CacheDisabled => {
                "This server stores no sessions, so no session resumes by its session ID."
            }
            Self::TicketsDisabled => {
                "This server uses no tickets, so your client's ticket was ignored."
            }
            Self::StoreDown => {
                "This server could not reach the store in which the servers share sessions."
            }
            Self::StoreTimeout => {
                "The store in which the servers share sessions did not answer in time."
            }
            Self::Lost => "The server lost your session, for example because it was restarted.",
            Self::Evicted => {
                "The server's session table was full, and newer sessions displaced yours."
            }
            Self::Expired => "Your session, or the certificate of its full handshake, has expired.",
            Self::Purged => {
                "The server closed an idle connection, and removed your session with it."
            }
            Self::Spent => "Your session was for a single use, and it was used before.",
            Self::Revoked => {
                "Your session was ended on purpose, by an operator or by a changed setting."
            }
            Self::NotClosedCleanly => {
                "Your last connection ended without close_notify, so the session ended too."
            }
            Self::BadTicket => {
                "The session that your client offered is damaged, so the server cannot open it."
            }
            Self::OldFormat => {
                "Another version of sessile made the session that your client offered."
            }
            Self::NameMismatch => {
                "The session that your client offered belongs to another name or site."
            }
            Self::VersionMismatch => {
                "The session that your client offered has another TLS version."
            }
            Self::SuiteMismatch => "The session that your client offered has another cipher suite.",
            Self::EmsMismatch => {
                "Only one of the two handshakes of your session has extended master secret."
            }
            Self::ClientAuth => {
                "Your client certificate, or the rules for it, changed after the session began."
            }
            Self::NoDheMode => "Your client offered to resume only without a new key exchange.",
        }
    }
}

impl Verdict {
    /// The verdict in one sentence, for the user of the client.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Resumed(how) => how.meaning(),
            Self::Full(reason) => reason.meaning(),
        }
    }

    /// Every verdict, for metrics that start at zero.
    pub fn all() -> impl Iterator<Item = Self> {
        let resumed = How::all().map(Self::Resumed);
        let full = Reason::all().map(Self::Full);
        resumed.chain(full)
    }

    /// Reads the text form: `resumed/<how>` or `full/<reason>`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (outcome, detail) = text.split_once('/')?;
        Self::all().find(|verdict| verdict.outcome() == outcome && verdict.detail() == detail)
    }

    /// A full handshake. `refused` has a reason for each offered session that was examined, in any order.
    pub fn full(refused: impl Iterator<Item = Reason>) -> Self {
        Self::Full(refused.max().unwrap_or(Reason::NothingOffered))
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
    pub fn detail(self) -> &'static str {
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

/// Why early data was discarded. The words stand behind `rejected/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
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

impl EarlyData {
    /// Every outcome, for metrics that start at zero.
    pub fn all() -> impl Iterator<Item = Self> {
        let rejected = Rejection::all().map(Self::Rejected);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_reads_back_from_its_text() {
        for verdict in Verdict::all() {
            assert_eq!(Verdict::parse(&verdict.to_string()), Some(verdict));
        }
        assert_eq!(Verdict::parse("resumed/expired"), None);
    }

    #[test]
    fn every_verdict_has_a_sentence_of_its_own() {
        let meanings: Vec<_> = Verdict::all().map(Verdict::meaning).collect();
        for (at, meaning) in meanings.iter().enumerate() {
            assert!(
                meaning.ends_with('.') && !meanings[..at].contains(meaning),
                "{meaning}"
            );
        }
    }

    #[test]
    fn the_words_of_verdicts_stay() {
        let words: Vec<_> = Verdict::all().map(Verdict::detail).collect();
        let listed = [
            "session-id",
            "ticket",
            "psk",
            "nothing-offered",
            "unknown",
            "unknown-key",
            "cache-disabled",
            "tickets-disabled",
            "store-down",
            "store-timeout",
            "lost",
            "evicted",
            "expired",
            "purged",
            "spent",
            "revoked",
            "not-closed-cleanly",
            "bad-ticket",
            "old-format",
            "name-mismatch",
            "version-mismatch",
            "suite-mismatch",
            "ems-mismatch",
            "client-auth",
            "no-dhe-mode",
        ];
        assert_eq!(words, listed);
    }

    #[test]
    fn every_outcome_of_early_data_has_its_own_text() {
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
    }

    #[test]
    fn the_offer_that_got_furthest_gives_the_reason() {
        let judged = |refused: &[Reason]| Verdict::full(refused.iter().copied());
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
}
