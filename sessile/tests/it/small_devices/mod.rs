//! Clients that ask for small records, and clients that can only read short ticket nonces.

mod libraries;
mod resumption;
mod wire;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use sessile_proto::hello::ClientHello;
use tempfile::TempDir;

use crate::peers::{Certificates, Metrics, NAME, Ran, Sessile, run};
use wire::Wire;

/// A ClientHello as OpenSSL sends it.
const HELLO: &[u8] = include_bytes!("../../../../proto/src/testdata/client-openssl-tls13-full.bin");

/// A setting with which tickets name sessions in the session table.
const STORED: &str = "[connection]\npurge-on-reclaim = true\n";

/// A file server with its certificates and folders.
struct Devices {
    certificates: Certificates,
    server: Sessile,
    state: TempDir,
    _root: TempDir,
}

impl Devices {
    /// `session`: lines of `[session]` and of later sections.
    fn new(session: &str) -> Self {
        Self::with_client_auth(session, "")
    }

    /// `client_auth`: a line of `[[site]]`.
    fn with_client_auth(session: &str, client_auth: &str) -> Self {
        let certificates = Certificates::new();
        let [state, root] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::write(root.path().join("large"), large()).unwrap();
        let config = state.path().join("sessile.toml");
        let text = format!(
            "[server]\nname = \"web1\"\nworkers = 2\n[session]\n{session}\
             [[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[site]]\n{client_auth}certificates = [{{ chain = {:?}, key = {:?} }}]\n\
             [[site.route]]\npath = \"/\"\nfiles = {:?}\n",
            certificates.chain,
            certificates.key,
            root.path(),
        );
        fs::write(&config, text).unwrap();
        Self {
            server: Sessile::serve_configured(&config, state.path()),
            certificates,
            state,
            _root: root,
        }
    }

    /// Asks for the large file with `openssl s_client`, which keeps its session in a file.
    fn openssl(&self, server: SocketAddr, arguments: &[&str], session: &Path) -> Ran {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-ign_eof", "-servername", NAME, "-connect"]);
        command.arg(server.to_string()).args(arguments);
        command.args(["-verify_return_error", "-CAfile"]);
        command.arg(&self.certificates.ca);
        if session.exists() {
            command.arg("-sess_in").arg(session);
        }
        command.arg("-sess_out").arg(session);
        run("openssl", &mut command, &request()).succeeded()
    }
}

/// The text of a large file, which fills several records even of the maximum size.
fn large() -> String {
    (0..10_000).map(|at| format!("{at:5}\n")).collect()
}

fn request() -> String {
    format!("GET /large HTTP/1.1\r\nhost: {NAME}\r\nsessile-probe: 1\r\nconnection: close\r\n\r\n")
}

/// The value of a response header, in the output of a client that has printed the response.
///
/// # Panics
///
/// If the body is not the large file.
fn header<'a>(ran: &'a Ran, name: &str) -> &'a str {
    assert!(ran.stdout.contains(&large()), "{}", ran.stdout);
    let mut lines = ran.stdout.lines();
    let value = lines.find_map(|line| line.strip_prefix(name));
    value.unwrap_or_else(|| panic!("no {name} in {}", ran.stdout))
}

fn verdict(ran: &Ran) -> &str {
    header(ran, "sessile-verdict: ")
}

#[test]
fn openssl_gets_no_record_above_its_limit() {
    let devices = Devices::new("");
    let wire = Wire::start(devices.server.address());
    for limit in [512, 1024, 2048, 4096] {
        for (version, resumed) in [("-tls1_2", "resumed/ticket"), ("-tls1_3", "resumed/psk")] {
            let what = format!("{limit} {version}");
            let session = devices.state.path().join(format!("{limit}{version}"));
            let limit_text = limit.to_string();
            let arguments = [version, "-maxfraglen", &limit_text];
            for expected in ["full/nothing-offered", resumed, resumed] {
                let ran = devices.openssl(wire.address(), &arguments, &session);
                assert_eq!(verdict(&ran), expected, "{what}");
                let records = wire.records();
                records.assert_limit(limit, version == "-tls1_3", &what);
            }
        }
    }
}

#[test]
fn a_client_without_a_limit_gets_large_records() {
    let devices = Devices::new("");
    let wire = Wire::start(devices.server.address());
    for version in ["-tls1_2", "-tls1_3"] {
        let session = devices.state.path().join(version);
        devices.openssl(wire.address(), &[version], &session);
        let records = wire.records();
        assert!(records.encrypted > 8192, "{version}: {records:?}");
    }
}

