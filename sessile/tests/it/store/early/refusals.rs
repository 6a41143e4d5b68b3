//! The requests that early data may hold, and the reasons to reject early data. A rejection costs no
//! connection.

use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use rustls::NamedGroup;

use super::visitor::{GET, Visit, Visitor, position_of_identity, send_flight};
use super::{ON, accepted, farm, outcomes, unfinished};
use crate::peers::{eventually, s_client};
use crate::store::setup::{Farm, Redis};

/// The largest early data that the farm's setting allows.
const FULL: &[u8] = &[b'x'; 16 * 1024];

fn request(method: &str) -> Vec<u8> {
    let head = format!("{method} / HTTP/1.1\r\nhost: localhost\r\nsessile-probe: 1\r\n");
    format!("{head}content-length: 0\r\nconnection: close\r\n\r\n").into_bytes()
}

#[test]
fn the_answer_does_not_wait_for_the_clients_finished() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    visitor.visit(server.address());
    let resumed = || server.metrics().verdict("resumed/psk");

    let mut visit = Visit::to(server.address(), visitor.early(GET));
    visit.read_until(b"of this connection\n");
    assert_eq!((accepted(&[&server]), resumed()), (1, 0));
    // `answer` sends the Finished message. The server then issues a ticket for another session.
    let answer = visit.answer();
    assert_eq!(answer.status(), "200");
    assert_eq!(answer.outcome(), "resumed/psk accepted");
    eventually("the handshake is counted", || resumed() == 1);
    let answer = visitor.visit_early(server.address());
    assert_eq!(answer.outcome(), "resumed/psk accepted");
    assert_eq!(unfinished(&server), 0);
}

#[test]
fn a_request_over_http2_is_answered_early() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let visitor = Visitor::http2(&farm);
    // The fields are `:method: GET`, `:scheme: https`, `:path: /` and `:authority`. RFC 7541, appendix A, has
    // their indices.
    let fields = [&[0x82, 0x87, 0x84, 0x41, 9][..], b"localhost"].concat();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [0, 0, fields.len() as u8, 1, 5, 0, 0, 0, 1];
    let asked = [PREFACE, &settings, &headers, &fields].concat();
    let page = b"of this connection\n";

    let mut first = Visit::to(one.address(), visitor.hello());
    first.send(&asked);
    first.read_until(page);
    let mut second = Visit::to(other.address(), visitor.early(&asked));
    second.read_until(page);
    assert_eq!(accepted(&[&other]), 1);
    assert_eq!(other.metrics().handshakes(), 0);
    second.handshake();
    let resumed = || other.metrics().verdict("resumed/psk") == 1;
    eventually("the handshake is counted", resumed);
}

#[test]
fn only_safe_methods_are_answered_before_the_clients_finished() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    for (method, early, late) in [
        ("GET", "200", "200"),
        ("OPTIONS", "405", "405"),
        ("POST", "425", "405"),
        ("PUT", "425", "405"),
        ("DELETE", "425", "405"),
        ("INVENTED", "425", "405"),
    ] {
        visitor.visit(server.address());
        let mut visit = Visit::to(server.address(), visitor.early(&request(method)));
        visit.read_until(b"\r\n\r\n");
        let answer = visit.answer();
        assert_eq!(answer.status(), early, "{method}");
        assert_eq!(answer.outcome(), "resumed/psk accepted");
        let mut visit = Visit::to(server.address(), visitor.hello());
        visit.send(&request(method));
        assert_eq!(visit.answer().status(), late, "{method}");
    }
}

#[test]
fn a_request_that_ends_after_the_handshake_is_not_an_early_request() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    visitor.visit(server.address());
    let whole = request("POST");
    let (begin, end) = whole.split_at(20);
    let mut visit = Visit::to(server.address(), visitor.early(begin));
    visit.send(end);
    let answer = visit.answer();
    assert_eq!(answer.status(), "405");
    assert_eq!(answer.outcome(), "resumed/psk accepted");
}

