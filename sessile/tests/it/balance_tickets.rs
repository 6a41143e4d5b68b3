//! `sessile balance` in front of servers whose tickets it cannot read. The balancer learns key names from
//! checks and from accepted tickets, and routes returning TLS 1.3 clients by them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io, thread};

use serde_json::json;

use crate::peers::{Certificates, Cut, NAME, Peer, Proxy, Ran, Sessile, nginx, run};
use crate::store::setup::Farm;

const PATIENCE: Duration = Duration::from_secs(15);

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: farm.test\r\nconnection: close\r\n\r\n";

/// The ways to return: OpenSSL's arguments, and the balancer's rule.
const MECHANISMS: [(&[&str], &str); 3] = [
    (&["-tls1_3"], "key-name"),
    (&["-tls1_2"], "ticket"),
    (&["-tls1_2", "-no_ticket"], "session-id"),
];

/// A balancer that spreads new clients over servers named a, b and so on. The second part of each pair has more
/// lines for the server's table.
fn balancer_of(folder: &Path, servers: &[(SocketAddr, &str)], more: &str) -> Sessile {
    let file = folder.join("balance.toml");
    let mut text = format!(
        "[key]\nfile = \"none\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
         [balance]\npolicy = \"round-robin\"\nhealth-name = \"{NAME}\"\n{more}\n"
    );
    for (name, (address, its)) in ('a'..='z').zip(servers) {
        text += &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n{its}\n");
    }
    fs::write(&file, text).unwrap();
    Sessile::balance_configured(&file, folder)
}

fn balancer(folder: &Path, servers: &[SocketAddr], more: &str) -> Sessile {
    let servers: Vec<_> = servers.iter().map(|&address| (address, "")).collect();
    balancer_of(folder, &servers, more)
}

fn visit(address: SocketAddr, arguments: &[&str], session: &Path) -> Ran {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-servername", NAME, "-connect"]);
    command.arg(address.to_string()).args(arguments);
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    command.arg("-sess_out").arg(session);
    run("openssl", &mut command, REQUEST).succeeded()
}

fn nginx_of_its_own(certificates: &Certificates) -> Peer {
    nginx(certificates, "ssl_session_cache shared:s:1m;")
}

/// The file with the ticket key, for servers that share a key.
fn ticket_key(certificates: &Certificates) -> PathBuf {
    let file = certificates.folder().join("ticket.key");
    if !file.exists() {
        let mut command = Command::new("openssl");
        let made = command.args(["rand", "-out"]).arg(&file).arg("80");
        run("openssl", made, "").succeeded();
    }
    file
}

fn nginx_with_key(certificates: &Certificates) -> Peer {
    let key = ticket_key(certificates);
    nginx(
        certificates,
        &format!("ssl_session_ticket_key {};", key.display()),
    )
}

#[test]
fn every_kind_of_session_resumes_at_servers_that_share_nothing() {
    const CLIENTS: usize = 12;
    const RETURNS: usize = 3;
    let certificates = Certificates::new();
    let servers = [(); 3].map(|()| nginx_of_its_own(&certificates));
    let addresses = servers.each_ref().map(Peer::address);
    let balancer = balancer(certificates.folder(), &addresses, "");
    for name in ["a", "b", "c"] {
        let server = balancer.await_server(name, |server| server["key_names"] != json!([]));
        assert_eq!(server["key_names"].as_array().unwrap().len(), 1, "{server}");
        assert_eq!(server["group"], json!([]), "{server}");
    }
    for (at, (arguments, rule)) in MECHANISMS.iter().enumerate() {
        for client in 0..CLIENTS {
            let session = certificates.folder().join(format!("{at}-{client}"));
            let ran = visit(balancer.address(), arguments, &session);
            assert_eq!(ran.count("New, TLSv1."), 1, "{}", ran.stdout);
            for _ in 0..RETURNS {
                let ran = visit(balancer.address(), arguments, &session);
                assert_eq!(ran.count("Reused, TLSv1."), 1, "{rule}: {}", ran.stdout);
            }
        }
        let returned = (CLIENTS * RETURNS) as u64;
        let metrics = balancer.await_metrics(|it| it.routed(rule, "resumed") >= returned);
        assert_eq!(metrics.routed(rule, "resumed"), returned, "{metrics}");
        assert_eq!(metrics.routed(rule, "refused"), 0, "{metrics}");
    }
}

