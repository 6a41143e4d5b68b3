//! Checks of the servers: whether they take connections, and how their tickets begin. A check is a
//! handshake by our own client, which trusts any certificate: it asks whether a server is there, not
//! whether it is the right one, and clients see to that themselves.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use sessile_proto::keynames::{KeyName, Token};
use sessile_proto::proxy_protocol;
use sessile_proto::watch::Kind;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::roster::{Pool, Roster};
use super::server::Server;
use super::{Shared, locked};
use crate::client::{Client, Connection, Error, Mechanism, Options, Sessions, Target, Trust, hex};
use crate::clock;
use crate::config::Health;

/// Between two looks at how a server's tickets begin.
const KEY_NAMES_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Until the next check of a server that has just contradicted the ones before.
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

/// Checks a server again and again, for as long as it is there.
async fn watch(shared: &Shared, name: &str) {
    let mut rosters = shared.roster.subscribe();
    let mut checker: Option<Checker> = None;
    loop {
        let roster = Arc::clone(&rosters.borrow_and_update());
        let mut servers = roster.servers();
        let found = servers.find(|(_, server)| server.name() == name);
        let Some((pool, server)) = found else {
            return;
        };
        let health = roster.balance.health;
        if health == Health::Off {
            server.is_not_checked();
            return;
        }
        let target = target(&roster, pool, server);
        let timeout = roster.balance.connect_timeout;
        let same = checker
            .take()
            .filter(|it| it.target == target && it.timeout == timeout);
        let checker = checker.insert(same.unwrap_or_else(|| Checker::new(target, timeout)));
        let well = checker.check(health).await;
        let (changed, in_doubt) = say_checked(server, well.as_ref().err());
        // A server that comes back may well have another key.
        let is_back = changed == Some(true);
        if well.is_ok() && health == Health::Tls && (checker.key_names_are_due() || is_back) {
            find_key_names(shared, pool, server, &checker.target, timeout).await;
        }
        let interval = roster.balance.health_interval;
        let pause = match in_doubt {
            true => interval.min(DOUBT_INTERVAL),
            false => interval,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = rosters.changed() => if changed.is_err() { return },
        }
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
fn preface(server: &Server) -> &'static [u8] {
    let expected = server.settings.proxy_protocol;
    expected.map_or(&[], proxy_protocol::own)
}

/// Takes note of a check and says what has changed. Returns whether the server is up, where that has
/// changed, and whether another check should come soon.
fn say_checked(server: &Server, failed: Option<&Error>) -> (Option<bool>, bool) {
    let (changed, in_doubt) = server.checked(failed.is_none(), clock::now());
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

/// The client for the checks of one server.
struct Checker {
    target: Target,
    timeout: Duration,
    /// Keeps its sessions: a routine check is to cost the server as little as it can.
    client: Option<Client>,
    key_names_due: Instant,
}

impl Checker {
    fn new(target: Target, timeout: Duration) -> Self {
        Self {
            target,
            timeout,
            client: client(Mechanism::Any, timeout),
            key_names_due: Instant::now(),
        }
    }

    async fn check(&self, health: Health) -> Result<(), Error> {
        let client = self.client.as_ref().filter(|_| health == Health::Tls);
        let Some(client) = client else {
            return knock(self.target.address, self.timeout).await;
        };
        match visit(client, &self.target).await {
            // It speaks TLS, if only of a kind that our client does not.
            Err(error) if error.refuses_version() => Ok(()),
            visited => visited.map(|_| ()),
        }
    }

    fn key_names_are_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.key_names_due;
        if due {
            self.key_names_due = now + KEY_NAMES_INTERVAL;
        }
        due
    }
}

/// `timeout`: for the connection, and again for the handshake.
fn client(mechanism: Mechanism, timeout: Duration) -> Option<Client> {
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
async fn visit(client: &Client, target: &Target) -> Result<Connection, Error> {
    let mut connection = client.connect(target).await?;
    if connection.outcome().version > sessile_proto::hello::TLS_1_2 {
        connection.await_ticket(TICKETS).await;
    }
    connection.close(GOODBYE).await;
    Ok(connection)
}

/// Looks at how a server's tickets begin: two sessions, TLS 1.3 and 1.2 each, and whether a server
/// whose tickets begin the same resumes them.
async fn find_key_names(
    shared: &Shared,
    pool: &Pool,
    server: &Server,
    target: &Target,
    timeout: Duration,
) {
    let id = server.id();
    let known = |shared: &Shared| {
        let names = locked(&shared.key_names);
        (names.of(id).copied().collect::<Vec<_>>(), names.group(id))
    };
    let before = known(shared);
    for mechanism in [Mechanism::Psk, Mechanism::Ticket] {
        let Some(client) = client(mechanism, timeout) else {
            return;
        };
        let other = client.another();
        let (Some(one), Some(other)) = (
            ticket_of(shared, id, &client, target).await,
            ticket_of(shared, id, &other, target).await,
        ) else {
            continue;
        };
        if one.name == other.name {
            locked(&shared.key_names).issued(id, one.name);
            try_elsewhere(shared, pool, id, one.name, &client, target).await;
        }
    }
    let now = known(shared);
    if now != before {
        let names: Vec<String> = now.0.iter().map(|name| hex(name)).collect();
        let group = pool.servers.iter().filter(|it| now.1.contains(&it.id()));
        let group: Vec<&str> = group.map(|it| it.name()).collect();
        tracing::info!(
            server = server.name(),
            ?names,
            ?group,
            "key names of its tickets"
        );
    }
}

/// Makes a session with a client that has none, and comes back with it.
async fn ticket_of(shared: &Shared, id: u32, client: &Client, target: &Target) -> Option<Token> {
    visit(client, target).await.ok()?;
    let connection = visit(client, target).await.ok()?;
    let token = Token::new(&connection.offered()?.bytes)?;
    if matches!(connection.outcome().kind, Kind::Resumed(_)) {
        locked(&shared.key_names).accepted(id, token, true);
    }
    Some(token)
}

/// Offers tickets that a server has just issued to others whose tickets begin the same.
async fn try_elsewhere(
    shared: &Shared,
    pool: &Pool,
    id: u32,
    name: KeyName,
    client: &Client,
    target: &Target,
) {
    let others = locked(&shared.key_names).to_try(name, id);
    for other in others.into_iter().filter_map(|other| pool.with_id(other)) {
        if client.sessions().is_empty() && visit(client, target).await.is_err() {
            return;
        }
        let there = Target {
            address: other.address(),
            preface: preface(other),
            ..target.clone()
        };
        let Ok(connection) = client.connect(&there).await else {
            continue;
        };
        let offered = connection.offered().and_then(|it| Token::new(&it.bytes));
        let same_key = offered.is_some_and(|token| token.name == name);
        let resumed = match connection.outcome().kind {
            Kind::Resumed(_) => true,
            Kind::Refused => false,
            Kind::NotOffered | Kind::Failed => continue,
        };
        if same_key {
            locked(&shared.key_names).tried(name, id, other.id(), resumed);
        }
        // What the other one gives is not this one's.
        client.sessions().clear();
    }
}
