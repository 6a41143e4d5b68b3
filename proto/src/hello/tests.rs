use super::*;
use crate::record::{Deframer, Error, Item, MAX_PLAINTEXT};
use crate::testdata::{
    EXCHANGES, SSL2, SSL3, TICKETS, TLS10, client_hello, exchange, hellos, in_records, message,
};
use proptest::prelude::*;

/// The reader's result after these segments: whether the hello is whole, and the hello.
fn read<'a>(
    reader: &'a mut HelloReader,
    segments: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<ClientHello<'a>>, Error> {
    let mut whole = false;
    for segment in segments {
        whole = reader.push(segment)?;
    }
    whole.then(|| reader.hello()).transpose()
}

const TLS_1_0: u16 = 0x0301;

fn hello(bytes: &'static [u8]) -> ClientHello<'static> {
    ClientHello::parse(&bytes[5..]).expect("a hello in one record")
}

#[test]
fn captured_hellos_say_what_their_clients_offered() {
    for exchange in EXCHANGES {
        let (name, hello) = (exchange.name, hello(exchange.client));
        let old = ["tls10-", "tls12-", "alert"]
            .iter()
            .any(|it| name.contains(it));
        let tls13 = !old || name.contains("chromium");
        assert_eq!(hello.random.len(), 32, "{name}");
        assert_eq!(hello.offers_tls13(), tls13, "{name}");
        assert_eq!(hello.server_name, Some("example.org"), "{name}");
        let version = match tls13 {
            true => TLS_1_3,
            false if name.contains("tls10") => TLS_1_0,
            false => TLS_1_2,
        };
        assert_eq!(hello.max_version(), version, "{name}");
        let ticket = hello.session_ticket.is_some_and(|it| !it.is_empty());
        let session_id = !hello.session_id.is_empty();
        let offers = hello.pre_shared_key.is_some() || ticket || (session_id && !tls13);
        // A session ID in a hello that offers TLS 1.3 looks random, so it does not count as an
        // offer.
        let resumes = name.contains("resumed") || name.contains("refused");
        let shows = resumes && name != "chromium-tls12-id-resumed";
        assert_eq!(offers, shows, "{name}");
    }
}

#[test]
fn a_post_quantum_hello_of_chromium_is_read_in_full() {
    let bytes = exchange("chromium-resumed").client;
    let hello = hello(bytes);
    assert!(bytes.len() > 1500, "its key share alone takes 1,216 bytes");
    assert!(hello.encrypted_client_hello && hello.extended_master_secret);
    assert_eq!(
        hello.alpn.iter().collect::<Vec<_>>(),
        [&b"h2"[..], b"http/1.1"]
    );
    assert!(hello.psk_dhe_ke);
    assert!(hello.cipher_suites.contains(0x1301));
    let psks = hello.pre_shared_key.expect("a session");
    let identities: Vec<_> = psks.identities().collect();
    assert_eq!(identities.len(), psks.count());
    assert!(identities[0].identity.len() > 100);
}

#[test]
fn the_ssl2_form_is_read() {
    let hello = ClientHello::parse_ssl2(SSL2).expect("a hello");
    assert_eq!(hello.legacy_version, TLS_1_0);
    assert_eq!((hello.session_id.len(), hello.random.len()), (16, 16));
    let suites: Vec<_> = hello.cipher_suites.iter().collect();
    assert_eq!(suites, [0x0005, 0x000a, 0x002f, 0x0035, 0x00ff]);
    assert_eq!(hello.max_version(), TLS_1_0);

    for (segments, size) in [(1, 1), (SSL2.len(), SSL2.len())] {
        let mut reader = HelloReader::new(DEFAULT_LIMIT);
        let read = read(&mut reader, SSL2.chunks(size));
        assert_eq!(read, Ok(Some(hello)), "{segments}");
    }
    for end in 0..SSL2.len() {
        let parsed = ClientHello::parse_ssl2(&SSL2[..end]);
        assert_eq!(parsed, Err(Error::Incomplete), "{end}");
    }
    // The first hello has vectors that are longer than its header says (found by fuzzing). In the
    // second, a byte follows the end.
    let mut shorter = SSL2.to_vec();
    shorter[1] -= 3;
    assert_eq!(ClientHello::parse_ssl2(&shorter), Err(Error::Length));
    let longer = [SSL2, b"x"].concat();
    assert_eq!(ClientHello::parse_ssl2(&longer), Err(Error::Length));
    let mut reader = HelloReader::new(SSL2.len() - 1);
    assert_eq!(reader.push(SSL2), Err(Error::OverLimit(SSL2.len() - 1)));
    // SSL 2.0 itself, and a length that is too short for a hello.
    let pushed = |bytes: &[u8]| HelloReader::new(DEFAULT_LIMIT).push(bytes);
    assert_eq!(pushed(&[0x80, 46, 1, 0, 2]), Err(Error::Version(2)));
    assert_eq!(pushed(&[0x80, 4, 1, 3, 1, 0]), Err(Error::Length));
    assert_eq!(pushed(&[0x80, 46, 4]), Err(Error::ContentType(0x80)));
}

#[test]
fn hellos_without_extensions_are_read() {
    for (bytes, version, id_len) in [(SSL3, SSL_3_0, 32), (TLS10, TLS_1_0, 0)] {
        let hello = hello(bytes);
        assert_eq!(hello.max_version(), version);
        assert_eq!(hello.session_id.len(), id_len);
        assert_eq!(hello.server_name, None);
        assert!(hello.alpn.iter().next().is_none() && hello.session_ticket.is_none());
    }
}

#[test]
fn every_prefix_is_incomplete() {
    for bytes in hellos() {
        let message = &bytes[5..];
        let mut reader = HelloReader::new(DEFAULT_LIMIT);
        for end in 0..message.len() {
            assert_eq!(ClientHello::parse(&message[..end]), Err(Error::Incomplete));
        }
        for byte in &bytes[..bytes.len() - 1] {
            assert_eq!(reader.push(&[*byte]), Ok(false));
            assert_eq!(reader.hello(), Err(Error::Incomplete));
        }
        assert_eq!(reader.push(&bytes[bytes.len() - 1..]), Ok(true));
        assert_eq!(reader.hello(), ClientHello::parse(message));
        assert_eq!(reader.bytes(), bytes);
    }
    for exchange in EXCHANGES.iter().filter(|it| it.server[0] == 22) {
        let message = &exchange.server[5..];
        let message = &message[..crate::record::message_len(message).expect("a header")];
        assert!(ServerHello::parse(message).is_ok(), "{}", exchange.name);
        for end in 0..message.len() {
            assert_eq!(ServerHello::parse(&message[..end]), Err(Error::Incomplete));
        }
    }
    for message in TICKETS {
        let parsed = NewSessionTicket::parse(message).expect("a ticket");
        assert!(parsed.ticket.len() > 100 && parsed.lifetime_hint > 0);
        for end in 0..message.len() {
            assert_eq!(
                NewSessionTicket::parse(&message[..end]),
                Err(Error::Incomplete)
            );
        }
    }
}

#[test]
fn records_make_no_difference() {
    for bytes in hellos() {
        let message = &bytes[5..];
        for size in [1, 2, 3, 5, 100, message.len() - 1] {
            let records = in_records(message, size);
            let mut reader = HelloReader::new(DEFAULT_LIMIT);
            let hello = read(&mut reader, records.chunks(1)).expect("right");
            assert_eq!(hello, ClientHello::parse(message).ok(), "{size}");
            assert_eq!(reader.bytes(), records);
        }
    }
}

#[test]
fn the_longest_hello_in_the_smallest_pieces_takes_linear_time() {
    let big = client_hello(&[(21, &[0; 60 * 1024])]);
    // 370,000 segments: if each segment made the reader walk all bytes again, this test would take
    // far too long.
    let records = in_records(&big, 1);
    let mut reader = HelloReader::new(MAX_LIMIT);
    let hello = read(&mut reader, records.chunks(1));
    assert_eq!(hello, ClientHello::parse(&big).map(Some));
}

#[test]
fn what_follows_the_hello_is_kept_for_the_server() {
    let mut reader = HelloReader::new(DEFAULT_LIMIT);
    let early = [exchange("curl-full").client, &[23, 3, 3, 0, 2, 1, 2]].concat();
    assert_eq!(reader.push(&early), Ok(true));
    assert_eq!(reader.push(b"more"), Ok(true));
    assert_eq!(reader.hello(), Ok(hello(exchange("curl-full").client)));
    assert_eq!(reader.bytes(), [&early[..], b"more"].concat());
}

#[test]
fn a_hello_over_the_limit_is_refused_by_its_header() {
    let big = client_hello(&[(21, &[0; 17 * 1024])]);
    let records = in_records(&big, MAX_PLAINTEXT);
    let over = Err(Error::OverLimit(DEFAULT_LIMIT));
    let mut reader = HelloReader::new(DEFAULT_LIMIT);
    assert_eq!(reader.push(&records), over);
    assert_eq!(reader.push(&records), over, "final");
    assert_eq!(reader.hello(), Err(Error::OverLimit(DEFAULT_LIMIT)));
    assert_eq!(reader.bytes().len(), records.len(), "nothing is added");
    assert_eq!(HelloReader::new(DEFAULT_LIMIT).push(&records[..9]), over);

    let mut reader = HelloReader::new(MAX_LIMIT);
    assert_eq!(reader.push(&records), Ok(true));
    assert_eq!(reader.hello(), ClientHello::parse(&big));
    let mut exact = HelloReader::new(big.len());
    assert_eq!(exact.push(&records), Ok(true));
    let huge = message(1, &[0; MAX_LIMIT]);
    let mut reader = HelloReader::new(usize::MAX);
    assert_eq!(
        reader.push(&in_records(&huge, MAX_PLAINTEXT)),
        Err(Error::OverLimit(MAX_LIMIT))
    );
}

#[test]
fn what_is_no_hello_is_refused_as_soon_as_it_shows() {
    let refused = |bytes: &[u8], error| {
        let mut reader = HelloReader::new(DEFAULT_LIMIT);
        let (last, before) = bytes.split_last().expect("bytes");
        assert_eq!(reader.push(before), Ok(false), "{bytes:?}");
        assert_eq!(reader.push(&[*last]), Err(error), "{bytes:?}");
    };
    refused(b"G", Error::ContentType(b'G'));
    refused(&[21, 3, 1, 0, 2], Error::ContentType(21));
    refused(&[22, 3, 1, 0, 0], Error::EmptyFragment);
    refused(&[22, 3, 1, 0, 4, 2], Error::HandshakeType(2));
    let start = [22, 3, 1, 0, 1, 1];
    let then = |more: &[u8]| [&start, more].concat();
    refused(&then(&[20, 3, 1, 0, 1]), Error::Interleaved);
    refused(&then(&[22, 3, 1, 0, 0]), Error::EmptyFragment);
    let trailing = Error::Trailing;
    refused(&[22, 3, 1, 0, 46, 1, 0, 0, 41], trailing);
    refused(&then(&[22, 3, 1, 0, 10, 0, 0, 1]), trailing);
}

#[test]
fn the_rules_of_the_extensions_are_kept() {
    let error = |extensions: &[(u16, &[u8])]| ClientHello::parse(&client_hello(extensions)).err();
    let illegal = |extensions: &[(u16, &[u8])]| {
        let error = error(extensions);
        assert!(matches!(error, Some(Error::Illegal(_))), "{error:?}");
    };
    let psk = [&[0, 7, 0, 1, 9, 0, 0, 0, 1, 0, 33, 32][..], &[0; 32]].concat();
    assert_eq!(error(&[(23, b""), (41, &psk)]), None);
    illegal(&[(23, b""), (23, b"")]);
    illegal(&[(0x5a5a, b""), (23, b""), (0x5a5a, b"")]);
    illegal(&[(41, &psk), (23, b"")]);
    illegal(&[(0, b"\0\x04\0\0\x01 ")]);
    illegal(&[(0, b"\0\x08\0\0\x01a\0\0\x01b")]);
    for (kind, body) in [(0, &b"\0\x03\0\0\0"[..]), (16, b"\0\x01\0")] {
        let empty = error(&[(kind, body)]);
        assert!(matches!(empty, Some(Error::OutOfRange(_))), "{empty:?}");
    }
    for (kind, body) in [
        (0, &b"\0\0"[..]),
        (0, b"\0\x05\0\0\x01a"),
        (16, b"\0\0"),
        (16, b"\0\x03\x03h2"),
        (23, b"x"),
        (42, b"x"),
        (43, b"\x03\x03\x04\x03"),
        (43, b"\0"),
        (45, b"\0"),
        (58, b"\x01"),
        (58, b"\x01\x01\x01"),
        (1, b""),
        (1, b"\x01\x01"),
        (28, b"\x40"),
        (28, b"\0\x40\0"),
    ] {
        assert_eq!(
            error(&[(kind, body)]),
            Some(Error::Length),
            "{kind} {body:?}"
        );
    }
    let hello = client_hello(&[
        (58, b"\x02\x01"),
        (42, b""),
        (0, b"\0\x0b\0\0\x03a.b\x07\0\x02xy"),
    ]);
    let hello = ClientHello::parse(&hello).expect("right");
    assert_eq!(hello.ticket_request, Some((2, 1)));
    assert_eq!(hello.server_name, Some("a.b"));
    assert!(hello.early_data);
}

#[test]
fn the_size_of_records_that_a_client_asks_for_is_read() {
    let gnutls = hello(exchange("gnutls-full").client);
    assert_eq!(gnutls.record_size_limit, Some(16_385));
    assert_eq!(gnutls.max_fragment_length, None);
    let both = client_hello(&[(28, b"\x02\x01"), (1, b"\x04")]);
    let both = ClientHello::parse(&both).expect("right");
    assert_eq!(both.record_size_limit, Some(513));
    assert_eq!(both.max_fragment_length, Some(4));
    // Values that a server refuses are no reason for a balancer to refuse the hello.
    let illegal = client_hello(&[(28, b"\0\x01"), (1, b"\x09")]);
    assert!(ClientHello::parse(&illegal).is_ok());
}

#[test]
fn there_are_as_many_binders_as_identities() {
    let parse = |identities: &[&[u8]], binders: &[usize]| {
        let mut list = Vec::new();
        for identity in identities {
            list.extend([0, u8::try_from(identity.len()).expect("short")]);
            list.extend(*identity);
            list.extend([1, 2, 3, 4]);
        }
        let mut tail = Vec::new();
        for len in binders {
            tail.push(u8::try_from(*len).expect("short"));
            tail.extend(vec![0; *len]);
        }
        let len = |list: &[u8]| u16::try_from(list.len()).expect("short").to_be_bytes();
        let body = [&len(&list), &list[..], &len(&tail), &tail].concat();
        ClientHello::parse(&client_hello(&[(41, &body)])).map(|hello| {
            let psks = hello.pre_shared_key.expect("it is there");
            psks.identities()
                .map(|it| (it.identity.len(), it.obfuscated_ticket_age))
                .collect()
        })
    };
    let age = 0x0102_0304;
    assert_eq!(
        parse(&[b"one", b"three"], &[32, 48]),
        Ok(vec![(3, age), (5, age)])
    );
    assert_eq!(parse(&[b"one", b"two"], &[32]), Err(Error::Length));
    assert_eq!(parse(&[b"one"], &[32, 32]), Err(Error::Length));
    assert_eq!(parse(&[], &[]), Err(Error::Length));
    for (identity, binder) in [(&b"one"[..], 31), (b"", 32)] {
        let parsed = parse(&[identity], &[binder]);
        assert!(matches!(parsed, Err(Error::OutOfRange(_))), "{parsed:?}");
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    for bytes in hellos() {
        let message = &bytes[5..];
        let longer = [message, b"\0"].concat();
        assert_eq!(
            ClientHello::parse(&longer),
            Err(Error::Length),
            "trailing bytes"
        );
        // Now the extra byte is inside the message.
        let body = [&message[4..], b"\0"].concat();
        let inside = crate::testdata::message(1, &body);
        assert_eq!(ClientHello::parse(&inside), Err(Error::Length));
        let body = &message[4..message.len() - 1];
        let shorter = crate::testdata::message(1, body);
        assert_eq!(ClientHello::parse(&shorter), Err(Error::Length));
    }
}

#[test]
fn versions_that_nobody_knows_are_passed_over() {
    let max = |versions: &[u8]| {
        let body = [&[u8::try_from(versions.len()).expect("short")], versions].concat();
        let hello = client_hello(&[(43, &body)]);
        ClientHello::parse(&hello).map(|hello| hello.max_version())
    };
    assert_eq!(max(&[0x9a, 0x9a, 3, 3, 3, 4]), Ok(TLS_1_3));
    assert_eq!(max(&[0x7f, 0x1c, 3, 2]), Ok(0x0302));
    assert_eq!(max(&[0x0a, 0x0a]), Ok(0));
}

#[test]
fn a_client_version_above_tls_1_2_stands_for_tls_1_2() {
    let with = |version: u16| {
        let mut hello = client_hello(&[]);
        hello[4..6].copy_from_slice(&version.to_be_bytes());
        ClientHello::parse(&hello).map(|hello| hello.max_version())
    };
    for version in [0x0303, 0x0304, 0x03ff, 0x0400, 0xfe09, 0xffff] {
        assert_eq!(with(version), Ok(TLS_1_2), "{version:#06x}");
    }
    assert_eq!(with(0x0301), Ok(TLS_1_0));
    for version in [0, 0x0002, 0x02ff] {
        assert_eq!(with(version), Err(Error::ClientVersion(version)));
    }
}

#[test]
fn server_hellos_say_what_was_chosen() {
    let parse = |name| ServerHello::parse_first(exchange(name).server);
    let full = parse("openssl-tls12-ticket-full");
    assert_eq!(full.version(), TLS_1_2);
    assert!(full.session_ticket && full.extended_master_secret && full.session_id.is_empty());
    let resumed = parse("openssl-tls13-resumed");
    assert_eq!(
        (resumed.version(), resumed.legacy_version),
        (TLS_1_3, TLS_1_2)
    );
    assert_eq!(resumed.selected_identity, Some(0));
    assert_eq!(parse("openssl-tls13-full").selected_identity, None);
    assert!(!resumed.is_hello_retry_request());
    assert!(parse("openssl-tls13-retry-full").is_hello_retry_request());
    assert_eq!(parse("openssl-tls10-id-full").version(), TLS_1_0);
}

impl ServerHello<'static> {
    fn parse_first(flight: &'static [u8]) -> Self {
        let message = &flight[5..];
        let len = crate::record::message_len(message).expect("a header");
        Self::parse(&message[..len]).expect("a ServerHello")
    }
}

#[test]
fn flipped_bytes_never_panic() {
    for bytes in hellos().chain([SSL2]) {
        let mut bytes = bytes.to_vec();
        for at in 0..bytes.len() {
            for mask in [0xff, 0x80, 0x01] {
                bytes[at] ^= mask;
                let mut reader = HelloReader::new(DEFAULT_LIMIT);
                let _ = read(&mut reader, [&bytes[..]]);
                bytes[at] ^= mask;
            }
        }
    }
}

proptest! {
    #[test]
    fn mutated_hellos_in_any_cut_give_the_same(
        index in 0..EXCHANGES.len(),
        size in 1..3000usize,
        changes in proptest::collection::vec((0..500usize, any::<u8>()), 0..4),
        cut in 1..60usize,
    ) {
        let mut bytes = in_records(&EXCHANGES[index].client[5..], size);
        for (at, byte) in changes {
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        let (mut one, mut other) = (HelloReader::new(DEFAULT_LIMIT), HelloReader::new(DEFAULT_LIMIT));
        prop_assert_eq!(read(&mut one, bytes.chunks(cut)), read(&mut other, [&bytes[..]]));
    }

    #[test]
    fn reader_and_deframer_find_the_same_message(
        body in proptest::collection::vec(any::<u8>(), 0..200),
        size in 1..100usize,
    ) {
        let records = in_records(&message(kind::CLIENT_HELLO, &body), size);
        let mut reader = HelloReader::new(DEFAULT_LIMIT);
        prop_assert_eq!(reader.push(&records), Ok(true));
        let mut deframer = Deframer::new(DEFAULT_LIMIT, |_| true);
        match deframer.next(&mut &records[..]) {
            Ok(Item::Handshake(message)) => {
                prop_assert_eq!(reader.hello(), ClientHello::parse(message));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        for kind in [kind::CLIENT_HELLO, kind::SERVER_HELLO, kind::NEW_SESSION_TICKET] {
            let message = message(kind, &body);
            let _ = ClientHello::parse(&message);
            let _ = ServerHello::parse(&message);
            let _ = NewSessionTicket::parse(&message);
        }
        let _ = ClientHello::parse_ssl2(&body);
    }
}
