//! The threads that open, read and close the files of one folder.
//!
//! A file system can block a thread for ever. So each folder has separate threads, and each operation has a
//! deadline. Other folders and the rest of the process never wait for these threads.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sessile_proto::affinity::Source;
use tokio::sync::oneshot;

use super::open_files::{OpenFiles, Slot};
use super::queue::{FairQueue, Job};
use crate::locks::locked;
use crate::log_interval::LogInterval;

/// How long one operation may take, with its time in the queue.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// Most threads of a folder.
const MAX_THREADS: usize = 16;

/// How long a thread waits for more work before the thread ends.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Shortest time between two log lines about a folder.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Why an operation has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unavailable {
    #[error("the file system did not answer in time; check its mount")]
    Timeout,
    #[error("too many operations wait for the file system; check its load")]
    Overloaded,
}

/// The pools of a process by folder. A reload that keeps a folder keeps its threads, even blocked threads.
pub(super) struct Pools {
    by_folder: Mutex<HashMap<PathBuf, Weak<Shared>>>,
    pub(super) open_files: OpenFiles,
}

/// The threads of one folder. A thread that has no work for [`KEEP_ALIVE`] ends.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    folder: PathBuf,
    deadline: Duration,
    state: Mutex<State>,
    /// Wakes an idle thread.
    work: Condvar,
    log_interval: LogInterval,
}

#[derive(Default)]
struct State {
    queue: FairQueue,
    /// Files that no response needs. [`OpenFiles`] counts them until they are closed.
    unused_files: Vec<HeldFile>,
    threads: usize,
    idle: usize,
}

/// An open file of a response.
pub(super) struct HeldFile {
    pub(super) fd: OwnedFd,
    pub(super) slot: Slot,
}

impl Pools {
    /// `max_open_files`: how many files the responses of all folders may have open.
    pub(super) fn new(max_open_files: usize) -> Self {
        Self {
            by_folder: Mutex::default(),
            open_files: OpenFiles::new(max_open_files),
        }
    }

    /// The pool of a folder.
    pub(super) fn of(&self, folder: &Path) -> Pool {
        let mut pools = locked(&self.by_folder);
        if let Some(shared) = pools.get(folder).and_then(Weak::upgrade) {
            return Pool(shared);
        }
        pools.retain(|_, pool| pool.strong_count() > 0);
        let pool = Pool::new(folder, DEADLINE);
        pools.insert(folder.to_owned(), Arc::downgrade(&pool.0));
        pool
    }
}

impl Pool {
    /// `deadline`: how long one operation may take, with its time in the queue.
    fn new(folder: &Path, deadline: Duration) -> Self {
        Self(Arc::new(Shared {
            folder: folder.to_owned(),
            deadline,
            state: Mutex::default(),
            work: Condvar::new(),
            log_interval: LogInterval::new(LOG_INTERVAL),
        }))
    }

    /// Runs an operation that can block, and waits for the result.
    ///
    /// If a thread has begun an operation, it finishes the operation even after the caller has given up.
    ///
    /// # Errors
    /// There is no result before the deadline, or the operation found no place in the queue.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        source: Source,
        operation: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let (sender, result) = oneshot::channel();
        let caller = Arc::new(());
        let job = Job {
            caller: Arc::downgrade(&caller),
            operation: Box::new(move || drop(sender.send(operation()))),
        };
        self.submit(source, job);
        match tokio::time::timeout(self.0.deadline, result).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Unavailable::Overloaded),
            Err(_) => Err(Unavailable::Timeout),
        }
    }

    /// Closes a file on a thread of the pool, because closing can block, too.
    pub(super) fn close(&self, file: HeldFile) {
        let mut state = locked(&self.0.state);
        state.unused_files.push(file);
        self.wake(state);
    }

    /// Logs a failure, at most once in [`LOG_INTERVAL`].
    pub(super) fn log(&self, path: &Path, error: &dyn std::error::Error) {
        if self.0.log_interval.is_due() {
            let folder = self.0.folder.display();
            let file = path.display();
            tracing::warn!(%folder, ?file, %error, "a file cannot be served");
        }
    }

    /// Queues a job. A job without a place is dropped, and its caller gets [`Unavailable::Overloaded`].
    fn submit(&self, source: Source, job: Job) {
        let mut state = locked(&self.0.state);
        let displaced = state.queue.push(source, job);
        self.wake(state);
        drop(displaced);
    }

    /// Wakes or starts a thread for new work.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let mut lost = State::default();
        if state.work() > state.idle && state.threads < MAX_THREADS {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new()
                .name("files".into())
                .spawn(move || shared.run());
            match thread {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    tracing::warn!(%error, "cannot start a thread for files");
                    lost = std::mem::take(&mut *state);
                }
                // The threads that run already do the work later.
                Err(_) => {}
            }
        }
        drop(state);
        drop(lost);
        self.0.work.notify_one();
    }
}

