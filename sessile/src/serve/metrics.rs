//! The metrics of a server.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use sessile_proto::Word;
use sessile_proto::verdict::{EarlyData, Verdict};
use strum::IntoStaticStr;

use crate::clock;
use crate::key::Keyring;
use crate::listener::{ConnectionCount, ConnectionMetrics, IntakeFailure, OpenGauge};
use crate::live_gauge;
use crate::store::Store;

/// Why a handshake did not finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum HandshakeFailure {
    /// The client was turned away before the handshake.
    #[strum(transparent)]
    Intake(IntakeFailure),
    /// No site has the server name.
    NoSite,
    /// The client closed the connection.
    Closed,
    /// The handshake took too long. The label is that of [`IntakeFailure::Deadline`].
    Deadline,
    /// The client showed no certificate, or a certificate that is not accepted.
    ClientCertificate,
    /// Another error of the TLS library.
    Tls,
}

impl HandshakeFailure {
    /// Every failure.
    pub fn all() -> impl Iterator<Item = Self> {
        let intake = IntakeFailure::all().map(Self::Intake);
        intake.chain([
            Self::NoSite,
            Self::Closed,
            Self::Deadline,
            Self::ClientCertificate,
            Self::Tls,
        ])
    }
}

impl From<IntakeFailure> for HandshakeFailure {
    fn from(failure: IntakeFailure) -> Self {
        Self::Intake(failure)
    }
}

/// The counters of one server.
pub struct Metrics {
    pub(super) connections: ConnectionCount,
    parked: IntGauge,
    verdicts: HashMap<Verdict, IntCounter>,
    early_data: HashMap<EarlyData, IntCounter>,
    failures: IntCounterVec,
    reclaimed: IntCounter,
    requests: IntCounter,
    stalled_responses: IntCounter,
    http2_floods: IntCounter,
    reloads: [IntCounter; 2],
    upstream_requests: IntCounterVec,
    pub(super) files: Arc<FileMetrics>,
    pub(super) large_files: LargeFileMetrics,
}

impl Metrics {
    /// Registers the metrics of a server. Every counter appears at zero. `max_connections`: how many connections
    /// may be open.
    ///
    /// # Errors
    /// If the process has a server of that name already.
    pub fn register(
        registry: &Registry,
        server: &str,
        store: &Store,
        keys: &Arc<Keyring>,
        max_connections: usize,
    ) -> prometheus::Result<Self> {
        let families = Families { registry, server };
        let handshakes = families.vector(
            "sessile_handshakes_total",
            "Finished TLS handshakes by verdict: resumed/<how> or full/<reason>.",
            &["verdict"],
        )?;
        let early_data = families.vector(
            "sessile_early_data_total",
            "TLS handshakes by the outcome of their early data (0-RTT): none, accepted or rejected/<reason>.",
            &["outcome"],
        )?;
        let failures = families.vector(
            "sessile_handshake_failures_total",
            "TLS handshakes that did not finish, by cause.",
            &["cause"],
        )?;
        for failure in HandshakeFailure::all() {
            failures.with_label_values(&[<&str>::from(failure)]);
        }
        let reloads = families.vector(
            "sessile_reloads_total",
            "Reloads of the farm key and the configuration (SIGHUP), by result; failed if either failed.",
            &["result"],
        )?;
        let upstream_requests = families.vector(
            "sessile_upstream_requests_total",
            "Requests to upstreams, by result.",
            &["upstream", "result"],
        )?;
        families.register_table(store)?;
        families.register_key(keys)?;
        Ok(Self {
            connections: families.connections(max_connections)?,
            parked: families.gauge(
                "sessile_connections_parked",
                "Open HTTP/1.1 connections that wait for a request and hold no HTTP buffers.",
            )?,
            verdicts: Verdict::all()
                .map(|it| (it, handshakes.with_label_values(&[it.to_string()])))
                .collect(),
            early_data: EarlyData::all()
                .map(|early| (early, early_data.with_label_values(&[early.to_string()])))
                .collect(),
            failures,
            reclaimed: families.counter(
                "sessile_connections_reclaimed_total",
                "Client connections closed after connection.idle-timeout.",
            )?,
            requests: families.counter("sessile_requests_total", "HTTP requests answered.")?,
            stalled_responses: families.counter(
                "sessile_responses_stalled_total",
                "HTTP responses cut off because the client did not read for connection.body-timeout.",
            )?,
            http2_floods: families.counter(
                "sessile_http2_floods_total",
                "HTTP/2 connections closed because the client sent too many frames without requests or data.",
            )?,
            reloads: ["failed", "ok"].map(|result| reloads.with_label_values(&[result])),
            upstream_requests,
            files: Arc::new(families.file_failures()?),
            large_files: families.large_files()?,
        })
    }

