//! Who may come in: how many hellos may be on their way at once and how many bytes of them are held,
//! in all and from one source prefix; and of one source prefix, how many connections may be open and
//! how many a second are taken, and what may be held back of them. All that are open are counted elsewhere (`connection.max`).
//!
//! Sources are told apart by a keyed hash into a fixed number of places, so that nothing here grows
//! and no lock is taken. Two that share a place share its limits; who they are cannot be chosen.

mod backlog;

pub use backlog::{Backlog, HeldBack};

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sessile_proto::affinity::Source;

use crate::config;

/// Sources that can be told apart.
const PLACES: usize = 4096;

/// One source prefix may have one in this many of the hellos, and of their bytes, while there is room.
const SHARE: usize = 4;

/// And no more than one in this many of what is free, so that a few that take all they can get leave
/// room for one that comes after them: with it, each of `n` may have one in `n + 2` of all.
const SHARE_OF_FREE: usize = 2;

/// Where `connection.max-hellos` is not set it is half of all connections, and not less than this.
const LEAST_HELLOS: usize = 64;

/// Where a quarter is less than this, it is this much.
const LEAST_SHARE: usize = 16;

/// The same in bytes: a few hellos of the greatest length.
const LEAST_SHARE_OF_BYTES: usize = 256 * 1024;

/// What a source may have of the last that is free: a hello as almost all are.
const ONE_HELLO: Used<usize> = Used {
    hellos: 1,
    bytes: 4096,
};

/// How long a source that was quiet may catch up on its rate: as many connections as it may make in
/// this time come at once.
const BURST: Duration = Duration::from_secs(1);

/// Why a connection is turned away before it is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("too many hellos are on their way, or too many bytes of them")]
    Hellos,
    #[error("too many hellos from this source are on their way, or too many bytes of them")]
    Source,
    #[error("too many connections from this source are open")]
    Connections,
    #[error("too many connections from this source a second")]
    Rate,
}

impl Refusal {
    /// The cause that is counted.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Hellos => "hello-limit",
            Self::Source => "source-limit",
            Self::Connections => "source-connections",
            Self::Rate => "source-rate",
        }
    }
}

/// The limits of one role, shared by its workers.
pub struct Admission {
    max_hello_size: usize,
    max: Used<usize>,
    source_max: Used<usize>,
    /// Most connections of a source that are open; `None`: no limit.
    source_connections: Option<NonZero<usize>>,
    /// Nanoseconds from one connection of a source to the next; `None`: no limit.
    interval: Option<u64>,
    used: Used<AtomicUsize>,
    max_held: Backlog<usize>,
    held: Backlog<AtomicUsize>,
    places: Box<[Place]>,
    hasher: RandomState,
    started: Instant,
}

/// Hellos on their way, and the bytes of them that are held.
#[derive(Debug, Default)]
struct Used<T> {
    hellos: T,
    bytes: T,
}

/// What is known of a source.
#[derive(Debug, Default)]
struct Place {
    used: Used<AtomicUsize>,
    /// Its connections that are open, where they are counted.
    connections: AtomicUsize,
    held: Backlog<AtomicUsize>,
    /// When its next connection is due, in nanoseconds since the start.
    due: AtomicU64,
}

impl Admission {
    /// `connections`: as many as there can be. `max_held`: most of what is held back of them.
    #[must_use]
    pub fn new(
        limits: &config::Connection,
        connections: usize,
        max_held: Backlog<usize>,
    ) -> Arc<Self> {
        let hellos = match limits.max_hellos {
            0 => (connections / 2).max(LEAST_HELLOS),
            hellos => hellos,
        };
        let bytes = limits.max_hello_bytes;
        Arc::new(Self {
            max_hello_size: limits.max_hello_size,
            max: Used { hellos, bytes },
            source_max: Used {
                hellos: (hellos / SHARE).max(LEAST_SHARE),
                bytes: (bytes / SHARE).max(LEAST_SHARE_OF_BYTES),
            },
            source_connections: NonZero::new(limits.max_per_source),
            interval: 1_000_000_000u64.checked_div(u64::from(limits.rate_per_source)),
            used: Used::default(),
            max_held,
            held: Backlog::default(),
            places: (0..PLACES).map(|_| Place::default()).collect(),
            hasher: RandomState::new(),
            started: Instant::now(),
        })
    }

    /// Counts a connection whose hello is awaited.
    ///
    /// # Errors
    /// Where there are as many as there may be.
    pub fn enter(self: &Arc<Self>) -> Result<Entry, Refusal> {
        if !raise(&self.used.hellos, 1, self.max.hellos) {
            return Err(Refusal::Hellos);
        }
        Ok(Entry {
            admission: Arc::clone(self),
            place: None,
            awaited: true,
            bytes: 0,
        })
    }

    /// Most bytes of one hello.
    #[must_use]
    pub const fn max_hello_size(&self) -> usize {
        self.max_hello_size
    }

