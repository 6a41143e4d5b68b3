//! Servers of `sessile balance` that are found by DNS names, with dnsmasq as the DNS server.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::balance_labels::{export, visit as visit_farm};
use crate::balance_servers::{reload, start, visit, write};
use crate::peers::{Certificates, Dns, NAME, Peer, Sessile, eventually, nginx_with, run};
use crate::store::setup::Farm;

const CONNECTIONS: &str = "sessile_balance_server_connections_total";

/// One nginx on 127.0.0.1 and several other addresses, with one port. It answers a request for `/who` with the
/// address that the client reached.
fn nginx_on(certificates: &Certificates, addresses: &[&str]) -> Peer {
    let pair = certificates.nginx_directives();
    nginx_with(certificates.folder(), |port| {
        let listen: String = ["127.0.0.1"]
            .iter()
            .chain(addresses)
            .map(|address| format!("listen {address}:{port} ssl;\n"))
            .collect();
        format!(
            "{listen}{pair}\nssl_session_cache shared:s:1m; ssl_session_tickets off;\n\
             location = /who {{ return 200 'i am $server_addr\\n'; }}\n\
             location / {{ return 204; }}\n"
        )
    })
}

/// A `[[balance.server]]` with a DNS name.
fn named_server(name: &str, address: &str) -> String {
    format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n")
}

/// The names of all servers in the API.
fn names(balancer: &Sessile) -> Vec<String> {
    names_in(&balancer.snapshot())
}

fn names_in(snapshot: &Value) -> Vec<String> {
    let servers = snapshot["servers"].as_array().unwrap().iter();
    let names = servers.map(|server| server["name"].as_str().unwrap().to_owned());
    names.collect()
}

/// The addresses that this many new clients reach, without duplicates.
fn reached(balancer: &Sessile, clients: usize) -> Vec<String> {
    let visits = (0..clients).map(|_| visit(balancer.address(), NAME, None).0);
    let mut reached: Vec<String> = visits.collect();
    reached.sort();
    reached.dedup();
    reached
}

/// Waits until the balancer has these servers, and all of them are up.
fn await_servers(balancer: &Sessile, wanted: &[String]) {
    eventually(&format!("the servers are {wanted:?}"), || {
        let snapshot = balancer.snapshot();
        let mut servers = snapshot["servers"].as_array().unwrap().iter();
        names_in(&snapshot) == wanted && servers.all(|server| server["state"] == "up")
    });
}

/// The entry of a DNS name in the API.
fn entry(balancer: &Sessile, name: &str) -> Value {
    let snapshot = balancer.snapshot();
    let mut entries = snapshot["names"].as_array().unwrap().iter();
    entries.find(|entry| entry["name"] == name).unwrap().clone()
}