    pub(super) fn count_verdict(&self, verdict: Verdict) {
        self.verdicts[&verdict].inc();
    }

    pub(super) fn count_early_data(&self, early_data: EarlyData) {
        self.early_data[&early_data].inc();
    }

    pub(super) fn count_failure(&self, failure: HandshakeFailure) {
        let failure: &str = failure.into();
        self.failures.with_label_values(&[failure]).inc();
    }

    /// Counts a parked connection until the returned value is dropped.
    pub(super) fn count_parked(&self) -> OpenGauge {
        OpenGauge::count(&self.parked)
    }

    pub(super) fn count_reclaimed(&self) {
        self.reclaimed.inc();
    }

    pub(super) fn count_request(&self) {
        self.requests.inc();
    }

    pub(super) fn count_stalled_response(&self) {
        self.stalled_responses.inc();
    }

    /// Counts a flood, and returns the number of floods so far.
    pub(super) fn count_flood(&self) -> u64 {
        self.http2_floods.inc();
        self.http2_floods.get()
    }

    pub(super) fn count_reload(&self, succeeded: bool) {
        self.reloads[usize::from(succeeded)].inc();
    }

    /// The counters of an upstream. All counters appear at zero.
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
            stalled: counter("stalled"),
            displaced: counter("displaced"),
        }
    }
}

/// The results of the requests to one upstream. Each request is counted once.
pub(super) struct UpstreamResults {
    /// The response arrived whole, with any status.
    pub(super) ok: IntCounter,
    /// No server took a connection.
    pub(super) unreachable: IntCounter,
    /// The connection ended before a response.
    pub(super) closed: IntCounter,
    /// The response is not HTTP, or cannot be forwarded.
    pub(super) invalid: IntCounter,
    /// The upstream took no connection, or sent no response, in time.
    pub(super) timeout: IntCounter,
    /// Refused, because all slots were taken, and no source had at least two more than the client's source.
    pub(super) overloaded: IntCounter,
    /// The response began, and its end did not arrive.
    pub(super) cut: IntCounter,
    /// The client closed the connection first.
    pub(super) abandoned: IntCounter,
    /// The client neither sent more of its request nor read more of the response.
    pub(super) stalled: IntCounter,
    /// Ended, because a source with fewer requests needed the slot.
    pub(super) displaced: IntCounter,
}

/// The counters of requests for files: served from memory, or failed because of the file system.
pub(super) struct FileMetrics {
    /// The file was in memory.
    pub(super) from_memory: IntCounter,
    /// The file system did not answer in time.
    pub(super) timeout: IntCounter,
    /// Too many operations waited for the file system.
    pub(super) overloaded: IntCounter,
    /// The file system reported an error.
    pub(super) error: IntCounter,
    /// The response began, and the rest of the file could not be read.
    pub(super) cut: IntCounter,
    /// Another source needed the open file.
    pub(super) displaced: IntCounter,
}

/// How large files leave over HTTP/1.1.
pub(super) struct LargeFileMetrics {
    pub(super) kernel: RecordPath,
    pub(super) user_space: RecordPath,
    /// Connections that lost their keys on the way to the kernel.
    lost: IntCounter,
}

/// Where the records of large files are made.
pub(super) struct RecordPath {
    pub(super) connections: IntCounter,
    pub(super) bytes: IntCounter,
}

impl LargeFileMetrics {
    pub(super) fn count_lost(&self, error: &std::io::Error) {
        self.lost.inc();
        tracing::warn!(%error, "a connection is closed, because it lost its keys on the way to the kernel");
    }
}

