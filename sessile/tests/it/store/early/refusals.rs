//! What early data may do and what not, and that a refusal costs no connection.

use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use rustls::NamedGroup;

use super::visitor::{GET, Visit, Visitor, play_back as send, position_of_identity};
use super::{ON, accepted, farm, outcomes, unfinished};
use crate::peers::{eventually, s_client};
use crate::store::setup::{Farm, Redis};

/// As much as the farm allows: what a client sends that fills it.
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
    visit.hear(b"of this connection\n");
    assert_eq!((accepted(&[&server]), resumed()), (1, 0));
    // Only now the client says that it is there; its next session comes then, and is good.
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
    // GET, https, / and a host, by the numbers of RFC 7541.
    let fields = [&[0x82, 0x87, 0x84, 0x41, 9][..], b"localhost"].concat();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [0, 0, fields.len() as u8, 1, 5, 0, 0, 0, 1];
    let asked = [PREFACE, &settings, &headers, &fields].concat();
    let page = b"of this connection\n";

    let mut first = Visit::to(one.address(), visitor.hello());
    first.send(&asked);
    first.hear(page);
    let mut second = Visit::to(other.address(), visitor.early(&asked));
    second.hear(page);
    assert_eq!(accepted(&[&other]), 1);
    assert_eq!(other.metrics().handshakes(), 0);
    second.handshake();
    let resumed = || other.metrics().verdict("resumed/psk") == 1;
    eventually("the handshake is counted", resumed);
}

#[test]
fn a_request_that_may_do_harm_waits_for_the_client_to_finish() {
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
        visit.hear(b"\r\n\r\n");
        let answer = visit.answer();
        assert_eq!(answer.status(), early, "{method}");
        assert_eq!(answer.outcome(), "resumed/psk accepted");
        let mut visit = Visit::to(server.address(), visitor.hello());
        visit.send(&request(method));
        assert_eq!(visit.answer().status(), late, "{method}");
    }
}

#[test]
fn a_request_whose_head_ends_after_the_handshake_is_not_early() {
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
    send(server.address(), &visitor.early(GET).bytes);
    eventually("it is counted", || unfinished(&server) == 1);

    visitor.visit(server.address());
    let mut visit = Visit::to(server.address(), visitor.early(GET));
    visit.until_closed();
    let labels = [("cause", "deadline")];
    let name = "sessile_handshake_failures_total";
    eventually("it is counted", || server.metrics().sum(name, &labels) == 1);
    assert_eq!(accepted(&[&server]), 2);
    // The one visit in between.
    assert_eq!(server.metrics().verdict("resumed/psk"), 1);
}

#[test]
fn what_was_promised_under_a_larger_limit_is_refused_and_read_past() {
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
    // What the strict one has promised itself is good there and at the other.
    for server in [&strict, &generous] {
        visitor.visit(strict.address());
        let answer = visitor.visit_early(server.address());
        assert_eq!(answer.outcome(), "resumed/psk accepted");
    }
}

#[test]
fn it_is_off_by_default_and_turning_it_on_or_off_costs_no_session() {
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
    assert!(!visitor.may_be_early());
    assert_eq!(visitor.visit(off.address()).outcome(), "resumed/psk none");
    assert_eq!(visitor.visit(on.address()).outcome(), "resumed/psk none");
    assert!(visitor.may_be_early());
    // All that the off server would have to throw away is thrown away.
    let mut visit = Visit::to(off.address(), visitor.early(FULL));
    visit.send(GET);
    assert_eq!(visit.answer().outcome(), "resumed/psk rejected/off");
}

#[test]
fn without_its_store_a_server_refuses_early_data_and_goes_on() {
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
        eventually("each thread has found or lost the store", || {
            visitor.visit(server.address());
            visitor.may_be_early() == early
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
            // Sealed tickets are what there is while the store is away.
            "resumed/psk rejected/off",
        ];
        assert!(known.contains(&outcome.as_str()), "{outcome}");
        if !visitor.may_be_early() {
            break;
        }
    }
    redis.peer.signal(Signal::CONT);
    let port = redis.stop();
    up(0);
    // Its sessions are sealed meanwhile: they resume without the store.
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
fn a_hello_that_is_not_as_old_as_it_says_is_refused() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let on_time = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    // The clock of the server, and not the client's, runs on: a first flight is played back late.
    for (name, clock) in [("web2", "+30s"), ("web3", "+120s")] {
        let later = farm.serve_at(name, Some(clock));
        visitor.visit(on_time.address());
        let answer = visitor.visit_early(later.address());
        assert_eq!(answer.outcome(), "resumed/psk rejected/stale-hello");
    }
}

#[test]
fn another_application_protocol_and_a_second_hello_refuse_early_data() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    for (data, count) in [(GET, 1), (FULL, 2)] {
        let visitor = Visitor::new(&farm);
        visitor.visit(server.address());
        let other = visitor.speaking(b"h2");
        Visit::to(server.address(), other.early(data)).handshake();
        let refused = || outcomes(&[&server], "rejected/alpn-mismatch") == count;
        eventually("it is refused", refused);
        let resumed = || server.metrics().verdict("resumed/psk") == count;
        eventually("and the handshake is finished", resumed);
    }

    // A group that the server does not know.
    let visitor = Visitor::beginning_with(&farm, NamedGroup::MLKEM768);
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
fn early_data_of_a_session_that_does_not_resume_is_read_past() {
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
    // A mark does not lie ahead of the server's clock.
    let other = farm.serve_at("web2", Some("+3s"));
    let mut visit = Visit::to(other.address(), visitor.early(FULL));
    visit.send(GET);
    let outcome = visit.answer().outcome();
    assert_eq!(outcome, "full/revoked rejected/not-resumed");
    assert!(!visitor.may_be_early());
}

#[test]
fn what_a_tls12_client_shows_in_clear_spends_nothing() {
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

    // The same bytes as an identity of TLS 1.3, with early data.
    let visitor = Visitor::new(&farm);
    visitor.visit(server.address());
    let mut flight = visitor.early(GET).bytes;
    let identity = position_of_identity(&flight);
    flight[identity..identity + 32].copy_from_slice(&id);
    send(server.address(), &flight);
    eventually("it is given up", || unfinished(&server) == 1);
    let said = old(&["-sess_in", session]);
    assert!(said.contains("\nReused, "), "{said}");

    // And the identity of TLS 1.3 as a session ID is unknown, and still good.
    assert_eq!(accepted(&[&server]), 0);
    let answer = visitor.visit_early(server.address());
    assert_eq!(answer.outcome(), "resumed/psk accepted");
}

fn byte(digits: &[u8]) -> u8 {
    let digits = std::str::from_utf8(digits).unwrap();
    u8::from_str_radix(digits, 16).unwrap()
}
