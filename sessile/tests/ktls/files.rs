//! Files of two sizes over each version and cipher: the content, ranges, kept connections, resumption.

use std::fs;

use rustls::SupportedCipherSuite;
use rustls::client::Tls12Resumption;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;

use crate::site::{MIB, Site};

const SUITES: [SupportedCipherSuite; 6] = [
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// A counter of `/proc/net/tls_stat`.
fn tls_stat(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/net/tls_stat").expect("the module tls");
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    value
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

#[test]
fn each_suite_leaves_through_the_kernel() {
    let site = Site::with(MIB, "");
    let errors = tls_stat("TlsDecryptError");
    for (number, suite) in SUITES.into_iter().enumerate() {
        let before = (tls_stat("TlsTxSw"), tls_stat("TlsRxSw"));
        let client = site.client(suite, Tls12Resumption::Disabled);
        let mut connection = client.connect();
        // The second file finds the records in the kernel. The third goes back to hyper for its head.
        for headers in ["", "", "accept: */*\r\n"] {
            let answer = connection.get(headers);
            assert!(
                answer.head.starts_with("HTTP/1.1 200 OK\r\n"),
                "{}",
                answer.head
            );
            assert!(answer.body == site.content, "{suite:?}");
        }
        connection.close();
        let after = (tls_stat("TlsTxSw"), tls_stat("TlsRxSw"));
        assert_eq!(after, (before.0 + 1, before.1 + 1), "{suite:?}");
        let files = 3 * (number as u64 + 1);
        assert_eq!(site.sent(), (files * MIB as u64, 0), "{suite:?}");
    }
    assert_eq!(tls_stat("TlsDecryptError"), errors);
}

#[test]
fn a_file_of_64_mib_arrives_whole() {
    let site = Site::with(64 * MIB, "");
    for suite in [SUITES[0], SUITES[3]] {
        let mut connection = site.client(suite, Tls12Resumption::Disabled).connect();
        let answer = connection.get("connection: close\r\n");
        assert!(
            answer.head.contains("connection: close\r\n"),
            "{}",
            answer.head
        );
        assert!(answer.body == site.content);
        assert!(connection.is_closed_cleanly(), "{suite:?}");
    }
    assert_eq!(site.sent(), (2 * 64 * MIB as u64, 0));
}

#[test]
fn ranges_and_small_answers_share_a_kept_connection() {
    let site = Site::with(2 * MIB, "");
    for suite in [SUITES[0], SUITES[3]] {
        let mut connection = site.client(suite, Tls12Resumption::Disabled).connect();
        for (first, last) in [
            (0, 99_999),
            (7, 7),
            (1_000_001, 1_999_999),
            (0, 65_535),
            (5, 65_535),
        ] {
            let answer = connection.get(&format!("range: bytes={first}-{last}\r\n"));
            assert!(answer.head.starts_with("HTTP/1.1 206 "), "{}", answer.head);
            assert!(answer.body == site.content[first..=last], "{first}-{last}");
        }
        // Requests can arrive before the response to an earlier request.
        connection.send_request("range: bytes=100-199999\r\n");
        connection.send_request("range: bytes=1-2\r\n");
        connection.send_request("range: bytes=200-299999\r\n");
        for range in [100..=199_999, 1..=2, 200..=299_999] {
            assert!(connection.read_answer().unwrap().body == site.content[range]);
        }
        connection.close();
    }
}

#[test]
fn sessions_resume_after_connections_in_the_kernel() {
    let site = Site::with(MIB, "");
    for (suite, resumption, verdict) in [
        (SUITES[0], Tls12Resumption::Disabled, "resumed/psk"),
        (
            SUITES[3],
            Tls12Resumption::SessionIdOnly,
            "resumed/session-id",
        ),
        (
            SUITES[3],
            Tls12Resumption::SessionIdOrTickets,
            "resumed/ticket",
        ),
    ] {
        let client = site.client(suite, resumption);
        for visit in 0..3 {
            let mut connection = client.connect();
            assert!(connection.get("").body == site.content);
            assert_eq!(connection.is_resumed(), visit > 0, "{verdict}");
            connection.close();
        }
        assert_eq!(site.server.metrics().verdict(verdict), 2, "{verdict}");
    }
    let (kernel, user_space) = site.sent();
    assert_eq!((kernel, user_space), (9 * MIB as u64, 0));
}

#[test]
fn nothing_leaves_through_the_kernel_if_the_setting_is_off() {
    let site = Site::with(MIB, "tls.kernel = 'off'");
    let mut connection = site.client(SUITES[0], Tls12Resumption::Disabled).connect();
    assert!(connection.get("").body == site.content);
    assert_eq!(site.sent(), (0, MIB as u64));
    connection.close();
}
