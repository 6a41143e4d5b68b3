//! `sessile balance` with pools for protocols (ALPN).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::balance_servers::{named, reload, server, start, write};
use crate::peers::{Certificates, NAME, Peer, Sessile, nginx, openssl, run};

const PATIENCE: Duration = Duration::from_secs(15);

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

/// Connects, and requires that the client and its server agree on this protocol. Returns the client's output.
fn negotiate(address: SocketAddr, name: &str, offered: &str, agreed: &str) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-servername", name, "-alpn", offered]);
    command.arg("-connect").arg(address.to_string());
    let ran = run("openssl", &mut command, "").succeeded();
    let line = format!("ALPN protocol: {agreed}");
    assert_eq!(ran.count(&line), 1, "{}", ran.stdout);
}

/// The number of connections that each of these servers got.
fn connections<const N: usize>(balancer: &Sessile, servers: [&str; N]) -> [u64; N] {
    let metrics = balancer.metrics();
    let made = "sessile_balance_server_connections_total";
    servers.map(|name| metrics.sum(made, &[("server", name)]))
}

fn pool(name: &str, lines: &str) -> String {
    format!("[[balance.pool]]\nname = \"{name}\"\n{lines}\n")
}

#[test]
fn the_protocols_of_a_client_select_its_pool() {
    let certificates = Certificates::new();
    let web = named(&certificates, "web");
    let acme = openssl(&certificates, &["-alpn", "acme-tls/1"]);
    let grpc = openssl(&certificates, &["-alpn", "h2"]);
    let database = openssl(&certificates, &["-alpn", "postgresql"]);
    let in_pool =
        |name: &str, peer: &Peer| server(name, peer.address(), &format!("pool = \"{name}\""));
    let tables = [
        pool("web", "names = [\"shop.test\"]"),
        pool("acme", "alpn = \"acme-tls/1\""),
        pool("grpc", "names = [\"shop.test\"]\nalpn = \"h2\""),
        pool("database", "alpn = \"postgresql\""),
        in_pool("web", &web),
        in_pool("acme", &acme),
        in_pool("grpc", &grpc),
        in_pool("database", &database),
    ];
    let folder = certificates.folder();
    let balancer = start(
        folder,
        "unknown-name = \"refuse\"\nhealth = \"off\"",
        &tables,
    );
    let address = balancer.address();
    for (name, offered, agreed) in [
        ("shop.test", "http/1.1", "http/1.1"),
        ("shop.test", "acme-tls/1", "acme-tls/1"),
        ("other.test", "acme-tls/1", "acme-tls/1"),
        ("shop.test", "h2,http/1.1", "h2"),
        ("shop.test", "postgresql", "postgresql"),
    ] {
        negotiate(address, name, offered, agreed);
    }
    let servers = ["web", "acme", "grpc", "database"];
    assert_eq!(connections(&balancer, servers), [1, 2, 1, 1]);

    // No pool takes HTTP/2 for this name.
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-servername",
        "other.test",
        "-alpn",
        "h2",
        "-connect",
    ]);
    let ran = run("openssl", command.arg(address.to_string()), "");
    assert!(ran.stderr.contains("unrecognized name"), "{}", ran.stderr);
    balancer.await_metrics(|metrics| metrics.turned_away("unknown-name") == 1);

    let mut tables = tables;
    tables[2] = pool("grpc", "alpn = \"h2\"");
    write(
        folder,
        "unknown-name = \"refuse\"\nhealth = \"off\"",
        &tables,
    );
    reload(&balancer);
    negotiate(address, "other.test", "h2", "h2");
    assert_eq!(connections(&balancer, ["grpc"]), [2]);
    assert_eq!(balancer.snapshot()["pools"][3]["alpn"], "h2");
}

#[test]
fn curl_reaches_the_pool_for_http2_only_if_it_offers_http2() {
    let certificates = Certificates::new();
    let servers = ["one", "two"].map(|name| named(&certificates, name));
    let [one, two] = servers.each_ref().map(Peer::address);
    let tables = [
        pool("two", "alpn = \"h2\""),
        server("one", one, ""),
        server("two", two, "pool = \"two\""),
    ];
    let balancer = start(certificates.folder(), "health = \"off\"", &tables);
    let port = balancer.address().port();
    for (offer, expected) in [("--http1.1", "i am one\n"), ("--http2", "i am two\n")] {
        let mut command = Command::new("curl");
        command
            .args(["-sS", offer, "--cacert"])
            .arg(&certificates.ca);
        command.args(["--resolve", &format!("{NAME}:{port}:127.0.0.1")]);
        command.arg(format!("https://{NAME}:{port}/who"));
        let ran = run("curl", &mut command, "").succeeded();
        assert_eq!(ran.stdout, expected);
    }
}

