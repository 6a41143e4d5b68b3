//! Limits of what a store may send: follows the framing of RESP replies as their bytes go by.
//!
//! The `redis` crate buffers a reply until it is complete, however long it is. This module keeps no bytes of a
//! reply, and does no I/O. See <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes of a line: a simple string, an error, a number or a length.
const MAX_LINE: usize = 4 << 10;

/// Most bytes of a bulk string. The longest that a server stores is a session of less than 8 KiB.
const MAX_BULK: u64 = 128 << 10;

/// Most elements of a reply, with those of all nested arrays. CLUSTER SLOTS of a thousand nodes has 20,000.
const MAX_ELEMENTS: u64 = 128 << 10;

/// The deepest nesting of arrays. CLUSTER SLOTS has four levels.
const MAX_DEPTH: usize = 8;

/// Most bytes of a whole reply. Only CLUSTER SLOTS and SENTINEL MASTERS can have more than 100 KiB.
const MAX_REPLY: usize = 4 << 20;

/// Most memory for the unfinished replies on all connections to a store, in bytes. See [`ReplyScanner::weight`].
const MAX_UNFINISHED: usize = 64 << 20;

/// The memory that the `redis` crate takes for a byte of a reply, as measured: a buffer that doubles, and a copy.
const BYTE_WEIGHT: usize = 3;

/// The memory that the `redis` crate takes for an element, in bytes, as measured.
const ELEMENT_WEIGHT: usize = 160;

/// Most digits of a length, with the sign. This is enough for every `i64`.
const MAX_DIGITS: usize = 20;

/// Why a reply is not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReplyError {
    #[error("a line of a reply is longer than {MAX_LINE} bytes")]
    Line,
    #[error("a string of a reply is longer than {MAX_BULK} bytes")]
    Bulk,
    #[error("a reply has more than {MAX_ELEMENTS} elements")]
    Elements,
    #[error("a reply is nested more than {MAX_DEPTH} levels deep")]
    Depth,
    #[error("a reply is longer than {MAX_REPLY} bytes")]
    Reply,
    #[error("the unfinished replies on all connections take more than {MAX_UNFINISHED} bytes")]
    Unfinished,
    #[error("a reply is not valid RESP")]
    Malformed,
}

/// The memory of the unfinished replies on all connections to a store, in bytes.
#[derive(Debug, Default)]
pub(super) struct UnfinishedReplies(AtomicUsize);

/// The share of one connection.
#[derive(Debug)]
pub(super) struct UnfinishedShare {
    all: Arc<UnfinishedReplies>,
    weight: usize,
}

/// The position in the replies of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReplyScanner {
    expect: Expect,
    /// For each open array, the number of elements that are still to come.
    open: Vec<u64>,
    /// The elements that the arrays of the current reply have announced.
    elements: u64,
    /// The bytes of the current reply so far.
    len: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Expect {
    /// The byte that tells the type of a value.
    #[default]
    Type,
    /// The rest of a line.
    Line { len: usize, is_after_cr: bool },
    /// The line with the length of a string or an array.
    Length { of: Sized, digits: Digits },
    /// The bytes of a string, without the line end after them.
    Bulk { left: u64 },
    /// The line end after a string.
    BulkEnd { is_after_cr: bool },
}

/// A value that begins with its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sized {
    /// A string. A negative length means null in RESP2, for this type only.
    Bulk { may_be_null: bool },
    /// `values_each` values for each element, and `extra` values.
    Aggregate {
        values_each: u64,
        extra: u64,
        may_be_null: bool,
    },
}

/// The first bytes of a line with a length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Digits {
    bytes: [u8; MAX_DIGITS],
    len: usize,
    is_after_cr: bool,
}

impl UnfinishedShare {
    pub(super) const fn new(all: Arc<UnfinishedReplies>) -> Self {
        Self { all, weight: 0 }
    }

    /// Sets the weight of the reply that is unfinished now.
    pub(super) fn set(&mut self, weight: usize) -> Result<(), ReplyError> {
        let others = self.all.0.fetch_sub(self.weight, Ordering::Relaxed) - self.weight;
        self.weight = weight;
        self.all.0.fetch_add(weight, Ordering::Relaxed);
        if others + weight > MAX_UNFINISHED {
            return Err(ReplyError::Unfinished);
        }
        Ok(())
    }
}

impl Drop for UnfinishedShare {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

impl ReplyScanner {
    /// The memory that the current reply takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        let elements = usize::try_from(self.elements).unwrap_or(usize::MAX);
        let weight = elements.saturating_mul(ELEMENT_WEIGHT);
        weight.saturating_add(self.len.saturating_mul(BYTE_WEIGHT))
    }

