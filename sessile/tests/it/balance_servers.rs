//! The servers of `sessile balance`: pools, checks, ejection, drains, limits, and changes at runtime.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::peers::{Certificates, NAME, Peer, Sessile, eventually, nginx, run};

/// A ClientHello as OpenSSL sends it, without a server name.
const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls12-id-full.bin");

const PATIENCE: Duration = Duration::from_secs(15);

const NEW: &str = "New, TLSv1.";
const REUSED: &str = "Reused, TLSv1.";

/// An nginx server that answers a request for `/who` with its name.
pub(crate) fn named(certificates: &Certificates, name: &str) -> Peer {
    nginx(
        certificates,
        &format!(
            "ssl_session_cache shared:s:1m; ssl_session_tickets off; location = /who {{ return 200 'i am {name}\n'; }}"
        ),
    )
}

/// One server of a balancer's configuration.
pub(crate) fn server(name: &str, address: SocketAddr, more: &str) -> String {
    format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n{more}\n")
}

/// Writes a configuration: the lines of `[balance]`, and the tables after it.
pub(crate) fn write(folder: &Path, balance: &str, rest: &[String]) -> std::path::PathBuf {
    let file = folder.join("balance.toml");
    let text = format!(
        "[key]\nfile = \"none\"\n[admin]\ntoken-file = \"token\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n[balance]\n{balance}\n{}",
        rest.concat()
    );
    fs::write(&file, text).unwrap();
    file
}

pub(crate) fn start(folder: &Path, balance: &str, rest: &[String]) -> Sessile {
    Sessile::balance_configured(&write(folder, balance, rest), folder)
}

/// Makes the balancer read its valid configuration again.
pub(crate) fn reload(balancer: &Sessile) -> String {
    let said = balancer.reload();
    assert!(said.contains("configuration and key reloaded"), "{said}");
    said
}

/// OpenSSL asks for the server's name. Returns the name, and whether the session was new or reused.
pub(crate) fn visit(
    address: SocketAddr,
    name: &str,
    session: Option<&Path>,
) -> (String, &'static str) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-tls1_2", "-servername", name]);
    command.arg("-connect").arg(address.to_string());
    if let Some(session) = session {
        if session.exists() {
            command.arg("-sess_in").arg(session);
        }
        command.arg("-sess_out").arg(session);
    }
    let request = "GET /who HTTP/1.1\r\nhost: farm.test\r\nconnection: close\r\n\r\n";
    let ran = run("openssl", &mut command, request).succeeded();
    let mut lines = ran.stdout.lines();
    let who = lines.find_map(|line| line.strip_prefix("i am "));
    let kind = match (ran.count(NEW), ran.count(REUSED)) {
        (1, 0) => NEW,
        (0, 1) => REUSED,
        _ => panic!("{}", ran.stdout),
    };
    (who.unwrap_or_default().to_owned(), kind)
}

fn who(balancer: &Sessile) -> String {
    visit(balancer.address(), NAME, None).0
}

