//! A probe finds out whether, how and across which servers a farm resumes sessions. For each
//! mechanism, the probe makes a full handshake. Then it connects again and again, and offers the
//! newest session each time (a return). The probe names a cause only if a server stated the cause.
//! It prints nothing; [`table`] and [`json`] write the report.

pub(crate) mod http;
pub mod json;
mod report;
#[cfg(test)]
mod samples;
pub mod table;

use std::net::SocketAddr;
use std::time::Duration;

use rustls::AlertDescription;
use sessile_proto::verdict::How;
use sessile_proto::watch::Learned;

use crate::client::{
    Client, Error, EstablishedConnection, Failure, Mechanism, SetupError, Target, Trust,
};
use http::AfterResponse;
pub use report::{Attempt, FailedHandshake, FinishedHandshake, MechanismFindings, ProbeReport};

/// The target of a probe, and how to probe it.
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// The target as the user wrote it; only displayed.
    pub target: String,
    /// Host name or IP address, for SNI and for the certificate.
    pub server_name: String,
    /// `Host` of the HTTP request.
    pub host: String,
    /// At least one address; handshakes rotate over the addresses.
    pub addresses: Vec<SocketAddr>,
    /// The addresses of each name that was looked up. The probe leaves out an address that is missing, if its name
    /// has another.
    pub names: Vec<Vec<SocketAddr>>,
    /// Number of returns for each mechanism.
    pub returns: usize,
    pub trust: Trust,
    /// The time limit of a TCP connection, and also of a handshake.
    pub timeout: Duration,
}

impl ProbePlan {
    /// True if the failure of an address is no failure of the farm.
    ///
    /// A name such as `localhost` can have addresses of IPv4 and IPv6, while the farm has only one of them.
    fn may_leave_out(&self, address: SocketAddr, error: &Error, report: &ProbeReport) -> bool {
        let is_missing =
            error.is_unreachable() || (error.is_refused() && !report.has_answered(address));
        let has_sibling = self.names.iter().any(|name| {
            let mut siblings = name.iter().filter(|sibling| **sibling != address);
            name.contains(&address) && siblings.any(|sibling| report.addresses.contains(sibling))
        });
        is_missing && has_sibling
    }
}

/// The handshake that begins next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeProgress {
    pub mechanism: How,
    /// 0 is the full handshake.
    pub attempt: usize,
    pub returns: usize,
    pub address: SocketAddr,
}

/// The mechanisms in the order of the report.
const MECHANISMS: [(How, Mechanism); 3] = [
    (How::SessionId, Mechanism::SessionId),
    (How::Ticket, Mechanism::Ticket),
    (How::Psk, Mechanism::Psk),
];

/// Time to wait for the HTTP response, and for the server's close. The time that the server needed
/// for its first byte is added.
const RESPONSE_WAIT: Duration = Duration::from_millis(500);

/// The offered application protocol. Servers that refuse it are asked again without ALPN.
const ALPN: &[u8] = b"http/1.1";

/// Runs the plan. `report` grows with each handshake, so a dropped future leaves a partial report.
/// `progress` is called before each handshake.
///
/// # Errors
///
/// The plan is invalid: the server name cannot be used, or there is no CA certificate.
pub async fn run(
    plan: &ProbePlan,
    report: &mut ProbeReport,
    progress: &mut dyn FnMut(ProbeProgress),
) -> Result<(), SetupError> {
    for (how, mechanism) in MECHANISMS {
        let mut client = Client::new(mechanism, &plan.trust, plan.timeout)?.with_alpn(&[ALPN]);
        report.mechanisms.push(MechanismFindings {
            how,
            attempts: Vec::new(),
        });
        let mut tried = 0;
        while tried <= plan.returns {
            let Some(&address) = report.addresses.get(tried % report.addresses.len().max(1)) else {
                break;
            };
            progress(ProbeProgress {
                mechanism: how,
                attempt: tried,
                returns: plan.returns,
                address,
            });
            let target = Target::new(address, &plan.server_name)?;
            let result = visit(&mut client, plan, how, &target).await;
            if let Err(failed) = &result
                && plan.may_leave_out(address, &failed.error, report)
            {
                report.leave_out(address, &failed.error);
                continue;
            }
            let current = report.mechanisms.last_mut();
            let findings = current.expect("the mechanism's findings were added above");
            findings.attempts.push(Attempt { address, result });
            tried += 1;
            if report.all_attempts_failed() {
                break;
            }
        }
        if report.no_address_answers() {
            break;
        }
    }
    report.complete = true;
    Ok(())
}

async fn visit(
    client: &mut Client,
    plan: &ProbePlan,
    how: How,
    target: &Target,
) -> Result<FinishedHandshake, FailedHandshake> {
    let mut connected = client.attempt(target).await;
    if let Err(Failure {
        error: Error::Alert(AlertDescription::NoApplicationProtocol),
        ..
    }) = connected
    {
        // The server speaks another protocol and insists on ALPN. Connect again without ALPN.
        *client = client.with_empty_sessions().with_alpn(&[]);
        connected = client.attempt(target).await;
    }
    let Failure { error, offered } = match connected {
        Ok(connection) => return Ok(inspect(connection, how, &plan.host).await),
        Err(failure) => failure,
    };
    let without_session = match offered {
        Some(_) => Some(connect_without_session(client, plan, how, target).await),
        None => None,
    };
    Err(FailedHandshake {
        error,
        offered,
        without_session,
    })
}

/// Connects without a session, after a connection with a session has failed. The next return offers
/// the session of the new connection.
async fn connect_without_session(
    client: &mut Client,
    plan: &ProbePlan,
    how: How,
    target: &Target,
) -> Result<(), Error> {
    let fresh = client.with_empty_sessions();
    let connection = fresh.connect(target).await?;
    inspect(connection, how, &plan.host).await;
    *client = fresh;
    Ok(())
}

/// Asks the server for its verdict, closes the connection, and gathers the facts.
async fn inspect(mut connection: EstablishedConnection, how: How, host: &str) -> FinishedHandshake {
    let wait = RESPONSE_WAIT + connection.times.first_byte;
    let stream = &mut connection.stream;
    let headers = http::request_head(stream, host, AfterResponse::Close, wait).await;
    // Send close_notify even without a response, because servers may forget a session whose
    // connection ends without it.
    connection.close(wait).await;
    let outcome = &connection.outcome;
    let given = match how {
        How::SessionId => connection.assigned_session_id().is_some(),
        How::Ticket => outcome
            .learned
            .iter()
            .any(|learned| matches!(learned, Learned::Ticket(_))),
        How::Psk => connection.tls13_tickets() > 0,
    };
    FinishedHandshake {
        offered: connection.offered.clone(),
        kind: outcome.kind,
        given,
        version: outcome.version,
        cipher_suite: outcome.cipher_suite,
        times: connection.times,
        certificate: connection.certificate_fingerprint(),
        server: headers.server,
        verdict: headers.verdict,
    }
}
