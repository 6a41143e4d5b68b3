//! Limits the concurrent requests of an upstream, and counts their results.
//!
//! A source may use all slots while no other source needs one. In a full pool, the source with the most
//! slots loses its oldest slot to a source with fewer slots.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use prometheus::IntCounter;
use sessile_proto::affinity::Source;
use sessile_proto::fair_pool::{FairPool, PlaceId};

use crate::serve::metrics::UpstreamResults;
use crate::serve::request_task::RequestEnd;

/// The slots of an upstream in one worker.
pub(super) struct SlotPool {
    max: usize,
    results: UpstreamResults,
    taken: RefCell<FairPool<Rc<Holder>>>,
}

/// The request that has a slot.
struct Holder {
    end: RequestEnd,
    /// True if the request lost its slot to another source.
    is_displaced: Cell<bool>,
}

/// A request in progress at an upstream. The result of the request is counted once, at the latest when
/// the slot is dropped.
pub(super) struct UpstreamSlot {
    pool: Rc<SlotPool>,
    place: PlaceId,
    holder: Rc<Holder>,
    is_counted: bool,
}

impl SlotPool {
    pub(super) fn new(max: usize, results: UpstreamResults) -> Rc<Self> {
        Rc::new(Self {
            max,
            results,
            taken: RefCell::default(),
        })
    }

    /// The number of slots that are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.borrow().len()
    }

    /// Takes a slot for a request. If no slot is free, the source with the most slots loses its oldest
    /// slot.
    ///
    /// `None` if no slot is free, and no source has at least two slots more than this source. The refusal
    /// is counted.
    pub(super) fn take(self: &Rc<Self>, source: Source, end: RequestEnd) -> Option<UpstreamSlot> {
        let mut taken = self.taken.borrow_mut();
        if taken.len() >= self.max {
            let Some(displaced) = taken.displace_for(source) else {
                self.results.overloaded.inc();
                return None;
            };
            displaced.is_displaced.set(true);
            displaced.end.order();
        }
        let holder = Rc::new(Holder {
            end,
            is_displaced: Cell::new(false),
        });
        // The time of a place has no effect here.
        let place = taken.enter(source, Rc::clone(&holder));
        Some(UpstreamSlot {
            pool: Rc::clone(self),
            place,
            holder,
            is_counted: false,
        })
    }
}

impl UpstreamSlot {
    /// Counts the result of the request if none was counted yet.
    pub(super) fn end(&mut self, counter: impl FnOnce(&UpstreamResults) -> &IntCounter) {
        if !self.is_counted {
            self.is_counted = true;
            counter(&self.pool.results).inc();
        }
    }
}

impl Drop for UpstreamSlot {
    fn drop(&mut self) {
        self.pool.taken.borrow_mut().leave(self.place);
        let is_displaced = self.holder.is_displaced.get();
        let is_stalled = self.holder.end.is_stalled();
        self.end(|results| {
            if is_displaced {
                &results.displaced
            } else if is_stalled {
                &results.stalled
            } else {
                &results.abandoned
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::serve::request_task::tests::metrics;

    fn pool(max: usize) -> Rc<SlotPool> {
        SlotPool::new(max, metrics().upstream("app"))
    }

    /// A source by its number.
    fn source(number: u8) -> Source {
        Source::of(IpAddr::from([10, 0, number, 1]))
    }

    fn take(pool: &Rc<SlotPool>, number: u8) -> Option<UpstreamSlot> {
        pool.take(source(number), RequestEnd::default())
    }

    fn is_displaced(slot: &UpstreamSlot) -> bool {
        slot.holder.is_displaced.get()
    }

    #[test]
    fn a_single_source_may_take_all_slots() {
        let pool = pool(4);
        let mut slots: Vec<_> = (0..4).map_while(|_| take(&pool, 1)).collect();
        assert_eq!(slots.len(), 4);
        assert!(take(&pool, 1).is_none());
        assert_eq!(pool.results.overloaded.get(), 1);
        slots.pop();
        assert!(take(&pool, 1).is_some());
        assert!(!slots.iter().any(is_displaced));
    }

    #[test]
    fn the_source_with_the_most_slots_loses_its_oldest_to_a_source_with_fewer() {
        let pool = pool(4);
        let other = take(&pool, 1).expect("a slot");
        let mut slots: Vec<_> = (0..3).map_while(|_| take(&pool, 2)).collect();
        let newcomer = take(&pool, 3).expect("a slot");
        assert_eq!(pool.taken(), 4);
        let displaced: Vec<_> = slots.iter().map(is_displaced).collect();
        assert_eq!(displaced, [true, false, false]);
        assert!(!is_displaced(&other) && !is_displaced(&newcomer));
        drop(slots.remove(0));
        assert_eq!(pool.results.displaced.get(), 1);
        assert_eq!(pool.taken(), 4, "the displaced slot was free before");
        // Now no source has two slots more than the source of the newcomer.
        assert!(take(&pool, 3).is_none());
    }

    proptest! {
        #[test]
        fn slots_are_counted_in_any_order(
            steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            let pool = pool(8);
            let mut slots = Vec::new();
            for (number, place, takes) in steps {
                if takes {
                    slots.extend(take(&pool, number));
                } else if !slots.is_empty() {
                    slots.swap_remove(place.index(slots.len()));
                }
                let holding = slots.iter().filter(|slot| !is_displaced(slot)).count();
                prop_assert_eq!(pool.taken(), holding);
                prop_assert!(holding <= 8);
            }
            drop(slots);
            prop_assert_eq!(pool.taken(), 0);
            prop_assert!(pool.taken.borrow().is_empty());
        }
    }
}
