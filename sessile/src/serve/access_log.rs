//! The access log: one line for each request, and one for each connection without requests.
//!
//! A separate thread writes the lines. Lines that cannot be queued or written are dropped and counted. A second
//! thread logs the losses, because the log of the process can block too.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus::{IntCounter, Registry};

use crate::config;
use crate::log_interval::LogInterval;

/// Most lines in the queue.
const QUEUE: usize = 8192;

/// Most reports of losses in the queue.
const REPORTS: usize = 16;

/// The buffered lines are written once they have this many bytes, or once the queue is empty.
const BATCH: usize = 8192;

/// How long [`AccessLog::flush`] waits at most.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// A handle to the log. Clones write to the same target. The default writes nothing.
#[derive(Clone, Default)]
pub struct AccessLog {
    queue: Option<Queue>,
    is_brief: bool,
}

#[derive(Clone)]
struct Queue {
    orders: SyncSender<Order>,
    losses: Losses,
    /// True until the thread has opened the file again.
    is_moved: Arc<AtomicBool>,
}

enum Order {
    Line(String),
    /// Look at [`Queue::is_moved`].
    Wake,
    /// Send a message after all lines before are written.
    Flush(SyncSender<()>),
}

/// The access log cannot be opened, or its threads cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("access log {file}: {source}", file = .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot start a thread of the access log: {0}")]
    Thread(io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl AccessLog {
    /// Opens the log, starts its threads and registers the count of dropped lines.
    ///
    /// # Errors
    /// The file cannot be opened, a thread cannot start, or the registry has an access log.
    pub fn open(target: &config::AccessLog, registry: &Registry) -> Result<Self, LogError> {
        let dropped = IntCounter::new(
            "sessile_access_log_dropped_total",
            "Lines of the access log that were lost: the file refused them, or was too slow.",
        )?;
        registry.register(Box::new(dropped.clone()))?;
        let target = match target {
            config::AccessLog::Off => return Ok(Self::default()),
            config::AccessLog::Stdout => Target(None),
            config::AccessLog::File(path) => Target(Some(path.clone())),
        };
        let sink = Sink::open(&target).map_err(|source| LogError::Open {
            path: target.name().into(),
            source,
        })?;
        let (orders, queue) = sync_channel(QUEUE);
        let (reports, reported) = sync_channel(REPORTS);
        let losses = Losses { dropped, reports };
        let is_moved = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            sink,
            losses: losses.clone(),
            seen: 0,
            is_moved: Arc::clone(&is_moved),
            target: target.clone(),
        };
        let dropped = losses.dropped.clone();
        start_thread("access-log-loss", move || {
            report(&reported, &dropped, &target);
        })?;
        start_thread("access-log", move || writer.run(&queue))?;
        let queue = Queue {
            orders,
            losses,
            is_moved,
        };
        Ok(Self {
            queue: Some(queue),
            is_brief: false,
        })
    }

    /// The same log with brief lines, for people at a terminal.
    #[must_use]
    pub fn brief(self) -> Self {
        Self {
            is_brief: true,
            ..self
        }
    }

    pub(super) const fn is_brief(&self) -> bool {
        self.is_brief
    }

    /// True if the log is enabled.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a line, given without its line end. Never waits.
    pub fn line(&self, line: String) {
        if let Some(queue) = &self.queue
            && let Err(TrySendError::Full(_)) = queue.orders.try_send(Order::Line(line))
        {
            queue.losses.record(1, Loss::QueueFull);
        }
    }

    /// Opens the file anew by its name, after log rotation moved it.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.is_moved.store(true, Ordering::Release);
            // The thread that handles signals must not wait, and a full queue wakes the writer too.
            let _ = queue.orders.try_send(Order::Wake);
        }
    }

    /// Waits for at most two seconds until the queued lines are written.
    ///
    /// Returns how many lines were dropped since the start.
    pub fn flush(&self) -> u64 {
        let Some(queue) = &self.queue else {
            return 0;
        };
        let (done, written) = sync_channel(1);
        let sent = queue.orders.try_send(Order::Flush(done)).is_ok();
        if !sent || written.recv_timeout(FLUSH_DEADLINE).is_err() {
            tracing::warn!(
                "the file of the access log is too slow: up to {QUEUE} lines at the end are lost"
            );
        }
        queue.losses.dropped.get()
    }
}

fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LogError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.map(drop).map_err(LogError::Thread)
}

/// The file of the log, or standard output.
#[derive(Clone)]
struct Target(Option<PathBuf>);

