//! Who may come in. There are limits on incomplete ClientHellos, on their bytes in memory, and on bytes and
//! pipes that are buffered for peers that do not read: in all, and for each source. For each source there are
//! also limits on open connections and on connections in a second.
//!
//! A keyed hash maps sources to a fixed number of slots, so nothing here grows and no lock is needed. Two
//! sources in one slot share its limits. An attacker cannot choose who shares a slot.

mod buffer_limit;

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
use buffer_limit::BufferUse;

/// Slots for sources.
const SOURCE_SLOTS: usize = 4096;

/// A source may have one in this many of the hellos, and of their bytes.
const SHARE: usize = 4;

/// A source may also have no more than one in this many of the free ones. So a few greedy sources leave room
/// for the next: each of `n` gets about one in `n + 2` of all.
const SHARE_OF_FREE: usize = 2;

/// The default of `connection.max-hellos` is half of all connections, and at least this.
const MIN_HELLOS: usize = 64;

/// The share of a source is at least this many hellos.
const MIN_HELLO_SHARE: usize = 16;

/// The share of a source is at least this many bytes: a few hellos of the greatest length.
const MIN_BYTE_SHARE: usize = 256 * 1024;

/// The share of a source if nothing is free: one hello of a common size.
const ONE_HELLO: HelloUse<usize> = HelloUse {
    hellos: 1,
    bytes: 4096,
};

/// A source that was quiet may make as many connections at once as its rate allows in this time.
const BURST: Duration = Duration::from_secs(1);

/// The limits of one role, shared by its workers.
pub struct Admission {
    max_hello_size: usize,
    max: HelloUse<usize>,
    source_max: HelloUse<usize>,
    /// Most open connections of a source; `None`: no limit.
    source_connections: Option<NonZero<usize>>,
    /// Nanoseconds from one connection of a source to the next; `None`: no limit.
    interval: Option<u64>,
    used: HelloUse<AtomicUsize>,
    buffer_limit: BufferLimit,
    buffered: BufferUse,
    slots: Box<[SourceSlot]>,
    hasher: RandomState,
    started: Instant,
}

/// Incomplete hellos, and the bytes in memory of all hellos.
#[derive(Debug, Default)]
struct HelloUse<T> {
    hellos: T,
    bytes: T,
}

/// The counters of the sources in one slot.
#[derive(Debug, Default)]
struct SourceSlot {
    used: HelloUse<AtomicUsize>,
    /// Open connections, if they have a limit.
    connections: AtomicUsize,
    buffered: BufferUse,
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
        let bytes = limits.max_hello_bytes;
        Arc::new(Self {
            max_hello_size: limits.max_hello_size,
            max: HelloUse { hellos, bytes },
            source_max: HelloUse {
                hellos: (hellos / SHARE).max(MIN_HELLO_SHARE),
                bytes: (bytes / SHARE).max(MIN_BYTE_SHARE),
            },
            source_connections: NonZero::new(limits.max_per_source),
            interval: 1_000_000_000u64.checked_div(u64::from(limits.rate_per_source)),
            used: HelloUse::default(),
            buffer_limit,
            buffered: BufferUse::default(),
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
        if !add_up_to(&self.used.hellos, 1, self.max.hellos) {
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

    /// The share of one source, given the use by all sources.
    fn share(&self, kind: fn(&HelloUse<usize>) -> usize, used: &AtomicUsize) -> usize {
        let free = kind(&self.max).saturating_sub(used.load(Ordering::Relaxed));
        let share = kind(&self.source_max).min(free / SHARE_OF_FREE);
        share.max(kind(&ONE_HELLO))
    }

    fn slot_of(&self, source: IpAddr) -> usize {
        let hash = self.hasher.hash_one(Source::of(source));
        (hash % SOURCE_SLOTS as u64) as usize
    }
}

/// Adds, unless the sum would be more than `max`.
fn add_up_to(counter: &AtomicUsize, amount: usize, max: usize) -> bool {
    let before = counter.fetch_add(amount, Ordering::Relaxed);
    let fits = before.saturating_add(amount) <= max;
    if !fits {
        counter.fetch_sub(amount, Ordering::Relaxed);
    }
    fits
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
        let share = admission.share(|max| max.hellos, &admission.used.hellos);
        if !add_up_to(&slot.used.hellos, 1, share) {
            return Err(IntakeFailure::SourceLimit);
        }
        // The bytes of a PROXY header came before its source was known.
        slot.used.bytes.fetch_add(self.bytes, Ordering::Relaxed);
        self.slot = Some(index);
        Ok(admitted)
    }

    /// Counts more bytes in memory.
    ///
    /// # Errors
    /// If they are too many.
    pub(super) fn add_bytes(&mut self, bytes: usize) -> Result<(), IntakeFailure> {
        let admission = &self.admission;
        let all = &admission.used.bytes;
        if !add_up_to(all, bytes, admission.max.bytes) {
            return Err(IntakeFailure::HelloLimit);
        }
        if let Some(index) = self.slot {
            let share = admission.share(|max| max.bytes, all);
            if !add_up_to(&admission.slots[index].used.bytes, bytes, share) {
                all.fetch_sub(bytes, Ordering::Relaxed);
                return Err(IntakeFailure::SourceLimit);
            }
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The hello is complete and makes room for another.
    pub(super) fn complete(&mut self) {
        if std::mem::replace(&mut self.is_incomplete, false) {
            self.subtract(|used| &used.hellos, 1);
        }
    }

    fn subtract(&self, kind: fn(&HelloUse<AtomicUsize>) -> &AtomicUsize, amount: usize) {
        let admission = &self.admission;
        kind(&admission.used).fetch_sub(amount, Ordering::Relaxed);
        if let Some(index) = self.slot {
            kind(&admission.slots[index].used).fetch_sub(amount, Ordering::Relaxed);
        }
    }
}

impl Drop for PendingHello {
    fn drop(&mut self) {
        self.complete();
        self.subtract(|used| &used.bytes, self.bytes);
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
        let used = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        assert_eq!(used(&admission.used.hellos), 0);
        let slots = &admission.slots;
        assert!(slots.iter().all(|slot| used(&slot.used.hellos) == 0));
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
