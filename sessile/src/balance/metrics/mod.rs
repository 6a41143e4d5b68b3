//! The metrics of the balancer as a whole. Every series exists from the start, at zero, and every label value
//! comes from an enum.

mod causes;
mod counters;
mod per_server;
mod server_gauges;

pub(super) use causes::{ExpiredTimeout, LookupResult, TurnAwayCause};
pub(super) use counters::{RoutedCounters, RuleCount};
pub(super) use per_server::{ServerFamilies, ServerMetrics};
pub(super) use server_gauges::{ServerReading, register_servers};

use std::io;
use std::sync::{Arc, Mutex, Once};

use prometheus::{
    IntCounter, IntCounterVec, Opts, Registry,
    register_int_counter_vec_with_registry as register_counters,
    register_int_counter_with_registry as register_counter,
    register_int_gauge_with_registry as register_gauge,
};
use sessile_proto::Word;
use sessile_proto::affinity::Affinity;

use super::addresses::Addresses;
use super::route_miss::{RouteMiss, SESSION_RULES, SkipReason};
use crate::listener::{Admission, ConnectionCount, ConnectionMetrics};
use crate::live_gauge;
use crate::locks::locked;
use counters::{ByteCounters, rule_counts};

/// The metrics of one balancer.
pub(super) struct BalancerMetrics {
    pub(super) routed: RoutedCounters,
    /// By session rule and reason.
    misses: [Vec<IntCounter>; SESSION_RULES.len()],
    turned_away: IntCounterVec,
    timed_out: Vec<IntCounter>,
    local_errors: IntCounter,
    /// Local errors come by the thousand, so only the first is logged.
    log_local_error: Once,
    pub(super) connections: ConnectionMetrics,
    /// Learned entries that were removed to make room for a new entry of the same source.
    pub(super) displaced: IntCounter,
    pub(super) bytes: ByteCounters,
}

impl BalancerMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// The registry has a balancer already.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let routed = register_counters!(
            "sessile_balance_connections_total",
            "Connections by routing rule and by the outcome of the offered session.",
            &["routed_by", "outcome"],
            registry
        )?;
        let missed = register_counters!(
            "sessile_balance_missed_total",
            "Connections that did not reach the server of their session, by routing rule and cause.",
            &["routed_by", "cause"],
            registry
        )?;
        let turned_away = register_counters!(
            "sessile_balance_turned_away_total",
            "Connections that got no server, by cause.",
            &["cause"],
            registry
        )?;
        for cause in TurnAwayCause::all() {
            turned_away.with_label_values(&[<&str>::from(cause)]);
        }
        let timed_out = register_counters!(
            "sessile_balance_timed_out_total",
            "Connections that the balancer closed: idle or total for the timeouts in [balance], \
             half-closed if the server had ended and the client was silent.",
            &["timeout"],
            registry
        )?;
        let bytes = register_counters!(
            "sessile_balance_bytes_total",
            "Bytes from clients (up) and from servers (down), without ClientHellos.",
            &["direction"],
            registry
        )?;
        Ok(Self {
            routed: RoutedCounters::new(|rule, outcome| routed.with_label_values(&[rule, outcome])),
            misses: miss_counters(&missed),
            turned_away,
            timed_out: ExpiredTimeout::all()
                .map(|timeout| timed_out.with_label_values(&[timeout.as_str()]))
                .collect(),
            local_errors: register_counter!(
                "sessile_balance_own_failures_total",
                "Connections to servers, health checks included, that failed because this host lacked a port, a file \
                 descriptor or a route.",
                registry
            )?,
            log_local_error: Once::new(),
            connections: connection_metrics(registry)?,
            displaced: register_counter!(
                "sessile_balance_learned_displaced_total",
                "Learned entries removed for a newer entry of the same source, which had used its whole \
                 share of the table.",
                registry
            )?,
            bytes: ByteCounters::new(|direction| bytes.with_label_values(&[direction])),
        })
    }

    /// Counts the open connections, up to `max`.
    pub(super) fn connection_count(&self, max: usize) -> ConnectionCount {
        ConnectionCount::new(max, self.connections.clone())
    }

    pub(super) fn count_miss(&self, miss: RouteMiss) {
        // The policy has no counters, because it cannot miss.
        if let Some(reasons) = self.misses.get(miss.rule as usize) {
            reasons[miss.reason as usize].inc();
        }
    }

    /// Route misses by rule and reason.
    pub(super) fn misses(&self) -> Vec<RuleCount> {
        rule_counts::<SkipReason>(SESSION_RULES, &self.misses)
    }

    pub(super) fn count_turned_away(&self, cause: TurnAwayCause) {
        let cause: &str = cause.into();
        self.turned_away.with_label_values(&[cause]).inc();
    }

    pub(super) fn count_timed_out(&self, timeout: ExpiredTimeout) {
        self.timed_out[timeout as usize].inc();
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

/// The lookups of DNS names, by result.
pub(super) struct LookupCounters(Vec<IntCounter>);

impl LookupCounters {
    /// Registers the counters.
    ///
    /// # Errors
    /// The registry has a balancer already.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let lookups = register_counters!(
            "sessile_balance_name_lookups_total",
            "Lookups of the DNS names of servers, by result.",
            &["result"],
            registry
        )?;
        let results = LookupResult::all().map(Word::as_str);
        Ok(Self(
            results
                .map(|result| lookups.with_label_values(&[result]))
                .collect(),
        ))
    }

    pub(super) fn count(&self, result: LookupResult) {
        self.0[result as usize].inc();
    }
}

fn connection_metrics(registry: &Registry) -> prometheus::Result<ConnectionMetrics> {
    Ok(ConnectionMetrics {
        open: register_gauge!(
            "sessile_balance_connections_open",
            "Client connections open now.",
            registry
        )?,
        refused: register_counter!(
            "sessile_balance_refused_total",
            "Connections closed at once because connection.max was reached.",
            registry
        )?,
        displaced: register_counter!(
            "sessile_balance_connections_displaced_total",
            "Connections closed because connection.max was reached and a source with fewer connections came.",
            registry
        )?,
        accepted: None,
    })
}

/// The counters of route misses, by session rule and reason.
fn miss_counters(missed: &IntCounterVec) -> [Vec<IntCounter>; SESSION_RULES.len()] {
    SESSION_RULES.map(|rule| {
        let reasons = SkipReason::all().map(Word::as_str);
        let counters = reasons.map(|reason| missed.with_label_values(&[rule.as_str(), reason]));
        counters.collect()
    })
}

/// Registers the sizes of the learned table and of the address table.
pub(super) fn register_learned(
    registry: &Registry,
    learned: &Arc<Mutex<Affinity>>,
    addresses: &Arc<Addresses>,
) -> prometheus::Result<()> {
    let opts = Opts::new(
        "sessile_balance_address_entries",
        "Kinds of clients of an address whose server is remembered, for tickets without a name.",
    );
    let addresses = Arc::clone(addresses);
    live_gauge::register(registry, opts, move || addresses.entries())?;
    let opts = Opts::new(
        "sessile_balance_learned_entries",
        "Session IDs and tickets that were learned from servers.",
    );
    let learned = Arc::clone(learned);
    live_gauge::register(registry, opts, move || locked(&learned).entries())
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
