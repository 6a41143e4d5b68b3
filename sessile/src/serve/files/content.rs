//! The content of files: in memory, or read piece by piece while the response is sent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use sessile_proto::affinity::Source;

use super::open_files::OpenFiles;
use super::page_cache;
use super::pool::{HeldFile, Pool, Unavailable};
use super::resolve::{self, Identity};
use super::validators::ModificationTime;
use crate::serve::metrics::FileMetrics;
use crate::serve::request_task::RequestEnd;
use crate::tls::{FileSender, Sent};

/// Why a file cannot be opened or read now.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the file became shorter while it was sent")]
    Truncated,
    #[error("too many files are open for responses; raise the limit on open files")]
    TooManyOpen,
    #[error(
        "another client needs the open file, and this one has more of them; raise the limit on open files"
    )]
    Displaced,
}

/// The state of a file when it was opened.
pub(super) struct Opened {
    pub(super) length: u64,
    pub(super) modified: ModificationTime,
    /// The bytes that were read already: all bytes of a small file, otherwise at most the first piece.
    pub(super) start: Bytes,
    /// `None` if `start` has all bytes, or the request needs no content.
    pub(super) file: Option<OpenFile>,
}

/// The parts of a file that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The length and the modification time.
    Metadata,
    /// The open file, or all of a small file. Headers decide later which bytes of it are sent.
    File,
    /// The whole content. The first piece is read at once.
    Content,
}

/// The threads, limits and counters for the file of a request.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) pool: Pool,
    pub(super) open_files: OpenFiles,
    pub(super) metrics: Arc<FileMetrics>,
    pub(super) source: Source,
    /// Ends the request if another source needs its open file.
    pub(super) end: RequestEnd,
    /// Most bytes that are read at once.
    pub(super) piece: usize,
}

impl Access {
    /// Makes an [`Opened`] from an open file. This can block.
    ///
    /// # Errors
    /// The file system cannot read the file, or too many files are open.
    pub(super) fn prepare(
        self,
        path: PathBuf,
        file: resolve::RegularFile,
        wanted: Wanted,
    ) -> Result<Opened, FileError> {
        let resolve::RegularFile { fd, identity } = file;
        let Identity {
            length, modified, ..
        } = identity;
        let is_small = length <= self.piece as u64;
        let mut start = Vec::new();
        if wanted == Wanted::Content || (wanted == Wanted::File && is_small) {
            start = resolve::read(fd.as_fd(), 0, self.piece_of(length))?;
        }
        let is_complete = wanted == Wanted::Metadata || start.len() as u64 == length;
        if wanted == Wanted::File && !is_complete {
            start.clear();
        }
        let file = if is_complete {
            None
        } else {
            Some(OpenFile::new(fd, path, self)?)
        };
        Ok(Opened {
            length,
            modified,
            start: start.into(),
            file,
        })
    }

    /// The length of the next piece if `left` bytes are missing.
    fn piece_of(&self, left: u64) -> usize {
        usize::try_from(left).map_or(self.piece, |left| left.min(self.piece))
    }
}

/// An open file. A thread of the pool closes the file, because closing can block.
pub(super) struct OpenFile {
    /// Present until the file is dropped.
    held: Option<HeldFile>,
    path: PathBuf,
    access: Access,
}

impl OpenFile {
    fn new(fd: OwnedFd, path: PathBuf, access: Access) -> Result<Self, FileError> {
        let end = access.end.clone();
        let slot = access.open_files.take(access.source, end);
        let slot = slot.ok_or(FileError::TooManyOpen)?;
        Ok(Self {
            held: Some(HeldFile { fd, slot }),
            path,
            access,
        })
    }

    fn held(&self) -> &HeldFile {
        self.held.as_ref().expect("it is not dropped yet")
    }

