//! `sessile balance` with the farm's route keys in front of sessile servers. Labels route returning clients, and
//! the balancer needs no memory for them.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sessile_proto::alert::AlertDescription;
use sessile_proto::hello::{DEFAULT_LIMIT, HelloReader};

use crate::peers::{Cut, NO_FOLDER, Proxy, Sessile, run};
use crate::store::setup::{Farm, Server};

/// Bytes of the identifier that a ticket begins with.
const SRID: usize = 32;

const PATIENCE: Duration = Duration::from_secs(15);

/// The metric for the open connections of each server.
const OPEN: &str = "sessile_balance_server_connections_open";

fn key(arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    run("sessile", command.arg("key").args(arguments), "").succeeded();
}

/// Writes the route part of a farm's key.
pub(crate) fn export(farm: &Farm) -> PathBuf {
    let part = farm.folder().join("route.key");
    export_part(&farm.folder().join("farm.key"), &part);
    part
}

/// Writes the route part of a key file.
pub(crate) fn export_part(whole: &Path, part: &Path) {
    let (file, output) = (whole.to_str().unwrap(), part.to_str().unwrap());
    key(&["export", "--route", "--file", file, "--output", output]);
}

/// A balancer that spreads new clients over the servers, configured from a file.
pub(crate) fn balancer(farm: &Farm, servers: &[Server], balance: &str) -> Sessile {
    let file = farm.folder().join("balance.toml");
    let mut text = format!(
        "[key]\nfile = \"route.key\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
         [balance]\n{balance}\n"
    );
    for (name, server) in ["web1", "web2", "web3"].iter().zip(servers) {
        let address = server.address();
        text += &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
    }
    fs::write(&file, text).unwrap();
    Sessile::balance_configured(&file, Path::new(NO_FOLDER))
}

/// OpenSSL asks for the verdict. Returns the server and the verdict. OpenSSL reads the session from the file,
/// if the file exists, and writes the new session there.
pub(crate) fn visit(address: SocketAddr, version: &str, session: &Path) -> (String, String) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-ign_eof", version, "-connect"]);
    command
        .arg(address.to_string())
        .args(["-servername", "localhost"]);
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    command.arg("-sess_out").arg(session);
    let request = "GET /verdict.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = run("openssl", &mut command, request).answers().remove(0);
    (answer.server, answer.verdict)
}

/// The ClientHello with which OpenSSL offers the session, and the position of the PSK identity.
fn returning_hello(address: SocketAddr, session: &Path) -> (Vec<u8>, usize) {
    let proxy = Proxy::start(address, Cut::Whole);
    let (_, verdict) = visit(proxy.address(), "-tls1_3", session);
    assert_eq!(verdict, "resumed/psk");
    let bytes = proxy.hello();
    let mut reader = HelloReader::new(DEFAULT_LIMIT);
    assert_eq!(reader.push(&bytes), Ok(true));
    let hello = reader.hello().unwrap();
    let identity = hello.pre_shared_key.unwrap().identities().next().unwrap();
    let identity = identity.identity;
    let at = bytes.windows(identity.len()).position(|it| it == identity);
    (bytes.clone(), at.unwrap())
}

/// Sends a ClientHello, and waits for the first byte of the answer.
fn greet(address: SocketAddr, hello: &[u8]) -> TcpStream {
    let mut io = TcpStream::connect(address).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    io.write_all(hello).unwrap();
    io.read_exact(&mut [0]).unwrap();
    io
}

#[test]
fn every_balancer_routes_a_label_to_the_server_that_wrote_it() {
    const CLIENTS: usize = 4;
    let farm = Farm::new("");
    let servers = farm.serve_three();
    export(&farm);
    let balancers = [(); 3].map(|()| balancer(&farm, &servers, "policy = \"round-robin\""));
    let mut homes = Vec::new();
    for (version, verdict) in [("-tls1_3", "resumed/psk"), ("-tls1_2", "resumed/ticket")] {
        for client in 0..CLIENTS {
            let session = farm.folder().join(format!("{client}{version}"));
            let (home, first) = visit(balancers[0].address(), version, &session);
            assert_eq!(first, "full/nothing-offered");
            // The last balancer has learned nothing about this client.
            for balancer in &balancers {
                let came = visit(balancer.address(), version, &session);
                assert_eq!(came, (home.clone(), verdict.to_owned()));
            }
            homes.push(home);
        }
    }
    homes.sort();
    homes.dedup();
    assert_eq!(homes.len(), 3, "new clients are spread");
    for balancer in &balancers {
        let returned = (2 * CLIENTS) as u64;
        let metrics = balancer.await_metrics(|it| it.routed("label", "resumed") >= returned);
        assert_eq!(metrics.routed("label", "resumed"), returned, "{metrics}");
        assert_eq!(metrics.routed("policy", "refused"), 0, "{metrics}");
    }
}

