use std::io::{Read, Write};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;
use crate::tls::provider::crypto;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// A client and a server of the same version.
struct Pair {
    client: ClientConnection,
    server: Unbuffered,
}

impl Pair {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(["a.example".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("signed");
        let root: CertificateDer<'static> = certificate.der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).expect("an authority");
        let provider = Arc::new(crypto());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(vec![root], key)
            .expect("a certificate");
        let name = ServerName::try_from("a.example").expect("a name");
        Self {
            client: ClientConnection::new(Arc::new(client), name).expect("a client"),
            server: Unbuffered::new(server).expect("a server"),
        }
    }

    /// A pair after its handshake.
    fn connected(version: &'static SupportedProtocolVersion) -> Self {
        let mut pair = Self::new(version);
        while pair.client.is_handshaking() || pair.server.tls.is_handshaking() {
            let sent = pair.sent_by_client();
            pair.receive(&sent, 1);
            pair.show_client();
        }
        pair
    }

    fn sent_by_client(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut sent).expect("written");
        }
        sent
    }

    /// The server receives bytes in parts of `size`.
    fn receive(&mut self, bytes: &[u8], size: usize) {
        for mut part in bytes.chunks(size) {
            while !part.is_empty() {
                let received = self.server.receive(&mut part).expect("room");
                received.expect("the client is right");
            }
        }
    }

    /// The client receives the output of the server. Returns the plaintext.
    fn show_client(&mut self) -> Vec<u8> {
        let output = self.server.output.unsent().to_vec();
        self.server.output.remove(output.len());
        let mut unread = output.as_slice();
        let mut plaintext = Vec::new();
        while !unread.is_empty() {
            self.client.read_tls(&mut unread).expect("room");
            self.client.process_new_packets().expect("a right server");
            // The result tells that there may be more bytes, or that the server has closed.
            let _ = self.client.reader().read_to_end(&mut plaintext);
        }
        plaintext
    }

    fn read_by_server(&mut self) -> Vec<u8> {
        let mut bytes = [0; 1000];
        let mut reader = ReadBuf::new(&mut bytes);
        self.server.read_plaintext(&mut reader);
        reader.filled().to_vec()
    }
}

#[test]
fn bytes_arrive_in_any_parts() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        for size in [1, 7, 100, 5000, 100_000] {
            let request: Vec<u8> = (0..40_000_u32).map(|byte| (byte % 253) as u8).collect();
            // The client's buffer holds less.
            for part in request.chunks(16_000) {
                pair.client.writer().write_all(part).expect("room");
                let sent = pair.sent_by_client();
                pair.receive(&sent, size);
            }
            let mut read = Vec::new();
            while pair.server.has_plaintext() {
                read.extend(pair.read_by_server());
            }
            assert!(read == request, "{version:?}, parts of {size}");
            assert_eq!(pair.server.unprocessed.capacity(), 0);
            assert_eq!(pair.server.plaintext.capacity(), 0);
        }
    }
}

#[test]
fn an_incomplete_record_takes_no_more_than_its_bytes() {
    let mut pair = Pair::connected(&rustls::version::TLS13);
    pair.client.writer().write_all(&[7; 9000]).expect("room");
    let sent = pair.sent_by_client();
    pair.receive(&sent[..3000], 3000);
    assert_eq!(pair.server.unprocessed.capacity(), 3000);
    // A response can leave while a request is incomplete.
    let bufs = [IoSlice::new(b"early")];
    assert_eq!(pair.server.write(&bufs, 100).expect("written"), 5);
    pair.show_client();
    pair.receive(&sent[3000..], 100);
    assert_eq!(pair.read_by_server(), [7; 1000]);
}

