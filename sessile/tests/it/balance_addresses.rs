//! `sessile balance` in front of servers whose tickets have no name. The balancer leads returning clients by
//! their address.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use sessile::client::{Client as RustlsClient, Mechanism, Target, Trust};
use sessile_proto::watch::Kind;
use socket2::SockRef;

use crate::balance_servers::{reload, server, start, write};
use crate::peers::{
    Certificates, Cut, Metrics, NAME, Peer, Proxy, Ran, Sessile, nginx, openssl, record, run,
};

const PATIENCE: Duration = Duration::from_secs(15);

const ENTRIES: &str = "sessile_balance_address_entries";

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: farm.test\r\nconnection: close\r\n\r\n";

/// The content type of encrypted records.
const APPLICATION_DATA: u8 = 23;

/// nginx without tickets. OpenSSL then gives TLS 1.3 clients random identities of its session cache.
fn anonymous_nginx(certificates: &Certificates) -> Peer {
    let directives = "ssl_session_tickets off; ssl_session_cache shared:s:1m;";
    nginx(certificates, directives)
}

/// `sessile serve` with a key of its own. Its tickets look random to a balancer without the key.
fn sessile_alone(certificates: &Certificates, name: &str) -> Sessile {
    let folder = certificates.folder();
    let file = folder.join(format!("{name}.toml"));
    let text = format!(
        "[server]\nname = \"{name}\"\n[key]\nfile = \"none\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"serve\"\n\
         [[site]]\nnames = []\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n",
        certificates.chain, certificates.key
    );
    fs::write(&file, text).unwrap();
    Sessile::serve_configured(&file, folder)
}

fn round_robin(servers: &[SocketAddr]) -> Sessile {
    Sessile::balance(servers, &["--policy", "round-robin"])
}

/// A client with an address of its own.
struct Client {
    source: Ipv4Addr,
    session: PathBuf,
}

impl Client {
    fn new(folder: &Path, n: u8) -> Self {
        Self {
            source: Ipv4Addr::new(127, 0, 0, n),
            session: folder.join(format!("session-{n}")),
        }
    }

    /// Another program at the address of this client.
    fn neighbour(&self, name: &str) -> Self {
        Self {
            source: self.source,
            session: self.session.with_file_name(name),
        }
    }

    fn visit_with(&self, address: SocketAddr, arguments: &[&str]) -> Ran {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-ign_eof", "-servername", NAME, "-connect"]);
        command.arg(address.to_string()).args(arguments);
        command.arg("-bind").arg(format!("{}:0", self.source));
        if self.session.exists() {
            command.arg("-sess_in").arg(&self.session);
        }
        command.arg("-sess_out").arg(&self.session);
        run("openssl", &mut command, REQUEST).succeeded()
    }

    /// True if the session resumed.
    fn visit(&self, balancer: &Sessile) -> bool {
        let ran = self.visit_with(balancer.address(), &["-tls1_3"]);
        let resumed = ran.count("Reused, TLSv1.3");
        assert_eq!(resumed + ran.count("New, TLSv1.3"), 1, "{}", ran.stdout);
        resumed == 1
    }
}

fn entries(metrics: &Metrics) -> u64 {
    metrics.sum(ENTRIES, &[])
}

fn returning_clients_resume(servers: &[SocketAddr], folder: &Path) {
    const CLIENTS: u8 = 8;
    const RETURNS: u8 = 4;
    let balancer = round_robin(servers);
    let clients: Vec<_> = (1..=CLIENTS).map(|n| Client::new(folder, n)).collect();
    for client in &clients {
        assert!(!client.visit(&balancer));
    }
    for _ in 0..RETURNS {
        for client in &clients {
            assert!(client.visit(&balancer), "{}", client.source);
        }
    }
    let returned = u64::from(CLIENTS * RETURNS);
    let metrics = balancer.await_metrics(|it| it.routed("address", "resumed") >= returned);
    let all = returned + u64::from(CLIENTS);
    assert_eq!(metrics.all_routed(), all, "{metrics}");
    assert_eq!(entries(&metrics), u64::from(CLIENTS), "{metrics}");
    assert_eq!(metrics.learned(), 0, "{metrics}");
    for name in ["a", "b", "c"] {
        let server = balancer.await_server(name, |_| true);
        assert_eq!(server["key_names"], json!([]), "{server}");
        assert!(server["connections"].as_u64() > Some(0), "{server}");
    }
}