/// The servers that this many new clients reach, without duplicates.
fn who_all(balancer: &Sessile, clients: usize) -> Vec<String> {
    let mut all: Vec<String> = (0..clients).map(|_| who(balancer)).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn a_server_name_routes_to_its_pool_only() {
    let certificates = Certificates::new();
    let servers = ["a", "b", "c"].map(|name| named(&certificates, name));
    let [a, b, c] = servers.each_ref().map(Peer::address);
    let pool = "[[balance.pool]]\nname = \"shop\"\nnames = [\"shop.test\", \"*.shop.test\"]\n";
    let rest = [
        pool.to_owned(),
        server("a", a, "pool = \"shop\""),
        server("b", b, "pool = \"shop\""),
        server("c", c, ""),
    ];
    let settings = "policy = \"round-robin\"\nhealth = \"off\"";
    let balancer = start(certificates.folder(), settings, &rest);
    let went = |name: &str| {
        let mut went = [(); 4].map(|()| visit(balancer.address(), name, None).0);
        went.sort();
        went
    };
    assert_eq!(went("SHOP.test"), ["a", "a", "b", "b"]);
    assert_eq!(went("www.shop.test"), ["a", "a", "b", "b"]);
    assert_eq!(went("a.www.shop.test"), ["c"; 4]);
    assert_eq!(went("other.test"), ["c"; 4]);
    // A session that the balancer learned in one pool routes no client in another pool.
    let session = certificates.folder().join("session");
    visit(balancer.address(), "shop.test", Some(&session));
    let (came, _) = visit(balancer.address(), "other.test", Some(&session));
    assert_eq!(came, "c");

    let settings = format!("{settings}\nunknown-name = \"refuse\"");
    write(certificates.folder(), &settings, &rest);
    reload(&balancer);
    let mut command = Command::new("openssl");
    command.args(["s_client", "-servername", "other.test", "-connect"]);
    let ran = run("openssl", command.arg(balancer.address().to_string()), "");
    assert!(!ran.status.success());
    assert!(ran.stderr.contains("unrecognized name"), "{}", ran.stderr);
    balancer.await_metrics(|metrics| metrics.turned_away("unknown-name") == 1);
    assert_eq!(went("shop.test"), ["a", "a", "b", "b"]);
}

#[test]
fn a_server_that_stops_answering_is_down_until_it_answers_again() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "policy = \"round-robin\"\nhealth-interval = \"50ms\"\nconnect-timeout = \"1s\"";
    let rest = [server("a", a, ""), server("b", b, "")];
    let balancer = start(certificates.folder(), settings, &rest);
    let up = |name: &'static str| {
        let balancer = &balancer;
        move |wanted: u64| {
            let labels = [("server", name)];
            balancer.await_metrics(|it| it.sum("sessile_balance_server_up", &labels) == wanted);
        }
    };
    let session = certificates.folder().join("session");
    let mut home = visit(balancer.address(), NAME, Some(&session)).0;
    if home != "a" {
        home = visit(balancer.address(), NAME, None).0;
    }
    assert_eq!(home, "a");
    servers[0].signal(Signal::STOP);
    up("a")(0);
    balancer.await_line("server is down");
    assert_eq!(balancer.await_server("a", |_| true)["state"], "down");
    assert_eq!(who_all(&balancer, 4), ["b"]);
    servers[0].signal(Signal::CONT);
    up("a")(1);
    assert_eq!(who_all(&balancer, 4), ["a", "b"]);

    let [one, _other] = servers;
    one.kill();
    up("a")(0);
    assert_eq!(who_all(&balancer, 4), ["b"]);
    // When checks are turned off, the balancer forgets the result of the last check.
    write(
        certificates.folder(),
        &format!("{settings}\nhealth = \"off\""),
        &rest,
    );
    reload(&balancer);
    up("a")(1);
}

#[test]
fn servers_that_all_fail_their_checks_still_get_their_clients_back() {
    let certificates = Certificates::new();
    // The client of the health checks does not offer this cipher suite.
    let old = "ssl_protocols TLSv1.2; ssl_ciphers ECDHE-ECDSA-AES128-SHA; ssl_session_tickets off; \
               ssl_session_cache shared:s:1m;";
    let servers = [(); 2].map(|()| nginx(&certificates, old));
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "policy = \"round-robin\"\nhealth-interval = \"20ms\"";
    let rest = [server("a", a, ""), server("b", b, "")];
    let balancer = start(certificates.folder(), settings, &rest);
    for name in ["a", "b"] {
        balancer.await_server(name, |server| server["state"] == "down");
    }
    let session = certificates.folder().join("session");
    let kinds = [(); 4].map(|()| visit(balancer.address(), NAME, Some(&session)).1);
    assert_eq!(kinds, [NEW, REUSED, REUSED, REUSED]);
    balancer.await_metrics(|metrics| metrics.routed("session-id", "resumed") == 3);
}

/// Clients from different /24 networks. Each client waits for an answer or for the end of the connection.
fn strangers(balancer: &Sessile, count: u8) {
    for source in 1..=count {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let source = SocketAddr::from(([127, 0, source, 1], 0));
        socket.bind(&source.into()).unwrap();
        socket.connect(&balancer.address().into()).unwrap();
        let mut io = TcpStream::from(socket);
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.write_all(HELLO).unwrap();
        let _ = io.read(&mut [0]);
    }
}

#[test]
fn cut_connections_of_many_sources_eject_no_server_that_passes_its_checks() {
    const STRANGERS: u8 = 6;
    let certificates = Certificates::new();
    let rude = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = rude.local_addr().unwrap();
    let (came, comes) = mpsc::channel();
    thread::spawn(move || {
        rude.incoming()
            .for_each(|_| came.send(()).unwrap_or_default())
    });
    let settings = "health = \"tcp\"\nhealth-interval = \"20ms\"";
    let balancer = start(
        certificates.folder(),
        settings,
        &[server("rude", address, "")],
    );
    // The second check proves that the balancer has recorded the result of the first check.
    for _ in 0..2 {
        comes.recv_timeout(PATIENCE).unwrap();
    }
    strangers(&balancer, STRANGERS);
    let failures = "sessile_balance_server_failures_total";
    balancer.await_metrics(|it| it.sum(failures, &[]) == u64::from(STRANGERS));
    assert_eq!(balancer.await_server("rude", |_| true)["state"], "up");
}

