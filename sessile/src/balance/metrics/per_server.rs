//! The metrics of each server. A server's series end when the server is removed.

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    register_histogram_vec_with_registry as register_histograms,
    register_int_counter_vec_with_registry as register_counters,
    register_int_gauge_vec_with_registry as register_gauges,
};
use sessile_proto::Word;
use sessile_proto::route::RoutedBy;
use sessile_proto::watch::SessionOutcome;

use super::super::session_loss::BUCKETS;
use super::causes::{ByteDirection, OfferResult};
use super::counters::{ByteCounters, RoutedCounters};

/// Metric families with series for each server.
pub(in crate::balance) struct ServerFamilies {
    open: IntGaugeVec,
    connections: IntCounterVec,
    failures: IntCounterVec,
    bytes: IntCounterVec,
    handshakes: IntCounterVec,
    offer_idle: HistogramVec,
}

/// The metrics of one server.
pub(in crate::balance) struct ServerMetrics {
    pub(in crate::balance) open: IntGauge,
    pub(in crate::balance) connections: IntCounter,
    pub(in crate::balance) failures: IntCounter,
    pub(in crate::balance) bytes: ByteCounters,
    pub(in crate::balance) handshakes: RoutedCounters,
    /// The idle times of learned sessions that the server accepted.
    pub(in crate::balance) offers_accepted: Histogram,
    /// The idle times of learned sessions that the server refused.
    pub(in crate::balance) offers_refused: Histogram,
}

impl ServerFamilies {
    pub(in crate::balance) fn register(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            open: register_gauges!(
                "sessile_balance_server_connections_open",
                "Connections to this server open now.",
                &["server"],
                registry
            )?,
            connections: register_counters!(
                "sessile_balance_server_connections_total",
                "Connections made to this server.",
                &["server"],
                registry
            )?,
            failures: register_counters!(
                "sessile_balance_server_failures_total",
                "Connections that this server refused, let time out, or closed without a reply.",
                &["server"],
                registry
            )?,
            bytes: register_counters!(
                "sessile_balance_server_bytes_total",
                "Bytes from clients (up) and from this server (down), without ClientHellos.",
                &["server", "direction"],
                registry
            )?,
            handshakes: register_counters!(
                "sessile_balance_server_handshakes_total",
                "Connections to this server by routing rule and by the outcome of the offered session.",
                &["server", "routed_by", "outcome"],
                registry
            )?,
            offer_idle: register_histograms!(
                "sessile_balance_server_offer_idle_seconds",
                "Idle time of learned sessions that were offered to their own server, by the server's answer.",
                &["server", "outcome"],
                BUCKETS.into(),
                registry
            )?,
        })
    }

    /// The series of a server. A server whose address changed continues its series.
    pub(in crate::balance) fn for_server(&self, server: &str) -> ServerMetrics {
        let idle = |result: OfferResult| {
            let labels = [server, result.as_str()];
            self.offer_idle.with_label_values(&labels)
        };
        ServerMetrics {
            open: self.open.with_label_values(&[server]),
            connections: self.connections.with_label_values(&[server]),
            failures: self.failures.with_label_values(&[server]),
            bytes: ByteCounters::new(|direction| {
                self.bytes.with_label_values(&[server, direction])
            }),
            handshakes: RoutedCounters::new(|rule, outcome| {
                self.handshakes.with_label_values(&[server, rule, outcome])
            }),
            offers_accepted: idle(OfferResult::Accepted),
            offers_refused: idle(OfferResult::Refused),
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
        let _ = self.connections.remove_label_values(&[server]);
        let _ = self.failures.remove_label_values(&[server]);
        for direction in ByteDirection::all() {
            let labels = [server, direction.as_str()];
            let _ = self.bytes.remove_label_values(&labels);
        }
        for rule in RoutedBy::all() {
            for outcome in SessionOutcome::all() {
                let labels = [server, rule.as_str(), outcome.as_str()];
                let _ = self.handshakes.remove_label_values(&labels);
            }
        }
        for result in OfferResult::all() {
            let labels = [server, result.as_str()];
            let _ = self.offer_idle.remove_label_values(&labels);
        }
    }
}
