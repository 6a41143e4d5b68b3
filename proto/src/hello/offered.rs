//! The lists in a ClientHello. Each list is checked once, when the hello is parsed, and then read in place.

use super::cursor::Cursor;
use crate::record::Error;

/// Least bytes of a binder: the shortest hash of TLS 1.3 (RFC 9846, 4.2.11).
const MIN_BINDER: usize = 32;

/// `cipher_suites`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suites<'a> {
    bytes: &'a [u8],
    /// Bytes of each suite: 2, or 3 in the SSLv2 form.
    width: usize,
}

impl<'a> Suites<'a> {
    pub(super) const fn parse(bytes: &'a [u8], width: usize) -> Result<Self, Error> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(width) {
            return Err(Error::Length);
        }
        Ok(Self { bytes, width })
    }

    /// The suites in the client's order, without the ciphers that only SSL 2.0 knows.
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.bytes
            .chunks_exact(self.width)
            .filter_map(|suite| match *suite {
                [high, low] | [0, high, low] => Some(u16::from_be_bytes([high, low])),
                _ => None,
            })
    }

    /// True if the client offers this suite.
    #[must_use]
    pub fn contains(&self, suite: u16) -> bool {
        self.iter().any(|offered| offered == suite)
    }
}

/// `supported_versions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions<'a>(&'a [u8]);

impl<'a> Versions<'a> {
    pub(super) fn parse(mut body: Cursor<'a>) -> Result<Self, Error> {
        let list = body.vec8()?;
        body.end()?;
        if list.is_empty() || !list.len().is_multiple_of(2) {
            return Err(Error::Length);
        }
        Ok(Self(list))
    }

    /// The versions in the client's order, with GREASE values (RFC 8701).
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<'a> {
        let pairs = self.0.chunks_exact(2);
        pairs.map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
    }

    /// True if the client offers this version.
    #[must_use]
    pub fn contains(&self, version: u16) -> bool {
        self.iter().any(|offered| offered == version)
    }
}

/// `application_layer_protocol_negotiation` (RFC 7301); empty if the client does not send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocols<'a>(&'a [u8]);

impl<'a> Protocols<'a> {
    pub(super) fn parse(mut body: Cursor<'a>) -> Result<Self, Error> {
        let list = body.vec16()?;
        body.end()?;
        let mut names = Cursor::new(list);
        if names.is_empty() {
            return Err(Error::Length);
        }
        while !names.is_empty() {
            if names.vec8()?.is_empty() {
                return Err(Error::OutOfRange("protocol name: it is empty"));
            }
        }
        Ok(Self(list))
    }

    /// In the client's order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        let mut names = Cursor::new(self.0);
        std::iter::from_fn(move || names.vec8().ok())
    }
}

/// True if `psk_key_exchange_modes` (RFC 9846, 4.2.9) has resumption with (EC)DHE.
pub(super) fn offers_psk_dhe_ke(mut body: Cursor<'_>) -> Result<bool, Error> {
    let modes = body.vec8()?;
    body.end()?;
    if modes.is_empty() {
        return Err(Error::Length);
    }
    Ok(modes.contains(&1))
}

/// `pre_shared_key`: at least one identity, and as many binders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferedPsks<'a> {
    identities: &'a [u8],
    count: usize,
}

/// One session that a TLS 1.3 client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The ticket as the server gave it, or the label of a key shared beforehand.
    pub identity: &'a [u8],
    /// The ticket's age in milliseconds, plus `ticket_age_add`, which came with the ticket, modulo 2^32.
    pub obfuscated_ticket_age: u32,
}

impl<'a> OfferedPsks<'a> {
    pub(super) fn parse(mut body: Cursor<'a>) -> Result<Self, Error> {
        let identities = body.vec16()?;
        let mut binders = Cursor::new(body.vec16()?);
        body.end()?;

        let mut left = Cursor::new(identities);
        let mut count = 0;
        while !left.is_empty() {
            if next_identity(&mut left)?.identity.is_empty() {
                return Err(Error::OutOfRange("PSK identity: it is empty"));
            }
            if binders.vec8()?.len() < MIN_BINDER {
                return Err(Error::OutOfRange("PSK binder: it is too short"));
            }
            count += 1;
        }
        binders.end()?;
        if count == 0 {
            return Err(Error::Length);
        }
        Ok(Self { identities, count })
    }

    /// In the client's order; `selected_identity` is an index in this order.
    pub fn identities(&self) -> impl Iterator<Item = Identity<'a>> + use<'a> {
        let mut left = Cursor::new(self.identities);
        std::iter::from_fn(move || next_identity(&mut left).ok())
    }

    /// How many identities there are, at least one.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }
}

fn next_identity<'a>(left: &mut Cursor<'a>) -> Result<Identity<'a>, Error> {
    Ok(Identity {
        identity: left.vec16()?,
        obfuscated_ticket_age: left.u32()?,
    })
}