/// An address that never goes down. Each new connection goes to the server whose address is then in `behind`.
fn address_before(behind: Arc<Mutex<SocketAddr>>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        // Pass on the end of this direction.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), *behind.lock().unwrap());
            let server = TcpStream::connect(server).unwrap();
            let (up, down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || pass(up, server));
            thread::spawn(move || pass(down, client));
        }
    });
    address
}

#[test]
fn a_changed_key_of_a_running_server_is_discovered_at_once() {
    const RETURNS: u64 = 3;
    let certificates = Certificates::new();
    let servers = [(); 3].map(|()| nginx_of_its_own(&certificates));
    // A second server behind the same address acts as a reload with another key. A real reload needs nginx's
    // master process, and a killed master would leave its workers running.
    let reloaded = nginx_of_its_own(&certificates);
    let behind = Arc::new(Mutex::new(servers[0].address()));
    let address = address_before(Arc::clone(&behind));
    let addresses = [address, servers[1].address(), servers[2].address()];
    let more = "health-interval = \"50ms\"";
    let balancer = balancer(certificates.folder(), &addresses, more);
    let before = ["a", "b", "c"]
        .map(|name| balancer.await_server(name, |server| server["key_names"] != json!([])));
    *behind.lock().unwrap() = reloaded.address();
    let old = before[0]["key_names"].as_array().unwrap();
    let after = balancer.await_server("a", |server| {
        let names = server["key_names"].as_array().unwrap();
        names.iter().any(|name| !old.contains(name))
    });
    assert_eq!(after["state"], "up");
    for client in 0..3 {
        let session = certificates.folder().join(client.to_string());
        for _ in 0..=RETURNS {
            visit(balancer.address(), &["-tls1_3"], &session);
        }
    }
    let returned = 3 * RETURNS;
    let metrics = balancer.await_metrics(|it| it.all_routed() == returned + 3);
    assert_eq!(metrics.routed("key-name", "resumed"), returned, "{metrics}");
}

#[test]
fn accepted_tickets_prove_key_names_without_checks() {
    let certificates = Certificates::new();
    let server = nginx_of_its_own(&certificates);
    let balancer = balancer(
        certificates.folder(),
        &[server.address()],
        "health = \"off\"",
    );
    let session = certificates.folder().join("session");
    for n in 1..=4 {
        // The client moves, so that its address never leads it to the server.
        let source = format!("127.0.0.{n}:0");
        visit(balancer.address(), &["-tls1_3", "-bind", &source], &session);
    }
    // The server has accepted two tickets, which prove the key name to the balancer.
    balancer.await_metrics(|metrics| metrics.routed("key-name", "resumed") == 1);
    let metrics = balancer.metrics();
    assert_eq!(metrics.routed("policy", "resumed"), 2, "{metrics}");
    balancer.await_server("a", |server| server["key_names"] != json!([]));
}

#[test]
fn servers_that_share_a_ticket_key_replace_each_other() {
    let certificates = Certificates::new();
    let one = nginx_with_key(&certificates);
    let other = nginx_with_key(&certificates);
    let alone = nginx_of_its_own(&certificates);
    let addresses = [&one, &other, &alone].map(Peer::address);
    let balancer = balancer(certificates.folder(), &addresses, "");
    balancer.await_server("a", |server| server["group"] == json!(["b"]));
    balancer.await_server("b", |server| server["group"] == json!(["a"]));
    let third = balancer.await_server("c", |server| server["key_names"] != json!([]));
    assert_eq!(third["group"], json!([]), "{third}");
    // Make one session of each kind at each server.
    let mut sessions = Vec::new();
    for (arguments, rule) in &MECHANISMS[..2] {
        for client in 0..3 {
            let session = certificates.folder().join(format!("{rule}-{client}"));
            visit(balancer.address(), arguments, &session);
            sessions.push((*arguments, session));
        }
    }
    one.kill();
    for (arguments, session) in &sessions {
        let ran = visit(balancer.address(), arguments, session);
        assert_eq!(ran.count("Reused, TLSv1."), 1, "{}", ran.stdout);
    }
    let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == 12);
    assert_eq!(metrics.routed("key-name", "resumed"), 3, "{metrics}");
    assert_eq!(metrics.routed("ticket", "resumed"), 3, "{metrics}");
}

