//! Session routing identifiers (SRIDs) and sealed tickets.
//!
//! A balancer can open the label, and a server can open label and ticket. A ticket's envelope is compared with
//! the handshake before the TLS library sees the ticket. Each field that can differ has its own verdict.

mod envelope;
mod forget_rules;

pub use envelope::{Binding, ClientAuth, Envelope, Expected};
pub use forget_rules::{ForgetRules, ForgetScope, MAX_FORGET_RULES};

use strum::FromRepr;

use crate::keys::{Purpose, RouteKeys, Schedule};
use crate::sealed::OneTimeKey;
use crate::verdict::Reason;

/// Bytes of a session routing identifier (SRID).
pub const SRID_LEN: usize = 32;

/// Bytes of the authentication tag at the end of a sealed ticket.
const TAG_LEN: usize = 16;

/// Sealed tickets are padded to a multiple of this many bytes.
const PAD: usize = 64;

/// The version of the identifier's format.
const VERSION: u8 = 1;

/// The kind of session that an identifier belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr)]
#[repr(u8)]
pub enum Class {
    /// A session in the store, under the identifier's nonce.
    Stored = 1,
    /// A sealed ticket, which begins with the identifier.
    Sealed = 2,
}

/// The decrypted label of an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Stored session or sealed ticket.
    pub class: Class,
    /// The number of the issuing server, 24 bits.
    pub server: u32,
    /// The key generation, 4 bits.
    pub generation: u8,
    /// The 12 low bits of the epoch.
    pub epoch_low: u16,
    /// Changes when the server's local state is lost.
    pub incarnation: u16,
}

impl Label {
    fn to_bytes(self) -> [u8; 8] {
        let word = u64::from(VERSION) << 60
            | (self.class as u64) << 56
            | u64::from(self.server & 0x00ff_ffff) << 32
            | u64::from(self.generation & 0xf) << 28
            | u64::from(self.epoch_low & 0xfff) << 16
            | u64::from(self.incarnation);
        word.to_be_bytes()
    }

    fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        let word = u64::from_be_bytes(bytes);
        if word >> 60 != u64::from(VERSION) {
            return None;
        }
        Some(Self {
            class: Class::from_repr((word >> 56 & 0xf) as u8)?,
            server: (word >> 32 & 0x00ff_ffff) as u32,
            generation: (word >> 28 & 0xf) as u8,
            epoch_low: (word >> 16 & 0xfff) as u16,
            incarnation: word as u16,
        })
    }
}

/// The first 16 bytes of an identifier: the nonce, which is also the key of a stored session.
pub type Id = [u8; 16];

/// The server that issues tickets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// This server's number, 24 bits.
    pub server: u32,
    /// This server's incarnation.
    pub incarnation: u16,
}

/// Reads the label of a ticket or PSK identity. `None` if no live route key opens it.
#[must_use]
pub fn read_label(routes: &RouteKeys, token: &[u8]) -> Option<(Id, Label)> {
    let srid: &[u8; SRID_LEN] = token.first_chunk()?;
    let (id, rest) = srid.split_first_chunk::<16>()?;
    let (masked, tag) = rest.split_first_chunk::<8>()?;
    let label = Label::from_bytes(routes.opens(id, masked, tag)?)?;
    // No bytes may follow the identifier of a stored session.
    if label.class == Class::Stored && token.len() != SRID_LEN {
        return None;
    }
    Some((*id, label))
}

/// Makes an identifier. `nonce` is 16 random bytes that are never used twice.
///
/// `None` if the clock and the key do not agree: then nothing can be sealed.
#[must_use]
pub fn issue(schedule: &Schedule, issuer: Issuer, class: Class, nonce: Id) -> Option<[u8; 32]> {
    let (generation, epoch) = schedule.sealing()?;
    let label = Label {
        class,
        server: issuer.server,
        generation,
        epoch_low: (epoch & 0xfff) as u16,
        incarnation: issuer.incarnation,
    };
    let (masked, tag) = schedule.mask(&nonce, label.to_bytes())?;
    let mut srid = [0; SRID_LEN];
    srid[..16].copy_from_slice(&nonce);
    srid[16..24].copy_from_slice(&masked);
    srid[24..].copy_from_slice(&tag);
    Some(srid)
}

/// Seals an envelope into a ticket: identifier, ciphertext and tag, a multiple of 64 bytes.
///
/// `nonce` is 16 random bytes that are never used twice. `None` if nothing can be sealed.
#[must_use]
pub fn seal(
    schedule: &Schedule,
    issuer: Issuer,
    nonce: Id,
    envelope: &Envelope<'_>,
) -> Option<Vec<u8>> {
    let (generation, epoch) = schedule.sealing()?;
    let srid = issue(schedule, issuer, Class::Sealed, nonce)?;
    let key = ticket_key(schedule, generation, epoch, &nonce)?;
    let mut ticket = Vec::with_capacity(SRID_LEN + envelope.encoded_len() + PAD + TAG_LEN);
    ticket.extend_from_slice(&srid);
    envelope.encode(&mut ticket);
    let total = (ticket.len() + TAG_LEN).next_multiple_of(PAD);
    ticket.resize(total - TAG_LEN, 0);
    key.seal(SRID_LEN, ticket)
}

/// Opens a sealed ticket with the label that [`read_label`] returned. The result is for [`Envelope::decode`].
///
/// # Errors
///
/// - [`Reason::BadTicket`]: the ticket does not authenticate.
/// - [`Reason::Revoked`]: the generation has ended.
/// - [`Reason::Expired`]: the epoch is older than any live session.
/// - [`Reason::Unknown`]: the ticket key is missing for any other reason.
pub fn open(schedule: &Schedule, id: &Id, label: Label, ticket: &[u8]) -> Result<Vec<u8>, Reason> {
    let epoch = schedule.nearest_epoch(label.epoch_low);
    let key = ticket_key(schedule, label.generation, epoch, id)
        .ok_or_else(|| schedule.why_no_key(label.generation, epoch))?;
    let (srid, sealed) = ticket.split_at_checked(SRID_LEN).ok_or(Reason::BadTicket)?;
    key.open(srid, sealed)
}

/// True if the key generation of a label has ended.
///
/// Stored sessions with such a label are refused too, although no ticket key opens them. A thief of the key
/// could forge the labels of stored sessions.
#[must_use]
pub fn is_revoked(schedule: &Schedule, label: Label) -> bool {
    schedule.is_revoked(label.generation, schedule.nearest_epoch(label.epoch_low))
}

/// The key of one ticket.
fn ticket_key(schedule: &Schedule, generation: u8, epoch: u64, nonce: &Id) -> Option<OneTimeKey> {
    OneTimeKey::derive(
        schedule,
        Purpose::Ticket,
        generation,
        epoch,
        &[b"tkt", nonce],
    )
}

#[cfg(test)]
mod tests;
