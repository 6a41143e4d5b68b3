//! How servers' tickets begin: when that is looked at, and how it is found out. Routine checks tell
//! when a server has another key than was known.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sessile_proto::key_names::{KeyName, KeyNames, MAX_TRIES, TicketFingerprint};
use sessile_proto::watch::Kind;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::health::{Round, client, preface, visit};
use super::roster::Pool;
use super::session_fault::{Visited, visit_and_compare};
use super::standing::State;
use crate::client::{Client, EstablishedConnection, Failure, Mechanism, Target};

/// Between two looks at a server that nothing has called for.
const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The least between two looks that routine checks have called for.
const LEAST_INTERVAL: Duration = Duration::from_secs(60);

/// How long one look may take in all.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long a look may take to try one kind of tickets elsewhere: servers that do not answer must not
/// keep it from saying what it saw.
const TRIES: Duration = Duration::from_secs(10);

/// Decides when a server is looked at, and has it done beside its routine checks.
pub(super) struct Lookout {
    /// When it is time for the next look in any case.
    due: Instant,
    /// The server seems to have another key.
    called_for: bool,
    /// Before then, that is no reason for a look.
    not_before: Instant,
    /// What the last check came back with, if it was resumed by a ticket.
    last: Option<TicketFingerprint>,
    /// What the last look was called for by: one that did not prove it would not prove it now.
    doubted: Option<KeyName>,
    look: Option<AbortOnDropHandle<()>>,
}

impl Lookout {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            due: now,
            called_for: false,
            not_before: now,
            last: None,
            doubted: None,
            look: None,
        }
    }

    /// Takes note of a routine check that went well, and looks if it is time to. `is_back`: the server
    /// was down until now.
    pub(super) fn note(
        &mut self,
        shared: &Arc<Shared>,
        round: &Round,
        visited: Option<&EstablishedConnection>,
        is_back: bool,
    ) {
        let now = Instant::now();
        let is_looking = self.look.as_ref().is_some_and(|look| !look.is_finished());
        if let Some(visited) = visited {
            let offered = visited
                .offered()
                .and_then(|it| TicketFingerprint::new(&it.bytes));
            let (id, names) = (round.server.id(), &round.server.key_names);
            let kind = visited.outcome().kind;
            if let Some(name) = self.lost(kind, offered) {
                names.note(id, |names| names.refused_own_ticket(id, name));
            }
            let is_known = |name: &KeyName| names.of(id).contains(name);
            // What is not known yet is just being found out.
            let is_known = |name: &KeyName| is_looking || is_known(name);
            self.called_for |= self.is_another_key(kind, offered, is_known);
        }
        if is_back {
            // It may well have another key.
            self.due = now;
        }
        let is_due = now >= self.due;
        let is_called_for = self.called_for && now >= self.not_before;
        if is_looking || !(is_due || is_called_for) {
            return;
        }
        if !is_due {
            self.not_before = now + LEAST_INTERVAL;
        }
        (self.due, self.called_for) = (now + INTERVAL, false);
        let (shared, round) = (Arc::clone(shared), round.clone());
        let look = tokio::task::spawn_local(async move { look(&shared, &round).await });
        self.look = Some(AbortOnDropHandle::new(look));
    }

    /// The name of the key that the server took the last time and does not take now.
    fn lost(&self, kind: Kind, offered: Option<TicketFingerprint>) -> Option<KeyName> {
        let name = offered?.name;
        let had_it = self.last.is_some_and(|last| last.name == name);
        (kind == Kind::Refused && had_it).then_some(name)
    }

    /// Whether what became of an offered ticket says that the server has a key that is not known. One
    /// ticket alone does not: on many servers each begins otherwise.
    fn is_another_key(
        &mut self,
        kind: Kind,
        offered: Option<TicketFingerprint>,
        is_known: impl Fn(&KeyName) -> bool,
    ) -> bool {
        match kind {
            Kind::Resumed(_) => {
                let last = std::mem::replace(&mut self.last, offered);
                let (Some(last), Some(token)) = (last, offered) else {
                    return false;
                };
                let begin_the_same = last != token && last.name == token.name;
                if !begin_the_same || is_known(&token.name) || self.doubted == Some(token.name) {
                    return false;
                }
                self.doubted = Some(token.name);
                true
            }
            // It took such a ticket the last time.
            Kind::Refused => self.last.take().is_some(),
            Kind::NotOffered | Kind::Failed => false,
        }
    }
}

