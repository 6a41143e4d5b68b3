//! What a probe found, and what follows from it.

use std::fmt;
use std::net::SocketAddr;

use rustls::AlertDescription;
use sessile_proto::verdict::{How, Verdict};
use sessile_proto::watch::Kind;

use crate::client::{Error, HandshakeTimes, Offer};

/// Everything that one run found.
#[derive(Debug)]
pub struct ProbeReport {
    /// As the user wrote it.
    pub target: String,
    /// For SNI and for the certificate.
    pub server_name: String,
    /// Those that were tried.
    pub addresses: Vec<SocketAddr>,
    pub left_out: Vec<LeftOut>,
    /// Whether the run came to its end.
    pub complete: bool,
    /// One for each mechanism that was begun.
    pub mechanisms: Vec<MechanismFindings>,
}

/// An address of the host that this machine has no way to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub address: SocketAddr,
    pub error: String,
}

/// What was found of one mechanism.
#[derive(Debug)]
pub struct MechanismFindings {
    pub how: How,
    /// The full handshake, then the returns.
    pub attempts: Vec<Attempt>,
}

/// One handshake.
#[derive(Debug)]
pub struct Attempt {
    pub address: SocketAddr,
    pub result: Result<FinishedHandshake, FailedHandshake>,
}

/// What is known of a handshake that was not finished.
#[derive(Debug)]
pub struct FailedHandshake {
    pub error: Error,
    /// The session in the ClientHello.
    pub offered: Option<Offer>,
    /// What became of a second handshake, made at once without a session; `None`: none was offered.
    pub without_session: Option<Result<(), Error>>,
}

/// Connections that offered a session and were ended by the server, and those to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedOffers {
    /// Connections that offered a session.
    pub offered: usize,
    /// Those of them that the server ended, or did not answer.
    pub ended: usize,
    /// Connections without a session that were made to compare.
    pub compared: usize,
    /// Those of them that succeeded.
    pub succeeded: usize,
}

/// What a finished handshake showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedHandshake {
    pub offered: Option<Offer>,
    /// What the server did with the offer; never `FailedHandshake`.
    pub kind: Kind,
    /// Whether the server gave a session of the kind that was asked for.
    pub given: bool,
    pub version: u16,
    pub cipher_suite: u16,
    pub times: HandshakeTimes,
    /// SHA-256 of the certificate.
    pub certificate: Option<[u8; 32]>,
    /// What a sessile server calls itself.
    pub server: Option<String>,
    /// What a sessile server says of the handshake.
    pub verdict: Option<String>,
}

/// What became of one mechanism, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every return resumed.
    Resumes,
    /// Some returns resumed.
    Partly,
    /// The server gave a session, and no return resumed.
    Refuses,
    /// The server gives no such session, or does not speak the version.
    NotOffered,
    /// No handshake was finished.
    Failed,
    /// The run ended too early to tell.
    Unfinished,
}

/// Why returns were full, as servers said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub verdict: Verdict,
    /// Who said it: names, or addresses of servers that have none.
    pub said_by: Vec<String>,
}

impl ProbeReport {
    /// An empty report.
    #[must_use]
    pub fn new(plan: &super::ProbePlan) -> Self {
        Self {
            target: plan.target.clone(),
            server_name: plan.server_name.clone(),
            addresses: plan.addresses.clone(),
            left_out: Vec::new(),
            complete: false,
            mechanisms: Vec::new(),
        }
    }

    /// Whether no handshake at all was finished.
    #[must_use]
    pub fn has_no_connection(&self) -> bool {
        !self.attempts().any(|attempt| attempt.result.is_ok())
    }

    /// Whether a certificate was not accepted.
    #[must_use]
    pub fn has_refused_certificate(&self) -> bool {
        self.attempts()
            .any(|attempt| matches!(attempt.error(), Some(Error::Certificate(_))))
    }

