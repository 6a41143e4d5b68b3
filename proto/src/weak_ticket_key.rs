//! Tries weak keys against a ticket. A thief with the key of a ticket can read the ticket, and the connections of its
//! session.
//!
//! Most servers authenticate a ticket by a MAC at its end, as RFC 5077, 4, recommends. If a MAC with a weak key fits, the
//! server has this key.

use std::ops::Range;

use aws_lc_rs::{digest, hmac};

use crate::keys::published;

/// A weak key that a server uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeakTicketKey {
    /// All bytes are zero.
    Zero,
    /// All bytes have this value.
    Repeated(u8),
    /// Each byte is the one before it plus 1, as in 00 01 02.
    Sequence,
    /// The key is published in this document.
    Published(&'static str),
}

/// Longest ticket that is tried. Longer ones are rare, and the tries would take long.
const MAX_TICKET: usize = 1 << 14;

/// Bytes before the ciphertext: at least an initialization vector.
const MIN_BEFORE_MAC: usize = 16;

/// Lengths of the MAC key in the key files of nginx, HAProxy, Apache and Envoy: 48 or 80 bytes in total.
const MAC_KEY_LENGTHS: [usize; 2] = [16, 32];

/// Bytes of the key file that are the MAC key.
const MAC_KEYS_IN_FILES: [Range<usize>; 4] = [
    // Apache, 48 bytes.
    16..32,
    // nginx and HAProxy, 48 bytes.
    32..48,
    // nginx and Envoy, 80 bytes.
    16..48,
    // HAProxy, 80 bytes.
    48..80,
];

/// The first byte of a sequence.
const SEQUENCE_STARTS: [u8; 2] = [0, 1];

/// The weak key that sealed the ticket. `None` if no weak key fits, or if the format is unknown.
///
/// Known are the formats of OpenSSL (nginx, HAProxy, Apache, Envoy), of Go (Caddy, Traefik) and of GnuTLS.
#[must_use]
pub fn recognise(ticket: &[u8]) -> Option<WeakTicketKey> {
    if ticket.len() > MAX_TICKET {
        return None;
    }
    let sha256 = Sealed::new(hmac::HMAC_SHA256, ticket)?;
    let sha1 = Sealed::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, ticket)?;
    if let Some(byte) = (0..=u8::MAX).find(|&byte| {
        let secret = [byte; 32];
        MAC_KEY_LENGTHS
            .iter()
            .any(|&len| sha256.fits(&secret[..len]))
            || sha256.fits(&go_mac_key(secret))
            || sha1.fits(&secret[..GNUTLS_MAC_KEY_LEN])
    }) {
        return Some(match byte {
            0 => WeakTicketKey::Zero,
            byte => WeakTicketKey::Repeated(byte),
        });
    }
    let is_sequence = SEQUENCE_STARTS.iter().any(|&start| {
        let file = sequence(start);
        MAC_KEYS_IN_FILES
            .into_iter()
            .any(|mac_key| sha256.fits(&file[mac_key]))
            || sha256.fits(&go_mac_key(*file.first_chunk().expect("longer")))
    });
    if is_sequence {
        return Some(WeakTicketKey::Sequence);
    }
    let mut published = published();
    let found = published.find(|(secret, _)| {
        let parts = [&secret[..], &secret[..16], &secret[16..]];
        parts.into_iter().any(|mac_key| sha256.fits(mac_key)) || sha256.fits(&go_mac_key(*secret))
    });
    found.map(|(_, place)| WeakTicketKey::Published(place))
}

/// A ticket that ends with a MAC.
struct Sealed<'a> {
    algorithm: hmac::Algorithm,
    sealed: &'a [u8],
    mac: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// `None` if the ticket is too short.
    fn new(algorithm: hmac::Algorithm, ticket: &'a [u8]) -> Option<Self> {
        let mac_len = algorithm.digest_algorithm().output_len();
        let (sealed, mac) = ticket.split_at_checked(ticket.len().checked_sub(mac_len)?)?;
        (sealed.len() > MIN_BEFORE_MAC).then_some(Self {
            algorithm,
            sealed,
            mac,
        })
    }

    fn fits(&self, key: &[u8]) -> bool {
        let key = hmac::Key::new(self.algorithm, key);
        hmac::verify(&key, self.sealed, self.mac).is_ok()
    }
}

/// Bytes of the MAC key of GnuTLS, which seals with zeros in its first period (CVE-2020-13777).
const GNUTLS_MAC_KEY_LEN: usize = 16;

/// The MAC key that Go's crypto/tls derives from a ticket key.
fn go_mac_key(secret: [u8; 32]) -> [u8; 16] {
    let hash = digest::digest(&digest::SHA512, &secret);
    // The hash contains the old name of the key, the key for AES, and the key for the MAC.
    *hash.as_ref()[32..]
        .first_chunk()
        .expect("SHA-512 has 64 bytes")
}