#[test]
fn a_client_that_never_finishes_is_counted_and_cut_off() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    visitor.visit(server.address());
    send_flight(server.address(), &visitor.early(GET).bytes);
    eventually("the handshake failure is counted", || {
        unfinished(&server) == 1
    });

    visitor.visit(server.address());
    let mut visit = Visit::to(server.address(), visitor.early(GET));
    visit.until_closed();
    let labels = [("cause", "deadline")];
    let name = "sessile_handshake_failures_total";
    eventually("the handshake failure is counted", || {
        server.metrics().sum(name, &labels) == 1
    });
    assert_eq!(accepted(&[&server]), 2);
    // Only the visit without early data finished its handshake.
    assert_eq!(server.metrics().verdict("resumed/psk"), 1);
}

#[test]
fn early_data_of_a_session_with_a_larger_limit_is_rejected_and_skipped() {
    let redis = Redis::start();
    let mut farm = farm(&redis);
    let generous = farm.serve("web1");
    farm.set(&format!(
        "store = \"{}\"\nstore-timeout = \"3s\"\nearly-data = 200\n",
        redis.url()
    ));
    let strict = farm.serve("web2");
    let visitor = Visitor::new(&farm);
    for data in [GET, FULL] {
        visitor.visit(generous.address());
        let mut visit = Visit::to(strict.address(), visitor.early(data));
        visit.send(GET);
        assert_eq!(visit.answer().outcome(), "resumed/psk rejected/off");
    }
    // Both servers accept early data with sessions from the server with the small limit.
    for server in [&strict, &generous] {
        visitor.visit(strict.address());
        let answer = visitor.visit_early(server.address());
        assert_eq!(answer.outcome(), "resumed/psk accepted");
    }
}

#[test]
fn early_data_is_off_by_default_and_a_change_of_the_setting_costs_no_session() {
    let redis = Redis::start();
    let mut farm = farm(&redis);
    let on = farm.serve("web1");
    farm.set(&format!(
        "store = \"{}\"\nstore-timeout = \"3s\"\n",
        redis.url()
    ));
    let off = farm.serve("web2");
    let visitor = Visitor::new(&farm);
    visitor.visit(on.address());
    assert_eq!(
        visitor.visit_early(off.address()).outcome(),
        "resumed/psk rejected/off"
    );
    assert!(!visitor.allows_early_data());
    assert_eq!(visitor.visit(off.address()).outcome(), "resumed/psk none");
    assert_eq!(visitor.visit(on.address()).outcome(), "resumed/psk none");
    assert!(visitor.allows_early_data());
    // The server with early data turned off skips all bytes of early data.
    let mut visit = Visit::to(off.address(), visitor.early(FULL));
    visit.send(GET);
    assert_eq!(visit.answer().outcome(), "resumed/psk rejected/off");
}

#[test]
fn a_server_rejects_early_data_while_its_store_is_down() {
    let redis = Redis::start();
    let farm = Farm::new(&format!("store = \"{}\"\n{ON}", redis.url()));
    let server = farm.serve("web1");
    let up = |wanted: u64| {
        eventually("the store is found or lost", || {
            server.metrics().sum("sessile_store_up", &[]) == wanted
        });
    };
    let visitor = Visitor::new(&farm);
    let visit_until = |early: bool| {
        eventually("every worker thread has found or lost the store", || {
            visitor.visit(server.address());
            visitor.allows_early_data() == early
        });
    };
    visit_until(true);
    redis.peer.signal(Signal::STOP);
    for _ in 0..8 {
        let mut visit = Visit::to(server.address(), visitor.early(GET));
        visit.send(GET);
        let outcome = visit.answer().outcome();
        let known = [
            "full/store-timeout rejected/store",
            "full/store-down rejected/store",
            // The server issues sealed tickets while the store is down.
            "resumed/psk rejected/off",
        ];
        assert!(known.contains(&outcome.as_str()), "{outcome}");
        if !visitor.allows_early_data() {
            break;
        }
    }
    redis.peer.signal(Signal::CONT);
    let port = redis.stop();
    up(0);
    // Sealed tickets resume without the store.
    visit_until(false);
    assert_eq!(
        visitor.visit(server.address()).outcome(),
        "resumed/psk none"
    );
    let _redis = Redis::start_again(port);
    eventually("early data is accepted again", || {
        visit_until(true);
        visitor.visit_early(server.address()).outcome() == "resumed/psk accepted"
    });
}