    /// Whether something resumes, and nothing that the servers offer fails to.
    #[must_use]
    pub fn all_resume(&self) -> bool {
        let fine = |findings: &MechanismFindings| match findings.status() {
            Status::Resumes => findings
                .attempts
                .iter()
                .all(|attempt| attempt.seen().is_some()),
            Status::NotOffered => {
                let expected = |attempt: &Attempt| attempt.seen().is_some() || attempt.declined();
                findings.attempts.iter().all(expected)
            }
            Status::Partly | Status::Refuses | Status::Failed | Status::Unfinished => false,
        };
        let mut statuses = self.mechanisms.iter().map(MechanismFindings::status);
        statuses.any(|status| status == Status::Resumes) && self.mechanisms.iter().all(fine)
    }

    fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.mechanisms
            .iter()
            .flat_map(|findings| &findings.attempts)
    }

    /// Those of the mechanism that is being tried.
    pub(super) fn findings(&mut self) -> &mut MechanismFindings {
        self.mechanisms
            .last_mut()
            .expect("a mechanism is begun before it is tried")
    }

    pub(super) fn leave_out(&mut self, address: SocketAddr, error: &Error) {
        self.addresses.retain(|kept| *kept != address);
        self.left_out.push(LeftOut {
            address,
            error: error.to_string(),
        });
    }

    /// Every address has failed, and one that may stand for several servers twice: more of the
    /// same says nothing new.
    pub(super) fn all_attempts_failed(&self) -> bool {
        self.mechanisms.last().is_some_and(|findings| {
            findings.attempts.len() >= self.addresses.len().max(2)
                && findings
                    .attempts
                    .iter()
                    .all(|attempt| attempt.result.is_err())
        })
    }

    /// No address lets this client in, whatever it offers.
    pub(super) fn no_address_answers(&self) -> bool {
        self.attempts().all(|attempt| {
            matches!(
                attempt.error(),
                Some(
                    Error::Connect(_)
                        | Error::TimedOut { .. }
                        | Error::NotTls
                        | Error::Certificate(_)
                )
            )
        })
    }
}

impl MechanismFindings {
    pub(super) const fn new(how: How) -> Self {
        Self {
            how,
            attempts: Vec::new(),
        }
    }

    /// What became of the mechanism.
    #[must_use]
    pub fn status(&self) -> Status {
        let finished = self.attempts.iter().filter_map(Attempt::seen).count();
        if self.attempts.is_empty() {
            return Status::Unfinished;
        }
        if finished == 0 {
            let declined = self.attempts.iter().all(Attempt::declined);
            return if declined {
                Status::NotOffered
            } else {
                Status::Failed
            };
        }
        let returns = self.returns().count();
        if returns == 0 {
            return Status::Unfinished;
        }
        let useful = |seen: &FinishedHandshake| seen.given || seen.resumed();
        if !self.attempts.iter().filter_map(Attempt::seen).any(useful) {
            return Status::NotOffered;
        }
        match self.resumed() {
            0 => Status::Refuses,
            resumed if resumed == returns => Status::Resumes,
            _ => Status::Partly,
        }
    }

    /// The handshakes after the first that was finished.
    pub fn returns(&self) -> impl Iterator<Item = &Attempt> {
        let mut attempts = self.attempts.iter();
        // The first that was finished is the full one.
        attempts.find(|attempt| attempt.result.is_ok());
        attempts
    }

    /// How many returns resumed.
    #[must_use]
    pub fn resumed(&self) -> usize {
        let seen = self.returns().filter_map(Attempt::seen);
        seen.filter(|seen| seen.resumed()).count()
    }

    /// Why returns were full, as far as servers said it.
    #[must_use]
    pub fn causes(&self) -> Vec<Cause> {
        let mut causes: Vec<Cause> = Vec::new();
        for attempt in self.returns() {
            let Some(seen) = attempt.seen().filter(|seen| seen.kind == Kind::Refused) else {
                continue;
            };
            let said = seen.verdict.as_deref().and_then(|text| text.parse().ok());
            let Some(verdict @ Verdict::Full(_)) = said else {
                continue;
            };
            let who = (seen.server.clone()).unwrap_or_else(|| attempt.address.to_string());
            match causes.iter_mut().find(|cause| cause.verdict == verdict) {
                Some(cause) if cause.said_by.contains(&who) => {}
                Some(cause) => cause.said_by.push(who),
                None => causes.push(Cause {
                    verdict,
                    said_by: vec![who],
                }),
            }
        }
        causes
    }

