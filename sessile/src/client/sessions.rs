//! The cache of a client's sessions by server name, bounded in number and age.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::locks::locked;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// A client's sessions, shared by all clones.
///
/// A server name has one TLS 1.2 session, offered until a newer session replaces it. Each TLS 1.3
/// ticket is offered once, the newest ticket first (RFC 9846, C.4).
///
/// The age of a session counts from its full handshake. Resuming does not reset the age.
#[derive(Clone)]
pub struct Sessions(Arc<Mutex<SessionCache>>);

struct SessionCache {
    lifetime: Duration,
    tls12: Fifo<CachedSession<Tls12ClientSessionValue>>,
    tls13: Fifo<CachedSession<Tls13ClientSessionValue>>,
    /// The key exchange group that each server chose last. A key share for this group avoids a
    /// HelloRetryRequest.
    groups: Fifo<NamedGroup>,
}

struct CachedSession<S> {
    session: S,
    full_handshake: Instant,
}

impl Sessions {
    /// Limit of [`Sessions::default`]: this many TLS 1.2 sessions, and as many TLS 1.3 tickets.
    pub const DEFAULT_MAX_ENTRIES: usize = 1024;

    /// The default of `session.client-lifetime`.
    pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(10 * 60 * 60);

    /// An empty cache for `max_entries` TLS 1.2 sessions and as many TLS 1.3 tickets. Sessions
    /// older than `lifetime` are not offered.
    #[must_use]
    pub fn new(max_entries: usize, lifetime: Duration) -> Self {
        Self(Arc::new(Mutex::new(SessionCache {
            lifetime,
            tls12: Fifo::new(max_entries, 1),
            tls13: Fifo::new(max_entries, MAX_TICKETS_PER_NAME),
            groups: Fifo::new(max_entries, 1),
        })))
    }

    /// An empty cache with the same limits.
    #[must_use]
    pub fn empty_like(&self) -> Self {
        let cache = locked(&self.0);
        Self::new(cache.tls12.max, cache.lifetime)
    }

    /// A new cache with the newest session of one name, under another name. A TLS 1.3 ticket leaves this cache.
    #[must_use]
    pub fn newest_for(&self, name: &ServerName<'static>, other: &ServerName<'static>) -> Self {
        let moved = self.empty_like();
        let mut from = locked(&self.0);
        let mut to = locked(&moved.0);
        if let Some(cached) = from.tls12.newest(name) {
            let (session, since) = (cached.session.clone(), cached.full_handshake);
            to.tls12.push_session(other.clone(), session, since);
        }
        if let Some(cached) = from.tls13.take_newest(name) {
            let since = cached.full_handshake;
            to.tls13.push_session(other.clone(), cached.session, since);
        }
        drop(to);
        moved
    }

    /// True if the newest TLS 1.3 ticket of the name allows this number of bytes of early data.
    #[must_use]
    pub fn allows_early_data(&self, name: &ServerName<'_>, bytes: usize) -> bool {
        let cache = locked(&self.0);
        let newest = cache.tls13.newest(name);
        newest.is_some_and(|cached| {
            let most = usize::try_from(cached.session.max_early_data_size());
            most.is_ok_and(|most| most >= bytes)
        })
    }

    /// Removes all sessions and tickets.
    pub fn clear(&self) {
        let mut cache = locked(&self.0);
        cache.tls12.entries.clear();
        cache.tls13.entries.clear();
    }

    /// True if the cache holds no session and no ticket, not even an expired one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let cache = locked(&self.0);
        cache.tls12.entries.is_empty() && cache.tls13.entries.is_empty()
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(Self::DEFAULT_MAX_ENTRIES, Self::DEFAULT_LIFETIME)
    }
}

const MAX_TICKETS_PER_NAME: usize = 8;

/// The sessions of one connection: rustls takes the session to offer from here, and puts the
/// server's new sessions here. Sessions that arrive before the outcome is known wait here until
/// [`HandshakeSessions::finish_handshake`].
pub(super) struct HandshakeSessions {
    /// The cache from which the session to offer comes.
    offered: Sessions,
    /// The cache for the server's new sessions.
    sessions: Sessions,
    started: Instant,
    /// Lock order: this lock before the cache's lock.
    state: Mutex<HandshakeSessionsState>,
}

#[derive(Default)]
struct HandshakeSessionsState {
    /// The time of the offered session's full handshake.
    offered_full_handshake: Option<Instant>,
    /// The time of the new sessions' full handshake; `None` until the outcome is known.
    full_handshake: Option<Instant>,
    offers_tls12_session: bool,
    tls12: Option<Tls12ClientSessionValue>,
    tls13: Vec<Tls13ClientSessionValue>,
}

