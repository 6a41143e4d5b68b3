//! The outcome of a connection. The balancer learns sessions and key names from the outcome, counts the
//! outcome and logs it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use sessile_proto::Time;
use sessile_proto::Word;
use sessile_proto::address_table::AddressKey;
use sessile_proto::affinity::{AffinityKey, LearnResult, LearnedSession};
use sessile_proto::age_limit::AgedOffer;
use sessile_proto::hello::TLS_1_2;
use sessile_proto::key_names::TicketFingerprint;
use sessile_proto::route::RoutedBy;
use sessile_proto::verdict::How;
use sessile_proto::watch::{Kind, Learned, Outcome, SessionOutcome};

use super::metrics::ExpiredTimeout;
use super::relay::{ConnectionEnd, EndReason};
use super::routing::OfferedSessions;
use super::server::PoolServer;
use super::state::BalancerState;
use crate::clock;
use crate::locks::locked;

/// A connection that its server took.
pub(super) struct RoutedConnection {
    pub(super) server: Arc<PoolServer>,
    pub(super) rule: RoutedBy,
    pub(super) client: SocketAddr,
    pub(super) offered: OfferedSessions,
    /// The key of the address table that a complete handshake teaches. `None`: the connection teaches none.
    pub(super) address_key: Option<AddressKey>,
    /// The learned sessions that the connection made or resumed.
    pub(super) sessions: RefCell<Vec<AffinityKey>>,
}

/// The learned session that a client offered.
struct LearnedOffer {
    key: AffinityKey,
    session: LearnedSession,
}

impl RoutedConnection {
    /// Reports the handshake, before the server's bytes go on to the client.
    ///
    /// `selected_identity`: the index of the TLS 1.3 identity that was resumed.
    pub(super) fn report_handshake(
        &self,
        state: &BalancerState,
        outcome: &Outcome,
        selected_identity: Option<u16>,
    ) {
        let established = self.record_offer(state, outcome);
        self.learn_sessions(state, &outcome.learned, established);
        let session_loss = &self.server.stats.session_loss;
        session_loss.record_lifetime_hint(outcome.lifetime_hint);
        self.learn_key_name(outcome, selected_identity);
        let kind = match outcome.kind {
            // A TLS 1.3 client sends a session ID even if it offers no session. If a session rule placed the
            // client, the ID was an offer.
            Kind::NotOffered if self.rule != RoutedBy::Policy => Kind::Refused,
            kind => kind,
        };
        self.count(state, kind.into());
        tracing::debug!(
            server = self.server.name(),
            routed_by = self.rule.as_str(),
            resumed = matches!(outcome.kind, Kind::Resumed(_)),
            client = %self.client,
            "handshake"
        );
    }

    /// Reports the end. `had_handshake`: the handshake was reported before.
    pub(super) fn report_end(
        &self,
        state: &BalancerState,
        end: &ConnectionEnd,
        had_handshake: bool,
    ) {
        if !had_handshake {
            self.count(state, SessionOutcome::Failed);
        }
        if !end.answered && end.by_server {
            let source = self.client.ip();
            let has_session = self.offered.has_session;
            self.server.record_cut(source, has_session, Instant::now());
        }
        self.record_last_use(state, end);
        match &end.reason {
            EndReason::Closed | EndReason::Displaced => {}
            EndReason::Broken(error) => {
                tracing::debug!(%error, client = %self.client, "connection cut");
            }
            EndReason::HalfClosed => state.metrics.count_timed_out(ExpiredTimeout::HalfClosed),
            EndReason::Idle => state.metrics.count_timed_out(ExpiredTimeout::Idle),
            EndReason::Total => state.metrics.count_timed_out(ExpiredTimeout::Total),
        }
    }

    fn count(&self, state: &BalancerState, outcome: SessionOutcome) {
        state.metrics.routed.count(self.rule, outcome);
        let metrics = &self.server.stats.metrics;
        metrics.handshakes.count(self.rule, outcome);
    }

    fn record_last_use(&self, state: &BalancerState, end: &ConnectionEnd) {
        let sessions = self.sessions.take();
        if sessions.is_empty() {
            return;
        }
        // Sessions use the wall clock, and the relay measures with the monotonic clock.
        let used = clock::now().minus(end.last_used.elapsed());
        let mut learned = locked(&state.learned);
        for key in sessions {
            learned.used(key, used);
        }
    }

