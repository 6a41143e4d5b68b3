//! What the balancer counts: over all servers, and for each.

use std::io;
use std::sync::{Arc, Mutex, Once};

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use sessile_proto::affinity::Affinity;
use sessile_proto::route::RoutedBy;
use sessile_proto::watch::Kind;

use super::forgetting::{self, BUCKETS};
use super::key_names::Figures;
use super::missed::{self, Miss};
use super::relay::Moved;
use crate::listener::{Admission, ConnectionCount, IntakeFailure};
use crate::live_gauge;
use crate::locks::locked;

/// Counters of one balancer.
pub struct Metrics {
    /// By rule and outcome; see [`outcome`].
    routed: IntCounterVec,
    /// By the rule that would have led home and by [`Miss`].
    missed: IntCounterVec,
    turned_away: IntCounterVec,
    timed_out: IntCounterVec,
    own_failures: IntCounter,
    /// Failures of this host's own are said once; they come by the thousand.
    told: Once,
    refused: IntCounter,
    open: IntGauge,
    displaced: IntCounter,
    pub(super) bytes_up: IntCounter,
    pub(super) bytes_down: IntCounter,
}

/// Why a client got no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// The client was turned away before a server was looked for.
    Intake(IntakeFailure),
    /// No pool has the server name.
    UnknownName,
    /// No server took the connection.
    NoServer,
    /// The client closed the connection while servers were tried.
    ClientGone,
}

impl TurnedAway {
    /// Every cause that is not of the intake.
    const OWN: [Self; 3] = [Self::UnknownName, Self::NoServer, Self::ClientGone];

    fn all() -> impl Iterator<Item = Self> {
        let intake = IntakeFailure::ALL.into_iter().map(Self::Intake);
        intake.chain(Self::OWN)
    }

    /// The label of the metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intake(failure) => failure.as_str(),
            Self::UnknownName => "unknown-name",
            Self::NoServer => "no-server",
            Self::ClientGone => "client-gone",
        }
    }
}

impl From<IntakeFailure> for TurnedAway {
    fn from(failure: IntakeFailure) -> Self {
        Self::Intake(failure)
    }
}

/// Time-outs of connections that have their server.
const TIME_OUTS: [&str; 3] = ["idle", "total", "half-closed"];

/// What became of the session that a client offered, in the words of the metric.
const fn outcome(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::Resumed(_)) => "resumed",
        Some(Kind::Refused) => "refused",
        Some(Kind::NotOffered) => "not-offered",
        Some(Kind::Failed) | None => "failed",
    }
}

const OUTCOMES: [&str; 4] = ["resumed", "refused", "not-offered", "failed"];

