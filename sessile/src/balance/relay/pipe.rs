//! Pipes that move bytes between two sockets without a copy in this process (splice(2)).
//!
//! Each worker keeps some empty pipes. A pipe that still has bytes is never used for another connection.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// The size of a pipe in bytes, from measurements (docs/benchmarks.md). The kernel may give less.
const CAPACITY: usize = 256 * 1024;

/// Most empty pipes that a worker keeps.
const MAX_SPARE: usize = 32;

/// Most pipes of a process. Each pipe has two files. Without a free pipe, connections copy their bytes.
const MAX_PIPES: usize = 512;

/// Pipes may use one in this many of the files that the process may open.
const FILE_SHARE: u64 = 16;

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK;

/// The number of open pipes, including unused pipes.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// The number of pipes that may be open.
static ALLOWED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

/// The files for pipes, if the process may open so many files.
pub(in crate::balance) fn pipe_files(files: u64) -> u64 {
    2 * (files / FILE_SHARE / 2).min(MAX_PIPES as u64)
}

/// Allows the pipes for which [`pipe_files`] leaves files.
pub(in crate::balance) fn allow_pipes(files: u64) {
    let pipes = usize::try_from(pipe_files(files) / 2).unwrap_or(MAX_PIPES);
    ALLOWED.fetch_max(pipes, Ordering::Relaxed);
}

/// The number of pipes that may be open.
pub(in crate::balance) fn max_pipes() -> usize {
    ALLOWED.load(Ordering::Relaxed)
}

/// A pipe and the number of bytes in it. A dropped empty pipe is kept for the next connection.
pub(super) struct Pipe {
    /// `None` only during the drop.
    ends: Option<Ends>,
    len: usize,
}

impl Pipe {
    /// An empty pipe. `None` if all allowed pipes are in use.
    pub(super) fn take() -> Option<Self> {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Some(Self {
            ends: Some(spare.or_else(Ends::open)?),
            len: 0,
        })
    }

    /// The number of bytes in the pipe.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Moves bytes from the socket into the empty pipe. `Ok(0)` is the end of the socket.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let ends = self.ends.as_ref().expect("set until the drop");
        let moved = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, &ends.entry, None, CAPACITY, FLAGS)?)
        })?;
        self.len += moved;
        Ok(moved)
    }

    /// Moves bytes into the socket. Returns the number of bytes that are left.
    pub(super) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let ends = self.ends.as_ref().expect("set until the drop");
        let moved = to.try_io(Interest::WRITABLE, || {
            Ok(splice(&ends.exit, None, to, None, self.len, FLAGS)?)
        })?;
        self.len -= moved;
        Ok(self.len)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        if self.len > 0 {
            return;
        }
        // This fails while a thread ends. Then the pipe is closed.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MAX_SPARE {
                spare.push(ends);
            }
        });
    }
}

/// True if the system cannot splice these sockets. Other errors mean that a socket is broken.
pub(super) fn cannot_splice(error: &io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::NOSYS, Errno::PERM, Errno::OPNOTSUPP];
    Errno::from_io_error(error).is_some_and(|errno| refusals.contains(&errno))
}

struct Ends {
    exit: OwnedFd,
    entry: OwnedFd,
}

impl Ends {
    fn open() -> Option<Self> {
        if OPEN.fetch_add(1, Ordering::Relaxed) >= max_pipes() {
            OPEN.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
            Ok((exit, entry)) => {
                // If the size is above the user's limit, the kernel refuses it and keeps the smaller size.
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
