//! Decides which source gives way when a shared pool is full.
//!
//! While places are free, a source may take any number of them. In a full pool, the source that holds the most
//! places gives up its oldest place.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::affinity::Source;

/// The taken places of a pool, by source. Each place stores a value for its holder.
#[derive(Debug)]
pub struct FairPool<V> {
    /// The places in the order of arrival.
    places: BTreeMap<PlaceId, Place<V>>,
    by_source: BTreeSet<(Source, PlaceId)>,
    holdings: BTreeMap<Source, Holding>,
    /// The ranks of all sources with at least two places, sorted. The source with the last rank gives way first.
    /// If no source has two places, the oldest place gives way.
    ranks: BTreeSet<Rank>,
    arrivals: u64,
}

/// Names a place. A later place never has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlaceId(u64);

#[derive(Debug)]
struct Place<V> {
    source: Source,
    value: V,
}

/// The places of one source.
#[derive(Clone, Copy, Debug)]
struct Holding {
    count: usize,
    oldest: PlaceId,
}

/// Of two sources with equally many places, the source with the older place gives way.
type Rank = (usize, Reverse<PlaceId>, Source);

impl<V> Default for FairPool<V> {
    fn default() -> Self {
        Self {
            places: BTreeMap::new(),
            by_source: BTreeSet::new(),
            holdings: BTreeMap::new(),
            ranks: BTreeSet::new(),
            arrivals: 0,
        }
    }
}

impl<V> FairPool<V> {
    /// How many places are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if no place is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many places a source holds.
    #[must_use]
    pub fn held_by(&self, source: Source) -> usize {
        self.holdings.get(&source).map_or(0, |held| held.count)
    }

    /// The number of places of the source that gives way first.
    #[must_use]
    pub fn most_held(&self) -> usize {
        let without_ranks = self.places.len().min(1);
        self.ranks
            .last()
            .map_or(without_ranks, |(count, ..)| *count)
    }

    /// The value of the oldest place.
    #[must_use]
    pub fn oldest(&self) -> Option<&V> {
        self.places.first_key_value().map(|(_, place)| &place.value)
    }

    /// Takes a place for a source. The caller must limit the number of places.
    pub fn enter(&mut self, source: Source, value: V) -> PlaceId {
        let id = PlaceId(self.arrivals);
        self.arrivals += 1;
        self.places.insert(id, Place { source, value });
        self.by_source.insert((source, id));
        let held = self.holdings.entry(source).or_insert(Holding {
            count: 0,
            oldest: id,
        });
        if held.count > 1 {
            self.ranks.remove(&held.rank(source));
        }
        held.count += 1;
        if held.count > 1 {
            self.ranks.insert(held.rank(source));
        }
        id
    }

    /// Gives a place back. Returns the value of the place; `None` if the place was displaced before.
    pub fn leave(&mut self, id: PlaceId) -> Option<V> {
        let place = self.places.remove(&id)?;
        let source = place.source;
        self.by_source.remove(&(source, id));
        let Entry::Occupied(mut entry) = self.holdings.entry(source) else {
            return Some(place.value);
        };
        let held = entry.get_mut();
        if held.count > 1 {
            self.ranks.remove(&held.rank(source));
            held.count -= 1;
            if held.oldest == id {
                let mut later = self.by_source.range((source, id)..);
                held.oldest = later.next().map_or(id, |(_, next)| *next);
            }
            if held.count > 1 {
                self.ranks.insert(held.rank(source));
            }
        } else {
            entry.remove();
        }
        Some(place.value)
    }

    /// Frees the oldest place of the source that holds most. Returns the value of the place.
    pub fn displace_from_largest(&mut self) -> Option<V> {
        match self.ranks.last() {
            Some((_, Reverse(id), _)) => self.leave(*id),
            None => self.displace_oldest(),
        }
    }

    /// Frees a place for one more place of a source. `None` if no source gives way to this source.
    pub fn displace_for(&mut self, source: Source) -> Option<V> {
        if gives_way(self.most_held(), self.held_by(source)) {
            self.displace_from_largest()
        } else {
            None
        }
    }

