//! Route misses are counted by rule and reason, and the metrics show the states of the servers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::balance_labels::{self, export};
use crate::balance_servers::{named, reload, server, start, visit, write};
use crate::peers::{Certificates, NAME, Peer, Sessile};
use crate::store::setup::Farm;

/// A ClientHello as OpenSSL sends it, without a server name.
const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls12-id-full.bin");

const PATIENCE: Duration = Duration::from_secs(15);

const ROUND_ROBIN: &str = "policy = \"round-robin\"\nhealth = \"off\"";

fn missed(balancer: &Sessile, by: &str, cause: &str) -> u64 {
    let labels = [("routed_by", by), ("cause", cause)];
    let name = "sessile_balance_missed_total";
    balancer.metrics().sum(name, &labels)
}

/// The states for which the server's metric is 1.
fn states(balancer: &Sessile, server: &str) -> Vec<&'static str> {
    let metrics = balancer.metrics();
    let all = ["up", "slow-start", "ejected", "down", "draining"];
    let is_in = |state: &&str| {
        let labels = [("server", server), ("state", *state)];
        metrics.sum("sessile_balance_server_state", &labels) == 1
    };
    all.into_iter().filter(is_in).collect()
}

#[test]
fn a_route_miss_of_a_full_unreachable_or_ejected_server_is_counted_by_its_reason() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let rest = [server("a", a, "max-connections = 1"), server("b", b, "")];
    let balancer = start(certificates.folder(), ROUND_ROBIN, &rest);
    let folder = certificates.folder();
    let sessions = ["one", "other", "third"].map(|name| folder.join(name));
    let visit = |session| visit(balancer.address(), NAME, Some(session)).0;
    let mut at_home = sessions.iter().filter(|session| visit(session) == "a");
    let session = at_home.next().expect("a turn of a's");
    assert_eq!(visit(session), "a");
    assert_eq!(balancer.snapshot()["missed"], json!({}));

    let mut held = [(); 2].map(|()| TcpStream::connect(balancer.address()).unwrap());
    for io in &mut held {
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.write_all(HELLO).unwrap();
        io.read_exact(&mut [0]).unwrap();
    }
    // Use a copy of the file, because OpenSSL replaces the file with a session of the other server.
    let copy = folder.join("copy");
    std::fs::copy(session, &copy).unwrap();
    assert_eq!(visit(&copy), "b");
    assert_eq!(missed(&balancer, "session-id", "full"), 1);
    drop(held);
    balancer.await_server("a", |server| server["open"] == 0);
    assert_eq!(states(&balancer, "a"), ["up"]);

    let [a, _b] = servers;
    a.kill();
    for cause in ["unreachable", "ejected"] {
        std::fs::copy(session, &copy).unwrap();
        assert_eq!(visit(&copy), "b");
        assert_eq!(missed(&balancer, "session-id", cause), 1, "{cause}");
        assert_eq!(states(&balancer, "a"), ["ejected"]);
    }
    let expected = json!({"session-id": {"ejected": 1, "full": 1, "unreachable": 1}});
    assert_eq!(balancer.snapshot()["missed"], expected);
}

#[test]
fn a_route_miss_of_a_server_that_is_down_is_counted_by_its_reason() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "policy = \"round-robin\"\nhealth = \"tcp\"\nhealth-interval = \"20ms\"";
    let rest = [server("a", a, ""), server("b", b, "")];
    let balancer = start(certificates.folder(), settings, &rest);
    let sessions = ["one", "other"].map(|name| certificates.folder().join(name));
    let visit = |session| visit(balancer.address(), NAME, Some(session)).0;
    let mut at_home = sessions.iter().filter(|session| visit(session) == "a");
    let session = at_home.next().expect("a turn of a's");
    let [a, _b] = servers;
    a.kill();
    balancer.await_server("a", |server| server["state"] == "down");
    assert_eq!(states(&balancer, "a"), ["down"]);
    assert_eq!(visit(session), "b");
    assert_eq!(missed(&balancer, "session-id", "down"), 1);
}

#[test]
fn a_route_miss_of_an_absent_or_silent_server_is_counted_by_its_reason() {
    let farm = Farm::new("");
    let servers = ["web1", "web2"].map(|name| farm.serve(name));
    export(&farm);
    let session = farm.folder().join("session");
    // This server makes the session, so the ticket has the label of this server.
    let (home, _) = balance_labels::visit(servers[0].address(), "-tls1_3", &session);
    assert_eq!(home, "web1");
    let rude = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = rude.local_addr().unwrap();
    std::thread::spawn(move || rude.incoming().for_each(drop));
    let folder = farm.folder();
    let file = folder.join("balance.toml");
    let balance = |servers: &[String]| {
        let text = format!(
            "[key]\nfile = \"route.key\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
             [balance]\nhealth = \"off\"\n{}",
            servers.concat()
        );
        std::fs::write(&file, text).unwrap();
    };
    let other = server("web2", servers[1].address(), "");
    balance(std::slice::from_ref(&other));
    let balancer = Sessile::balance_configured(&file, folder);
    for cause in ["elsewhere", "hung-up"] {
        let copy = folder.join("copy");
        std::fs::copy(&session, &copy).unwrap();
        let (server_name, verdict) = balance_labels::visit(balancer.address(), "-tls1_3", &copy);
        assert_eq!((&*server_name, &*verdict), ("web2", "resumed/psk"));
        assert_eq!(missed(&balancer, "label", cause), 1, "{cause}");
        balance(&[server("web1", address, ""), other.clone()]);
        reload(&balancer);
    }
}

#[test]
fn metrics_show_draining_and_slow_starting_servers() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let settings = "health = \"off\"\nslow-start = \"1h\"";
    let folder = certificates.folder();
    let balancer = start(folder, settings, &[server("a", a, "drain = true")]);
    assert_eq!(states(&balancer, "a"), ["draining"]);
    write(folder, settings, &[server("a", a, ""), server("b", b, "")]);
    reload(&balancer);
    assert_eq!(states(&balancer, "a"), ["up"]);
    assert_eq!(states(&balancer, "b"), ["slow-start"]);
}
