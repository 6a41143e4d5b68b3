//! The entries of a part, oldest first, in segments of bytes. New entries go to the last segment. The first
//! segment is freed when all its entries are removed.
//!
//! An entry is a header of sixteen bytes, the key and the value. It needs no allocation and no pointer.
//!
//! ```text
//! established u64 | sequence − segment's first u32 | value length u16 | key length u8 | dead u8
//! key | value | padding to 8 bytes
//! ```
//!
//! An entry that is removed before older entries leaves a hole. Compaction removes the holes
//! ([`Log::take_oldest_segment`]).

use std::collections::VecDeque;

use super::TableEntry;
use crate::Time;

/// Bytes before the key.
const HEADER: usize = 16;

/// The offset in the header of the byte that marks a dead entry.
const DEAD: usize = HEADER - 1;

/// Entries start at multiples of this number of bytes, which is also the unit of offsets in locations.
const ALIGN: usize = 8;

/// Bytes of a segment in the smallest tables.
const MIN_SEGMENT: usize = 4 << 10;

/// Bytes of a segment in the largest tables.
const MAX_SEGMENT: usize = 64 << 10;

/// Some entries, oldest first.
#[derive(Debug, Default)]
struct Segment {
    bytes: Box<[u8]>,
    /// The offset of the oldest entry that can be live.
    start: usize,
    /// The offset of the next entry.
    used: usize,
    /// The sequence number of the first entry.
    first_sequence: u64,
}

/// A queue of entries. An entry can also be read and removed by its location.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The segments in no order. A location holds the position of its segment in this list.
    segments: Vec<Segment>,
    /// The positions of the segments with entries, oldest first.
    order: VecDeque<u32>,
    /// The positions of the other segments, which hold no memory.
    vacant: Vec<u32>,
    /// The number of bits in a location for the offset in the segment.
    offset_bits: u32,
    /// The memory of the last freed segment, for the next new segment.
    reusable: Option<Box<[u8]>>,
    live: usize,
    /// Bytes of dead entries between live entries.
    dead: usize,
}

impl Log {
    /// An empty log. `entries` is the expected number, which decides the size of a segment.
    pub(super) fn new(entries: usize) -> Self {
        let wanted = entries.saturating_mul(2).clamp(MIN_SEGMENT, MAX_SEGMENT);
        Self {
            offset_bits: (wanted.next_power_of_two() / ALIGN).ilog2(),
            ..Self::default()
        }
    }

    /// Appends an entry and returns its location. `None` if there are no locations left.
    pub(super) fn append(&mut self, entry: &TableEntry<'_>) -> Option<u32> {
        let (key, value) = (entry.key, entry.value);
        let size = (HEADER + key.len() + value.len()).next_multiple_of(ALIGN);
        let delta = match self.order.back().map(|&last| &self.segments[last as usize]) {
            Some(last) if last.used + size <= last.bytes.len() => entry
                .sequence
                .checked_sub(last.first_sequence)
                .and_then(|delta| u32::try_from(delta).ok()),
            _ => None,
        };
        if delta.is_none() && !self.open(size, entry.sequence) {
            return None;
        }
        let number = *self.order.back()?;
        let last = &mut self.segments[number as usize];
        let at = last.used;
        last.used += size;
        let place = &mut last.bytes[at..at + size];
        let header = Header {
            established: entry.established,
            delta: delta.unwrap_or(0),
            value: value.len() as u16,
            key: key.len() as u8,
            dead: false,
        };
        place[..HEADER].copy_from_slice(&header.to_bytes());
        place[HEADER..HEADER + key.len()].copy_from_slice(key);
        place[HEADER + key.len()..][..value.len()].copy_from_slice(value);
        self.live += size;
        Some((number << self.offset_bits) | (at / ALIGN) as u32)
    }

