//! The sessions that a client holds: the newest for each server name, bounded in number and age.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// What a client remembers of servers, shared by all clones.
///
/// TLS 1.2 has one session for each server name, offered until a newer one replaces it. TLS 1.3
/// tickets are offered once each, the newest first (RFC 9846, C.4). A session's age counts from its
/// full handshake, however often it was resumed since.
#[derive(Clone)]
pub struct Sessions(Arc<Mutex<SessionCache>>);

struct SessionCache {
    lifetime: Duration,
    frozen: bool,
    tls12: Fifo<CachedSession<Tls12ClientSessionValue>>,
    tls13: Fifo<CachedSession<Tls13ClientSessionValue>>,
    /// Which key exchange group a server took last: saves a HelloRetryRequest.
    groups: Fifo<NamedGroup>,
}

struct CachedSession<S> {
    session: S,
    full_handshake: Instant,
}

impl Sessions {
    /// Most sessions, and most TLS 1.3 tickets, in a cache made by [`Sessions::default`].
    pub const DEFAULT_MAX_ENTRIES: usize = 1024;

    /// `session.client-lifetime` where it is not set.
    pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(10 * 60 * 60);

    /// An empty cache for `max_entries` sessions and as many TLS 1.3 tickets, each no older than
    /// `lifetime`.
    #[must_use]
    pub fn new(max_entries: usize, lifetime: Duration) -> Self {
        Self(Arc::new(Mutex::new(SessionCache {
            lifetime,
            frozen: false,
            tls12: Fifo::new(max_entries, 1),
            tls13: Fifo::new(max_entries, MAX_TICKETS_PER_NAME),
            groups: Fifo::new(max_entries, 1),
        })))
    }

    /// An empty cache with the limits of this one.
    #[must_use]
    pub fn empty_like(&self) -> Self {
        let cache = self.lock();
        Self::new(cache.tls12.max, cache.lifetime)
    }

    /// While frozen, sessions that servers give are not taken in and none is forgotten: a client
    /// goes on offering the TLS 1.2 session that it has. (TLS 1.3 tickets are still used up.)
    pub fn freeze(&self, frozen: bool) {
        self.lock().frozen = frozen;
    }

    /// Forgets every session.
    pub fn clear(&self) {
        let mut cache = self.lock();
        cache.tls12.entries.clear();
        cache.tls13.entries.clear();
    }

    /// How many sessions and tickets are held, those past their lifetime included.
    #[must_use]
    pub fn len(&self) -> usize {
        let cache = self.lock();
        cache.tls12.entries.len() + cache.tls13.entries.len()
    }

