//! What a server counts of its store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use sessile_proto::verdict::Reason;

use crate::figure;

/// What is asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Operation {
    Fetch,
    Put,
    Remove,
    Spend,
}

const OPERATIONS: [&str; 4] = ["fetch", "put", "remove", "spend"];

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Outcome {
    /// Found, stored, removed.
    Ok,
    /// Stored, after the flight that announces the session had left.
    Late,
    /// Not there, and for all the store knows it never was.
    Missing,
    /// It was removed by a server of the farm.
    Gone,
    /// What lies there does not open; or nothing can be sealed.
    Bad,
    /// The store answered with an error.
    Refused,
    /// No answer in time.
    Timeout,
    /// Not asked: there is no connection, or the store has failed too often just now.
    Down,
}

impl Outcome {
    /// The reason of a full handshake for which this was all that the store had to say.
    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::Timeout => Reason::StoreTimeout,
            _ => Reason::StoreDown,
        }
    }
}

const OUTCOMES: [&str; 8] = [
    "ok", "late", "missing", "gone", "bad", "refused", "timeout", "down",
];

/// Upper bounds of the histogram's buckets, in seconds: a store stands in the same data centre.
const BUCKETS: [f64; 10] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.05, 0.25,
];

pub(super) struct Metrics {
    requests: [[IntCounter; OUTCOMES.len()]; OPERATIONS.len()],
    seconds: [Histogram; OPERATIONS.len()],
    /// Connections that are well now, of all workers.
    up: Arc<AtomicUsize>,
}

impl Metrics {
    pub(super) fn register(registry: &Registry, server: &str) -> prometheus::Result<Self> {
        let requests = IntCounterVec::new(
            Opts::new(
                "sessile_store_requests_total",
                "Requests to the shared session store by operation and result.",
            )
            .const_label("server", server),
            &["operation", "result"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "sessile_store_seconds",
                "Time that the shared session store took to answer.",
            )
            .const_label("server", server)
            .buckets(BUCKETS.to_vec()),
            &["operation"],
        )?;
        registry.register(Box::new(seconds.clone()))?;
        let up = Arc::new(AtomicUsize::new(0));
        let opts = Opts::new(
            "sessile_store_up",
            "1 where the shared session store answers, else 0.",
        );
        let read = Arc::clone(&up);
        figure::register(registry, opts.const_label("server", server), move || {
            read.load(Ordering::Relaxed).min(1)
        })?;
        Ok(Self {
            requests: OPERATIONS
                .map(|operation| OUTCOMES.map(|o| requests.with_label_values(&[operation, o]))),
            seconds: OPERATIONS.map(|operation| seconds.with_label_values(&[operation])),
            up,
        })
    }

    pub(super) fn count(&self, operation: Operation, outcome: Outcome, many: usize) {
        self.requests[operation as usize][outcome as usize].inc_by(many as u64);
    }

    pub(super) fn observe(&self, operation: Operation, took: Duration) {
        self.seconds[operation as usize].observe(took.as_secs_f64());
    }

    /// A worker's connection is well. True where it is the first one.
    pub(super) fn one_more(&self) -> bool {
        self.up.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// A worker's connection is no longer well. True where it was the last one.
    pub(super) fn one_less(&self) -> bool {
        self.up.fetch_sub(1, Ordering::Relaxed) == 1
    }
}