    /// What is held back now of all connections.
    #[must_use]
    pub fn held(&self) -> Backlog<usize> {
        Backlog {
            bytes: self.held.bytes.load(Ordering::Relaxed),
            pipes: self.held.pipes.load(Ordering::Relaxed),
        }
    }

    /// What a source may have, those who came before it being what they are.
    fn share(&self, which: fn(&Used<usize>) -> usize, used: &AtomicUsize) -> usize {
        let free = which(&self.max).saturating_sub(used.load(Ordering::Relaxed));
        let share = which(&self.source_max).min(free / SHARE_OF_FREE);
        share.max(which(&ONE_HELLO))
    }
}

/// Adds, unless it would be more than `max`.
fn raise(counter: &AtomicUsize, by: usize, max: usize) -> bool {
    let fits = counter.fetch_add(by, Ordering::Relaxed).saturating_add(by) <= max;
    if !fits {
        counter.fetch_sub(by, Ordering::Relaxed);
    }
    fits
}

/// A connection that counts: until its hello is whole as one that is awaited, and until this is
/// dropped with the bytes that are held of it.
pub struct Entry {
    admission: Arc<Admission>,
    place: Option<usize>,
    awaited: bool,
    bytes: usize,
}

impl Entry {
    /// Whose connection it is. To be said once, as soon as it is known. What it returns counts as long
    /// as the connection is open.
    ///
    /// # Errors
    /// Where that source has as many as it may.
    pub fn comes_from(&mut self, source: IpAddr, now: Instant) -> Result<Stay, Refusal> {
        let admission = &self.admission;
        let hash = admission.hasher.hash_one(Source::of(source));
        let at = (hash % PLACES as u64) as usize;
        let place = &admission.places[at];
        if let Some(interval) = admission.interval
            && !place.is_due(interval, now.saturating_duration_since(admission.started))
        {
            return Err(Refusal::Rate);
        }
        let stay = Stay::begin(admission, at)?;
        let share = admission.share(|it| it.hellos, &admission.used.hellos);
        if !raise(&place.used.hellos, 1, share) {
            return Err(Refusal::Source);
        }
        // The proxy's header, which came before.
        place.used.bytes.fetch_add(self.bytes, Ordering::Relaxed);
        self.place = Some(at);
        Ok(stay)
    }

