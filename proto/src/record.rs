//! The TLS record layer as a bystander sees it: cuts a byte stream into records and puts handshake
//! messages back together. It decrypts nothing and keeps no bytes that were consumed.

use std::fmt;

/// Most bytes of plaintext in a record (RFC 9846, 5.1).
pub const MAX_PLAINTEXT: usize = 1 << 14;

/// Bytes of a record header.
pub const HEADER_LEN: usize = 5;

/// Why bytes are not TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// What is there is right so far; more has to come.
    Incomplete,
    /// The first byte is not a content type that may stand here.
    ContentType(u8),
    /// The record's version is not SSL 3.0 to TLS 1.3's 0x03xx.
    Version(u16),
    /// A plaintext record over 2^14 bytes, or a ciphertext over 2^14 + 2,048.
    TooLong(usize),
    /// A handshake fragment of no bytes (RFC 9846, 5.1).
    EmptyFragment,
    /// Another content type between the fragments of one handshake message.
    Interleaved,
    /// A handshake message longer than the limit, in bytes, that the caller set.
    OverLimit(usize),
    /// A length inside a message that does not fit what surrounds it.
    Length,
    /// A value inside a message that the protocol does not allow.
    Illegal(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => f.write_str("more bytes are needed"),
            Self::ContentType(byte) => write!(f, "not TLS: content type {byte:#04x}"),
            Self::Version(version) => write!(f, "not TLS: record version {version:#06x}"),
            Self::TooLong(len) => write!(f, "record of {len} bytes is over the limit"),
            Self::EmptyFragment => f.write_str("empty handshake fragment"),
            Self::Interleaved => f.write_str("a record interrupts a handshake message"),
            Self::OverLimit(limit) => write!(f, "handshake message over {limit} bytes"),
            Self::Length => f.write_str("a length does not fit"),
            Self::Illegal(what) => write!(f, "illegal {what}"),
        }
    }
}

impl std::error::Error for Error {}
