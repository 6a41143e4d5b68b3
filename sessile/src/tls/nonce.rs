//! Shortens the nonces of TLS 1.3 tickets from 32 bytes to 8 (RFC 9846, 4.6.1).
//!
//! wolfSSL 5.5.4 ends a connection if a nonce is longer than 8 bytes. rustls has no setting for the
//! length. rustls derives the PSK of a session from the nonce, and sends the nonce in the ticket. The
//! cipher suites of this module cut the nonce in the derivation and in the ticket. The session stores the
//! PSK, so servers with and without these suites resume each other's sessions.

use std::borrow::Cow;
use std::mem;
use std::sync::LazyLock;

use rustls::crypto::CryptoProvider;
use rustls::crypto::cipher::{
    AeadKey, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundOpaqueMessage,
    OutboundPlainMessage, Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{
    CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, SupportedCipherSuite,
    Tls13CipherSuite,
};
use sessile_proto::hello::kind::NEW_SESSION_TICKET;
use sessile_proto::record::HANDSHAKE_HEADER_LEN;

/// Bytes of a nonce that rustls makes.
const RUSTLS_NONCE_LEN: usize = 32;

/// Bytes of a nonce that clients receive.
const SHORT_NONCE_LEN: usize = 8;

/// The offset of the nonce's length byte in a NewSessionTicket message, header included.
///
/// `ticket_lifetime` and `ticket_age_add` come first, four bytes each.
const NONCE_LEN_OFFSET: usize = HANDSHAKE_HEADER_LEN + 4 + 4;

/// The offset of the first removed byte.
const CUT_FROM: usize = NONCE_LEN_OFFSET + 1 + SHORT_NONCE_LEN;

/// The offset after the last removed byte.
const CUT_TO: usize = NONCE_LEN_OFFSET + 1 + RUSTLS_NONCE_LEN;

/// Replaces the TLS 1.3 suites of a server's provider by suites with short nonces.
///
/// A client must not use these suites: it would derive wrong keys from long nonces. The suites also change
/// exported keying material under the label `resumption`.
pub(super) fn with_short_nonces(mut provider: CryptoProvider) -> CryptoProvider {
    for suite in &mut provider.cipher_suites {
        let short = SHORT_NONCE_SUITES
            .iter()
            .find(|short| short.suite() == suite.suite());
        *suite = short.copied().unwrap_or(*suite);
    }
    provider
}

/// The suites with short nonces. rustls needs `'static` suites, so they are made once and leaked.
static SHORT_NONCE_SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
    rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES
        .iter()
        .filter_map(SupportedCipherSuite::tls13)
        .map(short_nonce_suite)
        .collect()
});

fn short_nonce_suite(suite: &'static Tls13CipherSuite) -> SupportedCipherSuite {
    let CipherSuiteCommon {
        suite: name,
        hash_provider,
        confidentiality_limit,
    } = suite.common;
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: name,
            hash_provider,
            confidentiality_limit,
        },
        hkdf_provider: Box::leak(Box::new(ShortNonceHkdf(suite.hkdf_provider))),
        aead_alg: Box::leak(Box::new(ShortNonceAead(suite.aead_alg))),
        // QUIC does not use [`ShortNonceEncrypter`], so tickets over QUIC would keep long nonces.
        quic: None,
    })))
}

/// Derives PSKs from short nonces.
struct ShortNonceHkdf(&'static dyn Hkdf);

impl Hkdf for ShortNonceHkdf {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.0.extract_from_zero_ikm(salt)
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        self.0.extract_from_secret(salt, secret)
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(ShortNonceExpander(self.0.expander_for_okm(okm)))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        self.0.hmac_sign(key, message)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct ShortNonceExpander(Box<dyn HkdfExpander>);

impl HkdfExpander for ShortNonceExpander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        self.0.expand_slice(info, output)
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        const CONTEXT_LEN: [u8; 1] = [SHORT_NONCE_LEN as u8];
        // HKDF-Expand-Label(resumption_master_secret, "resumption", ticket_nonce, Hash.length)
        if let [len, label_len, prefix, label @ b"resumption", _, nonce] = info
            && nonce.len() == RUSTLS_NONCE_LEN
        {
            let nonce = &nonce[..SHORT_NONCE_LEN];
            return self
                .0
                .expand_block(&[len, label_len, prefix, *label, &CONTEXT_LEN, nonce]);
        }
        self.0.expand_block(info)
    }

    fn hash_len(&self) -> usize {
        self.0.hash_len()
    }
}