#[test]
fn clients_of_a_session_cache_return_to_their_server() {
    let certificates = Certificates::new();
    let servers = [(); 3].map(|()| anonymous_nginx(&certificates));
    let addresses = servers.each_ref().map(Peer::address);
    returning_clients_resume(&addresses, certificates.folder());
}

#[test]
fn clients_of_sessile_servers_with_unknown_keys_return_to_their_server() {
    let certificates = Certificates::new();
    let servers = ["a", "b", "c"].map(|name| sessile_alone(&certificates, name));
    let addresses = servers.each_ref().map(Sessile::address);
    returning_clients_resume(&addresses, certificates.folder());
}

#[test]
fn clients_return_even_if_checks_say_that_all_servers_are_down() {
    let certificates = Certificates::new();
    // The checks offer only the protocol of the pool, which these servers refuse.
    let arguments = ["-tls1_3", "-no_ticket", "-www", "-alpn", "http/1.1"];
    let servers = [(); 2].map(|()| openssl(&certificates, &arguments));
    let mut text =
        "[key]\nfile = \"none\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
         [balance]\npolicy = \"round-robin\"\nhealth-interval = \"50ms\"\n\
         [[balance.pool]]\nname = \"web\"\nalpn = \"unknown\"\n"
            .to_owned();
    for (name, server) in ["a", "b"].into_iter().zip(&servers) {
        let address = server.address();
        text += &format!(
            "[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\npool = \"web\"\n"
        );
    }
    let file = certificates.folder().join("balance.toml");
    fs::write(&file, text).unwrap();
    let balancer = Sessile::balance_configured(&file, certificates.folder());
    for name in ["a", "b"] {
        balancer.await_server(name, |server| server["state"] == "down");
    }
    let clients = [1, 2, 3].map(|n| Client::new(certificates.folder(), n));
    for pattern in ["New, ", "Reused, ", "Reused, "] {
        for client in &clients {
            let arguments = ["-tls1_3", "-alpn", "unknown,http/1.1"];
            let ran = client.visit_with(balancer.address(), &arguments);
            // The client and the page of the server say so.
            assert_eq!(ran.count(pattern), 2, "{}", ran.stdout);
        }
    }
}

#[test]
fn clients_behind_one_address_converge_after_one_full_handshake_each() {
    const CLIENTS: u8 = 6;
    let certificates = Certificates::new();
    let servers = [(); 3].map(|()| anonymous_nginx(&certificates));
    let balancer = round_robin(&servers.each_ref().map(Peer::address));
    let first = Client::new(certificates.folder(), 1);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| first.neighbour(&n.to_string()))
        .collect();
    for client in &clients {
        assert!(!client.visit(&balancer));
    }
    // A third of the clients has a session of the server to which all clients of the address are led now.
    let resumed = clients
        .iter()
        .filter(|client| client.visit(&balancer))
        .count();
    assert_eq!(resumed, usize::from(CLIENTS) / 3);
    for _ in 0..2 {
        for client in &clients {
            assert!(client.visit(&balancer));
        }
    }
    assert_eq!(entries(&balancer.metrics()), 1);
}

