//! A connection of rustls and its input and output, for handshakes and for the stream after them.
//!
//! rustls accepts early data only on connections with its own buffers, which it keeps for the whole
//! connection. All other connections use the buffers of the thread.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::{CommonState, Error, ServerConnection};
use tokio::io::{AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::io::{Blocking, pending_if_blocked, poll_send_more};
use super::unbuffered::{MAX_FRAGMENT, MAX_RECORD, Unbuffered};

/// Most bytes of output that wait while the socket is blocked: four full records.
pub(super) const MAX_OUTPUT: usize = 4 * MAX_RECORD;

pub(super) enum Connection {
    Unbuffered(Unbuffered),
    /// A connection that can have early data.
    Buffered(Box<ServerConnection>),
}

impl Deref for Connection {
    type Target = CommonState;

    fn deref(&self) -> &CommonState {
        match self {
            Self::Unbuffered(connection) => &connection.tls,
            Self::Buffered(tls) => tls,
        }
    }
}

impl Connection {
    /// True if rustls accepts early data of this connection.
    pub(super) fn has_early_data(&mut self) -> bool {
        match self {
            Self::Unbuffered(_) => false,
            Self::Buffered(tls) => tls.early_data().is_some(),
        }
    }

    /// True if the client sent close_notify. Processes what rustls holds.
    pub(super) fn has_peer_closed(&mut self) -> bool {
        match self {
            Self::Unbuffered(connection) => connection.has_peer_closed(),
            Self::Buffered(tls) => tls
                .process_new_packets()
                .is_ok_and(|state| state.peer_has_closed()),
        }
    }

    /// Passes received bytes to rustls. Leaves the bytes for which there is no room.
    ///
    /// # Errors
    /// The outer error: a message is longer than rustls accepts. The inner error is one of rustls, whose
    /// alert is in the output.
    pub(super) fn receive(&mut self, bytes: &mut &[u8]) -> io::Result<Result<(), Error>> {
        match self {
            Self::Unbuffered(connection) => connection.receive(bytes),
            Self::Buffered(tls) => {
                tls.read_tls(bytes)?;
                Ok(tls.process_new_packets().map(drop))
            }
        }
    }

    /// Reads from the socket, and lets rustls process the bytes. Returns their number; 0 at the end of the
    /// stream.
    ///
    /// The reader gets as much plaintext as it has room for, or less.
    pub(super) fn poll_receive(
        &mut self,
        io: &mut TcpStream,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<(usize, Result<(), Error>)>> {
        match self {
            Self::Unbuffered(connection) => connection.poll_receive(io, cx, reader),
            Self::Buffered(tls) => {
                let read = ready!(pending_if_blocked(tls.read_tls(&mut Blocking { io, cx })))?;
                Poll::Ready(Ok((read, tls.process_new_packets().map(drop))))
            }
        }
    }

    /// True if a read returns plaintext without more input. Early data does not count.
    pub(super) fn has_plaintext(&mut self) -> bool {
        match self {
            Self::Unbuffered(connection) => connection.has_plaintext(),
            Self::Buffered(tls) => tls.reader().fill_buf().is_ok_and(|bytes| !bytes.is_empty()),
        }
    }

    /// Moves early data to a reader. Early data stays readable after the client's Finished.
    pub(super) fn read_early_data(&mut self, reader: &mut ReadBuf<'_>) -> io::Result<()> {
        if let Self::Buffered(tls) = self
            && let Some(mut early) = tls.early_data()
        {
            let read = early.read(reader.initialize_unfilled())?;
            reader.advance(read);
        }
        Ok(())
    }

    /// Moves decrypted plaintext to a reader.
    pub(super) fn read_plaintext(&mut self, reader: &mut ReadBuf<'_>) {
        match self {
            Self::Unbuffered(connection) => connection.read_plaintext(reader),
            Self::Buffered(tls) => {
                let mut plaintext = tls.reader();
                // `read` would need an initialised buffer. To initialise kilobytes for each call is slow.
                if let Ok(bytes) = plaintext.fill_buf() {
                    let len = bytes.len().min(reader.remaining());
                    reader.put_slice(&bytes[..len]);
                    plaintext.consume(len);
                }
            }
        }
    }

    pub(super) fn discard_plaintext(&mut self) {
        match self {
            Self::Unbuffered(connection) => connection.discard_plaintext(),
            Self::Buffered(tls) => {
                let mut plaintext = tls.reader();
                while let Ok(unread) = plaintext.fill_buf().map(<[u8]>::len)
                    && unread > 0
                {
                    plaintext.consume(unread);
                }
            }
        }
    }

    /// Encrypts bytes. Returns their number; 0 if too much output waits for the socket.
    pub(super) fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unbuffered(connection) => {
                let records = MAX_OUTPUT.saturating_sub(connection.output.len()) / MAX_RECORD;
                connection.write(bufs, records * MAX_FRAGMENT)
            }
            Self::Buffered(tls) => tls.writer().write_vectored(bufs),
        }
    }

    pub(super) fn send_close_notify(&mut self) {
        match self {
            // After an error, rustls has sent an alert instead.
            Self::Unbuffered(connection) => drop(connection.send_close_notify()),
            Self::Buffered(tls) => tls.send_close_notify(),
        }
    }

    /// True if output waits for the socket.
    pub(super) fn has_output(&self) -> bool {
        match self {
            Self::Unbuffered(connection) => connection.output.len() > 0,
            Self::Buffered(tls) => tls.wants_write(),
        }
    }

    /// True if no more output may wait for the socket.
    pub(super) fn is_output_full(&self) -> bool {
        match self {
            Self::Unbuffered(connection) => connection.output.len() + MAX_RECORD > MAX_OUTPUT,
            // rustls does not tell how much output waits.
            Self::Buffered(tls) => tls.wants_write(),
        }
    }

    /// Sends a part of the output. `is_last`: a shutdown follows at once, and sends the last segment.
    pub(super) fn poll_send(
        &mut self,
        io: &mut TcpStream,
        cx: &mut Context<'_>,
        is_last: bool,
    ) -> Poll<io::Result<()>> {
        let sent = match self {
            Self::Unbuffered(connection) => {
                let unsent = connection.output.unsent();
                let sent = if is_last {
                    poll_send_more(io, cx, unsent)
                } else {
                    Pin::new(io).poll_write(cx, unsent)
                };
                match &sent {
                    Poll::Ready(Ok(len)) => connection.output.remove(*len),
                    Poll::Ready(Err(_)) => {}
                    Poll::Pending => connection.output.cut(),
                }
                sent
            }
            Self::Buffered(tls) => pending_if_blocked(tls.write_tls(&mut Blocking { io, cx })),
        };
        match ready!(sent)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Takes all output.
    pub(super) fn take_output(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::Unbuffered(connection) => {
                let output = connection.output.unsent().to_vec();
                connection.output.remove(output.len());
                Ok(output)
            }
            Self::Buffered(tls) => {
                let mut output = Vec::new();
                while tls.wants_write() {
                    tls.write_tls(&mut output)?;
                }
                Ok(output)
            }
        }
    }
}
