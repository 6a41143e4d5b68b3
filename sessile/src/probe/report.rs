//! The results of a probe and the conclusions from them.

mod ages;
mod early_data;

use std::fmt;
use std::net::SocketAddr;

use sessile_proto::resumption_matrix::{Consistency, ResumptionMatrix};
use sessile_proto::verdict::{How, Verdict};
use sessile_proto::watch::{Kind, SessionOutcome};
use strum::{IntoStaticStr, VariantArray};

use super::after_gap::{DelayedReturn, SessionAge};
use super::attempt::{Attempt, FailedHandshake, FinishedHandshake};
use super::events::Watched;
use super::plan::ProbePlan;
use crate::client::{Error, GivenTicket};
pub use early_data::{EarlyDataFindings, EarlyDataOffer, EarlyDataOutcome, EarlyDataReplay};

/// The results of one run.
#[derive(Debug)]
pub struct ProbeReport {
    /// The target as the user wrote it.
    pub target: String,
    /// Why the target could not be tested.
    pub error: Option<String>,
    /// The name for SNI and for the certificate.
    pub server_name: String,
    /// The addresses of the target, without the addresses in `left_out`.
    pub addresses: Vec<SocketAddr>,
    pub left_out: Vec<LeftOut>,
    /// True if the probe has a certificate for servers that request one.
    pub has_client_certificate: bool,
    /// False if the run was stopped before its end.
    pub complete: bool,
    /// Findings for each mechanism that was begun.
    pub mechanisms: Vec<MechanismFindings>,
    /// Returns after a gap.
    pub delayed: Vec<DelayedReturn>,
    /// The ages at which servers refuse sessions.
    pub session_ages: Vec<SessionAge>,
    /// What happened while the probe watched. `None` if it did not watch.
    pub watched: Option<Watched>,
    /// Sessions that were offered to other names.
    pub other_names: Vec<OtherNameOffer>,
    /// Whether a server resumes a TLS 1.3 session twice.
    pub usable_twice: Vec<(SocketAddr, bool)>,
    /// Early data with TLS 1.3 sessions.
    pub early_data: EarlyDataFindings,
}

/// An address of a name that does not take part, because this machine has no route to the address, or because
/// the address refuses connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub address: SocketAddr,
    pub error: String,
}

/// The findings about one mechanism.
#[derive(Debug)]
pub struct MechanismFindings {
    pub how: How,
    /// All attempts in order.
    pub attempts: Vec<Attempt>,
}

/// The answer of a server to a session of the tested name that was offered to another name.
#[derive(Debug)]
pub struct OtherNameOffer {
    /// The other name.
    pub name: String,
    pub how: How,
    pub address: SocketAddr,
    /// The full handshake for the other name, without a session.
    pub full: Result<FinishedHandshake, FailedHandshake>,
    /// The handshake that offered the session.
    pub offer: Result<FinishedHandshake, FailedHandshake>,
    /// SHA-256 of the certificate of the tested name.
    pub certificate: Option<[u8; 32]>,
}

/// Counts of handshakes that the server ended after a session was offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndedOffers {
    /// Handshakes that offered a session.
    pub offered: usize,
    /// Handshakes with an offer that the server ended or did not answer.
    pub ended: usize,
    /// Comparison handshakes, which offered no session.
    pub compared: usize,
    /// Comparison handshakes that succeeded.
    pub succeeded: usize,
}

/// The result for one mechanism in one word, as in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Status {
    /// Every return resumed, and no handshake failed.
    Resumes,
    /// Some returns resumed, or a handshake failed.
    Partly,
    /// The server gave a session, and no return resumed.
    Refuses,
    /// The server gives no session for the mechanism, or does not speak its TLS version.
    NotOffered,
    /// No handshake was finished.
    Failed,
    /// The run was stopped before the result was known.
    Unfinished,
}

/// A verdict that servers stated for full handshakes of returning clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub verdict: Verdict,
    /// The names of the servers, or their addresses if they state no name.
    pub said_by: Vec<String>,
}

impl ProbeReport {
    /// The report before the first handshake.
    #[must_use]
    pub fn new(plan: &ProbePlan) -> Self {
        Self {
            error: None,
            server_name: plan.server_name.clone(),
            addresses: plan.addresses.clone(),
            has_client_certificate: plan.certificate.is_some(),
            ..Self::without_plan(plan.target.clone(), String::new())
        }
    }

    /// The report about a target that cannot be tested.
    #[must_use]
    pub fn without_plan(target: String, error: String) -> Self {
        Self {
            server_name: target.clone(),
            target,
            error: Some(error),
            addresses: Vec::new(),
            left_out: Vec::new(),
            has_client_certificate: false,
            complete: false,
            mechanisms: Vec::new(),
            delayed: Vec::new(),
            session_ages: Vec::new(),
            watched: None,
            other_names: Vec::new(),
            usable_twice: Vec::new(),
            early_data: EarlyDataFindings::default(),
        }
    }