/// Looks at how a server's tickets begin.
async fn look(shared: &Shared, round: &Round) {
    let roster = shared.roster();
    let mut servers = roster.servers();
    let its = servers.find(|(_, server)| server.id() == round.server.id());
    if let Some((pool, _)) = its {
        // What was found out until then is known.
        let _ = timeout(DEADLINE, find_key_names(pool, round)).await;
    }
}

/// Two sessions, TLS 1.3 and 1.2 each, and whether servers whose tickets begin the same resume them.
async fn find_key_names(pool: &Pool, round: &Round) {
    let server = &round.server;
    if server.is_faulty_for(Mechanism::Any)
        && let Some(client) = client(Mechanism::Any, round.timeout)
    {
        // Only this client offers session IDs too. How it fares is noted.
        let _ = comeback(round, Mechanism::Any, &client).await;
    }
    let mut is_whole = true;
    let mut looks = Vec::new();
    for mechanism in [Mechanism::Psk, Mechanism::Ticket] {
        let Some(client) = client(mechanism, round.timeout) else {
            return;
        };
        match Look::at(round, mechanism, client).await {
            Ok(look) => looks.push(look),
            Err(failure) => {
                is_whole &= failure.offered.is_none() && failure.error.refuses_version();
            }
        }
    }
    if server.session_fault().is_some() {
        // No name leads to a server that ends handshakes with its own tickets.
        return;
    }
    let id = server.id();
    let mut issued = Vec::new();
    for Look { client, made } in &looks {
        if let [Some(one), Some(other)] = made
            && one.token.name == other.token.name
        {
            // Before it is known to issue them: until they are tried, nobody's would lead anywhere.
            let _ = timeout(TRIES, try_elsewhere(pool, round, one.token.name, client)).await;
            issued.push(one.token.name);
        }
        pool.key_names.note(id, |names| {
            for comeback in made.iter().flatten().filter(|it| it.resumed) {
                names.accepted(id, comeback.token, true);
            }
            for name in &issued {
                names.issued(id, *name);
            }
        });
    }
    if is_whole {
        let note = |names: &mut KeyNames| names.issues_only(id, &issued);
        pool.key_names.note(id, note);
    }
}

/// What two clients of one kind came back with.
struct Look {
    /// Holds fresh sessions of the server.
    client: Client,
    made: [Option<Comeback>; 2],
}

impl Look {
    async fn at(round: &Round, mechanism: Mechanism, client: Client) -> Result<Self, Failure> {
        let other = client.with_empty_sessions();
        // Both, whatever became of the first: two ended handshakes show a fault.
        let one = comeback(round, mechanism, &client).await;
        let other = comeback(round, mechanism, &other).await;
        Ok(Self {
            client,
            made: [one?, other?],
        })
    }
}

/// What a client came back with.
struct Comeback {
    token: TicketFingerprint,
    resumed: bool,
}

/// Makes a session with a client that has none, and comes back with it. `None`: there is no ticket.
async fn comeback(
    round: &Round,
    mechanism: Mechanism,
    client: &Client,
) -> Result<Option<Comeback>, Failure> {
    let (server, target) = (&round.server, &round.target);
    let first = visit(client, target).await;
    let visited = match first {
        Ok(_) => visit_and_compare(client, target).await,
        Err(failure) => Err(failure),
    };
    let connection = match visited {
        Ok(Visited::Finished(connection)) => connection,
        Ok(Visited::EndedOffer(failure, _)) => {
            server.offered_session(mechanism, Some(&failure));
            return Err(failure);
        }
        Err(failure) => {
            if failure.error.refuses_version() {
                // The server has no such sessions any more.
                server.offered_session(mechanism, None);
            }
            return Err(failure);
        }
    };
    server.offered_session(mechanism, None);
    let offered = connection.offered();
    let token = offered.and_then(|offered| TicketFingerprint::new(&offered.bytes));
    let resumed = matches!(connection.outcome().kind, Kind::Resumed(_));
    Ok(token.map(|token| Comeback { token, resumed }))
}

