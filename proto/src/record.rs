//! The TLS record layer, read without keys: cuts a byte stream into records and joins handshake messages. This
//! module decrypts nothing, and holds at most one handshake message or alert.

mod flight;

use strum::FromRepr;

pub use flight::separate_messages;

/// Most bytes of plaintext in a record ([RFC 9846, 5.1](https://www.rfc-editor.org/rfc/rfc9846#section-5.1)).
pub const MAX_PLAINTEXT: usize = 1 << 14;

/// Most bytes of ciphertext in a record ([RFC 5246, 6.2.3](https://www.rfc-editor.org/rfc/rfc5246#section-6.2.3)).
/// TLS 1.3 allows less.
pub const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 2048;

/// Bytes of a record header.
pub const HEADER_LEN: usize = 5;

/// Bytes of the header of a handshake message: a type and three bytes of length.
pub const HANDSHAKE_HEADER_LEN: usize = 4;

/// Why bytes are not TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are correct so far, but more are needed.
    #[error("more bytes are needed")]
    Incomplete,
    /// The first byte is not an allowed content type.
    #[error("not TLS: content type {0:#04x}")]
    ContentType(u8),
    /// The record's version is not 0x03xx (SSL 3.0 to TLS 1.3).
    #[error("not TLS: record version {0:#06x}")]
    Version(u16),
    /// A plaintext is longer than 2^14 bytes, or a ciphertext is longer than 2^14 + 2,048 bytes.
    #[error("record of {0} bytes is over the limit")]
    TooLong(usize),
    /// A handshake fragment is empty (RFC 9846, 5.1).
    #[error("empty handshake fragment")]
    EmptyFragment,
    /// Another content type came between the fragments of one handshake message.
    #[error("a record interrupts a handshake message")]
    Interleaved,
    /// A handshake message is longer than this limit of the caller, in bytes.
    #[error("handshake message over {0} bytes")]
    OverLimit(usize),
    /// A handshake message of this type came, and a message of another type was expected.
    #[error("unexpected handshake message of type {0}")]
    HandshakeType(u8),
    /// More bytes follow in the same record after a message that must end it (RFC 9846, 5.1).
    #[error("handshake bytes after the ClientHello")]
    Trailing,
    /// The client_version is below SSL 3.0 (0x0300).
    #[error("client version {0:#06x}")]
    ClientVersion(u16),
    /// A length inside a message does not fit the bytes around it.
    #[error("a length does not fit")]
    Length,
    /// A vector is longer or shorter than the protocol allows.
    #[error("illegal {0}")]
    OutOfRange(&'static str),
    /// The protocol does not allow a value inside a message.
    #[error("illegal {0}")]
    Illegal(&'static str),
}

/// The content type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr)]
#[repr(u8)]
pub enum ContentType {
    /// 20.
    ChangeCipherSpec = 20,
    /// 21.
    Alert = 21,
    /// 22.
    Handshake = 22,
    /// 23. In TLS 1.3 all encrypted records have this type.
    ApplicationData = 23,
}

/// The header of a record, checked by the rules for records that are not encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The content type.
    pub content: ContentType,
    /// 0x03xx. It does not tell the negotiated version (RFC 9846, 5.1).
    pub version: u16,
    /// Bytes that follow the header.
    pub len: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] if there are fewer than five bytes, and they can begin a record. Any other error
    /// as soon as the bytes show it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let first = *bytes.first().ok_or(Error::Incomplete)?;
        let content = ContentType::from_repr(first).ok_or(Error::ContentType(first))?;
        let &[_, major, minor] = bytes.first_chunk().ok_or(Error::Incomplete)?;
        let version = u16::from_be_bytes([major, minor]);
        if major != 3 {
            return Err(Error::Version(version));
        }
        let &[_, _, _, high, low] = bytes.first_chunk().ok_or(Error::Incomplete)?;
        let len = usize::from(u16::from_be_bytes([high, low]));
        match content {
            ContentType::Handshake if len == 0 => return Err(Error::EmptyFragment),
            // Without encryption, a ChangeCipherSpec and an alert have fixed lengths. Encrypted records cannot
            // be read here.
            ContentType::ChangeCipherSpec if len != 1 => return Err(Error::Length),
            ContentType::Alert if len != 2 => return Err(Error::Length),
            ContentType::Handshake if len > MAX_PLAINTEXT => return Err(Error::TooLong(len)),
            _ if len > MAX_CIPHERTEXT => return Err(Error::TooLong(len)),
            _ => {}
        }
        Ok(Self {
            content,
            version,
            len,
        })
    }
}