    /// Follows the next bytes of a connection. After an error the connection must not be read any more.
    pub(super) fn scan(&mut self, mut bytes: &[u8]) -> Result<(), ReplyError> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let Expect::Bulk { left } = &mut self.expect {
                let count = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                if *left == 0 {
                    self.expect = Expect::BulkEnd { is_after_cr: false };
                }
                self.count(count)?;
                bytes = &bytes[count..];
            } else {
                self.count(1)?;
                self.step(byte)?;
                bytes = rest;
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Result<(), ReplyError> {
        self.len += bytes;
        if self.len > MAX_REPLY {
            return Err(ReplyError::Reply);
        }
        Ok(())
    }

    /// Follows one byte that is not part of a string.
    fn step(&mut self, byte: u8) -> Result<(), ReplyError> {
        match &mut self.expect {
            Expect::Type => self.expect = expect_after_type(byte)?,
            Expect::Line { len, is_after_cr } => {
                *len += 1;
                if *len > MAX_LINE {
                    return Err(ReplyError::Line);
                }
                let is_end = *is_after_cr && byte == b'\n';
                *is_after_cr = byte == b'\r';
                if is_end {
                    self.finish_value();
                }
            }
            Expect::Length { of, digits } => {
                if digits.push(byte)? {
                    let (of, length) = (*of, digits.parse()?);
                    self.begin_sized(of, length)?;
                }
            }
            Expect::BulkEnd { is_after_cr } => match (*is_after_cr, byte) {
                (false, b'\r') => *is_after_cr = true,
                (true, b'\n') => self.finish_value(),
                _ => return Err(ReplyError::Malformed),
            },
            Expect::Bulk { .. } => unreachable!("`scan` follows the bytes of strings"),
        }
        Ok(())
    }

    fn begin_sized(&mut self, of: Sized, length: i64) -> Result<(), ReplyError> {
        let (Sized::Bulk { may_be_null } | Sized::Aggregate { may_be_null, .. }) = of;
        let Ok(length) = u64::try_from(length) else {
            if !may_be_null {
                return Err(ReplyError::Malformed);
            }
            self.finish_value();
            return Ok(());
        };
        match of {
            Sized::Bulk { .. } if length > MAX_BULK => return Err(ReplyError::Bulk),
            Sized::Bulk { .. } if length == 0 => {
                self.expect = Expect::BulkEnd { is_after_cr: false };
            }
            Sized::Bulk { .. } => self.expect = Expect::Bulk { left: length },
            Sized::Aggregate {
                values_each, extra, ..
            } => {
                let values = length.saturating_mul(values_each).saturating_add(extra);
                self.begin_aggregate(values)?;
            }
        }
        Ok(())
    }

    fn begin_aggregate(&mut self, values: u64) -> Result<(), ReplyError> {
        self.elements = self.elements.saturating_add(values);
        if self.elements > MAX_ELEMENTS {
            return Err(ReplyError::Elements);
        }
        if self.open.len() == MAX_DEPTH {
            return Err(ReplyError::Depth);
        }
        if values == 0 {
            self.finish_value();
        } else {
            self.open.push(values);
            self.expect = Expect::Type;
        }
        Ok(())
    }

    /// Ends a value, and the arrays whose last element it is.
    fn finish_value(&mut self) {
        self.expect = Expect::Type;
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return;
            }
            self.open.pop();
        }
        (self.elements, self.len) = (0, 0);
    }
}

fn expect_after_type(byte: u8) -> Result<Expect, ReplyError> {
    let aggregate = |values_each, extra, may_be_null| Sized::Aggregate {
        values_each,
        extra,
        may_be_null,
    };
    let of = match byte {
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => {
            return Ok(Expect::Line {
                len: 0,
                is_after_cr: false,
            });
        }
        b'$' => Sized::Bulk { may_be_null: true },
        b'!' | b'=' => Sized::Bulk { may_be_null: false },
        b'*' | b'~' => aggregate(1, 0, true),
        b'>' => aggregate(1, 0, false),
        b'%' => aggregate(2, 0, false),
        // Attributes stand before the value that they belong to.
        b'|' => aggregate(2, 1, false),
        _ => return Err(ReplyError::Malformed),
    };
    Ok(Expect::Length {
        of,
        digits: Digits::default(),
    })
}

