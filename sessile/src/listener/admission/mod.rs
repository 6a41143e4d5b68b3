//! Who may come in. Incomplete ClientHellos and their bytes in memory have limits, in all and for each source.
//! So have bytes and pipes that are buffered for peers that do not read. Each source also has limits on open
//! connections and on connections in a second.
//!
//! A keyed hash maps sources to a fixed number of slots, so nothing here grows and no lock is needed. Two
//! sources in one slot share its limits. An attacker cannot choose who shares a slot.

mod buffer_limit;
mod quota;

pub use buffer_limit::{BufferGuard, BufferLimit};

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sessile_proto::affinity::Source;

use super::rejection::IntakeFailure;
use crate::config;
use quota::{Quota, add_up_to};

/// Slots for sources.
const SOURCE_SLOTS: usize = 4096;

/// The default of `connection.max-hellos` is half of all connections, and at least this.
const MIN_HELLOS: usize = 64;

/// The share of a source is at least this many hellos.
const MIN_HELLO_SHARE: usize = 16;

/// The share of a source is at least this many bytes: a few hellos of the greatest length.
const MIN_BYTE_SHARE: usize = 256 * 1024;

/// The bytes that a source may have if nothing is free: those of one hello of a common size.
const ONE_HELLO: usize = 4096;

/// A source that was quiet may make as many connections at once as its rate allows in this time.
const BURST: Duration = Duration::from_secs(1);

/// The limits of one role, shared by its workers.
pub struct Admission {
    max_hello_size: usize,
    /// Incomplete hellos.
    hellos: Quota,
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
    hellos: AtomicUsize,
    hello_bytes: AtomicUsize,
    buffered_bytes: AtomicUsize,
    buffered_pipes: AtomicUsize,
    /// Open connections, if they have a limit.
    connections: AtomicUsize,
    /// When the next connection is due, in nanoseconds since the start.
    due: AtomicU64,
}

impl Admission {
    /// `connections`: how many connections there can be.
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
            hellos: Quota::new(hellos, MIN_HELLO_SHARE, 1),
            hello_bytes: Quota::new(limits.max_hello_bytes, MIN_BYTE_SHARE, ONE_HELLO),
            buffered_bytes: Quota::new(buffer_limit.bytes, 0, 0),
            // Each source may have a pipe while there is one.
            buffered_pipes: Quota::new(buffer_limit.pipes, 0, 1),
            source_connections: NonZero::new(limits.max_per_source),
            interval: 1_000_000_000u64.checked_div(u64::from(limits.rate_per_source)),
            slots: (0..SOURCE_SLOTS).map(|_| SourceSlot::default()).collect(),
            hasher: RandomState::new(),
            started: Instant::now(),
        })
    }

    /// Counts one more incomplete hello.
    ///
    /// # Errors
    /// If there are as many as there may be.
    pub(crate) fn begin_hello(self: &Arc<Self>) -> Result<PendingHello, IntakeFailure> {
        if !self.hellos.take(1) {
            return Err(IntakeFailure::HelloLimit);
        }
        Ok(PendingHello {
            admission: Arc::clone(self),
            slot: None,
            is_incomplete: true,
            bytes: 0,
        })
    }

    /// Most bytes of one hello.
    pub(super) const fn max_hello_size(&self) -> usize {
        self.max_hello_size
    }

    fn slot_of(&self, source: IpAddr) -> usize {
        let hash = self.hasher.hash_one(Source::of(source));
        (hash % SOURCE_SLOTS as u64) as usize
    }
}

/// Counts one hello as incomplete until [`Self::complete`], and the bytes of the hello until it is dropped.
pub(crate) struct PendingHello {
    admission: Arc<Admission>,
    /// The slot of the source, once the source is known.
    slot: Option<usize>,
    is_incomplete: bool,
    bytes: usize,
}

impl PendingHello {
    /// Tells once which source the connection has, as soon as it is known.
    ///
    /// # Errors
    /// If the source has as many connections or hellos as it may.
    pub(crate) fn admit(
        &mut self,
        source: IpAddr,
        now: Instant,
    ) -> Result<Admitted, IntakeFailure> {
        let admission = &self.admission;
        let index = admission.slot_of(source);
        let slot = &admission.slots[index];
        if let Some(interval) = admission.interval
            && !slot.take_turn(interval, now.saturating_duration_since(admission.started))
        {
            return Err(IntakeFailure::SourceRate);
        }
        let admitted = Admitted::new(admission, index)?;
        if !admission.hellos.take_for_source(&slot.hellos, 1) {
            return Err(IntakeFailure::SourceLimit);
        }
        // The bytes of a PROXY header came before its source was known.
        slot.hello_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        self.slot = Some(index);
        Ok(admitted)
    }

    /// Counts more bytes in memory.
    ///
    /// # Errors
    /// If they are too many.
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

