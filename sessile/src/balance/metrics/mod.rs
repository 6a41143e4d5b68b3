//! The metrics of the balancer as a whole. Every series exists from the start, at zero, and every label value
//! comes from an enum.

mod causes;
mod counters;
mod per_server;

pub(super) use causes::{ExpiredTimeout, SessionOutcome, TurnAwayCause};
pub(super) use counters::{OpenConnection, RoutedCounters, RuleCount};
pub(super) use per_server::{ServerFamilies, ServerMetrics};

use std::io;
use std::sync::{Arc, Mutex, Once};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use sessile_proto::affinity::Affinity;
use sessile_proto::health_state::ServerState;

use super::route_miss::{RouteMiss, SESSION_RULES, SkipReason};
use crate::listener::{Admission, ConnectionCount};
use crate::live_gauge;
use crate::locks::locked;
use counters::{ByteCounters, counter, counters, push_count};

/// The metrics of one balancer.
pub(super) struct BalancerMetrics {
    pub(super) routed: RoutedCounters,
    /// By session rule and reason.
    misses: [[IntCounter; SkipReason::ALL.len()]; SESSION_RULES.len()],
    turned_away: IntCounterVec,
    timed_out: [IntCounter; ExpiredTimeout::ALL.len()],
    local_errors: IntCounter,
    /// Local errors come by the thousand, so only the first is logged.
    log_local_error: Once,
    refused: IntCounter,
    open: IntGauge,
    displaced: IntCounter,
    pub(super) bytes: ByteCounters,
}

/// The state of a server at the time of a scrape.
pub(super) struct StateReading {
    pub(super) server: String,
    pub(super) state: ServerState,
}

