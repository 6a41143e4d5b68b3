//! One connection of a probe: handshake, a moment for tickets, request, close.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::AlertDescription;
use sessile_proto::hello::TLS_1_3;
use sessile_proto::verdict::How;
use sessile_proto::watch::Learned;

use super::attempt::{FailedHandshake, FinishedHandshake};
use super::http::{self, AfterResponse, Exchange};
use super::plan::{ProbePlan, Request};
use crate::client::{
    Client, Error, EstablishedConnection, Failure, Mechanism, ReplayClient, Sessions, SetupError,
    Target,
};

/// Time to wait for the HTTP response, and for the server's close. The time that the server needed
/// for its first byte is added.
pub(super) const RESPONSE_WAIT: Duration = Duration::from_millis(500);

/// Time to wait for TLS 1.3 tickets, or for an alert, before the request. The time that the server needed for its
/// first byte is added.
pub(super) const TICKET_WAIT: Duration = Duration::from_millis(150);

const HTTP1: &[u8] = b"http/1.1";
const H2: &[u8] = b"h2";

/// Connects with one mechanism, and keeps the sessions of each server apart.
pub(super) struct Visitor<'a> {
    pub(super) plan: &'a ProbePlan,
    pub(super) how: How,
    client: Client,
    sessions: HashMap<SocketAddr, Sessions>,
    /// The offers of ALPN for a server, the preferred one first.
    alpn: Vec<Vec<&'a [u8]>>,
    /// The number of offers that each server has refused.
    refused_alpn: HashMap<SocketAddr, usize>,
}

impl<'a> Visitor<'a> {
    pub(super) fn new(plan: &'a ProbePlan, how: How) -> Result<Self, SetupError> {
        let client = Client::with_certificate(
            mechanism(how),
            &plan.trust,
            plan.certificate.as_ref(),
            plan.timeout,
        )?;
        let alpn = match (&plan.alpn, plan.request) {
            (Some(names), _) => vec![names.iter().map(String::as_bytes).collect()],
            (None, Request::Http1) => vec![vec![HTTP1], vec![H2], vec![]],
            (None, Request::H2) => vec![vec![H2]],
            (None, Request::None) => vec![vec![]],
        };
        Ok(Self {
            plan,
            how,
            client,
            sessions: HashMap::new(),
            alpn,
            refused_alpn: HashMap::new(),
        })
    }

    /// True if the probe holds a session that this server gave.
    pub(super) fn has_session_of(&self, server: SocketAddr) -> bool {
        self.sessions
            .get(&server)
            .is_some_and(|sessions| !sessions.is_empty())
    }

    /// Connects to `address` with a session of `origin`, or without a session.
    pub(super) async fn visit(
        &mut self,
        origin: Option<SocketAddr>,
        address: SocketAddr,
    ) -> Result<Result<FinishedHandshake, FailedHandshake>, SetupError> {
        let offered = match origin {
            Some(origin) => self.sessions_of(origin),
            None => self.client.sessions.empty_like(),
        };
        self.visit_with(&offered, address).await
    }

    /// Takes the newest session of a server. Empty if there is none. A TLS 1.2 session stays here, too.
    pub(super) fn take_newest(&mut self, server: SocketAddr) -> Result<Sessions, SetupError> {
        let name = self.target(server)?.server_name;
        Ok(self.sessions_of(server).newest_for(&name, &name))
    }

    /// Connects to `address` with the newest of these sessions. New sessions go to those of the server.
    pub(super) async fn visit_with(
        &mut self,
        offered: &Sessions,
        address: SocketAddr,
    ) -> Result<Result<FinishedHandshake, FailedHandshake>, SetupError> {
        let target = self.target(address)?;
        loop {
            let failed = match self.connect(offered, &target).await {
                Ok(seen) => return Ok(Ok(seen)),
                Err(failed) => failed,
            };
            let insists_on_alpn = matches!(
                failed.error,
                Error::Alert(AlertDescription::NoApplicationProtocol)
            );
            let refused = self.refused_alpn.entry(address).or_default();
            if !insists_on_alpn || *refused + 1 == self.alpn.len() {
                return Ok(Err(self.compared(failed, &target).await));
            }
            // The server speaks another protocol and insists on ALPN.
            *refused += 1;
            self.plan.pace.wait(address).await;
        }
    }

