//! ServerHello, HelloRetryRequest, and NewSessionTicket.

use super::cursor::Cursor;
use super::{client::session_id, extensions, kind};
use crate::record::Error;

/// The `random` of every HelloRetryRequest: the SHA-256 of the text `HelloRetryRequest` (RFC 9846,
/// 4.1.3).
const HELLO_RETRY_REQUEST: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// A ServerHello or HelloRetryRequest, borrowed from the handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello<'a> {
    /// The negotiated version, if it is TLS 1.2 or earlier.
    pub legacy_version: u16,
    /// 32 bytes.
    pub random: &'a [u8],
    /// At most 32 bytes. In TLS 1.3, a copy of the client's session ID.
    pub session_id: &'a [u8],
    /// The negotiated cipher suite.
    pub cipher_suite: u16,
    /// The negotiated version, if it is TLS 1.3 or later.
    pub supported_versions: Option<u16>,
    /// The index of the resumed identity in the client's last hello; TLS 1.3.
    pub selected_identity: Option<u16>,
    /// True if a ticket follows; TLS 1.2 and earlier.
    pub session_ticket: bool,
    /// True if the master secret is extended (RFC 7627).
    pub extended_master_secret: bool,
}

impl<'a> ServerHello<'a> {
    /// Parses a whole handshake message, its four-byte header included.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] if `message` is only the beginning of a ServerHello.
    pub fn parse(message: &'a [u8]) -> Result<Self, Error> {
        let mut body = Cursor::message(message, kind::SERVER_HELLO)?;
        let mut hello = Self {
            legacy_version: body.u16()?,
            random: body.take(32)?,
            session_id: session_id(body.vec8()?)?,
            cipher_suite: body.u16()?,
            supported_versions: None,
            selected_identity: None,
            session_ticket: false,
            extended_master_secret: false,
        };
        if hello.legacy_version >> 8 != 3 {
            return Err(Error::Version(hello.legacy_version));
        }
        let _compression = body.u8()?;
        extensions::each(body, |kind, body| hello.extension(kind, body))?;
        Ok(hello)
    }

    fn extension(&mut self, kind: u16, mut body: Cursor<'a>) -> Result<(), Error> {
        match kind {
            extensions::SUPPORTED_VERSIONS => self.supported_versions = Some(body.u16()?),
            extensions::PRE_SHARED_KEY => self.selected_identity = Some(body.u16()?),
            extensions::SESSION_TICKET => self.session_ticket = true,
            extensions::EXTENDED_MASTER_SECRET => self.extended_master_secret = true,
            _ => return Ok(()),
        }
        body.end()
    }

    /// The version that was negotiated.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.supported_versions.unwrap_or(self.legacy_version)
    }

    /// Whether the client has to send another hello.
    #[must_use]
    pub fn is_hello_retry_request(&self) -> bool {
        self.random == HELLO_RETRY_REQUEST
    }
}

/// The NewSessionTicket of TLS 1.2 and earlier (RFC 5077, 3.3), borrowed from the handshake
/// message. The message of TLS 1.3 has another format, and is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSessionTicket<'a> {
    /// How long the server intends to accept the ticket, in seconds. 0 if the server does not say.
    pub lifetime_hint: u32,
    /// Empty if the server promised a ticket and has no ticket to give.
    pub ticket: &'a [u8],
}

impl<'a> NewSessionTicket<'a> {
    /// Parses a whole handshake message, its four-byte header included.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] if `message` is only the beginning of a NewSessionTicket.
    pub fn parse(message: &'a [u8]) -> Result<Self, Error> {
        let mut body = Cursor::message(message, kind::NEW_SESSION_TICKET)?;
        let parsed = Self {
            lifetime_hint: body.u32()?,
            ticket: body.vec16()?,
        };
        body.end()?;
        Ok(parsed)
    }
}

/// The NewSessionTicket of TLS 1.3 (RFC 9846, 4.6.1), borrowed from the decrypted handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls13NewSessionTicket<'a> {
    /// How long the server accepts the ticket, in seconds. More than seven days are not allowed.
    pub lifetime: u32,
    /// The identity of the PSK; never empty.
    pub ticket: &'a [u8],
    /// Most bytes of early data with this ticket. `None` if the server accepts no early data.
    pub max_early_data: Option<u32>,
}

impl<'a> Tls13NewSessionTicket<'a> {
    /// Parses a whole handshake message, its four-byte header included.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] if `message` is only the beginning of a NewSessionTicket.
    pub fn parse(message: &'a [u8]) -> Result<Self, Error> {
        let mut body = Cursor::message(message, kind::NEW_SESSION_TICKET)?;
        let lifetime = body.u32()?;
        let _age_add = body.u32()?;
        let _nonce = body.vec8()?;
        let ticket = body.vec16()?;
        if ticket.is_empty() {
            return Err(Error::OutOfRange("ticket"));
        }
        let mut max_early_data = None;
        let mut list = Cursor::new(body.vec16()?);
        while !list.is_empty() {
            let kind = list.u16()?;
            let mut extension = Cursor::new(list.vec16()?);
            if kind == extensions::EARLY_DATA {
                max_early_data = Some(extension.u32()?);
                extension.end()?;
            }
        }
        body.end()?;
        Ok(Self {
            lifetime,
            ticket,
            max_early_data,
        })
    }
}