#[test]
fn the_servers_of_a_name_follow_its_addresses_and_stay_if_the_name_is_gone() {
    let certificates = Certificates::new();
    let nginx = nginx_on(&certificates, &["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
    let port = nginx.address().port();
    let at = |last: u8| format!("web/127.0.0.{last}:{port}");
    let dns = Dns::start("127.0.0.3 web.test\n127.0.0.2 web.test\n");
    let settings = format!(
        "policy = \"round-robin\"\nhealth = \"tcp\"\nhealth-interval = \"50ms\"\n{}",
        dns.setting()
    );
    let folder = certificates.folder();
    let rest = [named_server("web", &format!("Web.test:{port}"))];
    let balancer = start(folder, &settings, &rest);
    await_servers(&balancer, &[at(2), at(3)]);
    assert_eq!(reached(&balancer, 4), ["127.0.0.2", "127.0.0.3"]);
    assert_eq!(
        entry(&balancer, "web"),
        json!({
            "name": "web", "address": format!("web.test:{port}"), "pool": "default", "drain": false, "weight": 1,
            "from_api": false, "servers": [at(2), at(3)], "lookup_failed": null,
        })
    );
    let shown = balancer.await_server(&at(2), |_| true);
    assert_eq!(shown["address"], json!(format!("127.0.0.2:{port}")));
    assert_eq!(shown["found_by"], json!(format!("web.test:{port}")));

    // One server leaves, and another one comes. The server that stays keeps its counts.
    dns.set_hosts("127.0.0.4 web.test\n127.0.0.3 web.test\n");
    await_servers(&balancer, &[at(3), at(4)]);
    let line = balancer.await_line(&format!("added=[\"{}\"]", at(4)));
    assert!(
        line.contains("the servers of a name have changed"),
        "{line}"
    );
    balancer.await_line(&format!("removed=[\"{}\"]", at(2)));
    assert_eq!(reached(&balancer, 4), ["127.0.0.3", "127.0.0.4"]);
    let metrics = balancer.metrics();
    let made = |name: &str| metrics.sum(CONNECTIONS, &[("server", name)]);
    assert_eq!([made(&at(3)), made(&at(4))], [4, 2]);
    assert!(!balancer.metrics_text().contains(&at(2)));

    // A name without an answer keeps its servers, also over a reload.
    dns.set_hosts("");
    let line = balancer.await_line("cannot look up the name of servers");
    assert!(
        line.contains("NXDOMAIN") && line.contains("servers=2"),
        "{line}"
    );
    reload(&balancer);
    let lookups = "sessile_balance_name_lookups_total";
    balancer.await_metrics(|it| it.sum(lookups, &[("result", "failed")]) > 1);
    assert_eq!(names(&balancer), [at(3), at(4)]);
    assert_eq!(reached(&balancer, 4), ["127.0.0.3", "127.0.0.4"]);
    let failed = &entry(&balancer, "web")["lookup_failed"];
    assert_eq!(failed["error"], "the name does not exist (NXDOMAIN)");
    assert_eq!(
        balancer.count_lines("cannot look up the name of servers"),
        1
    );
    assert_eq!(balancer.readiness(), (200, "ready\n".to_owned()));

    dns.set_hosts("127.0.0.2 web.test\n");
    await_servers(&balancer, &[at(2)]);
    balancer.await_line("the name of servers has an answer again");
    assert_eq!(entry(&balancer, "web")["lookup_failed"], json!(null));
}

#[test]
fn a_balancer_starts_without_an_answer_and_reports_that_it_has_no_server() {
    let certificates = Certificates::new();
    let nginx = nginx_on(&certificates, &["127.0.0.2"]);
    let port = nginx.address().port();
    let dns = Dns::start("");
    let settings = format!("health-interval = \"50ms\"\n{}", dns.setting());
    let rest = [named_server("web", &format!("web.test:{port}"))];
    let balancer = start(certificates.folder(), &settings, &rest);
    balancer.await_line("the balancer has no server of this name");
    let unready = format!(
        "no server is up in pool default (web.test:{port}: the name does not exist (NXDOMAIN))\n"
    );
    assert_eq!(balancer.readiness(), (503, unready));
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect"]);
    let ran = run("openssl", command.arg(balancer.address().to_string()), "");
    assert!(!ran.status.success());
    balancer.await_metrics(|metrics| metrics.turned_away("no-server") == 1);
    dns.set_hosts("127.0.0.2 web.test\n");
    await_servers(&balancer, &[format!("web/127.0.0.2:{port}")]);
    assert_eq!(balancer.readiness(), (200, "ready\n".to_owned()));
    assert_eq!(reached(&balancer, 1), ["127.0.0.2"]);
}

#[test]
fn a_dns_server_that_refuses_changes_no_server() {
    let certificates = Certificates::new();
    let nginx = nginx_on(&certificates, &["127.0.0.2"]);
    let port = nginx.address().port();
    // dnsmasq refuses queries for names that are neither below `test` nor in its file.
    let dns = Dns::start("127.0.0.2 web.other\n");
    let settings = format!("health = \"off\"\n{}", dns.setting());
    let rest = [named_server("web", &format!("web.other:{port}"))];
    let balancer = start(certificates.folder(), &settings, &rest);
    let servers = [format!("web/127.0.0.2:{port}")];
    assert_eq!(names(&balancer), servers);
    dns.set_hosts("");
    let line = balancer.await_line("the servers of the last answer stay");
    assert!(line.contains("Refused"), "{line}");
    assert_eq!(names(&balancer), servers);
    dns.set_hosts("127.0.0.2 web.other\n");
    balancer.await_line("the name of servers has an answer again");
}

#[test]
fn a_name_has_ipv4_and_ipv6_addresses_until_one_kind_is_gone() {
    let certificates = Certificates::new();
    let dns = Dns::start("127.0.0.2 web.test\n::1 web.test\n");
    let settings = format!("health = \"off\"\n{}", dns.setting());
    let rest = [named_server("web", "web.test:443")];
    let balancer = start(certificates.folder(), &settings, &rest);
    assert_eq!(names(&balancer), ["web/127.0.0.2:443", "web/[::1]:443"]);
    for (hosts, left) in [
        ("127.0.0.2 web.test\n", "web/127.0.0.2:443"),
        ("::1 web.test\n", "web/[::1]:443"),
    ] {
        dns.set_hosts(hosts);
        eventually(left, || names(&balancer) == [left]);
    }
}

#[test]
fn a_dns_server_that_does_not_answer_delays_the_start_and_names_in_the_hosts_file_need_none() {
    let certificates = Certificates::new();
    let nginx = nginx_on(&certificates, &[]);
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let settings = format!(
        "health = \"off\"\nresolver = \"{}\"",
        silent.local_addr().unwrap()
    );
    let rest = [
        named_server("web", "web.test:443"),
        named_server("local", &format!("localhost:{}", nginx.address().port())),
    ];
    let balancer = start(certificates.folder(), &settings, &rest);
    let line = balancer.await_line("cannot look up the name of servers");
    assert!(
        line.contains("name=web.test:443 error=no answer within 5 s"),
        "{line}"
    );
    let servers = names(&balancer);
    let local = format!("local/{}", nginx.address());
    assert!(servers.contains(&local), "{servers:?}");
    assert_eq!(reached(&balancer, 1), ["127.0.0.1"]);

    // Another DNS server is asked at once, although the old one still owes an answer.
    let dns = Dns::start("127.0.0.2 web.test\n");
    let settings = format!("health = \"off\"\n{}", dns.setting());
    write(certificates.folder(), &settings, &rest);
    reload(&balancer);
    let found = "web/127.0.0.2:443".to_owned();
    eventually("the name has an answer", || {
        names(&balancer).contains(&found)
    });
}

#[test]
fn a_server_that_dns_adds_gets_no_client_before_its_first_check() {
    let certificates = Certificates::new();
    let nginx = nginx_on(&certificates, &["127.0.0.2"]);
    let port = nginx.address().port();
    // The kernel accepts connections, and nothing answers them. So the check lasts.
    let _silent = ["127.0.0.3", "127.0.0.4"].map(|ip| TcpListener::bind((ip, port)).unwrap());
    let dns = Dns::start("127.0.0.2 web.test\n127.0.0.4 web.test\n");
    let settings = format!(
        "policy = \"round-robin\"\nconnect-timeout = \"1h\"\n{}",
        dns.setting()
    );
    let rest = [named_server("web", &format!("web.test:{port}"))];
    let balancer = start(certificates.folder(), &settings, &rest);
    let at = |last: u8| format!("web/127.0.0.{last}:{port}");
    balancer.await_server(&at(2), |server| server["state"] == "up");
    dns.set_hosts("127.0.0.2 web.test\n127.0.0.3 web.test\n127.0.0.4 web.test\n");
    for silent in [3, 4] {
        let server = balancer.await_server(&at(silent), |_| true);
        assert_eq!(server["state"], "down");
    }
    assert_eq!(reached(&balancer, 4), ["127.0.0.2"]);
}

#[test]
fn a_name_is_looked_up_again_when_a_server_of_it_goes_down() {
    let certificates = Certificates::new();
    let nginx = nginx_on(&certificates, &["127.0.0.3"]);
    let port = nginx.address().port();
    let going = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let lifetime = ["--local-ttl=3600".to_owned()];
    let dns = Dns::with("127.0.0.2 web.test\n", &lifetime);
    let settings = format!(
        "health = \"tcp\"\nhealth-interval = \"50ms\"\n{}",
        dns.setting()
    );
    let rest = [named_server("web", &format!("web.test:{port}"))];
    let balancer = start(certificates.folder(), &settings, &rest);
    assert_eq!(names(&balancer), [format!("web/127.0.0.2:{port}")]);
    dns.set_hosts("127.0.0.3 web.test\n");
    let dns = dns.restart_with(&lifetime);
    drop(going);
    let at = |last: u8| format!("web/127.0.0.{last}:{port}");
    balancer.await_server(&at(3), |server| server["state"] == "up");
    assert_eq!(reached(&balancer, 1), ["127.0.0.3"]);

    // A new interval counts from the next lookup on.
    let folder = certificates.folder();
    write(
        folder,
        &format!("{settings}\nlookup-interval = \"1s\""),
        &rest,
    );
    reload(&balancer);
    dns.set_hosts("127.0.0.1 web.test\n");
    await_servers(&balancer, &[at(1)]);
}

/// An SRV record of `_tls._tcp.web.test`, as an argument of dnsmasq.
fn record(target: &str, address: SocketAddr, priority: u16, weight: u16) -> String {
    let port = address.port();
    format!("--srv-host=_tls._tcp.web.test,{target},{port},{priority},{weight}")
}

#[test]
fn srv_records_give_hosts_ports_and_weights() {
    let certificates = Certificates::new();
    let servers = [(); 3].map(|()| nginx_on(&certificates, &[]));
    let [a, b, c] = servers.each_ref().map(Peer::address);
    let records = [
        record("one.test", a, 1, 3),
        record("one.test", b, 1, 0),
        // Records of the second priority and records without a host are not used.
        record("one.test", c, 2, 9),
        record("gone.test", c, 1, 9),
    ];
    let dns = Dns::with("127.0.0.1 one.test\n", &records);
    let settings = format!(
        "policy = \"round-robin\"\nhealth = \"off\"\n{}",
        dns.setting()
    );
    let rest = [named_server("web", "_tls._tcp.web.test")];
    let balancer = start(certificates.folder(), &settings, &rest);
    let names_of = |addresses: &[SocketAddr]| {
        let mut names: Vec<_> = addresses.to_vec();
        names.sort();
        let names = names.iter().map(|address| format!("web/{address}"));
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&balancer), names_of(&[a, b]));
    let weight =
        |address| balancer.await_server(&format!("web/{address}"), |_| true)["weight"].clone();
    assert_eq!([weight(a), weight(b)], [3, 1]);
    for _ in 0..8 {
        visit(balancer.address(), NAME, None);
    }
    let metrics = balancer.metrics();
    let made = |address| metrics.sum(CONNECTIONS, &[("server", &format!("web/{address}"))]);
    assert_eq!([made(a), made(b)], [6, 2]);
    let _dns = dns.restart_with(&[record("one.test", a, 1, 5), record("one.test", c, 1, 1)]);
    await_servers(&balancer, &names_of(&[a, c]));
    assert_eq!(weight(a), 5);
}

/// A balancer with the route part of the farm's key, whose servers have the DNS name `_tls._tcp.web.test`.
fn farm_balancer(farm: &Farm, dns: &Dns) -> Sessile {
    balancer_of(farm, dns, &named_server("farm", "_tls._tcp.web.test"))
}

/// A balancer with the route part of the farm's key and these servers.
fn balancer_of(farm: &Farm, dns: &Dns, servers: &str) -> Sessile {
    let file = farm.folder().join("balance.toml");
    let text = format!(
        "[key]\nfile = \"route.key\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
         [balance]\npolicy = \"round-robin\"\nhealth-interval = \"50ms\"\n{}\n{servers}",
        dns.setting()
    );
    fs::write(&file, text).unwrap();
    Sessile::balance_configured(&file, Path::new(crate::peers::NO_FOLDER))
}

#[test]
fn the_number_of_a_server_is_learned_from_its_tickets_and_labels_lead_to_it() {
    let farm = Farm::new("");
    let servers = ["web1", "web2"].map(|name| farm.serve(name));
    let addresses = servers.each_ref().map(|server| server.address());
    export(&farm);
    let records = addresses.map(|address| record("one.test", address, 1, 1));
    let dns = Dns::with("127.0.0.1 one.test\n", &records);
    let balancer = farm_balancer(&farm, &dns);
    let has_number = |server: &Value| server["number"].is_u64();
    let numbers = addresses.map(|address| {
        let server = balancer.await_server(&format!("farm/{address}"), has_number);
        server["number"].clone()
    });
    assert_ne!(numbers[0], numbers[1]);
    let sessions = ["a", "b", "c"].map(|name| farm.folder().join(name));
    let homes = sessions.each_ref().map(|session| {
        let (home, verdict) = visit_farm(balancer.address(), "-tls1_3", session);
        assert_eq!(verdict, "full/nothing-offered");
        home
    });
    // A reload keeps the numbers.
    reload(&balancer);
    for (session, home) in sessions.iter().zip(homes) {
        let came = visit_farm(balancer.address(), "-tls1_3", session);
        assert_eq!(came, (home, "resumed/psk".to_owned()));
    }
    balancer.await_metrics(|metrics| metrics.routed("label", "resumed") == 3);
}

/// Two visits of a client to a farm whose servers have the same number. Returns the connections that a label
/// led to a server which resumed.
fn label_visits_of_equal_numbers(records: [&str; 2], entries: &str, number: &Value) -> u64 {
    let farm = Farm::new("").numbered(7);
    let servers = ["web1", "web2"].map(|name| farm.serve(name));
    let addresses = servers.each_ref().map(|server| server.address());
    export(&farm);
    let arguments: Vec<String> = records
        .iter()
        .zip(addresses)
        .map(|(name, address)| format!("--srv-host={name},one.test,{},1,1", address.port()))
        .collect();
    let dns = Dns::with("127.0.0.1 one.test\n", &arguments);
    let balancer = balancer_of(&farm, &dns, entries);
    if number.is_null() {
        let line = balancer.await_line("the tickets of two servers have the same number");
        assert!(line.contains("number=7"), "{line}");
    }
    for name in names(&balancer) {
        balancer.await_server(&name, |server| server["number"] == *number);
    }
    let session = farm.folder().join("session");
    for verdict in ["full/nothing-offered", "resumed/psk"] {
        let (_, shown) = visit_farm(balancer.address(), "-tls1_3", &session);
        assert_eq!(shown, verdict);
    }
    let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == 2);
    metrics.routed("label", "resumed")
}

