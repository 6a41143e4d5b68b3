//! A TLS connection that has no buffers while it is idle.
//!
//! rustls gets its buffers from outside, and the thread lends them during a call. The connection keeps only
//! the bytes that cannot be processed, read or sent at once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{Error, ServerConfig};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::buffers::{self, Output};

/// Most bytes of plaintext in a record (RFC 9846, 5.1).
pub(super) const MAX_FRAGMENT: usize = 1 << 14;

/// Most bytes of a record.
pub(super) const MAX_RECORD: usize = MAX_FRAGMENT + RECORD_OVERHEAD;

/// Most bytes that encryption adds to a record: header, nonce, content type and tag.
const RECORD_OVERHEAD: usize = 5 + 8 + 1 + 16;

pub(super) struct Unbuffered {
    /// Boxed, because it takes more than a kilobyte, and the connection is moved several times.
    pub(super) tls: Box<UnbufferedServerConnection>,
    /// Received bytes that rustls can only process together with bytes that are still to come.
    unprocessed: Vec<u8>,
    /// Decrypted bytes that nobody has read.
    plaintext: Vec<u8>,
    pub(super) output: Output,
    has_peer_closed: bool,
    /// True after an error. rustls panics if it is called without the bytes of the error.
    has_failed: bool,
}

impl Unbuffered {
    pub(super) fn new(config: ServerConfig) -> Result<Self, Error> {
        let tls = UnbufferedServerConnection::new(Arc::new(config))?;
        Ok(Self {
            tls: Box::new(tls),
            unprocessed: Vec::new(),
            plaintext: Vec::new(),
            output: Output::default(),
            has_peer_closed: false,
            has_failed: false,
        })
    }

    /// True if all bytes so far are processed, read and sent. Only such a connection can move to the kernel.
    pub(super) fn is_settled(&self) -> bool {
        self.unprocessed.is_empty()
            && self.plaintext.is_empty()
            && self.output.len() == 0
            && !self.has_failed
            && !self.has_peer_closed
            && !self.tls.is_handshaking()
            && !self.tls.wants_write()
    }

    /// True if the client sent close_notify.
    pub(super) const fn has_peer_closed(&self) -> bool {
        self.has_peer_closed
    }

    pub(super) const fn has_plaintext(&self) -> bool {
        !self.plaintext.is_empty()
    }

    /// Moves plaintext to a reader.
    pub(super) fn read_plaintext(&mut self, reader: &mut ReadBuf<'_>) {
        buffers::drain_to(&mut self.plaintext, reader);
    }

    pub(super) fn discard_plaintext(&mut self) {
        self.plaintext = Vec::new();
    }

    /// Takes received bytes, and lets rustls process them. Leaves the bytes for which there is no room.
    ///
    /// After an error, received bytes are discarded.
    pub(super) fn receive(&mut self, bytes: &mut &[u8]) -> io::Result<Result<(), Error>> {
        buffers::with_received(|received| {
            let room = room(received, self.unprocessed.len())?;
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            *bytes = later;
            Ok(self.process(received, now.len(), &mut ReadBuf::new(&mut [])))
        })
    }