/// Cuts the nonce in each NewSessionTicket before the message is encrypted.
struct ShortNonceAead(&'static dyn Tls13AeadAlgorithm);

impl Tls13AeadAlgorithm for ShortNonceAead {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(ShortNonceEncrypter {
            inner: self.0.encrypter(key, iv),
            messages: Messages::Unknown,
        })
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.0.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct ShortNonceEncrypter {
    inner: Box<dyn MessageEncrypter>,
    messages: Messages,
}

/// The kind of handshake messages that one traffic key encrypts.
enum Messages {
    /// No message was sent yet.
    Unknown,
    /// Either the server's flight up to Finished, or a KeyUpdate.
    Other,
    /// One flight of tickets, in one or more records.
    Tickets(TicketFlight),
}

impl MessageEncrypter for ShortNonceEncrypter {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        seq: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        if message.typ != ContentType::Handshake {
            return self.inner.encrypt(message, seq);
        }
        let payload = match &message.payload {
            OutboundChunks::Single(payload) => Cow::Borrowed(*payload),
            chunks @ OutboundChunks::Multiple { .. } => Cow::Owned(chunks.to_vec()),
        };
        if let Messages::Unknown = self.messages {
            self.messages = match payload.first() {
                Some(&NEW_SESSION_TICKET) => Messages::Tickets(TicketFlight::default()),
                _ => Messages::Other,
            };
        }
        let Messages::Tickets(flight) = &mut self.messages else {
            return self.inner.encrypt(message, seq);
        };
        let shortened = flight.shorten(&payload);
        let message = OutboundPlainMessage {
            typ: message.typ,
            version: message.version,
            payload: OutboundChunks::Single(&shortened),
        };
        self.inner.encrypt(message, seq)
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        self.inner.encrypted_payload_len(payload_len)
    }
}

/// Cuts the nonces in a flight of tickets. A record can end anywhere in a message.
#[derive(Default)]
struct TicketFlight {
    /// The first bytes of a message header, at most three. The next record contains them.
    partial_header: Vec<u8>,
    /// The number of bytes of the current message that were processed, header included.
    position: usize,
    /// The length of the current message in bytes, header included; 0 before the first message.
    message_len: usize,
    /// True if the current message is a ticket with a long nonce.
    is_ticket: bool,
}

impl TicketFlight {
    /// The record content that replaces `fragment`. It is never longer than a full fragment.
    ///
    /// `partial_header` adds at most three bytes to a fragment, and a cut nonce is 24 bytes shorter.
    fn shorten(&mut self, fragment: &[u8]) -> Vec<u8> {
        let mut input = mem::take(&mut self.partial_header);
        input.extend_from_slice(fragment);
        let mut output = Vec::with_capacity(input.len());
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            if self.position == self.message_len {
                let Some((header, after_header)) = rest.split_first_chunk() else {
                    self.partial_header = rest.to_vec();
                    break;
                };
                output.extend(self.begin(*header));
                rest = after_header;
            }
            let missing = self.message_len - self.position;
            let (part, after_part) = rest.split_at(rest.len().min(missing));
            self.copy(part, &mut output);
            rest = after_part;
        }
        output
    }

    /// Begins the next message. Returns its header with the new length.
    fn begin(&mut self, header: [u8; HANDSHAKE_HEADER_LEN]) -> [u8; HANDSHAKE_HEADER_LEN] {
        let [kind, high, middle, low] = header;
        let body = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.position = HANDSHAKE_HEADER_LEN;
        self.message_len = HANDSHAKE_HEADER_LEN + body;
        self.is_ticket = kind == NEW_SESSION_TICKET && self.message_len >= CUT_TO;
        if !self.is_ticket {
            return header;
        }
        let shorter = (body - (CUT_TO - CUT_FROM)) as u32;
        let [_, high, middle, low] = shorter.to_be_bytes();
        [kind, high, middle, low]
    }

    /// Copies a part of the current message to `output`, without the removed bytes of the nonce.
    fn copy(&mut self, part: &[u8], output: &mut Vec<u8>) {
        let start = self.position;
        self.position += part.len();
        if !self.is_ticket {
            return output.extend_from_slice(part);
        }
        let offset_in_part = |offset: usize| offset.saturating_sub(start).min(part.len());
        let output_start = output.len();
        output.extend_from_slice(&part[..offset_in_part(CUT_FROM)]);
        if (start..self.position).contains(&NONCE_LEN_OFFSET) {
            output[output_start + NONCE_LEN_OFFSET - start] = SHORT_NONCE_LEN as u8;
        }
        output.extend_from_slice(&part[offset_in_part(CUT_TO)..]);
    }
}

#[cfg(test)]
mod tests;
