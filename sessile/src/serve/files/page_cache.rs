//! Reads the bytes of a file that the system has in memory, on the thread of the connection.
//!
//! Such a read does not wait for the file system, which can hang. Only a thread of the pool reads the other
//! bytes.

use std::cell::RefCell;
use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};

/// Most bytes that are read at once. They stay in the processor's cache until they are encrypted.
const PIECE: usize = 64 * 1024;

/// Most buffers that a thread keeps for later pieces.
const MAX_SPARE: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A part of a file. Its buffer returns to the thread.
struct Piece {
    /// All bytes are initialised, because the system call needs initialised bytes.
    buffer: Vec<u8>,
    len: usize,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // A piece can outlive its thread's buffers.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MAX_SPARE {
                spare.push(buffer);
            }
        });
    }
}

/// Reads at most `length` bytes at `offset`. `None` if a thread of the pool has to read them.
pub(super) fn read(file: BorrowedFd<'_>, offset: u64, length: usize) -> Option<Bytes> {
    read_with(length, |room| {
        let bufs = &mut [IoSliceMut::new(room)];
        rustix::io::preadv2(file, bufs, offset, ReadWriteFlags::NOWAIT)
    })
}

fn read_with(
    length: usize,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> Option<Bytes> {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    let mut piece = Piece {
        buffer: spare.unwrap_or_else(|| vec![0; PIECE]),
        len: 0,
    };
    let room = &mut piece.buffer[..length.min(PIECE)];
    piece.len = loop {
        match read(room) {
            Err(Errno::INTR) => {}
            // Linux 5.9 and 5.10 also read 0 bytes if the bytes are not in memory.
            Err(_) | Ok(0) => return None,
            Ok(len) => break len,
        }
    };
    Some(Bytes::from_owner(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_has_the_bytes_that_were_read_and_its_buffer_is_used_again() {
        for (length, expected) in [(3, 3), (PIECE, PIECE), (PIECE + 1, PIECE)] {
            let mut interrupted = false;
            let piece = read_with(length, |room| {
                if !std::mem::replace(&mut interrupted, true) {
                    return Err(Errno::INTR);
                }
                room.fill(7);
                Ok(room.len())
            });
            assert!(piece.expect("a piece") == vec![7; expected]);
            assert_eq!(SPARE.with_borrow(Vec::len), 1);
        }
        let piece = read_with(10, |_| Ok(4));
        assert_eq!(piece.expect("a piece").len(), 4);
    }

    #[test]
    fn the_pool_reads_what_is_not_in_memory() {
        for result in [Err(Errno::AGAIN), Err(Errno::OPNOTSUPP), Ok(0)] {
            assert!(read_with(10, |_| result).is_none(), "{result:?}");
        }
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        let pipe = std::os::fd::AsFd::as_fd(&reader);
        assert!(read(pipe, 0, 10).is_none());
    }
}
