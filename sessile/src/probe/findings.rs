//! What follows from the results of a probe: the findings, the most severe first. A finding states only what the
//! wire shows.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use sessile_proto::Word;
use sessile_proto::resumption_matrix::Sharing;
use sessile_proto::verdict::How;
use sessile_proto::watch::{Kind, SessionOutcome};

use super::attempt::{Attempt, FinishedHandshake};
use super::finding::{Code, Finding};
use super::plan::FirstConnection;
use super::report::{DelayedReturn, MechanismFindings, ProbeReport, Status};
use crate::client::Error;

/// The findings of a report, the most severe first.
#[must_use]
pub fn of(report: &ProbeReport) -> Vec<Finding> {
    let mut found = Found {
        report,
        findings: Vec::new(),
    };
    found.failures();
    found.other_names();
    found.delayed();
    for tested in &report.mechanisms {
        found.sharing(tested);
        found.tickets(tested);
    }
    let is_offered = |tested: &MechanismFindings| tested.status() != Status::NotOffered;
    if report.complete && !report.has_no_connection() && !report.mechanisms.iter().any(is_offered) {
        let text = "No server gives a session: each connection pays for a full handshake.";
        found.add(Code::NoMechanism, None, Vec::new(), text.to_owned());
    }
    found
        .findings
        .sort_by_key(|finding| (finding.severity(), finding.code));
    found.findings
}

struct Found<'a> {
    report: &'a ProbeReport,
    findings: Vec<Finding>,
}