#[test]
fn a_client_with_another_name_or_fingerprint_has_its_own_server() {
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| anonymous_nginx(&certificates));
    let balancer = round_robin(&servers.each_ref().map(Peer::address));
    let client = Client::new(certificates.folder(), 1);
    let variants = [
        vec!["-tls1_3"],
        vec!["-tls1_3", "-servername", "other.test"],
        vec!["-tls1_3", "-alpn", "http/1.1"],
        vec!["-tls1_3", "-groups", "P-256"],
    ];
    let clients = variants.map(|arguments| {
        (
            client.neighbour(&arguments.concat().replace('/', "")),
            arguments,
        )
    });
    for pattern in ["New, ", "Reused, ", "Reused, "] {
        for (client, arguments) in &clients {
            let ran = client.visit_with(balancer.address(), arguments);
            assert_eq!(ran.count(pattern), 1, "{arguments:?}: {}", ran.stdout);
        }
    }
    assert_eq!(entries(&balancer.metrics()), clients.len() as u64);
}

/// A ClientHello that offers a session of the client.
fn returning_hello(balancer: &Sessile, client: &Client) -> Vec<u8> {
    let proxy = Proxy::start(balancer.address(), Cut::Whole);
    // The proxy connects from 127.0.0.1.
    client.visit_with(proxy.address(), &["-tls1_3"]);
    proxy.hello()
}

/// Sends a hello, reads up to the server's first encrypted record, sends `more`, and reads the answer.
fn abandon(address: SocketAddr, hello: &[u8], more: &[u8]) {
    let mut io = TcpStream::connect(address).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    // Reset the connection: other tests need the ports that TIME_WAIT would block.
    SockRef::from(&io).set_linger(Some(Duration::ZERO)).unwrap();
    io.write_all(hello).unwrap();
    while record(&io).unwrap()[0] != APPLICATION_DATA {}
    if !more.is_empty() {
        io.write_all(more).unwrap();
        let _ = io.read_to_end(&mut Vec::new());
    }
}

#[test]
fn abandoned_and_false_handshakes_teach_no_address() {
    const TIMES: u64 = 50;
    let certificates = Certificates::new();
    let server = anonymous_nginx(&certificates);
    let balancer = round_robin(&[server.address()]);
    let hello = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");
    // The server refuses this Finished with an encrypted alert.
    let finished = [&[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 53][..], &[9; 53]].concat();
    let early = [&hello[..], &finished].concat();
    for _ in 0..TIMES {
        abandon(balancer.address(), hello, &[]);
        abandon(balancer.address(), hello, &finished);
        abandon(balancer.address(), &early, &finished);
    }
    let metrics = balancer.await_metrics(|it| it.all_routed() == 3 * TIMES);
    assert_eq!(
        metrics.routed("policy", "not-offered"),
        3 * TIMES,
        "{metrics}"
    );
    assert_eq!(entries(&metrics), 0, "{metrics}");
    // As a control, show that a complete handshake teaches its address.
    Client::new(certificates.folder(), 1).visit(&balancer);
    balancer.await_metrics(|it| entries(it) == 1);
}

#[test]
fn a_client_that_lies_about_its_offers_harms_only_itself() {
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| anonymous_nginx(&certificates));
    let balancer = round_robin(&servers.each_ref().map(Peer::address));
    let honest = Client::new(certificates.folder(), 1);
    honest.visit(&balancer);
    let mut hello = returning_hello(&balancer, &honest);
    // Change the identity. The binder no longer matches, and the server does not know the session.
    let psk = hello.len() - 60;
    hello[psk] ^= 1;
    for _ in 0..9 {
        abandon(balancer.address(), &hello, &[]);
    }
    let metrics = balancer.await_metrics(|it| it.routed("address", "refused") == 9);
    assert_eq!((entries(&metrics), metrics.learned()), (1, 0), "{metrics}");
    for _ in 0..3 {
        assert!(honest.visit(&balancer));
    }
}

