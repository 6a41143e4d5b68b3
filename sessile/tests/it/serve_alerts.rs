//! The alerts and versions of `sessile serve` after a valid ClientHello.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sessile_proto::alert::AlertDescription;

use crate::peers::{Certificates, NAME, Sessile, record, run};

/// A ClientHello of TLS 1.2 without `supported_versions`.
const TLS12: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls12-id-full.bin");

const PATIENCE: Duration = Duration::from_secs(15);

/// The position of the version in a ClientHello of one record.
const VERSION: usize = 5 + 4;

/// Content types of records, and types of handshake messages.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const SERVER_HELLO: u8 = 2;

/// The message that ends the first flight of a TLS 1.2 server.
const SERVER_HELLO_DONE: &[u8] = &[14, 0, 0, 0];

/// A server with an ECDSA certificate.
fn server(certificates: &Certificates) -> Sessile {
    Sessile::serve(certificates, certificates.folder(), certificates.folder())
}

fn connect(address: SocketAddr) -> TcpStream {
    let io = TcpStream::connect(address).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    io
}

/// The number of the fatal alert that `openssl s_client` reports with these arguments.
fn alert_number(address: SocketAddr, arguments: &[&str]) -> Option<u8> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-servername", NAME, "-connect"]);
    command.arg(address.to_string()).args(arguments);
    let ran = run("openssl", &mut command, "");
    let number = ran.stderr.split("SSL alert number ").nth(1)?;
    number.lines().next()?.trim().parse().ok()
}

#[test]
fn a_client_without_common_parameters_gets_the_matching_alert() {
    const HANDSHAKE_FAILURE: u8 = 40;
    const NO_APPLICATION_PROTOCOL: u8 = 120;
    let certificates = Certificates::new();
    let server = server(&certificates);
    let samples: [(&[&str], u8); 8] = [
        // The only certificate has an ECDSA key.
        (
            &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"],
            HANDSHAKE_FAILURE,
        ),
        (&["-tls1_2", "-sigalgs", "RSA+SHA256"], HANDSHAKE_FAILURE),
        (
            &["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"],
            HANDSHAKE_FAILURE,
        ),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"],
            HANDSHAKE_FAILURE,
        ),
        (
            &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"],
            HANDSHAKE_FAILURE,
        ),
        (&["-tls1_2", "-groups", "P-521"], HANDSHAKE_FAILURE),
        (&["-tls1_3", "-groups", "P-521"], HANDSHAKE_FAILURE),
        (&["-alpn", "spdy/3"], NO_APPLICATION_PROTOCOL),
    ];
    for (arguments, number) in samples {
        let found = alert_number(server.address(), arguments);
        assert_eq!(found, Some(number), "{arguments:?}");
    }
}

#[test]
fn versions_below_tls_1_2_and_fallbacks_from_tls_1_3_are_refused() {
    let certificates = Certificates::new();
    let server = server(&certificates);
    let number = |arguments: &[&str]| alert_number(server.address(), arguments);
    // OpenSSL supports these versions at security level 0 only.
    let weak = ["-cipher", "ALL:@SECLEVEL=0"];
    let refused = Some(AlertDescription::ProtocolVersion as u8);
    assert_eq!(number(&[&["-tls1"][..], &weak].concat()), refused);
    assert_eq!(number(&[&["-tls1_1"][..], &weak].concat()), refused);
    let fallback = Some(AlertDescription::InappropriateFallback as u8);
    assert_eq!(number(&["-tls1_2", "-fallback_scsv"]), fallback);
    let older = [&["-tls1_1", "-fallback_scsv"][..], &weak].concat();
    assert_eq!(number(&older), fallback);
    assert_eq!(number(&["-fallback_scsv"]), None);
}

#[test]
fn a_client_version_above_tls_1_2_is_answered_with_tls_1_2() {
    let certificates = Certificates::new();
    let server = server(&certificates);
    for version in [0x0303_u16, 0x0304, 0x03ff, 0x0400, 0x7f1c, 0xfefd, 0xffff] {
        let mut hello = TLS12.to_vec();
        hello[VERSION..][..2].copy_from_slice(&version.to_be_bytes());
        let mut io = connect(server.address());
        io.write_all(&hello).unwrap();
        let answer = record(&io).unwrap();
        assert_eq!(answer[0], HANDSHAKE, "{version:#06x}: {answer:?}");
        assert_eq!(answer[5], SERVER_HELLO, "{version:#06x}");
        assert_eq!(answer[VERSION..][..2], [3, 3], "{version:#06x}");
    }
}

/// A record with this content type.
fn framed(content: u8, fragment: &[u8]) -> Vec<u8> {
    let len = u16::try_from(fragment.len()).unwrap().to_be_bytes();
    [&[content, 3, 3], &len[..], fragment].concat()
}

