//! ClientHello.

use super::cursor::Cursor;
use super::offered::{OfferedPsks, Protocols, Suites, Versions, offers_psk_dhe_ke};
use super::{SSL_3_0, TLS_1_2, TLS_1_3, extensions, kind};
use crate::record::Error;

/// Most bytes of a session ID, in every version.
const MAX_SESSION_ID: usize = 32;

/// Most bytes of a host name (RFC 1035, 2.3.4).
const MAX_HOST_NAME: usize = 255;

/// Bytes of an SSLv2-form hello without its three vectors.
const SSL2_FIXED_LEN: usize = 11;

/// The cipher suite value that marks a retry with a lower version (RFC 7507).
const TLS_FALLBACK_SCSV: u16 = 0x5600;

/// A ClientHello, borrowed from the bytes that it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello<'a> {
    /// The field `client_version`. TLS 1.3 clients offer their versions in `supported_versions` instead.
    pub legacy_version: u16,
    /// 32 bytes; in the SSLv2 form, a challenge of 16 to 32 bytes.
    pub random: &'a [u8],
    /// At most 32 bytes. Mostly random if the client offers TLS 1.3.
    pub session_id: &'a [u8],
    /// In the client's order.
    pub cipher_suites: Suites<'a>,
    /// SNI as sent: ASCII letters, digits and `-_.:`, in any case, at most 255 bytes.
    pub server_name: Option<&'a str>,
    /// In the client's order.
    pub alpn: Protocols<'a>,
    /// In the client's order.
    pub supported_versions: Option<Versions<'a>>,
    /// The ticket of TLS 1.2 and earlier. Empty if the client asks for a ticket (RFC 5077, 3.2).
    pub session_ticket: Option<&'a [u8]>,
    /// True if TLS 1.3 sessions may be resumed with (EC)DHE (`psk_key_exchange_modes`).
    pub psk_dhe_ke: bool,
    /// The TLS 1.3 sessions offered.
    pub pre_shared_key: Option<OfferedPsks<'a>>,
    /// True if early data follows.
    pub early_data: bool,
    /// True if the client offers an extended master secret (RFC 7627).
    pub extended_master_secret: bool,
    /// True if the hello has `encrypted_client_hello`. Browsers always send it, mostly as GREASE.
    pub encrypted_client_hello: bool,
    /// The numbers of tickets that the client wants after a full handshake and after a resumption (RFC 9149).
    pub ticket_request: Option<(u8, u8)>,
    /// The code of a record size (RFC 6066, section 4); see [`Self::max_record_size`].
    pub max_fragment_length: Option<u8>,
    /// The largest record that the client accepts (RFC 8449); see [`Self::max_record_size`].
    pub record_size_limit: Option<u16>,
    /// The extensions as they came, with two bytes of length. Empty if the hello has none.
    pub(super) extensions: &'a [u8],
}

impl<'a> ClientHello<'a> {
    /// Parses a whole handshake message, its four-byte header included.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] if `message` is only the beginning of a ClientHello.
    pub fn parse(message: &'a [u8]) -> Result<Self, Error> {
        let mut body = Cursor::message(message, kind::CLIENT_HELLO)?;
        let legacy_version = body.u16()?;
        // There is no upper bound: a version above ours is answered with ours (RFC 5246, E.1).
        if legacy_version < SSL_3_0 {
            return Err(Error::ClientVersion(legacy_version));
        }
        let random = body.take(32)?;
        let session_id = session_id(body.vec8()?)?;
        let cipher_suites = Suites::parse(body.vec16()?, 2)?;
        if body.vec8()?.is_empty() {
            return Err(Error::OutOfRange("compression methods: there is none"));
        }
        let mut hello = Self::bare(legacy_version, random, session_id, cipher_suites);
        hello.extensions = body.rest();
        extensions::each(body, |kind, body| hello.extension(kind, body))?;
        Ok(hello)
    }

    /// Parses a hello in the SSLv2 form, its two-byte header included.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] if `record` is only the beginning of such a hello.
    pub fn parse_ssl2(record: &'a [u8]) -> Result<Self, Error> {
        let len = ssl2_len(record)?;
        let mut body = Cursor::new(record.get(..len).ok_or(Error::Incomplete)?);
        if record.len() > len {
            return Err(Error::Length);
        }
        body.take(3)?;
        let legacy_version = body.u16()?;
        let legacy_version = version(legacy_version).ok_or(Error::ClientVersion(legacy_version))?;
        let lengths = [body.u16()?, body.u16()?, body.u16()?].map(usize::from);
        let [suites_len, session_id_len, challenge_len] = lengths;
        let cipher_suites = Suites::parse(body.take(suites_len)?, 3)?;
        let session_id = session_id(body.take(session_id_len)?)?;
        let random = body.take(challenge_len)?;
        body.end()?;
        if !(16..=32).contains(&challenge_len) {
            return Err(Error::Length);
        }
        Ok(Self::bare(
            legacy_version,
            random,
            session_id,
            cipher_suites,
        ))
    }