#[test]
fn checks_offer_the_protocol_of_the_pool() {
    let certificates = Certificates::new();
    // nginx refuses handshakes that offer only protocols that it does not know.
    let web = nginx(&certificates, "");
    let database = openssl(&certificates, &["-alpn", "postgresql-like"]);
    let tables = [
        pool("right", "alpn = \"postgresql-like\""),
        pool("wrong", "alpn = \"unknown\""),
        pool("acme", "alpn = \"acme-tls/1\""),
        server("right", database.address(), "pool = \"right\""),
        server("wrong", web.address(), "pool = \"wrong\""),
        server("acme", web.address(), "pool = \"acme\""),
    ];
    let settings = "health = \"tls\"\nhealth-interval = \"50ms\"";
    let balancer = start(certificates.folder(), settings, &tables);
    let down = balancer.await_server("wrong", |server| server["state"] == "down");
    let error = down["check_failed"]["error"].as_str().unwrap();
    assert!(error.contains("no_application_protocol"), "{error}");
    for name in ["right", "acme"] {
        // The balancer finds key names only after a check has passed.
        let checked = balancer.await_server(name, |server| server["key_names"][0].is_string());
        assert_eq!(checked["state"], "up", "{checked}");
        assert_eq!(
            checked["check_failed"],
            serde_json::Value::Null,
            "{checked}"
        );
    }
}

/// The answer of a server to SSLRequest.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Close,
    Refusal,
    Silence,
}

/// Accepts connections, reads an SSLRequest and answers.
fn answering(answer: Answer) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut io in listener.incoming().flatten() {
            let mut request = [0; SSL_REQUEST.len()];
            io.read_exact(&mut request).unwrap();
            assert_eq!(request, SSL_REQUEST);
            match answer {
                Answer::Close => {}
                Answer::Refusal => io.write_all(b"N").unwrap(),
                Answer::Silence => open.push(io),
            }
        }
    });
    address
}

/// A balancer with a pool for PostgreSQL.
fn balance_databases(certificates: &Certificates, addresses: &[SocketAddr]) -> Sessile {
    let mut tables = vec![pool("database", "alpn = \"postgresql\"")];
    let servers = ["a", "b"].into_iter().zip(addresses);
    tables.extend(servers.map(|(name, address)| server(name, *address, "pool = \"database\"")));
    let settings = "policy = \"round-robin\"\nhealth = \"off\"\nconnect-timeout = \"100ms\"";
    start(certificates.folder(), settings, &tables)
}

fn connect(balancer: &Sessile) -> TcpStream {
    let io = TcpStream::connect(balancer.address()).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    io
}

/// Sends a request, and reads the answer of one byte.
fn ask(io: &mut TcpStream, request: [u8; 8]) -> u8 {
    io.write_all(&request).unwrap();
    let mut answer = [0];
    io.read_exact(&mut answer).unwrap();
    answer[0]
}

#[test]
fn only_a_refusal_ejects_a_database_that_took_the_connection() {
    let certificates = Certificates::new();
    for (answer, state) in [
        (Answer::Close, "up"),
        (Answer::Silence, "up"),
        (Answer::Refusal, "ejected"),
    ] {
        let balancer = balance_databases(&certificates, &[answering(answer)]);
        let mut io = connect(&balancer);
        assert_eq!(ask(&mut io, SSL_REQUEST), b'S');
        io.write_all(HELLO).unwrap();
        let _ = io.read_to_end(&mut Vec::new());
        let failures = "sessile_balance_server_failures_total";
        balancer.await_metrics(|it| it.sum(failures, &[]) == 1 && it.turned_away("no-server") == 1);
        let server = balancer.await_server("a", |_| true);
        assert_eq!(server["state"], state, "{answer:?}");
    }
}

#[test]
fn a_client_asks_for_gssapi_once_and_sends_its_hello_in_time() {
    let certificates = Certificates::new();
    let balancer = balance_databases(&certificates, &[answering(Answer::Close)]);
    let mut eager = connect(&balancer);
    assert_eq!(ask(&mut eager, GSSENC_REQUEST), b'N');
    eager.write_all(&GSSENC_REQUEST).unwrap();
    let _ = eager.read_to_end(&mut Vec::new());
    balancer.await_metrics(|metrics| metrics.turned_away("bad-hello") == 1);

    let mut silent = connect(&balancer);
    assert_eq!(ask(&mut silent, SSL_REQUEST), b'S');
    let _ = silent.read_to_end(&mut Vec::new());
    balancer.await_metrics(|metrics| metrics.turned_away("deadline") == 1);
}

#[test]
fn a_postgresql_client_without_a_pool_is_turned_away_and_logged() {
    let certificates = Certificates::new();
    let web = named(&certificates, "web");
    let tables = [server("web", web.address(), "")];
    let balancer = start(certificates.folder(), "health = \"off\"", &tables);
    for _ in 0..2 {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-starttls", "postgres", "-servername", NAME]);
        let ran = run(
            "openssl",
            command.arg("-connect").arg(balancer.address().to_string()),
            "",
        );
        assert!(ran.stderr.contains("unrecognized name"), "{}", ran.stderr);
    }
    balancer.await_metrics(|metrics| metrics.turned_away("unknown-name") == 2);
    let line = "a PostgreSQL client came, but no pool has PostgreSQL servers";
    balancer.await_line(line);
    assert_eq!(balancer.count_lines(line), 1);
    // The server got no bytes that are not TLS.
    assert_eq!(connections(&balancer, ["web"]), [0]);
}
