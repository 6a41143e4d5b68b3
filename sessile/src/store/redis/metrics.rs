//! What a server counts of its store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use sessile_proto::verdict::Reason;

use crate::live_gauge;

/// What is asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Operation {
    Fetch,
    Put,
    Remove,
    Consume,
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
    connections: Arc<Connections>,
}

/// Workers' connections to the store.
#[derive(Default)]
struct Connections {
    /// Those that are well now.
    up: AtomicUsize,
    /// One for each worker.
    all: AtomicUsize,
}

impl Connections {
    fn up(&self) -> usize {
        self.up.load(Ordering::Relaxed)
    }

    fn down(&self) -> usize {
        self.all.load(Ordering::Relaxed).saturating_sub(self.up())
    }

    /// A worker without one pays for it with full handshakes, however many others have theirs.
    fn are_well(&self) -> bool {
        self.up() > 0 && self.down() == 0
    }
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
        let connections = Arc::<Connections>::default();
        let read = Arc::clone(&connections);
        let opts = Opts::new(
            "sessile_store_up",
            "1 where the shared session store answers every worker thread, else 0.",
        );
        live_gauge::register(registry, opts.const_label("server", server), move || {
            usize::from(read.are_well())
        })?;
        for (state, count) in [
            ("up", Connections::up as fn(&Connections) -> usize),
            ("down", Connections::down),
        ] {
            let read = Arc::clone(&connections);
            let opts = Opts::new(
                "sessile_store_connections",
                "Worker threads by the state of their connection to the shared session store.",
            );
            let opts = opts.const_label("server", server);
            let opts = opts.const_label("state", state);
            live_gauge::register(registry, opts, move || count(&read))?;
        }
        Ok(Self {
            requests: OPERATIONS
                .map(|operation| OUTCOMES.map(|o| requests.with_label_values(&[operation, o]))),
            seconds: OPERATIONS.map(|operation| seconds.with_label_values(&[operation])),
            connections,
        })
    }

    pub(super) fn count(&self, operation: Operation, outcome: Outcome, many: usize) {
        self.requests[operation as usize][outcome as usize].inc_by(many as u64);
    }

    pub(super) fn observe(&self, operation: Operation, took: Duration) {
        self.seconds[operation as usize].observe(took.as_secs_f64());
    }

    /// One more worker wants a connection.
    pub(super) fn one_wanted(&self) {
        self.connections.all.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker's connection is well. True where all of them are.
    pub(super) fn one_more(&self) -> bool {
        self.connections.up.fetch_add(1, Ordering::Relaxed);
        self.connections.are_well()
    }

    /// A worker's connection is no longer well.
    pub(super) fn one_less(&self) {
        self.connections.up.fetch_sub(1, Ordering::Relaxed);
    }
}