    /// Counts bytes that are held from now on.
    ///
    /// # Errors
    /// Where they are too many.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Refusal> {
        let admission = &self.admission;
        if !raise(&admission.used.bytes, bytes, admission.max.bytes) {
            return Err(Refusal::Hellos);
        }
        if let Some(at) = self.place {
            let used = &admission.places[at].used.bytes;
            let share = admission.share(|it| it.bytes, &admission.used.bytes);
            if !raise(used, bytes, share) {
                admission.used.bytes.fetch_sub(bytes, Ordering::Relaxed);
                return Err(Refusal::Source);
            }
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The hello is whole: others may come.
    pub fn heard(&mut self) {
        if std::mem::replace(&mut self.awaited, false) {
            self.each(|used| &used.hellos, 1);
        }
    }

    fn each(&self, which: fn(&Used<AtomicUsize>) -> &AtomicUsize, less: usize) {
        let admission = &self.admission;
        which(&admission.used).fetch_sub(less, Ordering::Relaxed);
        if let Some(at) = self.place {
            which(&admission.places[at].used).fetch_sub(less, Ordering::Relaxed);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.heard();
        self.each(|used| &used.bytes, self.bytes);
    }
}

/// A connection that is one of its source's until this is dropped.
pub struct Stay {
    admission: Arc<Admission>,
    place: usize,
}

impl Stay {
    fn begin(admission: &Arc<Admission>, place: usize) -> Result<Self, Refusal> {
        if let Some(max) = admission.source_connections
            && !raise(&admission.places[place].connections, 1, max.get())
        {
            return Err(Refusal::Connections);
        }
        Ok(Self {
            admission: Arc::clone(admission),
            place,
        })
    }

    fn its_place(&self) -> &Place {
        &self.admission.places[self.place]
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if self.admission.source_connections.is_some() {
            let connections = &self.its_place().connections;
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Place {
    /// Whether one more connection keeps to the rate; if so, it counts.
    fn is_due(&self, interval: u64, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let latest = now.saturating_add(BURST.as_nanos() as u64);
        let next = |due: u64| {
            let next = due.max(now).saturating_add(interval);
            (next <= latest).then_some(next)
        };
        let updated = self
            .due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        updated.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn admission(change: impl FnOnce(&mut config::Connection)) -> Arc<Admission> {
        let mut limits = config::Connection::default();
        change(&mut limits);
        Admission::new(&limits, 1000, Backlog::default())
    }

    fn source(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Addresses in places of their own.
    fn apart<const N: usize>(admission: &Admission) -> [IpAddr; N] {
        let place = |ip: &IpAddr| admission.hasher.hash_one(Source::of(*ip)) % PLACES as u64;
        let mut places = HashSet::new();
        let mut all = (0..=255u8).map(|net| IpAddr::from([198, 51, net, 1]));
        [(); N].map(|()| {
            let next = all.find(|ip| places.insert(place(ip)));
            next.expect("256 networks are in more than a few places")
        })
    }

    fn enter(admission: &Arc<Admission>, ip: IpAddr) -> Result<Entry, Refusal> {
        let mut entry = admission.enter()?;
        entry.comes_from(ip, Instant::now()).map(|_| entry)
    }

    #[test]
    fn one_source_has_a_part_of_all_hellos_and_leaves_the_rest() {
        let admission = admission(|limits| limits.max_hellos = 100);
        let [greedy, other] = apart(&admission);
        let enter = |ip| enter(&admission, ip);
        let mut entries: Vec<Entry> = (0..25).map(|_| enter(greedy).expect("room")).collect();
        assert_eq!(enter(greedy).err(), Some(Refusal::Source));
        entries.push(enter(other).expect("room"));
        // Whoever has said what it wants makes room.
        entries[0].heard();
        entries.push(enter(greedy).expect("room"));
        entries.clear();
        let used = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        assert_eq!(used(&admission.used.hellos), 0);
        assert!(admission.places.iter().all(|it| used(&it.used.hellos) == 0));
    }

    #[test]
    fn a_few_greedy_sources_leave_room_for_one_that_comes_after_them() {
        const HELLO: usize = 2000;
        let admission = admission(|limits| {
            limits.max_hellos = 1000;
            limits.max_hello_bytes = 1 << 20;
        });
        let [late, greedy @ ..] = apart::<9>(&admission);
        let mut entries = Vec::new();
        // All they can get, whatever limit stops them.
        for ip in greedy {
            while let Ok(mut entry) = enter(&admission, ip) {
                match entry.hold(HELLO) {
                    Ok(()) => entries.push(entry),
                    Err(_) => break,
                }
            }
        }
        let mut some = Vec::new();
        for _ in 0..5 {
            let mut entry = enter(&admission, late).expect("room");
            entry.hold(HELLO).expect("room");
            some.push(entry);
        }
        // Whoever has too much now gets no more.
        let more = enter(&admission, greedy[0]).and_then(|mut entry| entry.hold(HELLO));
        assert_eq!(more.err(), Some(Refusal::Source));
    }

    #[test]
    fn a_source_has_no_more_connections_open_than_it_may() {
        let admission = admission(|limits| limits.max_per_source = 2);
        let [busy, other] = apart(&admission);
        let stays = |ip| {
            let mut entry = admission.enter()?;
            entry.comes_from(ip, Instant::now())
        };
        let open = [stays(busy), stays(busy)];
        assert!(open.iter().all(Result::is_ok));
        assert_eq!(stays(busy).err(), Some(Refusal::Connections));
        stays(other).expect("it has none");
        drop(open);
        stays(busy).expect("they have ended");
    }

    #[test]
    fn hellos_have_a_limit_in_all() {
        let admission = admission(|limits| limits.max_hellos = 2);
        let entries = [admission.enter(), admission.enter()];
        assert!(entries.iter().all(Result::is_ok));
        assert_eq!(admission.enter().err(), Some(Refusal::Hellos));
        drop(entries);
        admission.enter().expect("room");
    }

    #[test]
    fn bytes_are_counted_until_they_are_let_go() {
        let admission = admission(|limits| limits.max_hello_bytes = 1 << 20);
        let mut entry = admission.enter().expect("room");
        entry
            .comes_from(source("192.0.2.1"), Instant::now())
            .expect("room");
        entry.hold(LEAST_SHARE_OF_BYTES).expect("room");
        assert_eq!(entry.hold(1), Err(Refusal::Source));
        entry.heard();
        assert_eq!(entry.hold(1), Err(Refusal::Source));
        drop(entry);
        // The proxy's header, before it is known whose connection it is.
        let mut entry = admission.enter().expect("room");
        entry.hold(1 << 20).expect("room");
        assert_eq!(entry.hold(1), Err(Refusal::Hellos));
    }

    #[test]
    fn a_source_keeps_to_its_rate() {
        let admission = admission(|limits| limits.rate_per_source = 10);
        let [busy, other] = apart(&admission);
        let comes = |ip, after| {
            let mut entry = admission.enter().expect("room");
            let stay = entry.comes_from(ip, admission.started + Duration::from_millis(after));
            stay.map(drop)
        };
        for _ in 0..10 {
            comes(busy, 0).expect("a second's worth may come at once");
        }
        assert_eq!(comes(busy, 50), Err(Refusal::Rate));
        comes(other, 50).expect("it made none yet");
        comes(busy, 100).expect("a tenth of a second later");
        assert_eq!(comes(busy, 100), Err(Refusal::Rate));
        for _ in 0..10 {
            comes(busy, 60_000).expect("no more than a second's worth is saved up");
        }
        assert_eq!(comes(busy, 60_000), Err(Refusal::Rate));
    }
}