#[test]
fn a_server_with_a_new_key_leaves_its_group_and_keeps_its_clients() {
    const CLIENTS: u64 = 3;
    let certificates = Certificates::new();
    let servers = [(); 3].map(|()| nginx_with_key(&certificates));
    // A second server behind the same address acts as a reload with another key.
    let reloaded = nginx_of_its_own(&certificates);
    let behind = Arc::new(Mutex::new(servers[1].address()));
    let moving = address_before(Arc::clone(&behind));
    let addresses = [servers[0].address(), moving, servers[2].address()];
    let more = "health-interval = \"50ms\"";
    let balancer = balancer(certificates.folder(), &addresses, more);
    let group_of = |name, group: &[&str]| {
        balancer.await_server(name, |server| server["group"] == json!(group))
    };
    let shared = group_of("b", &["a", "c"])["key_names"].clone();
    let figures = |name: &str| {
        let metrics = balancer.metrics();
        ["key_names", "group_size"].map(|figure| {
            let figure = format!("sessile_balance_server_{figure}");
            metrics.sum(&figure, &[("server", name)])
        })
    };
    assert_eq!(["a", "b", "c"].map(figures), [[1, 3]; 3]);
    let [old, new] = ["old", "new"].map(|age| {
        let sessions = (0..CLIENTS).map(|n| certificates.folder().join(format!("{age}-{n}")));
        sessions.collect::<Vec<_>>()
    });
    for session in &old {
        visit(balancer.address(), &["-tls1_3"], session);
    }

    *behind.lock().unwrap() = reloaded.address();
    // A check notices the new key and requests a discovery, long before the next regular discovery.
    let names = |server: &serde_json::Value| server["key_names"].clone();
    let alone = balancer.await_server("b", |it| names(it) != shared && names(it) != json!([]));
    assert_eq!(alone["group"], json!([]), "{alone}");
    for (name, other) in [("a", "c"), ("c", "a")] {
        let server = group_of(name, &[other]);
        assert_eq!(names(&server), shared, "{server}");
    }
    assert_eq!(["a", "b", "c"].map(figures), [[1, 2], [1, 1], [1, 2]]);
    // The log also reports c's smaller group, although only b changed and no discovery of c ran again.
    balancer.await_line(&format!("server=\"c\" names={shared} group=[\"a\"]"));
    for session in &new {
        visit(balancer.address(), &["-tls1_3"], session);
    }
    for session in old.iter().chain(&new) {
        let ran = visit(balancer.address(), &["-tls1_3"], session);
        assert_eq!(ran.count("Reused, TLSv1."), 1, "{}", ran.stdout);
    }
    let metrics = balancer.await_metrics(|it| it.all_routed() == 4 * CLIENTS);
    assert_eq!(
        metrics.routed("key-name", "resumed"),
        2 * CLIENTS,
        "{metrics}"
    );
}