/// The answer of a TLS 1.2 server to these records after its first flight.
fn answer_to(address: SocketAddr, records: &[u8]) -> Vec<u8> {
    let mut io = connect(address);
    io.write_all(TLS12).unwrap();
    // The flight is in clear, and it ends with ServerHelloDone.
    while !record(&io).unwrap().ends_with(SERVER_HELLO_DONE) {}
    io.write_all(records).unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn protocol_violations_during_the_handshake_get_an_alert() {
    let certificates = Certificates::new();
    let server = server(&certificates);
    let unexpected = AlertDescription::UnexpectedMessage.record().to_vec();
    // A warning interrupts a ClientKeyExchange. rustls reports an error, but makes no alert.
    let interrupted = [
        framed(HANDSHAKE, &[16, 0, 0, 66]),
        framed(ALERT, &[1, 90]),
        framed(HANDSHAKE, &[65; 66]),
    ];
    assert_eq!(
        answer_to(server.address(), &interrupted.concat()),
        unexpected
    );
    let warnings = framed(ALERT, &[1, 90]).repeat(8);
    assert_eq!(answer_to(server.address(), &warnings), unexpected);
    // The warnings come in one segment with the ClientHello. Here, rustls has a flight to send, but makes no
    // alert.
    let mut io = connect(server.address());
    io.write_all(&[TLS12, &warnings[..]].concat()).unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&unexpected), "{answer:?}");
    // An empty key share, and a message of half a megabyte. rustls also makes no alert for these messages.
    let malformed = AlertDescription::DecodeError.record().to_vec();
    let no_point = framed(HANDSHAKE, &[16, 0, 0, 1, 0]);
    assert_eq!(answer_to(server.address(), &no_point), malformed);
    let long = framed(HANDSHAKE, &[16, 7, 7, 7]);
    assert_eq!(answer_to(server.address(), &long), malformed);
    // A Finished message, which is not allowed yet.
    let early = framed(
        HANDSHAKE,
        &[20, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    assert_eq!(answer_to(server.address(), &early), unexpected);
}

/// Sends bytes after the server's alert and FIN. If the server closed its socket early, these bytes
/// would cause a reset. Many clients would then report the reset instead of the alert.
fn send_after_alert(mut io: &TcpStream) {
    assert_eq!(io.read(&mut [0]).unwrap(), 0);
    for _ in 0..32 {
        io.write_all(&framed(HANDSHAKE, &[7; 1 << 12])).unwrap();
    }
}

#[test]
fn a_client_may_go_on_sending_after_an_alert() {
    let certificates = Certificates::new();
    let server = server(&certificates);
    let finished = framed(HANDSHAKE, &[20, 0, 0, 1, 7]);
    let mut unexpected = AlertDescription::UnexpectedMessage.record();

    // Here, sessile refuses the message before rustls gets the connection.
    let mut io = connect(server.address());
    io.write_all(&finished).unwrap();
    io.read_exact(&mut unexpected).unwrap();
    send_after_alert(&io);

    // Here, rustls refuses the message.
    let mut io = connect(server.address());
    io.write_all(TLS12).unwrap();
    while !record(&io).unwrap().ends_with(SERVER_HELLO_DONE) {}
    io.write_all(&finished).unwrap();
    io.read_exact(&mut unexpected).unwrap();
    send_after_alert(&io);
}

#[test]
fn a_client_may_go_on_sending_after_an_alert_that_follows_the_handshake() {
    let certificates = Certificates::new();
    let server = server(&certificates);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (mut tls, mut io) = handshake(server.address(), &certificates, version);
        // Send a record that is not encrypted with a key of this connection.
        io.write_all(&framed(APPLICATION_DATA, &[7; 64])).unwrap();
        let error = loop {
            // Tickets come before the alert.
            match tls.complete_io(&mut io) {
                Ok((read, _)) => assert!(read > 0, "the end without an alert"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("BadRecordMac"), "{error}");
        send_after_alert(&io);
    }
}

/// While no request is open, the connection is parked.
#[test]
fn a_request_in_front_of_a_bad_record_is_not_answered() {
    let certificates = Certificates::new();
    let server = server(&certificates);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (mut tls, mut io) = handshake(server.address(), &certificates, version);
        server.await_metrics(|metrics| metrics.sum("sessile_connections_parked", &[]) == 1);
        let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        tls.writer().write_all(request.as_bytes()).unwrap();
        let mut segment = Vec::new();
        tls.write_tls(&mut segment).unwrap();
        segment.extend(framed(APPLICATION_DATA, &[7; 64]));
        io.write_all(&segment).unwrap();
        while tls.complete_io(&mut io).is_ok() {}
        drop(io);
        let metrics =
            server.await_metrics(|metrics| metrics.sum("sessile_connections_parked", &[]) == 0);
        assert_eq!(metrics.sum("sessile_requests_total", &[]), 0);
    }
}

/// A client that has finished its handshake.
fn handshake(
    server: SocketAddr,
    certificates: &Certificates,
    version: &'static rustls::SupportedProtocolVersion,
) -> (rustls::ClientConnection, TcpStream) {
    let mut roots = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(&certificates.ca).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = NAME.try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut io = connect(server);
    while tls.is_handshaking() {
        tls.complete_io(&mut io).unwrap();
    }
    (tls, io)
}