    /// Records whether the server accepted a learned session that it had made. Any rule may have placed the
    /// client, because the label rule goes before the learned table.
    ///
    /// Returns the time of the resumed session's full handshake.
    fn record_offer(&self, state: &BalancerState, outcome: &Outcome) -> Option<Time> {
        let accepted = match outcome.kind {
            Kind::Resumed(_) => true,
            Kind::Failed => return None,
            // A learned session is of TLS 1.2 or earlier, so it could not resume at a later version.
            _ if outcome.version > TLS_1_2 => return None,
            Kind::Refused | Kind::NotOffered => false,
        };
        let now = clock::now();
        let LearnedOffer { key, session } = self.find_learned_offer(state, now)?;
        if session.server == self.server.id() {
            let offer = AgedOffer {
                idle: now.since(session.used),
                age: now.since(session.established),
                accepted,
            };
            let metrics = &self.server.stats.metrics;
            let histogram = if accepted {
                &metrics.offers_accepted
            } else {
                &metrics.offers_refused
            };
            histogram.observe(offer.idle.as_secs_f64());
            let session_loss = &self.server.stats.session_loss;
            session_loss.record_offer(self.server.name(), offer, state.session_lifetime);
        }
        if !accepted {
            return None;
        }
        self.sessions.borrow_mut().push(key);
        Some(session.established)
    }

    /// The offered session in the learned table. A session that this server made goes before the session that
    /// the rule found.
    fn find_learned_offer(&self, state: &BalancerState, now: Time) -> Option<LearnedOffer> {
        let learned = locked(&state.learned);
        let find = |rule| {
            let key = self.offered.key(rule)?;
            let session = learned.lookup(key, now)?;
            Some(LearnedOffer { key, session })
        };
        let rules = [RoutedBy::Ticket, RoutedBy::SessionId].into_iter();
        let mut offers = rules.filter_map(find);
        let own = offers.find(|offer| offer.session.server == self.server.id());
        own.or_else(|| find(self.rule))
    }

    /// Learns that this server made these sessions. The entry of another server stays. If both servers share a
    /// key, either server can resume the session.
    fn learn_sessions(
        &self,
        state: &BalancerState,
        sessions: &[Learned],
        established: Option<Time>,
    ) {
        if sessions.is_empty() {
            return;
        }
        let now = clock::now();
        let established = established.unwrap_or(now);
        let mut learned = locked(&state.learned);
        for session in sessions {
            let key = match session {
                Learned::SessionId(id) => AffinityKey::session_id(id),
                Learned::Ticket(ticket) => AffinityKey::ticket(ticket),
            };
            let Some(key) = key else { continue };
            let source = self.client.ip();
            let lesson = learned.learn(key, self.server.id(), source, established, now);
            if lesson == LearnResult::Displacing {
                state.metrics.displaced.inc();
            }
            self.sessions.borrow_mut().push(key);
            tracing::debug!(?lesson, server = self.server.name(), "learned");
        }
    }

    /// Learns that the server took this kind of client of this address.
    pub(super) fn learn_address(&self, state: &BalancerState) {
        let Some(key) = self.address_key else {
            return;
        };
        let (id, source, now) = (self.server.id(), self.client.ip(), Instant::now());
        state.addresses.update(|table| {
            // The set is read under the lock of the table. A reload replaces the set before it removes entries,
            // so a connection of the old set adds no entry after that.
            let set = state.server_set();
            let address = self.server.address();
            let mut servers = set.servers();
            // With another address, the server is another machine.
            let found = servers.find(|(_, other)| other.id() == id && other.address() == address);
            let Some((pool, _)) = found else {
                return;
            };
            // A server that is down has lost its entries, and its open connections make no new ones.
            if pool.keeps_addresses(id, now) {
                let is_usable = |other| pool.keeps_addresses(other, now);
                table.learn(key, id, source, is_usable, clock::now());
            }
        });
    }

    /// Learns the key name of the ticket that the server accepted.
    fn learn_key_name(&self, outcome: &Outcome, selected_identity: Option<u16>) {
        if self.rule == RoutedBy::Address {
            // The rule leads each client to the server that made its ticket. So the same first bytes at several
            // servers would not stand out.
            return;
        }
        let id = self.server.id();
        let accepted = |ticket: TicketFingerprint, is_certain| {
            let key_names = &self.server.key_names;
            key_names.update(id, |names| names.accepted(id, ticket, is_certain));
        };
        match outcome.kind {
            // After a HelloRetryRequest the index refers to a second hello, which the balancer did not read.
            Kind::Resumed(How::Psk) if !outcome.hello_retry => {
                let at = selected_identity.map(usize::from);
                let ticket = at.and_then(|at| self.offered.identities.get(at).copied());
                if let Some(ticket) = ticket.flatten() {
                    accepted(ticket, self.offered.is_in_clear);
                }
            }
            // The ticket is not certain. A server without tickets resumes the session ID beside the ticket,
            // and the client may have invented the ticket.
            Kind::Resumed(How::Ticket) => {
                if let Some(ticket) = self.offered.ticket {
                    accepted(ticket, false);
                }
            }
            _ => {}
        }
    }
}
