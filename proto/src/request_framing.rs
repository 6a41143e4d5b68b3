//! Finds HTTP/1 requests whose length is given twice. Two servers could read such a request in two ways
//! (RFC 9112, [6.1](https://www.rfc-editor.org/rfc/rfc9112#section-6.1) and
//! [6.3](https://www.rfc-editor.org/rfc/rfc9112#section-6.3)).
//!
//! [`RequestFraming`] follows the requests of one connection, even if reads split the requests. It skips
//! bodies. It checks the framing headers only; an HTTP library must parse the requests.
//!
//! Both must agree about the end of each request, or a request could hide in a body. So the framing of
//! chunks is read strictly: each line ends with CRLF, and a CR or LF alone is refused.

use memchr::{memchr, memchr2};

/// The smallest length that HTTP libraries reserve for other meanings. A request of this length or more
/// is refused.
const FIRST_RESERVED_LENGTH: u64 = u64::MAX - 1;

/// Most bytes of a request's head, with the empty lines before it.
pub const MAX_HEAD: usize = 64 * 1024;

/// The length of the longest name of a framing header.
const NAME: usize = 17;

const CONTENT_LENGTH: &[u8] = b"content-length";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";

/// The position within the requests of one connection.
#[derive(Debug)]
pub struct RequestFraming {
    state: State,
    head: Head,
}

/// The current head: its length and its framing headers.
#[derive(Debug, Default)]
struct Head {
    /// The number of bytes so far.
    len: usize,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// All bytes so far belong to complete requests.
    BetweenRequests,
    /// Empty lines may precede a request.
    ExpectRequest,
    InRequestLine,
    ExpectHeader,
    /// The LF that ends the head, after its CR.
    ExpectHeadEnd,
    InName(Name),
    InLength,
    InValue,
    InBody(u64),
    ExpectChunk,
    InChunkSize(u64),
    /// White space behind this chunk size.
    InChunkSpace(u64),
    /// The extensions of a chunk of this size.
    InChunkExtension(u64),
    /// The LF of the line with this chunk size.
    ExpectChunkLineEnd(u64),
    InChunk(u64),
    /// The CR behind the data of a chunk.
    ExpectChunkEnd,
    /// The LF behind the data of a chunk.
    ExpectChunkEndLf,
    ExpectTrailer,
    InTrailer,
    /// The LF of a trailer.
    ExpectTrailerLf,
    ExpectTrailersEnd,
    /// The connection ends with a refused request, so the bytes after it do not matter.
    Refused(Refusal),
}

/// Where a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// In the head: the request is ambiguous or unreadable.
    Head,
    /// In the head, behind its last allowed byte.
    LongHead,
    /// Between the head and the end of the request.
    Body,
}

/// The first bytes of a header's name, in lower case.
#[derive(Clone, Copy, Debug, Default)]
struct Name {
    bytes: [u8; NAME],
    /// Greater than [`NAME`] if the name is longer.
    len: u8,
}

