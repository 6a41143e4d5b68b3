//! TLS 1.2 shows the explicit nonce of each AES-GCM record (RFC 5288, 3). Two records with one nonce and one key
//! break the encryption.

use std::collections::HashSet;

use rustls::client::Tls12Resumption;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;

use crate::site::{MIB, Site};

const CHANGE_CIPHER_SPEC: u8 = 20;

/// The explicit nonces of the encrypted records of a server.
fn explicit_nonces(mut bytes: &[u8]) -> Vec<[u8; 8]> {
    let mut nonces = Vec::new();
    let mut is_encrypted = false;
    while let [content_type, _, _, high, low, rest @ ..] = bytes {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (fragment, next) = rest.split_at(len.min(rest.len()));
        if is_encrypted {
            nonces.push(fragment[..8].try_into().unwrap());
        }
        is_encrypted |= *content_type == CHANGE_CIPHER_SPEC;
        bytes = next;
    }
    nonces
}

#[test]
fn no_nonce_is_used_twice_on_the_way_to_the_kernel() {
    let site = Site::with(MIB, "");
    for suite in [
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ] {
        let mut connection = site.client(suite, Tls12Resumption::Disabled).connect();
        connection.tls.sock.is_recording = true;
        // Several records leave from the process before the keys move.
        for last in [1, 2, 3] {
            connection.get(&format!("range: bytes=0-{last}\r\n"));
        }
        for _ in 0..2 {
            assert!(connection.get("").body == site.content);
        }
        let nonces = explicit_nonces(&connection.tls.sock.received);
        let distinct: HashSet<_> = nonces.iter().collect();
        assert!(nonces.len() > 2 * MIB / 16_384, "{}", nonces.len());
        assert_eq!(distinct.len(), nonces.len());
        connection.close();
    }
    assert_eq!(site.sent(), (4 * MIB as u64, 0));
}
