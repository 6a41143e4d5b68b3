//! A connection whose records are in the kernel. This process handles alerts and key updates only.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use rustls::Error;
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use sessile_proto::alert::AlertDescription;
use sessile_proto::control_record::{ControlRecord, KEY_UPDATE_MESSAGE, RecordBudget};
use tokio::io::{AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::keys::{CryptoInfo, Direction, Version};
use super::probe::KernelSupport;
use super::socket::{self, APPLICATION_DATA, FileSender, Received, Sent};
use crate::tls::buffers;
use crate::tls::io::{poll_io, poll_send_more};

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// An alert with the level "warning".
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// The level of a fatal alert.
const FATAL: u8 = 2;

/// Most records in a row without application data.
const MAX_CONTROL_RECORDS: u8 = 32;

/// A key is replaced if it can encrypt fewer bytes than this.
///
/// A kernel that cannot take another key ends the connection after the present response, which must still fit.
const MIN_BUDGET: u64 = 64 << 30;

/// Why a connection cannot move to the kernel. Without [`Self::Broken`], it goes on in user space.
#[derive(Debug, thiserror::Error)]
pub(in crate::tls) enum OffloadError {
    /// The kernel takes no TLS connection now.
    #[error("the kernel refuses TLS on a socket: {0}")]
    Refused(io::Error),
    /// The connection has lost its keys, and can only be closed.
    #[error("the kernel refuses the keys of a connection: {0}")]
    Broken(String),
}

pub(in crate::tls) struct KernelRecords {
    connection: KernelConnection<ServerConnectionData>,
    version: Version,
    can_rekey: bool,
    budget: RecordBudget,
    /// Decrypted bytes that no reader has taken.
    plaintext: Vec<u8>,
    /// True if the server must change its key.
    must_update_key: bool,
    /// An alert that is not sent.
    alert: Option<[u8; 2]>,
    /// True after an alert, until TCP has all records. A shutdown would discard the other records.
    is_settling: bool,
    has_peer_closed: bool,
    /// True if the kernel cannot take the next key of the client.
    is_deaf: bool,
    control_records: u8,
    sender: Weak<FileSender>,
}

impl KernelRecords {
    /// Prepares the socket. After that, the connection can still go on in user space.
    pub(in crate::tls) fn prepare(io: &TcpStream) -> Result<(), OffloadError> {
        socket::attach(io.as_fd()).map_err(OffloadError::Refused)
    }

    /// Moves the keys of a connection to a prepared socket. The connection has neither input nor output, and
    /// [`KernelSupport::includes`] its suite.
    pub(in crate::tls) fn take_over(
        io: &TcpStream,
        tls: UnbufferedServerConnection,
        support: &KernelSupport,
    ) -> Result<Self, OffloadError> {
        let broken = |error: &dyn std::error::Error| OffloadError::Broken(error.to_string());
        let (secrets, connection) = tls
            .dangerous_into_kernel_connection()
            .map_err(|error| broken(&error))?;
        let version = Version::of(connection.protocol_version())
            .ok_or_else(|| OffloadError::Broken("an unknown version".to_owned()))?;
        let budget = RecordBudget::new(secrets.tx.0);
        for (direction, (sequence, secrets)) in [
            (Direction::Transmit, secrets.tx),
            (Direction::Receive, secrets.rx),
        ] {
            CryptoInfo::of(version, direction, sequence, &secrets)
                .ok_or_else(|| io::ErrorKind::Unsupported.into())
                .and_then(|keys| socket::set_keys(io.as_fd(), direction, &keys))
                .map_err(|error| broken(&error))?;
        }
        Ok(Self {
            can_rekey: support.can_rekey() && version == Version::Tls13,
            connection,
            version,
            budget,
            plaintext: Vec::new(),
            must_update_key: false,
            alert: None,
            is_settling: false,
            has_peer_closed: false,
            is_deaf: false,
            control_records: 0,
            sender: Weak::new(),
        })
    }

    pub(in crate::tls) const fn has_peer_closed(&self) -> bool {
        self.has_peer_closed
    }

    /// True if the kernel cannot take the next key of the client.
    pub(in crate::tls) const fn is_deaf(&self) -> bool {
        self.is_deaf
    }

    pub(in crate::tls) const fn has_plaintext(&self) -> bool {
        !self.plaintext.is_empty()
    }

    /// Moves plaintext to a reader.
    pub(in crate::tls) fn read_plaintext(&mut self, reader: &mut ReadBuf<'_>) {
        buffers::drain_to(&mut self.plaintext, reader);
    }

    pub(in crate::tls) fn discard_plaintext(&mut self) {
        self.plaintext = Vec::new();
    }

    /// Receives records. Returns the number of their bytes; 0 at the end of the stream.
    pub(in crate::tls) fn poll_receive(
        &mut self,
        io: &TcpStream,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<(usize, Result<(), Error>)>> {
        if self.is_deaf {
            return Poll::Ready(Ok((0, Ok(()))));
        }
        buffers::with_received(|room| {
            let received = ready!(poll_io(io, cx, Interest::READABLE, || {
                socket::receive(io.as_fd(), room)
            }));
            Poll::Ready(match received {
                Ok(received) => {
                    let processed = self.process(io, received, room, reader)?;
                    Ok((self.progress(received), processed))
                }
                Err(error) => match refusal(&error) {
                    Some((alert, error)) => {
                        // The socket keeps the error, and would refuse the alert.
                        io.take_error()?;
                        Ok((1, Err(self.refuse(alert, error))))
                    }
                    None => Err(error),
                },
            })
        })
    }

    /// The number of received bytes; 0 only if no more bytes come.
    fn progress(&self, received: Received) -> usize {
        match received.content_type {
            _ if self.is_deaf => 0,
            None => received.len,
            // A record can be empty.
            Some(_) => received.len.max(1),
        }
    }

    fn process(
        &mut self,
        io: &TcpStream,
        received: Received,
        room: &[u8],
        reader: &mut ReadBuf<'_>,
    ) -> io::Result<Result<(), Error>> {
        let content = &room[..received.len];
        let content_type = match received.content_type {
            Some(content_type) => content_type,
            None if content.is_empty() => return Ok(Ok(())),
            None => APPLICATION_DATA,
        };
        if content_type == APPLICATION_DATA && !content.is_empty() {
            self.control_records = 0;
            let now = content.len().min(reader.remaining());
            reader.put_slice(&content[..now]);
            self.plaintext.extend_from_slice(&content[now..]);
            return Ok(Ok(()));
        }
        self.control_records += 1;
        if self.control_records > MAX_CONTROL_RECORDS {
            let error = Error::General("too many records without data".to_owned());
            return Ok(Err(self.refuse(AlertDescription::UnexpectedMessage, error)));
        }
        if content_type == APPLICATION_DATA {
            return Ok(Ok(()));
        }
        let is_tls13 = self.version == Version::Tls13;
        match ControlRecord::parse(content_type, content, is_tls13) {
            Ok(ControlRecord::CloseNotify) => self.has_peer_closed = true,
            Ok(ControlRecord::Warning) => {}
            Ok(ControlRecord::FatalAlert(alert)) => {
                return Ok(Err(Error::AlertReceived(alert.into())));
            }
            Ok(ControlRecord::KeyUpdate { asks_for_answer }) if self.can_rekey => {
                self.must_update_key |= asks_for_answer;
                let next = self.connection.update_rx_secret();
                self.set_next_key(io, Direction::Receive, next)?;
            }
            Ok(ControlRecord::KeyUpdate { .. }) => self.is_deaf = true,
            Err(alert) => {
                let error = Error::General(format!("refused a record of the client: {alert:?}"));
                return Ok(Err(self.refuse(alert, error)));
            }
        }
        Ok(Ok(()))
    }

    fn set_next_key(
        &self,
        io: &TcpStream,
        direction: Direction,
        next: Result<(u64, rustls::ConnectionTrafficSecrets), Error>,
    ) -> io::Result<()> {
        let (sequence, secrets) = next.map_err(io::Error::other)?;
        let keys = CryptoInfo::of(self.version, direction, sequence, &secrets)
            .ok_or(io::ErrorKind::Unsupported)?;
        socket::set_keys(io.as_fd(), direction, &keys)
    }

    /// Puts a fatal alert into the output.
    fn refuse(&mut self, alert: AlertDescription, error: Error) -> Error {
        self.alert = Some([FATAL, alert as u8]);
        error
    }

    /// Encrypts and sends bytes. Call this without output. Returns their number.
    pub(in crate::tls) fn poll_write(
        &mut self,
        io: &mut TcpStream,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_budget()?;
        let written = ready!(Pin::new(io).poll_write_vectored(cx, bufs))?;
        self.count_sent(written as u64);
        Poll::Ready(Ok(written))
    }

    /// As [`Self::poll_write`]. The last record stays open for the bytes that follow.
    pub(in crate::tls) fn poll_write_more(
        &mut self,
        io: &TcpStream,
        cx: &mut Context<'_>,
        part: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_budget()?;
        let written = ready!(poll_send_more(io, cx, part))?;
        self.count_sent(written as u64);
        Poll::Ready(Ok(written))
    }

    /// Waits for room in the socket. Returns how many bytes of a file can be sent at most.
    pub(in crate::tls) fn poll_room(
        &self,
        io: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<u64>> {
        ready!(poll_writable(io, cx, || Ok(())))?;
        self.check_budget()?;
        Poll::Ready(Ok(self.budget.bytes()))
    }

    /// Fails if the key can encrypt no more, because the kernel would go on. A new key is set before that, if the
    /// kernel takes one.
    fn check_budget(&self) -> io::Result<()> {
        if self.budget.bytes() == 0 {
            return Err(io::Error::other("the key of the connection is used up"));
        }
        Ok(())
    }

    /// True if the connection can send so many bytes of a file.
    pub(in crate::tls) const fn has_room_for(&self, bytes: u64) -> bool {
        // Small parts of a file need more records.
        self.can_rekey || bytes <= self.budget.bytes() / 2
    }

    /// Sends files to this connection, on another thread. Nothing else may be sent meanwhile.
    pub(in crate::tls) fn file_sender(&mut self, io: &TcpStream) -> io::Result<Arc<FileSender>> {
        let sender = Arc::new(FileSender::new(io.as_fd())?);
        self.sender = Arc::downgrade(&sender);
        Ok(sender)
    }

    /// Counts the bytes that a [`FileSender`] sent.
    pub(in crate::tls) fn count_file(&mut self, sent: Sent) {
        self.count_sent(sent.bytes);
    }

    fn count_sent(&mut self, bytes: u64) {
        self.budget.take(bytes);
        self.must_update_key |= self.can_rekey && self.budget.bytes() < MIN_BUDGET;
    }

    /// True if the connection should end soon, because its key is almost used up.
    pub(in crate::tls) const fn is_worn_out(&self) -> bool {
        !self.can_rekey && self.budget.bytes() < MIN_BUDGET
    }

    pub(in crate::tls) const fn send_close_notify(&mut self) {
        if self.alert.is_none() {
            self.alert = Some(CLOSE_NOTIFY);
        }
    }

    /// True if records wait for the socket. Application data counts only before a shutdown.
    pub(in crate::tls) const fn has_output(&self) -> bool {
        self.must_update_key || self.alert.is_some() || self.is_settling
    }

    /// Sends a part of the output.
    pub(in crate::tls) fn poll_send(
        &mut self,
        io: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.must_update_key {
            ready!(poll_writable(io, cx, || {
                socket::send_control(io.as_fd(), HANDSHAKE, &KEY_UPDATE_MESSAGE)
            }))?;
            self.must_update_key = false;
            let next = self.connection.update_tx_secret();
            self.set_next_key(io, Direction::Transmit, next)?;
            self.budget = RecordBudget::new(0);
        } else if let Some(alert) = self.alert {
            ready!(poll_writable(io, cx, || {
                socket::send_control(io.as_fd(), ALERT, &alert)
            }))?;
            self.alert = None;
            self.is_settling = true;
        } else if self.is_settling {
            ready!(poll_writable(io, cx, || Ok(())))?;
            self.is_settling = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for KernelRecords {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.upgrade() {
            // A file system can hold the thread that sends, but the client must see the end now.
            sender.cut();
        }
    }
}

/// Runs an operation when the socket has room.
///
/// The kernel accepts a record before TCP has room for it, and another thread may have written last. So the state
/// of the socket decides, and not the result of the last write.
fn poll_writable<T>(
    io: &TcpStream,
    cx: &mut Context<'_>,
    mut operation: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    poll_io(io, cx, Interest::WRITABLE, || {
        if socket::is_writable(io.as_fd())? {
            operation()
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    })
}

/// Waits until the client closes its side. The kernel cannot decrypt the bytes that come before.
pub(in crate::tls) fn poll_end(io: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
    poll_io(io, cx, Interest::READABLE, || {
        if socket::has_peer_closed(io.as_fd())? {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    })
    .map(drop)
}

/// The alert for a record that the kernel refused. `None` if the connection itself has failed.
fn refusal(error: &io::Error) -> Option<(AlertDescription, Error)> {
    match error.raw_os_error()? {
        libc::EBADMSG => Some((AlertDescription::BadRecordMac, Error::DecryptError)),
        libc::EMSGSIZE => Some((
            AlertDescription::RecordOverflow,
            Error::PeerSentOversizedRecord,
        )),
        libc::EINVAL => {
            let error = Error::General("a record has a wrong header".to_owned());
            Some((AlertDescription::DecodeError, error))
        }
        _ => None,
    }
}
