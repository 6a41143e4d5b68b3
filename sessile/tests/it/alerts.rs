//! The alerts for invalid first bytes, which `sessile balance` and `sessile serve` share.

use std::net::SocketAddr;

use sessile_proto::alert::AlertDescription;

use crate::balance_labels::{in_records, padded};
use crate::peers::{Certificates, Sessile, free_port, send};

const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

/// Lengths of the headers of a record and of a handshake message.
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// Positions of the version and of the session ID's length in a ClientHello of one record.
const VERSION: usize = RECORD_HEADER + MESSAGE_HEADER;
const SESSION_ID: usize = VERSION + 2 + 32;

fn record(content: u8, fragment: &[u8]) -> Vec<u8> {
    let len = u16::try_from(fragment.len()).unwrap().to_be_bytes();
    [&[content, 3, 1], &len[..], fragment].concat()
}

/// The recorded ClientHello with one changed byte.
fn with_byte(at: usize, byte: u8) -> Vec<u8> {
    let mut hello = HELLO.to_vec();
    hello[at] = byte;
    hello
}

/// A description of the first bytes, and the bytes.
type Sample = (&'static str, Vec<u8>);

fn not_tls() -> Vec<Sample> {
    vec![
        ("an HTTP request", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("zeroes", vec![0; 12]),
        ("random bytes", vec![0x9b, 0x1f, 0x63, 0xe2, 0x08, 0xd7]),
        ("a record of version 4.0", with_byte(1, 4)),
    ]
}

fn no_client_hello() -> Vec<Sample> {
    let message = &HELLO[RECORD_HEADER..];
    let interrupted = [record(22, &message[..10]), record(21, &[1, 0])].concat();
    let two_messages = record(22, &[message, &[20, 0, 0, 0]].concat());
    vec![
        ("an alert", record(21, &[2, 40])),
        ("a ChangeCipherSpec", record(20, &[1])),
        ("application data", record(23, &[7; 50])),
        ("a ServerHello", with_byte(RECORD_HEADER, 2)),
        ("a Finished", record(22, &[20, 0, 0, 1, 7])),
        ("an empty fragment", record(22, &[])),
        ("a hello that an alert interrupts", interrupted),
        ("two messages in a record", two_messages),
    ]
}

fn too_long_records() -> Vec<Sample> {
    let plaintext = [&[22, 3, 1, 0x40, 1][..], &[0; (1 << 14) + 1]].concat();
    vec![
        ("a record of 2^14 + 1 bytes", plaintext),
        ("a ciphertext over the limit", vec![23, 3, 3, 0x48, 1]),
    ]
}

fn malformed() -> Vec<Sample> {
    vec![("a session ID of 33 bytes", with_byte(SESSION_ID, 33))]
}

fn too_long_hellos() -> Vec<Sample> {
    let hello = in_records(&padded(HELLO, 17 * 1024), 16 * 1024);
    vec![
        ("a hello of 17 KiB", hello),
        ("16 MiB to come", record(22, &[1, 0xff, 0xff, 0xff])),
    ]
}

/// Invalid first bytes, grouped by the alert that must answer them.
fn bad_first_bytes() -> [(Vec<Sample>, Option<AlertDescription>); 6] {
    let version = vec![("version 0.1 in the hello", with_byte(VERSION, 0))];
    [
        (not_tls(), None),
        (no_client_hello(), Some(AlertDescription::UnexpectedMessage)),
        (too_long_records(), Some(AlertDescription::RecordOverflow)),
        (malformed(), Some(AlertDescription::DecodeError)),
        (too_long_hellos(), Some(AlertDescription::IllegalParameter)),
        (version, Some(AlertDescription::ProtocolVersion)),
    ]
}

/// Sends all invalid first bytes and checks the alerts. Returns the number of connections.
fn assert_alerts(address: SocketAddr) -> u64 {
    let mut sent = 0;
    for (samples, alert) in bad_first_bytes() {
        let expected = alert.map_or(Vec::new(), |alert| alert.record().to_vec());
        for (what, bytes) in samples {
            assert_eq!(send(address, &bytes), expected, "{what}");
            sent += 1;
        }
    }
    sent
}

#[test]
fn a_balancer_answers_bad_first_bytes_with_the_alert_of_the_rfc() {
    // The balancer needs no running server, because none of these connections reaches one.
    let balancer = Sessile::balance(&[([127, 0, 0, 1], free_port()).into()], &[]);
    let sent = assert_alerts(balancer.address());
    let open = "sessile_balance_connections_open";
    let metrics = balancer.await_metrics(|metrics| metrics.sum(open, &[]) == 0);
    assert_eq!(metrics.turned_away("bad-hello"), sent, "{metrics}");
}

#[test]
fn a_server_answers_bad_first_bytes_with_the_alert_of_the_rfc() {
    let certificates = Certificates::new();
    let folder = certificates.folder();
    let server = Sessile::serve(&certificates, folder, folder);
    let sent = assert_alerts(server.address());
    let failures = "sessile_handshake_failures_total";
    let cause = [("cause", "bad-hello")];
    server.await_metrics(|metrics| metrics.sum(failures, &cause) == sent);
}
