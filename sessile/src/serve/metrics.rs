//! What a server counts.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use sessile_proto::verdict::{EarlyData, Verdict};

use crate::detect::DetectError;
use crate::figure;
use crate::store::Store;

/// Why a handshake did not finish that began with a hello; for the others [`DetectError`] says why.
const FAILURES: [&str; 4] = ["no-site", "closed", "client-certificate", "tls"];

/// One server's counters. Handles are looked up once, here.
pub struct Metrics {
    verdicts: HashMap<Verdict, IntCounter>,
    early_data: HashMap<EarlyData, IntCounter>,
    failures: HashMap<&'static str, IntCounter>,
    accepted: IntCounter,
    refused: IntCounter,
    reclaimed: IntCounter,
    requests: IntCounter,
    reloads: [IntCounter; 2],
    upstream_requests: IntCounterVec,
    open: IntGauge,
}

impl Metrics {
    /// Registers this server's families; every counter appears at zero.
    ///
    /// # Errors
    /// Where the process has a server of that name already.
    pub fn register(registry: &Registry, server: &str, store: &Store) -> prometheus::Result<Self> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("server", server);
        let vector = |name: &str, help: &str, label: &str| -> prometheus::Result<_> {
            let family = IntCounterVec::new(opts(name, help), &[label])?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<_> {
            let family = IntCounter::with_opts(opts(name, help))?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let handshakes = vector(
            "sessile_handshakes_total",
            "Finished TLS handshakes by verdict: resumed/<how> or full/<reason>.",
            "verdict",
        )?;
        let early_data = vector(
            "sessile_early_data_total",
            "What became of the early data (0-RTT) of TLS handshakes: none, accepted or rejected/<reason>.",
            "outcome",
        )?;
        let failures = vector(
            "sessile_handshake_failures_total",
            "TLS handshakes that did not finish, by cause.",
            "cause",
        )?;
        let reloads = vector(
            "sessile_reloads_total",
            "Reloads of the farm key and the configuration (SIGHUP), by result; failed where either failed.",
            "result",
        )?;
        let upstream_requests = opts(
            "sessile_upstream_requests_total",
            "Requests to upstreams, by what came of them.",
        );
        let upstream_requests = IntCounterVec::new(upstream_requests, &["upstream", "result"])?;
        registry.register(Box::new(upstream_requests.clone()))?;
        let open = opts("sessile_connections_open", "Client connections open now.");
        let open = IntGauge::with_opts(open)?;
        registry.register(Box::new(open.clone()))?;
        register_table(registry, server, store)?;
        Ok(Self {
            verdicts: Verdict::all()
                .map(|it| (it, handshakes.with_label_values(&[it.to_string()])))
                .collect(),
            early_data: EarlyData::all()
                .map(|early| (early, early_data.with_label_values(&[early.to_string()])))
                .collect(),
            failures: DetectError::CAUSES
                .into_iter()
                .chain(FAILURES)
                .map(|cause| (cause, failures.with_label_values(&[cause])))
                .collect(),
            accepted: counter("sessile_connections_total", "Client connections accepted.")?,
            refused: counter(
                "sessile_connections_refused_total",
                "Client connections closed at once because connection.max was reached.",
            )?,
            reclaimed: counter(
                "sessile_connections_reclaimed_total",
                "Client connections closed after connection.idle-timeout.",
            )?,
            requests: counter("sessile_requests_total", "HTTP requests answered.")?,
            reloads: ["failed", "ok"].map(|result| reloads.with_label_values(&[result])),
            upstream_requests,
            open,
        })
    }

    /// Counts a connection in, unless there are `max` already.
    pub(super) fn admit(self: &Arc<Self>, max: usize) -> Option<Open> {
        let open = self.open.get();
        if usize::try_from(open).is_ok_and(|open| open >= max) {
            self.refused.inc();
            return None;
        }
        self.accepted.inc();
        self.open.inc();
        Some(Open(Arc::clone(self)))
    }

    pub(super) fn count_verdict(&self, verdict: Verdict) {
        self.verdicts[&verdict].inc();
    }

    pub(super) fn count_early_data(&self, early_data: EarlyData) {
        self.early_data[&early_data].inc();
    }

    /// `cause`: one of [`DetectError::CAUSES`] or of [`FAILURES`].
    pub(super) fn count_failure(&self, cause: &'static str) {
        self.failures[cause].inc();
    }

    pub(super) fn count_reclaimed(&self) {
        self.reclaimed.inc();
    }

    pub(super) fn count_request(&self) {
        self.requests.inc();
    }

    pub(super) fn count_reload(&self, succeeded: bool) {
        self.reloads[usize::from(succeeded)].inc();
    }

    /// The counters of an upstream; all appear at zero.
    pub(super) fn upstream(&self, name: &str) -> UpstreamResults {
        let counter = |result| self.upstream_requests.with_label_values(&[name, result]);
        UpstreamResults {
            ok: counter("ok"),
            unreachable: counter("unreachable"),
            closed: counter("closed"),
            invalid: counter("invalid"),
            timeout: counter("timeout"),
            overloaded: counter("overloaded"),
            cut: counter("cut"),
            abandoned: counter("abandoned"),
        }
    }
}

/// What came of requests to one upstream; each is counted once.
pub(super) struct UpstreamResults {
    /// The response arrived whole, whatever its status.
    pub(super) ok: IntCounter,
    /// No server took a connection.
    pub(super) unreachable: IntCounter,
    /// The connection ended before a response.
    pub(super) closed: IntCounter,
    /// No HTTP response, or one that cannot be handed on.
    pub(super) invalid: IntCounter,
    /// No connection or no response in time.
    pub(super) timeout: IntCounter,
    /// Refused: too many were under way.
    pub(super) overloaded: IntCounter,
    /// The response ended, or nothing more came of it, before its end.
    pub(super) cut: IntCounter,
    /// The client went away first.
    pub(super) abandoned: IntCounter,
}

/// Registers the figures of the session table.
fn register_table(registry: &Registry, server: &str, store: &Store) -> prometheus::Result<()> {
    let opts = |name: &str, help: &str| Opts::new(name, help).const_label("server", server);
    let entries = opts(
        "sessile_session_table_entries",
        "Sessions in the session table.",
    );
    let table = store.clone();
    figure::register(registry, entries, move || table.table().stats().entries)?;
    let bytes = opts(
        "sessile_session_table_bytes",
        "Memory of the session table, in bytes.",
    );
    let table = store.clone();
    figure::register(registry, bytes, move || table.table().memory())?;
    Ok(())
}

/// A connection that is counted as open for as long as this lives.
pub(super) struct Open(Arc<Metrics>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.dec();
    }
}
