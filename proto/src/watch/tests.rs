use super::*;
use crate::hello::{DEFAULT_LIMIT, HelloReader, TLS_1_3};
use crate::testdata::{EXCHANGES, Exchange, client_hello, exchange, in_records, message};
use proptest::prelude::*;

const TLS_1_0: u16 = 0x0301;

const TLS12_SUITE: u16 = 0xc02f;

fn watch(client: &[u8]) -> Watch {
    let mut reader = HelloReader::new(DEFAULT_LIMIT);
    assert_eq!(reader.push(client), Ok(true));
    Watch::new(&reader.hello().expect("a hello"))
}

/// The outcome, which must be returned at most once.
fn outcome<'a>(mut watch: Watch, segments: impl IntoIterator<Item = &'a [u8]>) -> Option<Outcome> {
    let mut found = None;
    for segment in segments {
        assert_eq!(watch.is_done(), found.is_some());
        if let Some(outcome) = watch.push(segment) {
            assert_eq!(found.replace(outcome), None);
        }
    }
    assert_eq!(watch.is_done(), found.is_some());
    found
}

fn of(name: &str) -> Outcome {
    let Exchange { client, server, .. } = exchange(name);
    outcome(watch(client), [*server]).expect("an outcome")
}

/// The learned sessions in order: `i` for a session ID, `t` for a ticket.
fn learned(outcome: &Outcome) -> String {
    let letter = |learned: &_| match learned {
        Learned::SessionId(id) => {
            assert_eq!(id.len(), 32);
            'i'
        }
        Learned::Ticket(ticket) => {
            assert!(ticket.len() > 100);
            't'
        }
    };
    outcome.learned.iter().map(letter).collect()
}

#[test]
fn every_captured_handshake_is_told_right() {
    use How::{Psk, SessionId, Ticket};
    use Kind::{Failed, NotOffered, Refused, Resumed};
    for (name, version, kind, learns) in [
        ("chromium-full", TLS_1_3, NotOffered, ""),
        ("chromium-resumed", TLS_1_3, Resumed(Psk), ""),
        ("chromium-tls12-full", TLS_1_2, NotOffered, "t"),
        ("chromium-tls12-id-full", TLS_1_2, NotOffered, "i"),
        ("chromium-tls12-id-resumed", TLS_1_2, Resumed(SessionId), ""),
        ("chromium-tls12-resumed", TLS_1_2, Resumed(Ticket), ""),
        ("curl-full", TLS_1_3, NotOffered, ""),
        ("curl-resumed", TLS_1_3, Resumed(Psk), ""),
        ("curl-tls12-full", TLS_1_2, NotOffered, "i"),
        ("curl-tls12-resumed", TLS_1_2, Resumed(SessionId), ""),
        ("gnutls-full", TLS_1_3, NotOffered, ""),
        ("gnutls-resumed", TLS_1_3, Resumed(Psk), ""),
        ("gnutls-tls12-full", TLS_1_2, NotOffered, "t"),
        ("gnutls-tls12-resumed", TLS_1_2, Resumed(Ticket), ""),
        ("nginx-tls12-id-full", TLS_1_2, NotOffered, "i"),
        ("nginx-tls12-id-resumed", TLS_1_2, Resumed(SessionId), ""),
        ("nginx-tls12-ticket-full", TLS_1_2, NotOffered, "t"),
        ("nginx-tls12-ticket-resumed", TLS_1_2, Resumed(Ticket), ""),
        ("openssl-alert", 0, Failed, ""),
        ("openssl-tls10-id-full", TLS_1_0, NotOffered, "i"),
        ("openssl-tls10-id-resumed", TLS_1_0, Resumed(SessionId), ""),
        ("openssl-tls12-id-full", TLS_1_2, NotOffered, "i"),
        ("openssl-tls12-id-refused", TLS_1_2, Refused, "i"),
        ("openssl-tls12-id-resumed", TLS_1_2, Resumed(SessionId), ""),
        ("openssl-tls12-ticket-full", TLS_1_2, NotOffered, "t"),
        ("openssl-tls12-ticket-refused", TLS_1_2, Refused, "t"),
        ("openssl-tls12-ticket-resumed", TLS_1_2, Resumed(Ticket), ""),
        ("openssl-tls13-full", TLS_1_3, NotOffered, ""),
        ("openssl-tls13-refused", TLS_1_3, Refused, ""),
        ("openssl-tls13-resumed", TLS_1_3, Resumed(Psk), ""),
        ("openssl-tls13-retry-full", TLS_1_3, NotOffered, ""),
        ("openssl-tls13-retry-resumed", TLS_1_3, Resumed(Psk), ""),
        ("python-full", TLS_1_3, NotOffered, ""),
        ("python-resumed", TLS_1_3, Resumed(Psk), ""),
    ] {
        let told = of(name);
        assert_eq!((told.version, told.kind), (version, kind), "{name}");
        assert_eq!(learned(&told), learns, "{name}");
        assert_eq!(told.hello_retry, name.contains("retry"), "{name}");
        assert_eq!(told.cipher_suite == 0, kind == Failed, "{name}");
    }
}

