//! Discovers the key names of a server's tickets, beside the routine checks.
//! [`sessile_proto::key_names::discovery`] decides when a discovery starts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sessile_proto::health_state::Availability;
use sessile_proto::key_names::discovery::DiscoverySchedule;
use sessile_proto::key_names::{KeyName, MAX_TRIES, TicketFingerprint};
use sessile_proto::session_fault::CheckClient;
use sessile_proto::watch::Kind;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::super::server::PoolServer;
use super::super::servers::Pool;
use super::super::state::BalancerState;
use super::check::{CheckPlan, ComparedHandshake, compared_handshake, handshake, preface};
use crate::client::{Client, EstablishedConnection, Failure, Offer, Target};

/// The time limit of one discovery.
const DEADLINE: Duration = Duration::from_secs(30);

/// The time limit for tries of one kind of ticket at other servers.
///
/// Servers that do not answer must not use up the time of the whole discovery.
const TRIES_DEADLINE: Duration = Duration::from_secs(10);

/// The discoveries of one server.
pub(super) struct KeyNameDiscovery {
    schedule: DiscoverySchedule,
    task: Option<AbortOnDropHandle<()>>,
}

impl KeyNameDiscovery {
    pub(super) fn new() -> Self {
        Self {
            schedule: DiscoverySchedule::new(Instant::now()),
            task: None,
        }
    }

    /// Records a check that passed, and starts a discovery if the schedule asks for one.
    ///
    /// `came_up`: the server was down until this check.
    pub(super) fn record_check(
        &mut self,
        state: &Arc<BalancerState>,
        plan: &CheckPlan,
        connection: Option<&EstablishedConnection>,
        came_up: bool,
    ) {
        let is_running = self.task.as_ref().is_some_and(|task| !task.is_finished());
        if let Some(connection) = connection {
            let server = &plan.server;
            let id = server.id();
            // A running discovery will find an unknown name anyway.
            let is_known = |name: &KeyName| {
                let key_names = &server.key_names;
                is_running || key_names.read(|names| names.names_of(id).any(|known| known == name))
            };
            let kind = connection.outcome.kind;
            learn_number(state, server, connection);
            let offered = fingerprint(connection.offered.as_ref());
            if let Some(lost) = self.schedule.record_check(kind, offered, is_known) {
                server
                    .key_names
                    .update(id, |names| names.refused_own_ticket(id, lost));
            }
        }
        let now = Instant::now();
        if came_up {
            self.schedule.record_recovery(now);
        }
        if !is_running && self.schedule.start(now) {
            let (state, plan) = (Arc::clone(state), plan.clone());
            let task = tokio::task::spawn_local(async move { discover(&state, &plan).await });
            self.task = Some(AbortOnDropHandle::new(task));
        }
    }
}

/// Reads the server's number from the ticket that resumed. A ticket that was refused may be of another server,
/// which had the address before.
fn learn_number(state: &BalancerState, server: &PoolServer, connection: &EstablishedConnection) {
    if let Some(offer) = &connection.offered
        && matches!(connection.outcome.kind, Kind::Resumed(_))
    {
        state.learn_number(server, &offer.bytes);
    }
}

fn fingerprint(offer: Option<&Offer>) -> Option<TicketFingerprint> {
    TicketFingerprint::new(&offer?.bytes)
}

async fn discover(state: &BalancerState, plan: &CheckPlan) {
    let set = state.server_set();
    let mut servers = set.servers();
    let found = servers.find(|(_, server)| server.id() == plan.server.id());
    if let Some((pool, _)) = found {
        // Names that were proven before the deadline stay.
        let _ = timeout(DEADLINE, discover_in_pool(state, pool, plan)).await;
    }
}

/// Makes two sessions of TLS 1.3 and two of TLS 1.2, and offers them to the server. Then tries fresh tickets
/// at the other servers with the same key name.
async fn discover_in_pool(state: &BalancerState, pool: &Pool, plan: &CheckPlan) {
    let server = &plan.server;
    if server.is_faulty_for(CheckClient::Routine)
        && let Some(client) = plan.client(CheckClient::Routine)
    {
        // Only this client also offers session IDs. So only this client can show that a fault of session IDs
        // is gone.
        let _ = return_visit(state, plan, CheckClient::Routine, &client).await;
    }
    let mut is_complete = true;
    let mut samples = Vec::new();
    for kind in [CheckClient::Psk, CheckClient::Ticket] {
        let Some(client) = plan.client(kind) else {
            return;
        };
        match TicketSample::take(state, plan, kind, client).await {
            Ok(sample) => samples.push(sample),
            Err(failure) => {
                is_complete &= failure.offered.is_none() && failure.error.refuses_version();
            }
        }
    }
    if server.session_fault().is_some() {
        // No key name may lead to a server that ends handshakes which offer its own tickets.
        return;
    }
    let id = server.id();
    let mut issued = Vec::new();
    for TicketSample { client, visits } in &samples {
        if let [Some(one), Some(other)] = visits
            && one.ticket.name == other.ticket.name
        {
            let name = one.ticket.name;
            // Try the tickets before the name is recorded as issued. An untried issuer stops the routing by
            // this name in the whole pool.
            let _ = timeout(
                TRIES_DEADLINE,
                try_at_other_servers(pool, plan, name, client),
            )
            .await;
            issued.push(name);
        }
        pool.key_names.update(id, |names| {
            for visit in visits.iter().flatten().filter(|visit| visit.resumed) {
                names.accepted(id, visit.ticket, true);
            }
            for name in &issued {
                names.issued(id, *name);
            }
        });
    }
    if is_complete {
        pool.key_names
            .update(id, |names| names.issues_only(id, &issued));
    }
}

