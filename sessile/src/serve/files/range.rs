//! Reads the header `Range` ([RFC 9110, 14](https://www.rfc-editor.org/rfc/rfc9110#section-14)).
//!
//! A server may ignore the header. This module ignores a header with several ranges, an unknown unit or
//! an invalid value.

/// The part of a file that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    Whole,
    /// The bytes from `first` to `last`, including both. All these bytes are in the file.
    Part {
        first: u64,
        last: u64,
    },
    /// No byte of the range is in the file.
    Unsatisfiable,
}

/// Selects the part of a file with `length` bytes that the value of a `Range` header names.
pub(super) fn select(range: &str, length: u64) -> Selection {
    // Some clients send a range with every request. An empty file has no part to send.
    if length == 0 {
        return Selection::Whole;
    }
    match ByteRange::parse(range) {
        Some(ByteRange::From { first, .. }) if first >= length => Selection::Unsatisfiable,
        Some(ByteRange::From { first, last }) => Selection::Part {
            first,
            last: last.min(length - 1),
        },
        Some(ByteRange::Suffix(0)) => Selection::Unsatisfiable,
        Some(ByteRange::Suffix(suffix)) => Selection::Part {
            first: length.saturating_sub(suffix),
            last: length - 1,
        },
        None => Selection::Whole,
    }
}

/// One byte range, before the length of the file is known.
enum ByteRange {
    /// `last` is `u64::MAX` if the range is open.
    From { first: u64, last: u64 },
    /// This number of bytes at the end of the file.
    Suffix(u64),
}

impl ByteRange {
    /// `None` for another unit, an invalid range, and several ranges.
    fn parse(text: &str) -> Option<Self> {
        let (unit, set) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        // A list may have empty elements (RFC 9110, 5.6.1).
        let mut ranges = set.split(',').map(str::trim).filter(|it| !it.is_empty());
        let range = ranges.next()?;
        if ranges.next().is_some() {
            return None;
        }
        let (first, last) = range.split_once('-')?;
        if first.is_empty() {
            return number(last).map(Self::Suffix);
        }
        let first = number(first)?;
        let last = match last {
            "" => u64::MAX,
            last => number(last)?,
        };
        (first <= last).then_some(Self::From { first, last })
    }
}

/// Reads decimal digits. A number above 2^64 − 1 becomes 2^64 − 1, which no file has as its length.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HUGE: &str = "99999999999999999999999";

    const fn part(first: u64, last: u64) -> Selection {
        Selection::Part { first, last }
    }

    #[test]
    fn one_range_selects_a_part_of_the_file() {
        for (range, expected) in [
            // The examples of RFC 9110, 14.1.2, for 10,000 bytes.
            ("bytes=0-499", part(0, 499)),
            ("bytes=500-999", part(500, 999)),
            ("bytes=-500", part(9500, 9999)),
            ("bytes=9500-", part(9500, 9999)),
            ("bytes=0-0", part(0, 0)),
            ("bytes=-1", part(9999, 9999)),
            ("bytes=9999-9999", part(9999, 9999)),
            ("bytes=9999-10000", part(9999, 9999)),
            ("bytes=0-99999", part(0, 9999)),
            ("bytes=-99999", part(0, 9999)),
            ("BYTES=0-0", part(0, 0)),
            ("bytes= ,0-0 ,", part(0, 0)),
            ("bytes=10000-", Selection::Unsatisfiable),
            ("bytes=10000-20000", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
        ] {
            assert_eq!(select(range, 10_000), expected, "{range}");
        }
        let huge = |range: &str| select(&range.replace("HUGE", HUGE), 10_000);
        assert_eq!(huge("bytes=0-HUGE"), part(0, 9999));
        assert_eq!(huge("bytes=-HUGE"), part(0, 9999));
        assert_eq!(huge("bytes=HUGE-"), Selection::Unsatisfiable);
    }

    #[test]
    fn other_ranges_are_ignored() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=5",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=0x1-2",
            "bytes=+1-2",
            "bytes=1-+2",
            "bytes=--1",
            "bytes=1-2-3",
            "bytes=0-0,-1",
            "bytes=500-600,601-999",
            "bytes=20000-,30000-",
            "lines=0-4",
            "seconds=1-2",
        ] {
            assert_eq!(select(range, 10_000), Selection::Whole, "{range}");
        }
    }

    #[test]
    fn a_range_of_an_empty_file_is_ignored() {
        for range in ["bytes=0-", "bytes=0-0", "bytes=-5", "bytes=-0"] {
            assert_eq!(select(range, 0), Selection::Whole, "{range}");
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_in_the_file(range in "(bytes=)?[-,0-9 ]{0,24}", length in any::<u64>()) {
            if let Selection::Part { first, last } = select(&range, length) {
                prop_assert!(first <= last && last < length);
            }
        }
    }
}
