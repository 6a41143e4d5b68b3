//! Servers that end every handshake with an offer of their own session. Behind `sessile balance`, these servers
//! stay up and serve new clients, and the balancer reports the fault.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::ProducesTickets;
use sessile::client::{Client, Mechanism, Target, Trust};
use sessile_proto::Word;
use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;
use socket2::{Domain, SockRef, Socket, Type};

use crate::balance_servers::{server, start};
use crate::peers::{
    By, Certificates, End, Fault, Faulty, NAME, Sessile, eventually, record, ticketer,
};

const PATIENCE: Duration = Duration::from_secs(30);

const FAULT: &str = "the server ended a handshake that offered its own session";

/// New clients of each server.
const CLIENTS: usize = 3;

/// A faulty server, alone in a pool.
struct Case {
    name: String,
    by: By,
    end: End,
    server: Faulty,
}

impl Case {
    fn host(&self) -> String {
        format!("{}.test", self.name)
    }

    fn config(&self) -> String {
        let (name, host) = (&self.name, self.host());
        let pool = format!("[[balance.pool]]\nname = \"{name}\"\nnames = [\"{host}\"]\n");
        let of_pool = format!("pool = \"{name}\"");
        pool + &server(name, self.server.address(), &of_pool)
    }
}

fn client(timeout: Duration) -> Client {
    Client::new(Mechanism::Any, &Trust::Insecure, timeout).unwrap()
}

/// A case for each kind of session and each way to end the handshake.
fn cases(certificates: &Certificates) -> Vec<Case> {
    let all = By::ALL.into_iter();
    let all = all.flat_map(|by| End::ALL.map(|end| (by, end)));
    all.map(|(by, end)| Case {
        name: format!("{}-{}", by.as_str(), end.as_str()),
        by,
        end,
        server: Faulty::start(certificates, by, Fault::Offers(end)),
    })
    .collect()
}

/// A complete visit through the balancer, after which the client has a session.
async fn visit(client: &Client, balancer: SocketAddr, case: &Case) {
    let target = Target::new(balancer, &case.host()).unwrap();
    let mut connection = client.connect(&target).await.expect(&case.name);
    if case.by == By::Psk {
        assert!(connection.await_ticket(PATIENCE).await > 0, "{}", case.name);
    }
    connection.close(PATIENCE).await;
}

fn metric(balancer: &Sessile, name: &str, case: &Case) -> u64 {
    let name = format!("sessile_balance_server_{name}");
    balancer.metrics().sum(&name, &[("server", &case.name)])
}

/// Asserts that the API, the log and the metrics report the fault, and that the server is up.
fn is_named(balancer: &Sessile, case: &Case) {
    let name = &case.name;
    let found = balancer.await_server(name, |it| !it["session_fault"].is_null());
    assert_eq!(found["state"], "up", "{found:#}");
    assert!(found["check_failed"].is_null(), "{found:#}");
    let fault = &found["session_fault"];
    assert_eq!(fault["diagnosis"], FAULT, "{found:#}");
    assert_eq!(fault["offered"][0], case.by.as_str(), "{found:#}");
    let error = fault["error"].as_str().unwrap();
    let expected = match case.end {
        End::Alert => "alert internal_error",
        End::Hang => "not finished after",
        End::Reset => "connection reset",
    };
    assert!(error.contains(expected), "{name}: {error}");
    balancer.await_line(&format!("{FAULT}; it stays up"));
    assert_eq!(metric(balancer, "session_fault", case), 1, "{name}");
    assert_eq!(metric(balancer, "up", case), 1, "{name}");
    assert_eq!(metric(balancer, "failures_total", case), 0, "{name}");
}

/// Asserts that routine checks offer no session while the fault lasts.
fn costs_no_other_check(cases: &[Case]) {
    let before: Vec<_> = cases.iter().map(|case| case.server.finished()).collect();
    for (case, before) in cases.iter().zip(before) {
        eventually("more checks come", || case.server.finished() > before + 20);
        // Two checks and the two clients of the first discovery may have offered sessions.
        let offers = case.server.offers();
        assert!(offers <= 4, "{}: {offers}", case.name);
    }
}

#[tokio::test]
async fn a_server_that_ends_handshakes_with_its_own_session_stays_up_and_is_named() {
    let certificates = Certificates::new();
    let cases = cases(&certificates);
    let rest: Vec<String> = cases.iter().map(Case::config).collect();
    let settings = "health-interval = \"100ms\"\nunknown-name = \"refuse\"";
    let balancer = start(certificates.folder(), settings, &rest);
    for case in &cases {
        is_named(&balancer, case);
    }
    costs_no_other_check(&cases);
    for case in &cases {
        for _ in 0..CLIENTS {
            visit(&client(PATIENCE), balancer.address(), case).await;
        }
        // The server ends the handshake of a returning client, as without the balancer. The server stays up for
        // other clients.
        let returning = client(Duration::from_secs(2));
        visit(&returning, balancer.address(), case).await;
        let target = Target::new(balancer.address(), &case.host()).unwrap();
        let failure = returning.attempt(&target).await.err().expect(&case.name);
        let offered = failure
            .offered
            .map_or("nothing", |offer| offer.how.as_str());
        assert_eq!(offered, case.by.as_str(), "{}", case.name);
        visit(&client(PATIENCE), balancer.address(), case).await;
        assert_eq!(metric(&balancer, "up", case), 1, "{}", case.name);
    }
    // A failed handshake without an offer counts as a failed check. So a server that ends all handshakes is
    // down.
    for case in &cases {
        case.server.set(Fault::All(case.end));
    }
    for case in &cases {
        let down = balancer.await_server(&case.name, |it| it["state"] == "down");
        assert!(!down["check_failed"].is_null(), "{down:#}");
        assert_eq!(metric(&balancer, "up", case), 0, "{}", case.name);
    }
    // When a server comes up, the balancer makes a new discovery, which clears the fault.
    for case in &cases {
        case.server.set(Fault::None);
    }
    for case in &cases {
        let is_well = |it: &serde_json::Value| it["state"] == "up" && it["session_fault"].is_null();
        balancer.await_server(&case.name, is_well);
        assert_eq!(metric(&balancer, "session_fault", case), 0, "{}", case.name);
    }
    balancer.await_line("the server finishes handshakes that offer its own session again");
}