#[test]
fn a_cut_connection_brings_the_next_check_forward() {
    let certificates = Certificates::new();
    let going = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = going.local_addr().unwrap();
    let (checked, first_check) = mpsc::channel();
    thread::spawn(move || {
        loop {
            let (mut io, _) = going.accept().unwrap();
            // A TCP check sends nothing, so a byte comes from a client.
            if matches!(io.read(&mut [0]), Ok(1)) {
                drop(going);
                return;
            }
            checked.send(()).unwrap_or_default();
        }
    });
    let settings = "health = \"tcp\"\nhealth-interval = \"1h\"";
    let balancer = start(
        certificates.folder(),
        settings,
        &[server("going", address, "")],
    );
    first_check.recv_timeout(PATIENCE).unwrap();
    assert_eq!(balancer.readiness(), (200, "ready\n".to_owned()));
    strangers(&balancer, 1);
    let down = balancer.await_server("going", |server| server["state"] == "down");
    let error = down["check_failed"]["error"].as_str().unwrap();
    assert!(error.starts_with("cannot connect"), "{down}");
    let unready = "no server is up in pool default\n".to_owned();
    assert_eq!(balancer.readiness(), (503, unready));
}

#[test]
fn readiness_reports_a_drain_until_it_is_over() {
    let certificates = Certificates::new();
    let server_a = named(&certificates, "a");
    let rest = [server("a", server_a.address(), "")];
    let mut balancer = start(certificates.folder(), "health = \"off\"", &rest);
    let mut held = TcpStream::connect(balancer.address()).unwrap();
    held.set_read_timeout(Some(PATIENCE)).unwrap();
    held.write_all(HELLO).unwrap();
    held.read_exact(&mut [0]).unwrap();
    balancer.terminate();
    eventually("it says that it drains", || {
        balancer.readiness() == (503, "draining\n".to_owned())
    });
    drop(held);
    assert!(balancer.ended().success());
}

#[test]
fn a_server_at_another_address_starts_without_open_connections() {
    let certificates = Certificates::new();
    let servers = ["one", "other"].map(|name| named(&certificates, name));
    let [one, other] = servers.each_ref().map(Peer::address);
    let folder = certificates.folder();
    let settings = "health = \"off\"";
    let balancer = start(folder, settings, &[server("a", one, "")]);
    let mut held = TcpStream::connect(balancer.address()).unwrap();
    held.set_read_timeout(Some(PATIENCE)).unwrap();
    held.write_all(HELLO).unwrap();
    held.read_exact(&mut [0]).unwrap();
    balancer.await_server("a", |server| server["open"] == 1);
    write(folder, settings, &[server("a", other, "")]);
    reload(&balancer);
    assert_eq!(balancer.await_server("a", |_| true)["open"], 0);
    drop(held);
}

#[test]
fn a_server_that_cuts_connections_of_several_sources_is_ejected() {
    let certificates = Certificates::new();
    let good = named(&certificates, "good");
    let rude = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = rude.local_addr().unwrap();
    thread::spawn(move || rude.incoming().for_each(drop));
    let rest = [
        server("rude", address, ""),
        server("good", good.address(), ""),
    ];
    let settings = "policy = \"round-robin\"\nhealth = \"off\"";
    let balancer = start(certificates.folder(), settings, &rest);
    // Half of the clients reach the server that closes connections. The balancer ejects this server after three
    // cut connections.
    strangers(&balancer, 6);
    balancer.await_line("server ejected");
    assert_eq!(balancer.await_server("rude", |_| true)["state"], "ejected");
    assert_eq!(who_all(&balancer, 4), ["good"]);
}

