//! Reads a connection's first ClientHello, however it was cut into segments and records.

use std::ops::Range;

use super::client::{ClientHello, ssl2_len};
use super::kind;
use crate::record::{ContentType, Error, HEADER_LEN, Header, message_len};

/// Most bytes of a ClientHello unless configured otherwise.
pub const DEFAULT_LIMIT: usize = 16 * 1024;

/// Most bytes of a ClientHello that can be configured.
pub const MAX_LIMIT: usize = 64 * 1024;

/// Collects the bytes of a client until its first ClientHello is complete.
///
/// - The bytes are kept as they came, so that they can be forwarded.
/// - A hello in one record, the usual case, is parsed in place. Fragments in several records are
///   joined in a second buffer.
/// - Each record holds at least one byte of the hello. So the buffer holds at most six times the limit,
///   plus the surplus bytes of the last push.
#[derive(Clone, Debug)]
pub struct HelloReader {
    limit: usize,
    raw: Vec<u8>,
    /// The offset in `raw` of the record that is awaited.
    record: usize,
    /// The records before the awaited record, without their headers.
    joined: Vec<u8>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    ExpectHello,
    InOneRecord(Range<usize>),
    Joined,
    Ssl2(Range<usize>),
    Failed(Error),
}

impl HelloReader {
    /// `limit` is the most bytes of the ClientHello, with its handshake header. A limit above [`MAX_LIMIT`]
    /// counts as [`MAX_LIMIT`].
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(MAX_LIMIT),
            raw: Vec::new(),
            record: 0,
            joined: Vec::new(),
            state: State::ExpectHello,
        }
    }

    /// Takes the next bytes of the client. Returns `Ok(true)` if the hello is whole.
    ///
    /// # Errors
    ///
    /// Any error as soon as the bytes show it; never [`Error::Incomplete`]. Errors are final: every later
    /// call returns the same error, and nothing more is buffered. Only [`HelloReader::hello`] reads the
    /// fields of the hello.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        if let State::Failed(error) = self.state {
            return Err(error);
        }
        self.raw.extend_from_slice(bytes);
        if !matches!(self.state, State::ExpectHello) {
            return Ok(true);
        }
        match self.find() {
            Ok(state) => {
                self.state = state;
                Ok(true)
            }
            Err(Error::Incomplete) => Ok(false),
            Err(error) => {
                self.state = State::Failed(error);
                Err(error)
            }
        }
    }

    /// All bytes that were pushed, unchanged, with the bytes after the hello, such as early data.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.raw
    }

    /// Parses the hello.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] before [`HelloReader::push`] returned `Ok(true)`, and any error in the hello's
    /// fields.
    pub fn hello(&self) -> Result<ClientHello<'_>, Error> {
        match &self.state {
            State::ExpectHello => Err(Error::Incomplete),
            State::InOneRecord(range) => ClientHello::parse(&self.raw[range.clone()]),
            State::Joined => ClientHello::parse(&self.joined),
            State::Ssl2(range) => ClientHello::parse_ssl2(&self.raw[range.clone()]),
            State::Failed(error) => Err(*error),
        }
    }

    /// Continues at the record that is awaited. Takes constant time for each call and each record.
    fn find(&mut self) -> Result<State, Error> {
        if self.raw.first().is_some_and(|first| first & 0x80 != 0) {
            return self.find_ssl2();
        }
        loop {
            let rest = &self.raw[self.record..];
            let header = Header::parse(rest)?;
            if header.content != ContentType::Handshake {
                return Err(match self.record {
                    0 => Error::ContentType(header.content as u8),
                    _ => Error::Interleaved,
                });
            }
            let fragment = &rest[HEADER_LEN..];
            let fragment = &fragment[..fragment.len().min(header.len)];
            let declared = self.declared_len(fragment)?;
            let here = self.joined.len() + header.len;
            if declared.is_some_and(|declared| here > declared) {
                // No bytes may follow the ClientHello in its record (RFC 9846, 5.1).
                return Err(Error::Trailing);
            }
            if fragment.len() < header.len {
                return Err(Error::Incomplete);
            }
            let start = self.record + HEADER_LEN;
            self.record = start + header.len;
            let whole = declared == Some(here);
            if whole && self.joined.is_empty() {
                return Ok(State::InOneRecord(start..self.record));
            }
            self.joined.extend_from_slice(fragment);
            if whole {
                return Ok(State::Joined);
            }
        }
    }

    /// The length of the whole hello. `None` if the bytes end before the length field does.
    fn declared_len(&self, fragment: &[u8]) -> Result<Option<usize>, Error> {
        let mut start = [0; 4];
        let mut count = 0;
        for (to, from) in start.iter_mut().zip(self.joined.iter().chain(fragment)) {
            *to = *from;
            count += 1;
        }
        if count > 0 && start[0] != kind::CLIENT_HELLO {
            return Err(Error::HandshakeType(start[0]));
        }
        if count < start.len() {
            return Ok(None);
        }
        let len = message_len(&start)?;
        if len > self.limit {
            return Err(Error::OverLimit(self.limit));
        }
        Ok(Some(len))
    }

    fn find_ssl2(&self) -> Result<State, Error> {
        let len = ssl2_len(&self.raw)?;
        if len > self.limit {
            return Err(Error::OverLimit(self.limit));
        }
        if self.raw.len() < len {
            return Err(Error::Incomplete);
        }
        Ok(State::Ssl2(0..len))
    }
}
