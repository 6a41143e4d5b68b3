//! The records of a connection after its handshake: in this process, or in the kernel.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::Error;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::connection::Connection;
use super::kernel::{FileSender, KernelRecords, KernelSupport, OffloadError, Sent};

pub(super) enum RecordLayer {
    InProcess(Connection),
    Kernel(Box<KernelRecords>),
    /// The kernel did not take the keys. The connection can only be closed.
    Lost,
}

impl RecordLayer {
    /// Moves the records to the kernel, if the kernel takes them. Returns true if they are there now.
    ///
    /// # Errors
    /// The connection has lost its keys.
    pub(super) fn offload(
        &mut self,
        io: &TcpStream,
        support: &KernelSupport,
    ) -> Result<bool, OffloadError> {
        let Self::InProcess(Connection::Unbuffered(connection)) = self else {
            return Ok(matches!(self, Self::Kernel(_)));
        };
        let tls = &connection.tls;
        let (version, suite) = (tls.protocol_version(), tls.negotiated_cipher_suite());
        let is_supported = version
            .zip(suite)
            .is_some_and(|(version, suite)| support.includes(version, suite));
        if !is_supported || !connection.is_settled() {
            return Ok(false);
        }
        KernelRecords::prepare(io)?;
        if let Self::InProcess(Connection::Unbuffered(connection)) =
            std::mem::replace(self, Self::Lost)
        {
            let records = KernelRecords::take_over(io, *connection.tls, support)?;
            *self = Self::Kernel(Box::new(records));
        }
        Ok(true)
    }

    /// The records in the kernel.
    ///
    /// # Errors
    /// They are not there.
    fn kernel(&mut self) -> io::Result<&mut KernelRecords> {
        match self {
            Self::Kernel(records) => Ok(records),
            Self::InProcess(_) | Self::Lost => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// As [`KernelRecords::file_sender`].
    pub(super) fn file_sender(&mut self, io: &TcpStream) -> io::Result<Arc<FileSender>> {
        self.kernel()?.file_sender(io)
    }

    /// As [`KernelRecords::poll_room`].
    pub(super) fn poll_room(
        &mut self,
        io: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<u64>> {
        self.kernel()?.poll_room(io, cx)
    }

    /// As [`KernelRecords::is_worn_out`].
    pub(super) const fn is_worn_out(&self) -> bool {
        match self {
            Self::Kernel(records) => records.is_worn_out(),
            Self::InProcess(_) | Self::Lost => false,
        }
    }

    /// True if the records in the kernel leave room for so many bytes of a file.
    pub(super) const fn has_room_for(&self, bytes: u64) -> bool {
        match self {
            Self::Kernel(records) => records.has_room_for(bytes),
            Self::InProcess(_) | Self::Lost => true,
        }
    }

    /// Counts the bytes that a [`FileSender`] sent.
    pub(super) fn count_file(&mut self, sent: Sent) {
        if let Self::Kernel(records) = self {
            records.count_file(sent);
        }
    }

    /// True if the client sent close_notify.
    pub(super) fn has_peer_closed(&mut self) -> bool {
        match self {
            Self::InProcess(connection) => connection.has_peer_closed(),
            Self::Kernel(records) => records.has_peer_closed(),
            Self::Lost => false,
        }
    }

    /// Reads from the socket. Returns the number of bytes; 0 at the end of the stream.
    ///
    /// The reader gets as much plaintext as it has room for, or less.
    pub(super) fn poll_receive(
        &mut self,
        io: &mut TcpStream,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<(usize, Result<(), Error>)>> {
        match self {
            Self::InProcess(connection) => connection.poll_receive(io, cx, reader),
            Self::Kernel(records) => records.poll_receive(io, cx, reader),
            Self::Lost => Poll::Ready(Ok((0, Ok(())))),
        }
    }

    /// Moves early data to a reader. Early data stays readable after the client's Finished.
    pub(super) fn read_early_data(&mut self, reader: &mut ReadBuf<'_>) -> io::Result<()> {
        match self {
            Self::InProcess(connection) => connection.read_early_data(reader),
            Self::Kernel(_) | Self::Lost => Ok(()),
        }
    }

    /// True if a read returns plaintext without more input. Early data does not count.
    pub(super) fn has_plaintext(&mut self) -> bool {
        match self {
            Self::InProcess(connection) => connection.has_plaintext(),
            Self::Kernel(records) => records.has_plaintext(),
            Self::Lost => false,
        }
    }

    /// Moves decrypted plaintext to a reader.
    pub(super) fn read_plaintext(&mut self, reader: &mut ReadBuf<'_>) {
        match self {
            Self::InProcess(connection) => connection.read_plaintext(reader),
            Self::Kernel(records) => records.read_plaintext(reader),
            Self::Lost => {}
        }
    }

    pub(super) fn discard_plaintext(&mut self) {
        match self {
            Self::InProcess(connection) => connection.discard_plaintext(),
            Self::Kernel(records) => records.discard_plaintext(),
            Self::Lost => {}
        }
    }

    /// Encrypts bytes. Returns their number; 0 if too much output waits for the socket.
    pub(super) fn poll_write(
        &mut self,
        io: &mut TcpStream,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::InProcess(connection) => Poll::Ready(connection.write(bufs)),
            Self::Kernel(records) => {
                while records.has_output() {
                    ready!(records.poll_send(io, cx))?;
                }
                records.poll_write(io, cx, bufs)
            }
            Self::Lost => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// As [`KernelRecords::poll_write_more`].
    pub(super) fn poll_write_more(
        &mut self,
        io: &TcpStream,
        cx: &mut Context<'_>,
        part: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.kernel()?.poll_write_more(io, cx, part)
    }

    pub(super) fn send_close_notify(&mut self) {
        match self {
            Self::InProcess(connection) => connection.send_close_notify(),
            Self::Kernel(records) => records.send_close_notify(),
            Self::Lost => {}
        }
    }

    /// True if no more output may wait for the socket.
    pub(super) fn is_output_full(&self) -> bool {
        match self {
            Self::InProcess(connection) => connection.is_output_full(),
            Self::Kernel(_) | Self::Lost => false,
        }
    }

    /// True if ALPN selected HTTP/2. Such a connection stays in this process.
    pub(super) fn is_http2(&self) -> bool {
        match self {
            Self::InProcess(connection) => connection.alpn_protocol() == Some(b"h2"),
            Self::Kernel(_) | Self::Lost => false,
        }
    }

    /// True if the client sends bytes that the kernel cannot decrypt.
    pub(super) const fn is_deaf(&self) -> bool {
        match self {
            Self::Kernel(records) => records.is_deaf(),
            Self::InProcess(_) | Self::Lost => false,
        }
    }

    /// True if output waits for the socket.
    pub(super) fn has_output(&self) -> bool {
        match self {
            Self::InProcess(connection) => connection.has_output(),
            Self::Kernel(records) => records.has_output(),
            Self::Lost => false,
        }
    }

    /// Sends a part of the output. `is_last`: a shutdown follows at once, and sends the last segment.
    pub(super) fn poll_send(
        &mut self,
        io: &mut TcpStream,
        cx: &mut Context<'_>,
        is_last: bool,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::InProcess(connection) => connection.poll_send(io, cx, is_last),
            Self::Kernel(records) => records.poll_send(io, cx),
            Self::Lost => Poll::Ready(Ok(())),
        }
    }
}