    /// True if the client says that it retries with a lower version than it supports (RFC 7507).
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.cipher_suites.contains(TLS_FALLBACK_SCSV)
    }

    /// Whether TLS 1.3 may be negotiated.
    #[must_use]
    pub fn offers_tls13(&self) -> bool {
        self.supported_versions
            .is_some_and(|versions| versions.contains(TLS_1_3))
    }

    /// The version that a server of TLS 1.2 and TLS 1.3 negotiates with this client.
    #[must_use]
    pub fn negotiated_version(&self) -> u16 {
        if self.offers_tls13() {
            TLS_1_3
        } else {
            TLS_1_2
        }
    }

    /// The highest offered version from SSL 3.0 (0x0300) to TLS 1.3 (0x0304). 0 if the client offers no such
    /// version.
    #[must_use]
    pub fn max_version(&self) -> u16 {
        match self.supported_versions {
            Some(versions) => versions
                .iter()
                .filter(|version| (SSL_3_0..=TLS_1_3).contains(version))
                .max()
                .unwrap_or_default(),
            // Without the extension, TLS 1.2 is the highest version (RFC 9846, 4.2.1).
            None => self.legacy_version.min(TLS_1_2),
        }
    }

    /// A hello without extensions.
    fn bare(
        legacy_version: u16,
        random: &'a [u8],
        session_id: &'a [u8],
        cipher_suites: Suites<'a>,
    ) -> Self {
        Self {
            legacy_version,
            random,
            session_id,
            cipher_suites,
            server_name: None,
            alpn: Protocols::default(),
            supported_versions: None,
            session_ticket: None,
            psk_dhe_ke: false,
            pre_shared_key: None,
            early_data: false,
            extended_master_secret: false,
            encrypted_client_hello: false,
            ticket_request: None,
            max_fragment_length: None,
            record_size_limit: None,
            extensions: &[],
        }
    }

    fn extension(&mut self, kind: u16, mut body: Cursor<'a>) -> Result<(), Error> {
        if self.pre_shared_key.is_some() {
            return Err(Error::Illegal(
                "pre_shared_key: it is not the last extension",
            ));
        }
        match kind {
            extensions::SERVER_NAME => self.server_name = server_name(body)?,
            extensions::ALPN => self.alpn = Protocols::parse(body)?,
            extensions::SUPPORTED_VERSIONS => {
                self.supported_versions = Some(Versions::parse(body)?);
            }
            extensions::SESSION_TICKET => self.session_ticket = Some(body.rest()),
            extensions::PSK_KEY_EXCHANGE_MODES => self.psk_dhe_ke = offers_psk_dhe_ke(body)?,
            extensions::PRE_SHARED_KEY => self.pre_shared_key = Some(OfferedPsks::parse(body)?),
            extensions::EARLY_DATA => {
                body.end()?;
                self.early_data = true;
            }
            extensions::EXTENDED_MASTER_SECRET => {
                body.end()?;
                self.extended_master_secret = true;
            }
            extensions::TICKET_REQUEST => {
                self.ticket_request = Some((body.u8()?, body.u8()?));
                body.end()?;
            }
            extensions::MAX_FRAGMENT_LENGTH => {
                self.max_fragment_length = Some(body.u8()?);
                body.end()?;
            }
            extensions::RECORD_SIZE_LIMIT => {
                self.record_size_limit = Some(body.u16()?);
                body.end()?;
            }
            extensions::ENCRYPTED_CLIENT_HELLO => self.encrypted_client_hello = true,
            _ => {}
        }
        Ok(())
    }
}

/// Bytes of the SSLv2-form hello that begins with `start`, with its two-byte header.
///
/// # Errors
///
/// [`Error::Incomplete`] if fewer than the five bytes that identify such a hello are there;
/// [`Error::ContentType`] and [`Error::Version`] if these bytes are not those of such a hello;
/// [`Error::Length`] if the length in its header is too small.
pub(super) fn ssl2_len(start: &[u8]) -> Result<usize, Error> {
    let first = *start.first().ok_or(Error::Incomplete)?;
    // Without this bit the header has three bytes and belongs to a padded (encrypted) record.
    if first & 0x80 == 0 {
        return Err(Error::ContentType(first));
    }
    if *start.get(2).ok_or(Error::Incomplete)? != kind::CLIENT_HELLO {
        return Err(Error::ContentType(first));
    }
    let &[high, low, _, major, minor] = start.first_chunk().ok_or(Error::Incomplete)?;
    let found = u16::from_be_bytes([major, minor]);
    version(found).ok_or(Error::Version(found))?;
    match 2 + usize::from(u16::from_be_bytes([high & 0x7f, low])) {
        ..SSL2_FIXED_LEN => Err(Error::Length),
        len => Ok(len),
    }
}

fn version(version: u16) -> Option<u16> {
    // SSL 2.0 itself (0x0002) and DTLS (0xfexx) are not supported.
    (version >> 8 == 3).then_some(version)
}

pub(super) fn session_id(id: &[u8]) -> Result<&[u8], Error> {
    if id.len() > MAX_SESSION_ID {
        return Err(Error::Length);
    }
    Ok(id)
}

/// The host name in `server_name` (RFC 6066, 3).
fn server_name(mut body: Cursor<'_>) -> Result<Option<&str>, Error> {
    let mut list = Cursor::new(body.vec16()?);
    body.end()?;
    if list.is_empty() {
        return Err(Error::Length);
    }
    let mut host = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        // Type 0, host_name, is the only defined type. All implementations also read names of other types as
        // vectors.
        let name = list.vec16()?;
        if kind == 0 && host.replace(host_name(name)?).is_some() {
            return Err(Error::Illegal("server name: there are two"));
        }
    }
    Ok(host)
}

fn host_name(name: &[u8]) -> Result<&str, Error> {
    const ILLEGAL: Error = Error::Illegal("server name");
    // Some clients send addresses, which have colons, although RFC 6066 forbids this.
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    if name.is_empty() {
        return Err(Error::OutOfRange("server name: it is empty"));
    }
    if name.len() > MAX_HOST_NAME || !name.iter().all(allowed) {
        return Err(ILLEGAL);
    }
    std::str::from_utf8(name).map_err(|_| ILLEGAL)
}