impl Found<'_> {
    /// Adds a finding. Findings that differ only in the mechanism become one.
    fn add(&mut self, code: Code, how: Option<How>, servers: Vec<SocketAddr>, text: String) {
        let same = self
            .findings
            .iter_mut()
            .find(|known| known.code == code && known.text == text && known.servers == servers);
        match same {
            Some(known) => known.mechanisms.extend(how),
            None => self.findings.push(Finding {
                code,
                mechanisms: how.into_iter().collect(),
                servers,
                text,
            }),
        }
    }

    fn names(&self, servers: &[SocketAddr]) -> String {
        let names: Vec<String> = servers
            .iter()
            .map(|address| self.report.server_label(*address))
            .collect();
        match names.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            [first @ .., last] => format!("{} and {last}", first.join(", ")),
        }
    }

    /// Servers that end handshakes, fail, or require a certificate.
    fn failures(&mut self) {
        for &address in &self.report.addresses {
            let at = |attempt: &&Attempt| attempt.address == address;
            let failed = || {
                self.report
                    .attempts()
                    .filter(at)
                    .filter_map(|attempt| attempt.result.as_ref().err().map(|it| (attempt, it)))
            };
            let label = self.report.server_label(address);
            let offered = self
                .report
                .attempts()
                .filter(at)
                .filter(|attempt| attempt.origin.is_some())
                .count();
            let ended = failed()
                .filter(|(_, it)| {
                    it.error.is_ended_by_server() && matches!(it.without_session, Some(Ok(())))
                })
                .count();
            if ended > 0 {
                let mut text = format!(
                    "{label} ended {ended} of {offered} handshakes that offered a session of the farm, and \
                     finished the same handshakes without a session."
                );
                if ended == offered {
                    text += " Clients that return cannot connect.";
                }
                self.add(Code::EndsResumption, None, vec![address], text);
                continue;
            }
            let refused_without_certificate = failed().any(|(_, it)| {
                it.certificate_requested
                    && matches!(it.error, Error::Alert(_) | Error::ClosedEarly(_))
            });
            if refused_without_certificate {
                let text = format!(
                    "{label} requests a client certificate, and refused the handshake. The probe has no \
                     certificate that the server accepts."
                );
                self.add(Code::ClientCertificateRequired, None, vec![address], text);
                continue;
            }
            let is_requested = self
                .report
                .attempts()
                .filter(at)
                .any(Attempt::requests_certificate);
            if is_requested && !self.report.has_client_certificate {
                let text = format!(
                    "{label} requests a client certificate, and finished handshakes without one. Clients with \
                     a certificate can have other results."
                );
                self.add(Code::ClientCertificateRequested, None, vec![address], text);
            }
            let faults: BTreeSet<String> = failed()
                .filter(|(attempt, _)| !attempt.is_declined())
                .map(|(_, it)| it.error.to_string())
                .collect();
            let attempts = self.report.attempts().filter(at).count();
            if let Some(fault) = faults.first() {
                let text = format!(
                    "{} of {attempts} handshakes with {label} failed: {fault}",
                    failed().filter(|(it, _)| !it.is_declined()).count()
                );
                self.add(Code::AddressFails, None, vec![address], text);
            }
        }
    }

    /// Sessions of the tested name that resume for another name.
    fn other_names(&mut self) {
        for offered in &self.report.other_names {
            let resumed = offered.offer.as_ref().ok();
            let Some(seen) = resumed.filter(|seen| matches!(seen.kind, Kind::Resumed(_))) else {
                continue;
            };
            let (requests_certificate, certificate) = match &offered.full {
                Ok(seen) => (seen.certificate_requested, seen.certificate),
                Err(failed) => (failed.certificate_requested, None),
            };
            let label = self.report.server_label(offered.address);
            let [name, own] = [&offered.name, &self.report.server_name];
            let is_open_to_all = offered.full.as_ref().is_ok_and(is_answered);
            if is_open_to_all {
                // The other name asks for a certificate, but serves clients without one.
                continue;
            }
            if requests_certificate && !self.report.requests_certificate(offered.address) {
                let text = format!(
                    "{label} requests a client certificate for {name}, and resumed a session of {own} for {name} \
                     without a request"
                );
                let (code, text) = match seen.status {
                    Some(status) if (200..300).contains(&status) => {
                        let end = "A client without a certificate gets in, as in CVE-2025-23419.";
                        let text = format!("{text}. It answered HEAD / with {status}. {end}");
                        (Code::SkipsClientCertificate, text)
                    }
                    Some(status) => {
                        let text = format!("{text}. It refused HEAD / with {status}.");
                        (Code::ResumesForOtherName, text)
                    }
                    None => {
                        let end = "The probe got no HTTP response, so it does not know whether the server checks.";
                        (Code::ResumesForOtherName, format!("{text}. {end}"))
                    }
                };
                self.add(code, Some(offered.how), vec![offered.address], text);
            } else if certificate.is_some() && certificate != offered.certificate {
                let text = format!(
                    "{label} resumed a session of {own} for {name}, which has another certificate."
                );
                let code = Code::ResumesForOtherName;
                self.add(code, Some(offered.how), vec![offered.address], text);
            }
        }
    }

    /// Sessions that were gone after a gap.
    fn delayed(&mut self) {
        let all = &self.report.delayed;
        for lost in all
            .iter()
            .filter(|it| it.outcome == SessionOutcome::Refused)
        {
            let same_test =
                |other: &&DelayedReturn| (other.how, other.address) == (lost.how, lost.address);
            let kept = || {
                all.iter()
                    .filter(same_test)
                    .filter(|it| it.outcome == SessionOutcome::Resumed)
            };
            let earlier_loss = all.iter().filter(same_test).any(|it| {
                it.outcome == SessionOutcome::Refused
                    && it.first_connection == lost.first_connection
                    && it.gap < lost.gap
            });
            if earlier_loss {
                continue;
            }
            let label = self.report.server_label(lost.address);
            let gap = humantime::format_duration(lost.gap);
            let is_kept_by_close = kept().any(|it| {
                it.gap == lost.gap && it.first_connection == FirstConnection::CloseNotify
            });
            let (code, text) = match lost.first_connection {
                FirstConnection::Idle if is_kept_by_close => (
                    Code::LostWithIdleConnection,
                    format!(
                        "{label} refused a session after {gap} in which its first connection was idle, and resumed \
                         one whose first connection had ended. The server forgets sessions with idle connections."
                    ),
                ),
                FirstConnection::Fin | FirstConnection::Reset if is_kept_by_close => (
                    Code::LostWithoutCloseNotify,
                    format!(
                        "{label} refused a session whose first connection ended without close_notify ({}), and \
                         resumed one after close_notify.",
                        lost.first_connection.as_str()
                    ),
                ),
                fate => {
                    let longest = kept()
                        .filter(|it| it.first_connection == fate && it.gap < lost.gap)
                        .map(|it| it.gap)
                        .max();
                    let known = match longest {
                        Some(longest) => humantime::format_duration(longest).to_string(),
                        None => "once".to_owned(),
                    };
                    let text = format!(
                        "{label} resumed a session after {known}, and refused one after {gap} (first connection: \
                         {}).",
                        fate.as_str()
                    )
                    .replace("after once", "at once");
                    (Code::LostAfterGap, text)
                }
            };
            self.add(code, Some(lost.how), vec![lost.address], text);
        }
    }

    fn addresses(&self, indexes: &[usize]) -> Vec<SocketAddr> {
        indexes
            .iter()
            .map(|&index| self.report.addresses[index])
            .collect()
    }

    /// Who resumes whose sessions.
    fn sharing(&mut self, tested: &MechanismFindings) {
        let how = Some(tested.how);
        if self.report.gives_unusable_session_ids(tested) {
            let servers = self.report.addresses.clone();
            let text = format!(
                "{} gave session IDs, and accepted none of them. TLS 1.2 clients resume with tickets, so only \
                 clients without tickets pay for full handshakes.",
                self.names(&servers)
            );
            self.add(Code::UnusableSessionIds, how, servers, text);
            return;
        }
        let matrix = tested.matrix(&self.report.addresses);
        let sharing = matrix.sharing();
        self.own_sessions(tested, &sharing);
        self.one_way(tested, &sharing);
        let is_split = matrix.has_separate_groups(&sharing.groups);
        if is_split {
            let groups: Vec<String> = sharing
                .groups
                .iter()
                .map(|group| self.names(&self.addresses(group)))
                .collect();
            let servers = self.addresses(&sharing.groups.concat());
            let code = if is_by_cache(tested) {
                Code::NoSharedCache
            } else {
                Code::NoSharedTicketKeys
            };
            let what = match code {
                Code::NoSharedCache => "do not share a session cache",
                _ => "do not share ticket keys",
            };
            let text = format!(
                "The servers {what}. Each of these groups resumes only its own sessions: {}.",
                groups.join("; ")
            );
            self.add(code, how, servers, text);
        }
        for &(from, to) in &sharing.uneven {
            // An address that is uneven with its own sessions is another finding.
            if sharing.divided.contains(&from) || sharing.divided.contains(&to) {
                continue;
            }
            let answers = matrix.answers(from, to);
            let [from, to] = [from, to].map(|index| self.report.addresses[index]);
            let text = format!(
                "{} resumed {} of {} sessions of {}. Several servers that do not share their keys can have one \
                 of the addresses.",
                self.names(&[to]),
                answers.resumed,
                answers.offered(),
                self.names(&[from]),
            );
            self.add(Code::ResumesSometimes, how, vec![from, to], text);
        }
        self.not_offered_by_all(tested);
    }

    /// Servers that give no session of a kind that others give.
    fn not_offered_by_all(&mut self, tested: &MechanismFindings) {
        let missing: Vec<SocketAddr> = self
            .report
            .addresses
            .iter()
            .copied()
            .filter(|address| !tested.gives_sessions(*address) || tested.is_declined_by(*address))
            .collect();
        let one_gives = self
            .report
            .addresses
            .iter()
            .any(|address| tested.gives(*address));
        if one_gives && !missing.is_empty() {
            let text = format!(
                "{} gives no session of this kind; the other servers do.",
                self.names(&missing)
            );
            self.add(Code::NotOfferedByAll, Some(tested.how), missing, text);
        }
    }

    /// Servers that refuse their own sessions.
    fn own_sessions(&mut self, tested: &MechanismFindings, sharing: &Sharing) {
        let how = Some(tested.how);
        // Without its certificate, a client can lose the session for another reason.
        let lacks_certificate = |address| {
            self.report.requests_certificate(address) && !self.report.has_client_certificate
        };
        let servers: Vec<usize> = sharing
            .forgetful
            .iter()
            .chain(&sharing.divided)
            .copied()
            .filter(|&server| !lacks_certificate(self.report.addresses[server]))
            .collect();
        for server in servers {
            let address = self.report.addresses[server];
            let own = || {
                tested.attempts.iter().filter(move |attempt| {
                    attempt.address == address && attempt.origin == Some(address)
                })
            };
            // A server that ends the handshake is another finding.
            let refused = own()
                .filter(|it| it.seen().is_some_and(|seen| seen.kind == Kind::Refused))
                .count();
            if refused == 0 {
                continue;
            }
            let label = self.report.server_label(address);
            let offered = own().count();
            let names = key_names(own());
            let stated: BTreeSet<&str> = own()
                .filter_map(|attempt| attempt.seen()?.server.as_deref())
                .collect();
            let is_divided = sharing.divided.contains(&server);
            if names > 1 || stated.len() > 1 || is_divided {
                let mut text = format!(
                    "{label} resumed {} of {offered} of its own sessions. ",
                    offered - refused
                );
                if names > 1 {
                    text += &format!(
                        "Its tickets are sealed by {names} keys: several servers or processes that do not share \
                         ticket keys have this address, or the key changed meanwhile."
                    );
                } else if stated.len() > 1 {
                    let stated: Vec<&str> = stated.into_iter().collect();
                    text += &format!(
                        "The servers {} have this address, and they do not share their sessions.",
                        stated.join(", ")
                    );
                } else {
                    text += "Several servers or processes that do not share their sessions can have this address.";
                }
                self.add(Code::SeveralServersAtAddress, how, vec![address], text);
            } else {
                let text = format!(
                    "{label} gave sessions, and refused all {offered} of them at once. If several servers have \
                     this address, they do not share their sessions."
                );
                self.add(Code::ForgetsOwnSessions, how, vec![address], text);
            }
        }
    }

    fn one_way(&mut self, tested: &MechanismFindings, sharing: &Sharing) {
        for &(from, to) in &sharing.one_way {
            let [from, to] = [from, to].map(|index| self.report.addresses[index]);
            let mut text = format!(
                "{to} resumes the sessions of {from}, but {from} does not resume the sessions of {to}",
                to = self.names(&[to]),
                from = self.names(&[from]),
            );
            if is_by_cache(tested) {
                text.push('.');
            } else {
                text += &format!(
                    ": {to} has the key of {from} as an old key, and seals with a key that {from} does not have.",
                    to = self.names(&[to]),
                    from = self.names(&[from]),
                );
            }
            self.add(Code::OneWayKeys, Some(tested.how), vec![from, to], text);
        }
    }

    /// When tickets are given.
    fn tickets(&mut self, tested: &MechanismFindings) {
        let resumed = |seen: &&FinishedHandshake| matches!(seen.kind, Kind::Resumed(_));
        for &address in &self.report.addresses {
            let at = tested
                .attempts
                .iter()
                .filter(|attempt| attempt.address == address)
                .filter_map(Attempt::seen);
            let returns: Vec<_> = at.filter(resumed).collect();
            let given = returns.iter().filter(|seen| seen.given).count();
            let label = self.report.server_label(address);
            match tested.how {
                How::Psk if !returns.is_empty() && given == 0 && tested.gives(address) => {
                    let text = format!(
                        "{label} gives TLS 1.3 tickets in full handshakes only. A client that uses each ticket \
                         once pays for a full handshake when its tickets are used up."
                    );
                    self.add(
                        Code::TicketsInFullHandshakesOnly,
                        Some(tested.how),
                        vec![address],
                        text,
                    );
                }
                How::Ticket if given > 0 => {
                    let text = format!(
                        "{label} gave a new ticket in {given} of {} resumed TLS 1.2 handshakes. OpenSSL clients \
                         that take sessions by callback lose their session by this.",
                        returns.len()
                    );
                    self.add(
                        Code::RenewsTls12Ticket,
                        Some(tested.how),
                        vec![address],
                        text,
                    );
                }
                How::SessionId | How::Ticket | How::Psk => {}
            }
        }
    }
}

