//! The entries themselves, in the order of their arrival: segments of bytes that are filled at one
//! end and given back at the other. Keys and values lie inline behind a header of sixteen bytes, so
//! that an entry costs no allocation and no pointer.
//!
//! ```text
//! established u64 | sequence − segment's first u32 | value length u16 | key length u8 | dead u8
//! key | value | padding to 8 bytes
//! ```
//!
//! Entries that were removed out of turn are holes until [`Log::take_oldest_segment`] (compaction)
//! squeezes them out.

use std::collections::VecDeque;

use super::Entry;
use crate::Time;

/// Bytes before the key.
const HEADER: usize = 16;

/// Where in the header the mark of a dead entry is.
const DEAD: usize = HEADER - 1;

/// Entries start at multiples of this, which is what a location counts in.
const ALIGN: usize = 8;

/// Bytes of the segments of the smallest and the largest tables.
const SEGMENT: (usize, usize) = (4 << 10, 64 << 10);

/// A run of entries in the order of their arrival.
#[derive(Debug, Default)]
struct Segment {
    bytes: Box<[u8]>,
    /// Where the oldest entry that may be alive starts.
    start: usize,
    /// Where the next entry goes.
    used: usize,
    /// The first entry's sequence number.
    first_sequence: u64,
}

/// A queue of entries that can also be read and killed by their location.
#[derive(Debug)]
pub(super) struct Log {
    /// In no order; locations hold the position of their segment here.
    segments: Vec<Segment>,
    /// Positions of the segments that hold entries, oldest first.
    order: VecDeque<u32>,
    /// Positions of the others, which hold no memory.
    vacant: Vec<u32>,
    /// Bits of a location that hold the offset in a segment.
    offset_bits: u32,
    /// The last segment that was given back: the next one that is needed.
    spare: Option<Box<[u8]>>,
    live: usize,
    /// Bytes of dead entries that still lie between live ones.
    dead: usize,
}

impl Log {
    /// `entries` is how many are expected; it decides how large segments are.
    pub(super) fn new(entries: usize) -> Self {
        let wanted = entries.saturating_mul(2).clamp(SEGMENT.0, SEGMENT.1);
        Self {
            segments: Vec::new(),
            order: VecDeque::new(),
            vacant: Vec::new(),
            offset_bits: (wanted.next_power_of_two() / ALIGN).ilog2(),
            spare: None,
            live: 0,
            dead: 0,
        }
    }

    /// Appends an entry and returns its location; `None` where locations have run out.
    pub(super) fn append(&mut self, entry: &Entry<'_>) -> Option<u32> {
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

    /// The entry at a location that [`Self::append`] returned and that is still alive.
    #[inline]
    pub(super) fn entry(&self, location: u32) -> Entry<'_> {
        let (segment, at) = self.place(location);
        self.segments[segment].entry(at)
    }

    /// The value of such an entry, to be changed in its place.
    pub(super) fn value_mut(&mut self, location: u32) -> &mut [u8] {
        let (segment, at) = self.place(location);
        let segment = &mut self.segments[segment];
        let header = segment.header(at).0;
        let value = at + HEADER + usize::from(header.key);
        &mut segment.bytes[value..][..usize::from(header.value)]
    }

    /// The oldest live entry and its location.
    #[inline]
    pub(super) fn oldest(&self) -> Option<(u32, Entry<'_>)> {
        // The first segment always starts with a live entry: see `trim`.
        let number = *self.order.front()?;
        let segment = &self.segments[number as usize];
        let location = (number << self.offset_bits) | (segment.start / ALIGN) as u32;
        Some((location, segment.entry(segment.start)))
    }

    /// Live entries, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        let segments = self
            .order
            .iter()
            .map(|&number| &self.segments[number as usize]);
        segments.flat_map(Segment::live)
    }

    /// Removes an entry; what it held turns into a hole or is given back.
    pub(super) fn kill(&mut self, location: u32) {
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

    /// Whether holes take more room than entries.
    pub(super) fn is_sparse(&self) -> bool {
        self.dead > self.live + self.segment_len()
    }

    /// An empty log of the same kind.
    pub(super) fn successor(&self) -> Self {
        Self {
            segments: Vec::new(),
            order: VecDeque::new(),
            vacant: Vec::new(),
            offset_bits: self.offset_bits,
            spare: None,
            live: 0,
            dead: 0,
        }
    }

    /// Moves the live entries of `old`'s first segment to the end of this log, telling their keys
    /// and new locations. False when there was none left.
    pub(super) fn take_oldest_segment(
        &mut self,
        old: &mut Self,
        mut moved: impl FnMut(&[u8], u32),
    ) -> bool {
        let Some(segment) = old.pop_oldest() else {
            return false;
        };
        for entry in segment.live() {
            // The old log had room for these entries and holes between them.
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
            + self.spare.as_ref().map_or(0, |spare| spare.len())
            + self.segments.capacity() * size_of::<Segment>()
            + (self.order.capacity() + self.vacant.capacity()) * size_of::<u32>()
    }

    fn segment_len(&self) -> usize {
        ALIGN << self.offset_bits
    }

    /// The position of a location's segment, and the offset in it.
    #[inline]
    fn place(&self, location: u32) -> (usize, usize) {
        let offset = location & !(u32::MAX << self.offset_bits);
        let number = location >> self.offset_bits;
        (number as usize, offset as usize * ALIGN)
    }

    /// Opens a segment that holds at least `size` bytes. False where all numbers are taken.
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
            let spare = self.spare.take();
            spare.unwrap_or_else(|| vec![0; self.segment_len()].into_boxed_slice())
        };
        self.order.push_back(number);
        self.segments[number as usize] = Segment {
            bytes,
            first_sequence,
            ..Segment::default()
        };
        true
    }

    /// Passes over dead entries at the old end and gives back the segments that they filled.
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
            self.spare = Some(segment.bytes);
        }
    }
}

impl Segment {
    /// Gives back the rest of a segment that is far from full: the next entry was a large one.
    fn close(&mut self) {
        if self.used < self.bytes.len() / 4 * 3 {
            let mut bytes = std::mem::take(&mut self.bytes).into_vec();
            bytes.truncate(self.used);
            self.bytes = bytes.into_boxed_slice();
        }
    }

    fn live(&self) -> impl Iterator<Item = Entry<'_>> {
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

    /// Bytes of the entry at `at`, its padding included.
    fn size(&self, at: usize) -> usize {
        let header = self.header(at).0;
        (HEADER + usize::from(header.key) + usize::from(header.value)).next_multiple_of(ALIGN)
    }

    #[inline]
    fn entry(&self, at: usize) -> Entry<'_> {
        let (header, rest) = self.header(at);
        let (key, rest) = rest.split_at(usize::from(header.key));
        Entry {
            key,
            value: &rest[..usize::from(header.value)],
            established: header.established,
            sequence: self.first_sequence + u64::from(header.delta),
        }
    }

    /// The header at `at` and the bytes behind it.
    #[inline]
    fn header(&self, at: usize) -> (Header, &[u8]) {
        let (header, rest) = self.bytes[at..]
            .split_first_chunk()
            .expect("an entry starts here");
        (Header::from_bytes(*header), rest)
    }
}

/// What stands before a key and its value.
struct Header {
    established: Time,
    /// Sequence number, counted from the segment's first.
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
