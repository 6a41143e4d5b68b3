//! A pool of places that all workers share. If the pool is full, the source that holds most gives way.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use sessile_proto::affinity::Source;
use sessile_proto::fair_pool::{FairPool, PlaceId, gives_way};
use tokio::sync::oneshot;

use crate::locks::locked;

/// Parts of a pool. Sources in different parts do not wait for each other's lock.
const PARTS: usize = 16;

/// Who gets a place in a full pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// A newcomer whose source holds fewer places than another source.
    FairShare,
    /// Every newcomer. Use this for work that a healthy client finishes at once.
    Newcomer,
}

/// The places, shared by all workers of a role.
pub struct FairPlaces {
    max: usize,
    when_full: WhenFull,
    used: AtomicUsize,
    parts: [Part; PARTS],
    /// The part where the next search begins, so that no part gives way more often than the others.
    next: AtomicUsize,
}

#[derive(Default)]
struct Part {
    pool: Mutex<FairPool<oneshot::Sender<()>>>,
    /// The most places of one source, readable without the lock.
    most_held: AtomicUsize,
}

/// A place. It is free again when this is dropped.
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
        Arc::new(Self {
            max,
            when_full,
            used: AtomicUsize::new(0),
            parts: Default::default(),
            next: AtomicUsize::new(0),
        })
    }

    /// Takes a place for a source. `None` if the pool is full and no other source gives way.
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
        let id = self.part(source).change(|pool| pool.enter(source, lost));
        Place {
            places: Arc::clone(self),
            id,
            source,
            displaced,
        }
    }

    /// Takes a place from the source that holds most. Returns false if there is none that has to give way.
    fn displace_for(&self, source: Source) -> bool {
        let own = locked(&self.part(source).pool).held_by(source);
        // Another worker may displace the same place first. The next source is tried then.
        for _ in 0..PARTS {
            let Some(part) = self.part_that_holds_most() else {
                return false;
            };
            let lost = part.change(|pool| match self.when_full {
                WhenFull::FairShare if !gives_way(pool.most_held(), own) => None,
                _ => pool.displace(),
            });
            if let Some(lost) = lost {
                self.used.fetch_sub(1, Ordering::Relaxed);
                // The holder may be leaving by itself.
                let _ = lost.send(());
                return true;
            }
            if self.when_full == WhenFull::FairShare {
                return false;
            }
        }
        false
    }

    fn part_that_holds_most(&self) -> Option<&Part> {
        let first = self.next.fetch_add(1, Ordering::Relaxed) % PARTS;
        let (before, after) = self.parts.split_at(first);
        let held = |part: &&Part| part.most_held.load(Ordering::Relaxed);
        let most = after.iter().chain(before).map(|part| (held(&part), part));
        most.reduce(|most, next| if next.0 > most.0 { next } else { most })
            .filter(|(held, _)| *held > 0)
            .map(|(_, part)| part)
    }

    fn part(&self, source: Source) -> &Part {
        &self.parts[source.spread(PARTS)]
    }
}

impl Part {
    fn change<T>(&self, change: impl FnOnce(&mut FairPool<oneshot::Sender<()>>) -> T) -> T {
        let mut pool = locked(&self.pool);
        let result = change(&mut pool);
        self.most_held.store(pool.most_held(), Ordering::Relaxed);
        result
    }
}

impl Place {
    /// Counts the place for another source, once the source of a connection behind a proxy is known.
    pub fn move_to(&mut self, source: Source) {
        // A place that was displaced is not taken again.
        if source != self.source && self.leave() {
            *self = self.places.place(source);
        }
    }

    /// Ready when the place was given to another source.
    pub fn poll_displaced(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.displaced).poll(cx).map(drop)
    }

    /// Waits until the place was given to another source.
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
        // Each source holds two. Nobody gives way to a third.
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
        let places = FairPlaces::new(2, WhenFull::Newcomer);
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
        let places = FairPlaces::new(64, WhenFull::Newcomer);
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