/// True if the sessions are in a cache of the server. TLS 1.3 servers with a cache give short identities, which have
/// no room for a sealed session.
fn is_by_cache(tested: &MechanismFindings) -> bool {
    let mut offers = tested.returns().filter_map(Attempt::offered);
    tested.how == How::SessionId || offers.all(|offer| offer.bytes.len() <= MAX_CACHE_IDENTITY)
}

/// Maximum length of an identity that only names a session in a cache.
const MAX_CACHE_IDENTITY: usize = 64;

/// True if the server answered the request with success.
fn is_answered(seen: &FinishedHandshake) -> bool {
    seen.status
        .is_some_and(|status| (200..300).contains(&status))
}

/// The number of different key names in the offered tickets. 1 if the tickets have no key names.
fn key_names<'a>(attempts: impl Iterator<Item = &'a Attempt>) -> usize {
    let mut tickets = BTreeSet::new();
    let mut names = BTreeSet::new();
    for attempt in attempts {
        if let Some(offer) = attempt
            .offered()
            .filter(|offer| offer.how != How::SessionId)
        {
            tickets.insert(&offer.bytes);
            names.insert(offer.prefix());
        }
    }
    // Without a repeated prefix, the first bytes can be random.
    if names.len() < tickets.len() {
        names.len()
    } else {
        1
    }
}

#[cfg(test)]
mod tests;