#[test]
fn a_server_that_goes_down_or_leaves_loses_its_addresses() {
    let certificates = Certificates::new();
    let [a, b] = [(); 2].map(|()| anonymous_nginx(&certificates));
    let file = certificates.folder().join("balance.toml");
    let write = |names: &[(&str, &Peer)]| {
        let mut text = "[key]\nfile = \"none\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             role = \"balance\"\n[balance]\npolicy = \"round-robin\"\nhealth = \"tcp\"\n\
             health-interval = \"50ms\"\n"
            .to_owned();
        for (name, server) in names {
            let address = server.address();
            text += &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        }
        fs::write(&file, text).unwrap();
    };
    write(&[("a", &a), ("b", &b)]);
    let balancer = Sessile::balance_configured(&file, certificates.folder());
    let clients = [1, 2, 3, 4].map(|n| Client::new(certificates.folder(), n));
    let visit_all = |resumed: usize| {
        let came = clients.iter().filter(|client| client.visit(&balancer));
        assert_eq!(came.count(), resumed, "{}", balancer.metrics());
    };
    visit_all(0);
    visit_all(4);
    balancer.await_metrics(|it| entries(it) == 4);
    a.kill();
    balancer.await_server("a", |server| server["state"] == "down");
    balancer.await_metrics(|it| entries(it) == 2);
    // Half of the clients had sessions of the server that is gone.
    visit_all(2);
    visit_all(4);
    balancer.await_metrics(|it| entries(it) == 4);
    let c = anonymous_nginx(&certificates);
    write(&[("c", &c)]);
    balancer.reload();
    balancer.await_metrics(|it| entries(it) == 0);
    visit_all(0);
    visit_all(4);
    let missed = balancer.metrics().sum("sessile_balance_missed_total", &[]);
    assert_eq!(missed, 0, "an entry that is gone is no miss");
}

#[tokio::test]
async fn rustls_clients_return_to_their_server() {
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| anonymous_nginx(&certificates));
    let balancer = round_robin(&servers.each_ref().map(Peer::address));
    let client = RustlsClient::new(Mechanism::Any, &Trust::Insecure, PATIENCE).unwrap();
    let target = Target::new(balancer.address(), NAME).unwrap();
    for returns in 0..3 {
        let mut connection = client.connect(&target).await.unwrap();
        let resumed = matches!(connection.outcome.kind, Kind::Resumed(_));
        assert_eq!(resumed, returns > 0, "{}", balancer.metrics());
        assert!(connection.await_ticket(PATIENCE).await > 0);
        connection.close(PATIENCE).await;
    }
}

#[test]
fn another_server_takes_over_the_addresses_of_a_draining_server() {
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| anonymous_nginx(&certificates));
    let [a, b] = servers.each_ref().map(Peer::address);
    let folder = certificates.folder();
    let settings = "policy = \"round-robin\"\nhealth = \"off\"";
    let balancer = start(folder, settings, &[server("a", a, ""), server("b", b, "")]);
    let first = Client::new(folder, 1);
    first.visit(&balancer);
    let drained = [server("a", a, "drain = true"), server("b", b, "")];
    write(folder, settings, &drained);
    reload(&balancer);
    assert!(
        first.visit(&balancer),
        "its session is at the draining server"
    );
    let second = first.neighbour("second");
    assert!(!second.visit(&balancer));
    assert!(
        second.visit(&balancer),
        "both servers have had a client of the address"
    );
    assert!(!first.visit(&balancer));
    assert!(first.visit(&balancer));
    let made = "sessile_balance_server_connections_total";
    let made = ["a", "b"].map(|name| balancer.metrics().sum(made, &[("server", name)]));
    assert_eq!(made, [2, 4]);
}

