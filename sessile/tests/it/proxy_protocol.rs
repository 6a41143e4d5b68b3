//! PROXY headers with HAProxy and nginx. The client's address passes a proxy in front of sessile,
//! sessile itself, or both.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::peers::{Certificates, NAME, Peer, Sessile, haproxy, nginx_with, run};

const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

const PATIENCE: Duration = Duration::from_secs(15);

/// A client address that only a PROXY header can convey.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 9));

/// A balancer that accepts headers from `trusted`, and sends headers in the form `header` to the
/// server.
fn balancer(server: SocketAddr, header: &str, trusted: &str) -> Sessile {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("balance.toml");
    let text = format!(
        "key.file = 'none'\n\
         [[listener]]\naddress = '127.0.0.1:0'\nrole = 'balance'\n\
         proxy-protocol = true\nproxy-trusted = ['{trusted}']\n\
         [[balance.server]]\nname = 'a'\naddress = '{server}'\nproxy-protocol = '{header}'\n"
    );
    fs::write(&config, text).unwrap();
    Sessile::balance_configured(&config, Path::new("/nonexistent"))
}

/// HAProxy in TCP mode, which sends headers in this form to a server.
fn proxy(certificates: &Certificates, server: SocketAddr, form: &str) -> Peer {
    Peer::start("haproxy", |port| {
        let config = certificates.folder().join(format!("haproxy-{port}.cfg"));
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
             listen tcp\n  bind 127.0.0.1:{port}\n  server a {server} {form}\n"
        );
        fs::write(&config, text).expect("the configuration");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        command
    })
}

/// The body of the response that curl gets from the address [`CLIENT`].
fn fetch(address: SocketAddr, certificates: &Certificates) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--http1.1"]);
    command.arg("--interface").arg(CLIENT.to_string());
    command.arg("--cacert").arg(&certificates.ca);
    command.args(["--resolve", &format!("{NAME}:{}:127.0.0.1", address.port())]);
    command.arg(format!("https://{NAME}:{}/", address.port()));
    let ran = run("curl", &mut command, "").succeeded();
    ran.stdout
}

/// An nginx server that requires a PROXY header and answers with the client's address.
fn nginx_behind(certificates: &Certificates) -> Peer {
    let pair = certificates.nginx_directives();
    nginx_with(certificates.folder(), |port| {
        format!(
            "listen 127.0.0.1:{port} ssl proxy_protocol; {pair}\n\
             location / {{ return 200 $proxy_protocol_addr; }}\n"
        )
    })
}

/// HAProxy, which requires a PROXY header and answers with the client's address and server name.
fn haproxy_behind(certificates: &Certificates) -> Peer {
    let says = "accept-proxy\n  http-request return status 200 content-type text/plain lf-string \
                \"%[src] %[fc_pp_authority]\"";
    haproxy(certificates, says)
}

#[test]
fn nginx_knows_the_client_through_haproxy_and_the_balancer() {
    let certificates = Certificates::new();
    let server = nginx_behind(&certificates);
    for (before, after) in [
        ("send-proxy", "v2"),
        ("send-proxy-v2", "v1"),
        ("send-proxy-v2 proxy-v2-options crc32c,authority", "v2"),
    ] {
        let balancer = balancer(server.address(), after, "127.0.0.0/8");
        let proxy = proxy(&certificates, balancer.address(), before);
        let said = fetch(proxy.address(), &certificates);
        assert_eq!(said, CLIENT.to_string(), "{before}, {after}");
        let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == 1);
        assert_eq!(metrics.routed("policy", "not-offered"), 1, "{metrics}");
    }
}

#[test]
fn haproxy_receives_the_clients_address_and_server_name() {
    let certificates = Certificates::new();
    let server = haproxy_behind(&certificates);
    let folder = tempfile::tempdir().unwrap();
    for (form, expected) in [
        ("v1", format!("{CLIENT} ")),
        ("v2", format!("{CLIENT} {NAME}")),
    ] {
        let config = folder.path().join(form);
        let text = format!(
            "key.file = 'none'\n[[listener]]\naddress = '127.0.0.1:0'\nrole = 'balance'\n\
             [[balance.server]]\nname = 'a'\naddress = '{}'\nproxy-protocol = '{form}'\n",
            server.address()
        );
        fs::write(&config, text).unwrap();
        let balancer = Sessile::balance_configured(&config, Path::new("/nonexistent"));
        assert_eq!(fetch(balancer.address(), &certificates), expected);
    }
}

