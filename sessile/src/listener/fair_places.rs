//! A pool of places that all workers share. If the pool is full, a newcomer can displace an old place, or one
//! of the source that holds most.

use std::cmp::Reverse;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use sessile_proto::affinity::Source;
use sessile_proto::fair_pool::{FairPool, PlaceId, gives_way};
use tokio::sync::oneshot;

use crate::locks::locked;

/// The number of parts of a pool. Sources in different parts do not wait for each other's lock.
const PARTS: usize = 16;

/// [`Part::oldest`] of a part without places.
const NONE: u64 = u64::MAX;

/// Who gets a place in a full pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// A newcomer whose source holds at least two places fewer than another source.
    FairShare,
    /// Every newcomer. Use this for work that a healthy client finishes at once. Places of any source that
    /// were held for longer than `healthy` give way first.
    Newcomer { healthy: Duration },
}

/// The places, shared by all workers of a role.
pub struct FairPlaces {
    max: usize,
    when_full: WhenFull,
    used: AtomicUsize,
    parts: [Part; PARTS],
    /// The part where the next search begins. Each search begins at another part, so that equal parts give way
    /// in turn.
    next: AtomicUsize,
    started: Instant,
}

/// The value of a place.
struct Holder {
    /// The time from the start of the pool to the arrival. Zero if only the shares decide.
    since: Duration,
    /// Tells the holder that the place is lost.
    lost: oneshot::Sender<()>,
}

struct Part {
    pool: Mutex<FairPool<Holder>>,
    /// The most places of one source, readable without the lock.
    most_held: AtomicUsize,
    /// Milliseconds from the start to the oldest place, readable without the lock.
    oldest: AtomicU64,
}

/// A place. The place is free again when this value is dropped.
pub struct Place {
    places: Arc<FairPlaces>,
    id: PlaceId,
    source: Source,
    displaced: oneshot::Receiver<()>,
}

impl FairPlaces {
    /// A pool of `max` places.
    #[must_use]
    pub fn new(max: usize, when_full: WhenFull) -> Arc<Self> {
        let part = |_| Part {
            pool: Mutex::default(),
            most_held: AtomicUsize::new(0),
            oldest: AtomicU64::new(NONE),
        };
        Arc::new(Self {
            max,
            when_full,
            used: AtomicUsize::new(0),
            parts: std::array::from_fn(part),
            next: AtomicUsize::new(0),
            started: Instant::now(),
        })
    }

    /// Takes a place for a source. `None` if the pool is full and no place is displaced.
    #[must_use]
    pub fn enter(self: &Arc<Self>, source: Source) -> Option<Place> {
        let before = self.used.fetch_add(1, Ordering::Relaxed);
        if before >= self.max && !self.displace_for(source) {
            self.used.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(self.place(source))
    }

    /// How many places are taken.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn place(self: &Arc<Self>, source: Source) -> Place {
        let (lost, displaced) = oneshot::channel();
        let since = match self.when_full {
            // The time does not matter, so do not read the clock.
            WhenFull::FairShare => Duration::ZERO,
            WhenFull::Newcomer { .. } => self.started.elapsed(),
        };
        let part = self.part(source);
        let id = part.change(|pool| pool.enter(source, Holder { since, lost }));
        Place {
            places: Arc::clone(self),
            id,
            source,
            displaced,
        }
    }

    /// Frees a place for a newcomer. Returns false if no place has to give way.
    fn displace_for(&self, source: Source) -> bool {
        let holder = match self.when_full {
            WhenFull::FairShare => {
                let own = locked(&self.part(source).pool).held_by(source);
                self.displace_from_largest(own)
            }
            WhenFull::Newcomer { healthy } => self
                .displace_older_than(healthy)
                .or_else(|| self.displace_from_any()),
        };
        let Some(holder) = holder else {
            return false;
        };
        self.used.fetch_sub(1, Ordering::Relaxed);
        // The receiver may be gone, because the holder may leave at the same time.
        let _ = holder.lost.send(());
        true
    }

    fn displace_from_largest(&self, own: usize) -> Option<Holder> {
        let part = self.search(Part::most_held);
        part.change(|pool| {
            let has_to = gives_way(pool.most_held(), own);
            has_to.then(|| pool.displace_from_largest()).flatten()
        })
    }

    fn displace_older_than(&self, healthy: Duration) -> Option<Holder> {
        let part = self.search(|part| Reverse(part.oldest.load(Ordering::Relaxed)));
        let now = self.started.elapsed();
        part.change(|pool| {
            let is_old = now.saturating_sub(pool.oldest()?.since) > healthy;
            is_old.then(|| pool.displace_oldest()).flatten()
        })
    }

    /// Displaces a place of the source that holds most. Another worker may empty the found part first, so this
    /// searches again.
    fn displace_from_any(&self) -> Option<Holder> {
        (0..PARTS).find_map(|_| {
            let part = self.search(Part::most_held);
            part.change(FairPool::displace_from_largest)
        })
    }

