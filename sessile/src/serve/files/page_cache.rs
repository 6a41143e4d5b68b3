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
///
/// Empty at the end of the file.
pub(super) fn read(file: BorrowedFd<'_>, offset: u64, length: usize) -> Option<Bytes> {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    let mut piece = Piece {
        buffer: spare.unwrap_or_else(|| vec![0; PIECE]),
        len: 0,
    };
    let room = &mut piece.buffer[..length.min(PIECE)];
    let read = loop {
        let bufs = &mut [IoSliceMut::new(room)];
        match rustix::io::preadv2(file, bufs, offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
            read => break read,
        }
    };
    piece.len = read.ok()?;
    Some(Bytes::from_owner(piece))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn pieces_are_read_from_memory_and_buffers_are_used_again() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let content: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
        file.write_all(&content).expect("space");
        let mut read_bytes = Vec::new();
        loop {
            let offset = read_bytes.len() as u64;
            // A file that was just written is in memory, unless its file system has no such reads.
            let Some(piece) = read(file.as_file().as_fd(), offset, 100_000) else {
                return;
            };
            if piece.is_empty() {
                break;
            }
            read_bytes.extend_from_slice(&piece);
        }
        assert!(read_bytes == content);
        assert_eq!(SPARE.with_borrow(Vec::len), 1);
    }

    #[test]
    fn a_file_system_without_such_reads_leaves_them_to_the_pool() {
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        assert!(read(reader.as_fd(), 0, 10).is_none());
    }
}
