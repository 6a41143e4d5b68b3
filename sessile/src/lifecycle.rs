//! From start to drain: worker threads with a runtime each, signals, and the order to stop.

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::systemd::{self, State};

/// How long a client that has connected may still take to say what it wants once the order to stop has
/// come: as long as it takes to send a lost segment again, and to get it there.
pub const LAST_CALL: Duration = Duration::from_secs(2);

/// Threads of a role, each with a runtime of its own.
#[derive(Default)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

/// Most threads of a worker that wait for files.
const MAX_BLOCKING: usize = 16;

impl Workers {
    /// Starts a thread that runs `body` to its end; nothing in it has to be `Send`.
    ///
    /// # Errors
    /// Where the system gives no thread, or no runtime for it.
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
            // A local runtime belongs to the thread that builds it. In it, a socket that becomes
            // ready puts its task into the queue; a LocalSet would be woken for it through a
            // file descriptor, three times a connection.
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(MAX_BLOCKING)
                .build_local(LocalOptions::default());
            let (runtime, built) = match runtime {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _ = started.send(built);
            let Some(runtime) = runtime else { return };
            runtime.spawn_local(tick());
            // As a task of its own for the same reason: what `block_on` waits for is woken that way.
            let body = runtime.spawn_local(async move { body().await });
            let ended = runtime.block_on(body);
            // A thread that reads a file which never comes must not hold up the end.
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

/// A timer that is always due before any other is set: one that would be the first to fire wakes the
/// runtime, its own thread, through a file descriptor. Two system calls for each connection are worth
/// one wake-up a second.
async fn tick() {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits for the connections of a worker to end, once the order to stop has come, for as long as
/// `connection.drain-timeout` allows.
pub async fn finish(connections: &TaskTracker, drain_timeout: Duration) {
    connections.close();
    if tokio::time::timeout(drain_timeout, connections.wait())
        .await
        .is_err()
    {
        let left = connections.len();
        tracing::warn!(left, "connections cut at the end of the drain");
    }
}

/// Worker threads for a listener: as configured, or one for each core.
#[must_use]
pub fn worker_count(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// File descriptors that are left for everything but connections.
const SPARE_FILES: u64 = 64;

/// Files that the process may open. Raises the soft limit to the hard one.
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

/// Most connections at once: as configured, or as many as there are files for, at `sockets` for
/// each.
#[must_use]
pub fn connection_limit(configured: usize, files: u64, sockets: u64) -> usize {
    let possible = files.saturating_sub(SPARE_FILES) / sockets;
    let possible = usize::try_from(possible).unwrap_or(usize::MAX).max(1);
    match configured {
        0 => possible,
        wanted => wanted.min(possible),
    }
}

/// What a role does when it is told to by a signal, beside stopping.
#[derive(Default)]
pub struct Orders<'a> {
    /// SIGUSR1: log files were moved away.
    pub reopen_logs: Option<Box<dyn FnMut() + 'a>>,
    /// SIGHUP: files were changed. Left alone where there is nothing to reload: a terminal that
    /// hangs up ends the process then, unless `nohup` says otherwise.
    pub reload: Option<Box<dyn FnMut() + 'a>>,
}

/// Waits for a signal that may not be watched: then for ever.
async fn received(signal: Option<&mut Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits for SIGINT or SIGTERM, obeying other signals meanwhile. A second one ends the process at
/// once.
///
/// # Errors
/// Where signals cannot be watched.
pub fn wait_for_signal(mut orders: Orders<'_>) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let asked: io::Result<&str> = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = match orders.reload {
            Some(_) => Some(signal(SignalKind::hangup())?),
            None => None,
        };
        let mut reopen = signal(SignalKind::user_defined1())?;
        systemd::notify(State::Ready);
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok("SIGINT"),
                _ = terminate.recv() => return Ok("SIGTERM"),
                Some(()) = received(hangup.as_mut()) => {
                    systemd::notify(State::Reloading);
                    orders.reload.iter_mut().for_each(|reload| reload());
                    systemd::notify(State::Ready);
                }
                _ = reopen.recv() => orders.reopen_logs.iter_mut().for_each(|reopen| reopen()),
            }
        }
    });
    let asked = asked?;
    systemd::notify(State::Stopping);
    tracing::info!(signal = asked, "draining; a second signal ends it at once");
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) = (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
            ) else {
                return;
            };
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            std::process::exit(130);
        });
    });
    Ok(())
}