#[test]
fn segments_make_no_difference() {
    for Exchange {
        name,
        client,
        server,
    } in EXCHANGES
    {
        let whole = outcome(watch(client), [*server]);
        assert_eq!(outcome(watch(client), server.chunks(1)), whole, "{name}");
    }
}

#[test]
fn nothing_is_learned_before_the_change_cipher_spec() {
    for Exchange {
        name,
        client,
        server,
    } in EXCHANGES
    {
        let Some(end) = server.windows(6).position(|it| it == [20, 3, 3, 0, 1, 1]) else {
            continue;
        };
        if of(name).version == TLS_1_3 {
            continue;
        }
        let mut watch = watch(client);
        assert_eq!(watch.push(&server[..end + 5]), None, "{name}");
        assert!(watch.push(&server[end + 5..]).is_some(), "{name}");
        assert_eq!(watch.push(server), None, "{name}: only once");
    }
}

/// The offset of the session ID's length in a hello of one record.
const SESSION_ID: usize = 5 + 4 + 2 + 32;

/// A different session ID for each number.
fn random_id(n: u64) -> [u8; 32] {
    let mut id = [0x5a; 32];
    id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id
}

#[test]
fn a_million_random_session_ids_of_tls13_teach_nothing() {
    let Exchange { client, server, .. } = exchange("openssl-tls13-full");
    let (mut client, mut server) = (client.to_vec(), server.to_vec());
    for n in 0..1_000_000 {
        for hello in [&mut client, &mut server] {
            assert_eq!(hello[SESSION_ID], 32);
            hello[SESSION_ID + 1..][..32].copy_from_slice(&random_id(n));
        }
        let hello = ClientHello::parse(&client[5..]).expect("a hello");
        let told = Watch::new(&hello).push(&server).expect("an outcome");
        assert_eq!((told.kind, told.learned), (Kind::NotOffered, Vec::new()));
    }
}

#[test]
fn a_hundred_thousand_handshakes_abandoned_after_the_server_hello_teach_nothing() {
    for name in ["openssl-tls12-id-refused", "openssl-tls12-ticket-refused"] {
        let Exchange { client, server, .. } = exchange(name);
        let clear = server.windows(6).position(|it| it == [20, 3, 3, 0, 1, 1]);
        let mut flight = server[..clear.expect("a ChangeCipherSpec")].to_vec();
        for n in 0..50_000 {
            if flight[SESSION_ID] == 32 {
                flight[SESSION_ID + 1..][..32].copy_from_slice(&random_id(n));
            }
            let hello = ClientHello::parse(&client[5..]).expect("a hello");
            let mut watch = Watch::new(&hello);
            assert_eq!(watch.push(&flight), None, "{name}");
            // The abandoned handshake ends with or without an alert.
            if n % 2 == 0 {
                let told = watch.push(&[21, 3, 3, 0, 2, 2, 40]).expect("an outcome");
                assert_eq!((told.kind, told.learned), (Kind::Failed, Vec::new()));
            }
        }
    }
}

