//! Limits the files that are open for responses, because the process has one limit for files and connections.
//!
//! A source may use all places while no other source needs one. In a full pool, the source with the most
//! places loses its oldest download to a source with fewer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sessile_proto::affinity::Source;
use sessile_proto::fair_pool::{FairPool, PlaceId};

use crate::locks::locked;
use crate::serve::request_task::RequestEnd;

/// The open files of all folders.
#[derive(Clone)]
pub(super) struct OpenFiles(Arc<Shared>);

struct Shared {
    max_places: usize,
    /// Most files that have lost their places and are not closed yet. A file system can block the closing.
    max_unclosed: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    places: FairPool<Arc<Download>>,
    unclosed: usize,
}

/// The response that needs an open file. Its flags change only under the lock of [`Held`].
struct Download {
    end: RequestEnd,
    /// True if the response lost its place to another source.
    is_displaced: AtomicBool,
    /// True if the response needs the file no more.
    is_over: AtomicBool,
}

/// Counts one open file until it is dropped.
pub(super) struct Slot {
    files: OpenFiles,
    place: PlaceId,
    download: Arc<Download>,
}

impl OpenFiles {
    /// `max`: how many files can be open. Some of these are for files that wait to be closed.
    pub(super) fn new(max: usize) -> Self {
        let max_unclosed = max.div_ceil(8).min(max / 2);
        Self(Arc::new(Shared {
            max_places: max - max_unclosed,
            max_unclosed,
            held: Mutex::default(),
        }))
    }

    /// Counts one more file of a source. In a full pool, another source may lose its oldest download.
    ///
    /// `None` if no source has at least two files more than this source.
    /// `None` also if too many files wait to be closed.
    pub(super) fn take(&self, source: Source, end: RequestEnd) -> Option<Slot> {
        let mut held = locked(&self.0.held);
        if held.places.len() >= self.0.max_places {
            if held.unclosed >= self.0.max_unclosed {
                return None;
            }
            let displaced = held.places.displace_for(source)?;
            held.unclosed += 1;
            // The request end of a finished response can belong to the next request of the connection.
            if !displaced.is_over.load(Ordering::Relaxed) {
                displaced.is_displaced.store(true, Ordering::Relaxed);
                displaced.end.order();
            }
        }
        let download = Arc::new(Download {
            end,
            is_displaced: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let place = held.places.enter(source, Arc::clone(&download));
        Some(Slot {
            files: self.clone(),
            place,
            download,
        })
    }
}

impl Slot {
    /// True if the response must end, because another source has its place.
    pub(super) fn is_displaced(&self) -> bool {
        self.download.is_displaced.load(Ordering::Relaxed)
    }

    /// Notes that the response needs the file no more. From now on, it cannot be displaced.
    ///
    /// Returns false if the response was displaced before.
    pub(super) fn end_download(&self) -> bool {
        let _held = locked(&self.files.0.held);
        self.download.is_over.store(true, Ordering::Relaxed);
        !self.is_displaced()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = locked(&self.files.0.held);
        if held.places.leave(self.place).is_none() {
            held.unclosed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};
    use std::pin::pin;
    use std::task::{Context, Waker};

    use proptest::prelude::*;

    fn source(number: u8) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::new(192, 0, number, 1)))
    }

    fn take(files: &OpenFiles, number: u8) -> Option<Slot> {
        files.take(source(number), RequestEnd::default())
    }

    fn displaced(slots: &[Slot]) -> Vec<bool> {
        slots.iter().map(Slot::is_displaced).collect()
    }

    #[test]
    fn each_of_many_sources_gets_a_file_one_after_another() {
        let files = OpenFiles::new(32);
        let mut slots = Vec::new();
        // Each source takes as many as it can get, and closes what it loses.
        for number in 1..=28 {
            let before = slots.len();
            while let Some(slot) = take(&files, number) {
                slots.push(slot);
                slots.retain(|slot: &Slot| !slot.is_displaced());
            }
            let own = locked(&files.0.held).places.held_by(source(number));
            assert!(own >= 1, "source {number}, {before} before");
        }
        assert_eq!(slots.len(), files.0.max_places);
        slots.clear();
        let held = locked(&files.0.held);
        assert_eq!((held.places.len(), held.unclosed), (0, 0));
    }

    #[test]
    fn the_source_with_the_most_files_loses_its_oldest_to_a_source_with_fewer() {
        let files = OpenFiles::new(5);
        let mut slots: Vec<Slot> = (0..5).map_while(|_| take(&files, 1)).collect();
        assert_eq!(slots.len(), 4, "a single source may have all places");
        let newcomer = take(&files, 2).expect("a place");
        assert_eq!(displaced(&slots), [true, false, false, false]);
        // The file that lost its place is still open, and there is one place for such files.
        assert!(take(&files, 2).is_none());
        drop(slots.remove(0));
        let second = take(&files, 2).expect("a place");
        assert_eq!(displaced(&slots), [true, false, false]);
        drop(slots.remove(0));
        // Now no source has two files more than another.
        assert!(take(&files, 1).is_none() && take(&files, 2).is_none());
        assert!(!newcomer.is_displaced() && !second.is_displaced());
    }

    #[test]
    fn a_response_that_needs_its_file_no_more_is_not_cut() {
        let files = OpenFiles::new(3);
        let end = RequestEnd::default();
        let first = files.take(source(1), end.clone()).expect("a place");
        let second = files.take(source(1), end.clone()).expect("a place");
        assert!(first.end_download());
        let _other = take(&files, 2).expect("a place");
        assert!(!first.is_displaced() && !second.is_displaced());
        let ordered = pin!(end.ordered()).poll(&mut Context::from_waker(Waker::noop()));
        assert!(ordered.is_pending());
    }

    proptest! {
        #[test]
        fn never_more_files_are_open_than_allowed(
            steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>(), any::<bool>()), 0..200),
            max in 0usize..20,
        ) {
            let files = OpenFiles::new(max);
            let mut slots = Vec::new();
            for (number, place, takes) in steps {
                if takes {
                    slots.extend(take(&files, number));
                } else if !slots.is_empty() {
                    slots.swap_remove(place.index(slots.len()));
                }
                prop_assert!(slots.len() <= max);
                let held = locked(&files.0.held);
                prop_assert_eq!(held.places.len() + held.unclosed, slots.len());
            }
        }
    }
}
