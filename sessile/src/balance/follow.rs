//! Which servers a hello leads to, rule by rule. What a client brings decides, then policy.

use std::collections::BTreeSet;
use std::iter;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use sessile_proto::Time;
use sessile_proto::affinity::AffinityKey;
use sessile_proto::hello::ClientHello;
use sessile_proto::key_names::TicketFingerprint;
use sessile_proto::route::RoutedBy;
use sessile_proto::ticket::Class;

use super::labels::MAX_IDENTITIES;
use super::missed::Miss;
use super::roster::{Pool, Roster};
use super::server::Server;
use super::{Shared, locked};

/// A rule, and the server that it leads to, or why that is not tried.
pub(super) type Choice<'r> = (RoutedBy, Result<&'r Arc<Server>, Miss>);

/// What a client offers that may begin with the name of a key.
pub(super) struct Offered {
    /// Its first TLS 1.3 identities; `None` stands for one that is no ticket.
    pub(super) identities: Vec<Option<TicketFingerprint>>,
    pub(super) ticket: Option<TicketFingerprint>,
    /// What the ticket and the session ID of TLS ≤ 1.2 are known by, if they were learned.
    ticket_key: Option<AffinityKey>,
    id_key: Option<AffinityKey>,
    /// The client offered a session, known here or not.
    pub(super) a_session: bool,
    /// The hello that is seen is the one that is answered, as far as anyone can tell.
    pub(super) in_clear: bool,
}

impl Offered {
    pub(super) fn new(hello: &ClientHello<'_>) -> Self {
        let psks = hello.pre_shared_key.iter();
        let identities = psks.flat_map(|psks| psks.identities().take(MAX_IDENTITIES));
        Self {
            identities: identities
                .map(|psk| TicketFingerprint::new(psk.identity))
                .collect(),
            ticket: hello.session_ticket.and_then(TicketFingerprint::new),
            ticket_key: AffinityKey::ticket(hello.session_ticket.unwrap_or_default()),
            id_key: AffinityKey::session_id(hello.session_id),
            a_session: offers_session(hello),
            in_clear: !hello.encrypted_client_hello,
        }
    }

    /// The session that a rule leads home by, if that is one that was learned.
    pub(super) fn key(&self, by: RoutedBy) -> Option<AffinityKey> {
        match by {
            RoutedBy::Ticket => self.ticket_key,
            RoutedBy::SessionId => self.id_key,
            RoutedBy::Label | RoutedBy::KeyName | RoutedBy::Policy => None,
        }
    }
}

/// True if the hello offers a session. The session ID of a TLS 1.3 client is noise.
pub(super) fn offers_session(hello: &ClientHello<'_>) -> bool {
    let has_ticket = hello
        .session_ticket
        .is_some_and(|ticket| !ticket.is_empty());
    let has_id = !hello.session_id.is_empty() && !hello.offers_tls13();
    hello.pre_shared_key.is_some() || has_ticket || has_id
}

/// What decides where a client goes.
pub(super) struct Request<'a> {
    pub(super) hello: &'a ClientHello<'a>,
    pub(super) offered: &'a Offered,
    pub(super) source: IpAddr,
    /// By the clock of sessions.
    pub(super) now: Time,
    /// By the clock of servers.
    pub(super) at: Instant,
}

impl Shared {
    /// The servers of a pool to try, in order: those that can resume what the client offers, then as
    /// policy has them. What is not asked for is not looked up, and policy gives nobody a turn. A
    /// server may stand there twice.
    pub(super) fn choices<'r>(
        &'r self,
        roster: &'r Roster,
        pool: &'r Pool,
        request: &'r Request<'r>,
    ) -> impl Iterator<Item = Choice<'r>> {
        let label = iter::once_with(move || labelled(roster, pool, request)).flatten();
        let learned = iter::once_with(move || self.learned(pool, request)).flatten();
        let named = iter::once_with(move || named(pool, request)).flatten();
        let policy = iter::once_with(move || pool.place(request.source, request.at)).flatten();
        let policy = policy.map(|server| (RoutedBy::Policy, Ok(server)));
        label.chain(learned).chain(named).chain(policy)
    }

    /// By what was learned: the server that made the session, or, with a ticket, one that shares its
    /// key. A TLS 1.3 client's random session ID cannot match: none is ever learned.
    fn learned<'r>(
        &'r self,
        pool: &'r Pool,
        request: &'r Request<'_>,
    ) -> impl Iterator<Item = Choice<'r>> {
        let known: Vec<(RoutedBy, u32)> = {
            let affinity = locked(&self.affinity);
            let rules = [RoutedBy::Ticket, RoutedBy::SessionId].into_iter();
            let known = rules.filter_map(|by| {
                let known = affinity.lookup(request.offered.key(by)?, request.now)?;
                Some((by, known.server))
            });
            known.collect()
        };
        // One of another pool may have a session here as well.
        let here = known.iter().find(|(_, home)| pool.with_id(*home).is_some());
        let found = here.or(known.first()).copied();
        let at_home = move |home| {
            let server = pool.with_id(home).ok_or(Miss::Elsewhere)?;
            pool.takes_returning(server, request.at).map(|()| server)
        };
        let elsewhere = move |by, home| {
            // Who shares a ticket key does not share a cache.
            let group = match by {
                RoutedBy::Ticket => pool.key_names.group(home),
                _ => BTreeSet::new(),
            };
            if group.is_empty() {
                return Vec::new();
            }
            let ids = Vec::from_iter(group);
            let siblings = pool.with_room(&ids, request.source, request.at);
            // Why there is none does not matter beside why it is not the first.
            siblings.unwrap_or_default()
        };
        found.into_iter().flat_map(move |(by, home)| {
            let siblings = iter::once_with(move || elsewhere(by, home)).flatten();
            let servers = iter::once(at_home(home)).chain(siblings.map(Ok));
            servers.map(move |server| (by, server))
        })
    }
}

/// By label. A ticket can be resumed elsewhere too, and its owner can come with it as often as he
/// likes: a server that has more than its share is spared. A stored session is there alone.
fn labelled<'r>(roster: &Roster, pool: &'r Pool, request: &Request<'_>) -> Option<Choice<'r>> {
    let label = roster.labels.as_ref()?.read(request.hello, request.now)?;
    let Some(server) = pool.with_number(label.server) else {
        return Some((RoutedBy::Label, Err(Miss::Elsewhere)));
    };
    let takes = match label.class {
        Class::Stored => pool.takes_returning(server, request.at),
        Class::Sealed => {
            let has_room = pool.with_room(&[server.id()], request.source, request.at);
            has_room.map(drop)
        }
    };
    Some((RoutedBy::Label, takes.map(|()| server)))
}

/// By the proven name of the key of the first ticket that begins with one.
fn named<'r>(pool: &'r Pool, request: &Request<'_>) -> Vec<Choice<'r>> {
    let Offered {
        identities, ticket, ..
    } = request.offered;
    let mut tokens = identities.iter().chain(iter::once(ticket)).flatten();
    let found = tokens.find_map(|token| {
        let servers = pool.key_names.servers(&token.name);
        (!servers.is_empty()).then_some(servers)
    });
    let Some(ids) = found else {
        return Vec::new();
    };
    let by = RoutedBy::KeyName;
    match pool.with_room(&ids, request.source, request.at) {
        Ok(servers) => servers.into_iter().map(|it| (by, Ok(it))).collect(),
        Err(miss) => vec![(by, Err(miss))],
    }
}