    /// The part with the greatest key. Parts with equal keys are found in turn.
    fn search<K: Ord>(&self, key: impl Fn(&Part) -> K) -> &Part {
        let first = self.next.fetch_add(1, Ordering::Relaxed) % PARTS;
        let mut found = &self.parts[first];
        for offset in 1..PARTS {
            let part = &self.parts[(first + offset) % PARTS];
            if key(part) > key(found) {
                found = part;
            }
        }
        found
    }

    fn part(&self, source: Source) -> &Part {
        &self.parts[source.spread(PARTS)]
    }
}

impl Part {
    fn most_held(&self) -> usize {
        self.most_held.load(Ordering::Relaxed)
    }

    fn change<T>(&self, change: impl FnOnce(&mut FairPool<Holder>) -> T) -> T {
        let mut pool = locked(&self.pool);
        let result = change(&mut pool);
        self.most_held.store(pool.most_held(), Ordering::Relaxed);
        let oldest = pool
            .oldest()
            .map_or(NONE, |oldest| oldest.since.as_millis() as u64);
        self.oldest.store(oldest, Ordering::Relaxed);
        result
    }
}

impl Place {
    /// Counts the place for another source, once the source of a connection behind a proxy is known.
    pub fn move_to(&mut self, source: Source) {
        // If the place was displaced, the source must not get a new place.
        if source != self.source && self.leave() {
            *self = self.places.place(source);
        }
    }

    /// Ready when the place was given to a newcomer.
    pub fn poll_displaced(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.displaced).poll(cx).map(drop)
    }

    /// Waits until the place was given to a newcomer.
    pub async fn displaced(&mut self) {
        poll_fn(|cx| self.poll_displaced(cx)).await;
    }

    /// Leaves the pool. Returns false if the place was displaced before.
    fn leave(&self) -> bool {
        let part = self.places.part(self.source);
        part.change(|pool| pool.leave(self.id)).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.leave() {
            self.places.used.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::task::Waker;

    use super::*;

    const NEWCOMER: WhenFull = WhenFull::Newcomer {
        healthy: Duration::MAX,
    };

    fn source(net: u8) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::new(198, 51, net, 1)))
    }

    fn is_displaced(place: &mut Place) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        place.poll_displaced(&mut cx).is_ready()
    }

    fn enter(places: &Arc<FairPlaces>, net: u8) -> Place {
        places.enter(source(net)).expect("a place")
    }

    #[test]
    fn a_source_may_take_all_places_until_another_source_comes() {
        let places = FairPlaces::new(4, WhenFull::FairShare);
        let mut greedy: Vec<Place> = (0..4).map(|_| enter(&places, 1)).collect();
        assert!(places.enter(source(1)).is_none());
        let first = enter(&places, 2);
        let second = enter(&places, 2);
        // Each source holds two places now, and no place gives way to a third place of a source.
        assert!(places.enter(source(2)).is_none());
        let displaced: Vec<bool> = greedy.iter_mut().map(is_displaced).collect();
        assert_eq!(displaced, [true, true, false, false]);
        drop(greedy);
        assert_eq!(places.used(), 2);
        drop((first, second));
        assert_eq!(places.used(), 0);
    }

    #[test]
    fn every_newcomer_gets_a_place_where_the_oldest_gives_way() {
        let places = FairPlaces::new(2, NEWCOMER);
        let mut first = enter(&places, 1);
        let mut second = enter(&places, 2);
        let mut third = enter(&places, 1);
        assert_eq!(
            [&mut first, &mut second, &mut third]
                .map(is_displaced)
                .iter()
                .filter(|it| **it)
                .count(),
            1
        );
        assert!(!is_displaced(&mut third));
        assert_eq!(places.used(), 2);
    }

    #[test]
    fn a_place_that_was_held_for_too_long_gives_way_before_the_largest_source() {
        let healthy = Duration::ZERO;
        let places = FairPlaces::new(3, WhenFull::Newcomer { healthy });
        let mut stalled = enter(&places, 1);
        let mut many = [enter(&places, 2), enter(&places, 2)];
        let newcomer = enter(&places, 2);
        assert!(is_displaced(&mut stalled));
        assert!(!many.iter_mut().any(is_displaced));
        drop(newcomer);
    }

    #[test]
    fn a_place_counts_for_the_source_behind_the_proxy() {
        let places = FairPlaces::new(3, WhenFull::FairShare);
        let mut moved: Vec<Place> = (0..3).map(|_| enter(&places, 9)).collect();
        for place in &mut moved {
            place.move_to(source(1));
        }
        assert_eq!(places.used(), 3);
        let newcomer = enter(&places, 9);
        assert!(is_displaced(&mut moved[0]));
        drop(moved);
        drop(newcomer);
        assert_eq!(places.used(), 0);
    }

    #[test]
    fn no_pool_is_without_places_when_workers_meet() {
        let places = FairPlaces::new(64, NEWCOMER);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let places = &places;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for turn in 0..2000u32 {
                        held.push(enter(places, (turn % 7) as u8 * 4 + worker));
                        if turn % 3 == 0 {
                            held.truncate(20);
                        }
                    }
                });
            }
        });
        assert_eq!(places.used(), 0);
    }
}