#[test]
fn a_draining_server_keeps_its_clients_and_gets_no_new_ones() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "policy = \"round-robin\"\nhealth = \"off\"";
    let rest = [server("a", a, ""), server("b", b, "")];
    let balancer = start(certificates.folder(), settings, &rest);
    let sessions = ["one", "two"].map(|name| certificates.folder().join(name));
    let homes = sessions.each_ref().map(|session| {
        let (home, kind) = visit(balancer.address(), NAME, Some(session));
        assert_eq!(kind, NEW);
        home
    });
    assert_eq!(homes, ["a", "b"]);
    let drained = [server("a", a, "drain = true"), server("b", b, "")];
    write(certificates.folder(), settings, &drained);
    reload(&balancer);
    assert_eq!(who_all(&balancer, 4), ["b"]);
    let came = visit(balancer.address(), NAME, Some(&sessions[0]));
    assert_eq!(came, ("a".to_owned(), REUSED));
    write(certificates.folder(), settings, &rest);
    reload(&balancer);
    assert_eq!(who_all(&balancer, 4), ["a", "b"]);
}

#[test]
fn a_reload_adds_and_removes_servers_and_a_bad_file_changes_nothing() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "policy = \"round-robin\"\nhealth = \"off\"";
    let folder = certificates.folder();
    let balancer = start(folder, settings, &[server("a", a, "")]);
    assert_eq!(who_all(&balancer, 2), ["a"]);
    write(folder, settings, &[server("a", a, ""), server("b", b, "")]);
    let line = reload(&balancer);
    assert!(
        line.contains("added=[\"b\"] changed=[] removed=[]"),
        "{line}"
    );
    assert_eq!(who_all(&balancer, 4), ["a", "b"]);
    let made = "sessile_balance_server_connections_total";
    let of = |name| balancer.metrics().sum(made, &[("server", name)]);
    assert_eq!([of("a"), of("b")], [4, 2]);

    let twice = [server("b", b, ""), server("b", b, "wait = 1")];
    write(folder, settings, &twice);
    let said = balancer.reload();
    assert!(said.contains("unknown key `wait`"), "{said}");
    assert!(said.contains("the old one stays in use"), "{said}");
    assert_eq!(who_all(&balancer, 4), ["a", "b"]);

    // An open connection survives when its server is removed from the configuration.
    let mut held = TcpStream::connect(balancer.address()).unwrap();
    held.set_read_timeout(Some(PATIENCE)).unwrap();
    held.write_all(HELLO).unwrap();
    held.read_exact(&mut [0]).unwrap();
    write(folder, settings, &[server("b", b, "")]);
    reload(&balancer);
    assert_eq!(who_all(&balancer, 2), ["b"]);
    // The client sends a fatal alert. The removed server still gets the alert and ends the connection.
    held.write_all(&[21, 3, 3, 0, 2, 2, 40]).unwrap();
    let mut answer = Vec::new();
    held.read_to_end(&mut answer).unwrap();
    assert!(!answer.is_empty());
    let names: Vec<_> = balancer.snapshot()["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|server| server["name"].clone())
        .collect();
    assert_eq!(names, ["b"]);
}

#[test]
fn a_server_that_was_added_gets_its_share_of_new_clients_step_by_step() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "policy = \"round-robin\"\nhealth = \"off\"\nslow-start = \"10h\"";
    let folder = certificates.folder();
    let balancer = start(folder, settings, &[server("a", a, "")]);
    write(folder, settings, &[server("a", a, ""), server("b", b, "")]);
    reload(&balancer);
    let added = balancer.await_server("b", |_| true);
    assert_eq!(added["state"], "slow-start");
    assert_eq!(added["share_percent"], 10);
    let went: Vec<String> = (0..11).map(|_| who(&balancer)).collect();
    assert_eq!(went.iter().filter(|it| *it == "b").count(), 1, "{went:?}");
}

#[test]
fn a_server_without_tls_is_up_by_tcp_checks_and_down_by_tls_checks() {
    let certificates = Certificates::new();
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = mute.local_addr().unwrap();
    thread::spawn(move || mute.incoming().for_each(drop));
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    for (health, states) in [("tcp", ["up", "down"]), ("tls", ["down", "down"])] {
        let settings = format!("health = \"{health}\"\nhealth-interval = \"20ms\"");
        let rest = [server("mute", address, ""), server("nobody", nobody, "")];
        let balancer = start(certificates.folder(), &settings, &rest);
        for (name, state) in ["nobody", "mute"].into_iter().zip([states[1], states[0]]) {
            balancer.await_server(name, |server| server["state"] == state);
        }
    }
}