    /// True if no handshake was finished.
    #[must_use]
    pub fn has_no_connection(&self) -> bool {
        !self.attempts().any(|attempt| attempt.result.is_ok())
    }

    /// True if a server requested a certificate of the client and ended the handshake.
    #[must_use]
    pub fn requires_certificate(&self) -> bool {
        self.attempts().any(|attempt| {
            let is_ended = attempt.error().is_some_and(Error::is_ended_by_server);
            is_ended && attempt.requests_certificate()
        })
    }

    /// True if the client refused a certificate.
    #[must_use]
    pub fn has_refused_certificate(&self) -> bool {
        self.attempts()
            .any(|attempt| matches!(attempt.error(), Some(Error::Certificate(_))))
    }

    /// True if every mechanism that the servers offer resumes, and they offer at least one
    /// mechanism.
    #[must_use]
    pub fn all_resume(&self) -> bool {
        let is_kept = |made: &DelayedReturn| made.outcome == SessionOutcome::Resumed;
        let one_resumes = self
            .mechanisms
            .iter()
            .any(|findings| findings.status() == Status::Resumes);
        one_resumes
            && self.delayed.iter().all(is_kept)
            && self.session_ages.iter().all(|age| !self.is_lost_early(age))
            && self
                .watched
                .as_ref()
                .is_none_or(|watched| watched.losses().next().is_none())
            && self
                .mechanisms
                .iter()
                .all(|findings| findings.is_success() || self.gives_unusable_session_ids(findings))
    }

    /// True if the servers give session IDs, and never accept them, but TLS 1.2 clients resume with tickets.
    ///
    /// Node.js and nginx without a cache give such session IDs. No client is worse off than without them.
    pub(super) fn gives_unusable_session_ids(&self, findings: &MechanismFindings) -> bool {
        findings.how == How::SessionId
            && findings.status() == Status::Refuses
            && findings
                .attempts
                .iter()
                .all(|attempt| attempt.result.is_ok())
            && self.mechanisms.iter().any(|other| {
                let mut addresses = self.addresses.iter();
                other.how == How::Ticket
                    && addresses.all(|server| other.keeps_own_sessions(*server))
            })
    }

    /// The number of attempts that should resume, and how many of them resumed. These attempts offered a session,
    /// or failed. Session IDs that no server ever accepts do not count if tickets resume.
    #[must_use]
    pub fn returns(&self) -> (usize, usize) {
        let mut offered = 0;
        let mut resumed = 0;
        for findings in &self.mechanisms {
            if !self.gives_unusable_session_ids(findings) {
                let failed = |attempt: &&Attempt| {
                    attempt.origin.is_none() && attempt.error().is_some() && !attempt.is_declined()
                };
                offered += findings.returns().count();
                offered += findings.attempts.iter().filter(failed).count();
                offered += self.handshakes_without_session(findings);
                resumed += findings.resumed();
            }
        }
        (offered, resumed)
    }

    /// The number of full handshakes with servers that give no session of a kind that other servers give.
    fn handshakes_without_session(&self, findings: &MechanismFindings) -> usize {
        let gives = |address: &&SocketAddr| findings.gives(**address);
        if !self.addresses.iter().any(|address| gives(&address)) {
            return 0;
        }
        let without = findings.attempts.iter().filter(|attempt| {
            let is_finished = attempt.seen().is_some() || attempt.is_declined();
            attempt.origin.is_none() && is_finished && !gives(&&attempt.address)
        });
        without.count()
    }

