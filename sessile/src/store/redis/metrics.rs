//! The metrics of a server's shared store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use sessile_proto::Word;
use sessile_proto::verdict::Reason;
use strum::{IntoStaticStr, VariantArray};

use crate::live_gauge;

/// A request to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum StoreOperation {
    Fetch,
    Put,
    Remove,
    #[strum(serialize = "spend")]
    Consume,
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum StoreOutcome {
    /// Found, stored or removed.
    Ok,
    /// Stored, after the flight that announces the session had left.
    Late,
    /// The store has no entry and no tombstone.
    Missing,
    /// A server of the farm removed the entry.
    Gone,
    /// The entry does not open, or nothing can be sealed.
    Bad,
    /// The store answered with an error.
    Refused,
    /// No answer in time.
    Timeout,
    /// There was no connection, or the connection ended before the answer.
    Down,
}

impl StoreOutcome {
    /// The reason of a full handshake after a request that failed with this outcome.
    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::Timeout => Reason::StoreTimeout,
            _ => Reason::StoreDown,
        }
    }
}

/// Upper bounds of the histogram's buckets, in seconds. They suit a store in the same data centre.
const BUCKETS: [f64; 10] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.05, 0.25,
];

/// The counters of one server's shared store.
pub(super) struct StoreMetrics {
    /// By operation and outcome.
    requests: Vec<Vec<IntCounter>>,
    /// By operation.
    seconds: Vec<Histogram>,
    connections: Arc<ConnectionCounts>,
}

/// The connections of the workers to the store.
#[derive(Default)]
struct ConnectionCounts {
    up: AtomicUsize,
    /// The connections that should be up: one for each worker.
    all: AtomicUsize,
}

impl ConnectionCounts {
    fn up(&self) -> usize {
        self.up.load(Ordering::Relaxed)
    }

    fn down(&self) -> usize {
        self.all.load(Ordering::Relaxed).saturating_sub(self.up())
    }

    /// True if every worker has a connection. A worker without a connection causes full handshakes.
    fn are_all_up(&self) -> bool {
        self.up() > 0 && self.down() == 0
    }
}

impl StoreMetrics {
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
        let by_outcome = |operation: StoreOperation| {
            StoreOutcome::all()
                .map(|outcome| requests.with_label_values(&[operation.as_str(), outcome.as_str()]))
                .collect()
        };
        Ok(Self {
            requests: StoreOperation::all().map(by_outcome).collect(),
            seconds: StoreOperation::all()
                .map(|operation| seconds.with_label_values(&[operation.as_str()]))
                .collect(),
            connections: register_connections(registry, server)?,
        })
    }

    pub(super) fn count(&self, operation: StoreOperation, outcome: StoreOutcome, count: usize) {
        self.requests[operation as usize][outcome as usize].inc_by(count as u64);
    }

    pub(super) fn observe(&self, operation: StoreOperation, duration: Duration) {
        self.seconds[operation as usize].observe(duration.as_secs_f64());
    }

    /// Counts a worker, which has no connection yet.
    pub(super) fn add_worker(&self) {
        self.connections.all.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection. Returns true if every worker now has one.
    pub(super) fn connection_up(&self) -> bool {
        self.connections.up.fetch_add(1, Ordering::Relaxed);
        self.connections.are_all_up()
    }

    /// Counts the end of a connection.
    pub(super) fn connection_down(&self) {
        self.connections.up.fetch_sub(1, Ordering::Relaxed);
    }
}

fn register_connections(
    registry: &Registry,
    server: &str,
) -> prometheus::Result<Arc<ConnectionCounts>> {
    let connections = Arc::<ConnectionCounts>::default();
    let gauge = |opts: Opts, read: fn(&ConnectionCounts) -> usize| {
        let counts = Arc::clone(&connections);
        live_gauge::register(registry, opts.const_label("server", server), move || {
            read(&counts)
        })
    };
    let up = Opts::new(
        "sessile_store_up",
        "1 if the shared session store answers every worker thread, else 0.",
    );
    gauge(up, |counts| usize::from(counts.are_all_up()))?;
    let by_state = |state| {
        let opts = Opts::new(
            "sessile_store_connections",
            "Worker threads by the state of their connection to the shared session store.",
        );
        opts.const_label("state", state)
    };
    gauge(by_state("up"), ConnectionCounts::up)?;
    gauge(by_state("down"), ConnectionCounts::down)?;
    Ok(connections)
}