#[test]
fn a_server_behind_haproxy_logs_the_addresses_of_its_clients() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("serve.toml");
    let text = format!(
        "key.file = 'none'\n\
         [[listener]]\naddress = '127.0.0.1:0'\nproxy-protocol = true\nproxy-trusted = ['127.0.0.1']\n\
         [[site]]\ncertificates = [{{ chain = '{}', key = '{}' }}]\n\
         [[site.route]]\npath = '/'\nrespond = 'here'\n",
        certificates.chain.display(),
        certificates.key.display(),
    );
    fs::write(&config, text).unwrap();
    let server = Sessile::serve_configured(&config, folder.path());
    for form in ["send-proxy", "send-proxy-v2"] {
        let proxy = proxy(&certificates, server.address(), form);
        assert_eq!(fetch(proxy.address(), &certificates), "here");
        server.await_line(&format!("{CLIENT}"));
    }
    // The headers of the proxy's health checks name no client.
    let checked = proxy(
        &certificates,
        server.address(),
        "check check-ssl verify none send-proxy-v2 inter 50ms",
    );
    assert_eq!(fetch(checked.address(), &certificates), "here");
    let metrics = server.metrics();
    let refused = [("cause", "bad-proxy-header")];
    let failures = "sessile_handshake_failures_total";
    assert_eq!(metrics.sum(failures, &refused), 0, "{metrics}");
}

/// Sends data, and waits for the end of the connection or for a reset.
fn send(address: SocketAddr, bytes: &[u8]) {
    let mut io = TcpStream::connect(address).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    // The connection may be refused before all data is sent.
    let _ = io.write_all(bytes);
    let mut answer = Vec::new();
    let _ = io.read_to_end(&mut answer);
    assert_eq!(answer, b"");
}

#[test]
fn connections_without_a_trusted_proxy_header_are_refused() {
    let certificates = Certificates::new();
    let server = nginx_behind(&certificates);
    let header = b"PROXY TCP4 127.0.7.9 127.0.0.1 5 6\r\n";
    let opening = [&header[..], HELLO].concat();

    let strict = balancer(server.address(), "v1", "10.0.0.0/8");
    send(strict.address(), &opening);
    send(strict.address(), HELLO);
    let metrics = strict.await_metrics(|it| it.turned_away("untrusted-proxy") == 2);
    assert_eq!(metrics.all_routed(), 0, "{metrics}");

    let balancer = balancer(server.address(), "v1", "127.0.0.1");
    let wrong: [&[u8]; 4] = [
        HELLO,
        b"PROXY TCP4 127.0.7.9\r\n",
        b"PROXY TCP4 127.0.7.9 127.0.0.1 5 66666\r\n",
        &[b'P'; 200],
    ];
    for bytes in wrong {
        send(balancer.address(), bytes);
    }
    let metrics = balancer.await_metrics(|it| it.turned_away("bad-proxy-header") == 4);
    assert_eq!(metrics.all_routed(), 0, "{metrics}");
}

#[test]
fn a_header_in_segments_of_one_byte_is_accepted() {
    let certificates = Certificates::new();
    let server = nginx_behind(&certificates);
    let balancer = balancer(server.address(), "v2", "127.0.0.1");
    let mut io = TcpStream::connect(balancer.address()).unwrap();
    io.set_nodelay(true).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    for byte in [b"PROXY TCP4 127.0.7.9 127.0.0.1 5 6\r\n", HELLO].concat() {
        io.write_all(&[byte]).unwrap();
    }
    // The answer begins with a handshake record of the server.
    let mut kind = [0];
    io.read_exact(&mut kind).unwrap();
    assert_eq!(kind, [22]);
}