    /// Reads from the socket, and lets rustls process the bytes. Returns their number; 0 at the end of the
    /// stream.
    ///
    /// The reader gets as much plaintext as it has room for.
    pub(super) fn poll_receive(
        &mut self,
        io: &mut TcpStream,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<(usize, Result<(), Error>)>> {
        buffers::with_received(|received| {
            let room = room(received, self.unprocessed.len())?;
            // No more is decrypted than the reader takes, or than a record has.
            let limit = reader.remaining().max(MAX_RECORD).min(room.len());
            let mut room = ReadBuf::new(&mut room[..limit]);
            ready!(Pin::new(io).poll_read(cx, &mut room))?;
            let len = room.filled().len();
            let processed = match len {
                0 => Ok(()),
                _ => self.process(received, len, reader),
            };
            Poll::Ready(Ok((len, processed)))
        })
    }

    /// Lets rustls process the unprocessed bytes and `len` new bytes that stand behind their place.
    fn process(
        &mut self,
        received: &mut [u8],
        len: usize,
        reader: &mut ReadBuf<'_>,
    ) -> Result<(), Error> {
        if self.has_failed {
            return Ok(());
        }
        let unprocessed = self.unprocessed.len();
        received[..unprocessed].copy_from_slice(&self.unprocessed);
        let mut rest = &mut received[..unprocessed + len];
        let processed = loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(rest);
            let needs_more = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        let now = record.payload.len().min(reader.remaining());
                        reader.put_slice(&record.payload[..now]);
                        self.plaintext.extend_from_slice(&record.payload[now..]);
                    }
                    false
                }
                Ok(ConnectionState::EncodeTlsData(record)) => {
                    encode(record, &mut self.output);
                    false
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.has_peer_closed = true;
                    false
                }
                Ok(_) => true,
                Err(error) => break Err(error),
            };
            rest = &mut rest[discard..];
            if needs_more {
                break Ok(());
            }
        };
        // Bytes after close_notify do not count (RFC 9846, 6.1).
        let is_over = self.has_peer_closed || processed.is_err();
        self.unprocessed = if is_over { Vec::new() } else { rest.to_vec() };
        if processed.is_err() {
            self.has_failed = true;
            self.encode_alert();
        }
        processed
    }

    /// Takes the records that rustls has ready after an error.
    fn encode_alert(&mut self) {
        // Without output, rustls can panic if it gets no input while a message is incomplete.
        while self.tls.wants_write() {
            match self.tls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(record)) => encode(record, &mut self.output),
                // rustls returns plaintext first.
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while traffic.next_record().is_some() {}
                }
                _ => break,
            }
        }
    }

    /// Encrypts at most `limit` bytes. Returns their number.
    pub(super) fn write(&mut self, bufs: &[IoSlice<'_>], limit: usize) -> io::Result<usize> {
        buffers::with_joined(|joined| {
            let mut written = 0;
            for buf in bufs {
                let buf = &buf[..buf.len().min(limit - written)];
                written += buf.len();
                // Large buffers are not copied.
                if joined.is_empty() && (buf.len() >= MAX_FRAGMENT || bufs.len() == 1) {
                    self.encrypt(buf)?;
                    continue;
                }
                joined.extend_from_slice(buf);
                if joined.len() >= MAX_FRAGMENT {
                    self.encrypt(joined)?;
                    joined.clear();
                }
            }
            self.encrypt(joined)?;
            Ok(written)
        })
    }

    fn encrypt(&mut self, plaintext: &[u8]) -> io::Result<()> {
        let records = plaintext.len() / MAX_FRAGMENT + 1;
        let room = plaintext.len() + records * RECORD_OVERHEAD;
        self.put_output(room, |traffic, room| traffic.encrypt(plaintext, room))
    }

    pub(super) fn send_close_notify(&mut self) -> io::Result<()> {
        self.put_output(RECORD_OVERHEAD + 2, |traffic, room| {
            traffic.queue_close_notify(room)
        })
    }

    /// Puts records into the output. `room` is the likely number of their bytes.
    fn put_output(
        &mut self,
        mut room: usize,
        mut put: impl FnMut(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        if self.has_failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        loop {
            match self.tls.process_tls_records(&mut self.unprocessed).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    match put(&mut traffic, self.output.room(room)) {
                        Ok(len) => {
                            self.output.add(len);
                            return Ok(());
                        }
                        Err(EncryptError::InsufficientSize(size)) => room = size.required_size,
                        Err(exhausted) => return Err(io::Error::other(exhausted)),
                    }
                }
                Ok(ConnectionState::EncodeTlsData(record)) => encode(record, &mut self.output),
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(_) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => {
                    self.has_failed = true;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
    }
}

fn encode(mut record: EncodeTlsData<'_, ServerConnectionData>, output: &mut Output) {
    // An attempt without room returns the size.
    if let Err(EncodeError::InsufficientSize(size)) = record.encode(&mut [])
        && let Ok(len) = record.encode(output.room(size.required_size))
    {
        output.add(len);
    }
}

/// The room behind `used` bytes.
///
/// # Errors
/// There is no room, because a message is too long.
fn room(received: &mut [u8], used: usize) -> io::Result<&mut [u8]> {
    match received.get_mut(used..) {
        Some(room) if !room.is_empty() => Ok(room),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a handshake message is too long",
        )),
    }
}

#[cfg(test)]
mod tests;
