//! The keys of a connection in the form that the kernel takes (`linux/tls.h`).

use rustls::{CipherSuite, ConnectionTrafficSecrets, ProtocolVersion, SupportedCipherSuite};
use strum::VariantArray;
use zeroize::Zeroizing;

/// The bytes of the implicit part of an AES-GCM nonce (RFC 5288, 3).
const SALT_LEN: usize = 4;

#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Transmit,
    Receive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub(super) enum Version {
    Tls12,
    Tls13,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub(super) enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

impl Version {
    /// `None` for a version that the kernel never has.
    pub(super) const fn of(version: ProtocolVersion) -> Option<Self> {
        match version {
            ProtocolVersion::TLSv1_2 => Some(Self::Tls12),
            ProtocolVersion::TLSv1_3 => Some(Self::Tls13),
            _ => None,
        }
    }

    const fn number(self) -> u16 {
        match self {
            Self::Tls12 => libc::TLS_1_2_VERSION,
            Self::Tls13 => libc::TLS_1_3_VERSION,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        }
    }
}

impl Cipher {
    /// The cipher of a suite. `None` for a cipher that the kernel never has.
    pub(super) fn of(suite: SupportedCipherSuite) -> Option<Self> {
        use CipherSuite as Suite;
        match suite.suite() {
            Suite::TLS13_AES_128_GCM_SHA256
            | Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some(Self::Aes128Gcm),
            Suite::TLS13_AES_256_GCM_SHA384
            | Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(Self::Aes256Gcm),
            Suite::TLS13_CHACHA20_POLY1305_SHA256
            | Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(Self::Chacha20Poly1305),
            _ => None,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "AES-128-GCM",
            Self::Aes256Gcm => "AES-256-GCM",
            Self::Chacha20Poly1305 => "ChaCha20-Poly1305",
        }
    }

    pub(super) const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::Chacha20Poly1305 => 32,
        }
    }

    const fn number(self) -> u16 {
        match self {
            Self::Aes128Gcm => libc::TLS_CIPHER_AES_GCM_128,
            Self::Aes256Gcm => libc::TLS_CIPHER_AES_GCM_256,
            Self::Chacha20Poly1305 => libc::TLS_CIPHER_CHACHA20_POLY1305,
        }
    }
}

/// One of the structures `tls12_crypto_info_*`. Its memory is zeroed when it is dropped.
pub(super) struct CryptoInfo(Zeroizing<Vec<u8>>);

impl CryptoInfo {
    /// `sequence` is the number of the next record. `None` if the kernel has no such cipher.
    pub(super) fn of(
        version: Version,
        direction: Direction,
        sequence: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> Option<Self> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (Cipher::Chacha20Poly1305, key, iv)
            }
            _ => return None,
        };
        let mut nonce: [u8; 12] = iv.as_ref().try_into().ok()?;
        if let (Version::Tls12, Direction::Transmit) = (version, direction)
            && cipher != Cipher::Chacha20Poly1305
        {
            skip_used_nonces(&mut nonce);
        }
        Some(Self::new(version, cipher, key.as_ref(), &nonce, sequence))
    }

    pub(super) fn new(
        version: Version,
        cipher: Cipher,
        key: &[u8],
        nonce: &[u8; 12],
        sequence: u64,
    ) -> Self {
        let (salt, iv) = match cipher {
            Cipher::Chacha20Poly1305 => (&[][..], &nonce[..]),
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => nonce.split_at(SALT_LEN),
        };
        let numbers = [version.number(), cipher.number()].map(u16::to_ne_bytes);
        let sequence = sequence.to_be_bytes();
        let parts = [&numbers[0][..], &numbers[1], iv, key, salt, &sequence];
        // With the final size from the start, no copy of the key stays in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(64));
        for part in parts {
            bytes.extend_from_slice(part);
        }
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Moves the explicit part of a TLS 1.2 AES-GCM nonce away from all nonces that rustls has used.
///
/// rustls sends `iv XOR sequence` as the explicit nonce, and the kernel counts up from the nonce that it gets. If
/// the kernel began at `iv`, its first record would have the nonce of rustls's first record. Two records with one
/// nonce break AES-GCM. All nonces of rustls have the top bit of `iv`, so the kernel gets the other top bit. The
/// other bits are zero, so the count cannot reach the top bit within 2^63 records.
const fn skip_used_nonces(nonce: &mut [u8; 12]) {
    let top_bit = !nonce[SALT_LEN] & 0x80;
    let mut at = SALT_LEN;
    while at < nonce.len() {
        nonce[at] = 0;
        at += 1;
    }
    nonce[SALT_LEN] = top_bit;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    const IV: [u8; 12] = [1, 2, 3, 4, 0x85, 6, 7, 8, 9, 10, 11, 12];

    fn secrets() -> ConnectionTrafficSecrets {
        ConnectionTrafficSecrets::Aes256Gcm {
            key: AeadKey::from([7; 32]),
            iv: Iv::new(IV),
        }
    }

    fn info(version: Version, direction: Direction) -> Vec<u8> {
        let info = CryptoInfo::of(version, direction, 5, &secrets());
        info.expect("a cipher of the kernel").as_bytes().to_vec()
    }

    /// The explicit nonce in a structure for AES-256-GCM.
    fn explicit_nonce(info: &[u8]) -> u64 {
        u64::from_be_bytes(info[4..12].try_into().expect("eight bytes"))
    }

    #[test]
    fn the_structures_have_the_fields_of_the_header() {
        let tls13 = info(Version::Tls13, Direction::Transmit);
        let head = [0x0304_u16, 52].map(u16::to_ne_bytes).concat();
        let expected = [
            &head[..],
            &IV[4..],
            &[7; 32],
            &IV[..4],
            &5_u64.to_be_bytes(),
        ]
        .concat();
        assert_eq!(tls13, expected);
        for (cipher, len) in [
            (
                Cipher::Aes128Gcm,
                size_of::<libc::tls12_crypto_info_aes_gcm_128>(),
            ),
            (
                Cipher::Aes256Gcm,
                size_of::<libc::tls12_crypto_info_aes_gcm_256>(),
            ),
            (
                Cipher::Chacha20Poly1305,
                size_of::<libc::tls12_crypto_info_chacha20_poly1305>(),
            ),
        ] {
            let key = [0; 32];
            let info = CryptoInfo::new(Version::Tls12, cipher, &key[..cipher.key_len()], &IV, 0);
            assert_eq!(info.as_bytes().len(), len, "{cipher:?}");
        }
    }

    #[test]
    fn the_kernel_repeats_no_nonce_of_rustls_in_tls12() {
        let iv = u64::from_be_bytes(IV[4..].try_into().expect("eight bytes"));
        let of_rustls: HashSet<u64> = (0..1000).map(|sequence| iv ^ sequence).collect();
        let first = explicit_nonce(&info(Version::Tls12, Direction::Transmit));
        assert!((0..1000).all(|count| !of_rustls.contains(&(first + count))));
        // The count cannot reach the nonces with the other top bit.
        assert_ne!(first >> 63, iv >> 63);
        assert_eq!(first << 1, 0);
    }

    #[test]
    fn only_what_tls12_sends_has_another_nonce() {
        let iv = u64::from_be_bytes(IV[4..].try_into().expect("eight bytes"));
        for (version, direction) in [
            (Version::Tls12, Direction::Receive),
            (Version::Tls13, Direction::Transmit),
            (Version::Tls13, Direction::Receive),
        ] {
            assert_eq!(explicit_nonce(&info(version, direction)), iv);
        }
    }
}