    /// Frees the oldest place. Returns its value.
    pub fn displace_oldest(&mut self) -> Option<V> {
        let (id, _) = self.places.first_key_value()?;
        self.leave(*id)
    }
}

impl Holding {
    const fn rank(self, source: Source) -> Rank {
        (self.count, Reverse(self.oldest), source)
    }
}

/// True if a source that holds `most` places gives one place to a source that holds `own` places.
///
/// Afterwards the giving source still holds at least as many places as the receiving source. So two sources
/// never take a place from each other in turn. A source that holds the most places never displaces its own
/// places.
#[must_use]
pub const fn gives_way(most: usize, own: usize) -> bool {
    most > own + 1
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn source(net: u8) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::new(198, 51, net, 1)))
    }

    #[test]
    fn the_source_that_holds_most_gives_way_with_its_oldest_place() {
        let mut pool = FairPool::default();
        for (net, value) in [(1, "a"), (2, "b"), (2, "c"), (2, "d"), (1, "e")] {
            pool.enter(source(net), value);
        }
        assert_eq!((pool.most_held(), pool.held_by(source(1))), (3, 2));
        assert_eq!(pool.displace_from_largest(), Some("b"));
        // Both sources hold two places now. The first source has the oldest of these places.
        assert_eq!(pool.displace_from_largest(), Some("a"));
        assert_eq!(pool.displace_from_largest(), Some("c"));
        assert_eq!(pool.displace_from_largest(), Some("d"));
        assert_eq!(pool.displace_from_largest(), Some("e"));
        assert_eq!(pool.displace_from_largest(), None);
        assert!(pool.is_empty());
    }

    #[test]
    fn a_displaced_place_cannot_be_given_back() {
        let mut pool = FairPool::default();
        let lost = pool.enter(source(1), 1);
        assert_eq!(pool.displace_from_largest(), Some(1));
        let next = pool.enter(source(1), 2);
        assert_eq!(pool.leave(lost), None);
        assert_eq!(pool.leave(next), Some(2));
        assert_eq!(pool.held_by(source(1)), 0);
    }

    #[test]
    fn two_sources_never_displace_each_other_in_turn() {
        assert!(!gives_way(0, 0));
        assert!(!gives_way(1, 0));
        assert!(gives_way(2, 0));
        for own in 0..100 {
            for most in own..100 {
                assert!(!gives_way(most, own) || !gives_way(own + 1, most - 1));
            }
        }
    }

    proptest! {
        #[test]
        fn a_pool_agrees_with_a_plain_list(steps in prop::collection::vec((0u8..4, 0u8..6), 0..200)) {
            let mut pool = FairPool::default();
            let mut list: Vec<(Source, u64, PlaceId)> = Vec::new();
            for (value, (step, net)) in (0u64..).zip(steps) {
                let count = |list: &[(Source, u64, PlaceId)], of: Source| {
                    list.iter().filter(|place| place.0 == of).count()
                };
                match step {
                    0 if !list.is_empty() => {
                        let (_, value, id) = list.remove(usize::from(net) % list.len());
                        prop_assert_eq!(pool.leave(id), Some(value));
                    }
                    1 if net == 0 => {
                        let oldest = (!list.is_empty()).then(|| list.remove(0).1);
                        prop_assert_eq!(pool.displace_oldest(), oldest);
                    }
                    1 => {
                        let most = list.iter().map(|place| count(&list, place.0)).max();
                        let victim = list.iter().position(|place| Some(count(&list, place.0)) == most);
                        let expected = victim.map(|index| list.remove(index).1);
                        prop_assert_eq!(pool.displace_from_largest(), expected);
                    }
                    _ => {
                        let source = source(net);
                        list.push((source, value, pool.enter(source, value)));
                    }
                }
                let most = list.iter().map(|place| count(&list, place.0)).max();
                prop_assert_eq!(pool.most_held(), most.unwrap_or(0));
                let oldest = list.first().map(|place| &place.1);
                prop_assert_eq!(pool.oldest(), oldest);
                prop_assert_eq!(pool.len(), list.len());
                prop_assert_eq!(pool.held_by(source(net)), count(&list, source(net)));
            }
        }
    }
}