impl RequestFraming {
    /// The state at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::BetweenRequests,
            head: Head::default(),
        }
    }

    /// Follows the next bytes of the connection. Returns the index of the byte that makes a request
    /// ambiguous or unreadable, or its head too long. The index is returned once, and later bytes are not
    /// read.
    pub fn find_refused(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut index = 0;
        while index < bytes.len() {
            let head_left = MAX_HEAD - self.head.len;
            let is_in_head = !self.is_in_body();
            let Some((state, taken)) = self.step(&bytes[index..]) else {
                let refusal = if is_in_head {
                    Refusal::Head
                } else {
                    Refusal::Body
                };
                self.state = State::Refused(refusal);
                return Some(index);
            };
            if is_in_head && taken > head_left && self.refusal().is_none() {
                self.state = State::Refused(Refusal::LongHead);
                return Some(index + head_left);
            }
            self.state = state;
            if self.is_in_head() {
                self.head.len += taken;
            }
            index += taken;
        }
        None
    }

    /// Where the request is refused; `None` if it is not.
    #[must_use]
    pub const fn refusal(&self) -> Option<Refusal> {
        match self.state {
            State::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    const fn is_in_head(&self) -> bool {
        !self.is_in_body() && !self.is_between_requests() && self.refusal().is_none()
    }

    /// True if all bytes so far belong to complete requests. An empty line after a request belongs to the next
    /// request.
    #[must_use]
    pub const fn is_between_requests(&self) -> bool {
        matches!(self.state, State::BetweenRequests)
    }

    /// True if the last byte so far belongs to a body that is not complete.
    #[must_use]
    pub const fn is_in_body(&self) -> bool {
        matches!(self.state, State::InBody(_)) || self.state.is_in_chunks()
    }

    /// The next state, and how many bytes lead to it. `None` if the first byte is refused.
    fn step(&mut self, bytes: &[u8]) -> Option<(State, usize)> {
        let byte = bytes[0];
        Some(match self.state {
            State::BetweenRequests | State::ExpectRequest => match byte {
                b'\r' | b'\n' => (State::ExpectRequest, 1),
                _ => (State::InRequestLine, 0),
            },
            State::InRequestLine => after_line(bytes, State::InRequestLine, State::ExpectHeader),
            State::ExpectHeader => match byte {
                b'\r' => (State::ExpectHeadEnd, 1),
                b'\n' => (self.end_head(), 1),
                _ => match unframed_header(bytes) {
                    Some(length) => (State::ExpectHeader, length),
                    None => (State::InName(Name::default()), 0),
                },
            },
            State::ExpectHeadEnd => match byte {
                b'\n' => (self.end_head(), 1),
                _ => return None,
            },
            State::InName(name) => match byte {
                b':' => (self.begin_value(name)?, 1),
                b'\n' => return None,
                _ => (State::InName(name.with(byte)), 1),
            },
            State::InLength => {
                self.add_digit(byte)?;
                match byte {
                    b'\n' => (State::ExpectHeader, 1),
                    _ => (State::InLength, 1),
                }
            }
            State::InValue => after_line(bytes, State::InValue, State::ExpectHeader),
            State::InBody(left) => match left - left.min(bytes.len() as u64) {
                0 => (State::BetweenRequests, left as usize),
                rest => (State::InBody(rest), bytes.len()),
            },
            _ => return step_in_chunks(self.state, bytes),
        })
    }

    /// The state behind the colon of a header. `None` if the header gives the length a second time.
    fn begin_value(&mut self, name: Name) -> Option<State> {
        let head = &mut self.head;
        let is_framed = head.chunked || head.length.is_some();
        match name.as_bytes() {
            CONTENT_LENGTH | TRANSFER_ENCODING if is_framed => None,
            CONTENT_LENGTH => {
                head.length = Some(0);
                Some(State::InLength)
            }
            TRANSFER_ENCODING => {
                head.chunked = true;
                Some(State::InValue)
            }
            _ => Some(State::InValue),
        }
    }

    /// Reads a byte of `Content-Length`. `None` if the length becomes too large. Other bytes than
    /// digits are left to the HTTP library.
    fn add_digit(&mut self, byte: u8) -> Option<()> {
        if !byte.is_ascii_digit() {
            return Some(());
        }
        let length = self.head.length.unwrap_or(0);
        let length = length
            .checked_mul(10)?
            .checked_add(u64::from(byte - b'0'))?;
        self.head.length = Some(length);
        (length < FIRST_RESERVED_LENGTH).then_some(())
    }

    /// The state behind a head.
    fn end_head(&mut self) -> State {
        match std::mem::take(&mut self.head) {
            Head { chunked: true, .. } => State::ExpectChunk,
            Head {
                length: Some(length @ 1..),
                ..
            } => State::InBody(length),
            Head { .. } => State::BetweenRequests,
        }
    }
}

impl State {
    const fn is_in_chunks(self) -> bool {
        matches!(
            self,
            Self::ExpectChunk
                | Self::InChunkSize(_)
                | Self::InChunkSpace(_)
                | Self::InChunkExtension(_)
                | Self::ExpectChunkLineEnd(_)
                | Self::InChunk(_)
                | Self::ExpectChunkEnd
                | Self::ExpectChunkEndLf
                | Self::ExpectTrailer
                | Self::InTrailer
                | Self::ExpectTrailerLf
                | Self::ExpectTrailersEnd
        )
    }
}

impl Default for RequestFraming {
    fn default() -> Self {
        Self::new()
    }
}

impl Name {
    fn with(mut self, byte: u8) -> Self {
        if let Some(place) = self.bytes.get_mut(usize::from(self.len)) {
            *place = byte.to_ascii_lowercase();
        }
        self.len = (self.len + 1).min(NAME as u8 + 1);
        self
    }

    /// Empty if the name is longer than every name of a framing header.
    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The length of the first line, if that is a whole header and has no framing.
fn unframed_header(bytes: &[u8]) -> Option<usize> {
    let colon = memchr2(b':', b'\n', bytes)?;
    let (name, value) = bytes.split_at(colon);
    let is_framing = [CONTENT_LENGTH, TRANSFER_ENCODING]
        .iter()
        .any(|framing| name.eq_ignore_ascii_case(framing));
    if is_framing || value.starts_with(b"\n") {
        return None;
    }
    Some(colon + memchr(b'\n', value)? + 1)
}

/// Does the work of [`RequestFraming::step`] in a chunked body.
fn step_in_chunks(state: State, bytes: &[u8]) -> Option<(State, usize)> {
    let byte = bytes[0];
    Some(match state {
        State::ExpectChunk => (State::InChunkSize(with_digit(0, byte)?), 1),
        State::InChunkSize(size) => match behind_chunk_size(byte, size) {
            Some(next) => (next, 1),
            None => (State::InChunkSize(with_digit(size, byte)?), 1),
        },
        State::InChunkSpace(size) => (behind_chunk_size(byte, size)?, 1),
        State::InChunkExtension(size) => in_line(bytes, state, State::ExpectChunkLineEnd(size))?,
        State::ExpectChunkLineEnd(0) => after_lf(byte, State::ExpectTrailer)?,
        State::ExpectChunkLineEnd(size) => after_lf(byte, State::InChunk(size))?,
        State::InChunk(left) => match left - left.min(bytes.len() as u64) {
            0 => (State::ExpectChunkEnd, left as usize),
            rest => (State::InChunk(rest), bytes.len()),
        },
        State::ExpectChunkEnd => match byte {
            b'\r' => (State::ExpectChunkEndLf, 1),
            _ => return None,
        },
        State::ExpectChunkEndLf => after_lf(byte, State::ExpectChunk)?,
        State::ExpectTrailer => match byte {
            b'\r' => (State::ExpectTrailersEnd, 1),
            _ => (State::InTrailer, 0),
        },
        State::InTrailer => in_line(bytes, state, State::ExpectTrailerLf)?,
        State::ExpectTrailerLf => after_lf(byte, State::ExpectTrailer)?,
        State::ExpectTrailersEnd => after_lf(byte, State::BetweenRequests)?,
        _ => (state, bytes.len()),
    })
}

/// The state behind a byte that ends the digits of a chunk size.
const fn behind_chunk_size(byte: u8, size: u64) -> Option<State> {
    match byte {
        b'\r' => Some(State::ExpectChunkLineEnd(size)),
        b';' => Some(State::InChunkExtension(size)),
        b' ' | b'\t' => Some(State::InChunkSpace(size)),
        _ => None,
    }
}

/// Skips to the CR of a line. `None` if the next byte is an LF.
fn in_line(bytes: &[u8], within: State, behind: State) -> Option<(State, usize)> {
    match memchr2(b'\r', b'\n', bytes) {
        Some(0) if bytes[0] == b'\n' => None,
        Some(end) if bytes[end] == b'\n' => Some((within, end)),
        Some(end) => Some((behind, end + 1)),
        None => Some((within, bytes.len())),
    }
}

/// The state behind an LF. `None` if the byte is not an LF.
fn after_lf(byte: u8, behind: State) -> Option<(State, usize)> {
    (byte == b'\n').then_some((behind, 1))
}

/// Skips to the end of a line.
fn after_line(bytes: &[u8], within: State, behind: State) -> (State, usize) {
    match memchr(b'\n', bytes) {
        Some(end) => (behind, end + 1),
        None => (within, bytes.len()),
    }
}

/// A chunk size with one more hexadecimal digit.
fn with_digit(size: u64, byte: u8) -> Option<u64> {
    let digit = char::from(byte).to_digit(16)?;
    size.checked_mul(16)?.checked_add(u64::from(digit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(bytes: &str) -> Option<usize> {
        RequestFraming::new().find_refused(bytes.as_bytes())
    }

    /// Two requests with bodies, and a third without.
    const PIPELINED: &str = "\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 29\r\n\r\n\
        Content-Length: 1\r\nx: y\r\n\r\n\r\n\
        POST /b HTTP/1.1\r\nhost: a\r\ntRaNsFeR-eNcOdInG: chunked\r\n\r\n\
        1d;x=\"y\"\r\nContent-Length: 1\r\nx: y\r\n\r\n\r\n\r\n\
        0\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n\
        GET /c HTTP/1.1\nHost: a\nX-Content-Length: 5\nContent-Lengthy: 6\n\n";

    #[test]
    fn requests_with_one_length_each_pass() {
        assert_eq!(refused(PIPELINED), None);
    }

    #[test]
    fn a_second_length_is_found_at_its_colon() {
        for (first, second) in [
            ("Content-Length: 5", "Content-Length"),
            ("Content-Length: 5", "content-length"),
            ("Content-Length:", "Transfer-Encoding"),
            ("Transfer-Encoding: chunked", "Content-Length"),
            ("Transfer-Encoding: chunked", "TRANSFER-ENCODING"),
        ] {
            let head = format!("POST / HTTP/1.1\r\n{first}\r\nHost: a\r\n{second}");
            let request = format!("{head}: 5\r\n\r\n");
            assert_eq!(refused(&request), Some(head.len()), "{request}");
            // The same request after other requests.
            let at = PIPELINED.len() + head.len();
            assert_eq!(refused(&format!("{PIPELINED}{request}")), Some(at));
        }
    }

    #[test]
    fn a_length_that_is_too_large_is_found_at_its_last_digit() {
        let head = "GET / HTTP/1.1\r\nContent-Length:\t ";
        for (length, is_refused) in [
            ("18446744073709551613", false),
            ("18446744073709551614", true),
            ("18446744073709551615", true),
            ("18446744073709551616", true),
            ("00018446744073709551615", true),
            ("99999999999999999999", true),
        ] {
            let at = is_refused.then_some(head.len() + length.len() - 1);
            assert_eq!(refused(&format!("{head}{length}\r\n\r\n")), at, "{length}");
        }
    }

    #[test]
    fn chunks_that_cannot_be_followed_are_refused() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (body, at) in [
            ("\r\n", 0),
            ("g\r\n", 0),
            ("5x\r\n", 1),
            ("10000000000000000\r\n", 16),
            ("1\r\nabc", 4),
            ("0\r\n\rx", 4),
            // A line that ends with LF.
            ("1\na", 1),
            ("1 \na", 2),
            ("1;x\na", 3),
            ("1;x\ny\r\na", 3),
            ("1\r\na\n", 4),
            ("0\n\r\n", 1),
            ("0\r\n\n", 3),
            ("0\r\na: b\n\r\n", 7),
            ("0\r\na: b\r\n\n", 9),
            // A CR without LF.
            ("1\r\r\na", 2),
            ("1;x\ry\r\na", 4),
            ("1\r\na\r\r\n", 5),
            ("0\r\na: b\rc: d\r\n\r\n", 8),
            // White space in a chunk size.
            ("1 1\r\na", 2),
            ("1 x\r\na", 2),
            (" 1\r\na", 0),
        ] {
            let request = format!("{head}{body}");
            let mut framing = RequestFraming::new();
            let found = framing.find_refused(request.as_bytes());
            assert_eq!(found, Some(head.len() + at), "{request:?}");
            assert_eq!(framing.refusal(), Some(Refusal::Body), "{request:?}");
        }
    }

    /// The lengths after which the bytes so far are complete requests.
    fn ends(bytes: &str) -> Vec<usize> {
        let mut framing = RequestFraming::new();
        let is_end = |at: &usize| {
            assert_eq!(framing.find_refused(&bytes.as_bytes()[*at..=*at]), None);
            framing.is_between_requests()
        };
        let last_bytes: Vec<_> = (0..bytes.len()).filter(is_end).collect();
        last_bytes.iter().map(|last| last + 1).collect()
    }

    #[test]
    fn the_end_of_each_request_is_known() {
        let requests = [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\n\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\n\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\r\n\r\n",
        ];
        let lengths = requests.iter().scan(0, |end, request| {
            *end += request.len();
            Some(*end)
        });
        assert_eq!(ends(&requests.concat()), lengths.collect::<Vec<_>>());
        let framing = RequestFraming::new();
        assert!(framing.is_between_requests() && !framing.is_in_body());
    }

    #[test]
    fn bytes_behind_a_refused_request_are_not_looked_at() {
        let mut framing = RequestFraming::new();
        let request = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n";
        assert!(framing.find_refused(request).is_some());
        assert_eq!(framing.refusal(), Some(Refusal::Head));
        assert_eq!(framing.find_refused(request), None);
    }

    #[test]
    fn a_head_ends_at_its_limit() {
        let start = "GET / HTTP/1.1\r\nA: ";
        let end = "\r\n\r\n";
        let value = "x".repeat(MAX_HEAD - start.len() - end.len());
        let longest = format!("{start}{value}{end}");
        for requests in [
            longest.clone(),
            longest.repeat(2),
            format!("GET / HTTP/1.1\r\n\r\n{longest}"),
        ] {
            assert_eq!(
                RequestFraming::new().find_refused(requests.as_bytes()),
                None
            );
        }
        for longer in [
            format!("\r\n{longest}"),
            format!("{start}x{value}{end}"),
            format!("{start}{value}\r\nB: x{end}"),
            format!("GET /{}", value.repeat(2)),
        ] {
            for size in [1, 100, 70_000, longer.len()] {
                let mut framing = RequestFraming::new();
                let mut parts = longer.as_bytes().chunks(size).enumerate();
                let refused = parts
                    .find_map(|(number, part)| Some(number * size + framing.find_refused(part)?));
                assert_eq!(refused, Some(MAX_HEAD), "parts of {size}");
                assert_eq!(framing.refusal(), Some(Refusal::LongHead));
            }
        }
        // A body has no limit.
        let body = format!(
            "POST / HTTP/1.1\r\nContent-Length: 200000\r\n\r\n{}",
            "x".repeat(200_000)
        );
        assert_eq!(RequestFraming::new().find_refused(body.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn splits_change_nothing(
            body in prop::collection::vec(any::<u8>(), 0..20),
            twice in any::<bool>(),
            splits in prop::collection::vec(0usize..400, 0..8),
        ) {
            let mut bytes = PIPELINED.as_bytes().to_vec();
            let length = format!("Content-Length: {}\r\n", body.len());
            let lengths = length.repeat(1 + usize::from(twice));
            bytes.extend(format!("PUT / HTTP/1.1\r\n{lengths}\r\n").bytes());
            bytes.extend(&body);
            bytes.extend(b"GET / HTTP/1.1\r\n\r\n");
            let at_once = RequestFraming::new().find_refused(&bytes);
            prop_assert_eq!(at_once.is_some(), twice);
            let mut places: Vec<_> = splits.iter().map(|at| at % bytes.len()).collect();
            places.extend([0, bytes.len()]);
            places.sort_unstable();
            let mut framing = RequestFraming::new();
            let mut found = None;
            for part in places.windows(2) {
                let at = framing.find_refused(&bytes[part[0]..part[1]]);
                found = found.or(at.map(|at| part[0] + at));
            }
            prop_assert_eq!(found, at_once);
        }
    }
}
