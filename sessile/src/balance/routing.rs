//! The routing rules: which servers a ClientHello leads to. The offered sessions decide first, then the policy.

use std::cell::OnceCell;
use std::iter;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sessile_proto::Time;
use sessile_proto::address_table::AddressKey;
use sessile_proto::affinity::{Affinity, AffinityKey};
use sessile_proto::hello::ClientHello;
use sessile_proto::key_names::TicketFingerprint;
use sessile_proto::route::RoutedBy;
use sessile_proto::ticket::Class;

use super::addresses::Addresses;
use super::labels::{MAX_IDENTITIES, read_label};
use super::route_miss::SkipReason;
use super::server::PoolServer;
use super::servers::{Pool, ServerSet};
use crate::locks::locked;

/// A server that a rule leads to, or the reason why this server is skipped.
type Found<'r> = Result<&'r Arc<PoolServer>, SkipReason>;

/// A rule and its result.
pub(super) struct Choice<'r> {
    pub(super) rule: RoutedBy,
    pub(super) server: Found<'r>,
}

impl<'r> Choice<'r> {
    fn by(rule: RoutedBy) -> impl Fn(Found<'r>) -> Self {
        move |server| Self { rule, server }
    }
}

/// The sessions that a client offers, in the forms that the routing rules look up.
pub(super) struct OfferedSessions {
    /// The fingerprints of the first TLS 1.3 identities. `None` for an identity that is no ticket.
    pub(super) identities: Vec<Option<TicketFingerprint>>,
    pub(super) ticket: Option<TicketFingerprint>,
    /// The ticket of TLS 1.2 or earlier, as a key of the learned table.
    ticket_key: Option<AffinityKey>,
    /// The session ID of TLS 1.2 or earlier, as a key of the learned table.
    id_key: Option<AffinityKey>,
    /// True if the client offers a session, even if the balancer does not know the session.
    pub(super) has_session: bool,
    /// True if the client offers a ticket or a PSK identity.
    pub(super) has_ticket: bool,
    /// True if the hello has no encrypted inner hello that the server could answer instead.
    pub(super) is_in_clear: bool,
}

impl OfferedSessions {
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
            has_session: offers_session(hello),
            has_ticket: offers_ticket(hello),
            is_in_clear: !hello.encrypted_client_hello,
        }
    }

    /// The key of the learned table that this rule looks up.
    pub(super) fn key(&self, rule: RoutedBy) -> Option<AffinityKey> {
        match rule {
            RoutedBy::Ticket => self.ticket_key,
            RoutedBy::SessionId => self.id_key,
            RoutedBy::Label | RoutedBy::KeyName | RoutedBy::Address | RoutedBy::Policy => None,
        }
    }
}

/// True if the hello offers a session. The session ID of a TLS 1.3 client may be random, so it does not count.
fn offers_session(hello: &ClientHello<'_>) -> bool {
    let has_id = !hello.session_id.is_empty() && !hello.offers_tls13();
    offers_ticket(hello) || has_id
}

fn offers_ticket(hello: &ClientHello<'_>) -> bool {
    let mut tickets = hello.session_ticket.iter();
    hello.pre_shared_key.is_some() || tickets.any(|ticket| !ticket.is_empty())
}

/// Applies the routing rules to one client.
pub(super) struct Router<'r> {
    pub(super) set: &'r ServerSet,
    pub(super) pool: &'r Pool,
    pub(super) learned: &'r Mutex<Affinity>,
    pub(super) addresses: &'r Addresses,
    /// Empty until a rule needs the key, or the connection may teach it.
    pub(super) address_key: OnceCell<Option<AddressKey>>,
    pub(super) hello: &'r ClientHello<'r>,
    pub(super) offered: &'r OfferedSessions,
    pub(super) source: IpAddr,
    /// Wall-clock time, for sessions.
    pub(super) now: Time,
    /// Monotonic time, for the health of servers.
    pub(super) instant: Instant,
}

/// A learned session and the server that made it.
#[derive(Clone, Copy)]
struct LearnedHome {
    rule: RoutedBy,
    server: u32,
}