/// Offers tickets that a server has just issued to others whose tickets begin the same, one after
/// another: to those as well that have turned up meanwhile.
async fn try_elsewhere(pool: &Pool, round: &Round, name: KeyName, client: &Client) {
    let (id, target) = (round.server.id(), &round.target);
    let mut asked = BTreeSet::new();
    while asked.len() < MAX_TRIES {
        let others = pool.key_names.to_try(name, id);
        let others = others.into_iter().filter(|other| !asked.contains(other));
        let mut others = others.filter_map(|other| pool.with_id(other));
        // Nothing is learned from one that does not answer, and much time is lost.
        let Some(other) = others.find(|other| other.state(Instant::now().into_std()) == State::Up)
        else {
            return;
        };
        asked.insert(other.id());
        if client.sessions().is_empty() && visit(client, target).await.is_err() {
            return;
        }
        let there = Target {
            address: other.address(),
            preface: preface(other),
            ..target.clone()
        };
        let (offered, kind) = match client.attempt(&there).await {
            Ok(connection) => (connection.offered().cloned(), connection.outcome().kind),
            Err(failure) => {
                if client.with_empty_sessions().connect(&there).await.is_err() {
                    continue;
                }
                // It is there, and ends handshakes that offer this ticket: it does not share the key.
                (failure.offered, Kind::Refused)
            }
        };
        let offered = offered.and_then(|it| TicketFingerprint::new(&it.bytes));
        let same_key = offered.is_some_and(|token| token.name == name);
        let resumed = match kind {
            Kind::Resumed(_) => true,
            Kind::Refused => false,
            Kind::NotOffered | Kind::Failed => continue,
        };
        if same_key {
            let tried = |names: &mut KeyNames| names.tried(name, id, other.id(), resumed);
            pool.key_names.note(id, tried);
        }
        // What the other one gives is not this one's.
        client.sessions().clear();
    }
}

#[cfg(test)]
mod tests {
    use sessile_proto::verdict::How;

    use super::*;

    const KNOWN: u8 = 1;
    const RESUMED: Kind = Kind::Resumed(How::Psk);

    fn ticket(of: u8, n: u8) -> Option<TicketFingerprint> {
        let mut bytes = [of; 64];
        bytes[63] = n;
        TicketFingerprint::new(&bytes)
    }

    /// Whether each of these checks calls for a look.
    fn calls<const N: usize>(checks: [(Kind, Option<TicketFingerprint>); N]) -> [bool; N] {
        let mut lookout = Lookout::new();
        checks.map(|(kind, token)| lookout.is_another_key(kind, token, |name| name[0] == KNOWN))
    }

    #[test]
    fn a_ticket_that_is_refused_after_others_were_taken_calls_for_a_look() {
        let checks = [
            (Kind::NotOffered, None),
            (RESUMED, ticket(KNOWN, 1)),
            (RESUMED, ticket(KNOWN, 2)),
            (Kind::Refused, ticket(KNOWN, 3)),
            // Whoever never resumes does not call every time.
            (Kind::Refused, ticket(KNOWN, 4)),
        ];
        assert_eq!(calls(checks), [false, false, false, true, false]);
    }

    #[test]
    fn a_key_is_lost_whose_ticket_is_refused_after_another_of_its_was_taken() {
        let mut lookout = Lookout::new();
        assert_eq!(lookout.lost(Kind::Refused, ticket(KNOWN, 1)), None);
        lookout.is_another_key(RESUMED, ticket(KNOWN, 1), |_| true);
        assert_eq!(lookout.lost(RESUMED, ticket(KNOWN, 2)), None);
        assert_eq!(lookout.lost(Kind::Refused, None), None);
        assert_eq!(lookout.lost(Kind::Refused, ticket(2, 2)), None);
        let lost = lookout.lost(Kind::Refused, ticket(KNOWN, 2));
        assert_eq!(lost, Some([KNOWN; 16]));
    }

    #[test]
    fn tickets_that_begin_the_same_in_an_unknown_way_call_for_one_look() {
        let checks = [
            (RESUMED, ticket(KNOWN, 1)),
            (RESUMED, ticket(2, 1)),
            (RESUMED, ticket(2, 2)),
            (RESUMED, ticket(2, 3)),
        ];
        assert_eq!(calls(checks), [false, false, true, false]);
    }

    #[test]
    fn tickets_that_all_begin_otherwise_and_the_same_ticket_again_call_for_none() {
        let checks = [2, 3, 4, 4].map(|of| (RESUMED, ticket(of, 1)));
        assert_eq!(calls(checks), [false; 4]);
    }
}