/// Registers the gauges of the files in memory: their number, and their bytes.
pub(super) fn register_file_cache(
    registry: &Registry,
    server: &str,
    entries: impl Fn() -> usize + Send + Sync + 'static,
    bytes: impl Fn() -> usize + Send + Sync + 'static,
) -> prometheus::Result<()> {
    let families = Families { registry, server };
    let opts = families.opts("sessile_file_cache_entries", "Files in memory.");
    live_gauge::register(registry, opts, entries)?;
    let opts = families.opts(
        "sessile_file_cache_bytes",
        "Bytes of files.cache-size that the files in memory take.",
    );
    live_gauge::register(registry, opts, bytes)
}

/// Registers the metrics of one server.
struct Families<'a> {
    registry: &'a Registry,
    server: &'a str,
}

impl Families<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_label("server", self.server)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::with_opts(self.opts(name, help))?;
        self.registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let gauge = IntGauge::with_opts(self.opts(name, help))?;
        self.registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn vector(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        let family = IntCounterVec::new(self.opts(name, help), labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn file_failures(&self) -> prometheus::Result<FileMetrics> {
        let failures = self.vector(
            "sessile_file_failures_total",
            "Requests for files that failed because of the file system, by cause.",
            &["cause"],
        )?;
        let counter = |cause| failures.with_label_values(&[cause]);
        Ok(FileMetrics {
            from_memory: self.counter(
                "sessile_file_cache_hits_total",
                "Requests for files that were answered from memory.",
            )?,
            timeout: counter("timeout"),
            overloaded: counter("overloaded"),
            error: counter("error"),
            cut: counter("cut"),
            displaced: counter("displaced"),
        })
    }

    fn large_files(&self) -> prometheus::Result<LargeFileMetrics> {
        let connections = self.vector(
            "sessile_large_file_connections_total",
            "HTTP/1.1 connections that sent a file of at least 64 KiB, by the place of their TLS records.",
            &["records"],
        )?;
        let bytes = self.vector(
            "sessile_large_file_bytes_total",
            "Bytes of files of at least 64 KiB over HTTP/1.1, by the place of their TLS records.",
            &["records"],
        )?;
        let path = |records| RecordPath {
            connections: connections.with_label_values(&[records]),
            bytes: bytes.with_label_values(&[records]),
        };
        Ok(LargeFileMetrics {
            kernel: path("kernel"),
            user_space: path("user-space"),
            lost: self.counter(
                "sessile_kernel_tls_lost_total",
                "Connections that ended because the kernel refused their keys.",
            )?,
        })
    }

    fn connections(&self, max: usize) -> prometheus::Result<ConnectionCount> {
        let open = self.gauge("sessile_connections_open", "Client connections open now.")?;
        let accepted = self.counter("sessile_connections_total", "Client connections accepted.")?;
        let refused = self.counter(
            "sessile_connections_refused_total",
            "Client connections closed at once because connection.max was reached.",
        )?;
        let displaced = self.counter(
            "sessile_connections_displaced_total",
            "Client connections closed because connection.max was reached and a source with fewer connections came.",
        )?;
        let metrics = ConnectionMetrics {
            open,
            refused,
            displaced,
            accepted: Some(accepted),
        };
        Ok(ConnectionCount::new(max, metrics))
    }

    fn register_table(&self, store: &Store) -> prometheus::Result<()> {
        let entries = self.opts(
            "sessile_session_table_entries",
            "Sessions in the session table.",
        );
        let table = store.clone();
        live_gauge::register(self.registry, entries, move || table.table().entries())?;
        let bytes = self.opts(
            "sessile_session_table_bytes",
            "Memory of the session table, in bytes.",
        );
        let table = store.clone();
        live_gauge::register(self.registry, bytes, move || table.table().memory())
    }

    fn register_key(&self, keys: &Arc<Keyring>) -> prometheus::Result<()> {
        let seals = self.opts(
            "sessile_farm_key_seals",
            "1 if the farm key can seal tickets at the time of this machine's clock, else 0.",
        );
        let keys = Arc::clone(keys);
        live_gauge::register(self.registry, seals, move || {
            usize::from(keys.schedule(clock::now()).can_seal())
        })
    }
}