    /// The entry at a location that [`Self::append`] returned. The entry must be live.
    #[inline]
    pub(super) fn entry(&self, location: u32) -> TableEntry<'_> {
        let (segment, at) = self.place(location);
        self.segments[segment].entry(at)
    }

    /// The value at the location of a live entry, for a change in place.
    pub(super) fn value_mut(&mut self, location: u32) -> &mut [u8] {
        let (segment, at) = self.place(location);
        let segment = &mut self.segments[segment];
        let header = segment.header(at).0;
        let value = at + HEADER + usize::from(header.key);
        &mut segment.bytes[value..][..usize::from(header.value)]
    }

    /// The oldest live entry and its location.
    #[inline]
    pub(super) fn oldest(&self) -> Option<(u32, TableEntry<'_>)> {
        // `trim` keeps a live entry at the start of the first segment.
        let number = *self.order.front()?;
        let segment = &self.segments[number as usize];
        let location = (number << self.offset_bits) | (segment.start / ALIGN) as u32;
        Some((location, segment.entry(segment.start)))
    }

    /// Live entries, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = TableEntry<'_>> {
        let segments = self
            .order
            .iter()
            .map(|&number| &self.segments[number as usize]);
        segments.flat_map(Segment::live)
    }

    /// Removes the entry at a location.
    pub(super) fn remove(&mut self, location: u32) {
        let (number, at) = self.place(location);
        let segment = &mut self.segments[number];
        let size = segment.size(at);
        self.live -= size;
        if at == segment.start && self.order.front() == Some(&(number as u32)) {
            segment.start += size;
            self.trim();
        } else {
            segment.bytes[at + DEAD] = 1;
            self.dead += size;
        }
    }

    /// True if holes take more room than live entries.
    pub(super) fn is_sparse(&self) -> bool {
        self.dead > self.live + self.segment_len()
    }

    /// An empty log with segments of the same size.
    pub(super) fn successor(&self) -> Self {
        Self {
            offset_bits: self.offset_bits,
            ..Self::default()
        }
    }

    /// Moves the live entries of `old`'s first segment to the end of this log. Reports their keys and new
    /// locations to `moved`. False if no segment was left.
    pub(super) fn take_oldest_segment(
        &mut self,
        old: &mut Self,
        mut moved: impl FnMut(&[u8], u32),
    ) -> bool {
        let Some(segment) = old.pop_oldest() else {
            return false;
        };
        for entry in segment.live() {
            // The old log had room for the same entries and for holes.
            let location = self.append(&entry).expect("a compacted log is no larger");
            moved(entry.key, location);
        }
        self.recycle(segment);
        true
    }

    /// Bytes on the heap.
    pub(super) fn memory(&self) -> usize {
        let segments = self.segments.iter().map(|segment| segment.bytes.len());
        segments.sum::<usize>()
            + self.reusable.as_ref().map_or(0, |segment| segment.len())
            + self.segments.capacity() * size_of::<Segment>()
            + (self.order.capacity() + self.vacant.capacity()) * size_of::<u32>()
    }

    fn segment_len(&self) -> usize {
        ALIGN << self.offset_bits
    }

    /// The position of the segment, and the offset in the segment.
    #[inline]
    fn place(&self, location: u32) -> (usize, usize) {
        let offset = location & !(u32::MAX << self.offset_bits);
        let number = location >> self.offset_bits;
        (number as usize, offset as usize * ALIGN)
    }

    /// Opens a segment of at least `size` bytes. False if all positions are in use.
    fn open(&mut self, size: usize, first_sequence: u64) -> bool {
        let number = match self.vacant.pop() {
            Some(number) => number,
            None if self.segments.len() > (u32::MAX >> self.offset_bits) as usize => return false,
            None => {
                self.segments.push(Segment::default());
                self.segments.len() as u32 - 1
            }
        };
        if let Some(&last) = self.order.back() {
            self.segments[last as usize].close();
        }
        let bytes = if size > self.segment_len() {
            vec![0; size].into_boxed_slice()
        } else {
            self.reusable
                .take()
                .unwrap_or_else(|| vec![0; self.segment_len()].into_boxed_slice())
        };
        self.order.push_back(number);
        self.segments[number as usize] = Segment {
            bytes,
            first_sequence,
            ..Segment::default()
        };
        true
    }

    /// Skips dead entries before the oldest live entry, and frees the segments without live entries.
    fn trim(&mut self) {
        while let Some(&number) = self.order.front() {
            let segment = &mut self.segments[number as usize];
            while segment.start < segment.used && segment.is_dead(segment.start) {
                let size = segment.size(segment.start);
                segment.start += size;
                self.dead -= size;
            }
            if segment.start < segment.used {
                return;
            }
            if let Some(segment) = self.pop_oldest() {
                self.recycle(segment);
            }
        }
    }

    fn pop_oldest(&mut self) -> Option<Segment> {
        let number = self.order.pop_front()?;
        self.vacant.push(number);
        Some(std::mem::take(&mut self.segments[number as usize]))
    }

    fn recycle(&mut self, segment: Segment) {
        if segment.bytes.len() == self.segment_len() {
            self.reusable = Some(segment.bytes);
        }
    }
}

impl Segment {
    /// Frees the unused rest of the segment if it is more than a quarter of the segment. The next entry did
    /// not fit into the rest.
    fn close(&mut self) {
        if self.used < self.bytes.len() / 4 * 3 {
            let mut bytes = std::mem::take(&mut self.bytes).into_vec();
            bytes.truncate(self.used);
            self.bytes = bytes.into_boxed_slice();
        }
    }

    fn live(&self) -> impl Iterator<Item = TableEntry<'_>> {
        let mut next = self.start;
        std::iter::from_fn(move || {
            while next < self.used {
                let at = next;
                next += self.size(at);
                if !self.is_dead(at) {
                    return Some(self.entry(at));
                }
            }
            None
        })
    }

    fn is_dead(&self, at: usize) -> bool {
        self.bytes[at + DEAD] != 0
    }

    /// Bytes of the entry at `at`, with padding.
    fn size(&self, at: usize) -> usize {
        let header = self.header(at).0;
        (HEADER + usize::from(header.key) + usize::from(header.value)).next_multiple_of(ALIGN)
    }

    #[inline]
    fn entry(&self, at: usize) -> TableEntry<'_> {
        let (header, rest) = self.header(at);
        let (key, rest) = rest.split_at(usize::from(header.key));
        TableEntry {
            key,
            value: &rest[..usize::from(header.value)],
            established: header.established,
            sequence: self.first_sequence + u64::from(header.delta),
        }
    }

    /// The header at `at`, and the bytes after it.
    #[inline]
    fn header(&self, at: usize) -> (Header, &[u8]) {
        let (header, rest) = self.bytes[at..]
            .split_first_chunk()
            .expect("an entry starts here");
        (Header::from_bytes(*header), rest)
    }
}

/// The fixed part of an entry.
struct Header {
    established: Time,
    /// The sequence number minus the segment's first.
    delta: u32,
    /// Bytes of the value.
    value: u16,
    /// Bytes of the key.
    key: u8,
    dead: bool,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let low = u128::from(self.established.unix_millis()) | u128::from(self.delta) << 64;
        let lengths = u128::from(self.value) << 96 | u128::from(self.key) << 112;
        (low | lengths | u128::from(self.dead) << 120).to_le_bytes()
    }

    #[inline]
    fn from_bytes(bytes: [u8; HEADER]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        Self {
            established: Time::from_unix_millis(bits as u64),
            delta: (bits >> 64) as u32,
            value: (bits >> 96) as u16,
            key: (bits >> 112) as u8,
            dead: bits >> 120 != 0,
        }
    }
}
