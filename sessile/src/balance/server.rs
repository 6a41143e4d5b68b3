//! One server of a pool: settings, health and load. This file also logs ejections and session faults.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fmt, io};

use rustix::io::Errno;
use sessile_proto::health_state::{
    Availability, CheckEffect, HealthState, PlacementRank, ServerState,
};
use sessile_proto::learned_number::LearnedNumber;
use sessile_proto::route::{self, Load};
use sessile_proto::session_fault::{CheckClient, FaultChange, SessionFault, SessionOffers};
use sessile_proto::verdict::How;
use sessile_proto::{Time, Word};
use tokio::sync::Notify;

use super::key_names::PoolKeyNames;
use super::metrics::ServerMetrics;
use super::server_list::ListedServer;
use super::session_loss::SessionLoss;
use crate::client::Error;
use crate::clock;
use crate::config::BalanceServer;
use crate::listener::OpenGauge;
use crate::locks::locked;

/// The text of a session fault in the log and the API.
pub(super) const SESSION_FAULT: &str = "the server ended a handshake that offered its own session";

/// A server with its settings. A reload replaces the server, and keeps the statistics.
pub(super) struct PoolServer {
    pub(super) settings: BalanceServer,
    address: SocketAddr,
    /// The name of the entry in the configuration.
    pub(super) entry: String,
    id: u64,
    /// The server's number in labels. `None` if the number is not known, or does not identify the server.
    pub(super) number: Option<u32>,
    pub(super) stats: Arc<ServerStats>,
    /// The key names of the server's pool.
    pub(super) key_names: Arc<PoolKeyNames>,
}

/// The balancer's observations of a server.
pub(super) struct ServerStats {
    health: Mutex<HealthState>,
    check_failure: Mutex<Option<CheckFailure>>,
    session_offers: Mutex<SessionOffers>,
    /// The number in the server's tickets, if the server was found by a DNS name.
    learned_number: Mutex<LearnedNumber>,
    /// A cut connection requests a check, because a check can tell whether the server still answers.
    recheck: Notify,
    pub(super) metrics: ServerMetrics,
    pub(super) session_loss: SessionLoss,
}

/// Checks that failed in a row.
#[derive(Clone)]
pub(super) struct CheckFailure {
    /// The error of the last check.
    pub(super) error: String,
    /// The time of the first failed check.
    pub(super) since: Time,
}

impl ServerStats {
    pub(super) fn new(health: HealthState, metrics: ServerMetrics) -> Self {
        Self {
            health: Mutex::new(health),
            check_failure: Mutex::default(),
            session_offers: Mutex::default(),
            learned_number: Mutex::default(),
            recheck: Notify::new(),
            metrics,
            session_loss: SessionLoss::default(),
        }
    }

    /// Records the number in the label of a ticket. Returns true if the server's number has changed.
    pub(super) fn learn_number(&self, number: u32) -> bool {
        locked(&self.learned_number).record(number)
    }

    /// The number in the server's tickets. `None` until the balancer has seen a label.
    pub(super) fn learned_number(&self) -> Option<u32> {
        locked(&self.learned_number).get()
    }
}