    /// How many connections the server ended for the session that they offered; `None`: none.
    #[must_use]
    pub fn ended_offers(&self) -> Option<EndedOffers> {
        let failed = self
            .attempts
            .iter()
            .filter_map(|it| it.result.as_ref().err());
        let ended = failed.filter(|it| it.offered.is_some() && it.error.is_ended_by_server());
        let ended: Vec<&FailedHandshake> = ended.collect();
        let compared = ended.iter().filter_map(|it| it.without_session.as_ref());
        let compared: Vec<_> = compared.collect();
        (!ended.is_empty()).then(|| EndedOffers {
            offered: self
                .attempts
                .iter()
                .filter(|it| it.offered().is_some())
                .count(),
            ended: ended.len(),
            compared: compared.len(),
            succeeded: compared.iter().filter(|it| it.is_ok()).count(),
        })
    }

    /// Why there is nothing to resume, where the mechanism is not offered.
    #[must_use]
    pub fn note(&self) -> Option<&'static str> {
        if self.status() != Status::NotOffered {
            return None;
        }
        let refuses = |version: &Attempt| version.refuses_version();
        Some(match self.how {
            _ if self.attempts.iter().any(|attempt| attempt.seen().is_some()) => match self.how {
                How::SessionId => "the server gives no session ID (its server-side cache is off)",
                How::Ticket => "the server gives no ticket",
                How::Psk => "the server speaks TLS 1.3 and gives no ticket",
            },
            How::Psk if self.attempts.iter().all(refuses) => "the server does not speak TLS 1.3",
            _ if self.attempts.iter().all(refuses) => "the server does not speak TLS 1.2",
            // An old server that finds no suite in a TLS 1.3 hello answers with this alert too.
            _ => "the server finds nothing in common with this client (alert handshake_failure)",
        })
    }
}

impl Attempt {
    /// What the handshake showed, if it was finished.
    #[must_use]
    pub fn seen(&self) -> Option<&FinishedHandshake> {
        self.result.as_ref().ok()
    }

    /// Why the handshake was not finished, if it was not.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        self.result.as_ref().err().map(|failed| &failed.error)
    }

    /// The session that was offered, whatever became of it.
    #[must_use]
    pub fn offered(&self) -> Option<&Offer> {
        match &self.result {
            Ok(seen) => seen.offered.as_ref(),
            Err(failed) => failed.offered.as_ref(),
        }
    }

    /// The outcome in a word: `resumed`, `refused`, `not-offered` or `failed`.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self.seen().map(|seen| seen.kind) {
            Some(Kind::Resumed(_)) => "resumed",
            Some(Kind::Refused) => "refused",
            Some(Kind::NotOffered) => "not-offered",
            Some(Kind::Failed) | None => "failed",
        }
    }

    fn refuses_version(&self) -> bool {
        self.error().is_some_and(Error::refuses_version)
    }

    /// The server has nothing in common with a client of this version.
    fn declined(&self) -> bool {
        let failure = AlertDescription::HandshakeFailure;
        self.refuses_version()
            || matches!(self.error(), Some(Error::Alert(alert)) if *alert == failure)
    }
}

impl FailedHandshake {
    /// A failure that ended before a session could be offered, or without one.
    #[must_use]
    pub const fn without_offer(error: Error) -> Self {
        Self {
            error,
            offered: None,
            without_session: None,
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

impl fmt::Display for EndedOffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offered,
            ended,
            compared,
            succeeded,
        } = self;
        write!(
            f,
            "{ended} of {offered} connections that offered a session were ended by the server; \
             {succeeded} of {compared} without one succeeded"
        )
    }
}

