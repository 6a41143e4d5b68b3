//! How much may be buffered for peers that do not read, in all and for one source. No client is turned away for
//! it. Over the limit, the bytes stay in the socket of the peer that sends.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::quota::Quota;
use super::{Admission, Admitted};

/// The most that may be buffered.
#[derive(Clone, Copy, Debug, Default)]
pub struct BufferLimit {
    /// Bytes on the heap.
    pub bytes: usize,
    /// Pipes with bytes in them.
    pub pipes: usize,
}

impl Admission {
    /// Bytes on the heap that are buffered now.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes.used()
    }

    /// Pipes with bytes in them.
    #[must_use]
    pub fn buffered_pipes(&self) -> usize {
        self.buffered_pipes.used()
    }
}

impl Admitted {
    /// True if so many more bytes may be buffered on the heap. Other workers may add theirs before these are
    /// counted, so the limit can be exceeded by one read of each.
    #[must_use]
    pub fn may_buffer_bytes(&self, bytes: usize) -> bool {
        let own = self.slot().buffered_bytes.load(Ordering::Relaxed);
        own + bytes <= self.admission.buffered_bytes.source_share()
    }

    /// True if one more pipe may hold bytes.
    #[must_use]
    pub fn may_hold_pipe(&self) -> bool {
        let pipes = &self.admission.buffered_pipes;
        let own = self.slot().buffered_pipes.load(Ordering::Relaxed);
        !pipes.is_exhausted() && own < pipes.source_share()
    }

    /// Counts bytes as buffered.
    #[must_use]
    pub fn buffer_bytes(&self, bytes: usize) -> BufferGuard<'_> {
        let quota = &self.admission.buffered_bytes;
        BufferGuard::new(quota, &self.slot().buffered_bytes, bytes)
    }

    /// Counts a pipe with bytes in it.
    #[must_use]
    pub fn hold_pipe(&self) -> BufferGuard<'_> {
        let quota = &self.admission.buffered_pipes;
        BufferGuard::new(quota, &self.slot().buffered_pipes, 1)
    }
}

/// Counts something as buffered until it is dropped.
pub struct BufferGuard<'a> {
    quota: &'a Quota,
    /// The counter of the source.
    own: &'a AtomicUsize,
    amount: usize,
}

impl<'a> BufferGuard<'a> {
    fn new(quota: &'a Quota, own: &'a AtomicUsize, amount: usize) -> Self {
        quota.take_unchecked(amount);
        own.fetch_add(amount, Ordering::Relaxed);
        Self { quota, own, amount }
    }
}

impl Drop for BufferGuard<'_> {
    fn drop(&mut self) {
        self.quota.give_back(self.amount);
        self.own.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::config::Connection;

    const MAX: BufferLimit = BufferLimit {
        bytes: 1 << 20,
        pipes: 16,
    };

    fn admit(admission: &Arc<Admission>, net: u8) -> Admitted {
        let mut hello = admission.begin_hello().expect("room");
        let source = IpAddr::from([198, 51, net, 1]);
        hello.admit(source, Instant::now()).expect("room")
    }

    /// Connections of sources that share no slot.
    fn admit_distinct<const N: usize>(admission: &Arc<Admission>) -> [Admitted; N] {
        let mut clients: Vec<Admitted> = Vec::new();
        for net in 0..=255 {
            let client = admit(admission, net);
            if clients.len() < N && clients.iter().all(|other| other.slot != client.slot) {
                clients.push(client);
            }
        }
        let clients = <[Admitted; N]>::try_from(clients);
        clients.unwrap_or_else(|_| panic!("256 networks are in more than a few slots"))
    }

    #[test]
    fn a_source_holds_a_quarter_of_the_pipes_and_each_that_comes_after_finds_one() {
        let admission = Admission::new(&Connection::default(), 1000, MAX);
        let clients: [Admitted; 8] = admit_distinct(&admission);
        let mut guards = Vec::new();
        let mut pipes = Vec::new();
        for client in &clients {
            let before = guards.len();
            while client.may_hold_pipe() {
                guards.push(client.hold_pipe());
            }
            pipes.push(guards.len() - before);
        }
        assert_eq!(pipes, [4, 4, 3, 2, 1, 1, 1, 0]);
        assert_eq!(admission.buffered_pipes(), 16);
        drop(guards);
        assert_eq!(admission.buffered_pipes(), 0);
        assert!(clients.iter().all(Admitted::may_hold_pipe));
        let without = Admission::new(&Connection::default(), 1000, BufferLimit::default());
        assert!(!admit(&without, 1).may_hold_pipe());
    }

    #[test]
    fn bytes_are_buffered_up_to_a_share_and_given_back() {
        let admission = Admission::new(&Connection::default(), 1000, MAX);
        let [busy, other] = admit_distinct(&admission);
        let half = busy.buffer_bytes(MAX.bytes / 8);
        assert!(busy.may_buffer_bytes(MAX.bytes / 8));
        assert!(!busy.may_buffer_bytes(MAX.bytes / 8 + 1));
        let rest = busy.buffer_bytes(MAX.bytes / 8);
        assert!(!busy.may_buffer_bytes(1));
        assert!(other.may_buffer_bytes(MAX.bytes / 4));
        drop((half, rest));
        assert!(busy.may_buffer_bytes(MAX.bytes / 4));
        assert_eq!(admission.buffered_bytes(), 0);
    }
}