impl HandshakeSessions {
    pub(super) fn new(offered: &Sessions, sessions: &Sessions) -> Self {
        Self {
            offered: offered.clone(),
            sessions: sessions.clone(),
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// True if rustls took a TLS 1.2 session for the ClientHello.
    pub(super) fn offers_tls12_session(&self) -> bool {
        locked(&self.state).offers_tls12_session
    }

    /// Moves the sessions of a finished handshake into the cache. If the handshake `resumed`, the
    /// new sessions inherit the age of the offered session. `keep_tls12` is false if the client
    /// wants tickets and the server gave only a session ID. A TLS 1.2 session is then dropped.
    pub(super) fn finish_handshake(
        &self,
        name: &ServerName<'static>,
        resumed: bool,
        keep_tls12: bool,
    ) {
        let mut state = locked(&self.state);
        let full_handshake = state
            .offered_full_handshake
            .filter(|_| resumed)
            .unwrap_or(self.started);
        state.full_handshake = Some(full_handshake);
        let mut cache = locked(&self.sessions.0);
        if let Some(session) = state.tls12.take()
            && keep_tls12
        {
            cache
                .tls12
                .push_session(name.clone(), session, full_handshake);
        }
        for ticket in state.tls13.drain(..) {
            cache
                .tls13
                .push_session(name.clone(), ticket, full_handshake);
        }
    }
}

impl<S> Fifo<CachedSession<S>> {
    fn push_session(&mut self, name: ServerName<'static>, session: S, full_handshake: Instant) {
        let cached = CachedSession {
            session,
            full_handshake,
        };
        self.push(name, cached);
    }

    fn remove_expired(&mut self, lifetime: Duration) {
        self.entries
            .retain(|(_, cached)| cached.full_handshake.elapsed() < lifetime);
    }
}

impl ClientSessionStore for HandshakeSessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        locked(&self.sessions.0).groups.push(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        locked(&self.sessions.0).groups.newest(name).copied()
    }

    fn set_tls12_session(&self, _name: ServerName<'static>, value: Tls12ClientSessionValue) {
        locked(&self.state).tls12 = Some(value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let mut state = locked(&self.state);
        let mut cache = locked(&self.offered.0);
        let lifetime = cache.lifetime;
        cache.tls12.remove_expired(lifetime);
        let cached = cache.tls12.newest(name)?;
        state.offered_full_handshake = Some(cached.full_handshake);
        state.offers_tls12_session = true;
        Some(cached.session.clone())
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        locked(&self.offered.0).tls12.take_newest(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut state = locked(&self.state);
        match state.full_handshake {
            Some(full_handshake) => {
                let mut cache = locked(&self.sessions.0);
                cache.tls13.push_session(name, value, full_handshake);
            }
            None if state.tls13.len() < MAX_TICKETS_PER_NAME => state.tls13.push(value),
            None => {}
        }
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut state = locked(&self.state);
        let mut cache = locked(&self.offered.0);
        let lifetime = cache.lifetime;
        cache.tls13.remove_expired(lifetime);
        let cached = cache.tls13.take_newest(name)?;
        state.offered_full_handshake = Some(cached.full_handshake);
        Some(cached.session)
    }
}

impl fmt::Debug for HandshakeSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeSessions").finish_non_exhaustive()
    }
}

/// Values by server name, first in, first out. Holds at most `max` values, and at most
/// `max_per_name` of one name.
struct Fifo<V> {
    max: usize,
    max_per_name: usize,
    entries: VecDeque<(ServerName<'static>, V)>,
}

impl<V> Fifo<V> {
    const fn new(max: usize, max_per_name: usize) -> Self {
        Self {
            max,
            max_per_name,
            entries: VecDeque::new(),
        }
    }

    fn push(&mut self, name: ServerName<'static>, value: V) {
        let count = self
            .entries
            .iter()
            .filter(|(owner, _)| *owner == name)
            .count();
        if count >= self.max_per_name
            && let Some(oldest) = self.entries.iter().position(|(owner, _)| *owner == name)
        {
            self.entries.remove(oldest);
        }
        self.entries.push_back((name, value));
        if self.entries.len() > self.max {
            self.entries.pop_front();
        }
    }

    fn newest(&self, name: &ServerName<'_>) -> Option<&V> {
        let mut newest_first = self.entries.iter().rev();
        newest_first.find_map(|(owner, value)| (owner == name).then_some(value))
    }

    fn take_newest(&mut self, name: &ServerName<'static>) -> Option<V> {
        let at = self.entries.iter().rposition(|(owner, _)| owner == name)?;
        self.entries.remove(at).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &'static str) -> ServerName<'static> {
        ServerName::try_from(text).unwrap()
    }

    #[test]
    fn offers_the_newest_value_of_a_name_first() {
        let mut fifo = Fifo::new(10, 2);
        for (owner, value) in [("a.test", 1), ("b.test", 2), ("a.test", 3)] {
            fifo.push(name(owner), value);
        }
        assert_eq!(fifo.newest(&name("a.test")), Some(&3));
        assert_eq!(fifo.take_newest(&name("a.test")), Some(3));
        assert_eq!(fifo.take_newest(&name("a.test")), Some(1));
        assert_eq!(fifo.take_newest(&name("a.test")), None);
        assert_eq!(fifo.newest(&name("b.test")), Some(&2));
    }

    #[test]
    fn a_name_at_its_limit_loses_its_own_oldest_value() {
        let mut fifo = Fifo::new(10, 2);
        fifo.push(name("b.test"), 0);
        for value in 1..=3 {
            fifo.push(name("a.test"), value);
        }
        let left: Vec<_> = fifo.entries.iter().map(|(_, value)| *value).collect();
        assert_eq!(left, [0, 2, 3]);
    }

    #[test]
    fn evicts_the_oldest_value_when_full_and_keeps_nothing_at_size_zero() {
        let mut fifo = Fifo::new(1, 1);
        fifo.push(name("a.test"), 1);
        fifo.push(name("b.test"), 2);
        assert_eq!(fifo.newest(&name("a.test")), None);
        assert_eq!(fifo.newest(&name("b.test")), Some(&2));

        let mut nothing = Fifo::new(0, 1);
        nothing.push(name("a.test"), 1);
        assert_eq!(nothing.newest(&name("a.test")), None);
    }
}
