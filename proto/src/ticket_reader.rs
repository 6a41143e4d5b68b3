//! Reads the tickets that a TLS 1.3 server sends ([RFC 9846, 4.6.1](https://www.rfc-editor.org/rfc/rfc9846#section-4.6.1)).
//! The messages are encrypted, so the reader needs the server's traffic secret, which only the client has.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{self, KeyType};

use crate::hello::{Tls13NewSessionTicket, kind};
use crate::record::{ContentType, HANDSHAKE_HEADER_LEN, HEADER_LEN, Header, message_len};

/// A ticket of TLS 1.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls13Ticket {
    /// How long the server accepts the ticket, in seconds.
    pub lifetime: u32,
    /// The identity of the PSK.
    pub ticket: Vec<u8>,
    /// Most bytes of early data. `None` if the server accepts no early data with this ticket.
    pub max_early_data: Option<u32>,
}

/// Reads the tickets in the bytes that a server sent, from its first record on.
///
/// `secret` is the first server_application_traffic_secret. Ends at the first record that cannot be read, and at a
/// change of the key. Returns no ticket if the cipher suite is unknown or the secret has another length.
#[must_use]
pub fn read_tickets(cipher_suite: u16, secret: &[u8], server_bytes: &[u8]) -> Vec<Tls13Ticket> {
    let Some(mut decrypter) = Decrypter::new(cipher_suite, secret) else {
        return Vec::new();
    };
    let mut tickets = Vec::new();
    let mut messages = Vec::new();
    for (header, ciphertext) in records(server_bytes) {
        let Some((ContentType::Handshake, fragment)) = decrypter.open(header, ciphertext) else {
            continue;
        };
        messages.extend_from_slice(&fragment);
        let mut read = 0;
        while let Some(message) = first_message(&messages[read..]) {
            read += message.len();
            if message[0] == kind::KEY_UPDATE {
                return tickets;
            }
            if let Ok(parsed) = Tls13NewSessionTicket::parse(message) {
                tickets.push(Tls13Ticket {
                    lifetime: parsed.lifetime,
                    ticket: parsed.ticket.to_vec(),
                    max_early_data: parsed.max_early_data,
                });
            }
        }
        messages.drain(..read);
    }
    tickets
}

/// The whole records of application data, each with its header.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let header = Header::parse(bytes).ok()?;
            let (record, rest) = bytes.split_at_checked(HEADER_LEN + header.len)?;
            bytes = rest;
            if header.content == ContentType::ApplicationData {
                return Some(record.split_at(HEADER_LEN));
            }
        }
    })
}

/// The handshake message at the start, if it is whole.
fn first_message(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..HANDSHAKE_HEADER_LEN)?;
    bytes.get(..message_len(bytes).ok()?)
}

/// Decrypts records under one traffic secret (RFC 9846, 5.2 and 7.3).
struct Decrypter {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Decrypter {
    fn new(cipher_suite: u16, secret: &[u8]) -> Option<Self> {
        let (cipher, hash) = match cipher_suite {
            0x1301 => (&aead::AES_128_GCM, hkdf::HKDF_SHA256),
            0x1302 => (&aead::AES_256_GCM, hkdf::HKDF_SHA384),
            0x1303 => (&aead::CHACHA20_POLY1305, hkdf::HKDF_SHA256),
            _ => return None,
        };
        if secret.len() != hash.len() {
            return None;
        }
        let secret = hkdf::Prk::new_less_safe(hash, secret);
        let key = expand_label(&secret, b"key", cipher.key_len())?;
        Some(Self {
            key: LessSafeKey::new(UnboundKey::new(cipher, &key).ok()?),
            iv: expand_label(&secret, b"iv", NONCE_LEN)?.try_into().ok()?,
            sequence: 0,
        })
    }

    /// The content type and the content of a record. `None` for records of other keys, such as those of the
    /// handshake, which come before the first record of this key.
    fn open(&mut self, header: &[u8], ciphertext: &[u8]) -> Option<(ContentType, Vec<u8>)> {
        let mut nonce = self.iv;
        for (byte, mask) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= mask;
        }
        let mut record = ciphertext.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plaintext = self
            .key
            .open_in_place(nonce, Aad::from(header), &mut record)
            .ok()?;
        self.sequence += 1;
        // Zeros pad the plaintext, and the content type is the last byte before them.
        let end = plaintext.iter().rposition(|byte| *byte != 0)?;
        let content = ContentType::from_repr(plaintext[end])?;
        Some((content, plaintext[..end].to_vec()))
    }
}

/// HKDF-Expand-Label (RFC 9846, 7.1) with an empty context.
fn expand_label(secret: &hkdf::Prk, label: &[u8], len: usize) -> Option<Vec<u8>> {
    struct Len(usize);
    impl KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let prefix = b"tls13 ";
    let label_len = u8::try_from(prefix.len() + label.len()).ok()?;
    let info = [
        &u16::try_from(len).ok()?.to_be_bytes(),
        &[label_len][..],
        prefix,
        label,
        &[0],
    ];
    let mut out = vec![0; len];
    let okm = secret.expand(&info, Len(len)).ok()?;
    okm.fill(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's bytes, its cipher suite, and its traffic secret. The server sent two tickets and then data.
    const CAPTURED: [(&[u8], u16, &str); 3] = [
        (
            include_bytes!("testdata/records-openssl-aes128.bin"),
            0x1301,
            "ea5a5843cd03af6fa97e275e3b8dfb10d249b38db7dea92fa760ebf259227248",
        ),
        (
            include_bytes!("testdata/records-openssl-aes256.bin"),
            0x1302,
            "b8a6065e7b49ac2f84224eee18b0bf2caa3d8a1a2a25f1da58ed3432b34d890358a5911dcda25ebb240b752ffff052e6",
        ),
        (
            include_bytes!("testdata/records-openssl-chacha.bin"),
            0x1303,
            "b3551352ecec250f81b797334a971509ef26b3d2b56d377090e3e7c43ffcaa1a",
        ),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn reads_the_tickets_of_each_cipher_suite() {
        // The server with AES-256 seals the session into the ticket. The others have a cache.
        for ((server, suite, secret), len) in CAPTURED.into_iter().zip([32, 208, 32]) {
            let tickets = read_tickets(suite, &bytes(secret), server);
            assert_eq!(tickets.len(), 2, "{suite:#x}");
            assert_ne!(tickets[0].ticket, tickets[1].ticket);
            for ticket in &tickets {
                assert_eq!(ticket.ticket.len(), len);
                assert_eq!(ticket.lifetime, 7200);
                assert_eq!(ticket.max_early_data, Some(16384));
            }
        }
    }

    #[test]
    fn other_secrets_and_suites_read_no_ticket() {
        let (server, suite, secret) = CAPTURED[0];
        let mut secret = bytes(secret);
        assert!(read_tickets(0x1303, &secret, server).is_empty());
        assert!(read_tickets(0x1302, &secret, server).is_empty());
        assert!(read_tickets(0xc02f, &secret, server).is_empty());
        secret[0] ^= 1;
        assert!(read_tickets(suite, &secret, server).is_empty());
    }

    #[test]
    fn a_prefix_has_the_tickets_of_its_whole_records() {
        for (server, suite, secret) in CAPTURED {
            let secret = bytes(secret);
            let all = read_tickets(suite, &secret, server);
            let mut most = 0;
            for end in 0..=server.len() {
                let tickets = read_tickets(suite, &secret, &server[..end]);
                assert!(tickets.len() >= most && all.starts_with(&tickets), "{end}");
                most = tickets.len();
            }
            assert_eq!(most, 2);
        }
    }
}