#[test]
fn a_handshake_during_a_reload_teaches_no_address_to_another_machine() {
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| anonymous_nginx(&certificates));
    let [before, after] = servers.each_ref().map(Peer::address);
    let (folder, settings) = (certificates.folder(), "health = \"off\"");
    let balancer = start(folder, settings, &[server("a", before, "")]);
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::pem_file_iter(&certificates.ca).unwrap();
    roots.add_parsable_certificates(ca.map(Result::unwrap));
    let config = ClientConfig::builder_with_provider(default_provider().into())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).unwrap();
    let mut tls = ClientConnection::new(config.into(), name).unwrap();
    let mut io = TcpStream::connect(balancer.address()).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    tls.write_tls(&mut io).unwrap();
    while tls.is_handshaking() {
        assert!(tls.read_tls(&mut io).unwrap() > 0);
        tls.process_new_packets().unwrap();
    }
    // The client holds its Finished back.
    write(folder, settings, &[server("a", after, "")]);
    reload(&balancer);
    while tls.wants_write() {
        tls.write_tls(&mut io).unwrap();
    }
    while tls.tls13_tickets_received() == 0 {
        assert!(tls.read_tls(&mut io).unwrap() > 0);
        tls.process_new_packets().unwrap();
    }
    assert_eq!(entries(&balancer.metrics()), 0);
    // As a control, show that a handshake after the reload teaches its address.
    Client::new(folder, 1).visit(&balancer);
    balancer.await_metrics(|it| entries(it) == 1);
}

#[test]
fn a_key_name_goes_before_an_address() {
    let certificates = Certificates::new();
    let servers = [anonymous_nginx(&certificates), nginx(&certificates, "")];
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "policy = \"round-robin\"\nhealth-interval = \"50ms\"";
    let rest = [server("a", a, ""), server("b", b, "")];
    let balancer = start(certificates.folder(), settings, &rest);
    let has_key_name = |it: &serde_json::Value| !it["key_names"].as_array().unwrap().is_empty();
    balancer.await_server("b", has_key_name);
    let first = Client::new(certificates.folder(), 1);
    let second = first.neighbour("second");
    // The policy sends the first client to `a`, which the address then leads to, and the second client to `b`.
    for client in [&first, &second] {
        assert!(!client.visit(&balancer));
    }
    for _ in 0..2 {
        for client in [&first, &second] {
            assert!(client.visit(&balancer), "{}", balancer.metrics());
        }
    }
    let metrics = balancer.await_metrics(|it| it.all_routed() == 6);
    let resumed = ["address", "key-name"].map(|by| metrics.routed(by, "resumed"));
    assert_eq!((resumed, entries(&metrics)), ([2, 2], 1), "{metrics}");
}

#[test]
fn one_address_cannot_overload_its_server() {
    const SHOWN: u64 = 180;
    const OPEN: &str = "sessile_balance_server_connections_open";
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| anonymous_nginx(&certificates));
    let addresses = servers.each_ref().map(Peer::address);
    let balancer = Sessile::balance(&addresses, &["--policy", "least-connections"]);
    let client = Client::new(certificates.folder(), 1);
    client.visit(&balancer);
    let hello = returning_hello(&balancer, &client);
    balancer.await_metrics(|it| it.sum(OPEN, &[]) == 0 && it.all_routed() == 2);
    let show = || {
        let mut io = TcpStream::connect(balancer.address()).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.write_all(&hello).unwrap();
        io.read_exact(&mut [0]).unwrap();
        io
    };
    let _held: Vec<_> = (0..SHOWN).map(|_| show()).collect();
    let metrics = balancer.await_metrics(|it| it.all_routed() == SHOWN + 2);
    let open = ["a", "b"].map(|name| metrics.sum(OPEN, &[("server", name)]));
    // The bound is 64 connections, or 1.25 times the average of the servers.
    let bound = SHOWN * 5 / 8 + 1;
    assert!(
        open.iter().all(|open| (60..=bound).contains(open)),
        "{metrics}"
    );
    let missed = [("routed_by", "address"), ("cause", "share")];
    let missed = metrics.sum("sessile_balance_missed_total", &missed);
    let by_policy = metrics.sum(
        "sessile_balance_connections_total",
        &[("routed_by", "policy")],
    );
    assert_eq!(missed, by_policy - 1, "{metrics}");
    assert!(missed > 0, "{metrics}");
}
