//! What the balancer counts, over all servers.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use sessile_proto::affinity::Affinity;
use sessile_proto::route::RoutedBy;
use sessile_proto::watch::Kind;

use crate::figure;

/// Counters of one balancer.
pub struct Metrics {
    /// By rule and outcome; see [`outcome`].
    routed: IntCounterVec,
    turned_away: IntCounterVec,
    refused: IntCounter,
    open: IntGauge,
}

/// Why a client got no server.
pub(super) const TURNED_AWAY: [&str; 4] = ["no-hello", "bad-hello", "deadline", "no-server"];

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

impl Metrics {
    /// Registers the balancer's families; every counter appears at zero.
    ///
    /// # Errors
    /// Where the process has a balancer already.
    pub fn register(
        registry: &Registry,
        affinity: &Arc<Mutex<Affinity>>,
    ) -> prometheus::Result<Self> {
        let vector = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<_> {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let routed = vector(
            "sessile_balance_connections_total",
            "Connections by the rule that routed them and by what became of the session offered.",
            &["routed_by", "outcome"],
        )?;
        for by in RoutedBy::ALL {
            for outcome in OUTCOMES {
                routed.with_label_values(&[by.as_str(), outcome]);
            }
        }
        let turned_away = vector(
            "sessile_balance_turned_away_total",
            "Connections that got no server, by cause.",
            &["cause"],
        )?;
        for cause in TURNED_AWAY {
            turned_away.with_label_values(&[cause]);
        }
        let refused = IntCounter::new(
            "sessile_balance_refused_total",
            "Connections closed at once because connection.max was reached.",
        )?;
        registry.register(Box::new(refused.clone()))?;
        let open = IntGauge::new(
            "sessile_balance_connections_open",
            "Client connections open now.",
        )?;
        registry.register(Box::new(open.clone()))?;
        let learned = Opts::new(
            "sessile_balance_learned_entries",
            "Session IDs and tickets that were learned from servers.",
        );
        let affinity = Arc::clone(affinity);
        figure::register(registry, learned, move || {
            let affinity = affinity.lock().unwrap_or_else(PoisonError::into_inner);
            affinity.stats().entries
        })?;
        Ok(Self {
            routed,
            turned_away,
            refused,
            open,
        })
    }

    /// Counts a connection in, unless there are `max` already.
    pub(super) fn admit(&self, max: usize) -> Option<Open> {
        let open = self.open.get();
        if usize::try_from(open).is_ok_and(|open| open >= max) {
            self.refused.inc();
            return None;
        }
        self.open.inc();
        Some(Open(self.open.clone()))
    }

    /// `kind`: what the server's clear bytes said; `None`: the connection ended before.
    pub(super) fn count(&self, by: RoutedBy, kind: Option<Kind>) {
        let labels = [by.as_str(), outcome(kind)];
        self.routed.with_label_values(&labels).inc();
    }

    /// `cause`: one of [`TURNED_AWAY`].
    pub(super) fn count_turned_away(&self, cause: &str) {
        self.turned_away.with_label_values(&[cause]).inc();
    }
}

/// A connection that counts as open.
pub(super) struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