impl Target {
    fn name(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new("standard output"))
    }

    /// The file, and true if its last line has no end.
    fn open(&self) -> io::Result<(File, bool)> {
        let Some(path) = &self.0 else {
            // Unlike `Stdout`, a file has no buffer that keeps a part of a line after an error.
            let output = io::stdout().as_fd().try_clone_to_owned()?;
            return Ok((File::from(output), false));
        };
        let file = File::options().create(true).append(true).open(path)?;
        let metadata = file.metadata()?;
        let mut last = [b'\n'];
        // Opening a FIFO for reading would keep its writers from noticing that no reader is left.
        if metadata.is_file() && metadata.len() > 0 {
            // Without the permission to read, the last line is taken for whole.
            let _ = File::open(path).and_then(|file| file.read_at(&mut last, metadata.len() - 1));
        }
        Ok((file, last != *b"\n"))
    }
}

/// The thread that writes the lines.
struct Writer {
    sink: Sink<File>,
    losses: Losses,
    /// The number of dropped lines at the last report of a success.
    seen: u64,
    is_moved: Arc<AtomicBool>,
    target: Target,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let mut next = Some(first);
            while let Some(order) = next {
                if self.is_moved.swap(false, Ordering::Acquire) {
                    self.reopen();
                }
                match order {
                    Order::Line(line) => {
                        self.sink.push(&line);
                        if self.sink.is_full() {
                            self.flush();
                        }
                    }
                    Order::Wake => {}
                    Order::Flush(done) => {
                        self.flush();
                        let _ = done.send(());
                    }
                }
                next = orders.try_recv().ok();
            }
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.sink.buffer.is_empty() {
            return;
        }
        if let Err(Failed { error, lines }) = self.sink.flush() {
            self.losses.record(lines, Loss::Failed(error));
            return;
        }
        let dropped = self.losses.dropped.get();
        if dropped != self.seen && self.losses.reports.try_send(Report::Works).is_ok() {
            self.seen = dropped;
        }
    }

    fn reopen(&mut self) {
        self.flush();
        match Sink::open(&self.target) {
            Ok(sink) => {
                let old = std::mem::replace(&mut self.sink, sink);
                let lines = old.half_lines();
                if lines > 0 {
                    let error = io::Error::other("the end of its last line did not fit");
                    self.losses.record(lines, Loss::Failed(error));
                }
            }
            Err(error) => tracing::warn!(%error, "cannot reopen the access log"),
        }
    }
}

/// Lines on their way into a file. The file never has a part of a line before another line.
struct Sink<W> {
    file: W,
    /// Whole lines. If `is_in_line`, the first one lacks its beginning.
    buffer: Vec<u8>,
    /// True if the file has the beginning of the first line in the buffer.
    is_in_line: bool,
}

/// The file refused lines.
struct Failed {
    error: io::Error,
    /// The number of lines that are lost.
    lines: u64,
}

impl Sink<File> {
    fn open(target: &Target) -> io::Result<Self> {
        let (file, is_in_line) = target.open()?;
        Ok(Self {
            file,
            // The beginning is all that a former process could write.
            buffer: if is_in_line { vec![b'\n'] } else { Vec::new() },
            is_in_line,
        })
    }
}

impl<W: Write> Sink<W> {
    fn push(&mut self, line: &str) {
        self.buffer.extend_from_slice(line.as_bytes());
        self.buffer.push(b'\n');
    }

    fn is_full(&self) -> bool {
        self.buffer.len() >= BATCH
    }

    /// Writes all lines. If the file refuses some, the rest of a line that it has in part stays in the buffer.
    fn flush(&mut self) -> Result<(), Failed> {
        let mut written = 0;
        while written < self.buffer.len() {
            let error = match self.file.write(&self.buffer[written..]) {
                Ok(0) => io::Error::from(io::ErrorKind::WriteZero),
                Ok(bytes) => {
                    written += bytes;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let lines = self.drop_lines(written);
            return Err(Failed { error, lines });
        }
        self.buffer.clear();
        self.is_in_line = false;
        Ok(())
    }

    /// Drops the lines of which the file has nothing, after it took so many bytes. Returns their number.
    fn drop_lines(&mut self, written: usize) -> u64 {
        if let Some(last) = written.checked_sub(1) {
            self.is_in_line = self.buffer[last] != b'\n';
        }
        self.buffer.drain(..written);
        let kept = if self.is_in_line {
            let end = self.buffer.iter().position(|&byte| byte == b'\n');
            end.map_or(self.buffer.len(), |end| end + 1)
        } else {
            0
        };
        let lines = self.buffer[kept..].iter().filter(|&&byte| byte == b'\n');
        let lines = lines.count() as u64;
        self.buffer.truncate(kept);
        lines
    }

    /// The number of lines of which the file has a part only.
    fn half_lines(&self) -> u64 {
        u64::from(self.is_in_line)
    }
}

/// Counts dropped lines, and tells the thread that logs about them.
#[derive(Clone)]
struct Losses {
    dropped: IntCounter,
    reports: SyncSender<Report>,
}

impl Losses {
    fn record(&self, lines: u64, loss: Loss) {
        // A full queue has reports of the same kind. Report before counting: the writer reports a success once
        // the count has changed.
        let _ = self.reports.try_send(Report::Lost(loss));
        self.dropped.inc_by(lines);
    }
}

enum Report {
    Lost(Loss),
    /// Lines were written again.
    Works,
}

/// Why lines are lost.
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error(
        "the file takes lines more slowly than requests come; use a faster disk, or set log.access = \"off\""
    )]
    QueueFull,
    #[error("the file cannot be written ({0}); make space on its disk, or repair the disk")]
    Failed(io::Error),
}

