//! What is held back because a peer does not take it: how much of it there may be in all and from one
//! source prefix. Nobody is turned away for it; whoever may hold nothing more leaves it where it is,
//! with the peer that sends.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{SHARE, SHARE_OF_FREE, Stay};

/// What is held, or may be.
#[derive(Debug, Default)]
pub struct Backlog<T> {
    /// Bytes on the heap.
    pub bytes: T,
    /// Pipes with bytes in them.
    pub pipes: T,
}

/// Picks a kind of what is held.
type Kind = fn(&Backlog<AtomicUsize>) -> &AtomicUsize;

impl Backlog<usize> {
    /// What a source may have of a kind of which `used` is held by all.
    const fn share(max: usize, used: usize) -> usize {
        let (share, free) = (max / SHARE, max.saturating_sub(used) / SHARE_OF_FREE);
        if share < free { share } else { free }
    }
}

impl Stay {
    /// Whether so many more bytes may be held back on the heap. What is held by then may have changed, by
    /// as much as other workers have read meanwhile.
    #[must_use]
    pub fn may_hold_bytes(&self, bytes: usize) -> bool {
        let max = self.admission.max_held.bytes;
        let (all, its_own) = self.held(|held| &held.bytes);
        its_own + bytes <= Backlog::share(max, all)
    }

    /// Whether one more pipe may be held back: in any case one, while there is one.
    #[must_use]
    pub fn may_hold_pipe(&self) -> bool {
        let max = self.admission.max_held.pipes;
        let (all, its_own) = self.held(|held| &held.pipes);
        all < max && its_own < Backlog::share(max, all).max(1)
    }

    /// Counts bytes as held back until what it returns is dropped.
    #[must_use]
    pub fn hold_bytes(&self, bytes: usize) -> HeldBack<'_> {
        HeldBack::new(self, |held| &held.bytes, bytes)
    }

    /// The same for a pipe.
    #[must_use]
    pub fn hold_pipe(&self) -> HeldBack<'_> {
        HeldBack::new(self, |held| &held.pipes, 1)
    }

    /// In all, and from its source.
    fn held(&self, kind: Kind) -> (usize, usize) {
        let used = |held| kind(held).load(Ordering::Relaxed);
        (used(&self.admission.held), used(&self.its_place().held))
    }
}

/// Something that counts as held back.
pub struct HeldBack<'a> {
    stay: &'a Stay,
    kind: Kind,
    amount: usize,
}

impl<'a> HeldBack<'a> {
    fn new(stay: &'a Stay, kind: Kind, amount: usize) -> Self {
        for held in [&stay.admission.held, &stay.its_place().held] {
            kind(held).fetch_add(amount, Ordering::Relaxed);
        }
        Self { stay, kind, amount }
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        for held in [&self.stay.admission.held, &self.stay.its_place().held] {
            (self.kind)(held).fetch_sub(self.amount, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::Admission;
    use super::*;
    use crate::config::Connection;

    const MAX: Backlog<usize> = Backlog {
        bytes: 1 << 20,
        pipes: 16,
    };

    fn stay(admission: &Arc<Admission>, net: u8) -> Stay {
        let mut entry = admission.enter().expect("room");
        let source = IpAddr::from([198, 51, net, 1]);
        entry.comes_from(source, Instant::now()).expect("room")
    }

    /// Stays of sources that share no place.
    fn apart<const N: usize>(admission: &Arc<Admission>) -> [Stay; N] {
        let mut stays: Vec<Stay> = Vec::new();
        for net in 0..=255 {
            let stay = stay(admission, net);
            if stays.len() < N && stays.iter().all(|other| other.place != stay.place) {
                stays.push(stay);
            }
        }
        let stays = <[Stay; N]>::try_from(stays);
        stays.unwrap_or_else(|_| panic!("256 networks are in more than a few places"))
    }

    #[test]
    fn a_source_holds_a_quarter_of_the_pipes_and_each_that_comes_after_finds_one() {
        let admission = Admission::new(&Connection::default(), 1000, MAX);
        let stays: [Stay; 8] = apart(&admission);
        let mut held = Vec::new();
        let mut pipes = Vec::new();
        for stay in &stays {
            let before = held.len();
            while stay.may_hold_pipe() {
                held.push(stay.hold_pipe());
            }
            pipes.push(held.len() - before);
        }
        assert_eq!(pipes, [4, 4, 3, 2, 1, 1, 1, 0]);
        assert_eq!(admission.held().pipes, 16);
        drop(held);
        assert_eq!(admission.held().pipes, 0);
        assert!(stays.iter().all(Stay::may_hold_pipe));
        let without = Admission::new(&Connection::default(), 1000, Backlog::default());
        assert!(!stay(&without, 1).may_hold_pipe());
    }

    #[test]
    fn bytes_are_held_up_to_a_share_and_given_back() {
        let admission = Admission::new(&Connection::default(), 1000, MAX);
        let [busy, other] = apart(&admission);
        let half = busy.hold_bytes(MAX.bytes / 8);
        assert!(busy.may_hold_bytes(MAX.bytes / 8));
        assert!(!busy.may_hold_bytes(MAX.bytes / 8 + 1));
        let rest = busy.hold_bytes(MAX.bytes / 8);
        assert!(!busy.may_hold_bytes(1));
        assert!(other.may_hold_bytes(MAX.bytes / 4));
        drop((half, rest));
        assert!(busy.may_hold_bytes(MAX.bytes / 4));
        assert_eq!(admission.held().bytes, 0);
    }
}