#[test]
fn a_server_that_ends_handshakes_hides_no_key_names_of_others() {
    let certificates = Certificates::new();
    let ticketer = ticketer();
    let servers = ["a", "b"].map(|name| {
        let peer = Faulty::sharing(&certificates, By::Psk, Fault::None, &ticketer);
        (server(name, peer.address(), ""), peer)
    });
    let rest = servers.each_ref().map(|(config, _)| config.clone());
    let settings = "health-interval = \"50ms\"";
    let balancer = start(certificates.folder(), settings, &rest);
    let group = |name: &str| balancer.await_server(name, |it| it["group"][0].is_string());
    assert_eq!(group("a")["group"][0], "b");
    servers[1].1.set(Fault::Offers(End::Alert));
    let has_fault = |it: &serde_json::Value| !it["session_fault"].is_null();
    let faulty = balancer.await_server("b", has_fault);
    assert_eq!(faulty["key_names"], serde_json::json!([]), "{faulty:#}");
    assert_eq!(faulty["state"], "up", "{faulty:#}");
    let other = balancer.await_server("a", |it| it["group"][0].is_null());
    assert_eq!(other["key_names"].as_array().unwrap().len(), 1, "{other:#}");
}

/// Tickets that look random. The tickets of rustls begin with a key name.
#[derive(Debug, Default)]
struct AnonymousTickets(Mutex<HashMap<Vec<u8>, Vec<u8>>>);

impl ProducesTickets for AnonymousTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        3600
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut ticket = vec![0; 32];
        let random = default_provider().secure_random;
        random.fill(&mut ticket).ok()?;
        self.0.lock().unwrap().insert(ticket.clone(), plain.into());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(ticket).cloned()
    }
}

#[tokio::test]
async fn no_address_leads_to_a_server_that_ends_handshakes_and_another_server_takes_over() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| {
        let tickets: Arc<dyn ProducesTickets> = Arc::new(AnonymousTickets::default());
        let peer = Faulty::sharing(&certificates, By::Psk, Fault::None, &tickets);
        (server(name, peer.address(), ""), peer)
    });
    let rest = servers.each_ref().map(|(config, _)| config.clone());
    let settings = "policy = \"round-robin\"\nhealth-interval = \"50ms\"";
    let balancer = start(certificates.folder(), settings, &rest);
    let client = client(PATIENCE);
    let target = Target::new(balancer.address(), NAME).unwrap();
    let kind = async || {
        let mut connection = client.connect(&target).await.expect("a handshake");
        assert!(connection.await_ticket(PATIENCE).await > 0);
        connection.close(PATIENCE).await;
        connection.outcome.kind
    };
    assert_eq!(kind().await, Kind::NotOffered);
    assert_eq!(kind().await, Kind::Resumed(How::Psk));
    servers[0].1.set(Fault::Offers(End::Alert));
    balancer.await_server("a", |it| !it["session_fault"].is_null());
    // The policy gives the client to `b`.
    assert_eq!(kind().await, Kind::Refused);
    assert_eq!(kind().await, Kind::Resumed(How::Psk));
    let metrics = balancer.await_metrics(|it| it.all_routed() == 4);
    assert_eq!(metrics.routed("address", "resumed"), 2, "{metrics}");
}

/// Sends a hello from the address `from` and waits for the end of the connection.
fn greet(balancer: SocketAddr, from: IpAddr, hello: &[u8]) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&balancer.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut io = std::net::TcpStream::from(socket);
    std::io::Write::write_all(&mut io, hello).unwrap();
    let _ = std::io::Read::read(&mut io, &mut [0]);
}

#[test]
fn a_session_fault_ejects_no_server_without_checks() {
    const NEW: &[u8] =
        include_bytes!("../../../proto/src/testdata/client-openssl-tls12-id-full.bin");
    const RETURNING: &[u8] =
        include_bytes!("../../../proto/src/testdata/client-openssl-tls12-id-resumed.bin");
    let certificates = Certificates::new();
    let rude = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = rude.local_addr().unwrap();
    thread::spawn(move || {
        for io in rude.incoming().flatten() {
            record(&io).expect("a hello");
            let _ = SockRef::from(&io).set_linger(Some(Duration::ZERO));
        }
    });
    let rest = [server("rude", address, "")];
    let balancer = start(certificates.folder(), "health = \"off\"", &rest);
    let failures = "sessile_balance_server_failures_total";
    let sources = [1, 2, 3].map(|n| IpAddr::V4(Ipv4Addr::new(127, 0, n, 1)));
    let mut sent = 0;
    for (hello, state) in [(RETURNING, "up"), (NEW, "ejected")] {
        for source in sources {
            greet(balancer.address(), source, hello);
            sent += 1;
            balancer.await_metrics(|metrics| metrics.sum(failures, &[]) == sent);
        }
        assert_eq!(balancer.await_server("rude", |_| true)["state"], state);
    }
}
