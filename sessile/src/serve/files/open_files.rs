//! Limits the files that are open for responses, because the process has one limit for files and connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

use sessile_proto::affinity::Source;

use crate::locks::locked;

/// The open files of all folders.
#[derive(Clone)]
pub(super) struct OpenFiles(Arc<Shared>);

struct Shared {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_source: HashMap<Source, usize>,
}

/// Counts one open file until it is dropped.
pub(super) struct Slot {
    files: OpenFiles,
    source: Source,
}

impl OpenFiles {
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Shared {
            max,
            held: Mutex::default(),
        }))
    }

    /// Counts one more file of a source. `None` if the source already has as many files as are still free.
    ///
    /// So a single source can have half of all files. Of three sources with equal shares, each can have a
    /// quarter.
    pub(super) fn take(&self, source: Source) -> Option<Slot> {
        let mut held = locked(&self.0.held);
        let free = self.0.max.saturating_sub(held.total);
        let own = held.by_source.get(&source).copied().unwrap_or_default();
        if own >= free {
            return None;
        }
        held.total += 1;
        held.by_source.insert(source, own + 1);
        Some(Slot {
            files: self.clone(),
            source,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = locked(&self.files.0.held);
        held.total -= 1;
        if let Entry::Occupied(mut own) = held.by_source.entry(self.source) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn source(number: u8) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::new(192, 0, number, 1)))
    }

    #[test]
    fn a_greedy_source_leaves_files_for_the_next_ones() {
        let files = OpenFiles::new(12);
        let mut held: Vec<Slot> = Vec::new();
        for (number, expected) in [(1, 6), (2, 3), (3, 2), (4, 1), (5, 0)] {
            let slots = std::iter::from_fn(|| files.take(source(number)));
            let before = held.len();
            held.extend(slots);
            assert_eq!(held.len() - before, expected, "source {number}");
        }
        held.clear();
        let state = locked(&files.0.held);
        assert_eq!((state.total, state.by_source.len()), (0, 0));
    }
}