    /// True if at least this percentage of [`ProbeReport::returns`] resumed.
    #[must_use]
    pub fn reaches(&self, percent: f64) -> bool {
        let (offered, resumed) = self.returns();
        let [offered, resumed] =
            [offered, resumed].map(|count| f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        offered > 0.0 && resumed * 100.0 >= percent * offered
    }

    /// The server's address, with the name that a sessile server states.
    #[must_use]
    pub fn server_label(&self, address: SocketAddr) -> String {
        let name = self.attempts().find_map(|attempt| {
            let seen = attempt.seen().filter(|_| attempt.address == address)?;
            seen.server.as_deref()
        });
        // One address can stand for several servers.
        let has_one_name = self.attempts().all(|attempt| {
            let other = attempt.seen().and_then(|seen| seen.server.as_deref());
            attempt.address != address || other.is_none() || other == name
        });
        match name {
            Some(name) if has_one_name => format!("{address} ({name})"),
            _ => address.to_string(),
        }
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.mechanisms
            .iter()
            .flat_map(|findings| &findings.attempts)
    }

    /// True if the server requested a client certificate for the tested name.
    pub(super) fn requests_certificate(&self, server: SocketAddr) -> bool {
        self.attempts()
            .any(|attempt| attempt.address == server && attempt.requests_certificate())
    }

    /// True if the failure of an address is no failure of the farm.
    ///
    /// A name such as `localhost` can have addresses of IPv4 and IPv6, while the farm has only one of them.
    pub(super) fn may_leave_out(
        &self,
        plan: &ProbePlan,
        address: SocketAddr,
        error: &Error,
    ) -> bool {
        let is_missing = error.is_unreachable() || error.is_refused();
        let has_other_family = plan.names.iter().any(|name| {
            let mut siblings = name
                .iter()
                .filter(|sibling| self.addresses.contains(sibling));
            name.contains(&address)
                && siblings.any(|sibling| sibling.is_ipv4() != address.is_ipv4())
        });
        let family_answers = self.attempts().any(|attempt| {
            attempt.address.is_ipv4() == address.is_ipv4() && attempt.result.is_ok()
        });
        is_missing && has_other_family && !family_answers
    }

    pub(super) fn leave_out(&mut self, address: SocketAddr, error: &Error) {
        self.addresses.retain(|kept| *kept != address);
        self.left_out.push(LeftOut {
            address,
            error: error.to_string(),
        });
    }

    /// True if all attempts failed for reasons that no other mechanism can change.
    pub(super) fn no_address_answers(&self) -> bool {
        self.attempts()
            .all(|attempt| attempt.error().is_some_and(Error::is_for_every_mechanism))
    }
}

impl MechanismFindings {
    /// The result for the mechanism.
    #[must_use]
    pub fn status(&self) -> Status {
        if self.attempts.is_empty() {
            return Status::Unfinished;
        }
        if self.finished().next().is_none() {
            return if self.attempts.iter().all(Attempt::is_declined) {
                Status::NotOffered
            } else {
                Status::Failed
            };
        }
        // The server gave a session if it resumed one.
        let has_session = |seen: &FinishedHandshake| seen.given || seen.is_resumed();
        if self.attempts.len() > 1 && !self.finished().any(has_session) {
            return Status::NotOffered;
        }
        let returns = self.returns().count();
        if returns == 0 {
            return Status::Unfinished;
        }
        match self.resumed() {
            0 => Status::Refuses,
            resumed if resumed == returns && self.finished().count() == self.attempts.len() => {
                Status::Resumes
            }
            _ => Status::Partly,
        }
    }

    /// True if every handshake was finished and every return resumed, or if no server offers the
    /// mechanism.
    fn is_success(&self) -> bool {
        match self.status() {
            Status::Resumes => self.each_server_gives_sessions(),
            Status::NotOffered => self
                .attempts
                .iter()
                .all(|attempt| attempt.seen().is_some() || attempt.is_declined()),
            Status::Partly | Status::Refuses | Status::Failed | Status::Unfinished => false,
        }
    }

    fn each_server_gives_sessions(&self) -> bool {
        self.attempts
            .iter()
            .filter(|attempt| attempt.origin.is_none())
            .all(|attempt| self.gives(attempt.address))
    }

    pub(super) fn finished(&self) -> impl Iterator<Item = &FinishedHandshake> {
        self.attempts.iter().filter_map(Attempt::seen)
    }

    /// The finished handshakes with a server.
    pub(super) fn finished_at(
        &self,
        server: SocketAddr,
    ) -> impl Iterator<Item = &FinishedHandshake> {
        let at = self
            .attempts
            .iter()
            .filter(move |attempt| attempt.address == server);
        at.filter_map(Attempt::seen)
    }

    /// The tickets that a server gave, each with its handshake.
    pub(super) fn tickets_of(
        &self,
        server: SocketAddr,
    ) -> impl Iterator<Item = (&FinishedHandshake, &GivenTicket)> {
        self.finished_at(server)
            .flat_map(|seen| seen.tickets.iter().map(move |ticket| (seen, ticket)))
    }

    /// The attempts that offered a session.
    pub fn returns(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts
            .iter()
            .filter(|attempt| attempt.origin.is_some())
    }

    /// Who resumes whose sessions. The servers are the `addresses`, in this order.
    #[must_use]
    pub fn matrix(&self, addresses: &[SocketAddr]) -> ResumptionMatrix {
        let mut matrix = ResumptionMatrix::new(addresses.len());
        let index = |address| addresses.iter().position(|known| *known == address);
        for attempt in &self.attempts {
            let Some(from) = attempt.origin.and_then(index) else {
                continue;
            };
            if let (Some(to), Some(answer)) = (index(attempt.address), attempt.answer()) {
                matrix.record(from, to, answer);
            }
        }
        matrix
    }

