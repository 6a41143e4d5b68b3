//! Clients that need code in Rust: rustls, curl and Chromium.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::Arc;

use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use super::farm::Farm;
use super::{Connection, Mechanism, Visit};
use crate::peers::{Answer, Browser, NAME, run};

/// The version of a program: the first word of its output that begins with a digit.
pub(super) fn version(package: &str, program: &str, argument: &str) -> String {
    let ran = run(package, Command::new(program).arg(argument), "").succeeded();
    let output = ran.stdout + &ran.stderr;
    let mut words = output.split([' ', '/', '-', '+', '\n']);
    let version = words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    version.expect("a version").to_owned()
}

/// rustls, in this process.
pub(super) fn rustls(mechanism: Mechanism, connections: usize) -> Visit {
    let farm = Farm::start("");
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(&farm.certificates().ca).unwrap();
    roots.add(ca).unwrap();
    let version = match mechanism {
        Mechanism::Psk => &rustls::version::TLS13,
        Mechanism::SessionId | Mechanism::Ticket => &rustls::version::TLS12,
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[version]).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    if mechanism == Mechanism::SessionId {
        config.resumption =
            Resumption::in_memory_sessions(32).tls12_resumption(Tls12Resumption::SessionIdOnly);
    }
    let config = Arc::new(config);
    let connect = |_| {
        let name = ServerName::try_from(NAME).unwrap();
        let tls = ClientConnection::new(Arc::clone(&config), name).unwrap();
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, farm.port())).unwrap();
        let mut stream = StreamOwned::new(tls, tcp);
        let request =
            format!("GET /verdict.json HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (_, body) = response.split_once("\r\n\r\n").expect("a whole head");
        Connection {
            resumed: Some(stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)),
            answer: Answer::parse(body),
        }
    };
    Visit {
        version: locked_version("rustls"),
        connections: (0..connections).map(connect).collect(),
    }
}

/// The version of a crate that these tests are built with.
fn locked_version(name: &str) -> String {
    let lock = include_str!("../../../../Cargo.lock");
    let entry = format!("\nname = \"{name}\"\nversion = \"");
    let (_, rest) = lock.split_once(&entry).expect("a locked crate");
    let (version, _) = rest.split_once('"').expect("a version");
    version.to_owned()
}

/// curl, which keeps sessions from one URL to the next.
pub(super) fn curl(mechanism: Mechanism, connections: usize) -> Visit {
    let farm = Farm::start("");
    let port = farm.port();
    let mut command = Command::new("curl");
    command.args(["-sSv", "--http1.1", "-H", "connection: close"]);
    command.args([
        "--resolve",
        &format!("{NAME}:{port}:{}", Ipv4Addr::LOCALHOST),
    ]);
    command.arg("--cacert").arg(&farm.certificates().ca);
    match mechanism {
        Mechanism::Psk => command.arg("--tlsv1.3"),
        Mechanism::SessionId | Mechanism::Ticket => command.args(["--tls-max", "1.2"]),
    };
    let url = format!("https://{NAME}:{port}/verdict.json");
    command.args(vec![url; connections]);
    let ran = run("curl", &mut command, "").succeeded();
    // curl reports that it offers a session, but not whether the session resumed.
    let mut offered = Vec::new();
    for line in ran.stderr.lines() {
        if line.starts_with("* Connected to ") {
            offered.push(false);
        } else if line.contains("using session ID") {
            *offered.last_mut().expect("a connection") = true;
        }
    }
    let pairs = offered.into_iter().zip(ran.answers());
    Visit {
        version: version("curl", "curl", "--version"),
        connections: pairs
            .map(|(offered, answer)| Connection {
                resumed: Some(offered),
                answer,
            })
            .collect(),
    }
}

/// Chromium, which returns after the servers have closed its idle connections.
pub(super) fn chromium(mechanism: Mechanism, connections: usize) -> Visit {
    const FETCH: &str = "fetch('/verdict.json', {cache: 'no-store'})\
         .then(response => response.text()).then(done, error => done(String(error)))";
    // Chromium prefers tickets. To test session IDs, the servers send no tickets.
    let tickets = mechanism != Mechanism::SessionId;
    let farm = Farm::start(&format!(
        "tickets = {tickets}\n[connection]\nidle-timeout = \"300ms\""
    ));
    let versions: &[_] = match mechanism {
        Mechanism::Psk => &[],
        Mechanism::SessionId | Mechanism::Ticket => &["--ssl-version-max=tls1.2"],
    };
    let browser = Browser::trusting(farm.certificates(), versions);
    let json = format!("https://{NAME}:{}/verdict.json", farm.port());
    browser.open(&json);
    let shown = browser.run("done(document.body.innerText)");
    let mut answers = vec![Answer::parse(shown.as_str().expect("a text"))];
    for _ in 1..connections {
        farm.await_no_connections();
        let fetched = browser.run(FETCH);
        answers.push(Answer::parse(fetched.as_str().expect("a text")));
    }
    Visit {
        version: version("chromium", "chromium", "--version"),
        connections: answers.into_iter().map(Connection::by_server).collect(),
    }
}