/// The tickets of two clients of one kind.
struct TicketSample {
    /// Holds fresh sessions of the server.
    client: Client,
    visits: [Option<ReturnVisit>; 2],
}

impl TicketSample {
    async fn take(
        state: &BalancerState,
        plan: &CheckPlan,
        kind: CheckClient,
        client: Client,
    ) -> Result<Self, Failure> {
        let other = client.with_empty_sessions();
        // Make the second visit even if the first visit failed, because only two ended handshakes show a
        // fault.
        let one = return_visit(state, plan, kind, &client).await;
        let other = return_visit(state, plan, kind, &other).await;
        Ok(Self {
            client,
            visits: [one?, other?],
        })
    }
}

/// A handshake that offered a ticket to the server that had issued it.
struct ReturnVisit {
    ticket: TicketFingerprint,
    resumed: bool,
}

/// Makes a session, and offers it to the same server.
///
/// `None` if the server issued no ticket.
async fn return_visit(
    state: &BalancerState,
    plan: &CheckPlan,
    kind: CheckClient,
    client: &Client,
) -> Result<Option<ReturnVisit>, Failure> {
    let (server, target) = (&plan.server, &plan.target);
    let returned = match handshake(client, target).await {
        Ok(_) => compared_handshake(client, target).await,
        Err(failure) => Err(failure),
    };
    let connection = match returned {
        Ok(ComparedHandshake::Finished(connection)) => connection,
        Ok(ComparedHandshake::EndedOffer {
            offered, failure, ..
        }) => {
            server.record_offer_ended(kind, offered, &failure.error);
            return Err(failure);
        }
        Err(failure) => {
            if failure.error.refuses_version() {
                // A server that refuses the version cannot end handshakes that offer sessions of this version.
                server.record_offer_finished(kind);
            }
            return Err(failure);
        }
    };
    server.record_offer_finished(kind);
    learn_number(state, server, &connection);
    let resumed = matches!(connection.outcome.kind, Kind::Resumed(_));
    let ticket = fingerprint(connection.offered.as_ref());
    Ok(ticket.map(|ticket| ReturnVisit { ticket, resumed }))
}

/// Offers fresh tickets of a server, one by one, to the other servers whose tickets have the same name.
///
/// A server whose tickets turn out to have this name meanwhile is tried too.
async fn try_at_other_servers(pool: &Pool, plan: &CheckPlan, name: KeyName, client: &Client) {
    let id = plan.server.id();
    let mut asked = BTreeSet::new();
    while asked.len() < MAX_TRIES {
        let Some(other) = next_to_try(pool, name, id, &asked) else {
            return;
        };
        asked.insert(other.id());
        if client.sessions.is_empty() && handshake(client, &plan.target).await.is_err() {
            return;
        }
        let target = Target {
            address: other.address(),
            preface: preface(other),
            ..plan.target.clone()
        };
        let (ticket, kind) = match client.attempt(&target).await {
            Ok(connection) => (
                fingerprint(connection.offered.as_ref()),
                connection.outcome.kind,
            ),
            Err(failure) => {
                if client.with_empty_sessions().connect(&target).await.is_err() {
                    continue;
                }
                // The other server finishes handshakes without the ticket, and ends those with it. So that
                // server does not have the key.
                (fingerprint(failure.offered.as_ref()), Kind::Refused)
            }
        };
        let resumed = match kind {
            Kind::Resumed(_) => true,
            Kind::Refused => false,
            Kind::NotOffered | Kind::Failed => continue,
        };
        if ticket.is_some_and(|ticket| ticket.name == name) {
            pool.key_names
                .update(id, |names| names.tried(name, id, other.id(), resumed));
        }
        // Tickets of the other server prove nothing about this server.
        client.sessions.clear();
    }
}

/// The next server at which to try a ticket of this name. A server that is not up would prove nothing.
fn next_to_try<'p>(
    pool: &'p Pool,
    name: KeyName,
    issuer: u32,
    asked: &BTreeSet<u32>,
) -> Option<&'p Arc<PoolServer>> {
    let now = Instant::now();
    let candidates = pool
        .key_names
        .read(|names| names.servers_to_try(name, issuer));
    candidates
        .into_iter()
        .filter(|id| !asked.contains(id))
        .filter_map(|id| pool.with_id(id))
        .find(|server| server.availability(now) == Availability::Up)
}