#[test]
fn the_identity_that_was_selected_can_be_asked() {
    let Exchange { client, server, .. } = exchange("curl-resumed");
    let mut watch = watch(client);
    assert_eq!(watch.selected_identity(), None);
    watch.push(server);
    assert_eq!(watch.selected_identity(), Some(0));
}

#[test]
fn flipped_bytes_never_panic() {
    for Exchange { client, server, .. } in EXCHANGES {
        let watch = watch(client);
        let mut bytes = server.to_vec();
        for at in 0..bytes.len() {
            bytes[at] ^= 0xff;
            outcome(watch.clone(), [&bytes[..]]);
            bytes[at] ^= 0xff;
        }
    }
}

/// A client that offers TLS 1.2, this session ID, and this ticket if there is one.
fn client12(session_id: &[u8], ticket: Option<&[u8]>) -> Watch {
    let mut hello = client_hello(ticket.map(|ticket| (35, ticket)).as_slice());
    let len = u8::try_from(session_id.len()).expect("short");
    hello.splice(38..39, [&[len], session_id].concat());
    hello[3] += len;
    watch(&in_records(&hello, 1 << 14))
}

fn server_hello(session_id: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.push(u8::try_from(session_id.len()).expect("short"));
    body.extend(session_id);
    body.extend(TLS12_SUITE.to_be_bytes());
    body.push(0);
    message(kind::SERVER_HELLO, &body)
}

fn ticket(ticket: &[u8]) -> Vec<u8> {
    let len = u16::try_from(ticket.len()).expect("short").to_be_bytes();
    message(
        kind::NEW_SESSION_TICKET,
        &[&[0; 4][..], &len, ticket].concat(),
    )
}

fn done() -> Vec<u8> {
    message(14, b"")
}

/// The outcome of a TLS 1.2 handshake with these server messages and a ChangeCipherSpec.
fn told12(client: Watch, messages: &[Vec<u8>]) -> (Kind, Vec<Learned>) {
    let mut bytes = in_records(&messages.concat(), 1 << 14);
    bytes.extend([20, 3, 3, 0, 1, 1]);
    let outcome = outcome(client, [&bytes[..]]).expect("an outcome");
    (outcome.kind, outcome.learned)
}

#[test]
fn a_ticket_without_a_session_id_can_resume() {
    let by_ticket = Kind::Resumed(How::Ticket);
    let client = || client12(b"", Some(b"ticket"));
    assert_eq!(told12(client(), &[server_hello(b"")]), (by_ticket, vec![]));
    let renewed = vec![Learned::Ticket(b"new".to_vec())];
    assert_eq!(
        told12(client(), &[server_hello(b""), ticket(b"new")]),
        (by_ticket, renewed)
    );
    assert_eq!(
        told12(client(), &[server_hello(b""), done()]),
        (Kind::Refused, vec![])
    );
}

#[test]
fn the_ticket_is_what_resumed_where_a_session_id_came_with_it() {
    let told = told12(
        client12(b"made up", Some(b"ticket")),
        &[server_hello(b"made up")],
    );
    assert_eq!(told, (Kind::Resumed(How::Ticket), vec![]));
}

#[test]
fn a_client_that_asks_for_a_ticket_offers_nothing() {
    let told = told12(
        client12(b"", Some(b"")),
        &[server_hello(b"new"), done(), ticket(b"new")],
    );
    let learned = vec![
        Learned::SessionId(b"new".to_vec()),
        Learned::Ticket(b"new".to_vec()),
    ];
    assert_eq!(told, (Kind::NotOffered, learned));
}

#[test]
fn the_clients_own_session_id_and_an_empty_ticket_teach_nothing() {
    let told = told12(
        client12(b"id", None),
        &[server_hello(b"id"), done(), ticket(b"")],
    );
    assert_eq!(told, (Kind::Refused, vec![]));
}

