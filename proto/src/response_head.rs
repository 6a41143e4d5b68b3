//! Parses the head of an HTTP/1.1 response. Decides how the body ends
//! ([RFC 9112, 6.3](https://www.rfc-editor.org/rfc/rfc9112#section-6.3)), and whether the connection can take
//! another request ([9.3](https://www.rfc-editor.org/rfc/rfc9112#section-9.3)).
//!
//! A server and this parser must agree about the end of each response. Otherwise a client could get the
//! response to the request of another client. So each line must end with CRLF, and a head with two lengths is
//! refused.

use std::mem::MaybeUninit;
use std::sync::LazyLock;

use memchr::memchr_iter;
use memchr::memmem::Finder;

pub use httparse::Header as Field;

/// Most bytes of a head.
pub const MAX_HEAD: usize = 64 * 1024;

/// Most fields of a head.
pub const MAX_FIELDS: usize = 100;

/// The first bytes of each head.
const START: &[u8] = b"HTTP/1.";

/// The largest accepted length of a body.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// Room for the fields of a head.
pub type FieldSlots<'b> = [MaybeUninit<Field<'b>>; MAX_FIELDS];

/// Room for the fields of a head, without fields.
#[must_use]
pub const fn empty_slots<'b>() -> FieldSlots<'b> {
    [const { MaybeUninit::uninit() }; MAX_FIELDS]
}

/// A parsed head.
#[derive(Debug)]
pub struct ResponseHead<'s, 'b> {
    /// The status code, 100 to 999.
    pub status: u16,
    /// The text behind the status code. Empty if the text is not ASCII.
    pub reason: &'b str,
    /// The fields in their order. Values have no white space at their ends.
    pub fields: &'s [Field<'b>],
    /// How the body ends.
    pub body: BodyLength,
    /// True if the connection can take another request after this response.
    pub keeps_connection: bool,
}

/// How the body of a response ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// The response has no body.
    Empty,
    /// The body ends after this many bytes, at least one.
    Bytes(u64),
    /// The body ends with the last chunk and the trailers.
    Chunked,
    /// The body ends with the connection.
    UntilClose,
}

/// Why bytes are not the head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are correct so far, but more are needed.
    #[error("more bytes are needed")]
    Incomplete,
    /// The head has more than [`MAX_HEAD`] bytes or [`MAX_FIELDS`] fields.
    #[error("the head of the response is too long")]
    TooLong,
    /// The bytes are no head of HTTP/1.0 or HTTP/1.1, or a line does not end with CRLF.
    #[error("the response is not HTTP/1.1")]
    Malformed,
    /// Two servers could find the end of the response at two places.
    #[error("the end of the response is ambiguous")]
    AmbiguousEnd,
    /// The server changes to another protocol, and no request asks for that.
    #[error("the response changes to another protocol")]
    SwitchesProtocol,
}

/// The end of the last line, and the empty line.
static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

/// The length of the head at the start of these bytes. The first `searched` bytes were passed to an earlier call,
/// which returned [`Error::Incomplete`].
///
/// # Errors
///
/// [`Error::Incomplete`] if the end of the head is missing. Any other error if the bytes cannot be a head.
pub fn find_len(bytes: &[u8], searched: usize) -> Result<usize, Error> {
    let start = &START[..START.len().min(bytes.len())];
    if !bytes.starts_with(start) {
        return Err(Error::Malformed);
    }
    let window = &bytes[..bytes.len().min(MAX_HEAD)];
    match find_empty_line(window, searched) {
        Some(len) => Ok(len),
        // A head with such a line may never have an end.
        None if !ends_lines_with_crlf(window, searched) => Err(Error::Malformed),
        None if bytes.len() >= MAX_HEAD => Err(Error::TooLong),
        None => Err(Error::Incomplete),
    }
}

/// The index behind the first empty line that is not the first line. The first `searched` bytes have none.
pub(crate) fn find_empty_line(bytes: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(3).min(bytes.len());
    let found = HEAD_END.find(&bytes[from..])?;
    Some(from + found + 4)
}

/// True if each LF behind the first `searched` bytes follows a CR.
pub(crate) fn ends_lines_with_crlf(bytes: &[u8], searched: usize) -> bool {
    let from = searched.min(bytes.len());
    memchr_iter(b'\n', &bytes[from..]).all(|lf| bytes[..from + lf].ends_with(b"\r"))
}

