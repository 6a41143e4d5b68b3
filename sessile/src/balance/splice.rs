//! Pipes by which bytes go from one socket to another without a copy in this process. Each worker
//! keeps a few that are empty; one that still holds bytes is never used for another connection.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes that a pipe takes: measured, see docs/benchmarks.md. The kernel may give less.
pub(super) const CAPACITY: usize = 256 * 1024;

/// Empty pipes that a worker keeps.
const SPARE: usize = 32;

/// Most pipes of a process, of two files each; connections that find none copy their bytes.
const MAX_PIPES: usize = 512;

/// The part of a process's files that may be pipes: one in this many.
const SHARE: u64 = 16;

/// Pipes that are open, those that are spare included.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// As many as may be open.
static ALLOWED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static EMPTY: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

/// Sets files aside for pipes, of as many as the process may open; returns how many.
pub(super) fn reserve(files: u64) -> u64 {
    let pipes = usize::try_from(files / SHARE / 2).map_or(MAX_PIPES, |pipes| pipes.min(MAX_PIPES));
    ALLOWED.fetch_max(pipes, Ordering::Relaxed);
    2 * pipes as u64
}

/// As many pipes as may be open.
pub(super) fn allowed() -> usize {
    ALLOWED.load(Ordering::Relaxed)
}

/// A pipe, and how many bytes are in it. When it is dropped empty it serves again.
pub(super) struct Pipe {
    /// Taken when it is dropped.
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// An empty pipe, if there may be one more.
    pub(super) fn take() -> Option<Self> {
        let spare = EMPTY.with_borrow_mut(Vec::pop);
        Some(Self {
            ends: Some(spare.or_else(Ends::open)?),
            held: 0,
        })
    }

    /// Bytes that are in it.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Moves what the socket has into the empty pipe. `Ok(0)`: the end.
    pub(super) fn fill(&mut self, from: &TcpStream) -> std::io::Result<usize> {
        let ends = self.ends.as_ref().expect("it is there until the drop");
        let moved = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, &ends.entry, None, CAPACITY, FLAGS)?)
        })?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves bytes on to the socket, as many as it takes; returns how many are left.
    pub(super) fn drain(&mut self, to: &TcpStream) -> std::io::Result<usize> {
        let ends = self.ends.as_ref().expect("it is there until the drop");
        let moved = to.try_io(Interest::WRITABLE, || {
            Ok(splice(&ends.exit, None, to, None, self.held, FLAGS)?)
        })?;
        self.held -= moved;
        Ok(self.held)
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK;

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        if self.held > 0 {
            return;
        }
        // At the end of a thread there is nobody to keep it for.
        let _ = EMPTY.try_with(|empty| {
            let mut empty = empty.borrow_mut();
            if empty.len() < SPARE {
                empty.push(ends);
            }
        });
    }
}

/// Whether the error says that these sockets cannot be spliced, and not that one is broken.
pub(super) fn is_refused(error: &std::io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::NOSYS, Errno::PERM, Errno::OPNOTSUPP];
    Errno::from_io_error(error).is_some_and(|errno| refusals.contains(&errno))
}

struct Ends {
    exit: OwnedFd,
    entry: OwnedFd,
}

impl Ends {
    fn open() -> Option<Self> {
        if OPEN.fetch_add(1, Ordering::Relaxed) >= allowed() {
            OPEN.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
            Ok((exit, entry)) => {
                // Beyond a limit of the user's the kernel leaves it at less.
                let _ = fcntl_setpipe_size(&entry, CAPACITY);
                Some(Self { exit, entry })
            }
            Err(_) => {
                OPEN.fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}