impl Shared {
    /// Does the work of the folder until no new work comes for [`KEEP_ALIVE`].
    fn run(&self) {
        let running = Running(self);
        let mut state = locked(&self.state);
        loop {
            if let Some(file) = state.unused_files.pop() {
                drop(state);
                drop(file);
                state = locked(&self.state);
            } else if let Some(job) = state.queue.pop() {
                drop(state);
                job.run();
                state = locked(&self.state);
            } else {
                state.idle += 1;
                let waited = self.work.wait_timeout(state, KEEP_ALIVE);
                let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = woken;
                state.idle -= 1;
                if timeout.timed_out() && state.work() == 0 {
                    // New work must not count on a thread that ends. So the lock is not given back before.
                    state.threads -= 1;
                    std::mem::forget(running);
                    return;
                }
            }
        }
    }
}

/// Counts a thread until it ends by a panic.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        locked(&self.0.state).threads -= 1;
    }
}

impl State {
    fn work(&self) -> usize {
        self.queue.len() + self.unused_files.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::request_task::RequestEnd;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::mpsc;

    fn source(number: u8) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::new(192, 0, number, 1)))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().expect("a runtime");
        runtime.block_on(future)
    }

    #[test]
    fn a_blocked_folder_leaves_the_others_alone_and_recovers() {
        let blocked = Pool::new(Path::new("/blocked"), Duration::from_millis(10));
        let other = Pool::new(Path::new("/other"), DEADLINE);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        block_on(async {
            for _ in 0..2 * MAX_THREADS {
                let gate = Arc::clone(&gate);
                let operation = move || locked(&gate).recv();
                let outcome = blocked.run(source(1), operation).await;
                assert_eq!(outcome, Err(Unavailable::Timeout));
            }
            assert_eq!(locked(&blocked.0.state).threads, MAX_THREADS);
            assert_eq!(other.run(source(1), || 1).await, Ok(1));
            drop(release);
            while blocked.run(source(1), || 2).await != Ok(2) {}
        });
    }

    #[test]
    fn a_file_whose_reader_has_gone_is_closed() {
        /// A handle like the handle in the content of a response.
        struct Handle(Pool, Option<HeldFile>);

        impl Drop for Handle {
            fn drop(&mut self) {
                self.0.close(self.1.take().expect("dropped once"));
            }
        }

        let pools = Pools::new(2);
        let pool = pools.of(Path::new("/"));
        let slot = pools
            .open_files
            .take(source(1), RequestEnd::default())
            .expect("a slot");
        let fd = std::fs::File::open("/dev/null").expect("a file").into();
        let handle = Handle(pool.clone(), Some(HeldFile { fd, slot }));
        // The caller of this job has gone.
        let job = Job {
            caller: Weak::new(),
            operation: Box::new(move || drop(handle)),
        };
        pool.submit(source(1), job);
        let outcome = block_on(pool.run(source(1), || 1));
        assert_eq!(outcome, Ok(1));
    }

    #[test]
    fn a_reload_keeps_the_threads_of_a_blocked_folder() {
        let pools = Pools::new(1);
        let folder = Path::new("/blocked");
        let (release, gate) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let operation = move || {
            begun.send(()).expect("a receiver");
            let _ = gate.recv();
        };
        let before = pools.of(folder);
        let caller = Arc::new(());
        let job = Job {
            caller: Arc::downgrade(&caller),
            operation: Box::new(operation),
        };
        before.submit(source(1), job);
        has_begun.recv().expect("a thread");
        drop(before);
        let after = pools.of(folder);
        assert_eq!(locked(&after.0.state).threads, 1);
        drop(release);
    }
}
