//! One health check: a TCP connection, or a handshake of our own client.
//!
//! This client trusts every certificate. A check finds out whether the server answers. Other clients verify
//! the identity of the server.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use sessile_proto::hello::TLS_1_2;
use sessile_proto::proxy_protocol;
use sessile_proto::session_fault::CheckClient;
use sessile_proto::verdict::How;

use super::super::server::PoolServer;
use super::super::servers::{Pool, ServerSet};
use crate::client::{
    Client, EstablishedConnection, Failure, Mechanism, Sessions, StartTls, Target, Trust,
};
use crate::config::Health;

/// How long a check waits for TLS 1.3 tickets after the handshake.
const TICKET_WAIT: Duration = Duration::from_millis(500);

/// How long a check waits for the server's close.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// Most sessions that a client for checks keeps.
const MAX_SESSIONS: usize = 8;

/// The protocol of ACME validations (RFC 8737). A server accepts it only while it awaits a validation.
const ACME_TLS: &str = "acme-tls/1";

/// A server and how it is checked.
#[derive(Clone)]
pub(super) struct CheckPlan {
    pub(super) server: Arc<PoolServer>,
    pub(super) target: Target,
    /// The protocol (ALPN) that a check offers.
    alpn: Option<String>,
    /// The time limit of the connection, and also of the handshake.
    pub(super) timeout: Duration,
    pub(super) health: Health,
    pub(super) interval: Duration,
}

impl CheckPlan {
    /// `None` if the set does not have the server.
    pub(super) fn new(set: &ServerSet, name: &str) -> Option<Self> {
        let mut servers = set.servers();
        let (pool, server) = servers.find(|(_, server)| server.name() == name)?;
        Some(Self {
            server: Arc::clone(server),
            target: target(set, pool, server),
            alpn: pool.alpn.clone().filter(|alpn| alpn != ACME_TLS),
            timeout: set.inputs.balance.connect_timeout,
            health: set.inputs.balance.health,
            interval: set.inputs.balance.health_interval,
        })
    }

    /// True if both plans lead to the same checks. Other settings, such as the weight of the server, can
    /// differ.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.server.stats, &other.server.stats)
            && Arc::ptr_eq(&self.server.key_names, &other.server.key_names)
            && self.target == other.target
            && self.alpn == other.alpn
            && self.timeout == other.timeout
            && self.health == other.health
            && self.interval == other.interval
    }

    /// A client for checks of this server.
    pub(super) fn client(&self, kind: CheckClient) -> Option<Client> {
        let mechanism = match kind {
            CheckClient::Routine => Mechanism::Any,
            CheckClient::Psk => Mechanism::Psk,
            CheckClient::Ticket => Mechanism::Ticket,
        };
        // Only CA certificates can cause an error here, and this client uses none.
        let mut client = Client::new(mechanism, &Trust::Insecure, self.timeout).ok()?;
        client.sessions = Sessions::new(MAX_SESSIONS, Sessions::DEFAULT_LIFETIME);
        let protocols: Vec<&[u8]> = self.alpn.iter().map(String::as_bytes).collect();
        Some(client.with_alpn(&protocols))
    }
}

fn target(set: &ServerSet, pool: &Pool, server: &PoolServer) -> Target {
    let configured = set.inputs.balance.health_name.as_ref();
    let name = configured.or(pool.first_name.as_ref());
    let server_name = name.and_then(|name| ServerName::try_from(name.clone()).ok());
    let address = server.address();
    Target {
        address,
        // The client sends no SNI for an address.
        server_name: server_name.unwrap_or_else(|| ServerName::from(address.ip())),
        preface: preface(server),
        start_tls: pool.is_postgres().then_some(StartTls::Postgres),
        proxy: None,
    }
}

/// The PROXY header of a check, if the server expects one.
pub(super) fn preface(server: &PoolServer) -> &'static [u8] {
    let expected = server.settings.proxy_protocol;
    expected.map_or(&[], proxy_protocol::local_header)
}

/// Connects, waits for tickets, and closes.
pub(super) async fn handshake(
    client: &Client,
    target: &Target,
) -> Result<EstablishedConnection, Failure> {
    let mut connection = client.attempt(target).await?;
    if connection.outcome.version > TLS_1_2 {
        connection.await_ticket(TICKET_WAIT).await;
    }
    connection.close(CLOSE_WAIT).await;
    Ok(connection)
}

/// The result of a handshake that may have offered a session.
pub(super) enum ComparedHandshake {
    Finished(EstablishedConnection),
    /// The server ended a handshake that offered a session, and then finished a handshake without a session.
    EndedOffer {
        offered: How,
        failure: Failure,
        without_session: EstablishedConnection,
    },
}

/// Like [`handshake`]. If a handshake that offered a session fails, a second handshake follows without a
/// session. Only the second handshake tells whether the server answers.
pub(super) async fn compared_handshake(
    client: &Client,
    target: &Target,
) -> Result<ComparedHandshake, Failure> {
    let failure = match handshake(client, target).await {
        Ok(connection) => return Ok(ComparedHandshake::Finished(connection)),
        Err(failure) => failure,
    };
    let Some(offered) = failure.offered.as_ref().map(|offer| offer.how) else {
        return Err(failure);
    };
    let without_session = handshake(&client.with_empty_sessions(), target).await?;
    Ok(ComparedHandshake::EndedOffer {
        offered,
        failure,
        without_session,
    })
}