impl<'r> Router<'r> {
    /// The servers of the pool to try, in this order. A server can come twice.
    ///
    /// The iterator is lazy. A rule is applied, and the policy takes a turn, only when the caller needs
    /// another server.
    pub(super) fn choices(&'r self) -> impl Iterator<Item = Choice<'r>> {
        let by_label = iter::once_with(move || self.by_label()).flatten();
        let by_learned = iter::once_with(move || self.by_learned_session()).flatten();
        let by_key_name = iter::once_with(move || self.by_key_name()).flatten();
        let by_policy =
            iter::once_with(move || self.pool.place(self.source, self.instant)).flatten();
        let mut by_session = by_label
            .map(Choice::by(RoutedBy::Label))
            .chain(by_learned)
            .chain(by_key_name.map(Choice::by(RoutedBy::KeyName)))
            .peekable();
        // The address is a guess. It does not decide for a session whose servers are known.
        let is_anonymous = by_session.peek().is_none();
        let by_address = is_anonymous.then(|| self.by_address()).flatten();
        by_session
            .chain(by_address.map(Choice::by(RoutedBy::Address)))
            .chain(by_policy.map(Ok).map(Choice::by(RoutedBy::Policy)))
    }

    /// Finds the addresses of the server that the label names.
    fn by_label(&'r self) -> Vec<Found<'r>> {
        let keyring = self.set.inputs.route_keys.as_ref();
        let label = keyring.and_then(|keyring| read_label(keyring, self.hello, self.now));
        let Some(label) = label else {
            return Vec::new();
        };
        let servers: Vec<_> = self.pool.with_number(label.server).collect();
        if servers.is_empty() {
            return vec![Err(SkipReason::NotInPool)];
        }
        match label.class {
            // No other server has a stored session.
            Class::Stored => servers
                .into_iter()
                .map(|server| {
                    let takes = self.pool.takes_returning(server, self.instant);
                    takes.map(|()| server)
                })
                .collect(),
            // Another server can resume a sealed ticket too, and a client can offer one ticket on any number
            // of connections. So a server that has more than its share is skipped.
            Class::Sealed => {
                let ids: Vec<u32> = servers.iter().map(|server| server.id()).collect();
                self.choose(&ids)
            }
        }
    }

    /// Looks in the learned table: first the server that made the session, then the servers that share its
    /// ticket key.
    fn by_learned_session(&'r self) -> impl Iterator<Item = Choice<'r>> {
        self.find_learned().into_iter().flat_map(move |home| {
            let first = self.learned_server(home);
            let siblings = iter::once_with(move || self.key_siblings(home)).flatten();
            let servers = iter::once(first).chain(siblings.map(Ok));
            servers.map(Choice::by(home.rule))
        })
    }

    fn find_learned(&'r self) -> Option<LearnedHome> {
        let mut homes = Vec::new();
        let learned = locked(self.learned);
        // A random session ID of a TLS 1.3 client matches nothing, because only IDs of sessions are learned.
        for rule in [RoutedBy::Ticket, RoutedBy::SessionId] {
            let key = self.offered.key(rule);
            let session = key.and_then(|key| learned.lookup(key, self.now));
            homes.extend(session.map(|session| LearnedHome {
                rule,
                server: session.server,
            }));
        }
        drop(learned);
        // A session of a server in this pool goes first, because the client may have sessions in several
        // pools.
        let mut in_pool = homes
            .iter()
            .filter(|home| self.pool.with_id(home.server).is_some());
        in_pool.next().or(homes.first()).copied()
    }

    fn learned_server(&'r self, home: LearnedHome) -> Found<'r> {
        let found = self.pool.with_id(home.server);
        let server = found.ok_or(SkipReason::NotInPool)?;
        self.pool.takes_returning(server, self.instant)?;
        Ok(server)
    }

    /// The servers that share a ticket key with the server of the session, and have room.
    fn key_siblings(&'r self, home: LearnedHome) -> Vec<&'r Arc<PoolServer>> {
        if home.rule != RoutedBy::Ticket {
            // A shared ticket key says nothing about session caches.
            return Vec::new();
        }
        let key_names = &self.pool.key_names;
        let group = key_names.read(|names| names.group(home.server));
        // The miss reports why the first server was skipped. The siblings are only a fallback.
        self.with_room(&Vec::from_iter(group)).unwrap_or_default()
    }

    /// Finds the servers of the first ticket whose key name is proven.
    fn by_key_name(&'r self) -> Vec<Found<'r>> {
        let OfferedSessions {
            identities, ticket, ..
        } = self.offered;
        let mut tickets = identities.iter().chain(iter::once(ticket)).flatten();
        let proven = tickets.find_map(|ticket| {
            let key_names = &self.pool.key_names;
            let servers: Vec<u32> = key_names.read(|names| names.servers(&ticket.name).collect());
            (!servers.is_empty()).then_some(servers)
        });
        let Some(ids) = proven else {
            return Vec::new();
        };
        self.choose(&ids)
    }

    /// The client's key of the address table. `None` if the table is off.
    pub(super) fn address_key(&self) -> Option<AddressKey> {
        let make = || self.addresses.key(self.source, self.hello);
        *self.address_key.get_or_init(make)
    }

    /// Finds the server that took the clients of this address. A server that left the pool counts as unknown,
    /// and so does a server that ends the handshakes of returning clients.
    fn by_address(&'r self) -> Option<Found<'r>> {
        if !self.offered.has_ticket {
            return None;
        }
        let id = self.addresses.server(self.address_key()?, self.now)?;
        let server = self.pool.with_id(id)?;
        if server.has_session_fault() {
            return None;
        }
        Some(self.with_room(&[id]).map(|_| server))
    }

    /// The servers of this list that have room, or the reason why none has.
    fn choose(&'r self, ids: &[u32]) -> Vec<Found<'r>> {
        match self.with_room(ids) {
            Ok(servers) => servers.into_iter().map(Ok).collect(),
            Err(reason) => vec![Err(reason)],
        }
    }

    /// See [`Pool::with_room`].
    fn with_room(&'r self, ids: &[u32]) -> Result<Vec<&'r Arc<PoolServer>>, SkipReason> {
        self.pool.with_room(ids, self.source, self.instant)
    }
}
