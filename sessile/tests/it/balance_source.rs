//! `sessile balance` without an address table, in front of servers whose TLS 1.3 tickets have no stable bytes.
//! The policy `source` places each source address on the same server again, so returning clients resume.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;

use crate::peers::{Certificates, NAME, Peer, Sessile, openssl, run};

/// Source addresses, from 127.0.0.2 on.
const SOURCES: usize = 12;

/// Number of returns of each client.
const RETURNS: usize = 3;

/// A client at each of several loopback addresses. Each client prints a line with one digit for each visit, and
/// 1 means resumed.
const PYTHON: &str = "
import socket, ssl, sys
port, ca, name, sources, returns = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.minimum_version = ssl.TLSVersion.TLSv1_3
for last in range(2, 2 + int(sources)):
    session = None
    for _ in range(1 + int(returns)):
        source = (f'127.0.0.{last}', 0)
        with socket.create_connection(('127.0.0.1', int(port)), 30, source) as tcp:
            with context.wrap_socket(tcp, server_hostname=name, session=session) as tls:
                tls.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
                while tls.recv(4096):
                    pass
                print(int(tls.session_reused), end='')
                session = tls.session
    print()
";

/// Two servers that keep their TLS 1.3 sessions in a cache. The tickets are random numbers.
fn servers(certificates: &Certificates) -> [Peer; 2] {
    [(); 2].map(|()| openssl(certificates, &["-tls1_3", "-no_ticket", "-www"]))
}

/// A balancer that learns nothing.
fn balancer(certificates: &Certificates, servers: &[Peer], policy: &str) -> Sessile {
    let mut text = format!(
        "[session]\nmax-entries = 0\n[key]\nfile = \"none\"\n[[listener]]\n\
         address = \"127.0.0.1:0\"\nrole = \"balance\"\n[balance]\npolicy = \"{policy}\"\nhealth = \"off\"\n"
    );
    for (name, server) in ('a'..='z').zip(servers) {
        let address = server.address();
        text += &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
    }
    let file = certificates.folder().join("balance.toml");
    fs::write(&file, text).unwrap();
    Sessile::balance_configured(&file, certificates.folder())
}

fn visits(balancer: SocketAddr, certificates: &Certificates) -> Vec<String> {
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON, &balancer.port().to_string()]);
    command.arg(&certificates.ca);
    command.args([NAME, &SOURCES.to_string(), &RETURNS.to_string()]);
    let ran = run("python3", &mut command, "").succeeded();
    ran.stdout.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn the_policy_returns_clients_of_servers_without_key_names() {
    let certificates = Certificates::new();
    let servers = servers(&certificates);
    let balancer = balancer(&certificates, &servers, "source");
    let expected = format!("0{}", "1".repeat(RETURNS));
    let came = visits(balancer.address(), &certificates);
    assert_eq!(came, vec![expected; SOURCES]);
    let resumed = (SOURCES * RETURNS) as u64;
    let metrics = balancer.await_metrics(|it| it.routed("policy", "resumed") >= resumed);
    assert_eq!(metrics.routed("policy", "resumed"), resumed, "{metrics}");
    for name in ["a", "b"] {
        let server = balancer.await_server(name, |server| server["outcomes"]["resumed"] != 0);
        assert_eq!(server["key_names"], json!([]), "{server}");
    }
}

#[test]
fn round_robin_does_not_return_clients_to_their_server() {
    let certificates = Certificates::new();
    let servers = servers(&certificates);
    let balancer = balancer(&certificates, &servers, "round-robin");
    let came = visits(balancer.address(), &certificates).concat();
    assert_eq!(came.len(), SOURCES * (1 + RETURNS));
    let resumed = came.matches('1').count();
    assert!(resumed < SOURCES * RETURNS / 2, "{came}");
}