#[test]
fn responses_of_any_parts_arrive() {
    let body = [9; 50_000];
    let parts: [&[&[u8]]; 6] = [
        &[b"one"],
        &[b"head", b"", b"body"],
        &[b"head", &body[..16_384]],
        &[b"head", &body],
        &[&body, b"tail", b"end"],
        &[b"a", &body[..16_000], &body[..16_000], b"b"],
    ];
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        for parts in parts {
            for limit in [1, 3, 5, 16_384, 16_390, 100_000] {
                let whole = parts.concat();
                let bufs: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
                let written = pair.server.write(&bufs, limit).expect("written");
                assert_eq!(written, whole.len().min(limit));
                let read = pair.show_client();
                assert!(read == whole[..written], "{version:?}, limit {limit}");
            }
        }
        assert_eq!(pair.server.output.unsent(), b"");
    }
}

#[test]
fn both_sides_close() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        pair.client.writer().write_all(b"last").expect("room");
        pair.client.send_close_notify();
        let sent = pair.sent_by_client();
        pair.receive(&sent, 1000);
        assert!(pair.server.has_peer_closed());
        assert_eq!(pair.read_by_server(), b"last");
        // Bytes after close_notify do not count.
        pair.receive(b"more", 1);
        assert_eq!(pair.server.unprocessed.capacity(), 0);
        let written = pair.server.write(&[IoSlice::new(b"answer")], 100);
        assert_eq!(written.expect("written"), 6);
        pair.server.send_close_notify().expect("an alert");
        assert_eq!(pair.show_client(), b"answer");
        let end = pair.client.reader().read(&mut [0]);
        assert_eq!(end.expect("close_notify"), 0);
    }
}

#[test]
fn a_client_can_update_its_keys() {
    let mut pair = Pair::connected(&rustls::version::TLS13);
    pair.client.refresh_traffic_keys().expect("TLS 1.3");
    pair.client.writer().write_all(b"new keys").expect("room");
    let sent = pair.sent_by_client();
    pair.receive(&sent, 1);
    assert_eq!(pair.read_by_server(), b"new keys");
    let written = pair.server.write(&[IoSlice::new(b"seen")], 100);
    assert_eq!(written.expect("written"), 4);
    assert_eq!(pair.show_client(), b"seen");
}

/// rustls panics if it is called without the bytes of an incomplete handshake message.
#[test]
fn a_call_after_an_error_does_not_panic() {
    // A part of a handshake message in clear, then a record that is none.
    let incomplete = [&[22, 3, 3, 0, 8, 16, 0, 0, 100][..], b"abcd"].concat();
    let bad = [23, 3, 3, 0, 1, 0];
    for is_hello_first in [false, true] {
        let mut pair = Pair::new(&rustls::version::TLS12);
        if is_hello_first {
            let hello = pair.sent_by_client();
            pair.receive(&hello, 1000);
            pair.show_client();
        }
        pair.receive(&incomplete, 1000);
        let received = pair.server.receive(&mut &bad[..]).expect("room");
        assert!(received.is_err());
        for bytes in [&bad[..], &incomplete, b"x"] {
            let received = pair.server.receive(&mut &*bytes).expect("room");
            assert!(received.is_ok());
        }
        assert!(pair.server.write(&[IoSlice::new(b"x")], 1).is_err());
        assert!(pair.server.send_close_notify().is_err());
    }
}

#[test]
fn an_error_has_an_alert() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        let garbage = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
        let received = pair.server.receive(&mut garbage.as_slice());
        assert!(received.expect("room").is_err());
        let alert = pair.server.output.unsent().to_vec();
        pair.client
            .read_tls(&mut alert.as_slice())
            .expect("an alert");
        let error = pair.client.process_new_packets().expect_err("an alert");
        let bad_record_mac = rustls::AlertDescription::BadRecordMac;
        assert_eq!(error, Error::AlertReceived(bad_record_mac), "{version:?}");
    }
}

#[test]
fn a_handshake_message_that_is_too_long_is_refused() {
    let mut pair = Pair::new(&rustls::version::TLS12);
    let head = [&[22, 3, 3, 0, 5][..], &[16, 0, 255, 255, 0]].concat();
    let record = [&[22, 3, 3, 64, 0][..], &[0; 16_384]].concat();
    let records = [head, record.repeat(8)].concat();
    let mut unread = records.as_slice();
    while !unread.is_empty() {
        match pair.server.receive(&mut unread) {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
    panic!("all records were accepted");
}