/// Parses a complete head, whose length [`find_len`] has found. `is_head`: the request has the method HEAD.
///
/// # Errors
///
/// Any error but [`Error::Incomplete`].
pub fn parse<'s, 'b>(
    head: &'b [u8],
    is_head: bool,
    slots: &'s mut FieldSlots<'b>,
) -> Result<ResponseHead<'s, 'b>, Error> {
    let mut parsed = httparse::Response::new(&mut []);
    let len = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, head, slots)
        .map_err(|error| match error {
            httparse::Error::TooManyHeaders => Error::TooLong,
            _ => Error::Malformed,
        })?;
    let (Some(status @ 100..), Some(version)) = (parsed.code, parsed.version) else {
        return Err(Error::Malformed);
    };
    // The library accepts an LF alone, and refuses a CR alone. So each LF follows a CR if there are as many.
    let count = |byte| memchr_iter(byte, head).count();
    if len != httparse::Status::Complete(head.len()) || count(b'\r') != count(b'\n') {
        return Err(Error::Malformed);
    }
    if status == 101 {
        return Err(Error::SwitchesProtocol);
    }
    let fields: &'s [Field<'b>] = parsed.headers;
    let framing = FramingFields::of(fields, version)?;
    let body = framing.body(status, is_head)?;
    Ok(ResponseHead {
        status,
        reason: parsed.reason.unwrap_or_default(),
        fields,
        body,
        keeps_connection: framing.keeps_connection(status, body),
    })
}

/// The value of a `Content-Length` field. `None` if the value is not a decimal number below 2^63.
#[must_use]
pub fn content_length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })?;
    (value <= MAX_LENGTH).then_some(value)
}

impl ResponseHead<'_, '_> {
    /// True if another head follows, which belongs to the same request.
    #[must_use]
    pub const fn is_informational(&self) -> bool {
        self.status < 200
    }
}

/// The fields of a head that decide about the end of the response and of the connection.
#[derive(Default)]
struct FramingFields {
    is_http10: bool,
    length: Option<u64>,
    is_chunked: bool,
    asks_to_close: bool,
}

impl FramingFields {
    fn of(fields: &[Field<'_>], minor_version: u8) -> Result<Self, Error> {
        let mut framing = Self {
            is_http10: minor_version == 0,
            ..Self::default()
        };
        for field in fields {
            if field.name.eq_ignore_ascii_case("content-length") {
                let length = content_length(field.value).ok_or(Error::AmbiguousEnd)?;
                if framing.length.replace(length).is_some() {
                    return Err(Error::AmbiguousEnd);
                }
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                if framing.is_chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Error::AmbiguousEnd);
                }
                framing.is_chunked = true;
            } else if field.name.eq_ignore_ascii_case("connection") {
                for option in field.value.split(|byte| *byte == b',') {
                    framing.asks_to_close |= option.trim_ascii().eq_ignore_ascii_case(b"close");
                }
            }
        }
        // HTTP/1.0 has no transfer codings (RFC 9112, 6.1).
        if framing.is_chunked && (framing.is_http10 || framing.length.is_some()) {
            return Err(Error::AmbiguousEnd);
        }
        Ok(framing)
    }

    /// True if the head announces a body, whether or not the status allows one.
    const fn announces_body(&self) -> bool {
        self.is_chunked || matches!(self.length, Some(1..))
    }

    fn body(&self, status: u16, is_head: bool) -> Result<BodyLength, Error> {
        match status {
            // A body behind this head would look like the next head.
            ..200 if self.announces_body() => Err(Error::AmbiguousEnd),
            ..200 | 204 | 304 => Ok(BodyLength::Empty),
            _ if is_head => Ok(BodyLength::Empty),
            _ if self.is_chunked => Ok(BodyLength::Chunked),
            _ => Ok(match self.length {
                None => BodyLength::UntilClose,
                Some(0) => BodyLength::Empty,
                Some(length) => BodyLength::Bytes(length),
            }),
        }
    }

    fn keeps_connection(&self, status: u16, body: BodyLength) -> bool {
        // A server that announces a body for 204 can send one (RFC 9110, 15.3.5, forbids it).
        let may_have_more = status == 204 && self.announces_body();
        // A proxy must not keep connections to HTTP/1.0 servers (RFC 9112, 9.3).
        !self.is_http10 && !self.asks_to_close && !may_have_more && body != BodyLength::UntilClose
    }
}

#[cfg(test)]
mod tests;