#[test]
fn an_abbreviated_handshake_that_resumes_nothing_has_failed() {
    assert_eq!(
        told12(client12(b"", None), &[server_hello(b"")]),
        (Kind::Failed, vec![])
    );
    assert_eq!(
        told12(client12(b"id", None), &[server_hello(b"x")]),
        (Kind::Failed, vec![])
    );
}

#[test]
fn what_a_server_may_not_send_is_a_failure() {
    let hello = || server_hello(b"x");
    for (why, messages) in [
        ("no ServerHello", vec![]),
        ("a ticket first", vec![ticket(b"t")]),
        ("a certificate first", vec![message(11, b"")]),
        ("two ServerHellos", vec![hello(), hello()]),
        (
            "two tickets",
            vec![hello(), done(), ticket(b"t"), ticket(b"t")],
        ),
        (
            "a ticket that lies",
            vec![hello(), done(), message(4, &[0, 0, 0, 0, 0, 9, 1])],
        ),
    ] {
        assert_eq!(
            told12(client12(b"", None), &messages),
            (Kind::Failed, vec![]),
            "{why}"
        );
    }
}

#[test]
fn warnings_before_the_server_hello_end_nothing() {
    let full = [server_hello(b"x"), done()].concat();
    let bytes = |alert: [u8; 2]| {
        let ccs = [20, 3, 3, 0, 1, 1];
        [&[21, 3, 3, 0, 2], &alert[..], &in_records(&full, 9), &ccs].concat()
    };
    let kind = |alert| outcome(client12(b"", None), [&bytes(alert)[..]]).map(|it| it.kind);
    assert_eq!(kind([1, 112]), Some(Kind::NotOffered));
    assert_eq!(kind([2, 112]), Some(Kind::Failed));
    assert_eq!(kind([1, 0]), Some(Kind::Failed));
}

#[test]
fn a_hello_request_before_the_server_hello_is_passed_over() {
    let told = told12(
        client12(b"", None),
        &[message(0, b""), server_hello(b""), done()],
    );
    assert_eq!(told.0, Kind::NotOffered);
}

#[test]
fn a_long_certificate_chain_is_not_held() {
    let mut watch = client12(b"", None);
    assert_eq!(watch.push(&in_records(&server_hello(b"x"), 1 << 14)), None);
    let chain = message(11, &vec![0; 1 << 20]);
    assert_eq!(watch.push(&in_records(&chain, 1 << 14)), None);
    assert!(format!("{watch:?}").len() < 10_000);
}

#[test]
fn tls13_that_was_not_offered_or_is_asked_again_twice_has_failed() {
    let retry = exchange("openssl-tls13-retry-full");
    let kind = |watch, bytes: &[u8]| outcome(watch, [bytes]).map(|it| it.kind);
    assert_eq!(kind(client12(b"", None), retry.server), Some(Kind::Failed));
    let request = &retry.server[..5 + 88];
    assert_eq!(kind(watch(retry.client), request), None);
    let twice = [request, request].concat();
    assert_eq!(kind(watch(retry.client), &twice), Some(Kind::Failed));
    // A server cannot select an identity that was not offered.
    let selected = exchange("curl-resumed").server;
    assert_eq!(
        kind(watch(exchange("curl-full").client), selected),
        Some(Kind::Failed)
    );
}

proptest! {
    #[test]
    fn mutated_flights_in_any_cut_give_the_same(
        index in 0..EXCHANGES.len(),
        changes in proptest::collection::vec((0..200usize, any::<u8>()), 0..4),
        cut in 1..60usize,
    ) {
        let Exchange { client, server, .. } = &EXCHANGES[index];
        let mut bytes = server.to_vec();
        for (at, byte) in changes {
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        let whole = outcome(watch(client), [&bytes[..]]);
        prop_assert_eq!(outcome(watch(client), bytes.chunks(cut)), whole);
    }
}
