//! Finds the data in a body with the chunked transfer coding
//! ([RFC 9112, 7.1](https://www.rfc-editor.org/rfc/rfc9112#section-7.1)), even if reads split the body.
//!
//! Each line must end with CRLF. A CR or LF alone is refused.

use memchr::memchr;

use crate::response_head::{Field, MAX_FIELDS, ends_lines_with_crlf, find_empty_line};

/// Most bytes of the line with the size of a chunk, extensions included.
const MAX_SIZE_LINE: usize = 4096;

/// Most bytes of all extensions of a body together. The extensions have no effect.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Most bytes of all trailers together.
const MAX_TRAILERS: usize = 16 * 1024;

/// Most digits of a size.
const MAX_DIGITS: usize = 16;

/// The position in a body. The caller has the bytes from this position on.
#[derive(Debug)]
pub struct ChunkedBody {
    state: State,
    /// How many bytes the extensions had so far.
    extensions: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    ExpectSize,
    /// The chunk has this many bytes of data left.
    InData(u64),
    /// The CRLF behind the data of a chunk is next.
    ExpectDataEnd,
    ExpectTrailers {
        /// How many bytes were searched for the end of the trailers.
        searched: usize,
    },
    /// The next bytes are this many bytes of trailers.
    AtTrailers(usize),
    Complete,
}

/// Why bytes are no body with the chunked coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The size of a chunk is missing or too large, or a line does not end with CRLF.
    #[error("malformed chunk")]
    Malformed,
    /// A line with a size, all extensions together, or all trailers together have too many bytes.
    #[error("the framing of a chunk is too long")]
    TooLong,
}

impl ChunkedBody {
    /// The state at the start of a body.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: State::ExpectSize,
            extensions: 0,
        }
    }

    /// Returns how many of these bytes are in front of the next data. The caller removes them.
    ///
    /// # Errors
    ///
    /// The bytes are malformed. Another call with the same bytes has the same result.
    pub fn skip_framing(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let mut skipped = 0;
        loop {
            let rest = &bytes[skipped..];
            let step = match self.state {
                State::ExpectSize => self.take_size_line(rest),
                State::ExpectDataEnd => data_end(rest),
                State::ExpectTrailers { searched } => trailers(rest, searched),
                State::InData(_) | State::AtTrailers(_) | State::Complete => Ok(None),
            };
            match step {
                Ok(Some((state, len))) => {
                    self.state = state;
                    skipped += len;
                }
                Ok(None) => {
                    if let State::ExpectTrailers { searched } = &mut self.state {
                        *searched = rest.len();
                    }
                    return Ok(skipped);
                }
                Err(error) if skipped == 0 => return Err(error),
                // The next call finds the error.
                Err(_) => return Ok(skipped),
            }
        }
    }

    fn take_size_line(&mut self, bytes: &[u8]) -> Result<Option<(State, usize)>, Error> {
        let Some(line) = SizeLine::parse(bytes)? else {
            return Ok(None);
        };
        let extensions = self.extensions + line.extensions;
        if extensions > MAX_EXTENSIONS {
            return Err(Error::TooLong);
        }
        self.extensions = extensions;
        let state = match line.size {
            0 => State::ExpectTrailers { searched: 0 },
            size => State::InData(size),
        };
        Ok(Some((state, line.len)))
    }

    /// Takes data: returns how many of the next `available` bytes are data. The caller removes them.
    pub fn take_data(&mut self, available: usize) -> usize {
        let State::InData(left) = self.state else {
            return 0;
        };
        let taken = usize::try_from(left).map_or(available, |left| left.min(available));
        self.state = match left - taken as u64 {
            0 => State::ExpectDataEnd,
            left => State::InData(left),
        };
        taken
    }

    /// Takes the trailers: returns how many bytes they have. `None` if the next bytes are no trailers.
    pub const fn take_trailers(&mut self) -> Option<usize> {
        let State::AtTrailers(len) = self.state else {
            return None;
        };
        self.state = State::Complete;
        Some(len)
    }

    /// True if the body has ended.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }
}

impl Default for ChunkedBody {
    fn default() -> Self {
        Self::new()
    }
}

/// Parses trailers, with the empty line behind them.
///
/// # Errors
///
/// There are too many fields, or the bytes are no trailers.
pub fn parse_trailers(trailers: &[u8]) -> Result<Vec<Field<'_>>, Error> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(trailers, &mut slots) {
        Ok(httparse::Status::Complete((len, fields))) if len == trailers.len() => {
            Ok(fields.to_vec())
        }
        Err(httparse::Error::TooManyHeaders) => Err(Error::TooLong),
        _ => Err(Error::Malformed),
    }
}

/// The line with the size of a chunk.
struct SizeLine {
    size: u64,
    /// How many bytes follow the size in the line.
    extensions: usize,
    /// The length of the line with its CRLF.
    len: usize,
}

impl SizeLine {
    /// `None` if the line is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, Error> {
        let window = &bytes[..bytes.len().min(MAX_SIZE_LINE)];
        let Some(lf) = memchr(b'\n', window) else {
            return if window.len() == MAX_SIZE_LINE {
                Err(Error::TooLong)
            } else {
                Ok(None)
            };
        };
        let line = window[..lf].strip_suffix(b"\r").ok_or(Error::Malformed)?;
        let is_digit = |byte: &&u8| byte.is_ascii_hexdigit();
        let (digits, rest) = line.split_at(line.iter().take_while(is_digit).count());
        // Some servers write spaces behind a size.
        let is_end = matches!(rest.trim_ascii_start().first(), None | Some(b';'));
        let has_digits = matches!(digits.len(), 1..=MAX_DIGITS);
        if !has_digits || !is_end || memchr(b'\r', rest).is_some() {
            return Err(Error::Malformed);
        }
        let size = digits.iter().fold(0, |size, digit| {
            let digit = char::from(*digit).to_digit(16).unwrap_or_default();
            size << 4 | u64::from(digit)
        });
        Ok(Some(Self {
            size,
            extensions: rest.len(),
            len: lf + 1,
        }))
    }
}

/// The state behind the data of a chunk, and the length of the CRLF.
fn data_end(bytes: &[u8]) -> Result<Option<(State, usize)>, Error> {
    match bytes {
        [] | [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => Ok(Some((State::ExpectSize, 2))),
        _ => Err(Error::Malformed),
    }
}

/// The state behind the trailers, or at trailers. The length is that of an empty line in place of trailers.
///
/// The first `searched` bytes were passed to an earlier call.
fn trailers(bytes: &[u8], searched: usize) -> Result<Option<(State, usize)>, Error> {
    match bytes {
        [] | [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => Ok(Some((State::Complete, 2))),
        [b'\r' | b'\n', ..] => Err(Error::Malformed),
        _ => {
            let window = &bytes[..bytes.len().min(MAX_TRAILERS)];
            let found = find_empty_line(window, searched);
            let read = &window[..found.unwrap_or(window.len())];
            match found {
                _ if !ends_lines_with_crlf(read, searched) => Err(Error::Malformed),
                Some(len) => Ok(Some((State::AtTrailers(len), 0))),
                None if window.len() == MAX_TRAILERS => Err(Error::TooLong),
                None => Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests;
