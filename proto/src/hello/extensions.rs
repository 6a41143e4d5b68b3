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
    // One bit for each possible type: a hello can have thousands of extensions, so comparing all pairs is too
    // slow.
    let mut seen = [0u64; 1 << 10];
    while !block.is_empty() {
        let kind = block.u16()?;
        let body = block.vec16()?;
        let (word, bit) = (usize::from(kind >> 6), 1u64 << (kind & 63));
        if seen[word] & bit != 0 {
            return Err(Error::Illegal("extension: it occurs twice"));
        }
        seen[word] |= bit;
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
