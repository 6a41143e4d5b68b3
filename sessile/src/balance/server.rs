//! One server behind the balancer: what is set for it, how it stands and how busy it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use std::{fmt, io};

use sessile_proto::Time;
use sessile_proto::route::{self, Load};
use tokio::sync::Notify;

use super::forgetting::Forgetting;
use super::key_names::KeyNames;
use super::locked;
use super::metrics::ServerMetrics;
use super::session_fault::{Change, FAULT, Offers, SessionFault};
use super::standing::{Standing, State};
use crate::client::{Error, Failure, Mechanism};
use crate::clock;
use crate::config::BalanceServer;

/// A server as a roster has it.
pub(super) struct Server {
    pub(super) settings: BalanceServer,
    id: u64,
    /// What labels name it by; `None`: none is set, and there is no key to derive it with.
    pub(super) number: Option<u32>,
    /// Outlives the roster.
    pub(super) live: Arc<Live>,
    /// What is known in its pool of how tickets begin.
    pub(super) key_names: Arc<KeyNames>,
}

/// What is not set but found out.
pub(super) struct Live {
    standing: Mutex<Standing>,
    /// What its checks fail for.
    trouble: Mutex<Option<Trouble>>,
    offers: Mutex<Offers>,
    /// A connection was cut: is it still there?
    doubted: Notify,
    pub(super) metrics: ServerMetrics,
    pub(super) forgetting: Forgetting,
}

/// Checks that fail, one after another.
#[derive(Clone)]
pub(super) struct Trouble {
    /// What the last one failed for.
    pub(super) error: String,
    /// When the first one failed.
    pub(super) since: Time,
}

/// How fit a server is for new clients, the fittest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Up,
    Ejected,
    Down,
    /// Its operator wants no new clients there.
    Draining,
}

impl Rank {
    pub(super) const ALL: [Self; 4] = [Self::Up, Self::Ejected, Self::Down, Self::Draining];
}

/// How a server stands, in the words of the API and of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Up,
    /// It takes less than its share of new clients.
    SlowStart,
    Ejected,
    Down,
    Draining,
}

impl Condition {
    pub(super) const ALL: [Self; 5] = [
        Self::Up,
        Self::SlowStart,
        Self::Ejected,
        Self::Down,
        Self::Draining,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::SlowStart => "slow-start",
            Self::Ejected => "ejected",
            Self::Down => "down",
            Self::Draining => "draining",
        }
    }
}

impl Live {
    pub(super) fn new(
        standing: Standing,
        metrics: ServerMetrics,
        forgetting: Forgetting,
    ) -> Arc<Self> {
        metrics.up.set(1);
        Arc::new(Self {
            standing: Mutex::new(standing),
            trouble: Mutex::default(),
            offers: Mutex::default(),
            doubted: Notify::new(),
            metrics,
            forgetting,
        })
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        locked(&self.standing)
    }
}

