//! Clients that vanish, reset, or do not read: the server goes on, and no connection stays open.

use std::io::Read;
use std::net::Shutdown;

use rustls::SupportedCipherSuite;
use rustls::client::Tls12Resumption;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;
use socket2::SockRef;

use crate::peers::eventually;
use crate::site::{Connection, MIB, Site};

const SUITES: [SupportedCipherSuite; 2] = [
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
];

/// A connection with a large response in the middle.
fn in_the_middle(site: &Site, suite: SupportedCipherSuite) -> Connection {
    let mut connection = site.client(suite, Tls12Resumption::Disabled).connect();
    connection.send_request("");
    let mut start = [0; 4096];
    connection.tls.read_exact(&mut start).unwrap();
    connection
}

fn await_no_connection(site: &Site) {
    eventually("no connection is open", || {
        site.server.metrics().sum("sessile_connections_open", &[]) == 0
    });
}

#[test]
fn a_reset_in_the_middle_of_a_file_ends_its_connection_only() {
    let site = Site::with(16 * MIB, "");
    for suite in SUITES {
        let connection = in_the_middle(&site, suite);
        let socket = SockRef::from(&connection.tls.sock.io);
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(connection);
        await_no_connection(&site);
        let mut other = site.client(suite, Tls12Resumption::Disabled).connect();
        assert!(other.get("range: bytes=0-99999\r\n").body == site.content[..100_000]);
        other.close();
    }
    assert_eq!(
        site.server
            .metrics()
            .sum("sessile_file_failures_total", &[]),
        0
    );
}

#[test]
fn an_end_without_close_notify_is_no_clean_end() {
    let site = Site::with(MIB, "session.require-close-notify = true");
    for suite in SUITES {
        let client = site.client(suite, Tls12Resumption::SessionIdOrTickets);
        for (is_clean, is_resumed) in [(false, false), (true, false), (true, true)] {
            let mut connection = client.connect();
            assert!(connection.get("").body == site.content);
            assert_eq!(connection.is_resumed(), is_resumed, "{suite:?}");
            if is_clean {
                connection.close();
            } else {
                connection.tls.sock.io.shutdown(Shutdown::Write).unwrap();
                assert!(connection.is_closed_cleanly());
            }
            await_no_connection(&site);
        }
    }
}

#[test]
fn a_client_that_does_not_read_loses_its_connection() {
    let site = Site::with(16 * MIB, "connection.body-timeout = '2s'");
    let connection = in_the_middle(&site, SUITES[0]);
    await_no_connection(&site);
    assert_eq!(
        site.server
            .metrics()
            .sum("sessile_responses_stalled_total", &[]),
        1
    );
    drop(connection);
}

#[test]
fn a_damaged_record_is_answered_with_an_alert() {
    let site = Site::with(MIB, "");
    for suite in SUITES {
        let mut connection = site.client(suite, Tls12Resumption::Disabled).connect();
        assert!(connection.get("").body == site.content);
        let damaged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
        std::io::Write::write_all(&mut connection.tls.sock, &damaged).unwrap();
        let error = connection.tls.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
        await_no_connection(&site);
    }
}
