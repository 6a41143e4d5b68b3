//! The envelope of a session: its binding and its times, around the TLS library's own value. The same
//! bytes go into a sealed ticket and into the session table.

use std::time::Duration;

use strum::FromRepr;

use super::ForgetRules;
use crate::Time;
use crate::verdict::Reason;

/// Version of this layout.
const FORMAT: u8 = 1;

/// Bytes before the server name.
const FIXED_LEN: usize = 1 + 2 + 8 + 1 + 2 + 2 + 1 + 4 + 8 + 8 + 1;

/// The client authentication of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRepr)]
#[repr(u8)]
pub enum ClientAuth {
    /// No certificate is asked for.
    #[default]
    None = 0,
    /// A certificate is asked for; a client without one is accepted.
    Optional = 1,
    /// A certificate is asked for; a handshake without one fails.
    Required = 2,
}

/// The binding of a session. It resumes only if a full handshake would have the same outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// The site, as a number that is the same on every server of the farm.
    pub site: u64,
    /// The server name (SNI) in lower case; empty if the client sent none.
    pub server_name: &'a str,
    /// The client authentication of the site at that time.
    pub client_auth: ClientAuth,
    /// Negotiated protocol version, as on the wire.
    pub version: u16,
    /// Negotiated cipher suite, as on the wire.
    pub suite: u16,
    /// Whether the master secret is extended (RFC 7627); always true in TLS 1.3.
    pub extended_master_secret: bool,
}

/// A session as it is sealed and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The TLS library's format of `value`.
    pub value_format: u16,
    /// The binding.
    pub binding: Binding<'a>,
    /// The number of the server of the full handshake. A resumption does not change this number.
    pub server: u32,
    /// The time of the full handshake. A resumption does not change this time.
    pub established: Time,
    /// When the session ends, by the settings of the server that made it.
    pub expires: Time,
    /// The TLS library's own encoding of the session.
    pub value: &'a [u8],
}

/// The requirements of this handshake for a session.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The format of this server's TLS library.
    pub value_format: u16,
    /// The site that the hello leads to.
    pub site: u64,
    /// The server name of the hello in lower case; empty if there is none.
    pub server_name: &'a str,
    /// The client authentication of the site now.
    pub client_auth: ClientAuth,
    /// The protocol version that is being negotiated.
    pub version: u16,
    /// Longest life on this server. The server that made the session can have allowed a longer
    /// life.
    pub lifetime: Duration,
    /// Whether the hello offers an extended master secret.
    pub extended_master_secret: bool,
    /// The rules for sessions that were forgotten on request.
    pub forgotten: &'a ForgetRules,
}

impl<'a> Envelope<'a> {
    /// Bytes that [`Self::encode`] appends.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        FIXED_LEN + self.binding.server_name.len() + 2 + self.value.len()
    }

    /// Appends the envelope. A server name must have at most 255 bytes, as in DNS. A value must
    /// have less than 64 KiB, like a ticket. Longer names or values cannot be decoded correctly.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Binding {
            site,
            server_name,
            client_auth,
            version,
            suite,
            extended_master_secret,
        } = self.binding;
        out.push(FORMAT);
        out.extend_from_slice(&self.value_format.to_be_bytes());
        out.extend_from_slice(&site.to_be_bytes());
        out.push(client_auth as u8);
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&suite.to_be_bytes());
        out.push(u8::from(extended_master_secret));
        out.extend_from_slice(&self.server.to_be_bytes());
        out.extend_from_slice(&self.established.unix_millis().to_be_bytes());
        out.extend_from_slice(&self.expires.unix_millis().to_be_bytes());
        out.push(server_name.len() as u8);
        out.extend_from_slice(server_name.as_bytes());
        out.extend_from_slice(&(self.value.len() as u16).to_be_bytes());
        out.extend_from_slice(self.value);
    }

    /// Reads an envelope; padding may follow it.
    ///
    /// # Errors
    /// [`Reason::OldFormat`] if the bytes are no envelope of this version.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Reason> {
        Self::read(bytes).ok_or(Reason::OldFormat)
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        if take::<1>(&mut rest)? != [FORMAT] {
            return None;
        }
        let value_format = u16::from_be_bytes(take(&mut rest)?);
        let site = u64::from_be_bytes(take(&mut rest)?);
        let [client_auth] = take(&mut rest)?;
        let version = u16::from_be_bytes(take(&mut rest)?);
        let suite = u16::from_be_bytes(take(&mut rest)?);
        let [extended_master_secret] = take(&mut rest)?;
        let server = u32::from_be_bytes(take(&mut rest)?);
        let established = Time::from_unix_millis(u64::from_be_bytes(take(&mut rest)?));
        let expires = Time::from_unix_millis(u64::from_be_bytes(take(&mut rest)?));
        let [name_len] = take(&mut rest)?;
        let (server_name, mut rest) = rest.split_at_checked(name_len.into())?;
        let value_len = u16::from_be_bytes(take(&mut rest)?);
        let (value, _padding) = rest.split_at_checked(value_len.into())?;
        Some(Self {
            value_format,
            binding: Binding {
                site,
                server_name: std::str::from_utf8(server_name).ok()?,
                client_auth: ClientAuth::from_repr(client_auth)?,
                version,
                suite,
                extended_master_secret: extended_master_secret != 0,
            },
            server,
            established,
            expires,
            value,
        })
    }

    /// Compares the session with a handshake, before the handshake negotiates a cipher suite.
    ///
    /// # Errors
    /// The reason of the first field that does not match.
    pub fn admits(&self, expected: &Expected<'_>, now: Time) -> Result<(), Reason> {
        let binding = &self.binding;
        let end = self.expires.min(self.established.plus(expected.lifetime));
        if self.value_format != expected.value_format {
            Err(Reason::OldFormat)
        } else if now >= end {
            Err(Reason::Expired)
        } else if expected.forgotten.reaches(self) {
            Err(Reason::Revoked)
        } else if binding.site != expected.site || binding.server_name != expected.server_name {
            Err(Reason::NameMismatch)
        } else if binding.client_auth != expected.client_auth {
            Err(Reason::ClientAuth)
        } else if binding.version != expected.version {
            Err(Reason::VersionMismatch)
        } else if binding.extended_master_secret != expected.extended_master_secret {
            Err(Reason::EmsMismatch)
        } else {
            Ok(())
        }
    }
}

pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}
