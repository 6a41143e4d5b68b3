//! Finds out whether, how and across which servers a farm resumes: for each mechanism a full
//! handshake, then returns that offer the newest session. It names a cause only where a server
//! said it, and prints nothing: inspect [`table`] and [`json`].

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
    Client, Error, EstablishedConnection, Failure, Mechanism, Options, Sessions, SetupError,
    Target, Trust,
};
use http::AfterResponse;
pub use report::{
    Attempt, Cause, EndedOffers, FailedHandshake, FinishedHandshake, LeftOut, MechanismFindings,
    ProbeReport, Status,
};

/// What to probe.
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// As the user wrote it; only shown.
    pub target: String,
    /// Host name or IP address: for SNI and for the certificate.
    pub server_name: String,
    /// `Host` of the HTTP request.
    pub host: String,
    /// At least one; handshakes rotate over them.
    pub addresses: Vec<SocketAddr>,
    /// Addresses that this machine has no way to are left out, rather than counted as failures.
    pub leave_out_unreachable: bool,
    /// Returns of each mechanism.
    pub returns: usize,
    pub trust: Trust,
    /// Longest time for a TCP connection, and for a handshake.
    pub timeout: Duration,
}

/// What is about to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeProgress {
    pub mechanism: How,
    /// 0: the full handshake.
    pub attempt: usize,
    pub returns: usize,
    pub address: SocketAddr,
}

/// The order of the report.
const MECHANISMS: [(How, Mechanism); 3] = [
    (How::SessionId, Mechanism::SessionId),
    (How::Ticket, Mechanism::Ticket),
    (How::Psk, Mechanism::Psk),
];

/// How long the answer to the HTTP request, and the server's end of the connection, is waited for;
/// beyond the time that the server was seen to need for its first byte.
const QUIET: Duration = Duration::from_millis(500);

/// The application protocol on offer, unless a server insists on with_empty_sessions.
const ALPN: &[u8] = b"http/1.1";

/// Runs the plan. `report` grows handshake by handshake: where the future is dropped, it holds what
/// was found until then. `progress` is called before each handshake.
///
/// # Errors
///
/// The plan cannot be tried: a name that is none, no CA certificate.
pub async fn run(
    plan: &ProbePlan,
    report: &mut ProbeReport,
    progress: &mut dyn FnMut(ProbeProgress),
) -> Result<(), SetupError> {
    for (how, mechanism) in MECHANISMS {
        let mut client = MechanismClient::new(plan, mechanism)?;
        report.mechanisms.push(MechanismFindings::new(how));
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
            let result = client.visit(plan, how, address).await?;
            if let Err(failed) = &result
                && plan.leave_out_unreachable
                && failed.error.is_unreachable()
                && report.addresses.len() > 1
            {
                report.leave_out(address, &failed.error);
                continue;
            }
            let findings = report.findings();
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

/// One mechanism's client.
struct MechanismClient {
    options: Options,
    client: Client,
}

impl MechanismClient {
    fn new(plan: &ProbePlan, mechanism: Mechanism) -> Result<Self, SetupError> {
        let options = Options {
            mechanism,
            trust: plan.trust.clone(),
            connect_timeout: plan.timeout,
            handshake_timeout: plan.timeout,
            alpn: vec![ALPN.to_vec()],
        };
        let client = Client::new(options.clone(), Sessions::default())?;
        Ok(Self { options, client })
    }

    async fn visit(
        &mut self,
        plan: &ProbePlan,
        how: How,
        address: SocketAddr,
    ) -> Result<Result<FinishedHandshake, FailedHandshake>, SetupError> {
        let target = Target::new(address, &plan.server_name)?;
        let mut connected = self.client.attempt(&target).await;
        if let Err(Failure {
            error: Error::Alert(AlertDescription::NoApplicationProtocol),
            ..
        }) = connected
        {
            // It speaks something else, and minds: ask again without a protocol.
            self.options.alpn.clear();
            self.client = Client::new(self.options.clone(), Sessions::default())?;
            connected = self.client.attempt(&target).await;
        }
        let Failure { error, offered } = match connected {
            Ok(connection) => return Ok(Ok(inspect(connection, how, &plan.host).await)),
            Err(failure) => failure,
        };
        let without_session = match offered {
            Some(_) => Some(self.compare(plan, how, &target).await),
            None => None,
        };
        Ok(Err(FailedHandshake {
            error,
            offered,
            without_session,
        }))
    }

    /// Connects without a session, right after a connection with one failed. The next return offers
    /// what this connection was given.
    async fn compare(&mut self, plan: &ProbePlan, how: How, target: &Target) -> Result<(), Error> {
        let fresh = self.client.with_empty_sessions();
        let connection = fresh.connect(target).await?;
        inspect(connection, how, &plan.host).await;
        self.client = fresh;
        Ok(())
    }
}

async fn inspect(mut connection: EstablishedConnection, how: How, host: &str) -> FinishedHandshake {
    let times = connection.times();
    let wait = QUIET + times.first_byte;
    let told = http::ask(connection.stream(), host, AfterResponse::Close, wait).await;
    // Also where the answer came: servers may forget a session whose connection was cut off.
    connection.close(wait).await;
    let outcome = connection.outcome();
    let given = match how {
        How::SessionId => connection.assigned_session_id().is_some(),
        How::Ticket => outcome
            .learned
            .iter()
            .any(|learned| matches!(learned, Learned::Ticket(_))),
        How::Psk => connection.tls13_tickets() > 0,
    };
    FinishedHandshake {
        offered: connection.offered().cloned(),
        kind: outcome.kind,
        given,
        version: outcome.version,
        cipher_suite: outcome.cipher_suite,
        times,
        certificate: connection.certificate_fingerprint(),
        server: told.server,
        verdict: told.verdict,
    }
}
