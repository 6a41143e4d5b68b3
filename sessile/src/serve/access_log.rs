//! The access log: one line for each request, and one for each connection without requests.
//!
//! A separate thread writes the lines. If the queue is full, further lines are dropped and counted.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::config;

/// Most lines in the queue.
const QUEUE: usize = 8192;

/// How long [`AccessLog::flush`] waits at most.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// Most bytes of one quoted field in a line.
const MAX_QUOTED: usize = 2048;

/// A handle to the log. Clones write to the same target.
#[derive(Clone, Default)]
pub struct AccessLog {
    lines: Option<SyncSender<Order>>,
    dropped: Arc<AtomicU64>,
}

enum Order {
    Line(String),
    /// Open the file again by its name, because log rotation moved it.
    Reopen,
    /// Send a message after all earlier lines are written.
    Flush(SyncSender<()>),
}

/// The access log cannot be opened, or its thread cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("access log {file}: {source}", file = .path.display())]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

impl AccessLog {
    /// Opens the log and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or the thread cannot be started.
    pub fn open(target: &config::AccessLog) -> Result<Self, LogError> {
        let path = match target {
            config::AccessLog::Off => return Ok(Self::default()),
            config::AccessLog::Stdout => None,
            config::AccessLog::File(path) => Some(path.clone()),
        };
        let open_error = |path: &Path, source| LogError {
            path: path.into(),
            source,
        };
        let sink = open(path.as_deref())
            .map_err(|source| open_error(path.as_deref().unwrap_or(Path::new("-")), source))?;
        let (sender, receiver) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&receiver, sink, path.as_deref()))
            .map_err(|source| open_error(Path::new("-"), source))?;
        Ok(Self {
            lines: Some(sender),
            dropped: Arc::default(),
        })
    }

    /// True if the log is enabled.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Queues a line. `line` has no line break at its end.
    pub fn line(&self, line: String) {
        if let Some(lines) = &self.lines
            && let Err(TrySendError::Full(_)) = lines.try_send(Order::Line(line))
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file anew by its name, after log rotation moved it.
    pub fn reopen(&self) {
        if let Some(lines) = &self.lines {
            // Do not wait for a full queue: the thread that handles signals calls this.
            let _ = lines.try_send(Order::Reopen);
        }
    }

    /// Waits for at most two seconds until the queued lines are written.
    ///
    /// Returns how many lines were dropped since the start.
    pub fn flush(&self) -> u64 {
        if let Some(lines) = &self.lines {
            let (done, written) = sync_channel(1);
            if lines.try_send(Order::Flush(done)).is_ok() {
                let _ = written.recv_timeout(FLUSH_DEADLINE);
            }
        }
        self.dropped.load(Ordering::Relaxed)
    }
}

fn open(path: Option<&Path>) -> io::Result<Box<dyn Write + Send>> {
    Ok(match path {
        Some(path) => Box::new(File::options().create(true).append(true).open(path)?),
        None => Box::new(io::stdout()),
    })
}

fn write(orders: &Receiver<Order>, sink: Box<dyn Write + Send>, path: Option<&Path>) {
    let mut sink = BufWriter::new(sink);
    while let Ok(first) = orders.recv() {
        // Write errors are ignored: after a full disk, the log continues.
        let mut next = Some(first);
        while let Some(order) = next {
            match order {
                Order::Line(line) => {
                    let _ = writeln!(sink, "{line}");
                }
                Order::Reopen => {
                    let _ = sink.flush();
                    match open(path) {
                        Ok(reopened) => sink = BufWriter::new(reopened),
                        Err(error) => tracing::warn!(%error, "cannot reopen the access log"),
                    }
                }
                Order::Flush(done) => {
                    let _ = sink.flush();
                    let _ = done.send(());
                }
            }
            next = orders.try_recv().ok();
        }
        let _ = sink.flush();
    }
}

/// Escapes text from a client for double quotes, and cuts long text.
pub(super) fn quoted(text: &str) -> std::str::EscapeDebug<'_> {
    text[..text.floor_char_boundary(MAX_QUOTED)].escape_debug()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_order_and_go_to_the_new_file_after_a_reopen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = AccessLog::open(&config::AccessLog::File(path.clone())).unwrap();
        log.line("one".into());
        log.line("two".into());
        log.flush();
        let moved = folder.path().join("access.log.1");
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.line("three".into());
        assert_eq!(log.flush(), 0);
        assert_eq!(std::fs::read_to_string(moved).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "three\n");
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let text = quoted("/\" 200\nevil").to_string();
        assert_eq!(text, "/\\\" 200\\nevil");
    }
}
