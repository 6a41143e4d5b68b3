//! Three servers that share nothing, behind a balancer with round robin. The balancer routes nearly
//! all returning clients to their server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::peers::{Certificates, NAME, Peer, Resumption, Sessile, Web, run, s_client};

/// New clients of a farm. The number is not a multiple of the number of servers.
const CLIENTS: usize = 4;

/// Returns of each client.
const RETURNS: usize = 5;

fn farm(certificates: &Certificates, web: Web, resumption: Resumption) -> [Peer; 3] {
    [(); 3].map(|()| web.start(certificates, resumption))
}

/// A balancer that has learned the key names of its servers.
fn balancer(servers: &[Peer], resumption: Resumption) -> Sessile {
    let addresses: Vec<_> = servers.iter().map(Peer::address).collect();
    let arguments = ["--policy", "round-robin", "--health", "tls"];
    let balancer = Sessile::balance(&addresses, &arguments);
    if resumption != Resumption::SessionId {
        for name in ["a", "b", "c"] {
            balancer.await_server(name, |server| server["key_names"] != json!([]));
        }
    }
    balancer
}

/// The number of a client's returns that resume, as openssl reports.
fn returns(address: SocketAddr, session: &Path, resumption: Resumption) -> usize {
    let version = match resumption {
        Resumption::Psk => "-tls1_3",
        Resumption::SessionId | Resumption::Ticket => "-tls1_2",
    };
    let session = session.to_str().expect("UTF-8");
    let first = s_client(address, None, &[version, "-sess_out", session]);
    assert!(first.contains("\nNew, "), "{first}");
    let again = [version, "-sess_in", session, "-sess_out", session];
    (0..RETURNS)
        .filter(|_| s_client(address, None, &again).contains("\nReused, "))
        .count()
}

fn every_client_returns_to_its_server(web: Web, resumption: Resumption) {
    let certificates = Certificates::new();
    let servers = farm(&certificates, web, resumption);
    let balancer = balancer(&servers, resumption);
    let resumed: usize = (0..CLIENTS)
        .map(|n| {
            let session = certificates.folder().join(format!("session-{n}"));
            returns(balancer.address(), &session, resumption)
        })
        .sum();
    assert_eq!(
        resumed,
        CLIENTS * RETURNS,
        "{web:?} {resumption:?}: {}",
        balancer.metrics()
    );
}

macro_rules! every_client_returns_to_its_server {
    ($($test:ident: $web:ident, $resumption:ident;)+) => {$(
        #[test]
        fn $test() {
            every_client_returns_to_its_server(Web::$web, Resumption::$resumption);
        }
    )+};
}

every_client_returns_to_its_server! {
    to_nginx_by_session_id: Nginx, SessionId;
    to_nginx_by_ticket: Nginx, Ticket;
    to_nginx_by_psk: Nginx, Psk;
    to_haproxy_by_session_id: Haproxy, SessionId;
    to_haproxy_by_ticket: Haproxy, Ticket;
    to_haproxy_by_psk: Haproxy, Psk;
    to_apache_by_session_id: Apache, SessionId;
    to_apache_by_ticket: Apache, Ticket;
    to_apache_by_psk: Apache, Psk;
    to_caddy_by_ticket: Caddy, Ticket;
    to_caddy_by_psk: Caddy, Psk;
}

#[test]
fn gnutls_returns_to_its_nginx() {
    for (priority, resumption) in [
        ("NORMAL:-VERS-TLS1.3:%NO_TICKETS", Resumption::SessionId),
        ("NORMAL:-VERS-TLS1.3", Resumption::Ticket),
        ("NORMAL", Resumption::Psk),
    ] {
        let certificates = Certificates::new();
        let servers = farm(&certificates, Web::Nginx, resumption);
        let balancer = balancer(&servers, resumption);
        for _ in 0..CLIENTS {
            let mut command = Command::new("gnutls-cli");
            command.args(["--resume", "--waitresumption", "--priority", priority]);
            command.arg("--x509cafile").arg(&certificates.ca);
            command.args(["--sni-hostname", NAME, "--verify-hostname", NAME]);
            command.args([
                "--port",
                &balancer.address().port().to_string(),
                "127.0.0.1",
            ]);
            let request = format!("HEAD / HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n");
            let ran = run("gnutls-bin", &mut command, &request).succeeded();
            let resumed = ran.count("*** This is a resumed session");
            assert_eq!(resumed, 1, "{resumption:?} {}", ran.stdout);
        }
    }
}

const PYTHON: &str = "
import socket, ssl, sys
port, ca, name, version, returns = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.maximum_version = getattr(ssl.TLSVersion, version)
session = None
for _ in range(1 + int(returns)):
    with socket.create_connection(('127.0.0.1', int(port)), timeout=30) as tcp:
        with context.wrap_socket(tcp, server_hostname=name, session=session) as tls:
            tls.sendall(b'HEAD / HTTP/1.0\\r\\n\\r\\n')
            while tls.recv(4096):
                pass
            print(int(tls.session_reused), end='')
            session = tls.session
";

#[test]
fn python_returns_to_its_nginx() {
    for (version, resumption) in [
        ("TLSv1_2", Resumption::SessionId),
        ("TLSv1_2", Resumption::Ticket),
        ("TLSv1_3", Resumption::Psk),
    ] {
        let certificates = Certificates::new();
        let servers = farm(&certificates, Web::Nginx, resumption);
        let balancer = balancer(&servers, resumption);
        for _ in 0..CLIENTS {
            let mut command = Command::new("python3");
            command.args(["-c", PYTHON, &balancer.address().port().to_string()]);
            command.arg(&certificates.ca);
            command.args([NAME, version, &RETURNS.to_string()]);
            let ran = run("python3", &mut command, "").succeeded();
            let expected = format!("0{}", "1".repeat(RETURNS));
            assert_eq!(ran.stdout, expected, "{resumption:?}");
        }
    }
}
