//! A session that a handshake gives, and the full handshake that it inherits from.

use super::store_key::StoreKey;
use crate::Time;

/// A session that has to be in the store before the flight leaves that announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// The key in the store.
    pub key: StoreKey,
    /// An encoded [`Envelope`](crate::ticket::Envelope).
    pub envelope: Vec<u8>,
    /// When its full handshake was.
    pub established: Time,
    /// When it ends.
    pub expires: Time,
}

/// The facts that a session inherits from its full handshake.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) established: Time,
    /// The end of every session that goes back to this handshake.
    pub(super) expires: Time,
    pub(super) server: u32,
    pub(super) suite: u16,
}