/// Logs when losses begin, at most once a minute, and when they end.
fn report(reports: &Receiver<Report>, dropped: &IntCounter, target: &Target) {
    let interval = LogInterval::new(LogInterval::MINUTE);
    let file = target.name().display();
    let mut reported = 0;
    let mut is_losing = false;
    while let Ok(report) = reports.recv() {
        match report {
            Report::Lost(loss) if interval.is_due() => {
                is_losing = true;
                tracing::error!(%file, "lines of the access log are lost: {loss}");
            }
            Report::Works if is_losing => {
                is_losing = false;
                let total = dropped.get();
                let lost = total - reported;
                reported = total;
                tracing::warn!(%file, lost, "the access log is written again; these lines are lost");
            }
            Report::Lost(_) | Report::Works => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use rustix::fs::{CWD, FileType};

    fn open(path: &Path) -> AccessLog {
        AccessLog::open(&config::AccessLog::File(path.into()), &Registry::new()).unwrap()
    }

    #[test]
    fn lines_keep_their_order_and_go_to_the_new_file_after_a_reopen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = open(&path);
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
    fn a_line_that_a_former_process_could_not_end_stays_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        std::fs::write(&path, "one\nha").unwrap();
        for line in ["two", "three"] {
            let log = open(&path);
            log.line(line.into());
            assert_eq!(log.flush(), 0);
        }
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text, "one\nha\ntwo\nthree\n");
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted() {
        let log = open(Path::new("/dev/full"));
        for count in 1..=3 {
            log.line("one".into());
            assert_eq!(log.flush(), count);
        }
    }

    #[test]
    fn a_file_that_takes_no_lines_stops_no_caller_and_the_lost_lines_are_counted() {
        const LINES: usize = 3 * QUEUE;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        // Opening it for writing too does not wait for a writer.
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        let log = open(&path);
        for number in 0..LINES {
            log.line(format!("line {number:05}"));
        }
        let written = std::thread::spawn(move || {
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            lines.take_while(|line| line != "end").collect::<Vec<_>>()
        });
        // Wait for room without counting another loss.
        let orders = &log.queue.as_ref().unwrap().orders;
        orders.send(Order::Line("end".into())).unwrap();
        let written = written.join().unwrap();
        let dropped = log.flush() as usize;
        assert!(dropped > QUEUE / 2, "{dropped}");
        assert_eq!(written.len() + dropped, LINES);
        assert!(written.iter().all(|line| line.len() == "line 00000".len()));
    }

    #[test]
    fn a_full_queue_loses_no_order_to_reopen_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("1"));
        let log = open(&path);
        std::fs::rename(&path, &moved).unwrap();
        let queue = log.queue.as_ref().unwrap();
        // Nothing wakes the writer but a line.
        queue.is_moved.store(true, Ordering::Release);
        log.line("one".into());
        assert_eq!(log.flush(), 0);
        assert_eq!(std::fs::metadata(&moved).unwrap().size(), 0);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\n");
    }

    /// A disk with room for so many bytes.
    struct Disk {
        file: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.file.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        /// Each step queues some lines, and then adds some room to a disk that is often full.
        #[test]
        fn each_line_is_whole_in_the_file_or_counted(
            steps in prop::collection::vec((0..5_usize, 0..30_usize), 1..20)
        ) {
            let file = Disk { file: Vec::new(), room: 0 };
            let mut sink = Sink { file, buffer: Vec::new(), is_in_line: false };
            let (mut lines, mut lost) = (Vec::new(), 0);
            for (queued, room) in steps {
                for _ in 0..queued {
                    let line = format!("line {}", lines.len());
                    sink.push(&line);
                    lines.push(line);
                }
                sink.file.room += room;
                lost += sink.flush().err().map_or(0, |failed| failed.lines);
            }
            sink.file.room = usize::MAX;
            prop_assert!(sink.flush().is_ok());
            let text = String::from_utf8(sink.file.file).unwrap();
            prop_assert!(text.is_empty() || text.ends_with('\n'));
            let written: Vec<_> = text.lines().collect();
            prop_assert_eq!(written.len() as u64 + lost, lines.len() as u64);
            let mut all = lines.iter();
            for line in written {
                prop_assert!(all.any(|known| known == line), "{}", line);
            }
        }
    }
}
