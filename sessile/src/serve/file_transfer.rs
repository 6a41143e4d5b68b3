//! Sends a large file over HTTP/1.1 without hyper: through the kernel's TLS, or in large pieces from this process.
//!
//! hyper has no way to send a file without a copy. So the service keeps the response back, `parking` takes the
//! connection from hyper, and this module writes the head and the file. Then the connection goes on.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use super::files::FileStream;
use super::large_file::LargeFile;
use super::request_task::RequestTask;
use super::respond::Connection;
use crate::tls::{self, FileSender};

/// A longer file stays in this process, unless its connection is in the kernel already.
const MAX_KERNEL_LENGTH: u64 = 32 << 30;

/// What follows a file on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Request,
    End,
}

/// A file on its way.
pub(super) struct FileTransfer {
    content: FileStream,
    state: State,
    /// The unwritten part of the head, or of a piece of the file.
    unwritten: Bytes,
    /// Sends the file while the records are in the kernel.
    sender: Option<Arc<FileSender>>,
    is_last: bool,
    /// True if the key in the kernel cannot encrypt the whole file.
    is_too_long: bool,
    /// True while the client has nothing to take, because the file system is asked.
    waits_for_file: bool,
    /// When the last piece of the file came.
    piece_since: Instant,
    connection: Rc<Connection>,
    task: RequestTask,
}

#[derive(Clone, Copy)]
enum State {
    /// The head is written in this process. Then the records move to the kernel, if it takes them.
    Head,
    InProcess,
    Kernel,
}

impl FileTransfer {
    pub(super) fn new(
        mut file: LargeFile,
        stream: &tls::Stream,
        connection: &Rc<Connection>,
        task: &RequestTask,
    ) -> Self {
        file.is_last |= stream.is_worn_out();
        let is_too_long = !stream.has_room_for(file.content.left());
        Self {
            is_too_long,
            unwritten: file.encode_head().into(),
            sender: None,
            content: file.content,
            state: if stream.is_offloaded() {
                State::Kernel
            } else {
                State::Head
            },
            is_last: file.is_last,
            waits_for_file: false,
            piece_since: Instant::now(),
            connection: Rc::clone(connection),
            task: task.clone(),
        }
    }

    /// Ends the connection after this file.
    pub(super) const fn end_connection(&mut self) {
        self.is_last = true;
    }

    /// Ready if the socket has the whole file.
    ///
    /// # Errors
    /// The file cannot be read, or the connection has failed. The content is not complete then.
    pub(super) fn poll(
        &mut self,
        stream: &mut tls::Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Next>> {
        if self.is_too_long {
            // The client can ask again over a new connection.
            tracing::info!(
                "closed a connection, because its key in the kernel cannot encrypt the requested file"
            );
            self.task.end_response();
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        let sent = self.poll_file(stream, cx);
        if sent.is_ready() {
            self.task.end_response();
        } else {
            let active = stream.status().last_activity().max(self.piece_since);
            self.task.send((!self.waits_for_file).then_some(active));
        }
        let next = if self.is_last {
            Next::End
        } else {
            Next::Request
        };
        sent.map_ok(|()| next)
    }

    fn poll_file(
        &mut self,
        stream: &mut tls::Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.state {
                State::Head => {
                    ready!(self.poll_write(stream, cx))?;
                    // The keys can only move if all records are in the socket.
                    ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                    self.offload(stream)?;
                }
                State::InProcess => {
                    ready!(self.poll_write(stream, cx))?;
                    ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                    if self.content.left() == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    ready!(self.poll_piece(cx))?;
                }
                State::Kernel => {
                    ready!(self.poll_write(stream, cx))?;
                    if self.content.has_piece() {
                        ready!(self.poll_piece(cx))?;
                    } else if self.content.left() == 0 {
                        return Pin::new(&mut *stream).poll_flush(cx);
                    } else {
                        ready!(self.poll_send(stream, cx))?;
                    }
                }
            }
        }
    }

    /// Moves the records to the kernel, if the kernel takes them.
    fn offload(&mut self, stream: &mut tls::Stream) -> io::Result<()> {
        let metrics = &self.connection.worker.shared.metrics.large_files;
        let was_counted = self.connection.has_sent_large_file.replace(true);
        // One key of the kernel encrypts a limited number of records.
        let is_offloaded = self.content.left() <= MAX_KERNEL_LENGTH
            && stream
                .offload()
                .inspect_err(|error| metrics.count_lost(error))?;
        self.state = if is_offloaded {
            metrics.kernel.connections.inc();
            State::Kernel
        } else {
            if !was_counted {
                metrics.user_space.connections.inc();
            }
            State::InProcess
        };
        Ok(())
    }

    /// Writes the head, or the piece that was read.
    fn poll_write(
        &mut self,
        stream: &mut tls::Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            let more_follows = self.content.left() > 0;
            let written = ready!(stream.poll_write_part(cx, &self.unwritten, more_follows))?;
            self.unwritten.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the next piece of the file.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waits_for_file = true;
        let piece = ready!(self.content.poll_next(cx));
        self.waits_for_file = false;
        self.piece_since = Instant::now();
        if let Some(piece) = piece {
            self.unwritten = piece?;
            self.count(self.unwritten.len() as u64);
        }
        Poll::Ready(Ok(()))
    }

    /// Lets a thread of the folder send the next part of the file.
    fn poll_send(
        &mut self,
        stream: &mut tls::Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.content.is_sending() {
            let room = ready!(stream.poll_room(cx))?;
            let sender = match self.sender.take() {
                Some(sender) => sender,
                None => stream.file_sender()?,
            };
            self.content.begin_send(Arc::clone(&sender), room);
            self.sender = Some(sender);
        }
        self.waits_for_file = true;
        let sent = ready!(self.content.poll_sent(cx));
        self.waits_for_file = false;
        self.piece_since = Instant::now();
        let sent = sent?;
        stream.note_file(sent);
        self.count(sent.bytes);
        Poll::Ready(Ok(()))
    }

    fn count(&self, bytes: u64) {
        let metrics = &self.connection.worker.shared.metrics.large_files;
        let path = match self.state {
            State::Kernel => &metrics.kernel,
            State::Head | State::InProcess => &metrics.user_space,
        };
        path.bytes.inc_by(bytes);
    }
}