#[test]
fn clients_of_two_pools_on_the_same_servers_return_to_their_server() {
    const CLIENTS: u64 = 4;
    const RETURNS: u64 = 3;
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| nginx_of_its_own(&certificates));
    let [one, other] = servers.each_ref().map(Peer::address);
    let shop = "pool = \"shop\"";
    let all = [(one, ""), (other, ""), (one, shop), (other, shop)];
    let pool = "[[balance.pool]]\nname = \"shop\"\nnames = [\"shop.test\"]";
    let balancer = balancer_of(certificates.folder(), &all, pool);
    for name in ["a", "b", "c", "d"] {
        let server = balancer.await_server(name, |server| server["key_names"] != json!([]));
        assert_eq!(server["group"], json!([]), "{server}");
    }
    for name in [NAME, "shop.test"] {
        for client in 0..CLIENTS {
            let session = certificates.folder().join(format!("{name}-{client}"));
            // If an argument is repeated, OpenSSL uses the last value.
            let arguments = ["-tls1_3", "-servername", name];
            let ran = visit(balancer.address(), &arguments, &session);
            assert_eq!(ran.count("New, TLSv1."), 1, "{}", ran.stdout);
            for _ in 0..RETURNS {
                let ran = visit(balancer.address(), &arguments, &session);
                assert_eq!(ran.count("Reused, TLSv1."), 1, "{name}: {}", ran.stdout);
            }
        }
    }
    let returned = 2 * CLIENTS * RETURNS;
    let metrics = balancer.await_metrics(|it| it.routed("key-name", "resumed") >= returned);
    assert_eq!(metrics.routed("key-name", "resumed"), returned, "{metrics}");
}

#[test]
fn a_server_that_moves_to_another_pool_has_its_key_name_there_at_once() {
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| nginx_of_its_own(&certificates));
    let [there, moved] = servers.each_ref().map(Peer::address);
    let shop = "pool = \"shop\"\n";
    let pool = "[[balance.pool]]\nname = \"shop\"\nnames = [\"shop.test\"]";
    let folder = certificates.folder();
    let balancer = balancer_of(folder, &[(there, shop), (moved, "")], pool);
    balancer.await_server("b", |server| server["key_names"] != json!([]));
    let file = folder.join("balance.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text + shop).unwrap();
    let said = balancer.reload();
    assert!(said.contains("configuration and key reloaded"), "{said}");
    balancer.await_server("b", |server| {
        server["pool"] == "shop" && server["key_names"] != json!([])
    });
}

#[test]
fn random_prefixes_never_become_key_names() {
    const VISITS: u64 = 6;
    // Tickets of sessile servers look random without the route key.
    let farm = Farm::new("");
    let server = farm.serve("a");
    let balancer = balancer(farm.folder(), &[server.address()], "");
    let session = farm.folder().join("session");
    for n in 1..=VISITS {
        let source = format!("127.0.0.{n}:0");
        visit(balancer.address(), &["-tls1_3", "-bind", &source], &session);
    }
    let metrics = balancer.await_metrics(|it| it.routed("policy", "resumed") == VISITS - 1);
    assert_eq!(metrics.routed("key-name", "resumed"), 0, "{metrics}");
    let server = balancer.await_server("a", |_| true);
    assert_eq!(server["key_names"], json!([]), "{server}");
}

#[test]
fn tickets_of_clients_that_came_by_their_address_prove_no_key_name() {
    const VISITS: u64 = 6;
    let certificates = Certificates::new();
    let server = nginx_of_its_own(&certificates);
    let settings = "health = \"off\"";
    let balancer = balancer(certificates.folder(), &[server.address()], settings);
    let session = certificates.folder().join("session");
    for _ in 0..VISITS {
        visit(balancer.address(), &["-tls1_3"], &session);
    }
    let metrics = balancer.await_metrics(|it| it.all_routed() == VISITS);
    let returned = metrics.routed("address", "resumed");
    assert_eq!(returned, VISITS - 1, "{metrics}");
    let server = balancer.await_server("a", |_| true);
    assert_eq!(server["key_names"], json!([]), "{server}");
}

