//! What became of a connection, reported in one place: what is learned from it, how its server
//! stands, metrics and the log.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use sessile_proto::Time;
use sessile_proto::affinity::{AffinityKey, LearnResult, LearnedSession};
use sessile_proto::age_limit::AgedOffer;
use sessile_proto::hello::TLS_1_2;
use sessile_proto::key_names::KeyNames;
use sessile_proto::route::RoutedBy;
use sessile_proto::verdict::How;
use sessile_proto::watch::{Kind, Learned, Outcome};

use super::follow::Offered;
use super::relay::{End, Ended};
use super::server::Server;
use super::{Shared, locked};
use crate::clock;

/// A connection that found its server.
pub(super) struct Passage {
    pub(super) server: Arc<Server>,
    pub(super) by: RoutedBy,
    pub(super) client: SocketAddr,
    pub(super) offered: Offered,
    /// The sessions that it made or resumed, as far as they were learned.
    pub(super) sessions: RefCell<Vec<AffinityKey>>,
}

impl Shared {
    /// Reports what the server's clear bytes have told, before they go on to the client.
    /// `selected`: which TLS 1.3 identity was resumed.
    pub(super) fn report_handshake(
        &self,
        passage: &Passage,
        outcome: &Outcome,
        selected: Option<u16>,
    ) {
        let established = self.remember_offer(passage, outcome);
        self.learn(passage, &outcome.learned, established);
        passage
            .server
            .live
            .forgetting
            .announced(outcome.lifetime_hint);
        learn_key_name(passage, outcome, selected);
        let kind = match outcome.kind {
            // The session ID of a TLS 1.3 client is noise, unless it is one that we know.
            Kind::NotOffered if passage.by != RoutedBy::Policy => Kind::Refused,
            kind => kind,
        };
        self.metrics.count(passage.by, Some(kind));
        (passage.server.live.metrics).count(passage.by, Some(kind));
        tracing::debug!(
            server = passage.server.name(),
            routed_by = passage.by.as_str(),
            resumed = matches!(outcome.kind, Kind::Resumed(_)),
            client = %passage.client,
            "handshake"
        );
    }

    /// Reports the end. `told`: whether the handshake was reported before.
    pub(super) fn report_end(&self, passage: &Passage, ended: &Ended, told: bool) {
        let server = &passage.server;
        if !told {
            self.metrics.count(passage.by, None);
            server.live.metrics.count(passage.by, None);
        }
        if !ended.answered && ended.by_server {
            let source = passage.client.ip();
            server.cut(source, passage.offered.a_session, Instant::now());
        }
        let sessions = passage.sessions.take();
        if !sessions.is_empty() {
            // By the wall clock, as everything about sessions; measured by the other.
            let used = clock::now().minus(ended.silent_since.elapsed());
            let mut affinity = locked(&self.affinity);
            for key in sessions {
                affinity.used(key, used);
            }
        }
        match &ended.end {
            End::Orderly => {}
            End::Cut(error) => tracing::trace!(%error, client = %passage.client, "connection cut"),
            End::HalfClosed => self.metrics.count_timed_out("half-closed"),
            End::Idle => self.metrics.count_timed_out("idle"),
            End::TooLong => self.metrics.count_timed_out("total"),
        }
    }

    /// Takes note of what the server did with a session that it made, where that is known, whatever rule
    /// led there: a label is looked at before what was learned. Returns when the full handshake was of
    /// the session that this connection goes on with.
    fn remember_offer(&self, passage: &Passage, outcome: &Outcome) -> Option<Time> {
        let accepted = match outcome.kind {
            Kind::Resumed(_) => true,
            Kind::Failed => return None,
            // The session was for an older version than what they have agreed on: no wonder.
            _ if outcome.version > TLS_1_2 => return None,
            Kind::Refused | Kind::NotOffered => false,
        };
        let now = clock::now();
        let (key, known) = self.learned_of(passage, now)?;
        let server = &passage.server;
        if known.server == server.id() {
            let offer = AgedOffer {
                idle: now.since(known.used),
                age: now.since(known.established),
                accepted,
            };
            let forgetting = &server.live.forgetting;
            forgetting.record(server.name(), offer, self.session_lifetime);
        }
        if !accepted {
            return None;
        }
        passage.sessions.borrow_mut().push(key);
        Some(known.established)
    }

    /// The session that a client offered, if it was learned: one of the server that was reached, or else
    /// the one that led there.
    fn learned_of(&self, passage: &Passage, now: Time) -> Option<(AffinityKey, LearnedSession)> {
        let Passage {
            offered,
            server,
            by,
            ..
        } = passage;
        let affinity = locked(&self.affinity);
        let recall = |key| Some((key, affinity.lookup(key, now)?));
        let all = [RoutedBy::Ticket, RoutedBy::SessionId].into_iter();
        let mut all = all.filter_map(|by| recall(offered.key(by)?));
        let its_own = all.find(|(_, known)| known.server == server.id());
        its_own.or_else(|| recall(offered.key(*by)?))
    }

    /// Remembers which server made a session. What another server said stays; where they share a
    /// key, it makes no difference.
    fn learn(&self, passage: &Passage, learned: &[Learned], established: Option<Time>) {
        let now = clock::now();
        let mut affinity = locked(&self.affinity);
        for learned in learned {
            let key = match learned {
                Learned::SessionId(id) => AffinityKey::session_id(id),
                Learned::Ticket(ticket) => AffinityKey::ticket(ticket),
            };
            if let Some(key) = key {
                let (server, source) = (passage.server.id(), passage.client.ip());
                let established = established.unwrap_or(now);
                let lesson = affinity.learn(key, server, source, established, now);
                if lesson == LearnResult::Displacing {
                    self.metrics.count_displaced();
                }
                passage.sessions.borrow_mut().push(key);
                tracing::trace!(?lesson, server = passage.server.name(), "learned");
            }
        }
    }
}

fn learn_key_name(passage: &Passage, outcome: &Outcome, selected: Option<u16>) {
    let offered = &passage.offered;
    let (token, certain) = match outcome.kind {
        // After a HelloRetryRequest the number counts in a hello that was not looked at.
        Kind::Resumed(How::Psk) if !outcome.hello_retry => {
            let at = selected.map(usize::from);
            let token = at.and_then(|at| offered.identities.get(at).copied());
            (token.flatten(), offered.in_clear)
        }
        // A server that knows no tickets takes the session ID beside one, and its client may have
        // made that ticket up.
        Kind::Resumed(How::Ticket) => (offered.ticket, false),
        _ => (None, false),
    };
    if let Some(token) = token {
        let server = &passage.server;
        let accepted = |names: &mut KeyNames| names.accepted(server.id(), token, certain);
        server.key_names.note(server.id(), accepted);
    }
}
