//! Decides which clients may connect, by limits. If too many ClientHellos are incomplete, the oldest stalled
//! hello gives way. If no hello has stalled, the source with the most hellos loses its oldest hello. The bytes
//! of ClientHellos in memory have limits, in all and for each source. Bytes and pipes that are buffered for
//! peers that do not read also have limits. Over these limits, bytes stay in the socket of the sender. Each
//! source also has limits on open connections and on connections in a second.
//!
//! Except for the limit on incomplete hellos, a keyed hash maps sources to a fixed number of slots. So the
//! limits of a slot need no lock. Two sources in one slot share its limits. An attacker cannot choose who
//! shares a slot.

mod quota;

pub use quota::BufferGuard;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use sessile_proto::affinity::Source;

use super::fair_places::{FairPlaces, Place, WhenFull};
use super::rejection::IntakeFailure;
use crate::config;
use quota::{Quota, add_up_to};

/// The number of slots for sources.
const SOURCE_SLOTS: usize = 4096;

/// The default of `connection.max-hellos` is half of the limit on connections, and at least this number.
const MIN_HELLOS: usize = 64;

/// A ClientHello that is incomplete for longer than this has stalled. A healthy client needs a round trip, and
/// a second round trip if a segment is lost.
const STALLED: Duration = Duration::from_secs(1);

/// A source may have this many bytes, a few of the longest hellos, while enough is unused.
const MIN_BYTE_SHARE: usize = 256 * 1024;

/// A source may always have this many bytes, one hello of a common size, within the limit of all sources.
const ONE_HELLO: usize = 4096;

/// A source that was quiet may make as many connections at once as its rate allows in this time.
const BURST: Duration = Duration::from_secs(1);

/// The limits on buffered bytes and pipes of all connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct BufferLimit {
    /// Bytes on the heap.
    pub bytes: usize,
    /// Pipes with bytes in them.
    pub pipes: usize,
}

/// The limits of one role, shared by its workers.
pub struct Admission {
    max_hello_size: usize,
    /// Places of incomplete hellos.
    hellos: Arc<FairPlaces>,
    /// Bytes in memory of all hellos.
    hello_bytes: Quota,
    buffered_bytes: Quota,
    buffered_pipes: Quota,
    /// Most open connections of a source; `None`: no limit.
    source_connections: Option<NonZero<usize>>,
    /// Nanoseconds from one connection of a source to the next; `None`: no limit.
    interval: Option<u64>,
    slots: Box<[SourceSlot]>,
    hasher: RandomState,
    started: Instant,
}

/// The counters of the sources in one slot.
#[derive(Debug, Default)]
struct SourceSlot {
    hello_bytes: AtomicUsize,
    buffered_bytes: AtomicUsize,
    buffered_pipes: AtomicUsize,
    /// Open connections, if they have a limit.
    connections: AtomicUsize,
    /// When the next connection is due, in nanoseconds since the start.
    due: AtomicU64,
}

impl Admission {
    /// `connections`: the limit on open connections.
    #[must_use]
    pub fn new(
        limits: &config::Connection,
        connections: usize,
        buffer_limit: BufferLimit,
    ) -> Arc<Self> {
        let hellos = match limits.max_hellos {
            0 => (connections / 2).max(MIN_HELLOS),
            hellos => hellos,
        };
        Arc::new(Self {
            max_hello_size: limits.max_hello_size,
            hellos: FairPlaces::new(hellos, WhenFull::Newcomer { healthy: STALLED }),
            hello_bytes: Quota::new(limits.max_hello_bytes, MIN_BYTE_SHARE, ONE_HELLO),
            buffered_bytes: Quota::new(buffer_limit.bytes, 0, 0),
            // Each source may have one pipe while a pipe is free.
            buffered_pipes: Quota::new(buffer_limit.pipes, 0, 1),
            source_connections: NonZero::new(limits.max_per_source),
            interval: 1_000_000_000u64.checked_div(u64::from(limits.rate_per_source)),
            slots: (0..SOURCE_SLOTS).map(|_| SourceSlot::default()).collect(),
            hasher: RandomState::new(),
            started: Instant::now(),
        })
    }

    /// Begins to count a hello of this peer.
    pub(crate) fn begin_hello(self: &Arc<Self>, peer: IpAddr) -> PendingHello<'_> {
        PendingHello {
            admission: self,
            source: Source::of(peer),
            slot: None,
            place: None,
            bytes: 0,
        }
    }

    /// Most bytes of one hello.
    pub(super) const fn max_hello_size(&self) -> usize {
        self.max_hello_size
    }

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

    fn slot_of(&self, source: Source) -> usize {
        let hash = self.hasher.hash_one(source);
        (hash % SOURCE_SLOTS as u64) as usize
    }
}