/// An item in a stream, as [`Deframer`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A whole handshake message, with its header of four bytes.
    Handshake(&'a [u8]),
    /// A handshake message of this type begins. Its body is skipped.
    Skipped(u8),
    /// ChangeCipherSpec. In TLS 1.3 it has no meaning (RFC 9846, 5), so clear messages may follow.
    ChangeCipherSpec,
    /// An alert that is not encrypted.
    Alert {
        /// 1 warning, 2 fatal.
        level: u8,
        /// RFC 9846, 6.
        description: u8,
    },
    /// The bytes of application data that have come so far. More bytes of the record may follow.
    ApplicationData(&'a [u8]),
}

/// Finds handshake messages, ChangeCipherSpec and alerts in one direction of an unencrypted TLS stream.
///
/// Segments and records may be cut anywhere. At most one message of at most `limit` bytes is held. The caller
/// must stop when encryption begins: after the ServerHello of TLS 1.3, or the ChangeCipherSpec of earlier
/// versions.
#[derive(Clone, Debug)]
pub struct Deframer {
    limit: usize,
    keep: fn(u8) -> bool,
    header: [u8; HEADER_LEN],
    header_len: usize,
    content: ContentType,
    /// Bytes of the current record that are still to come.
    record_left: usize,
    /// Bytes of a skipped message that are still to come.
    skip_left: usize,
    /// The bytes of the current handshake message or alert.
    message: Vec<u8>,
    /// True if the last call returned `message`.
    taken: bool,
    failed: Option<Error>,
}

/// An [`Item`] that does not yet borrow from the deframer.
enum Step<'a> {
    Nothing,
    /// The message is complete in the deframer.
    Message,
    /// The input has the whole message.
    WholeMessage(&'a [u8]),
    Skipped(u8),
    ChangeCipherSpec,
    Alert,
    ApplicationData(&'a [u8]),
}

impl Deframer {
    /// Keeps the handshake messages of the types that `keep` selects, and skips the bodies of the others.
    ///
    /// `limit` is the most bytes of a message, with its header.
    #[must_use]
    pub fn new(limit: usize, keep: fn(u8) -> bool) -> Self {
        Self {
            limit,
            keep,
            header: [0; HEADER_LEN],
            header_len: 0,
            content: ContentType::Handshake,
            record_left: 0,
            skip_left: 0,
            message: Vec::new(),
            taken: false,
            failed: None,
        }
    }

    /// The next item. Its bytes are removed from the front of `input`.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] if `input` is used up: call again with the next bytes. Any other error is final,
    /// and every later call returns it again.
    pub fn next<'s, 'a: 's>(&'s mut self, input: &mut &'a [u8]) -> Result<Item<'s>, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.taken {
            self.message.clear();
            self.taken = false;
        }
        let step = loop {
            match self.step(input) {
                Ok(Step::Nothing) => {}
                Ok(step) => break step,
                Err(error) => {
                    self.failed = (error != Error::Incomplete).then_some(error);
                    return Err(error);
                }
            }
        };
        Ok(match step {
            Step::Skipped(kind) => Item::Skipped(kind),
            Step::ChangeCipherSpec => Item::ChangeCipherSpec,
            Step::ApplicationData(data) => Item::ApplicationData(data),
            Step::WholeMessage(message) => Item::Handshake(message),
            Step::Nothing | Step::Message => Item::Handshake(&self.message),
            Step::Alert => Item::Alert {
                level: self.message[0],
                description: self.message[1],
            },
        })
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Error> {
        if self.record_left == 0 {
            return self.read_header(input);
        }
        if input.is_empty() {
            return Err(Error::Incomplete);
        }
        match self.content {
            ContentType::Handshake => self.read_handshake(input),
            ContentType::ApplicationData => Ok(Step::ApplicationData(self.take(input, usize::MAX))),
            ContentType::ChangeCipherSpec => match self.take(input, 1) {
                [1] => Ok(Step::ChangeCipherSpec),
                _ => Err(Error::Illegal("ChangeCipherSpec")),
            },
            ContentType::Alert => {
                let bytes = self.take(input, usize::MAX);
                self.message.extend_from_slice(bytes);
                self.taken = self.record_left == 0;
                Ok(if self.taken {
                    Step::Alert
                } else {
                    Step::Nothing
                })
            }
        }
    }

    fn read_header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Error> {
        let count = input.len().min(HEADER_LEN - self.header_len);
        let (bytes, rest) = input.split_at(count);
        *input = rest;
        self.header[self.header_len..][..count].copy_from_slice(bytes);
        self.header_len += count;

        let header = Header::parse(&self.header[..self.header_len])?;
        let is_inside_message = !self.message.is_empty() || self.skip_left > 0;
        if is_inside_message && header.content != ContentType::Handshake {
            return Err(Error::Interleaved);
        }
        self.header_len = 0;
        self.content = header.content;
        self.record_left = header.len;
        Ok(Step::Nothing)
    }

    fn read_handshake<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Error> {
        if self.skip_left > 0 {
            self.skip_left -= self.take(input, self.skip_left).len();
            return Ok(Step::Nothing);
        }
        if self.message.is_empty()
            && let Some(len) = self.whole_message_len(input)
        {
            return Ok(Step::WholeMessage(self.take(input, len)));
        }
        if self.message.len() < HANDSHAKE_HEADER_LEN {
            let bytes = self.take(input, HANDSHAKE_HEADER_LEN - self.message.len());
            self.message.extend_from_slice(bytes);
            let Some(&[kind, ..]) = self.message.first_chunk::<HANDSHAKE_HEADER_LEN>() else {
                return Ok(Step::Nothing);
            };
            if !(self.keep)(kind) {
                self.skip_left = message_len(&self.message)? - HANDSHAKE_HEADER_LEN;
                self.message.clear();
                return Ok(Step::Skipped(kind));
            }
        }
        let len = message_len(&self.message)?;
        if len > self.limit {
            return Err(Error::OverLimit(self.limit));
        }
        let bytes = self.take(input, len - self.message.len());
        self.message.extend_from_slice(bytes);
        self.taken = self.message.len() == len;
        Ok(if self.taken {
            Step::Message
        } else {
            Step::Nothing
        })
    }

    /// The length of the next message, if the message is kept, and the current record has all of it.
    fn whole_message_len(&self, input: &[u8]) -> Option<usize> {
        let record = &input[..input.len().min(self.record_left)];
        let kind = *record.first()?;
        let len = message_len(record).ok()?;
        ((self.keep)(kind) && len <= self.limit && len <= record.len()).then_some(len)
    }

    /// Removes at most `most` bytes of the current record from the front of `input`.
    fn take<'a>(&mut self, input: &mut &'a [u8], most: usize) -> &'a [u8] {
        let count = input.len().min(most).min(self.record_left);
        let (bytes, rest) = input.split_at(count);
        *input = rest;
        self.record_left -= count;
        bytes
    }
}

/// The length of the handshake message that begins with `start`, with its header.
///
/// # Errors
///
/// [`Error::Incomplete`] if `start` is shorter than the header.
pub fn message_len(start: &[u8]) -> Result<usize, Error> {
    let &[_, high, middle, low] = start.first_chunk().ok_or(Error::Incomplete)?;
    let body = u32::from_be_bytes([0, high, middle, low]);
    Ok(HANDSHAKE_HEADER_LEN + body as usize)
}

#[cfg(test)]
mod tests;
