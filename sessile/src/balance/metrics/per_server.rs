//! The metrics of each server. A server's series end when the server is removed.

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use sessile_proto::route::RoutedBy;

use super::super::key_names::KeyNameMetrics;
use super::super::session_loss::{BUCKETS, SessionLossMetrics};
use super::causes::{ByteDirection, OfferResult, SessionOutcome};
use super::counters::{ByteCounters, RoutedCounters, counters};

/// Metric families with series for each server.
pub(in crate::balance) struct ServerFamilies {
    open: IntGaugeVec,
    up: IntGaugeVec,
    connections: IntCounterVec,
    failures: IntCounterVec,
    bytes: IntCounterVec,
    handshakes: IntCounterVec,
    offer_idle: HistogramVec,
    age_limit: GaugeVec,
    session_fault: IntGaugeVec,
    key_names: IntGaugeVec,
    group_size: IntGaugeVec,
}

/// The metrics of one server.
pub(in crate::balance) struct ServerMetrics {
    pub(in crate::balance) open: IntGauge,
    /// 0 if health checks say that the server is down, else 1.
    pub(in crate::balance) up: IntGauge,
    /// 1 if the server ends handshakes that offer its own session, else 0.
    pub(in crate::balance) session_fault: IntGauge,
    pub(in crate::balance) connections: IntCounter,
    pub(in crate::balance) failures: IntCounter,
    pub(in crate::balance) bytes: ByteCounters,
    pub(in crate::balance) handshakes: RoutedCounters,
}

fn gauges(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGaugeVec> {
    let family = IntGaugeVec::new(Opts::new(name, help), &["server"])?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

impl ServerFamilies {
    pub(in crate::balance) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let offer_idle_opts = HistogramOpts::new(
            "sessile_balance_server_offer_idle_seconds",
            "Idle time of learned sessions that were offered to their own server, by the server's answer.",
        );
        let offer_idle = HistogramVec::new(
            offer_idle_opts.buckets(BUCKETS.into()),
            &["server", "outcome"],
        )?;
        registry.register(Box::new(offer_idle.clone()))?;
        let age_limit = GaugeVec::new(
            Opts::new(
                "sessile_balance_server_forgets_after_seconds",
                "The age from which this server refuses its own unexpired sessions; 0 if it refuses none.",
            ),
            &["server"],
        )?;
        registry.register(Box::new(age_limit.clone()))?;
        Ok(Self {
            open: gauges(
                registry,
                "sessile_balance_server_connections_open",
                "Connections to this server open now.",
            )?,
            up: gauges(
                registry,
                "sessile_balance_server_up",
                "0 if checks say that this server is down, else 1.",
            )?,
            connections: counters(
                registry,
                "sessile_balance_server_connections_total",
                "Connections made to this server.",
                &["server"],
            )?,
            failures: counters(
                registry,
                "sessile_balance_server_failures_total",
                "Connections that this server refused, let time out, or closed without a reply.",
                &["server"],
            )?,
            bytes: counters(
                registry,
                "sessile_balance_server_bytes_total",
                "Bytes from clients (up) and from this server (down), without ClientHellos.",
                &["server", "direction"],
            )?,
            handshakes: counters(
                registry,
                "sessile_balance_server_handshakes_total",
                "Connections to this server by routing rule and by the outcome of the offered session.",
                &["server", "routed_by", "outcome"],
            )?,
            offer_idle,
            age_limit,
            session_fault: gauges(
                registry,
                "sessile_balance_server_session_fault",
                "1 while this server ends handshakes that offer its own session and finishes others, else 0.",
            )?,
            key_names: gauges(
                registry,
                "sessile_balance_server_key_names",
                "Proven key names of this server's tickets.",
            )?,
            group_size: gauges(
                registry,
                "sessile_balance_server_group_size",
                "Servers that share a ticket key with this server, itself included.",
            )?,
        })
    }

    /// The series of a server. A server that comes back continues its series.
    pub(in crate::balance) fn for_server(&self, server: &str) -> ServerMetrics {
        ServerMetrics {
            open: self.open.with_label_values(&[server]),
            up: self.up.with_label_values(&[server]),
            session_fault: self.session_fault.with_label_values(&[server]),
            connections: self.connections.with_label_values(&[server]),
            failures: self.failures.with_label_values(&[server]),
            bytes: ByteCounters::new(|direction| {
                self.bytes.with_label_values(&[server, direction])
            }),
            handshakes: RoutedCounters::new(|rule, outcome| {
                self.handshakes.with_label_values(&[server, rule, outcome])
            }),
        }
    }

    pub(in crate::balance) fn session_loss(&self, server: &str) -> SessionLossMetrics {
        let [accepted, refused] = OfferResult::ALL.map(|result| {
            self.offer_idle
                .with_label_values(&[server, result.as_str()])
        });
        SessionLossMetrics {
            accepted,
            refused,
            age_limit: self.age_limit.with_label_values(&[server]),
        }
    }

    pub(in crate::balance) fn key_names(&self, server: &str) -> KeyNameMetrics {
        KeyNameMetrics {
            names: self.key_names.with_label_values(&[server]),
            group_size: self.group_size.with_label_values(&[server]),
        }
    }

    /// Starts a new gauge of open connections, because another machine has the server's name.
    ///
    /// Connections to the old machine still count in the old gauge.
    pub(in crate::balance) fn reset_open(&self, server: &str) {
        let _ = self.open.remove_label_values(&[server]);
    }

    /// Removes the series of a server.
    pub(in crate::balance) fn remove(&self, server: &str) {
        // An error means that the series does not exist.
        let _ = self.open.remove_label_values(&[server]);
        let _ = self.up.remove_label_values(&[server]);
        let _ = self.session_fault.remove_label_values(&[server]);
        let _ = self.connections.remove_label_values(&[server]);
        let _ = self.failures.remove_label_values(&[server]);
        for direction in ByteDirection::ALL {
            let labels = [server, direction.as_str()];
            let _ = self.bytes.remove_label_values(&labels);
        }
        for rule in RoutedBy::ALL {
            for outcome in SessionOutcome::ALL {
                let labels = [server, rule.as_str(), outcome.as_str()];
                let _ = self.handshakes.remove_label_values(&labels);
            }
        }
        for result in OfferResult::ALL {
            let labels = [server, result.as_str()];
            let _ = self.offer_idle.remove_label_values(&labels);
        }
        let _ = self.age_limit.remove_label_values(&[server]);
        let _ = self.key_names.remove_label_values(&[server]);
        let _ = self.group_size.remove_label_values(&[server]);
    }
}