#[test]
fn labels_lead_to_no_server_whose_number_a_server_of_another_name_shows() {
    let entries = ["_tls._tcp.a.test", "_tls._tcp.b.test"];
    let servers = entries
        .map(|name| named_server(&name[10..11], name))
        .concat();
    let led = label_visits_of_equal_numbers(entries, &servers, &json!(null));
    assert_eq!(led, 0);
}

#[test]
fn labels_lead_to_any_address_of_a_name_that_shows_their_number() {
    let records = ["_tls._tcp.web.test"; 2];
    let servers = named_server("farm", records[0]);
    let led = label_visits_of_equal_numbers(records, &servers, &json!(7));
    assert_eq!(led, 1);
}

#[test]
fn a_listener_of_the_balancer_is_no_server_of_a_name() {
    let certificates = Certificates::new();
    let nginx = nginx_on(&certificates, &["127.0.0.2"]);
    let port = nginx.address().port();
    let dns = Dns::start("127.0.0.2 web.test\n0.0.0.0 web.test\n127.0.0.1 loop.test\n");
    let settings = format!("health = \"off\"\n{}", dns.setting());
    let rest = [named_server("web", &format!("web.test:{port}"))];
    let folder = certificates.folder();
    let balancer = start(folder, &settings, &rest);
    balancer.await_line("the name has addresses that cannot be those of servers");
    let servers = [format!("web/127.0.0.2:{port}")];
    assert_eq!(names(&balancer), servers);
    let token = fs::read_to_string(folder.join("token")).unwrap();
    let body = json!({ "address": format!("loop.test:{}", balancer.address().port()) });
    let request = "PUT /api/balancer/servers/loop";
    let (status, said) = balancer.api(request, Some(token.trim()), &body.to_string());
    assert_eq!(status, 200, "{said}");
    let line = balancer.await_line("cannot look up the name of servers");
    assert!(line.contains("none of its own listeners"), "{line}");
    assert_eq!(names(&balancer), servers);
}

