//! Buffers that a worker thread lends to its connections while they work. An idle connection has none.

use std::cell::RefCell;
use std::ops::Range;

use tokio::io::ReadBuf;

/// Most received bytes that wait for the rest of a message.
///
/// rustls accepts handshake messages of up to 64 KiB. The last record adds up to 17 KiB.
const MAX_RECEIVED: usize = (64 + 17) * 1024;

/// Most buffers for output that a thread keeps for later use.
const MAX_SPARE: usize = 16;

/// The smallest buffer for output.
const MIN_OUTPUT: usize = 4 * 1024;

thread_local! {
    static RECEIVED: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_RECEIVED]);
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the buffer for received bytes.
pub(super) fn with_received<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    RECEIVED.with_borrow_mut(|received| work(received))
}

/// Moves bytes to a reader. Frees the buffer after the last byte.
pub(super) fn drain_to(bytes: &mut Vec<u8>, reader: &mut ReadBuf<'_>) {
    let len = bytes.len().min(reader.remaining());
    reader.put_slice(&bytes[..len]);
    bytes.drain(..len);
    if bytes.is_empty() {
        *bytes = Vec::new();
    }
}

/// Lends an empty buffer, in which the parts of a message can be joined.
pub(super) fn with_joined<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    JOINED.with_borrow_mut(|joined| {
        joined.clear();
        work(joined)
    })
}

/// Bytes for the socket.
#[derive(Default)]
pub(super) struct Output {
    /// All bytes are initialised, because rustls writes to initialised bytes only.
    buffer: Vec<u8>,
    unsent: Range<usize>,
}

impl Output {
    /// Room for `len` more bytes.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        let end = self.unsent.end + len;
        if self.buffer.len() < end {
            self.buffer.resize(end.max(MIN_OUTPUT), 0);
        }
        &mut self.buffer[self.unsent.end..]
    }

    /// Adds the first `len` bytes of the room.
    pub(super) const fn add(&mut self, len: usize) {
        self.unsent.end += len;
    }

    pub(super) fn unsent(&self) -> &[u8] {
        &self.buffer[self.unsent.clone()]
    }

    pub(super) const fn len(&self) -> usize {
        self.unsent.end - self.unsent.start
    }

    /// Removes bytes that were sent. Returns the buffer to the thread after the last byte.
    pub(super) fn remove(&mut self, sent: usize) {
        self.unsent.start += sent;
        if self.unsent.is_empty() {
            self.give_back();
        }
    }

    /// Cuts the buffer to the size of its bytes, because they can wait for long.
    pub(super) fn cut(&mut self) {
        if self.buffer.len() < 2 * self.len() {
            return;
        }
        let unsent = self.unsent().to_vec();
        self.give_back();
        self.unsent.end = unsent.len();
        self.buffer = unsent;
    }

    fn give_back(&mut self) {
        self.unsent = 0..0;
        let buffer = std::mem::take(&mut self.buffer);
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MAX_SPARE && buffer.len() >= MIN_OUTPUT {
                spare.push(buffer);
            }
        });
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(output: &mut Output, bytes: &[u8]) {
        output.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        output.add(bytes.len());
    }

    #[test]
    fn bytes_leave_in_their_order() {
        let mut output = Output::default();
        put(&mut output, b"abc");
        output.remove(1);
        put(&mut output, &[b'd'; 5000]);
        assert_eq!(output.len(), 5002);
        assert_eq!(output.unsent()[..3], *b"bcd");
        output.remove(5001);
        assert_eq!(output.unsent(), b"d");
    }

    #[test]
    fn an_output_without_bytes_has_no_buffer() {
        let mut output = Output::default();
        put(&mut output, b"abc");
        output.remove(3);
        assert_eq!(output.buffer.capacity(), 0);
        assert_eq!(output.unsent(), b"");
    }

    #[test]
    fn bytes_that_wait_have_a_buffer_of_their_size() {
        let mut output = Output::default();
        put(&mut output, &[7; 9000]);
        output.remove(8000);
        output.cut();
        assert_eq!(output.buffer.len(), 1000);
        put(&mut output, b"end");
        assert_eq!(output.unsent()[999..], *b"\x07end");
    }
}
