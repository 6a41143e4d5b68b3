//! Files of 64 KiB and more, which leave over HTTP/1.1 without hyper.

use std::io::Read;

use rustls::client::Tls12Resumption;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;

use crate::peers::eventually;
use crate::site::{MIB, Site};

/// Files leave from the server's process, also if the kernel of this machine has TLS.
const USER_SPACE: &str = "tls.kernel = 'off'";

#[test]
fn large_and_small_answers_keep_the_order_of_their_requests() {
    let site = Site::with(4 * MIB, USER_SPACE);
    for suite in [
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ] {
        let mut connection = site.client(suite, Tls12Resumption::Disabled).connect();
        let ranges = [0..=4 * MIB - 1, 5..=9, 1..=65_536, 1..=65_535, 7..=2 * MIB];
        for range in &ranges {
            let (first, last) = (range.start(), range.end());
            connection.send_request(&format!("range: bytes={first}-{last}\r\n"));
        }
        for range in ranges {
            let answer = connection.read_answer().unwrap();
            assert!(answer.head.starts_with("HTTP/1.1 206 "), "{}", answer.head);
            assert!(answer.head.contains("\r\ndate: "), "{}", answer.head);
            assert!(answer.body == site.content[range]);
        }
        connection.close();
    }
    // Two parts are too short, and leave through hyper.
    let large = (4 * MIB + 65_536 + 2 * MIB - 6) as u64;
    assert_eq!(site.sent(), (0, 2 * large));
}

/// hyper reads up to 24 KiB at first. What it does not use goes back for the next responses.
#[test]
fn requests_behind_a_large_file_are_not_lost() {
    let site = Site::with(MIB, USER_SPACE);
    let client = site.client(suite::TLS13_AES_128_GCM_SHA256, Tls12Resumption::Disabled);
    let mut connection = client.connect();
    let paddings = [9000, 0, 3000, 100, 7000, 0, 12_000, 8000, 0, 50];
    for (first, padding) in paddings.iter().enumerate() {
        let padding = "x".repeat(*padding);
        connection.send_request(&format!("range: bytes={first}-\r\npadding: {padding}\r\n"));
    }
    for first in 0..paddings.len() {
        let answer = connection.read_answer().unwrap();
        assert!(answer.head.starts_with("HTTP/1.1 206 "), "{}", answer.head);
        assert!(answer.body == site.content[first..], "from {first} on");
    }
    connection.close();
}

#[test]
fn a_drain_waits_for_a_large_file_and_then_ends_the_connection() {
    let mut site = Site::with(32 * MIB, USER_SPACE);
    let client = site.client(suite::TLS13_AES_128_GCM_SHA256, Tls12Resumption::Disabled);
    let mut connection = client.connect();
    connection.send_request("");
    let mut start = [0; 65_536];
    connection.tls.read_exact(&mut start).unwrap();
    site.server.terminate();
    site.server.await_line("draining");
    let mut rest = Vec::new();
    connection.tls.read_to_end(&mut rest).unwrap();
    let received = [&start[..], &rest].concat();
    assert!(received.ends_with(&site.content));
    assert!(site.server.ended().success());
}

#[test]
fn a_client_that_asks_for_the_end_gets_it_after_the_file() {
    let site = Site::with(MIB, USER_SPACE);
    let client = site.client(suite::TLS13_AES_128_GCM_SHA256, Tls12Resumption::Disabled);
    let mut connection = client.connect();
    let answer = connection.get("connection: close\r\n");
    assert!(
        answer.head.contains("\r\nconnection: close\r\n"),
        "{}",
        answer.head
    );
    assert!(answer.body == site.content);
    assert!(connection.is_closed_cleanly());
    eventually("no connection is open", || {
        site.server.metrics().sum("sessile_connections_open", &[]) == 0
    });
}