#[test]
fn http2_responses_have_small_records() {
    // Frames: SETTINGS, the request, and GOAWAY, so that the server ends the connection. The
    // request's headers are literals without Huffman coding (RFC 7541, section 6.2.2).
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let headers = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", NAME),
        (":path", "/large"),
        ("sessile-probe", "1"),
    ];
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    let block_len = u8::try_from(block.len()).unwrap();
    request.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    request.extend([0, 0, block_len, 1, 5, 0, 0, 0, 1]);
    request.extend(block);
    request.extend([0, 0, 8, 7, 0, 0, 0, 0, 0]);
    request.extend([0; 8]);
    let request = String::from_utf8(request).unwrap();

    let devices = Devices::new("");
    let wire = Wire::start(devices.server.address());
    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-alpn", "h2", "-servername", NAME]);
        command.args([version, "-maxfraglen", "512", "-connect"]);
        command.arg(wire.address().to_string());
        command.arg("-CAfile").arg(&devices.certificates.ca);
        let ran = run("openssl", &mut command, &request);
        // Frame headers separate the parts of the file, so compare only the end of the file.
        assert!(
            ran.stdout.contains("\n 9999\n"),
            "{version}: {}",
            ran.stdout
        );
        wire.records()
            .assert_limit(512, version == "-tls1_3", version);
    }
}

#[test]
fn gnutls_gets_records_within_its_limit() {
    let devices = Devices::new("");
    let wire = Wire::start(devices.server.address());
    for (versions, resumed, tls13) in [
        ("NORMAL:-VERS-TLS1.3", "resumed/ticket", false),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.3", "resumed/psk", true),
    ] {
        for limit in [512, 700, 4096] {
            let mut command = Command::new("gnutls-cli");
            // GnuTLS sends `max_fragment_length` and `record_size_limit`. Only `record_size_limit`
            // has the exact value.
            command.args(["--resume", "--waitresumption", "--recordsize"]);
            command.args([&limit.to_string(), "--priority", versions]);
            command.args(["--sni-hostname", NAME, "--verify-hostname", NAME]);
            command.arg("--x509cafile").arg(&devices.certificates.ca);
            command.args(["--port", &wire.address().port().to_string(), "127.0.0.1"]);
            let ran = run("gnutls-bin", &mut command, &request()).succeeded();
            let what = format!("{versions} {limit}");
            assert_eq!(verdict(&ran), resumed, "{what}");
            let first = wire.records();
            assert!(
                first.clear <= limit && first.encrypted <= limit + 24,
                "{what}"
            );
            wire.records().assert_limit(limit, tls13, &what);
        }
    }
}

/// OpenSSL's ClientHello with one more extension.
fn hello_with(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut extension = kind.to_be_bytes().to_vec();
    extension.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    extension.extend(body);
    let mut hello = [HELLO, &extension].concat();
    // The session ID follows the record header, the message header, the version and the random.
    let session_id = 5 + 4 + 2 + 32;
    let suites = session_id + 1 + usize::from(hello[session_id]);
    let suites_len = usize::from(u16::from_be_bytes([hello[suites], hello[suites + 1]]));
    let compression = suites + 2 + suites_len;
    let extensions = compression + 1 + usize::from(hello[compression]);
    for at in [3, 7, extensions] {
        let len = u16::from_be_bytes([hello[at], hello[at + 1]]);
        let longer = len + u16::try_from(extension.len()).unwrap();
        hello[at..at + 2].copy_from_slice(&longer.to_be_bytes());
    }
    ClientHello::parse(&hello[5..]).unwrap();
    hello
}

#[test]
fn an_illegal_limit_ends_the_handshake_with_an_alert() {
    const ILLEGAL_PARAMETER: [u8; 7] = [21, 3, 3, 0, 2, 2, 47];
    const MAX_FRAGMENT_LENGTH: u16 = 1;
    const RECORD_SIZE_LIMIT: u16 = 28;
    let devices = Devices::new("");
    let address = devices.server.address();
    let answer = |kind, body: &[u8]| {
        let mut io = TcpStream::connect(address).unwrap();
        io.write_all(&hello_with(kind, body)).unwrap();
        let mut answer = [0; 7];
        io.read_exact(&mut answer).unwrap();
        answer
    };
    let illegal: [(u16, &[u8]); 5] = [
        (RECORD_SIZE_LIMIT, &[0, 63]),
        (RECORD_SIZE_LIMIT, &[0, 0]),
        (MAX_FRAGMENT_LENGTH, &[0]),
        (MAX_FRAGMENT_LENGTH, &[5]),
        (MAX_FRAGMENT_LENGTH, &[255]),
    ];
    for (kind, body) in illegal {
        assert_eq!(answer(kind, body), ILLEGAL_PARAMETER, "{kind} {body:?}");
    }
    let refused =
        |metrics: &Metrics| metrics.sum("sessile_handshake_failures_total", &[("cause", "tls")]);
    let metrics = devices
        .server
        .await_metrics(|metrics| refused(metrics) >= 5);
    assert_eq!(refused(&metrics), 5, "{metrics}");
    let legal: [(u16, &[u8]); 2] = [(RECORD_SIZE_LIMIT, &[0, 64]), (MAX_FRAGMENT_LENGTH, &[1])];
    for (kind, body) in legal {
        let [content, ..] = answer(kind, body);
        assert_eq!(content, 22, "{kind} {body:?}");
    }
}