    /// True if the server resumed all its own sessions that it got.
    pub(super) fn keeps_own_sessions(&self, server: SocketAddr) -> bool {
        self.matrix(&[server]).answers(0, 0).consistency() == Consistency::Always
    }

    /// The number of full handshakes with the server that offered no session.
    pub(super) fn full_handshakes(&self, server: SocketAddr) -> usize {
        self.full(server).count()
    }

    /// True if the server gave a session in a full handshake.
    pub(super) fn gives(&self, server: SocketAddr) -> bool {
        self.full(server).any(|seen| seen.given)
    }

    /// False if the server gave no session in two full handshakes.
    pub(super) fn gives_sessions(&self, server: SocketAddr) -> bool {
        self.gives(server) || self.full_handshakes(server) < 2
    }

    pub(super) fn full(&self, server: SocketAddr) -> impl Iterator<Item = &FinishedHandshake> {
        self.attempts
            .iter()
            .filter(move |attempt| attempt.address == server && attempt.origin.is_none())
            .filter_map(Attempt::seen)
    }

    /// True if the server declined all handshakes, because it does not speak the version.
    pub(super) fn is_declined_by(&self, server: SocketAddr) -> bool {
        let mut attempts = self
            .attempts
            .iter()
            .filter(|attempt| attempt.address == server)
            .peekable();
        attempts.peek().is_some() && attempts.all(Attempt::is_declined)
    }

    /// True if the last two attempts with the server failed, also without a session.
    pub(super) fn is_silent(&self, server: SocketAddr) -> bool {
        let mut newest_first = self
            .attempts
            .iter()
            .rev()
            .filter(|attempt| attempt.address == server);
        let [last, before] = [newest_first.next(), newest_first.next()];
        last.is_some_and(Attempt::is_failure) && before.is_some_and(Attempt::is_failure)
    }

    /// The number of returns that resumed.
    #[must_use]
    pub fn resumed(&self) -> usize {
        self.returns()
            .filter(|attempt| attempt.outcome() == SessionOutcome::Resumed)
            .count()
    }

    /// The reasons that servers stated when they refused an offered session.
    #[must_use]
    pub fn causes(&self) -> Vec<Cause> {
        let mut causes: Vec<Cause> = Vec::new();
        for attempt in self.returns() {
            let Some(seen) = attempt.seen().filter(|seen| seen.kind == Kind::Refused) else {
                continue;
            };
            let stated = seen.verdict.as_deref().and_then(Verdict::parse);
            let Some(verdict @ Verdict::Full(_)) = stated else {
                continue;
            };
            let server = match &seen.server {
                Some(name) => name.clone(),
                None => attempt.address.to_string(),
            };
            match causes.iter_mut().find(|cause| cause.verdict == verdict) {
                Some(cause) if cause.said_by.contains(&server) => {}
                Some(cause) => cause.said_by.push(server),
                None => causes.push(Cause {
                    verdict,
                    said_by: vec![server],
                }),
            }
        }
        causes
    }

    /// Counts of handshakes that the server ended after an offer; `None` if the server ended none.
    #[must_use]
    pub fn ended_offers(&self) -> Option<EndedOffers> {
        let mut counts = EndedOffers::default();
        for attempt in &self.attempts {
            if attempt.offered().is_none() {
                continue;
            }
            counts.offered += 1;
            if let Err(failed) = &attempt.result
                && failed.error.is_ended_by_server()
            {
                counts.ended += 1;
                if let Some(comparison) = &failed.without_session {
                    counts.compared += 1;
                    counts.succeeded += usize::from(comparison.is_ok());
                }
            }
        }
        (counts.ended > 0).then_some(counts)
    }

    /// Why there is no session to resume, if the mechanism is not offered.
    #[must_use]
    pub fn note(&self) -> Option<&'static str> {
        if self.status() != Status::NotOffered {
            return None;
        }
        if self.finished().next().is_some() {
            return Some(match self.how {
                How::SessionId => "the server gives no session ID (its server-side cache is off)",
                How::Ticket => "the server gives no ticket",
                How::Psk => "the server speaks TLS 1.3 and gives no ticket",
            });
        }
        if !self.attempts.iter().all(Attempt::refuses_version) {
            // An old server without a suite of TLS 1.3 sends this alert, too.
            return Some(
                "the server finds nothing in common with this client (alert handshake_failure)",
            );
        }
        Some(match self.how {
            How::SessionId | How::Ticket => "the server does not speak TLS 1.2",
            How::Psk => "the server does not speak TLS 1.3",
        })
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

#[cfg(test)]
mod tests;
