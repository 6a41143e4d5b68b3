//! `sessile probe` and early data: which servers accept it, and which accept the same bytes twice.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::peers::{Certificates, NAME, Peer, haproxy, nginx, openssl};
use crate::probe::{Found, probe};
use crate::store::setup::{Farm, Redis};

fn found(ca: &str, addresses: &[SocketAddr], more: &[&str]) -> Found {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let addresses = addresses.join(",");
    let plain = [
        NAME,
        "--ca",
        ca,
        "--json",
        "--mechanism",
        "psk",
        "--address",
    ];
    Found::of(&probe(&[&plain[..], &[&addresses], more].concat()))
}

/// Probes servers with TLS 1.3.
fn probed(certificates: &Certificates, servers: &[&Peer]) -> Found {
    let ca = certificates.ca.to_str().unwrap();
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address()).collect();
    found(ca, &addresses, &[])
}

/// The offers or replays of a report, without the addresses: the index of the server that gave the session, the index
/// of the server that got it, and the outcome.
fn outcomes(found: &Found, list: &str) -> Vec<(usize, usize, String)> {
    let addresses = found.report["addresses"].as_array().unwrap();
    let index = |value: &Value| addresses.iter().position(|known| known == value).unwrap();
    let all = found.report["early_data"][list].as_array();
    let all = all.unwrap_or_else(|| panic!("no early data: {:#}", found.report));
    all.iter()
        .map(|made| {
            let outcome = made["outcome"].as_str().unwrap().to_owned();
            (index(&made["origin"]), index(&made["address"]), outcome)
        })
        .collect()
}

fn all(outcome: &str, pairs: &[(usize, usize)]) -> Vec<(usize, usize, String)> {
    let with_outcome = |&(origin, address): &(usize, usize)| (origin, address, outcome.to_owned());
    pairs.iter().map(with_outcome).collect()
}

const PAIRS: [(usize, usize); 4] = [(0, 0), (0, 1), (1, 0), (1, 1)];

/// Directives of nginx with early data and a ticket key that is the same for all servers.
fn early_nginx(certificates: &Certificates) -> String {
    let file = certificates.folder().join("ticket.key");
    let key: Vec<u8> = (0..80).map(|at: u8| at.wrapping_mul(at) ^ 0x5a).collect();
    std::fs::write(&file, key).unwrap();
    format!(
        "ssl_early_data on; ssl_session_ticket_key {};",
        file.display()
    )
}

#[test]
fn nginx_with_early_data_answers_the_same_request_twice() {
    let certificates = Certificates::new();
    let directives = early_nginx(&certificates);
    let farm = [(); 2].map(|()| nginx(&certificates, &directives));
    let found = probed(&certificates, &[&farm[0], &farm[1]]);
    assert_eq!(outcomes(&found, "offers"), all("accepted", &PAIRS));
    let again = [(0, 0), (0, 1), (1, 1), (1, 0)];
    assert_eq!(outcomes(&found, "replays"), all("accepted", &again));
    assert_eq!(found.report["early_data"]["replays"][0]["http_status"], 204);
    assert_eq!(found.codes(), ["early-data-replayed"], "{:#}", found.report);
    // Early data that is accepted twice is no failure to resume.
    assert_eq!(found.status, Some(0));
}

#[test]
fn servers_without_a_shared_key_refuse_the_early_data_of_each_other() {
    let certificates = Certificates::new();
    let farm = [(); 2].map(|()| nginx(&certificates, "ssl_early_data on;"));
    let found = probed(&certificates, &[&farm[0], &farm[1]]);
    let accepts = |&(from, to): &(usize, usize)| from == to;
    let expected = PAIRS.iter().map(|pair| {
        let outcome = if accepts(pair) { "accepted" } else { "refused" };
        (pair.0, pair.1, outcome.to_owned())
    });
    assert_eq!(outcomes(&found, "offers"), expected.collect::<Vec<_>>());
    let again = [(0, 0), (1, 1)];
    assert_eq!(outcomes(&found, "replays"), all("accepted", &again));

    let ca = certificates.ca.to_str().unwrap();
    let both = format!("{},{}", farm[0].address(), farm[1].address());
    let plain = [NAME, "--ca", ca, "--mechanism", "psk", "--address", &both];
    let text = String::from_utf8(probe(&plain).stdout).unwrap();
    assert!(
        text.contains("\n0-RTT: accepted 2 of 4; accepted again 2 of 2\n"),
        "{text}"
    );
    let matrix = "\n0-RTT (yes: early data accepted)\n  \
        sessions of    to      1     2\n                   1   yes     -\n                   2     -   yes\n";
    assert!(text.contains(matrix), "{text}");
}