    /// The hello is complete and makes room for another.
    pub(super) fn complete(&mut self) {
        if std::mem::replace(&mut self.is_incomplete, false) {
            self.admission.hellos.give_back(1);
            if let Some(slot) = self.slot() {
                slot.hellos.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn slot(&self) -> Option<&SourceSlot> {
        self.slot.map(|index| &self.admission.slots[index])
    }
}

impl Drop for PendingHello {
    fn drop(&mut self) {
        self.complete();
        self.admission.hello_bytes.give_back(self.bytes);
        if let Some(slot) = self.slot() {
            slot.hello_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Counts a connection for its source until it is dropped.
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
    /// Counts one more connection if it keeps to the rate. Returns true then.
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
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn admission(change: impl FnOnce(&mut config::Connection)) -> Arc<Admission> {
        let mut limits = config::Connection::default();
        change(&mut limits);
        Admission::new(&limits, 1000, BufferLimit::default())
    }

    /// Addresses in slots of their own.
    fn distinct_sources<const N: usize>(admission: &Admission) -> [IpAddr; N] {
        let mut slots = HashSet::new();
        let mut addresses = (0..=255u8).map(|net| IpAddr::from([198, 51, net, 1]));
        [(); N].map(|()| {
            let next = addresses.find(|ip| slots.insert(admission.slot_of(*ip)));
            next.expect("256 networks are in more than a few slots")
        })
    }

    fn begin(admission: &Arc<Admission>, ip: IpAddr) -> Result<PendingHello, IntakeFailure> {
        let mut hello = admission.begin_hello()?;
        hello.admit(ip, Instant::now()).map(|_| hello)
    }

    fn admit(admission: &Arc<Admission>, ip: IpAddr) -> Result<Admitted, IntakeFailure> {
        admission.begin_hello()?.admit(ip, Instant::now())
    }

    #[test]
    fn one_source_has_a_part_of_all_hellos_and_leaves_the_rest() {
        let admission = admission(|limits| limits.max_hellos = 100);
        let [greedy, other] = distinct_sources(&admission);
        let begin = |ip| begin(&admission, ip);
        let mut hellos: Vec<PendingHello> = (0..25).map(|_| begin(greedy).expect("room")).collect();
        assert_eq!(begin(greedy).err(), Some(IntakeFailure::SourceLimit));
        hellos.push(begin(other).expect("room"));
        hellos[0].complete();
        hellos.push(begin(greedy).expect("room after a complete hello"));
        hellos.clear();
        assert_eq!(admission.hellos.used(), 0);
        let mut slots = admission.slots.iter();
        assert!(slots.all(|slot| slot.hellos.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_few_greedy_sources_leave_room_for_one_that_comes_after_them() {
        const HELLO: usize = 2000;
        let admission = admission(|limits| {
            limits.max_hellos = 1000;
            limits.max_hello_bytes = 1 << 20;
        });
        let [late, greedy @ ..] = distinct_sources::<9>(&admission);
        let mut of_greedy = Vec::new();
        for ip in greedy {
            while let Ok(mut hello) = begin(&admission, ip) {
                match hello.add_bytes(HELLO) {
                    Ok(()) => of_greedy.push(hello),
                    Err(_) => break,
                }
            }
        }
        let mut of_late = Vec::new();
        for _ in 0..5 {
            let mut hello = begin(&admission, late).expect("room");
            hello.add_bytes(HELLO).expect("room");
            of_late.push(hello);
        }
        // A source that has more than its share by now gets nothing more.
        let more = begin(&admission, greedy[0]).and_then(|mut hello| hello.add_bytes(HELLO));
        assert_eq!(more.err(), Some(IntakeFailure::SourceLimit));
    }

    #[test]
    fn a_source_has_no_more_connections_open_than_it_may() {
        let admission = admission(|limits| limits.max_per_source = 2);
        let [busy, other] = distinct_sources(&admission);
        let open = [admit(&admission, busy), admit(&admission, busy)];
        assert!(open.iter().all(Result::is_ok));
        let refused = admit(&admission, busy).err();
        assert_eq!(refused, Some(IntakeFailure::SourceConnections));
        admit(&admission, other).expect("it has none");
        drop(open);
        admit(&admission, busy).expect("they have ended");
    }

    #[test]
    fn hellos_have_a_limit_in_all() {
        let admission = admission(|limits| limits.max_hellos = 2);
        let hellos = [admission.begin_hello(), admission.begin_hello()];
        assert!(hellos.iter().all(Result::is_ok));
        let refused = admission.begin_hello().err();
        assert_eq!(refused, Some(IntakeFailure::HelloLimit));
        drop(hellos);
        admission.begin_hello().expect("room");
    }

    #[test]
    fn bytes_are_counted_until_they_are_let_go() {
        let admission = admission(|limits| limits.max_hello_bytes = 1 << 20);
        let [source] = distinct_sources(&admission);
        let mut hello = begin(&admission, source).expect("room");
        hello.add_bytes(MIN_BYTE_SHARE).expect("room");
        assert_eq!(hello.add_bytes(1), Err(IntakeFailure::SourceLimit));
        hello.complete();
        assert_eq!(hello.add_bytes(1), Err(IntakeFailure::SourceLimit));
        drop(hello);
        // Bytes of a PROXY header, before the source is known.
        let mut hello = admission.begin_hello().expect("room");
        hello.add_bytes(1 << 20).expect("room");
        assert_eq!(hello.add_bytes(1), Err(IntakeFailure::HelloLimit));
    }

    #[test]
    fn a_source_keeps_to_its_rate() {
        let admission = admission(|limits| limits.rate_per_source = 10);
        let [busy, other] = distinct_sources(&admission);
        let connect = |ip, after| {
            let mut hello = admission.begin_hello().expect("room");
            let now = admission.started + Duration::from_millis(after);
            hello.admit(ip, now).map(drop)
        };
        for _ in 0..10 {
            connect(busy, 0).expect("a second's worth may come at once");
        }
        assert_eq!(connect(busy, 50), Err(IntakeFailure::SourceRate));
        connect(other, 50).expect("it made none yet");
        connect(busy, 100).expect("a tenth of a second later");
        assert_eq!(connect(busy, 100), Err(IntakeFailure::SourceRate));
        for _ in 0..10 {
            connect(busy, 60_000).expect("no more than a second's worth is saved up");
        }
        assert_eq!(connect(busy, 60_000), Err(IntakeFailure::SourceRate));
    }
}