#[test]
fn a_client_resumes_after_a_hello_retry_request() {
    const CLIENTS: u64 = 3;
    const RETURNS: u64 = 2;
    let certificates = Certificates::new();
    // The server does not support the client's first group, and sends a HelloRetryRequest.
    let directives = "ssl_session_cache shared:s:1m; ssl_ecdh_curve X25519;";
    let servers = [(); 3].map(|()| nginx(&certificates, directives));
    let addresses = servers.each_ref().map(Peer::address);
    let balancer = balancer(certificates.folder(), &addresses, "");
    for name in ["a", "b", "c"] {
        balancer.await_server(name, |server| server["key_names"] != json!([]));
    }
    let arguments = ["-tls1_3", "-groups", "P-384:X25519", "-msg"];
    for client in 0..CLIENTS {
        let session = certificates.folder().join(client.to_string());
        for at in 0..=RETURNS {
            let ran = visit(balancer.address(), &arguments, &session);
            let hellos = ran
                .stdout
                .lines()
                .filter(|line| line.ends_with(", ClientHello"));
            assert_eq!(hellos.count(), 2, "{}", ran.stdout);
            let came = ["New, TLSv1.", "Reused, TLSv1."].map(|kind| ran.count(kind));
            let expected = if at == 0 { [1, 0] } else { [0, 1] };
            assert_eq!(came, expected, "{}", ran.stdout);
        }
    }
    let all = CLIENTS * (1 + RETURNS);
    let metrics = balancer.await_metrics(|metrics| metrics.all_routed() >= all);
    let returned = CLIENTS * RETURNS;
    assert_eq!(metrics.routed("key-name", "resumed"), returned, "{metrics}");
    assert_eq!(
        metrics.routed("policy", "not-offered"),
        CLIENTS,
        "{metrics}"
    );
    // The second ClientHello of a connection made no second connection to a server.
    let made = metrics.sum("sessile_balance_server_connections_total", &[]);
    assert_eq!(made, all, "{metrics}");
}

/// The ClientHello with which OpenSSL offers the session.
fn returning_hello(address: SocketAddr, session: &Path) -> Vec<u8> {
    let proxy = Proxy::start(address, Cut::Whole);
    let ran = visit(proxy.address(), &["-tls1_3"], session);
    assert_eq!(ran.count("Reused, TLSv1."), 1, "{}", ran.stdout);
    proxy.hello()
}

#[test]
fn one_ticket_with_a_key_name_cannot_overload_a_server() {
    const SHOWN: u64 = 180;
    const OPEN: &str = "sessile_balance_server_connections_open";
    const BY_NAME: (&str, &str) = ("routed_by", "key-name");
    const RESUMED: (&str, &str) = ("outcome", "resumed");
    let certificates = Certificates::new();
    let servers = [(); 2].map(|()| nginx_of_its_own(&certificates));
    let addresses = servers.each_ref().map(Peer::address);
    let policy = ["--policy", "least-connections", "--health", "tls"];
    let balancer = Sessile::balance(&addresses, &policy);
    for name in ["a", "b"] {
        balancer.await_server(name, |server| server["key_names"] != json!([]));
    }
    let session = certificates.folder().join("session");
    visit(balancer.address(), &["-tls1_3"], &session);
    let hello = returning_hello(balancer.address(), &session);
    balancer.await_metrics(|it| it.sum(OPEN, &[]) == 0 && it.routed("key-name", "resumed") == 1);
    let show = || {
        let mut io = TcpStream::connect(balancer.address()).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.write_all(&hello).unwrap();
        io.read_exact(&mut [0]).unwrap();
        io
    };
    let _held: Vec<_> = (0..SHOWN).map(|_| show()).collect();
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum(OPEN, &[]), SHOWN, "{metrics}");
    let handshakes = "sessile_balance_server_handshakes_total";
    let is_home = |name: &&&str| metrics.sum(handshakes, &[("server", name), BY_NAME, RESUMED]) > 0;
    let home = ["a", "b"].iter().find(is_home).unwrap();
    let at_home = metrics.sum(OPEN, &[("server", home)]);
    // A key name routes up to 64 connections to a server. Beyond 64, the limit is 1.25 times the average of the
    // servers.
    let bound = SHOWN * 5 / 8 + 1;
    assert!((65..=bound).contains(&at_home), "{metrics}");
    // The other server does not have the ticket key, so all other handshakes are full.
    let elsewhere = metrics.routed("policy", "refused");
    assert_eq!(at_home + elsewhere, SHOWN, "{metrics}");
}
