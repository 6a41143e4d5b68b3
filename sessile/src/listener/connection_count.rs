//! The count of open connections, up to `connection.max`. At this limit, the source with most connections
//! gives way to a source with fewer connections.

use std::net::IpAddr;
use std::sync::Arc;

use prometheus::{IntCounter, IntGauge};
use sessile_proto::affinity::Source;

use super::fair_places::{FairPlaces, Place, WhenFull};
use crate::log_interval::LogInterval;

/// The open connections of a role and their limit. Clones share the counters.
#[derive(Clone)]
pub struct ConnectionCount(Arc<SharedCount>);

struct SharedCount {
    max: usize,
    places: Arc<FairPlaces>,
    metrics: ConnectionMetrics,
    full_log: LogInterval,
}

/// The metrics of a role's connections.
#[derive(Clone)]
pub struct ConnectionMetrics {
    pub open: IntGauge,
    /// Connections that were closed at once, because the limit was reached and no other connection had to give
    /// way.
    pub refused: IntCounter,
    /// Connections that were closed to let another source in.
    pub displaced: IntCounter,
    /// Connections that were not refused, for a role that has this metric.
    pub accepted: Option<IntCounter>,
}

impl ConnectionCount {
    /// `max`: the limit on open connections.
    #[must_use]
    pub fn new(max: usize, metrics: ConnectionMetrics) -> Self {
        Self(Arc::new(SharedCount {
            max,
            places: FairPlaces::new(max, WhenFull::FairShare),
            metrics,
            full_log: LogInterval::new(LogInterval::MINUTE),
        }))
    }

    /// The limit on open connections.
    #[must_use]
    pub fn max(&self) -> usize {
        self.0.max
    }

    /// Counts one more connection. `None` if the limit is reached, and no other connection has to give way.
    #[must_use]
    pub fn try_open(&self, peer: IpAddr) -> Option<OpenConnection> {
        let count = &self.0;
        let Some(place) = count.places.enter(Source::of(peer)) else {
            count.metrics.refused.inc();
            count.log_full();
            return None;
        };
        if let Some(accepted) = &count.metrics.accepted {
            accepted.inc();
        }
        count.metrics.open.inc();
        Some(OpenConnection {
            place,
            count: Arc::clone(count),
        })
    }
}

impl SharedCount {
    fn log_full(&self) {
        if self.full_log.is_due() {
            let (max, open) = (self.max, self.metrics.open.get());
            let (refused, displaced) = (self.metrics.refused.get(), self.metrics.displaced.get());
            tracing::warn!(
                max,
                open,
                refused,
                displaced,
                "connection.max is reached: new clients are refused, or take the place of a source with more \
                 connections; raise connection.max and the limit on open files, or set connection.max-per-source"
            );
        }
    }
}

/// Counts a connection as open until this value is dropped.
pub struct OpenConnection {
    place: Place,
    count: Arc<SharedCount>,
}

impl OpenConnection {
    /// Counts the connection for the source in its PROXY header.
    pub(super) fn move_to(&mut self, source: IpAddr) {
        self.place.move_to(Source::of(source));
    }

    /// Waits until the connection has to close, because another source gets its place. Counts the displaced
    /// connection.
    pub(super) async fn displaced(&mut self) {
        self.place.displaced().await;
        self.count.metrics.displaced.inc();
        self.count.log_full();
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.count.metrics.open.dec();
    }
}

/// Adds one to a gauge until this value is dropped.
pub(crate) struct OpenGauge(IntGauge);

impl OpenGauge {
    pub(crate) fn count(open: &IntGauge) -> Self {
        open.inc();
        Self(open.clone())
    }
}

impl Drop for OpenGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}