/// Counts the bytes of one hello until this value is dropped. A hello that waits for bytes also counts as
/// incomplete, until [`Self::complete`]. Most hellos never wait.
pub(crate) struct PendingHello<'a> {
    admission: &'a Arc<Admission>,
    source: Source,
    /// The slot of the source, once the source is known.
    slot: Option<usize>,
    /// Set while the hello is incomplete and has waited for bytes.
    place: Option<Place>,
    bytes: usize,
}

impl PendingHello<'_> {
    /// Sets the source of the connection. Call this once, as soon as the source is known. `now` reads the clock,
    /// which only a limit on the rate needs.
    ///
    /// # Errors
    /// If the source has too many open connections, or connects too often.
    pub(crate) fn admit(
        &mut self,
        source: IpAddr,
        now: impl FnOnce() -> Instant,
    ) -> Result<Admitted, IntakeFailure> {
        let admission = self.admission;
        self.source = Source::of(source);
        let index = admission.slot_of(self.source);
        let slot = &admission.slots[index];
        if let Some(interval) = admission.interval
            && !slot.take_turn(interval, now().saturating_duration_since(admission.started))
        {
            return Err(IntakeFailure::SourceRate);
        }
        let admitted = Admitted::new(admission, index)?;
        if let Some(place) = &mut self.place {
            place.move_to(self.source);
        }
        // The bytes of a PROXY header came before the source was known.
        slot.hello_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        self.slot = Some(index);
        Ok(admitted)
    }

    /// Counts more bytes in memory.
    ///
    /// # Errors
    /// If the hellos of all sources, or those of this source, have too many bytes.
    pub(super) fn add_bytes(&mut self, bytes: usize) -> Result<(), IntakeFailure> {
        let quota = &self.admission.hello_bytes;
        if !quota.take(bytes) {
            return Err(IntakeFailure::HelloLimit);
        }
        if let Some(slot) = self.slot()
            && !quota.take_for_source(&slot.hello_bytes, bytes)
        {
            quota.give_back(bytes);
            return Err(IntakeFailure::SourceLimit);
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Counts the hello as incomplete, because it waits for bytes. Ready if the hello has to give way to a newer
    /// hello, or if no older hello gives way.
    pub(super) fn poll_displaced(&mut self, cx: &mut Context<'_>) -> Poll<IntakeFailure> {
        if self.place.is_none() {
            self.place = self.admission.hellos.enter(self.source);
        }
        match &mut self.place {
            Some(place) => place.poll_displaced(cx).map(|()| IntakeFailure::Displaced),
            None => Poll::Ready(IntakeFailure::HelloLimit),
        }
    }

    /// Records that the hello is complete, which makes room for another incomplete hello.
    pub(super) fn complete(&mut self) {
        self.place = None;
    }

    fn slot(&self) -> Option<&SourceSlot> {
        self.slot.map(|index| &self.admission.slots[index])
    }
}

impl Drop for PendingHello<'_> {
    fn drop(&mut self) {
        self.admission.hello_bytes.give_back(self.bytes);
        if let Some(slot) = self.slot() {
            slot.hello_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Counts a connection for its source until this value is dropped.
pub struct Admitted {
    admission: Arc<Admission>,
    slot: usize,
}

impl Admitted {
    fn new(admission: &Arc<Admission>, slot: usize) -> Result<Self, IntakeFailure> {
        if let Some(max) = admission.source_connections
            && !add_up_to(&admission.slots[slot].connections, 1, max.get())
        {
            return Err(IntakeFailure::SourceConnections);
        }
        Ok(Self {
            admission: Arc::clone(admission),
            slot,
        })
    }

    /// True if this many more bytes may be buffered on the heap. Other workers may buffer bytes before these
    /// bytes are counted. So each worker can exceed the limit by one read.
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

    fn slot(&self) -> &SourceSlot {
        &self.admission.slots[self.slot]
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.admission.source_connections.is_some() {
            self.slot().connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl SourceSlot {
    /// Counts one more connection and returns true, if the rate allows it.
    fn take_turn(&self, interval: u64, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let latest = now.saturating_add(BURST.as_nanos() as u64);
        let next = |due: u64| {
            let next = due.max(now).saturating_add(interval);
            (next <= latest).then_some(next)
        };
        self.due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .is_ok()
    }
}

#[cfg(test)]
mod tests;
