//! What follows from the results of a probe: the findings, the most severe first. A finding states only what the
//! wire shows.

mod ages;
mod client_certificate;
mod delayed;
mod early_data;
mod groups;
mod other_names;
mod tickets;
mod watch;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use sessile_proto::resumption_matrix::Sharing;
use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;

use super::attempt::Attempt;
use super::finding::{Code, Finding};
use super::report::{MechanismFindings, ProbeReport, Status};
use super::ticket_bytes::{KEY_NAME_LEN, names_cached_session};
use super::ticket_facts::KeyNames;
use crate::client::Error;

/// The findings of a report, the most severe first.
#[must_use]
pub fn of(report: &ProbeReport) -> Vec<Finding> {
    let mut found = Found {
        report,
        findings: Vec::new(),
        observations: Vec::new(),
    };
    found.failures();
    found.other_names();
    found.delayed();
    found.early_data();
    found.session_ages();
    found.watched();
    for tested in &report.mechanisms {
        found.sharing(tested);
        found.tickets(tested);
        found.client_certificates(tested);
    }
    let is_offered = |tested: &MechanismFindings| tested.status() != Status::NotOffered;
    if report.complete && !report.has_no_connection() && !report.mechanisms.iter().any(is_offered) {
        let text = "No server gives a session: each connection pays for a full handshake.";
        found.add(Code::NoMechanism, None, Vec::new(), text.to_owned());
    }
    found.conclude();
    found
        .findings
        .sort_by_key(|finding| (finding.severity(), finding.code));
    found.findings
}

struct Found<'a> {
    report: &'a ProbeReport,
    findings: Vec<Finding>,
    /// What single servers did. Servers that did the same become one finding.
    observations: Vec<Observation>,
}

struct Observation {
    code: Code,
    how: Option<How>,
    server: SocketAddr,
    /// What the server did. This is the rest of a sentence that begins with the name of the server.
    deed: String,
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

    /// Notes what a server did.
    fn observe(&mut self, code: Code, how: Option<How>, server: SocketAddr, deed: String) {
        self.observations.push(Observation {
            code,
            how,
            server,
            deed,
        });
    }

    /// Makes findings of the observations.
    fn conclude(&mut self) {
        let mut findings: Vec<(Finding, String)> = Vec::new();
        let observations = std::mem::take(&mut self.observations);
        for (at, observation) in observations.iter().enumerate() {
            let is_same = |other: &&Observation| {
                (other.code, other.server, &other.deed)
                    == (observation.code, observation.server, &observation.deed)
            };
            if observations[..at].iter().any(|other| is_same(&other)) {
                continue;
            }
            let mut mechanisms: Vec<How> = Vec::new();
            for how in observations
                .iter()
                .filter(is_same)
                .filter_map(|other| other.how)
            {
                if !mechanisms.contains(&how) {
                    mechanisms.push(how);
                }
            }
            let known = findings.iter_mut().find(|(finding, deed)| {
                finding.code == observation.code
                    && finding.mechanisms == mechanisms
                    && *deed == observation.deed
            });
            match known {
                Some((finding, _)) => finding.servers.push(observation.server),
                None => {
                    let finding = Finding {
                        code: observation.code,
                        mechanisms,
                        servers: vec![observation.server],
                        text: String::new(),
                    };
                    findings.push((finding, observation.deed.clone()));
                }
            }
        }
        for (mut finding, deed) in findings {
            finding.text = format!("{} {deed}", self.names(&finding.servers));
            self.findings.push(finding);
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
                let deed = "requested a client certificate, and refused the handshake. The probe has no certificate \
                            that is accepted.";
                let code = Code::ClientCertificateRequired;
                self.observe(code, None, address, deed.to_owned());
                continue;
            }
            let is_requested = self
                .report
                .attempts()
                .filter(at)
                .any(Attempt::requests_certificate);
            if is_requested && !self.report.has_client_certificate {
                let deed = "requested a client certificate, and finished handshakes without one. Clients with a \
                            certificate can have other results.";
                let code = Code::ClientCertificateRequested;
                self.observe(code, None, address, deed.to_owned());
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
            self.unusable_session_ids(how);
            return;
        }
        let matrix = tested.matrix(&self.report.addresses);
        let sharing = matrix.sharing();
        self.own_sessions(tested, &sharing);
        self.one_way(tested, &sharing);
        if matrix.has_separate_groups(&sharing.groups) {
            self.separate_groups(tested, &sharing);
        }
        self.apart(tested, &sharing);
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

    fn unusable_session_ids(&mut self, how: Option<How>) {
        let mut servers = self.report.addresses.clone();
        servers.retain(|address| !self.lacks_certificate(*address));
        if servers.is_empty() {
            return;
        }
        let text = format!(
            "{} gave session IDs, and accepted none of them. TLS 1.2 clients resume with tickets, so only clients \
             without tickets pay for full handshakes.",
            self.names(&servers)
        );
        self.add(Code::UnusableSessionIds, how, servers, text);
    }

    /// True if the server requests a certificate that the probe does not have. Without a certificate, a client can
    /// lose its session for another reason: nginx forgets the session if it refuses the request.
    fn lacks_certificate(&self, address: SocketAddr) -> bool {
        self.report.requests_certificate(address) && !self.report.has_client_certificate
    }

    /// Servers that refuse their own sessions.
    fn own_sessions(&mut self, tested: &MechanismFindings, sharing: &Sharing) {
        let how = Some(tested.how);
        let servers: Vec<usize> = sharing
            .forgetful
            .iter()
            .chain(&sharing.divided)
            .copied()
            .filter(|&server| !self.lacks_certificate(self.report.addresses[server]))
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
            let names = number_of_keys(self.report, tested, address);
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
                let deed = "gave sessions, and refused all of them at once. If several servers have one address, they \
                            do not share their sessions.";
                self.observe(Code::ForgetsOwnSessions, how, address, deed.to_owned());
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
}

/// True if the sessions are in a cache of the server. TLS 1.3 servers with a cache give short identities, which have
/// no room for a sealed session.
fn is_by_cache(tested: &MechanismFindings) -> bool {
    let mut offers = tested.returns().filter_map(Attempt::offered);
    tested.how == How::SessionId || offers.all(|offer| names_cached_session(&offer.bytes))
}

/// The number of keys that sealed the tickets of a server. 1 if the tickets have no key names.
fn number_of_keys(report: &ProbeReport, tested: &MechanismFindings, server: SocketAddr) -> usize {
    let names = KeyNames::of(report);
    let tickets = || {
        tested
            .tickets_of(server)
            .map(|(_, ticket)| ticket.bytes.as_slice())
    };
    if !tickets().any(|ticket| names.name(ticket).is_some()) {
        return 1;
    }
    // A key that sealed a single ticket has a name that does not repeat.
    let prefixes: BTreeSet<&[u8]> = tickets()
        .filter_map(|ticket| ticket.get(..KEY_NAME_LEN))
        .collect();
    prefixes.len()
}

#[cfg(test)]
mod tests;
