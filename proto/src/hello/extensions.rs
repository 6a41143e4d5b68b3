//! Splits the extensions of a hello, and refuses duplicates.

use super::cursor::Cursor;
use crate::record::Error;

pub(super) const SERVER_NAME: u16 = 0;
pub(super) const MAX_FRAGMENT_LENGTH: u16 = 1;
pub(super) const SUPPORTED_GROUPS: u16 = 10;
pub(super) const SIGNATURE_ALGORITHMS: u16 = 13;
pub(super) const ALPN: u16 = 16;
pub(super) const PADDING: u16 = 21;
pub(super) const EXTENDED_MASTER_SECRET: u16 = 23;
pub(super) const RECORD_SIZE_LIMIT: u16 = 28;
pub(super) const SESSION_TICKET: u16 = 35;
pub(super) const PRE_SHARED_KEY: u16 = 41;
pub(super) const EARLY_DATA: u16 = 42;
pub(super) const SUPPORTED_VERSIONS: u16 = 43;
pub(super) const COOKIE: u16 = 44;
pub(super) const PSK_KEY_EXCHANGE_MODES: u16 = 45;
pub(super) const TICKET_REQUEST: u16 = 58;
pub(super) const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// Calls `take` with the type and the body of each extension in the rest of a hello. In TLS 1.2 and earlier,
/// the whole block may be missing.
pub(super) fn each<'a>(
    mut hello: Cursor<'a>,
    mut take: impl FnMut(u16, Cursor<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    if hello.is_empty() {
        return Ok(());
    }
    let mut block = Cursor::new(hello.vec16()?);
    hello.end()?;
    let mut seen = SeenTypes::default();
    while !block.is_empty() {
        let kind = block.u16()?;
        let body = block.vec16()?;
        if !seen.insert(kind) {
            return Err(Error::Illegal("extension: it occurs twice"));
        }
        take(kind, Cursor::new(body))?;
    }
    Ok(())
}

/// The type and the body of each extension in the rest of a hello, which [`each`] has checked before.
pub(super) fn iter(hello: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let block = Cursor::new(hello).vec16().unwrap_or_default();
    let mut block = Cursor::new(block);
    std::iter::from_fn(move || Some((block.u16().ok()?, block.vec16().ok()?)))
}

/// More extensions than almost every hello has.
const FEW: usize = 32;

/// The types of extensions that a hello has had so far.
#[derive(Default)]
struct SeenTypes {
    /// The first types. To compare with them is faster than to clear a bit for each possible type.
    few: [u16; FEW],
    count: usize,
    /// One bit for each possible type, if there are more types. A hello can have thousands of extensions, too
    /// many to compare all pairs.
    bits: Vec<u64>,
}

impl SeenTypes {
    /// Adds a type. Returns false if it was there.
    fn insert(&mut self, kind: u16) -> bool {
        if self.count < FEW {
            let is_new = !self.few[..self.count].contains(&kind);
            self.few[self.count] = kind;
            self.count += 1;
            return is_new;
        }
        if self.bits.is_empty() {
            self.bits = vec![0; 1 << 10];
            for kind in self.few {
                self.set_bit(kind);
            }
        }
        self.set_bit(kind)
    }

    fn set_bit(&mut self, kind: u16) -> bool {
        let (word, bit) = (&mut self.bits[usize::from(kind >> 6)], 1u64 << (kind & 63));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_found_again_among_few_types_and_among_all() {
        for repeated in [0, 1, FEW as u16 - 1, FEW as u16, 1000, u16::MAX] {
            let mut seen = SeenTypes::default();
            for kind in 0..=u16::MAX {
                assert!(seen.insert(kind), "{kind} is new");
                if kind >= repeated {
                    break;
                }
            }
            assert!(!seen.insert(repeated), "{repeated} occurs twice");
        }
        let mut seen = SeenTypes::default();
        assert!((0..=u16::MAX).all(|kind| seen.insert(kind)));
        assert!((0..=u16::MAX).all(|kind| !seen.insert(kind)));
    }
}