impl Server {
    pub(super) fn new(
        settings: BalanceServer,
        number: Option<u32>,
        live: Arc<Live>,
        key_names: Arc<KeyNames>,
    ) -> Self {
        Self {
            id: route::server_id(&settings.name),
            settings,
            number,
            live,
            key_names,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.settings.name
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.settings.address
    }

    /// What learned sessions and key names remember it by: stays the same when other servers come
    /// and go.
    pub(super) const fn id(&self) -> u32 {
        self.id as u32
    }

    pub(super) fn state(&self, now: Instant) -> State {
        self.live.standing().state(now)
    }

    pub(super) fn rank(&self, now: Instant) -> Rank {
        match self.state(now) {
            _ if self.settings.drain => Rank::Draining,
            State::Up => Rank::Up,
            State::Ejected => Rank::Ejected,
            State::Down => Rank::Down,
        }
    }

    pub(super) fn condition(&self, slow_start: Duration, now: Instant) -> Condition {
        match self.rank(now) {
            Rank::Draining => Condition::Draining,
            Rank::Down => Condition::Down,
            Rank::Ejected => Condition::Ejected,
            Rank::Up if self.is_starting(slow_start, now) => Condition::SlowStart,
            Rank::Up => Condition::Up,
        }
    }

    /// Whether it has all the connections that it may have.
    pub(super) fn is_full(&self) -> bool {
        let most = self.settings.max_connections;
        most > 0 && self.open() >= most
    }

    pub(super) fn open(&self) -> u32 {
        u32::try_from(self.live.metrics.open.get()).unwrap_or(0)
    }

    pub(super) fn load(&self, usable: bool) -> Load {
        Load {
            id: self.id,
            weight: self.settings.weight.into(),
            open: self.open(),
            usable,
        }
    }

    pub(super) fn is_starting(&self, slow_start: Duration, now: Instant) -> bool {
        self.live.standing().is_starting(slow_start, now)
    }

    /// Its part of its weight, in a hundred.
    pub(super) fn share(&self, slow_start: Duration, now: Instant) -> u32 {
        self.live.standing().share(slow_start, now)
    }

    /// Counts a connection for as long as what it returns lives; `None`: it has as many as it may.
    pub(super) fn reserve(&self) -> Option<Connected> {
        let open = self.live.metrics.open.clone();
        open.inc();
        let reserved = Connected(open);
        let most = i64::from(self.settings.max_connections);
        (most == 0 || reserved.0.get() <= most).then_some(reserved)
    }

    /// Takes note of a check. Returns whether the server is up, where that has changed, and whether
    /// that still is in doubt.
    pub(super) fn checked(&self, failed: Option<&Error>, now: Instant) -> (Option<bool>, bool) {
        self.note_trouble(failed);
        let mut standing = self.live.standing();
        let was_ejected = standing.is_ejected();
        let changed = standing.checked(failed.is_none(), now);
        let is_back = was_ejected && !standing.is_ejected();
        let in_doubt = standing.is_in_doubt();
        if let Some(up) = changed {
            self.live.metrics.up.set(up.into());
        }
        drop(standing);
        if is_back {
            self.say_back();
        }
        (changed, in_doubt)
    }

    fn note_trouble(&self, failed: Option<&Error>) {
        let mut trouble = locked(&self.live.trouble);
        *trouble = failed.map(|error| Trouble {
            error: error.to_string(),
            since: trouble.as_ref().map_or_else(clock::now, |it| it.since),
        });
    }

    /// Nobody checks it any more: what the last checks said does not hold for ever.
    pub(super) fn is_not_checked(&self) {
        self.live.standing().forget_checks();
        *locked(&self.live.trouble) = None;
        self.live.metrics.up.set(1);
        self.is_offered_no_sessions();
    }

    /// No check offers a session any more: what was found does not hold for ever.
    pub(super) fn is_offered_no_sessions(&self) {
        *locked(&self.live.offers) = Offers::default();
        self.live.metrics.session_fault.set(0);
    }

    /// Takes note of an own client's handshake that offered a session of this server. `ended`: why it
    /// failed, where one without a session succeeded.
    pub(super) fn offered_session(&self, client: Mechanism, ended: Option<&Failure>) {
        let change = match ended {
            Some(failure) => locked(&self.live.offers).ended(client, failure, clock::now()),
            None => locked(&self.live.offers).finished(client),
        };
        let (name, address) = (self.name(), self.address());
        match (change, ended) {
            (Some(Change::Found), Some(failure)) => {
                tracing::warn!(
                    server = name, %address, error = %failure.error, offered = failure.offered_kind(),
                    "{FAULT}; it stays up, because it finishes handshakes that offer none"
                );
                // No ticket resumes there, whatever its first bytes.
                self.key_names
                    .note(self.id(), |names| names.forget(self.id()));
            }
            (Some(Change::Gone), _) => tracing::info!(
                server = name, %address, "the server finishes handshakes that offer its own session again"
            ),
            _ => {}
        }
        let fault = self.session_fault().is_some();
        self.live.metrics.session_fault.set(fault.into());
    }

    /// True if it ends handshakes in which this kind of client offers its own session.
    pub(super) fn is_faulty_for(&self, client: Mechanism) -> bool {
        locked(&self.live.offers).is_faulty_for(client)
    }

    /// Whether and how it ends handshakes that offer its own session.
    pub(super) fn session_fault(&self) -> Option<SessionFault> {
        locked(&self.live.offers).fault()
    }

    /// What its checks fail for, if they do.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        locked(&self.live.trouble).clone()
    }

    /// Waits until connections to it make another check worth while.
    pub(super) async fn is_doubted(&self) {
        self.live.doubted.notified().await;
    }

    /// Takes note of a connection that it did not take; `None`: not in time.
    pub(super) fn failed(&self, error: Option<&io::Error>, now: Instant) {
        self.live.metrics.failures.inc();
        let was = self.state(now);
        let length = self.live.standing().failed(now);
        match error {
            Some(error) => self.say_ejected(was, length, error),
            None => self.say_ejected(was, length, &"no connection within balance.connect-timeout"),
        }
    }

    /// Takes note of a connection that it took and ended without a word. Where there are checks, one
    /// finds out whether that is the server's fault or the client's. `offered`: the client offered a
    /// session.
    pub(super) fn cut(&self, source: IpAddr, offered: bool, now: Instant) {
        self.live.metrics.failures.inc();
        self.live.doubted.notify_one();
        if offered {
            // The server may end just those handshakes, and serve all new clients.
            return;
        }
        let was = self.state(now);
        let ejected = self.live.standing().cut(source, now);
        if let Some(length) = ejected {
            let reason = "it hung up without a word on clients of several sources";
            self.say_ejected(was, length, &reason);
        }
    }

    fn say_ejected(&self, was: State, length: Duration, reason: &dyn fmt::Display) {
        if was == State::Up {
            let seconds = length.as_secs();
            tracing::warn!(
                server = self.name(),
                seconds,
                %reason,
                "server ejected: connections to it failed"
            );
        }
    }

    fn say_back(&self) {
        tracing::info!(server = self.name(), "server takes connections again");
    }

    /// Takes note of a connection that it answered.
    pub(super) fn answered(&self, now: Instant) {
        let was_ejected = self.live.standing().answered(now);
        if was_ejected {
            self.say_back();
        }
    }
}

/// A connection that counts as open.
pub(super) struct Connected(prometheus::IntGauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