#[test]
fn a_reload_names_the_settings_that_need_a_restart() {
    let certificates = Certificates::new();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let folder = certificates.folder();
    let rest = [server("a", address, "")];
    let balancer = start(folder, "health = \"off\"", &rest);
    let more = [
        server("a", address, ""),
        "[connection]\nmax = 7\n".to_owned(),
    ];
    write(folder, "health = \"off\"", &more);
    let line = reload(&balancer);
    assert!(
        line.contains("connection.max") && !line.contains("listener"),
        "{line}"
    );
}

#[test]
fn the_api_shows_all_servers_and_changes_one_with_the_token() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "policy = \"round-robin\"\nhealth = \"off\"";
    let rest = [server("a", a, ""), server("b", b, "weight = 3")];
    let balancer = start(certificates.folder(), settings, &rest);
    who(&balancer);
    balancer.await_metrics(|metrics| metrics.routed("policy", "not-offered") == 1);
    let shown = balancer.snapshot();
    let pool = json!({"name": "default", "names": [], "alpn": null, "policy": "round-robin", "servers": ["a", "b"]});
    assert_eq!(shown["pools"], json!([pool]));
    assert_eq!(shown["servers"][1]["weight"], 3);
    assert_eq!(shown["servers"][0]["address"], json!(a.to_string()));
    let one = json!({"policy": {"not-offered": 1}});
    assert_eq!(shown["connections"], one);
    assert_eq!(shown["servers"][0]["routed"], json!({}));
    assert_eq!(shown["servers"][1]["routed"], one);
    assert_eq!(shown["resumption_ratio"], json!(null));
    eventually("it has ended", || balancer.snapshot()["open"] == 0);
    let shown = balancer.snapshot();
    for bytes in ["bytes_up", "bytes_down"] {
        assert_ne!(shown[bytes], 0, "{bytes}");
        assert_eq!(shown[bytes], shown["servers"][1][bytes], "{bytes}");
    }

    let token = fs::read_to_string(certificates.folder().join("token")).unwrap();
    let token = Some(token.trim());
    let drain = |server: &str, token: Option<&str>, body: &str| {
        let request = format!("POST /api/balancer/servers/{server}");
        balancer.api(&request, token, body)
    };
    let body = r#"{"drain": true}"#;
    for wrong in [None, Some("guess"), Some("")] {
        assert_eq!(drain("a", wrong, body).0, 401);
    }
    assert_eq!(drain("x", token, body).0, 404);
    for body in ["", "{", "[]", r#"{"weight": 0}"#, r#"{"wait": 1}"#] {
        let (status, said) = drain("a", token, body);
        assert_eq!(status, 400, "{said}");
    }
    assert_eq!(drain("a", token, &" ".repeat(5000)).0, 413);
    assert_eq!(
        balancer.api("GET /api/balancer/servers/a", token, "").0,
        405
    );
    assert_eq!(balancer.api("POST /api/balancer", token, body).0, 405);
    assert_eq!(balancer.snapshot()["servers"], shown["servers"]);

    let (status, said) = drain("a", token, r#"{"drain": true, "weight": 9}"#);
    assert_eq!(status, 200, "{said}");
    assert_eq!(
        (&said["state"], &said["weight"]),
        (&json!("draining"), &json!(9))
    );
    assert_eq!(who_all(&balancer, 3), ["b"]);
    // A reload discards changes that were made through the API.
    reload(&balancer);
    assert_eq!(balancer.snapshot()["servers"][0]["state"], "up");
}

#[test]
fn no_server_gets_more_connections_than_max_connections() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let rest = [
        server("a", a, "max-connections = 1"),
        server("b", b, "max-connections = 2"),
    ];
    let settings = "policy = \"least-connections\"\nhealth = \"off\"";
    let balancer = start(certificates.folder(), settings, &rest);
    let hold = || {
        let mut io = TcpStream::connect(balancer.address()).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.write_all(HELLO).unwrap();
        let answered = io.read(&mut [0]);
        answered.is_ok_and(|len| len == 1).then_some(io)
    };
    let held = [hold(), hold(), hold()];
    assert!(held.iter().all(Option::is_some));
    assert!(hold().is_none());
    let metrics = balancer.metrics();
    let open = ["a", "b"].map(|name| {
        metrics.sum(
            "sessile_balance_server_connections_open",
            &[("server", name)],
        )
    });
    assert_eq!(open, [1, 2], "{metrics}");
    assert_eq!(metrics.turned_away("no-server"), 1, "{metrics}");
    drop(held);
    balancer.await_metrics(|it| it.sum("sessile_balance_server_connections_open", &[]) == 0);
    who(&balancer);
}