impl FinishedHandshake {
    /// Whether the server resumed what was offered.
    #[must_use]
    pub const fn resumed(&self) -> bool {
        matches!(self.kind, Kind::Resumed(_))
    }
}

impl Status {
    /// The word used in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resumes => "resumes",
            Self::Partly => "partly",
            Self::Refuses => "refuses",
            Self::NotOffered => "not-offered",
            Self::Failed => "failed",
            Self::Unfinished => "unfinished",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::samples::{attempt, report, seen};

    fn findings(attempts: Vec<Attempt>) -> MechanismFindings {
        let how = How::Psk;
        MechanismFindings { how, attempts }
    }

    fn psk(kind: Kind) -> Attempt {
        attempt(1, Ok(seen(How::Psk, kind)))
    }

    fn alert(alert: AlertDescription) -> Attempt {
        attempt(1, Err(FailedHandshake::without_offer(Error::Alert(alert))))
    }

    const RESUMED: Kind = Kind::Resumed(How::Psk);

    #[test]
    fn the_status_tells_all_some_and_none_apart() {
        let status = |kinds: &[Kind]| findings(kinds.iter().copied().map(psk).collect()).status();
        assert_eq!(status(&[]), Status::Unfinished);
        assert_eq!(status(&[Kind::NotOffered]), Status::Unfinished);
        assert_eq!(status(&[Kind::NotOffered, RESUMED]), Status::Resumes);
        assert_eq!(
            status(&[Kind::NotOffered, RESUMED, Kind::Refused]),
            Status::Partly
        );
        assert_eq!(status(&[Kind::NotOffered, Kind::Refused]), Status::Refuses);
        // A client that had nothing left to offer paid for a full handshake too.
        assert_eq!(
            status(&[Kind::NotOffered, RESUMED, Kind::NotOffered]),
            Status::Partly
        );
    }

    #[test]
    fn a_version_that_every_server_declines_is_not_offered() {
        let refused = findings(vec![alert(AlertDescription::ProtocolVersion)]);
        assert_eq!(refused.status(), Status::NotOffered);
        assert_eq!(refused.note(), Some("the server does not speak TLS 1.3"));
        let nothing_common = findings(vec![alert(AlertDescription::HandshakeFailure)]);
        assert_eq!(nothing_common.status(), Status::NotOffered);
        let other = findings(vec![alert(AlertDescription::InternalError)]);
        assert_eq!(other.status(), Status::Failed);
    }

    #[test]
    fn a_version_that_one_of_two_servers_declines_fails_the_probe() {
        let mut report = report();
        let declined = Error::Alert(AlertDescription::ProtocolVersion);
        let declined = attempt(2, Err(FailedHandshake::without_offer(declined)));
        report.mechanisms = vec![findings(vec![
            psk(Kind::NotOffered),
            psk(RESUMED),
            declined,
        ])];
        assert!(!report.all_resume());
    }

    #[test]
    fn the_probe_succeeds_where_all_that_is_offered_resumes_and_that_is_something() {
        let mut report = report();
        assert!(!report.all_resume());
        report.mechanisms.remove(0);
        assert!(report.all_resume());
        report.mechanisms.pop();
        assert!(!report.all_resume(), "nothing resumes");
    }

    #[test]
    fn a_cause_is_only_what_a_server_said_of_a_refusal() {
        let said = |kind, verdict: &str| {
            let verdict = Some(verdict.to_owned());
            attempt(
                1,
                Ok(FinishedHandshake {
                    verdict,
                    ..seen(How::Psk, kind)
                }),
            )
        };
        let findings = findings(vec![
            said(Kind::NotOffered, "full/nothing-offered"),
            said(RESUMED, "resumed/psk"),
            said(Kind::Refused, "full/expired"),
            said(Kind::Refused, "full/expired"),
            said(Kind::Refused, "full/because"),
            psk(Kind::Refused),
        ]);
        let expired = Cause {
            verdict: "full/expired".parse().unwrap(),
            said_by: vec!["192.0.2.1:443".to_owned()],
        };
        assert_eq!(findings.causes(), [expired]);
    }
}