fn vector(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let family = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

/// Makes every series appear at zero.
fn begin<const N: usize>(
    family: &IntCounterVec,
    series: impl IntoIterator<Item = [&'static str; N]>,
) {
    for labels in series {
        family.with_label_values(&labels);
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn register_learned(
    registry: &Registry,
    affinity: &Arc<Mutex<Affinity>>,
) -> prometheus::Result<()> {
    let learned = Opts::new(
        "sessile_balance_learned_entries",
        "Session IDs and tickets that were learned from servers.",
    );
    let affinity = Arc::clone(affinity);
    live_gauge::register(registry, learned, move || locked(&affinity).stats().entries)
}

/// Registers what is held back of connections.
pub(super) fn register_held(
    registry: &Registry,
    admission: &Arc<Admission>,
) -> prometheus::Result<()> {
    let (of_bytes, of_pipes) = (Arc::clone(admission), Arc::clone(admission));
    let bytes = Opts::new(
        "sessile_balance_held_bytes",
        "Bytes held in memory because a peer does not take them, those in pipes not counted.",
    );
    live_gauge::register(registry, bytes, move || of_bytes.buffered_bytes())?;
    let pipes = Opts::new(
        "sessile_balance_held_pipes",
        "Pipes held because a peer does not take what is in them.",
    );
    live_gauge::register(registry, pipes, move || of_pipes.buffered_pipes())
}

/// Every rule with every outcome.
fn outcomes() -> impl Iterator<Item = (RoutedBy, &'static str)> {
    let rules = RoutedBy::ALL.into_iter();
    rules.flat_map(|by| OUTCOMES.map(|outcome| (by, outcome)))
}

/// Every rule that leads home, with every cause.
fn misses() -> impl Iterator<Item = (RoutedBy, Miss)> {
    let rules = missed::RULES.into_iter();
    rules.flat_map(|by| Miss::ALL.map(|why| (by, why)))
}

impl Metrics {
    /// Registers the balancer's families; every counter appears at zero.
    ///
    /// # Errors
    /// Where the process has a balancer already.
    pub fn register(
        registry: &Registry,
        affinity: &Arc<Mutex<Affinity>>,
    ) -> prometheus::Result<Self> {
        let vector = |name, help, labels| vector(registry, name, help, labels);
        let counter = |name, help| counter(registry, name, help);
        let routed = vector(
            "sessile_balance_connections_total",
            "Connections by the rule that routed them and by what became of the session offered.",
            &["routed_by", "outcome"],
        )?;
        let all = outcomes().map(|(by, outcome)| [by.as_str(), outcome]);
        begin(&routed, all);
        let missed = vector(
            "sessile_balance_missed_total",
            "Connections that the rule which leads their session home could not place, by that rule and by cause.",
            &["routed_by", "cause"],
        )?;
        let all = misses().map(|(by, why)| [by.as_str(), why.as_str()]);
        begin(&missed, all);
        let turned_away = vector(
            "sessile_balance_turned_away_total",
            "Connections that got no server, by cause.",
            &["cause"],
        )?;
        begin(
            &turned_away,
            TurnedAway::all().map(|cause| [cause.as_str()]),
        );
        let timed_out = vector(
            "sessile_balance_timed_out_total",
            "Connections closed by balance.idle-timeout or balance.total-timeout, or half-closed by the server and silent.",
            &["timeout"],
        )?;
        begin(&timed_out, TIME_OUTS.map(|timeout| [timeout]));
        let own_failures = counter(
            "sessile_balance_own_failures_total",
            "Connections to servers, those of checks included, that were not made for want of something on this host: a port, a file, a route.",
        )?;
        let refused = counter(
            "sessile_balance_refused_total",
            "Connections closed at once because connection.max was reached.",
        )?;
        let open = IntGauge::new(
            "sessile_balance_connections_open",
            "Client connections open now.",
        )?;
        registry.register(Box::new(open.clone()))?;
        let displaced = counter(
            "sessile_balance_learned_displaced_total",
            "Learned entries that left for a newer one of their source, which holds its whole share of the table.",
        )?;
        let bytes = vector(
            "sessile_balance_bytes_total",
            "Bytes from clients (up) and from servers (down), hellos not counted.",
            &["direction"],
        )?;
        let [bytes_up, bytes_down] =
            DIRECTIONS.map(|direction| bytes.with_label_values(&[direction]));
        register_learned(registry, affinity)?;
        Ok(Self {
            routed,
            missed,
            turned_away,
            timed_out,
            own_failures,
            told: Once::new(),
            refused,
            open,
            displaced,
            bytes_up,
            bytes_down,
        })
    }

    /// Counts the open connections, up to `max`.
    pub(super) fn connection_count(&self, max: usize) -> ConnectionCount {
        ConnectionCount {
            max,
            open: self.open.clone(),
            refused: self.refused.clone(),
            accepted: None,
        }
    }

    /// Client connections that are open now.
    pub(super) fn open(&self) -> i64 {
        self.open.get()
    }

    pub(super) fn moved(&self, moved: Moved) {
        self.bytes_up.inc_by(moved.up);
        self.bytes_down.inc_by(moved.down);
    }

    /// `kind`: what the server's clear bytes said; `None`: the connection ended before.
    pub(super) fn count(&self, by: RoutedBy, kind: Option<Kind>) {
        let labels = [by.as_str(), outcome(kind)];
        self.routed.with_label_values(&labels).inc();
    }

    /// Connections so far, by rule and outcome; those that there were none of are left out.
    pub(super) fn routed(&self) -> Vec<(RoutedBy, &'static str, u64)> {
        let counts = outcomes().map(|(by, outcome)| {
            let labels = [by.as_str(), outcome];
            (by, outcome, self.routed.with_label_values(&labels).get())
        });
        counts.filter(|&(_, _, count)| count > 0).collect()
    }

    pub(super) fn count_missed(&self, by: RoutedBy, why: Miss) {
        let labels = [by.as_str(), why.as_str()];
        self.missed.with_label_values(&labels).inc();
    }

    /// Misses so far, by rule and cause; those that there were none of are left out.
    pub(super) fn missed(&self) -> Vec<(RoutedBy, &'static str, u64)> {
        let counts = misses().map(|(by, why)| {
            let labels = [by.as_str(), why.as_str()];
            (
                by,
                why.as_str(),
                self.missed.with_label_values(&labels).get(),
            )
        });
        counts.filter(|&(_, _, count)| count > 0).collect()
    }

    pub(super) fn count_turned_away(&self, cause: TurnedAway) {
        self.turned_away.with_label_values(&[cause.as_str()]).inc();
    }

    /// A learned entry has left for a newer one of its source.
    pub(super) fn count_displaced(&self) {
        self.displaced.inc();
    }

    /// A connection to this server was not made, for a reason that is not the server's.
    pub(super) fn count_own_failure(&self, server: &str, error: &io::Error) {
        self.own_failures.inc();
        self.told.call_once(|| {
            tracing::warn!(
                server,
                %error,
                "this host cannot connect, for want of a port, a file or a route; said once and counted in sessile_balance_own_failures_total"
            );
        });
    }

    /// `timeout`: one of [`TIME_OUTS`].
    pub(super) fn count_timed_out(&self, timeout: &str) {
        self.timed_out.with_label_values(&[timeout]).inc();
    }
}

/// Families with a series for each server.
pub(super) struct ServerFamilies {
    open: IntGaugeVec,
    up: IntGaugeVec,
    connections: IntCounterVec,
    failures: IntCounterVec,
    bytes: IntCounterVec,
    handshakes: IntCounterVec,
    idle: HistogramVec,
    forgets_after: GaugeVec,
    session_fault: IntGaugeVec,
    key_names: IntGaugeVec,
    group_size: IntGaugeVec,
}

/// What is counted of one server.
pub(super) struct ServerMetrics {
    pub(super) open: IntGauge,
    /// 0 while checks say that it is down.
    pub(super) up: IntGauge,
    /// 1 while the server ends handshakes that offer its own session.
    pub(super) session_fault: IntGauge,
    pub(super) connections: IntCounter,
    pub(super) failures: IntCounter,
    pub(super) bytes_up: IntCounter,
    pub(super) bytes_down: IntCounter,
    /// By rule and by outcome.
    handshakes: [[IntCounter; OUTCOMES.len()]; RoutedBy::ALL.len()],
}

/// What became of learned sessions that were offered to the server that made them.
const OFFERS: [&str; 2] = ["accepted", "refused"];

/// Directions of bytes: from clients, and from the server.
const DIRECTIONS: [&str; 2] = ["up", "down"];

impl ServerFamilies {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauges = |name: &str, help: &str| -> prometheus::Result<_> {
            let family = IntGaugeVec::new(Opts::new(name, help), &["server"])?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let idle = HistogramOpts::new(
            "sessile_balance_server_offer_idle_seconds",
            "How long learned sessions were idle that were offered to the server that made them, by what it did.",
        );
        let idle = HistogramVec::new(idle.buckets(BUCKETS.into()), &["server", "outcome"])?;
        registry.register(Box::new(idle.clone()))?;
        let forgets_after = Opts::new(
            "sessile_balance_server_forgets_after_seconds",
            "The age from which on this server refuses its own sessions, before their time; 0 where it does not.",
        );
        let forgets_after = GaugeVec::new(forgets_after, &["server"])?;
        registry.register(Box::new(forgets_after.clone()))?;
        Ok(Self {
            open: gauges(
                "sessile_balance_server_connections_open",
                "Connections to this server open now.",
            )?,
            up: gauges(
                "sessile_balance_server_up",
                "0 where checks say that this server is down, else 1.",
            )?,
            connections: vector(
                registry,
                "sessile_balance_server_connections_total",
                "Connections made to this server.",
                &["server"],
            )?,
            failures: vector(
                registry,
                "sessile_balance_server_failures_total",
                "Connections that this server refused, let time out, or took and ended without a word.",
                &["server"],
            )?,
            bytes: vector(
                registry,
                "sessile_balance_server_bytes_total",
                "Bytes from clients (up) and from this server (down), hellos not counted.",
                &["server", "direction"],
            )?,
            handshakes: vector(
                registry,
                "sessile_balance_server_handshakes_total",
                "Connections to this server by the rule that routed them and by what became of the session offered.",
                &["server", "routed_by", "outcome"],
            )?,
            idle,
            forgets_after,
            session_fault: gauges(
                "sessile_balance_server_session_fault",
                "1 while this server ends handshakes that offer its own session and finishes others, else 0.",
            )?,
            key_names: gauges(
                "sessile_balance_server_key_names",
                "Key names of this server's tickets that are proven.",
            )?,
            group_size: gauges(
                "sessile_balance_server_group_size",
                "Servers that are known to share a ticket key with this one, itself included.",
            )?,
        })
    }

    /// The series of a server; they appear at zero, or go on where it has been there before.
    pub(super) fn of(&self, server: &str) -> ServerMetrics {
        let [bytes_up, bytes_down] =
            DIRECTIONS.map(|direction| self.bytes.with_label_values(&[server, direction]));
        ServerMetrics {
            open: self.open.with_label_values(&[server]),
            up: self.up.with_label_values(&[server]),
            session_fault: self.session_fault.with_label_values(&[server]),
            connections: self.connections.with_label_values(&[server]),
            failures: self.failures.with_label_values(&[server]),
            bytes_up,
            bytes_down,
            handshakes: RoutedBy::ALL.map(|by| {
                OUTCOMES.map(|outcome| {
                    let labels = [server, by.as_str(), outcome];
                    self.handshakes.with_label_values(&labels)
                })
            }),
        }
    }

    /// What is counted of how it forgets sessions.
    pub(super) fn forgetting(&self, server: &str) -> forgetting::Metrics {
        let [accepted, refused] =
            OFFERS.map(|outcome| self.idle.with_label_values(&[server, outcome]));
        forgetting::Metrics {
            accepted,
            refused,
            after: self.forgets_after.with_label_values(&[server]),
        }
    }

    /// What is known of how its tickets begin.
    pub(super) fn key_names(&self, server: &str) -> Figures {
        Figures {
            names: self.key_names.with_label_values(&[server]),
            group: self.group_size.with_label_values(&[server]),
        }
    }

    /// Another machine has the name: what is still open is the old one's, and counted no more.
    pub(super) fn forget_open(&self, server: &str) {
        let _ = self.open.remove_label_values(&[server]);
    }

    /// Ends the series of a server that is gone.
    pub(super) fn remove(&self, server: &str) {
        // Each of them is there: they were made together.
        let _ = self.open.remove_label_values(&[server]);
        let _ = self.up.remove_label_values(&[server]);
        let _ = self.session_fault.remove_label_values(&[server]);
        let _ = self.connections.remove_label_values(&[server]);
        let _ = self.failures.remove_label_values(&[server]);
        for direction in DIRECTIONS {
            let _ = self.bytes.remove_label_values(&[server, direction]);
        }
        for by in RoutedBy::ALL {
            for outcome in OUTCOMES {
                let labels = [server, by.as_str(), outcome];
                let _ = self.handshakes.remove_label_values(&labels);
            }
        }
        for outcome in OFFERS {
            let _ = self.idle.remove_label_values(&[server, outcome]);
        }
        let _ = self.forgets_after.remove_label_values(&[server]);
        let _ = self.key_names.remove_label_values(&[server]);
        let _ = self.group_size.remove_label_values(&[server]);
    }
}

impl ServerMetrics {
    /// As [`Metrics::count`].
    pub(super) fn count(&self, by: RoutedBy, kind: Option<Kind>) {
        let rule = RoutedBy::ALL.iter().position(|it| *it == by);
        let outcome = OUTCOMES.iter().position(|it| *it == outcome(kind));
        if let (Some(rule), Some(outcome)) = (rule, outcome) {
            self.handshakes[rule][outcome].inc();
        }
    }

    /// As [`Metrics::routed`].
    pub(super) fn routed(&self) -> Vec<(RoutedBy, &'static str, u64)> {
        let counters = self.handshakes.as_flattened().iter();
        let counts = outcomes().zip(counters);
        let counts = counts.map(|((by, outcome), counter)| (by, outcome, counter.get()));
        counts.filter(|&(_, _, count)| count > 0).collect()
    }

    /// Connections so far with that outcome.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.iter().enumerate().map(|(at, &outcome)| {
            let counts = self.handshakes.iter().map(|by| by[at].get());
            (outcome, counts.sum())
        })
    }

    pub(super) fn moved(&self, moved: Moved) {
        self.bytes_up.inc_by(moved.up);
        self.bytes_down.inc_by(moved.down);
    }
}
