//! Reads numbers and length-prefixed vectors from the front of a message.

use crate::record::{Error, message_len};

/// The unread rest of a message, or of a vector inside it. Running out of bytes is [`Error::Length`]: the
/// message is whole, so a length inside it is wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The body of a whole handshake message. The message must be of type `kind`.
    pub(super) fn message(message: &'a [u8], kind: u8) -> Result<Self, Error> {
        let found = *message.first().ok_or(Error::Incomplete)?;
        if found != kind {
            return Err(Error::HandshakeType(found));
        }
        let len = message_len(message)?;
        if message.len() < len {
            return Err(Error::Incomplete);
        }
        let mut cursor = Self(message);
        cursor.take(crate::record::HANDSHAKE_HEADER_LEN)?;
        if message.len() > len {
            return Err(Error::Length);
        }
        Ok(cursor)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Returns an error if bytes are left over.
    pub(super) const fn end(self) -> Result<(), Error> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(Error::Length)
        }
    }

    /// Everything that is left.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Error::Length)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        let (&byte, rest) = self.0.split_first().ok_or(Error::Length)?;
        self.0 = rest;
        Ok(byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        let (&bytes, rest) = self.0.split_first_chunk().ok_or(Error::Length)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(bytes))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        let (&bytes, rest) = self.0.split_first_chunk().ok_or(Error::Length)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(bytes))
    }

    /// A vector with one byte of length.
    pub(super) fn vec8(&mut self) -> Result<&'a [u8], Error> {
        let len = self.u8()?;
        self.take(len.into())
    }

    /// A vector with two bytes of length.
    pub(super) fn vec16(&mut self) -> Result<&'a [u8], Error> {
        let len = self.u16()?;
        self.take(len.into())
    }
}