impl BalancerMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// The registry has a balancer already.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let routed = counters(
            registry,
            "sessile_balance_connections_total",
            "Connections by routing rule and by the outcome of the offered session.",
            &["routed_by", "outcome"],
        )?;
        let missed = counters(
            registry,
            "sessile_balance_missed_total",
            "Connections that did not reach the server of their session, by routing rule and cause.",
            &["routed_by", "cause"],
        )?;
        let turned_away = counters(
            registry,
            "sessile_balance_turned_away_total",
            "Connections that got no server, by cause.",
            &["cause"],
        )?;
        for cause in TurnAwayCause::all() {
            turned_away.with_label_values(&[cause.as_str()]);
        }
        let timed_out = counters(
            registry,
            "sessile_balance_timed_out_total",
            "Connections that the balancer closed: idle or total for the timeouts in [balance], \
             half-closed if the server had ended and the client was silent.",
            &["timeout"],
        )?;
        let bytes = counters(
            registry,
            "sessile_balance_bytes_total",
            "Bytes from clients (up) and from servers (down), without ClientHellos.",
            &["direction"],
        )?;
        let open = IntGauge::new(
            "sessile_balance_connections_open",
            "Client connections open now.",
        )?;
        registry.register(Box::new(open.clone()))?;
        Ok(Self {
            routed: RoutedCounters::new(|rule, outcome| routed.with_label_values(&[rule, outcome])),
            misses: SESSION_RULES.map(|rule| {
                SkipReason::ALL
                    .map(|reason| missed.with_label_values(&[rule.as_str(), reason.as_str()]))
            }),
            turned_away,
            timed_out: ExpiredTimeout::ALL
                .map(|timeout| timed_out.with_label_values(&[timeout.as_str()])),
            local_errors: counter(
                registry,
                "sessile_balance_own_failures_total",
                "Connections to servers, health checks included, that failed because this host lacked a port, a file \
                 descriptor or a route.",
            )?,
            log_local_error: Once::new(),
            refused: counter(
                registry,
                "sessile_balance_refused_total",
                "Connections closed at once because connection.max was reached.",
            )?,
            open,
            displaced: counter(
                registry,
                "sessile_balance_learned_displaced_total",
                "Learned entries removed for a newer entry of the same source, which had used its whole \
                 share of the table.",
            )?,
            bytes: ByteCounters::new(|direction| bytes.with_label_values(&[direction])),
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

    /// The number of open client connections.
    pub(super) fn open(&self) -> i64 {
        self.open.get()
    }

    pub(super) fn count_miss(&self, miss: RouteMiss) {
        // The policy has no counters, because it cannot miss.
        if let Some(reasons) = self.misses.get(miss.rule as usize) {
            reasons[miss.reason as usize].inc();
        }
    }

    /// Route misses by rule and reason, without zeros.
    pub(super) fn misses(&self) -> Vec<RuleCount> {
        let mut counts = Vec::new();
        for (rule, reasons) in SESSION_RULES.into_iter().zip(&self.misses) {
            for (reason, counter) in SkipReason::ALL.into_iter().zip(reasons) {
                push_count(&mut counts, rule, reason.as_str(), counter);
            }
        }
        counts
    }

    pub(super) fn count_turned_away(&self, cause: TurnAwayCause) {
        self.turned_away.with_label_values(&[cause.as_str()]).inc();
    }

    pub(super) fn count_timed_out(&self, timeout: ExpiredTimeout) {
        self.timed_out[timeout as usize].inc();
    }

    /// Counts a learned entry that was removed for a newer entry of its source.
    pub(super) fn count_displaced(&self) {
        self.displaced.inc();
    }

    /// Counts a connection to a server that failed because of this host.
    pub(super) fn count_local_error(&self, server: &str, error: &io::Error) {
        self.local_errors.inc();
        self.log_local_error.call_once(|| {
            tracing::warn!(
                server,
                %error,
                "this host cannot connect: it has no free port, no file descriptor or no route; logged once, then \
                 counted in sessile_balance_own_failures_total"
            );
        });
    }
}

/// Registers the size of the learned table.
pub(super) fn register_learned(
    registry: &Registry,
    learned: &Arc<Mutex<Affinity>>,
) -> prometheus::Result<()> {
    let opts = Opts::new(
        "sessile_balance_learned_entries",
        "Session IDs and tickets that were learned from servers.",
    );
    let learned = Arc::clone(learned);
    live_gauge::register(registry, opts, move || locked(&learned).stats().entries)
}

/// Registers the buffered bytes and pipes of all connections.
pub(super) fn register_buffered(
    registry: &Registry,
    admission: &Arc<Admission>,
) -> prometheus::Result<()> {
    let bytes = Opts::new(
        "sessile_balance_held_bytes",
        "Bytes held in memory because a peer does not read them; bytes in pipes are not counted.",
    );
    let of_bytes = Arc::clone(admission);
    live_gauge::register(registry, bytes, move || of_bytes.buffered_bytes())?;
    let pipes = Opts::new(
        "sessile_balance_held_pipes",
        "Pipes that hold bytes which a peer does not read.",
    );
    let of_pipes = Arc::clone(admission);
    live_gauge::register(registry, pipes, move || of_pipes.buffered_pipes())
}

/// Registers the states of the servers. `read` is called at each scrape, because an ejection and a slow start
/// end without an event.
pub(super) fn register_server_states(
    registry: &Registry,
    read: impl Fn() -> Vec<StateReading> + Send + Sync + 'static,
) -> prometheus::Result<()> {
    registry.register(Box::new(StateCollector {
        describing: state_gauges()?,
        read: Box::new(read),
    }))
}

struct StateCollector {
    /// Never set. Each scrape makes its own gauges, so that two scrapes at once do not mix.
    describing: IntGaugeVec,
    read: Box<dyn Fn() -> Vec<StateReading> + Send + Sync>,
}

fn state_gauges() -> prometheus::Result<IntGaugeVec> {
    let opts = Opts::new(
        "sessile_balance_server_state",
        "State of this server: 1 for the current state, else 0.",
    );
    IntGaugeVec::new(opts, &["server", "state"])
}

impl Collector for StateCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.describing.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(gauges) = state_gauges() else {
            return Vec::new();
        };
        for reading in (self.read)() {
            for state in ServerState::ALL {
                let gauge = gauges.with_label_values(&[reading.server.as_str(), state.as_str()]);
                gauge.set((state == reading.state).into());
            }
        }
        gauges.collect()
    }
}