    /// Sends a part of the file to a connection whose records are in the kernel.
    async fn send(
        self: Arc<Self>,
        sender: Arc<FileSender>,
        offset: u64,
        count: u64,
    ) -> Result<io::Result<Sent>, FileError> {
        let (pool, source) = (self.access.pool.clone(), self.access.source);
        let send = move || sender.send(self.held().fd.as_fd(), offset, count);
        match pool.run(source, send).await? {
            Ok(Sent {
                bytes: 0,
                is_blocked: false,
            }) => Err(FileError::Truncated),
            Err(error) if !is_of_connection(&error) => Err(error.into()),
            sent => Ok(sent),
        }
    }

    async fn read(self: Arc<Self>, offset: u64, length: usize) -> Result<Bytes, FileError> {
        let (pool, source) = (self.access.pool.clone(), self.access.source);
        let read = move || resolve::read(self.held().fd.as_fd(), offset, length);
        let piece = pool.run(source, read).await??;
        if piece.is_empty() {
            Err(FileError::Truncated)
        } else {
            Ok(piece.into())
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.slot.end_download();
            self.access.pool.close(held);
        }
    }
}

/// The body of a response.
pub(in crate::serve) enum Content {
    InMemory(Bytes),
    Stream(FileStream),
}

impl Content {
    pub(super) const EMPTY: Self = Self::InMemory(Bytes::new());

    /// The part of an opened file that begins at `first` and has `length` bytes.
    pub(super) fn part(opened: Opened, first: u64, length: u64) -> Self {
        match opened.file {
            Some(file) => Self::Stream(FileStream {
                file: Arc::new(file),
                // `start` has bytes only if the whole file is sent.
                start: opened.start,
                offset: first,
                end: first + length,
                reading: None,
                sending: None,
            }),
            // `start` has all bytes, unless the request needs no content.
            None => Self::InMemory(slice(&opened.start, first, length)),
        }
    }
}

/// The part of `bytes` that begins at `first`. It is shorter than `length` if `bytes` ends before.
fn slice(bytes: &Bytes, first: u64, length: u64) -> Bytes {
    let within = |at: u64| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
    bytes.slice(within(first)..within(first.saturating_add(length)))
}

/// True for an error of the socket. Other errors are of the file.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

type Sending = Pin<Box<dyn Future<Output = Result<io::Result<Sent>, FileError>> + Send>>;

type Reading = Pin<Box<dyn Future<Output = Result<Bytes, FileError>> + Send>>;

/// The content of a file, which is read while the response is sent.
///
/// All bytes come from the file that was opened, even if another file has the name now. If the file became
/// shorter, the response ends with an error. Otherwise, the client would take the response for complete.
pub(in crate::serve) struct FileStream {
    file: Arc<OpenFile>,
    /// Bytes at `offset` that were read already.
    start: Bytes,
    offset: u64,
    end: u64,
    reading: Option<Reading>,
    sending: Option<Sending>,
}

impl FileStream {
    /// The number of bytes that are left.
    pub(in crate::serve) const fn left(&self) -> u64 {
        self.end - self.offset
    }

    /// True if the next piece is in memory, or is being read.
    pub(in crate::serve) const fn has_piece(&self) -> bool {
        !self.start.is_empty() || self.reading.is_some()
    }