#[test]
fn early_data_is_rejected_if_the_ticket_age_is_wrong() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let on_time = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    // To a server with a later clock, a ClientHello looks as old as a late replay.
    for (name, clock) in [("web2", "+30s"), ("web3", "+120s")] {
        let later = farm.serve_at(name, Some(clock));
        visitor.visit(on_time.address());
        let answer = visitor.visit_early(later.address());
        assert_eq!(answer.outcome(), "resumed/psk rejected/stale-hello");
    }
}

#[test]
fn early_data_is_rejected_after_an_alpn_mismatch_or_a_hello_retry_request() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    for (data, count) in [(GET, 1), (FULL, 2)] {
        let visitor = Visitor::new(&farm);
        visitor.visit(server.address());
        let other = visitor.with_alpn(b"h2");
        Visit::to(server.address(), other.early(data)).handshake();
        let refused = || outcomes(&[&server], "rejected/alpn-mismatch") == count;
        eventually("early data is rejected", refused);
        let resumed = || server.metrics().verdict("resumed/psk") == count;
        eventually("the handshake is counted", resumed);
    }

    // The server does not support the group of this key share.
    let visitor = Visitor::with_key_share(&farm, NamedGroup::MLKEM768);
    for data in [GET, FULL] {
        visitor.visit(server.address());
        let mut visit = Visit::to(server.address(), visitor.early(data));
        visit.send(GET);
        let outcome = visit.answer().outcome();
        assert_eq!(outcome, "resumed/psk rejected/hello-retry");
    }
    let tls = [("cause", "tls")];
    let failures = "sessile_handshake_failures_total";
    assert_eq!(server.metrics().sum(failures, &tls), 0);
}

#[test]
fn early_data_is_skipped_if_the_session_does_not_resume() {
    let redis = Redis::start();
    let mut farm = farm(&redis);
    let one = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    let later = SystemTime::now() + Duration::from_secs(1);
    let mark = humantime::format_rfc3339_seconds(later);
    let forget = format!("forget = [{{ before = \"{mark}\" }}]");
    farm.set(&format!(
        "store = \"{}\"\nstore-timeout = \"3s\"\n{ON}{forget}\n",
        redis.url()
    ));
    // Use a later clock, because a forget rule must not be in the future.
    let other = farm.serve_at("web2", Some("+3s"));
    let mut visit = Visit::to(other.address(), visitor.early(FULL));
    visit.send(GET);
    let outcome = visit.answer().outcome();
    assert_eq!(outcome, "full/revoked rejected/not-resumed");
    assert!(!visitor.allows_early_data());
}

#[test]
fn a_tls12_session_id_used_as_a_psk_identity_spends_no_session() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let session = farm.folder().join("session.pem");
    let session = session.to_str().unwrap();
    let old = |arguments: &[&str]| {
        let mut all = vec!["-tls1_2", "-no_ticket"];
        all.extend(arguments);
        s_client(server.address(), None, &all)
    };
    let said = old(&["-sess_out", session]);
    let id = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Session-ID: "));
    let id: Vec<u8> = id.unwrap().as_bytes().chunks(2).map(byte).collect();

    // Offer the session ID as a PSK identity of TLS 1.3, with early data.
    let visitor = Visitor::new(&farm);
    visitor.visit(server.address());
    let mut flight = visitor.early(GET).bytes;
    let identity = position_of_identity(&flight);
    flight[identity..identity + 32].copy_from_slice(&id);
    send_flight(server.address(), &flight);
    eventually("the server gives up the connection", || {
        unfinished(&server) == 1
    });
    let said = old(&["-sess_in", session]);
    assert!(said.contains("\nReused, "), "{said}");

    // The attack did not spend the visitor's own session.
    assert_eq!(accepted(&[&server]), 0);
    let answer = visitor.visit_early(server.address());
    assert_eq!(answer.outcome(), "resumed/psk accepted");
}

fn byte(digits: &[u8]) -> u8 {
    let digits = std::str::from_utf8(digits).unwrap();
    u8::from_str_radix(digits, 16).unwrap()
}
