//! Checks of the servers: whether they take connections. A check is a handshake by our own client,
//! which trusts any certificate: it asks whether a server is there, not whether it is the right one,
//! and clients see to that themselves.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use sessile_proto::proxy_protocol;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Shared;
use super::lookout::Lookout;
use super::own::is_ours;
use super::roster::{Pool, Roster};
use super::server::Server;
use super::session_fault::{Visited, visit_and_compare};
use crate::client::{
    Client, Error, EstablishedConnection, Failure, Mechanism, Options, Sessions, Target, Trust,
};
use crate::config::Health;

/// Until the next check of a server that has just contradicted the ones before, and the least between
/// checks that connections which were cut ask for.
const DOUBT_INTERVAL: Duration = Duration::from_secs(1);

/// How long TLS 1.3 tickets are waited for once the handshake is finished.
const TICKETS: Duration = Duration::from_millis(500);

/// How long a server has to say goodbye.
const GOODBYE: Duration = Duration::from_millis(200);

/// Sessions that a client for checks keeps.
const MAX_SESSIONS: usize = 8;

/// Watches over every server that there is, as rosters come and go, until the order to stop.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut rosters = shared.roster.subscribe();
    let watched = Rc::new(RefCell::new(HashSet::new()));
    loop {
        let roster = Arc::clone(&rosters.borrow_and_update());
        for (_, server) in roster.servers() {
            let name = server.name().to_owned();
            if roster.balance.health != Health::Off && watched.borrow_mut().insert(name.clone()) {
                let (shared, watched) = (Arc::clone(&shared), Rc::clone(&watched));
                tokio::task::spawn_local(async move {
                    watch(&shared, &name).await;
                    watched.borrow_mut().remove(&name);
                });
            }
        }
        tokio::select! {
            changed = rosters.changed() => if changed.is_err() { return },
            () = shared.stop.cancelled() => return,
        }
    }
}

/// Checks a server for as long as it is there, anew where what is to be checked has changed. Other
/// changes of the roster are none of its business.
async fn watch(shared: &Arc<Shared>, name: &str) {
    let mut rosters = shared.roster.subscribe();
    loop {
        let roster = Arc::clone(&rosters.borrow_and_update());
        let Some(round) = Round::of(&roster, name) else {
            return;
        };
        if round.health == Health::Off {
            round.server.is_not_checked();
            return;
        }
        if round.health != Health::Tls {
            round.server.is_offered_no_sessions();
        }
        let checks = Checker::new(round.clone()).run(shared);
        let other_round = async {
            while rosters.changed().await.is_ok() {
                let now = Round::of(&rosters.borrow_and_update(), name);
                if !now.is_some_and(|now| now.is_same(&round)) {
                    break;
                }
            }
        };
        tokio::select! {
            () = checks => {}
            () = other_round => {}
        }
    }
}

/// What is checked and how.
#[derive(Clone)]
pub(super) struct Round {
    pub(super) server: Arc<Server>,
    pub(super) target: Target,
    /// For the connection, and again for the handshake.
    pub(super) timeout: Duration,
    health: Health,
    interval: Duration,
}

impl Round {
    /// `None`: the server is gone.
    fn of(roster: &Roster, name: &str) -> Option<Self> {
        let mut servers = roster.servers();
        let (pool, server) = servers.find(|(_, server)| server.name() == name)?;
        Some(Self {
            server: Arc::clone(server),
            target: target(roster, pool, server),
            timeout: roster.balance.connect_timeout,
            health: roster.balance.health,
            interval: roster.balance.health_interval,
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.server.live, &other.server.live)
            && Arc::ptr_eq(&self.server.key_names, &other.server.key_names)
            && self.target == other.target
            && (self.timeout, self.health, self.interval)
                == (other.timeout, other.health, other.interval)
    }
}

/// What a check asks for: without a name to send, the address, which is not sent.
fn target(roster: &Roster, pool: &Pool, server: &Server) -> Target {
    let name = roster.balance.health_name.as_ref();
    let name = name.or(pool.first_name.as_ref());
    let name = name.and_then(|name| ServerName::try_from(name.clone()).ok());
    let address = server.address();
    Target {
        address,
        server_name: name.unwrap_or_else(|| ServerName::from(address.ip())),
        preface: preface(server),
    }
}

/// What a server that expects PROXY headers has to hear of a check.
pub(super) fn preface(server: &Server) -> &'static [u8] {
    let expected = server.settings.proxy_protocol;
    expected.map_or(&[], proxy_protocol::local_header)
}