    /// Reads the next piece. `None` after the last piece.
    pub(in crate::serve) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Bytes>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let piece = ready!(self.poll_piece(cx));
        let sent = piece.and_then(|piece| self.advance(piece.len() as u64).map(|()| piece));
        Poll::Ready(Some(sent.map_err(|error| self.cut(error))))
    }

    /// Begins to send at most `room` bytes to a connection whose records are in the kernel.
    pub(in crate::serve) fn begin_send(&mut self, sender: Arc<FileSender>, room: u64) {
        let file = Arc::clone(&self.file);
        let count = self.left().min(room);
        self.sending = Some(Box::pin(file.send(sender, self.offset, count)));
    }

    /// True after [`Self::begin_send`], until there is a result.
    pub(in crate::serve) const fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// The result of [`Self::begin_send`].
    ///
    /// # Errors
    /// The file cannot be read, or the connection has failed.
    pub(in crate::serve) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Sent>> {
        let Some(sending) = &mut self.sending else {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        };
        let sent = ready!(sending.as_mut().poll(cx));
        self.sending = None;
        Poll::Ready(match sent {
            Ok(Ok(sent)) => match self.advance(sent.bytes) {
                Ok(()) => Ok(sent),
                Err(error) => Err(self.cut(error)),
            },
            Ok(Err(connection)) => Err(connection),
            Err(error) => Err(self.cut(error)),
        })
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, FileError>> {
        if !self.start.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.start)));
        }
        let length = self.file.access.piece_of(self.end - self.offset);
        if self.reading.is_none()
            && let Some(piece) = page_cache::read(self.file.held().fd.as_fd(), self.offset, length)
        {
            return Poll::Ready(Ok(piece));
        }
        let reading = self
            .reading
            .get_or_insert_with(|| Box::pin(Arc::clone(&self.file).read(self.offset, length)));
        let piece = ready!(reading.as_mut().poll(cx));
        self.reading = None;
        Poll::Ready(piece)
    }

    /// Counts a piece as sent. After the last piece, the file is not needed.
    fn advance(&mut self, len: u64) -> Result<(), FileError> {
        let slot = &self.file.held().slot;
        let offset = self.offset + len;
        let may_go_on = if offset == self.end {
            slot.end_download()
        } else {
            !slot.is_displaced()
        };
        if !may_go_on {
            return Err(FileError::Displaced);
        }
        self.offset = offset;
        Ok(())
    }

    /// Counts and logs why the response ends early.
    fn cut(&mut self, error: FileError) -> io::Error {
        self.end = self.offset;
        let OpenFile { access, path, .. } = &*self.file;
        // A displaced response is counted when it is dropped.
        if !matches!(error, FileError::Displaced) {
            access.metrics.cut.inc();
            access.pool.log(path, &error);
        }
        io::Error::other(error)
    }
}

impl Drop for FileStream {
    fn drop(&mut self) {
        // A read of the file system can go on, so the file may be dropped much later.
        if !self.file.held().slot.end_download() {
            let OpenFile { access, path, .. } = &*self.file;
            access.metrics.displaced.inc();
            access.pool.log(path, &FileError::Displaced);
        }
    }
}

impl Body for FileStream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.poll_next(cx)
            .map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::files::pool::Pools;
    use prometheus::IntCounter;
    use std::io::Write;
    use std::net::{IpAddr, Ipv4Addr};
    use std::path::Path;

    fn access(piece: usize) -> Access {
        let counter = || IntCounter::new("name", "help").expect("a counter");
        let pools = Pools::new(0);
        Access {
            pool: pools.of(Path::new("/")),
            open_files: pools.open_files,
            metrics: Arc::new(FileMetrics {
                from_memory: counter(),
                timeout: counter(),
                overloaded: counter(),
                error: counter(),
                cut: counter(),
                displaced: counter(),
            }),
            source: Source::of(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            end: RequestEnd::default(),
            piece,
        }
    }

    #[test]
    fn a_small_file_needs_no_place_among_the_open_files() {
        for wanted in [Wanted::Metadata, Wanted::File, Wanted::Content] {
            for (piece, is_refused) in [(5, false), (4, wanted != Wanted::Metadata)] {
                let mut file = tempfile::tempfile().expect("a file");
                file.write_all(b"small").expect("space");
                let file = resolve::RegularFile {
                    identity: resolve::identity(file.as_fd()).expect("an answer"),
                    fd: file.into(),
                };
                let opened = access(piece).prepare(PathBuf::new(), file, wanted);
                let refused = matches!(opened, Err(FileError::TooManyOpen));
                assert_eq!(refused, is_refused, "{wanted:?}, pieces of {piece}");
            }
        }
    }
}