    /// Whether no session is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, SessionCache> {
        // No code that holds the lock can leave the cache half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(Self::DEFAULT_MAX_ENTRIES, Self::DEFAULT_LIFETIME)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Sessions are secrets: their number is all that is shown.
        f.debug_struct("Sessions")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

const MAX_TICKETS_PER_NAME: usize = 8;

/// The view that one connection has of the cache: rustls asks it what to offer and tells it what
/// was given. What is given before the outcome is known waits until [`HandshakeSessions::finish_handshake`].
pub(super) struct HandshakeSessions {
    sessions: Sessions,
    started: Instant,
    /// Locked before the cache, never after it.
    state: Mutex<HandshakeSessionsState>,
}

#[derive(Default)]
struct HandshakeSessionsState {
    /// When the session that rustls took was made, by a full handshake.
    offered: Option<Instant>,
    /// The same of the sessions that the server gives, once it is known.
    settled: Option<Instant>,
    offers_tls12_session: bool,
    tls12: Option<Tls12ClientSessionValue>,
    tls13: Vec<Tls13ClientSessionValue>,
}

impl HandshakeSessions {
    pub(super) fn new(sessions: &Sessions) -> Self {
        Self {
            sessions: sessions.clone(),
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Whether a TLS 1.2 session is being offered.
    pub(super) fn offers_tls12_session(&self) -> bool {
        self.lock().offers_tls12_session
    }

    /// The handshake is over. `resumed`: the offered session is_alive on, and its age with it.
    /// `keep_tls12`: whether a TLS 1.2 session that was given is of the kind that is wanted.
    pub(super) fn finish_handshake(
        &self,
        name: &ServerName<'static>,
        resumed: bool,
        keep_tls12: bool,
    ) {
        let mut state = self.lock();
        let offered = state.offered.filter(|_| resumed);
        let full_handshake = offered.unwrap_or(self.started);
        state.settled = Some(full_handshake);
        let mut cache = self.sessions.lock();
        if let Some(session) = state.tls12.take().filter(|_| keep_tls12 && !cache.frozen) {
            let kept = CachedSession {
                session,
                full_handshake,
            };
            cache.tls12.push(name.clone(), kept);
        }
        for ticket in state.tls13.drain(..) {
            cache.insert_tls13_ticket(name.clone(), ticket, full_handshake);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HandshakeSessionsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionCache {
    fn insert_tls13_ticket(
        &mut self,
        name: ServerName<'static>,
        session: Tls13ClientSessionValue,
        full_handshake: Instant,
    ) {
        if !self.frozen {
            let kept = CachedSession {
                session,
                full_handshake,
            };
            self.tls13.push(name, kept);
        }
    }

    fn drop_expired(&mut self) {
        let lifetime = self.lifetime;
        self.tls12.retain(|kept| kept.is_alive(lifetime));
        self.tls13.retain(|kept| kept.is_alive(lifetime));
    }
}

impl<S> CachedSession<S> {
    fn is_alive(&self, lifetime: Duration) -> bool {
        self.full_handshake.elapsed() < lifetime
    }
}

impl ClientSessionStore for HandshakeSessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.sessions.lock().groups.push(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.lock().groups.newest(name).copied()
    }

    fn set_tls12_session(&self, _name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.lock().tls12 = Some(value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let mut state = self.lock();
        let mut cache = self.sessions.lock();
        cache.drop_expired();
        let kept = cache.tls12.newest(name)?;
        state.offered = Some(kept.full_handshake);
        state.offers_tls12_session = true;
        Some(kept.session.clone())
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        let mut cache = self.sessions.lock();
        if !cache.frozen {
            cache.tls12.take_newest(name);
        }
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut state = self.lock();
        match state.settled {
            Some(full_handshake) => {
                let mut cache = self.sessions.lock();
                cache.insert_tls13_ticket(name, value, full_handshake);
            }
            None if state.tls13.len() < MAX_TICKETS_PER_NAME => state.tls13.push(value),
            None => {}
        }
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut state = self.lock();
        let mut cache = self.sessions.lock();
        cache.drop_expired();
        let kept = cache.tls13.take_newest(name)?;
        state.offered = Some(kept.full_handshake);
        Some(kept.session)
    }
}

impl fmt::Debug for HandshakeSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeSessions").finish_non_exhaustive()
    }
}

/// Values by server name, first in, first out: at most `max` in all and `max_per_name` of a name.
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
        let of_name = |(owner, _): &&(ServerName<'static>, V)| *owner == name;
        if self.entries.iter().filter(of_name).count() >= self.max_per_name {
            let oldest = self.entries.iter().position(|(owner, _)| *owner == name);
            oldest.and_then(|at| self.entries.remove(at));
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

    fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.entries.retain(|(_, value)| keep(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &'static str) -> ServerName<'static> {
        ServerName::try_from(text).unwrap()
    }

    #[test]
    fn the_newest_value_of_a_name_is_offered_first() {
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
    fn a_name_over_its_share_loses_its_own_oldest_value() {
        let mut fifo = Fifo::new(10, 2);
        fifo.push(name("b.test"), 0);
        for value in 1..=3 {
            fifo.push(name("a.test"), value);
        }
        let left: Vec<_> = fifo.entries.iter().map(|(_, value)| *value).collect();
        assert_eq!(left, [0, 2, 3]);
    }

    #[test]
    fn the_oldest_value_leaves_when_full_and_none_is_kept_by_a_cache_of_no_size() {
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