#[test]
fn a_label_with_a_changed_byte_is_no_label() {
    let farm = Farm::new("");
    let servers = farm.serve_three();
    export(&farm);
    let balancer = balancer(&farm, &servers, "policy = \"round-robin\"");
    let session = farm.folder().join("session");
    visit(balancer.address(), "-tls1_3", &session);
    let (hello, at) = returning_hello(balancer.address(), &session);
    for byte in 0..SRID {
        let mut changed = hello.clone();
        changed[at + byte] ^= 1;
        greet(balancer.address(), &changed);
    }
    let metrics =
        balancer.await_metrics(|metrics| metrics.routed("address", "refused") == SRID as u64);
    // So far, only the client of `returning_hello` has offered an unchanged identity.
    assert_eq!(metrics.routed("label", "resumed"), 1, "{metrics}");
    let mut changed = hello.clone();
    changed[at + SRID] ^= 1;
    greet(balancer.address(), &changed);
    balancer.await_metrics(|metrics| metrics.routed("label", "refused") == 1);
    greet(balancer.address(), &hello);
    balancer.await_metrics(|metrics| metrics.routed("label", "resumed") == 2);
}

/// The hello as one message of `len` bytes. Padding (RFC 7685) before the other extensions fills the message up
/// to this length.
pub(crate) fn padded(hello: &[u8], len: usize) -> Vec<u8> {
    let message = &hello[5..];
    let suites = 4 + 2 + 32 + 1 + usize::from(message[4 + 2 + 32]);
    let suites_len = u16::from_be_bytes([message[suites], message[suites + 1]]);
    let compression = suites + 2 + usize::from(suites_len);
    let extensions = compression + 1 + usize::from(message[compression]);
    let (before, after) = message.split_at(extensions);
    let padding = len - message.len() - 4;
    let number = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let extension = [&[0, 21], &number(padding)[..], &vec![0; padding]].concat();
    let extensions = number(after.len() - 2 + extension.len());
    let mut padded = [before, &extensions, &extension, &after[2..]].concat();
    padded[2..4].copy_from_slice(&number(len - 4));
    padded
}

/// A message, split into records with `size` bytes each.
pub(crate) fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    let fragments = message.chunks(size);
    let records = fragments.flat_map(|fragment| {
        let len = u16::try_from(fragment.len()).unwrap().to_be_bytes();
        [&[22, 3, 1], &len[..], fragment].concat()
    });
    records.collect()
}

#[test]
fn a_long_hello_routes_in_any_pieces_and_a_too_long_hello_is_turned_away() {
    const LIMIT: usize = 16 * 1024;
    let farm = Farm::new("");
    let servers = farm.serve_three();
    export(&farm);
    let balancer = balancer(&farm, &servers, "policy = \"round-robin\"");
    let session = farm.folder().join("session");
    visit(balancer.address(), "-tls1_2", &session);
    let proxy = Proxy::start(balancer.address(), Cut::Whole);
    visit(proxy.address(), "-tls1_2", &session);
    let hello = proxy.hello();
    // The size of a hello with post-quantum key shares, and the largest accepted size.
    for len in [2_000, LIMIT] {
        let before = balancer.await_metrics(|metrics| metrics.sum(OPEN, &[]) == 0);
        let message = padded(&hello, len);
        // The server's TLS library accepts at most 64 KiB of records, and each record adds five bytes.
        let smallest = len.div_ceil(2_000);
        let sent = [smallest, 100, LIMIT].map(|size| in_records(&message, size));
        for sent in &sent {
            greet(balancer.address(), sent);
        }
        // Send the last form again, with one byte in each segment.
        let mut io = TcpStream::connect(balancer.address()).unwrap();
        io.set_nodelay(true).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        for byte in &sent[2] {
            io.write_all(&[*byte]).unwrap();
        }
        io.read_exact(&mut [0]).unwrap();
        let wanted = before.routed("label", "resumed") + 4;
        balancer.await_metrics(|metrics| metrics.routed("label", "resumed") == wanted);
    }
    // The label also routes a hello in records of one byte. The server refuses this hello, and the client gets
    // the alert.
    let mut io = TcpStream::connect(balancer.address()).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    let most = in_records(&padded(&hello, LIMIT), 1);
    io.write_all(&most).unwrap();
    let mut alert = [0; 7];
    io.read_exact(&mut alert).unwrap();
    assert_eq!(alert[..1], [21]);
    balancer.await_metrics(|metrics| metrics.routed("label", "failed") == 1);
    for size in [1, LIMIT] {
        let mut io = TcpStream::connect(balancer.address()).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        // The balancer may close the connection before the client has sent everything.
        let _ = io.write_all(&in_records(&padded(&hello, 17 * 1024), size));
        let mut alert = [0; 7];
        io.read_exact(&mut alert).unwrap();
        assert_eq!(alert, AlertDescription::IllegalParameter.record());
    }
    let metrics = balancer.await_metrics(|metrics| metrics.turned_away("bad-hello") == 2);
    assert_eq!(metrics.routed("policy", "failed"), 0, "{metrics}");
}

