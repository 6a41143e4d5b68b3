//! The life of the process: worker threads with a runtime each, limits, signals, and messages to the service
//! manager. This module handles no connections.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, LocalOptions, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The threads of a role. Each has a runtime.
#[derive(Default)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

/// Most threads of a worker that read and write files.
const MAX_BLOCKING: usize = 16;

impl Workers {
    /// Starts a thread that runs `body` to the end. The future need not be `Send`.
    ///
    /// # Errors
    /// If the system cannot start the thread or its runtime.
    pub fn spawn<F>(
        &mut self,
        name: &str,
        body: impl FnOnce() -> F + Send + 'static,
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let (started, outcome) = mpsc::sync_channel(1);
        let work = move || {
            // In a local runtime, a ready socket puts its task straight into the queue. A LocalSet
            // would be woken through a file descriptor, three times for each connection.
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(MAX_BLOCKING)
                .build_local(LocalOptions::default());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(()));
            runtime.spawn_local(tick());
            // This is a separate task, because `block_on` uses a file descriptor to wake the future that it
            // runs.
            let body = runtime.spawn_local(async move { body().await });
            let ended = runtime.block_on(body);
            // A blocking thread that still waits for a file must not delay the end of the worker.
            runtime.shutdown_background();
            if let Err(failed) = ended
                && failed.is_panic()
            {
                std::panic::resume_unwind(failed.into_panic());
            }
        };
        // Linux shows 15 bytes of a thread's name.
        let name = name.chars().take(15).collect();
        let thread = std::thread::Builder::new().name(name).spawn(work)?;
        outcome
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits until every thread has ended.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// Keeps a timer that is due before most others. A new timer that is due before all others costs two system
/// calls, which wake the runtime. One wake-up a second costs less than these calls for each connection.
async fn tick() {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The number of worker threads of a listener; 0 in the configuration means one for each core.
#[must_use]
pub fn worker_count(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// The number of file descriptors that are kept free for uses other than connections.
const SPARE_FILES: u64 = 64;

/// A file limit for fewer connections than this is taken for a mistake.
const FEW_CONNECTIONS: usize = 256;

/// Raises the soft limit of open files to the hard limit, and returns it.
#[must_use]
pub fn file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    files.unwrap_or(u64::MAX)
}

/// How many connections there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// As configured, and no more than there are files for.
    pub max: usize,
    /// `connection.max`; 0: as many as there are files for.
    configured: usize,
    /// The files that the process may open.
    files: u64,
}

impl ConnectionLimit {
    /// Each connection takes `sockets` of the `files`, but none of the `reserved` files.
    #[must_use]
    pub fn new(configured: usize, files: u64, reserved: u64, sockets: u64) -> Self {
        let possible = files.saturating_sub(reserved + SPARE_FILES) / sockets;
        let possible = usize::try_from(possible).unwrap_or(usize::MAX).max(1);
        let max = match configured {
            0 => possible,
            wanted => wanted.min(possible),
        };
        Self {
            max,
            configured,
            files,
        }
    }

    /// Why the limit is lower than configured, or very low, and what to do.
    #[must_use]
    pub fn warning(self) -> Option<String> {
        let Self {
            max,
            configured,
            files,
        } = self;
        let connections = if max == 1 {
            "connection"
        } else {
            "connections"
        };
        let limit = format!("the limit of {files} open files allows {max} {connections} at once");
        let remedy = "raise the limit with LimitNOFILE= (systemd) or `ulimit -n`";
        if configured > max {
            Some(format!(
                "{limit}, and connection.max is {configured}; {remedy}, or lower connection.max"
            ))
        } else if configured == 0 && max < FEW_CONNECTIONS {
            Some(format!("{limit}; {remedy}"))
        } else {
            None
        }
    }

    /// Logs the warning, if there is one.
    pub fn log_warning(self) {
        if let Some(warning) = self.warning() {
            tracing::warn!("few connections are possible: {warning}");
        }
    }
}

/// Actions for signals, except for the signals that stop the process.
#[derive(Default)]
pub struct Orders<'a> {
    /// SIGUSR1: the log files were moved away.
    pub reopen_logs: Option<Box<dyn FnMut() + 'a>>,
    /// SIGHUP: files have changed. If there is nothing to reload, the signal keeps the default action.
    pub reload: Option<Box<dyn FnMut() + 'a>>,
}

/// The signals that a role obeys. They are also watched while the role starts, so that no signal ends the
/// process without a drain.
pub struct Signals {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
    reopen: Signal,
    /// `None` if SIGHUP keeps its default action, which ends the process.
    hangup: Option<Signal>,
}

impl Signals {
    /// Watches SIGINT, SIGTERM and SIGUSR1. Call this before the role starts.
    ///
    /// # Errors
    /// If signals cannot be watched.
    pub fn watch() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let watched = |kind| {
            let _context = runtime.enter();
            signal(kind)
        };
        Ok(Self {
            interrupt: watched(SignalKind::interrupt())?,
            terminate: watched(SignalKind::terminate())?,
            reopen: watched(SignalKind::user_defined1())?,
            hangup: None,
            runtime,
        })
    }

    /// Watches SIGHUP too, for a role that has files to reload.
    ///
    /// # Errors
    /// If the signal cannot be watched.
    pub fn watch_hangup(&mut self) -> io::Result<()> {
        let _context = self.runtime.enter();
        self.hangup = Some(signal(SignalKind::hangup())?);
        Ok(())
    }

    /// Waits for SIGINT or SIGTERM, and obeys other signals until then. A second SIGINT or SIGTERM ends the
    /// process at once.
    pub fn wait(self, mut orders: Orders<'_>) {
        let Self {
            runtime,
            mut interrupt,
            mut terminate,
            mut reopen,
            mut hangup,
        } = self;
        let asked = runtime.block_on(async {
            notify(ServiceState::Ready);
            loop {
                tokio::select! {
                    _ = interrupt.recv() => return "SIGINT",
                    _ = terminate.recv() => return "SIGTERM",
                    Some(()) = received(hangup.as_mut()) => {
                        notify(ServiceState::Reloading);
                        orders.reload.iter_mut().for_each(|reload| reload());
                        notify(ServiceState::Ready);
                    }
                    _ = reopen.recv() => orders.reopen_logs.iter_mut().for_each(|reopen| reopen()),
                }
            }
        });
        notify(ServiceState::Stopping);
        tracing::info!(signal = asked, "draining; a second signal ends it at once");
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                std::process::exit(130);
            });
        });
    }
}

/// Waits for a signal, or for ever if the signal is not watched.
async fn received(signal: Option<&mut Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// The state of a service, in the words of the service manager.
#[derive(Clone, Copy, Debug)]
enum ServiceState {
    Ready,
    /// The service reads its files again. `Ready` follows.
    Reloading,
    Stopping,
}

/// Tells the service manager the state, if the manager has given an address (`NOTIFY_SOCKET`, sd_notify(3)).
fn notify(state: ServiceState) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return;
    };
    let message = match state {
        ServiceState::Ready => "READY=1\n".to_owned(),
        ServiceState::Reloading => {
            let now = clock_gettime(ClockId::Monotonic);
            let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
            format!("RELOADING=1\nMONOTONIC_USEC={micros}\n")
        }
        ServiceState::Stopping => "STOPPING=1\n".to_owned(),
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, ?state, "cannot notify the service manager");
    }
}