impl PoolServer {
    pub(super) fn new(
        listed: ListedServer,
        number: Option<u32>,
        stats: Arc<ServerStats>,
        key_names: Arc<PoolKeyNames>,
    ) -> Self {
        let ListedServer {
            settings,
            address,
            entry,
        } = listed;
        Self {
            id: route::server_id(&settings.name),
            settings,
            address,
            entry,
            number,
            stats,
            key_names,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.settings.name
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// True if DNS gave the address.
    pub(super) const fn is_found(&self) -> bool {
        self.settings.address.is_name()
    }

    /// Identifies the server in the learned table and in key names. It does not depend on other servers.
    pub(super) const fn id(&self) -> u32 {
        self.id as u32
    }

    pub(super) fn availability(&self, now: Instant) -> Availability {
        locked(&self.stats.health).availability(now)
    }

    pub(super) fn rank(&self, now: Instant) -> PlacementRank {
        locked(&self.stats.health).rank(self.settings.drain, now)
    }

    pub(super) fn state(&self, slow_start: Duration, now: Instant) -> ServerState {
        locked(&self.stats.health).server_state(self.settings.drain, slow_start, now)
    }

    pub(super) fn is_starting(&self, slow_start: Duration, now: Instant) -> bool {
        locked(&self.stats.health).is_starting(slow_start, now)
    }

    /// The part of the configured weight that counts now, in percent. It is below 100 during a slow start.
    pub(super) fn share_percent(&self, slow_start: Duration, now: Instant) -> u32 {
        locked(&self.stats.health).share_percent(slow_start, now)
    }

    /// True if the server has `max-connections` connections.
    pub(super) fn is_full(&self) -> bool {
        let max = self.settings.max_connections;
        max > 0 && self.open() >= max
    }

    pub(super) fn open(&self) -> u32 {
        u32::try_from(self.stats.metrics.open.get()).unwrap_or(0)
    }

    pub(super) fn load(&self, usable: bool) -> Load {
        Load {
            id: self.id,
            weight: self.settings.weight.into(),
            open: self.open(),
            usable,
        }
    }

    /// Counts a connection as open. `None` if the server is full.
    pub(super) fn reserve(&self) -> Option<OpenGauge> {
        // Count first, because other workers reserve at the same time.
        let reserved = OpenGauge::count(&self.stats.metrics.open);
        let max = i64::from(self.settings.max_connections);
        (max == 0 || self.stats.metrics.open.get() <= max).then_some(reserved)
    }

    /// Records the result of a health check.
    pub(super) fn record_check(&self, failed: Option<&Error>, now: Instant) -> CheckEffect {
        self.record_check_failure(failed);
        let effect = locked(&self.stats.health).record_check(failed.is_none(), now);
        if effect.ended_ejection {
            self.log_back();
        }
        effect
    }

    fn record_check_failure(&self, failed: Option<&Error>) {
        let mut failure = locked(&self.stats.check_failure);
        let since = failure.as_ref().map(|failure| failure.since);
        *failure = failed.map(|error| CheckFailure {
            error: error.to_string(),
            since: since.unwrap_or_else(clock::now),
        });
    }

    /// The error of the last health check, if it failed.
    pub(super) fn check_failure(&self) -> Option<CheckFailure> {
        locked(&self.stats.check_failure).clone()
    }

    /// Forgets all checks, because the configuration turned checks off.
    pub(super) fn forget_checks(&self) {
        locked(&self.stats.health).forget_checks();
        *locked(&self.stats.check_failure) = None;
        self.forget_session_fault();
    }

    /// Forgets the session fault, because checks offer no sessions any more.
    pub(super) fn forget_session_fault(&self) {
        *locked(&self.stats.session_offers) = SessionOffers::default();
    }

    /// Records that the server finished a handshake of a check. The check offered a session, or had no session
    /// to offer.
    pub(super) fn record_offer_finished(&self, client: CheckClient) {
        let change = locked(&self.stats.session_offers).record_finished(client);
        if change == Some(FaultChange::Gone) {
            tracing::info!(
                server = self.name(), address = %self.address(),
                "the server finishes handshakes that offer its own session again"
            );
        }
    }

    /// Records that the server ended a handshake that offered a session. The server then finished a handshake
    /// without a session.
    pub(super) fn record_offer_ended(&self, client: CheckClient, offered: How, error: &Error) {
        let mut offers = locked(&self.stats.session_offers);
        let change = offers.record_ended(client, offered, error.to_string(), clock::now());
        drop(offers);
        if change == Some(FaultChange::Found) {
            tracing::warn!(
                server = self.name(), address = %self.address(), %error, offered = offered.as_str(),
                "{SESSION_FAULT}; it stays up, because it finishes handshakes that offer none"
            );
            // No ticket resumes at this server, so no key name may lead a client to it.
            let id = self.id();
            self.key_names.update(id, |names| names.forget(id));
        }
    }

    /// True if the server ends handshakes in which this client offers a session.
    pub(super) fn is_faulty_for(&self, client: CheckClient) -> bool {
        locked(&self.stats.session_offers).is_faulty_for(client)
    }

    /// `None` if the server finishes handshakes that offer its sessions.
    pub(super) fn session_fault(&self) -> Option<SessionFault> {
        locked(&self.stats.session_offers).fault()
    }

    /// True if the server ends handshakes that offer its sessions.
    pub(super) fn has_session_fault(&self) -> bool {
        self.session_fault().is_some()
    }

    /// Waits until a cut connection asks for another check.
    pub(super) async fn recheck_requested(&self) {
        self.stats.recheck.notified().await;
    }

    /// Records a connection that the server did not take. `error` is `None` if the connection timed out.
    pub(super) fn record_failure(&self, error: Option<&io::Error>, now: Instant) {
        self.stats.metrics.failures.inc();
        let ejected = locked(&self.stats.health).record_failure(now);
        match (ejected, error) {
            (None, _) => {}
            (Some(length), Some(error)) => self.log_ejected(length, error),
            (Some(length), None) => {
                self.log_ejected(length, &"no connection within balance.connect-timeout");
            }
        }
    }

    /// Records a connection that the server took and ended before it sent a byte.
    ///
    /// The client may have caused the end, so a check follows. `offered_session`: the client offered a
    /// session.
    pub(super) fn record_cut(&self, source: IpAddr, offered_session: bool, now: Instant) {
        self.stats.metrics.failures.inc();
        self.stats.recheck.notify_one();
        if offered_session {
            // Do not eject the server. It may have a session fault, and still serve every new client.
            return;
        }
        let ejected = locked(&self.stats.health).record_cut(source, now);
        if let Some(length) = ejected {
            let reason = "it closed connections of several sources without a reply";
            self.log_ejected(length, &reason);
        }
    }

    /// Records a connection that the server answered.
    pub(super) fn record_answer(&self, now: Instant) {
        let ended_ejection = locked(&self.stats.health).record_answer(now);
        if ended_ejection {
            self.log_back();
        }
    }

    fn log_ejected(&self, length: Duration, reason: &dyn fmt::Display) {
        let seconds = length.as_secs();
        tracing::warn!(
            server = self.name(),
            seconds,
            %reason,
            "server ejected: connections to it failed"
        );
    }

    fn log_back(&self) {
        tracing::info!(server = self.name(), "server takes connections again");
    }
}

/// True if this host could not make the connection. A local error says nothing about the server.
pub(super) fn is_local_error(error: &io::Error) -> bool {
    const LOCAL: [Errno; 9] = [
        Errno::ADDRNOTAVAIL,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::NETUNREACH,
        Errno::NETDOWN,
        // A packet filter of this host refuses connections with these two errors.
        Errno::PERM,
        Errno::ACCESS,
    ];
    Errno::from_io_error(error).is_some_and(|errno| LOCAL.contains(&errno))
}