    /// Makes a full handshake and a request, and leaves the connection open.
    pub(super) async fn open(
        &mut self,
        address: SocketAddr,
    ) -> Result<Result<EstablishedConnection, FailedHandshake>, SetupError> {
        let target = self.target(address)?;
        let client = self.client_with_sessions(address);
        let offered = client.sessions.empty_like();
        let mut connection = match client.attempt_with(&offered, &target).await {
            Ok(connection) => connection,
            Err(failure) => return Ok(Err(failure.into())),
        };
        let wait = RESPONSE_WAIT + connection.times.first_byte;
        if let Err(error) = connection.settle(TICKET_WAIT).await {
            return Ok(Err(failed_after_finished(error, &connection)));
        }
        self.exchange(
            &mut connection,
            &self.plan.host,
            AfterResponse::KeepAlive,
            wait,
        )
        .await;
        Ok(Ok(connection))
    }

    /// Returns with the session of [`Visitor::open`].
    pub(super) async fn return_to(
        &mut self,
        address: SocketAddr,
    ) -> Result<Result<FinishedHandshake, FailedHandshake>, SetupError> {
        let target = self.target(address)?;
        let offered = self.sessions_of(address);
        Ok(self.connect(&offered, &target).await)
    }

    /// Gets a new session of the server, whose age is exact. True if it allows the request as early data.
    pub(super) async fn renew_session(&mut self, server: SocketAddr) -> Result<bool, SetupError> {
        let name = self.target(server)?.server_name;
        let request = http::early_request(&self.plan.host);
        self.client.restart_clock();
        let is_finished = self.visit(None, server).await?.is_ok();
        let sessions = self.sessions_of(server);
        Ok(is_finished && sessions.allows_early_data(&name, request.len()))
    }

    /// Offers the newest session of `origin` with early data. The result tells whether the server accepted the early
    /// data.
    pub(super) async fn offer_early_data(
        &mut self,
        origin: SocketAddr,
        address: SocketAddr,
    ) -> Result<Result<bool, Error>, SetupError> {
        let target = self.target(address)?;
        let request = http::early_request(&self.plan.host);
        let offered = self.sessions_of(origin);
        let client = self.client_with_sessions(address);
        let attempt = client.attempt_with_early_data(&offered, &target, request.as_bytes());
        let mut connection = match attempt.await {
            Ok(connection) => connection,
            Err(failure) => return Ok(Err(failure.error)),
        };
        let is_accepted = connection.has_accepted_early_data();
        let wait = RESPONSE_WAIT + connection.times.first_byte;
        if is_accepted {
            http::read_head(&mut connection.stream, wait).await;
        }
        connection.close(wait).await;
        Ok(Ok(is_accepted))
    }

    /// Connects with another server name, and with a session of the tested name that `origin` gave, or without a
    /// session. Keeps no new session.
    pub(super) async fn visit_name(
        &self,
        name: &str,
        origin: Option<SocketAddr>,
        address: SocketAddr,
    ) -> Result<Result<FinishedHandshake, FailedHandshake>, SetupError> {
        let own = self.target(address)?.server_name;
        let target = self.plan.connection_target(address, name)?;
        let client = self.client_for(address).with_empty_sessions();
        let offered = match origin.and_then(|origin| self.sessions.get(&origin)) {
            Some(sessions) => sessions.newest_for(&own, &target.server_name),
            None => client.sessions.empty_like(),
        };
        Ok(match client.attempt_with(&offered, &target).await {
            Ok(connection) => self.inspect(connection, name).await,
            Err(failure) => Err(failure.into()),
        })
    }

    /// Connects without a session if a connection with a session has failed.
    async fn compared(&mut self, mut failed: FailedHandshake, target: &Target) -> FailedHandshake {
        if failed.offered.is_some() {
            self.plan.pace.wait(target.address).await;
            let nothing = self.client.sessions.empty_like();
            let result = self.connect(&nothing, target).await;
            failed.without_session = Some(result.map(drop).map_err(|failed| failed.error));
        }
        failed
    }

    /// The server under the tested name.
    pub(super) fn target(&self, server: SocketAddr) -> Result<Target, SetupError> {
        self.plan.connection_target(server, &self.plan.server_name)
    }

    /// A client whose sessions can be offered several times.
    pub(super) fn replay_client(&self, server: SocketAddr) -> Result<ReplayClient, SetupError> {
        let plan = self.plan;
        let client = ReplayClient::new(&plan.trust, plan.certificate.as_ref(), plan.timeout)?;
        Ok(client.with_alpn(self.alpn_for(server)))
    }

    /// The client with the offer of ALPN that the server has not refused.
    fn client_for(&self, server: SocketAddr) -> Client {
        self.client.clone().with_alpn(self.alpn_for(server))
    }