#[test]
fn openssl_refuses_early_data_that_it_has_accepted() {
    let certificates = Certificates::new();
    let early = ["-early_data", "-max_early_data", "16384"];
    let server = openssl(&certificates, &early);
    let found = probed(&certificates, &[&server]);
    assert_eq!(outcomes(&found, "offers"), all("accepted", &[(0, 0)]));
    assert_eq!(outcomes(&found, "replays"), all("refused", &[(0, 0)]));
    assert!(found.codes().is_empty(), "{:#}", found.report);
    assert_eq!(found.status, Some(0));

    let server = openssl(&certificates, &[&early[..], &["-no_anti_replay"]].concat());
    let found = probed(&certificates, &[&server]);
    assert_eq!(outcomes(&found, "replays"), all("accepted", &[(0, 0)]));
    // s_server does not answer requests.
    assert_eq!(
        found.codes(),
        ["accepts-early-data-twice"],
        "{:#}",
        found.report
    );
}

#[test]
fn haproxy_does_not_answer_early_data_before_the_end_of_the_handshake() {
    let certificates = Certificates::new();
    let server = haproxy(&certificates, "allow-0rtt");
    let found = probed(&certificates, &[&server]);
    assert_eq!(outcomes(&found, "offers"), all("accepted", &[(0, 0)]));
    assert_eq!(outcomes(&found, "replays"), all("accepted", &[(0, 0)]));
    let codes = found.codes();
    assert!(codes.contains(&"accepts-early-data-twice"), "{codes:?}");
    assert!(!codes.contains(&"early-data-replayed"), "{codes:?}");
}

#[test]
fn sessile_accepts_early_data_once_in_the_farm() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "early-data = \"16KiB\"\n");
    let servers = ["web1", "web2"].map(|name| farm.serve(name));
    let addresses = servers.each_ref().map(|server| server.address());
    let ca = farm.root();
    let name = ["--sni", "localhost"];
    let found = found(ca.to_str().unwrap(), &addresses, &name);
    assert_eq!(outcomes(&found, "offers"), all("accepted", &PAIRS));
    let again = [(0, 0), (0, 1), (1, 1), (1, 0)];
    assert_eq!(outcomes(&found, "replays"), all("refused", &again));
    assert!(found.codes().is_empty(), "{:#}", found.report);
}

#[test]
fn early_data_is_tested_only_if_servers_accept_it_and_the_probe_may_send_a_request() {
    let certificates = Certificates::new();
    let without = nginx(&certificates, "");
    assert_eq!(
        probed(&certificates, &[&without]).report["early_data"],
        json!(null)
    );
    let with = nginx(&certificates, "ssl_early_data on;");
    let ca = certificates.ca.to_str().unwrap();
    for request in ["none", "h2"] {
        let silent = found(ca, &[with.address()], &["--request", request]);
        assert_eq!(silent.report["early_data"], json!(null), "{request}");
    }
}

#[test]
fn a_client_certificate_does_not_hinder_the_offer_and_makes_the_replay_unknown() {
    let certificates = Certificates::new();
    let directives = format!(
        "ssl_early_data on; ssl_verify_client on; ssl_client_certificate {};",
        certificates.ca.display()
    );
    let server = nginx(&certificates, &directives);
    let ca = certificates.ca.to_str().unwrap();
    let [chain, key] = [&certificates.chain, &certificates.key].map(|path| path.to_str().unwrap());
    let found = found(ca, &[server.address()], &["--cert", chain, "--key", key]);
    assert_eq!(outcomes(&found, "offers"), all("accepted", &[(0, 0)]));
    assert_eq!(outcomes(&found, "replays"), all("unknown", &[(0, 0)]));
}