impl Digits {
    /// Adds a byte of the line. Returns true at the line end.
    fn push(&mut self, byte: u8) -> Result<bool, ReplyError> {
        match (self.is_after_cr, byte) {
            (true, b'\n') => return Ok(true),
            (false, b'\r') => self.is_after_cr = true,
            (false, b'-' | b'0'..=b'9') if self.len < MAX_DIGITS => {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
            _ => return Err(ReplyError::Malformed),
        }
        Ok(false)
    }

    fn parse(&self) -> Result<i64, ReplyError> {
        let text = std::str::from_utf8(&self.bytes[..self.len]).ok();
        text.and_then(|text| text.parse().ok())
            .ok_or(ReplyError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// CLUSTER SLOTS, captured from Redis 7.0.15 with one node.
    const CLUSTER_SLOTS: &[u8] = b"*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n$9\r\n127.0.0.1\r\n:6379\r\n\
        $40\r\n07c37dfeb235213a872192d90877d0cd55635b91\r\n*0\r\n";

    /// Scans the pieces of a stream that is cut at these positions.
    fn scan_cut(bytes: &[u8], cuts: &[usize]) -> (ReplyScanner, Result<(), ReplyError>) {
        let mut scanner = ReplyScanner::default();
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            if let Err(error) = scanner.scan(&bytes[from..to]) {
                return (scanner, Err(error));
            }
            from = to;
        }
        (scanner, Ok(()))
    }

    fn scan(bytes: &[u8]) -> Result<(), ReplyError> {
        scan_cut(bytes, &[]).1
    }

    /// True if the bytes are whole replies within the limits.
    fn is_whole(bytes: &[u8]) -> bool {
        let (scanner, result) = scan_cut(bytes, &[]);
        result.is_ok() && scanner == ReplyScanner::default()
    }

    #[test]
    fn accepts_the_largest_replies_that_a_store_has_a_reason_to_send() {
        assert!(is_whole(CLUSTER_SLOTS));
        for cut in 1..CLUSTER_SLOTS.len() {
            assert!(!is_whole(&CLUSTER_SLOTS[..cut]), "{cut}");
            assert_eq!(scan(&CLUSTER_SLOTS[..cut]), Ok(()));
        }
        let value = vec![b'\r'; 65_536];
        let bulk = [b"$65536\r\n", &value[..], b"\r\n"].concat();
        assert!(is_whole(&[b"*5\r\n$-1\r\n", &*bulk.repeat(4)].concat()));
        let slots = b"*3\r\n:0\r\n:1\r\n*4\r\n$9\r\n127.0.0.1\r\n:6379\r\n$2\r\nid\r\n*0\r\n";
        assert!(is_whole(
            &[&b"*16384\r\n"[..], &slots.repeat(16_384)].concat()
        ));
        // The limits of a reply begin again with the next one.
        assert!(is_whole(&bulk.repeat(1000)));
    }

    #[test]
    fn refuses_a_reply_as_soon_as_it_exceeds_a_limit() {
        for (bytes, error) in [
            (&b"$999999999\r\n"[..], ReplyError::Bulk),
            (b"$131073\r\n", ReplyError::Bulk),
            (b"=131073\r\n", ReplyError::Bulk),
            (b"*1000000000\r\n", ReplyError::Elements),
            (b"*131073\r\n", ReplyError::Elements),
            (b"%65537\r\n", ReplyError::Elements),
            (b"*9223372036854775807\r\n", ReplyError::Elements),
            (b"%9223372036854775807\r\n", ReplyError::Elements),
            (b"*2\r\n*131000\r\n", ReplyError::Elements),
        ] {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(scan(&bytes[..bytes.len() - 1]), Ok(()), "{shown}");
            let two_arrays = [bytes, &b"+\r\n".repeat(131_000)[..], b"*100\r\n"].concat();
            let whole = if bytes.starts_with(b"*2") {
                &two_arrays
            } else {
                bytes
            };
            assert_eq!(scan(whole), Err(error), "{shown}");
        }
        assert_eq!(scan(&b"*1\r\n".repeat(MAX_DEPTH)), Ok(()));
        assert_eq!(
            scan(&b"*1\r\n".repeat(MAX_DEPTH + 1)),
            Err(ReplyError::Depth)
        );
        for first in b"+-:_,#(" {
            let line = [&[*first][..], &vec![b'x'; MAX_LINE + 1]].concat();
            assert_eq!(scan(&line), Err(ReplyError::Line));
            assert_eq!(scan(&line[..line.len() - 1]), Ok(()));
        }
        let bulk = [&b"$131072\r\n"[..], &vec![b'x'; 131_072], b"\r\n"].concat();
        let array = [b"*100\r\n", &bulk.repeat(100)[..]].concat();
        assert_eq!(scan(&array), Err(ReplyError::Reply));
    }

    #[test]
    fn all_connections_share_the_memory_for_unfinished_replies() {
        let all = Arc::<UnfinishedReplies>::default();
        let share = || UnfinishedShare::new(Arc::clone(&all));
        let (mut one, mut two) = (share(), share());
        assert_eq!(one.set(MAX_UNFINISHED), Ok(()));
        assert_eq!(two.set(1), Err(ReplyError::Unfinished));
        assert_eq!(one.set(MAX_UNFINISHED - 1), Ok(()));
        assert_eq!(two.set(1), Ok(()));
        drop(one);
        assert_eq!(two.set(MAX_UNFINISHED), Ok(()));
        drop(two);
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
        let mut scanner = ReplyScanner::default();
        scanner.scan(b"*1000\r\n").unwrap();
        assert_eq!(scanner.weight(), 7 * BYTE_WEIGHT + 1000 * ELEMENT_WEIGHT);
    }

    #[test]
    fn refuses_malformed_replies() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"\r\n",
            b"$\r\n",
            b"$x\r\n",
            b"$+1\r\n",
            b"$ 1\r\n",
            b"$1-\r\n",
            b"$1\rx",
            b"$1\n",
            b"$?\r\n",
            b"$1\r\nxx",
            b"$1\r\nx\rx",
            b"%-1\r\n",
            b"=-1\r\n",
            b">-1\r\n",
            b"$000000000000000000001\r\n",
            b"*99999999999999999999\r\n",
        ] {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(scan(bytes), Err(ReplyError::Malformed), "{shown}");
        }
    }