/// The start of a key file in which each byte is the one before it plus 1.
fn sequence(start: u8) -> [u8; 80] {
    let mut next = start;
    [0; 80].map(|_: u8| {
        let byte = next;
        next = next.wrapping_add(1);
        byte
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tickets of servers whose key file or key is all zero.
    const CAPTURED: [(&str, &[u8]); 7] = [
        (
            "nginx, 48 bytes",
            include_bytes!("testdata/weak-nginx-tls12.bin"),
        ),
        (
            "nginx, 80 bytes",
            include_bytes!("testdata/weak-nginx-tls13.bin"),
        ),
        (
            "HAProxy, 80 bytes",
            include_bytes!("testdata/weak-haproxy-tls12.bin"),
        ),
        (
            "Apache, TLS 1.2",
            include_bytes!("testdata/weak-apache-tls12.bin"),
        ),
        (
            "Apache, TLS 1.3",
            include_bytes!("testdata/weak-apache-tls13.bin"),
        ),
        ("Go, TLS 1.2", include_bytes!("testdata/weak-go-tls12.bin")),
        ("Go, TLS 1.3", include_bytes!("testdata/weak-go-tls13.bin")),
    ];

    /// Tickets of HAProxy whose keys of 80 bytes are 00 01 02 and so on.
    const CAPTURED_SEQUENCES: [&[u8]; 2] = [
        include_bytes!("testdata/weak-sequence-haproxy-tls12.bin"),
        include_bytes!("testdata/weak-sequence-haproxy-tls13.bin"),
    ];

    /// A ticket with a MAC of this key at its end.
    fn sealed(algorithm: hmac::Algorithm, key: &[u8]) -> Vec<u8> {
        let mut ticket: Vec<u8> = (0..200).collect();
        let mac = hmac::sign(&hmac::Key::new(algorithm, key), &ticket);
        ticket.extend_from_slice(mac.as_ref());
        ticket
    }

    #[test]
    fn the_zero_keys_of_servers_are_recognised() {
        for (server, ticket) in CAPTURED {
            assert_eq!(recognise(ticket), Some(WeakTicketKey::Zero), "{server}");
        }
    }

    #[test]
    fn repeated_bytes_are_recognised_in_each_format() {
        let sha256 = |key: &[u8]| recognise(&sealed(hmac::HMAC_SHA256, key));
        for byte in [0, 1, b'a', 0xff] {
            let expected = Some(match byte {
                0 => WeakTicketKey::Zero,
                byte => WeakTicketKey::Repeated(byte),
            });
            assert_eq!(sha256(&[byte; 16]), expected);
            assert_eq!(sha256(&[byte; 32]), expected);
            assert_eq!(sha256(&go_mac_key([byte; 32])), expected);
            let gnutls = sealed(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &[byte; 16]);
            assert_eq!(recognise(&gnutls), expected);
        }
    }

    #[test]
    fn sequences_are_recognised() {
        let file: Vec<u8> = (0..80).collect();
        // nginx has the MAC key last in 48 bytes, and second in 80 bytes. Apache has it second in 48 bytes.
        // HAProxy has the MAC key last in 48 and in 80 bytes.
        for key in [
            &file[32..48],
            &file[16..48],
            &file[16..32],
            &file[17..33],
            &file[48..80],
        ] {
            let ticket = sealed(hmac::HMAC_SHA256, key);
            assert_eq!(recognise(&ticket), Some(WeakTicketKey::Sequence));
        }
        let key = go_mac_key(*file.first_chunk().unwrap());
        let ticket = sealed(hmac::HMAC_SHA256, &key);
        assert_eq!(recognise(&ticket), Some(WeakTicketKey::Sequence));
    }

    #[test]
    fn the_sequences_of_servers_are_recognised() {
        for ticket in CAPTURED_SEQUENCES {
            assert_eq!(recognise(ticket), Some(WeakTicketKey::Sequence));
        }
    }

    #[test]
    fn published_keys_are_recognised() {
        let (secret, place) = published().last().unwrap();
        for key in [&secret[..], &secret[16..], &go_mac_key(secret)] {
            let ticket = sealed(hmac::HMAC_SHA256, key);
            assert_eq!(recognise(&ticket), Some(WeakTicketKey::Published(place)));
        }
    }

    #[test]
    fn other_keys_and_other_bytes_are_not_recognised() {
        let key = digest::digest(&digest::SHA256, b"some key");
        assert_eq!(recognise(&sealed(hmac::HMAC_SHA256, key.as_ref())), None);
        for (_, ticket) in CAPTURED {
            for end in 0..ticket.len() {
                assert_eq!(recognise(&ticket[..end]), None, "{end}");
            }
            let mut changed = ticket.to_vec();
            changed[20] ^= 1;
            assert_eq!(recognise(&changed), None);
        }
        assert_eq!(recognise(&vec![0; MAX_TICKET + 1]), None);
    }
}
