//! The system calls of kernel TLS on a TCP socket (Linux, `Documentation/networking/tls.rst`).

#![allow(
    unsafe_code,
    reason = "setsockopt(2), sendmsg(2) and recvmsg(2) with the options of kernel TLS are in no safe crate that we have"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;

use super::keys::{CryptoInfo, Direction};
use crate::listener::has_event;

/// The content type of application data (RFC 9846, 5.1).
pub(super) const APPLICATION_DATA: u8 = 23;

/// Most bytes that one call of `sendfile` sends.
///
/// A client that reads fast would otherwise keep a thread for the whole file.
const MAX_SENT_AT_ONCE: u64 = 4 << 20;

/// Bytes of a control message with one byte of data, and room for its alignment.
const CONTROL_LEN: usize = 64;

/// Room for a control message. The kernel and `CMSG_*` need this alignment.
#[repr(C, align(16))]
struct Control([u8; CONTROL_LEN]);

/// Bytes that were received, all of one content type. `len` is 0 at the end of the stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// `None` at the end of the stream.
    pub(super) content_type: Option<u8>,
    pub(super) len: usize,
}

/// Prepares a connected socket for keys. Without keys, the socket works as before.
///
/// # Errors
/// ENOENT if the kernel has no TLS, or the module `tls` is not loaded.
pub(super) fn attach(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")
}

/// Gives the socket the keys of one direction. All later bytes of this direction are records.
pub(super) fn set_keys(
    socket: BorrowedFd<'_>,
    direction: Direction,
    keys: &CryptoInfo,
) -> io::Result<()> {
    let name = match direction {
        Direction::Transmit => libc::TLS_TX,
        Direction::Receive => libc::TLS_RX,
    };
    set_option(socket, libc::SOL_TLS, name, keys.as_bytes())
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).expect("a short option");
    // SAFETY: the descriptor is open while it is borrowed. The pointer and the length describe `value`, which
    // the kernel only reads during the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends a record that is not application data. The kernel takes a record of this size as a whole.
pub(super) fn send_control(
    socket: BorrowedFd<'_>,
    content_type: u8,
    content: &[u8],
) -> io::Result<()> {
    let mut control = Control([0; CONTROL_LEN]);
    let mut part = libc::iovec {
        iov_base: content.as_ptr().cast_mut().cast(),
        iov_len: content.len(),
    };
    // SAFETY: `msghdr` is a plain C structure, for which all zeros is a valid value. Its pointers are to `part`
    // and `control`, which live until the call ends. `CONTROL_LEN` is more than CMSG_SPACE(1), so
    // CMSG_FIRSTHDR returns an aligned pointer into `control`, with room for the header and one byte of data.
    // The kernel only reads the memory that `msghdr` names.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(1) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_TLS;
        (*header).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = libc::CMSG_LEN(1) as _;
        libc::CMSG_DATA(header).write(content_type);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::sendmsg(socket.as_raw_fd(), &raw const message, flags)
    };
    match usize::try_from(sent) {
        Ok(len) if len == content.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receives bytes of records that have one content type.
///
/// # Errors
/// `EBADMSG`: a record cannot be decrypted. `EMSGSIZE`, `EINVAL`: the header of a record is wrong.
pub(super) fn receive(socket: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<Received> {
    let mut control = Control([0; CONTROL_LEN]);
    let mut part = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: as in `send_control`. The kernel writes at most `room.len()` bytes to `room` and at most
    // `CONTROL_LEN` bytes to `control`, both of which are borrowed mutably. CMSG_FIRSTHDR returns null, or a
    // header that the kernel wrote as a whole, because it checks `msg_controllen`, which the kernel has set.
    // The length of the header shows if one byte of data follows.
    let (len, content_type) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
        let len = libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let has_type = len >= 0
            && !header.is_null()
            && (*header).cmsg_level == libc::SOL_TLS
            && (*header).cmsg_type == libc::TLS_GET_RECORD_TYPE
            && (*header).cmsg_len as usize >= libc::CMSG_LEN(1) as usize;
        let content_type = has_type.then(|| libc::CMSG_DATA(header).read());
        (len, content_type)
    };
    match usize::try_from(len) {
        Ok(len) => Ok(Received { content_type, len }),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// True if the socket has room for more bytes now. If so, the kernel has also sent on its unsent records.
pub(super) fn is_writable(socket: BorrowedFd<'_>) -> io::Result<bool> {
    has_event(&socket, PollFlags::OUT)
}

/// True if the peer sends no more bytes.
pub(super) fn has_peer_closed(socket: BorrowedFd<'_>) -> io::Result<bool> {
    has_event(&socket, PollFlags::RDHUP)
}

/// Sends parts of files to a connection whose records are in the kernel, on a thread that may block.
///
/// The socket does not block, so only the file system can block the thread.
pub struct FileSender(OwnedFd);

/// How far [`FileSender::send`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The number of bytes that the socket took.
    pub bytes: u64,
    /// True if the socket has no more room.
    pub is_blocked: bool,
}

impl FileSender {
    pub(super) fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(socket.try_clone_to_owned()?))
    }

    /// Ends the connection in both directions.
    pub(super) fn cut(&self) {
        // A connection that has failed is not connected.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }

    /// Sends at most `count` bytes of a file, from `offset` on. No bytes and no blocked socket: the file ends
    /// there.
    ///
    /// # Errors
    /// The file cannot be read, or the connection has failed.
    pub fn send(&self, file: BorrowedFd<'_>, offset: u64, count: u64) -> io::Result<Sent> {
        let mut at = offset;
        let end = offset.saturating_add(count.min(MAX_SENT_AT_ONCE));
        let mut is_blocked = false;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            match rustix::fs::sendfile(self.0.as_fd(), file, Some(&mut at), left) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    is_blocked = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Sent {
            bytes: at - offset,
            is_blocked,
        })
    }
}