#[test]
fn one_labelled_ticket_cannot_overload_a_server() {
    const SHOWN: u64 = 180;
    let farm = Farm::new("");
    let servers = ["web1", "web2"].map(|name| farm.serve(name));
    export(&farm);
    let balancer = balancer(&farm, &servers, "policy = \"least-connections\"");
    let session = farm.folder().join("session");
    let (home, _) = visit(balancer.address(), "-tls1_3", &session);
    let (hello, _) = returning_hello(balancer.address(), &session);
    balancer.await_metrics(|metrics| metrics.sum(OPEN, &[]) == 0);
    let _held: Vec<_> = (0..SHOWN)
        .map(|_| greet(balancer.address(), &hello))
        .collect();
    let metrics = balancer.metrics();
    let at_home = metrics.sum(OPEN, &[("server", &home)]);
    assert_eq!(metrics.sum(OPEN, &[]), SHOWN, "{metrics}");
    // A label routes up to 64 connections to a server. Beyond 64, the limit is 1.25 times the average of the
    // servers.
    let bound = SHOWN * 5 / 8 + 1;
    assert!((65..=bound).contains(&at_home), "{metrics}");
    // The other server resumes the session, too, because both servers have the farm's ticket key.
    assert_eq!(
        metrics.routed("label", "resumed") + metrics.routed("policy", "resumed"),
        SHOWN + 1,
        "{metrics}"
    );
}

#[test]
fn a_client_whose_labelled_server_is_gone_resumes_at_another_server() {
    let farm = Farm::new("");
    let mut servers = Vec::from(["web1", "web2"].map(|name| farm.serve(name)));
    export(&farm);
    let balancer = balancer(&farm, &servers, "policy = \"round-robin\"");
    let session = farm.folder().join("session");
    let (home, _) = visit(balancer.address(), "-tls1_3", &session);
    let at = usize::from(home == "web2");
    servers.remove(at).peer.kill();
    for _ in 0..2 {
        let (other, verdict) = visit(balancer.address(), "-tls1_3", &session);
        assert_ne!(other, home);
        assert_eq!(verdict, "resumed/psk");
    }
}

#[test]
fn a_reload_applies_a_rotated_key() {
    let farm = Farm::new("");
    let server = [farm.serve("web1")];
    export(&farm);
    let balancer = balancer(&farm, &server, "");
    let file = farm.folder().join("farm.key");
    key(&["rotate", "--compromised", "--file", file.to_str().unwrap()]);
    server[0].peer.hang_up();
    crate::peers::eventually("the server has the new key", || {
        server[0].peer.said().contains("farm key reloaded")
    });
    let session = farm.folder().join("session");
    for expected in ["full/nothing-offered", "resumed/psk"] {
        let (_, verdict) = visit(balancer.address(), "-tls1_3", &session);
        assert_eq!(verdict, expected);
    }
    // The balancer cannot read the label, but knows the client's address.
    balancer.await_metrics(|metrics| metrics.routed("address", "resumed") == 1);
    export(&farm);
    let said = balancer.reload();
    assert!(said.contains("configuration and key reloaded"), "{said}");
    let (_, verdict) = visit(balancer.address(), "-tls1_3", &session);
    assert_eq!(verdict, "resumed/psk");
    balancer.await_metrics(|metrics| metrics.routed("label", "resumed") == 1);
}

#[test]
fn a_balancer_without_a_state_folder_logs_the_consequences() {
    let farm = Farm::new("");
    let server = farm.serve("web1");
    let without = Sessile::balance(&[server.address()], &[]);
    let line = without.await_line("ticket labels are not read");
    assert!(line.contains("sessile key export --route"), "{line}");
    // Without a state folder, the balancer also has no API token.
    without.await_line("the API refuses all changes");
    let (status, _) = without.api("POST /api/balancer/servers/a", Some(""), "{}");
    assert_eq!(status, 403);

    let part = export(&farm);
    let part = part.to_str().unwrap();
    let with = Sessile::balance(&[server.address()], &["--key", part]);
    with.await_line("the route key is loaded");
}