    /// A reply of any type that RESP2 and RESP3 have.
    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            "[+-][ -~]{0,20}".prop_map(|line| format!("{line}\r\n")),
            "_|,1[.]5|#t|:-?[0-9]{1,9}|[(][0-9]{1,30}".prop_map(|line| format!("{line}\r\n")),
            "[$*]-1".prop_map(|line| format!("{line}\r\n")),
        ];
        let bulk = prop::collection::vec(prop::sample::select(&b"\r\n$*:ab\0"[..]), 0..40)
            .prop_map(|text| [format!("${}\r\n", text.len()).as_bytes(), &text, b"\r\n"].concat());
        let leaf = prop_oneof![line.prop_map(String::into_bytes), bulk];
        leaf.prop_recursive(4, 64, 8, |element| {
            let kind = prop::sample::select(&b"*~%|"[..]);
            (kind, prop::collection::vec(element, 0..8)).prop_map(|(kind, mut elements)| {
                let count = match kind {
                    b'%' => {
                        elements.truncate(elements.len() / 2 * 2);
                        elements.len() / 2
                    }
                    b'|' => {
                        elements.push(b"+OK\r\n".to_vec());
                        elements.truncate(elements.len().div_ceil(2) * 2 - 1);
                        elements.len() / 2
                    }
                    _ => elements.len(),
                };
                let head = format!("{}{count}\r\n", char::from(kind)).into_bytes();
                [head, elements.concat()].concat()
            })
        })
    }

    proptest! {
        #[test]
        fn ends_a_reply_where_the_client_ends_it(reply in reply()) {
            prop_assert!(is_whole(&reply), "{}", String::from_utf8_lossy(&reply));
            let parsed = redis::parse_redis_value(&reply);
            prop_assert!(parsed.is_ok(), "{parsed:?}");
            for cut in 1..reply.len() {
                prop_assert!(!is_whole(&reply[..cut]));
                prop_assert!(redis::parse_redis_value(&reply[..cut]).is_err());
            }
        }

        #[test]
        fn ends_a_malformed_reply_no_later_than_the_client(
            bytes in prop::collection::vec(prop::sample::select(&b"\r\n\r\n+-:$*%~|!=(#_,>0123x"[..]), 1..24)
        ) {
            let ended = (1..=bytes.len()).find(|&end| is_whole(&bytes[..end]));
            for end in 1..=bytes.len() {
                let (start, has_ended) = (&bytes[..end], ended.is_some_and(|ended| ended <= end));
                match redis::parse_redis_value(start) {
                    Ok(_) => prop_assert!(has_ended || scan(start).is_err()),
                    // The client waits for more bytes.
                    Err(error) if error.is_io_error() => prop_assert!(!has_ended),
                    Err(_) => {}
                }
            }
        }

        #[test]
        fn the_result_does_not_depend_on_the_reads(
            replies in prop::collection::vec(reply(), 1..4),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = replies.concat();
            if let Some((at, byte)) = damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let whole = scan_cut(&bytes, &[]);
            for split in 0..=bytes.len() {
                prop_assert_eq!(&scan_cut(&bytes, &[split]), &whole);
            }
            let second = cut.index(bytes.len());
            for first in 0..=second {
                prop_assert_eq!(&scan_cut(&bytes, &[first, second]), &whole);
            }
        }
    }
}