    /// The client that puts new sessions of the server to the others.
    fn client_with_sessions(&mut self, server: SocketAddr) -> Client {
        let mut client = self.client_for(server);
        client.sessions = self.sessions_of(server);
        client
    }

    /// The offer of ALPN that the server has not refused.
    pub(super) fn alpn_for(&self, server: SocketAddr) -> &[&'a [u8]] {
        let refused = self.refused_alpn.get(&server).copied().unwrap_or(0);
        &self.alpn[refused]
    }

    /// True if the server can only choose HTTP/1.1.
    pub(super) fn offers_http1_only(&self, server: SocketAddr) -> bool {
        self.plan.request == Request::Http1 && !self.alpn_for(server).contains(&H2)
    }

    fn sessions_of(&mut self, server: SocketAddr) -> Sessions {
        let empty = || self.client.sessions.empty_like();
        self.sessions.entry(server).or_insert_with(empty).clone()
    }

    async fn connect(
        &mut self,
        offered: &Sessions,
        target: &Target,
    ) -> Result<FinishedHandshake, FailedHandshake> {
        let client = self.client_with_sessions(target.address);
        let connection = client.attempt_with(offered, target).await?;
        self.inspect(connection, &self.plan.host).await
    }

    /// Waits for tickets, makes the request, closes the connection, and gathers the facts.
    async fn inspect(
        &self,
        mut connection: EstablishedConnection,
        host: &str,
    ) -> Result<FinishedHandshake, FailedHandshake> {
        let round_trip = connection.times.first_byte;
        let is_tls13 = connection.outcome.version == TLS_1_3;
        if is_tls13 && let Err(error) = connection.settle(TICKET_WAIT + round_trip).await {
            return Err(failed_after_finished(error, &connection));
        }
        let wait = RESPONSE_WAIT + round_trip;
        let Exchange { headers, alert } = self
            .exchange(&mut connection, host, AfterResponse::Close, wait)
            .await;
        // A server that checks the client's certificate slowly sends its alert during the request.
        if let Some(alert) = alert
            && is_tls13
            && (connection.tls13_tickets() == 0 || connection.certificate_requested)
        {
            return Err(failed_after_finished(Error::Alert(alert), &connection));
        }
        // Send close_notify even without a response, because servers may forget a session whose
        // connection ends without it.
        connection.close(wait).await;
        Ok(FinishedHandshake {
            offered: connection.offered.clone(),
            kind: connection.outcome.kind,
            given: is_given(&connection, self.how),
            version: connection.outcome.version,
            cipher_suite: connection.outcome.cipher_suite,
            times: connection.times,
            tickets: connection.tickets(),
            certificate_left: connection.certificate_left(),
            certificate: connection.certificate_fingerprint(),
            certificate_requested: connection.certificate_requested,
            status: headers.status,
            server: headers.server,
            verdict: headers.verdict,
        })
    }

    async fn exchange(
        &self,
        connection: &mut EstablishedConnection,
        host: &str,
        then: AfterResponse,
        wait: Duration,
    ) -> Exchange {
        let speaks_h2 = connection.stream.tls().alpn_protocol() == Some(H2);
        match self.plan.request {
            Request::None => Exchange::default(),
            Request::Http1 if !speaks_h2 => {
                http::request_head(&mut connection.stream, host, then, wait).await
            }
            Request::Http1 | Request::H2 => http::http2_preface(&mut connection.stream, wait).await,
        }
    }
}

impl From<Failure> for FailedHandshake {
    fn from(failure: Failure) -> Self {
        Self {
            error: failure.error,
            offered: failure.offered,
            certificate_requested: failure.certificate_requested,
            without_session: None,
        }
    }
}

fn failed_after_finished(error: Error, connection: &EstablishedConnection) -> FailedHandshake {
    FailedHandshake {
        error,
        offered: connection.offered.clone(),
        certificate_requested: connection.certificate_requested,
        without_session: None,
    }
}

/// True if the server gave a new session of the mechanism.
fn is_given(connection: &EstablishedConnection, how: How) -> bool {
    match how {
        How::SessionId => connection.assigned_session_id().is_some(),
        How::Ticket => connection
            .outcome
            .learned
            .iter()
            .any(|learned| matches!(learned, Learned::Ticket(_))),
        How::Psk => connection.tls13_tickets() > 0,
    }
}

/// The client's part of a mechanism.
const fn mechanism(how: How) -> Mechanism {
    match how {
        How::SessionId => Mechanism::SessionId,
        How::Ticket => Mechanism::Ticket,
        How::Psk => Mechanism::Psk,
    }
}