#[test]
fn a_change_of_one_server_of_a_name_stays_until_the_reload() {
    let certificates = Certificates::new();
    let nginx = nginx_on(&certificates, &["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
    let port = nginx.address().port();
    let dns = Dns::start("127.0.0.2 web.test\n127.0.0.3 web.test\n");
    let settings = format!(
        "policy = \"round-robin\"\nhealth = \"off\"\n{}",
        dns.setting()
    );
    let rest = [named_server("web", &format!("web.test:{port}"))];
    let folder = certificates.folder();
    let balancer = start(folder, &settings, &rest);
    let token = fs::read_to_string(folder.join("token")).unwrap();
    let request = format!("POST /api/balancer/servers/web/127.0.0.2:{port}");
    let (status, said) = balancer.api(&request, Some(token.trim()), r#"{"drain": true}"#);
    assert_eq!(
        (status, &said["state"]),
        (200, &json!("draining")),
        "{said}"
    );
    assert_eq!(reached(&balancer, 3), ["127.0.0.3"]);
    dns.set_hosts("127.0.0.2 web.test\n127.0.0.4 web.test\n");
    await_servers_named(&balancer, &[2, 4], port);
    assert_eq!(reached(&balancer, 3), ["127.0.0.4"]);
    reload(&balancer);
    assert_eq!(reached(&balancer, 4), ["127.0.0.2", "127.0.0.4"]);

    // A later change of the entry replaces the change of one server.
    let post = |server: &str, body: &str| {
        let request = format!("POST /api/balancer/servers/{server}");
        balancer.api(&request, Some(token.trim()), body)
    };
    assert_eq!(
        post(&format!("web/127.0.0.2:{port}"), r#"{"drain": true}"#).0,
        200
    );
    assert_eq!(reached(&balancer, 3), ["127.0.0.4"]);
    assert_eq!(post("web", r#"{"drain": false}"#).0, 200);
    assert_eq!(reached(&balancer, 4), ["127.0.0.2", "127.0.0.4"]);

    // A change of the entry concerns all its servers.
    let (status, said) = post("web", r#"{"weight": 9}"#);
    assert_eq!((status, &said["weight"]), (200, &json!(9)), "{said}");
    let server = balancer.await_server(&format!("web/127.0.0.2:{port}"), |_| true);
    assert_eq!(server["weight"], 9);
    write(
        folder,
        &settings,
        &[named_server("other", &format!("web.test:{port}"))],
    );
    reload(&balancer);
    assert_eq!(names(&balancer)[0], format!("other/127.0.0.2:{port}"));
}

fn await_servers_named(balancer: &Sessile, last: &[u8], port: u16) {
    let wanted: Vec<_> = last
        .iter()
        .map(|last| format!("web/127.0.0.{last}:{port}"))
        .collect();
    eventually("the servers have changed", || names(balancer) == wanted);
}