/// Takes note of a check and says what has changed. Returns whether the server is up, where that has
/// changed, and whether another check should come soon. One that this host could not make has shown
/// nothing.
fn say_checked(shared: &Shared, server: &Server, failed: Option<&Error>) -> (Option<bool>, bool) {
    if let Some(Error::Connect(error)) = failed
        && is_ours(error)
    {
        shared.metrics.count_own_failure(server.name(), error);
        return (None, false);
    }
    let (changed, in_doubt) = server.checked(failed, Instant::now().into_std());
    let (name, address) = (server.name(), server.address());
    match (changed, failed) {
        (Some(true), _) => tracing::info!(server = name, %address, "server is up"),
        (Some(false), Some(error)) => {
            tracing::warn!(server = name, %address, %error, "server is down");
        }
        (_, Some(error)) => tracing::debug!(server = name, %address, %error, "check failed"),
        _ => {}
    }
    (changed, in_doubt)
}

/// Checks one server again and again.
struct Checker {
    round: Round,
    /// Keeps its sessions: a routine check is to cost the server as little as it can.
    client: Option<Client>,
    lookout: Lookout,
}

impl Checker {
    fn new(round: Round) -> Self {
        Self {
            client: client(Mechanism::Any, round.timeout),
            lookout: Lookout::new(),
            round,
        }
    }

    /// Without an end.
    async fn run(mut self, shared: &Arc<Shared>) {
        let mut is_well = true;
        loop {
            let began = Instant::now();
            let checked = self.check(is_well).await;
            is_well = checked.is_ok();
            let server = &self.round.server;
            let (changed, in_doubt) = say_checked(shared, server, checked.as_ref().err());
            if let Ok(visited) = checked
                && self.round.health == Health::Tls
            {
                let is_back = changed == Some(true);
                self.lookout
                    .note(shared, &self.round, visited.as_ref(), is_back);
            }
            let interval = self.round.interval;
            let pause = match in_doubt {
                true => interval.min(DOUBT_INTERVAL),
                false => interval,
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = server.is_doubted() => {
                    let soon = began + DOUBT_INTERVAL.min(interval);
                    sleep_until(soon).await;
                }
            }
        }
    }

    /// What the server did with the session that it was offered, where there was a handshake.
    /// `is_well`: the check before did not fail.
    async fn check(&self, is_well: bool) -> Result<Option<EstablishedConnection>, Error> {
        let Round {
            target,
            timeout,
            health,
            ..
        } = &self.round;
        let client = self.client.as_ref().filter(|_| *health == Health::Tls);
        let Some(client) = client else {
            return knock(target.address, *timeout).await.map(|()| None);
        };
        let server = &self.round.server;
        // A server that ends handshakes with its own session would cost every check a second handshake,
        // and one that does not answer a second time-out. The looks for key names go on offering.
        let visited = match is_well && server.session_fault().is_none() {
            true => visit_and_compare(client, target).await,
            false => visit(&client.with_empty_sessions(), target)
                .await
                .map(Visited::Finished),
        };
        match visited {
            Ok(Visited::Finished(connection)) => {
                if connection.offered().is_some() {
                    server.offered_session(Mechanism::Any, None);
                }
                Ok(Some(connection))
            }
            Ok(Visited::EndedOffer(failure, connection)) => {
                server.offered_session(Mechanism::Any, Some(&failure));
                Ok(Some(connection))
            }
            // It speaks TLS, if only of a kind that our client does not.
            Err(failure) if failure.error.refuses_version() => Ok(None),
            Err(failure) => Err(failure.error),
        }
    }
}

/// `timeout`: for the connection, and again for the handshake.
pub(super) fn client(mechanism: Mechanism, timeout: Duration) -> Option<Client> {
    let options = Options {
        mechanism,
        trust: Trust::Insecure,
        connect_timeout: timeout,
        handshake_timeout: timeout,
        alpn: Vec::new(),
    };
    let sessions = Sessions::new(MAX_SESSIONS, Sessions::DEFAULT_LIFETIME);
    // It can fail for want of CA certificates, which it does not need.
    Client::new(options, sessions).ok()
}

/// A TCP connection that says nothing.
async fn knock(address: SocketAddr, within: Duration) -> Result<(), Error> {
    let stage = crate::client::Stage::Connect;
    let connected = timeout(within, TcpStream::connect(address)).await;
    let connected = connected.map_err(|_| Error::TimedOut {
        stage,
        after: within,
    })?;
    connected.map(|_| ()).map_err(Error::Connect)
}

/// A handshake, tickets if there are any, and goodbye.
pub(super) async fn visit(
    client: &Client,
    target: &Target,
) -> Result<EstablishedConnection, Failure> {
    let mut connection = client.attempt(target).await?;
    if connection.outcome().version > sessile_proto::hello::TLS_1_2 {
        connection.await_ticket(TICKETS).await;
    }
    connection.close(GOODBYE).await;
    Ok(connection)
}
