//! Recognises the kind of a client: the parts of a hello that a client repeats in each connection.

use super::client::ClientHello;
use super::extensions;

/// Extensions that a client may send in some of its hellos only, or whose presence changes with an offer.
const CHANGING: [u16; 7] = [
    extensions::PADDING,
    extensions::SESSION_TICKET,
    extensions::PRE_SHARED_KEY,
    extensions::EARLY_DATA,
    extensions::COOKIE,
    extensions::PSK_KEY_EXCHANGE_MODES,
    extensions::ENCRYPTED_CLIENT_HELLO,
];

/// Extensions whose body is a list of numbers of two bytes, after two bytes of length.
const LISTS: [u16; 2] = [
    extensions::SUPPORTED_GROUPS,
    extensions::SIGNATURE_ALGORITHMS,
];

/// Marks a cipher suite. No extension has this type.
const SUITE: u16 = 0xffff;

/// Marks the type of an extension. No extension has this type.
const EXTENSION: u16 = 0xfffe;

impl ClientHello<'_> {
    /// A number that is the same for all hellos of one client, whether the hello offers a session or not.
    ///
    /// It covers the cipher suites, the extensions, the versions, the groups, the signature algorithms and the
    /// protocols. It does not depend on GREASE values (RFC 8701) or on the order of lists. `hash` must be
    /// keyed, because clients choose the bytes.
    pub fn fingerprint(&self, hash: impl Fn(&[u8]) -> u64) -> u64 {
        let mut sum = 0_u64;
        // The sum does not depend on the order.
        let mut add = |kind: u16, value: u16| {
            if !is_grease(value) {
                let both = u32::from(kind) << 16 | u32::from(value);
                sum = sum.wrapping_add(hash(&both.to_be_bytes()));
            }
        };
        for suite in self.cipher_suites.iter() {
            add(SUITE, suite);
        }
        for version in self.supported_versions.iter().flat_map(|list| list.iter()) {
            add(extensions::SUPPORTED_VERSIONS, version);
        }
        for (kind, body) in extensions::iter(self.extensions) {
            if CHANGING.contains(&kind) {
                continue;
            }
            add(EXTENSION, kind);
            if LISTS.contains(&kind) {
                let list = body.get(2..).unwrap_or_default();
                for pair in list.as_chunks::<2>().0 {
                    add(kind, u16::from_be_bytes(*pair));
                }
            }
        }
        let protocols = self.alpn.iter().filter(|name| !is_grease_name(name));
        protocols.fold(sum, |sum, name| sum.wrapping_add(hash(name)))
    }
}

/// True for the protocols (ALPN) of RFC 8701, which are two bytes long.
fn is_grease_name(name: &[u8]) -> bool {
    <[u8; 2]>::try_from(name).is_ok_and(|name| is_grease(u16::from_be_bytes(name)))
}

/// True for the reserved values of RFC 8701: 0x0a0a, 0x1a1a and so on.
const fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata::{client_hello, exchange};

    /// An unkeyed hash (FNV-1a) for tests.
    fn hash(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    fn of(hello: &[u8]) -> u64 {
        ClientHello::parse(hello).unwrap().fingerprint(hash)
    }

    fn of_capture(name: &str) -> u64 {
        of(&exchange(name).client[5..])
    }

    #[test]
    fn a_client_keeps_its_fingerprint_when_it_offers_a_session() {
        for (full, resumed) in [
            ("chromium-full", "chromium-resumed"),
            ("chromium-tls12-full", "chromium-tls12-resumed"),
            ("curl-full", "curl-resumed"),
            ("gnutls-full", "gnutls-resumed"),
            ("go-full", "go-resumed"),
            ("gnutls-tls12-full", "gnutls-tls12-resumed"),
            ("nginx-tls12-ticket-full", "nginx-tls12-ticket-resumed"),
            ("openssl-tls12-ticket-full", "openssl-tls12-ticket-resumed"),
            ("openssl-tls13-full", "openssl-tls13-resumed"),
            ("openssl-tls13-retry-full", "openssl-tls13-retry-resumed"),
            ("python-full", "python-resumed"),
        ] {
            assert_eq!(of_capture(full), of_capture(resumed), "{full}");
        }
    }

    #[test]
    fn different_clients_have_different_fingerprints() {
        let clients = [
            "chromium-full",
            "curl-full",
            "gnutls-full",
            "openssl-tls13-full",
        ];
        let mut prints = clients.map(of_capture).to_vec();
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), clients.len());
    }

    #[test]
    fn grease_order_padding_and_offers_change_nothing() {
        let groups: &[u8] = &[0, 4, 0, 29, 0, 23];
        let plain = of(&client_hello(&[(10, groups), (23, &[])]));
        let same: [&[(u16, &[u8])]; 6] = [
            &[(23, &[]), (10, groups)],
            &[(10, &[0, 4, 0, 23, 0, 29]), (23, &[])],
            &[
                (0x1a1a, &[0]),
                (10, &[0, 6, 0x2a, 0x2a, 0, 29, 0, 23]),
                (23, &[]),
            ],
            &[(10, groups), (23, &[]), (21, &[0; 9]), (0xfe0d, &[1])],
            &[(10, groups), (23, &[]), (35, &[])],
            &[
                (10, groups),
                (23, &[]),
                (44, &[0, 1, 2]),
                (45, &[1, 1]),
                (42, &[]),
            ],
        ];
        for extensions in same {
            assert_eq!(of(&client_hello(extensions)), plain, "{extensions:?}");
        }
        let names = |list: &[u8]| of(&client_hello(&[(16, list)]));
        let protocols = names(b"\0\x0c\x02h2\x08http/1.1");
        assert_eq!(names(b"\0\x0c\x08http/1.1\x02h2"), protocols);
        assert_eq!(names(b"\0\x0f\x02\x4a\x4a\x02h2\x08http/1.1"), protocols);
        assert_ne!(names(b"\0\x0f\x02\x4a\x5b\x02h2\x08http/1.1"), protocols);
        assert_ne!(names(b"\0\x03\x02h2"), protocols);
        let others: [&[(u16, &[u8])]; 4] = [
            &[(10, groups)],
            &[(10, &[0, 2, 0, 29]), (23, &[])],
            &[(10, groups), (23, &[]), (16, b"\0\x03\x02h2")],
            &[(10, groups), (23, &[]), (43, &[2, 3, 4])],
        ];
        for extensions in others {
            assert_ne!(of(&client_hello(extensions)), plain, "{extensions:?}");
        }
    }
}
