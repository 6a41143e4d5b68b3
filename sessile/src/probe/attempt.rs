//! One attempt of a probe at a handshake, and its facts from the wire.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::AlertDescription;
use sessile_proto::resumption_matrix::Answer;
use sessile_proto::watch::{Kind, SessionOutcome};

use crate::client::{Error, GivenTicket, HandshakeTimes, Offer};

/// One attempt at a handshake.
#[derive(Debug)]
pub struct Attempt {
    pub address: SocketAddr,
    /// The server whose session was offered. `None` if no session was offered.
    pub origin: Option<SocketAddr>,
    pub result: Result<FinishedHandshake, FailedHandshake>,
}

/// A handshake that failed.
#[derive(Debug)]
pub struct FailedHandshake {
    pub error: Error,
    /// The session in the ClientHello.
    pub offered: Option<Offer>,
    /// True if the server requested a certificate of the client.
    pub certificate_requested: bool,
    /// Result of a handshake without a session, made right after the failure. `None` if the failed
    /// handshake offered no session.
    pub without_session: Option<Result<(), Error>>,
}

/// The facts about a finished handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedHandshake {
    pub offered: Option<Offer>,
    /// The server's answer to the offer; never `Failed`.
    pub kind: Kind,
    /// True if the server gave a new session of the tested kind.
    pub given: bool,
    pub version: u16,
    pub cipher_suite: u16,
    pub times: HandshakeTimes,
    /// The tickets that the server gave until the probe closed the connection.
    pub tickets: Vec<GivenTicket>,
    /// The time from the handshake to the end of the certificate. Zero if it has ended.
    pub certificate_left: Option<Duration>,
    /// SHA-256 of the certificate.
    pub certificate: Option<[u8; 32]>,
    /// True if the server requested a certificate of the client. A resumed handshake has no such request.
    pub certificate_requested: bool,
    /// The HTTP status of the response, if the probe made a request of HTTP/1.1.
    pub status: Option<u16>,
    /// The name that a sessile server states.
    pub server: Option<String>,
    /// The verdict that a sessile server states.
    pub verdict: Option<String>,
}

impl FinishedHandshake {
    /// True if the server resumed the offered session.
    pub(super) const fn is_resumed(&self) -> bool {
        matches!(self.kind, Kind::Resumed(_))
    }
}

impl Attempt {
    /// The facts about the handshake, if it was finished.
    #[must_use]
    pub fn seen(&self) -> Option<&FinishedHandshake> {
        self.result.as_ref().ok()
    }

    /// The error, if the handshake failed.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        self.result.as_ref().err().map(|failed| &failed.error)
    }

    /// The session that was offered, also if the handshake failed.
    #[must_use]
    pub fn offered(&self) -> Option<&Offer> {
        match &self.result {
            Ok(seen) => seen.offered.as_ref(),
            Err(failed) => failed.offered.as_ref(),
        }
    }

    /// The result in one word.
    #[must_use]
    pub fn outcome(&self) -> SessionOutcome {
        let seen = self.seen();
        seen.map_or(SessionOutcome::Failed, |seen| seen.kind.into())
    }

    /// The server's answer to the session. `None` if there was no session, or if the server was not reached.
    pub(super) fn answer(&self) -> Option<Answer> {
        match &self.result {
            Ok(seen) if seen.is_resumed() => Some(Answer::Resumed),
            Ok(_) => Some(Answer::Refused),
            Err(failed) if failed.error.is_ended_by_server() => Some(Answer::Ended),
            Err(_) => None,
        }
    }

    /// True if the attempt failed, and the handshake without a session after it failed too or was not made.
    pub(super) fn is_failure(&self) -> bool {
        match &self.result {
            Ok(_) => false,
            Err(failed) => !matches!(failed.without_session, Some(Ok(()))),
        }
    }

    pub(super) fn refuses_version(&self) -> bool {
        self.error().is_some_and(Error::refuses_version)
    }

    /// True if the server has nothing in common with a client of this version.
    pub(super) fn is_declined(&self) -> bool {
        let has_nothing_in_common = matches!(
            self.error(),
            Some(Error::Alert(AlertDescription::HandshakeFailure))
        );
        self.refuses_version() || (has_nothing_in_common && !self.requests_certificate())
    }

    /// True if the server requested a certificate of the client.
    #[must_use]
    pub fn requests_certificate(&self) -> bool {
        match &self.result {
            Ok(seen) => seen.certificate_requested,
            Err(failed) => failed.certificate_requested,
        }
    }
}

impl fmt::Display for FailedHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        match &self.without_session {
            Some(Ok(())) => f.write_str("; without a session it succeeded"),
            Some(Err(error)) => write!(f, "; without a session: {error}"),
            None => Ok(()),
        }
    }
}
