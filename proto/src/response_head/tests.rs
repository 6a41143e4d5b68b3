use proptest::prelude::*;

use super::*;
use crate::testdata::RESPONSES;

/// A parsed head without borrowed parts: status, body, and whether the connection stays.
type Read = Result<(u16, BodyLength, bool), Error>;

fn read_for(bytes: &[u8], is_head: bool) -> Read {
    read_found(find_len(bytes, 0), bytes, is_head)
}

/// Reads a head with this length.
fn read_found(len: Result<usize, Error>, bytes: &[u8], is_head: bool) -> Read {
    let len = len?;
    let mut slots = empty_slots();
    let head = parse(&bytes[..len], is_head, &mut slots)?;
    Ok((head.status, head.body, head.keeps_connection))
}

fn read(bytes: &str) -> Read {
    read_for(bytes.as_bytes(), false)
}

/// Reads a head with these fields behind `HTTP/1.1 200 OK`.
fn read_fields(fields: &str) -> Read {
    read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"))
}

#[test]
fn heads_of_servers_are_parsed() {
    for (name, bytes) in RESPONSES {
        let len = find_len(bytes, 0).expect(name);
        let mut slots = empty_slots();
        let head = parse(&bytes[..len], false, &mut slots).expect(name);
        let field = |name: &str| {
            let mut fields = head.fields.iter();
            let field = fields.find(|field| field.name.eq_ignore_ascii_case(name));
            field.map(|field| std::str::from_utf8(field.value).expect("text"))
        };
        assert_eq!((head.status, head.reason), (200, "OK"), "{name}");
        assert!(head.keeps_connection, "{name}");
        let body = match field("transfer-encoding") {
            Some(_) => BodyLength::Chunked,
            None => BodyLength::Bytes((bytes.len() - len) as u64),
        };
        assert_eq!(head.body, body, "{name}");
        assert!(field("content-type").is_some_and(|kind| kind.starts_with("text/")));
    }
}

#[test]
fn a_part_of_a_head_is_incomplete() {
    for (name, bytes) in RESPONSES {
        let len = find_len(bytes, 0).expect(name);
        for end in 0..len {
            assert_eq!(
                find_len(&bytes[..end], 0),
                Err(Error::Incomplete),
                "{name}: {end}"
            );
            assert_eq!(find_len(bytes, end), Ok(len), "{name}: {end}");
        }
    }
}

#[test]
fn the_body_ends_as_the_head_says() {
    use BodyLength::*;
    for (fields, body) in [
        ("", UntilClose),
        ("Content-Length: 0\r\n", Empty),
        ("content-length:\t 007 \r\n", Bytes(7)),
        (
            "Content-Length: 9223372036854775807\r\n",
            Bytes(i64::MAX as u64),
        ),
        ("TRANSFER-ENCODING: Chunked\r\n", Chunked),
    ] {
        let keeps = body != UntilClose;
        assert_eq!(read_fields(fields), Ok((200, body, keeps)), "{fields}");
    }
}

#[test]
fn some_responses_have_no_body() {
    use BodyLength::*;
    let framed = "Content-Length: 5\r\n\r\n";
    for (status, is_head, body, keeps) in [
        (200, false, Bytes(5), true),
        (200, true, Empty, true),
        (304, false, Empty, true),
        (404, true, Empty, true),
        // A body can follow against the rules.
        (204, false, Empty, false),
    ] {
        let head = format!("HTTP/1.1 {status} x\r\n{framed}");
        let found = read_for(head.as_bytes(), is_head);
        assert_eq!(found, Ok((status, body, keeps)), "{head}");
    }
    for status in [204, 304] {
        let head = format!("HTTP/1.1 {status}\r\n\r\n");
        assert_eq!(read(&head), Ok((status, Empty, true)));
    }
    assert_eq!(
        read_for(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            true
        ),
        Ok((200, Empty, true))
    );
}

#[test]
fn a_length_that_is_ambiguous_is_refused() {
    for fields in [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\ncontent-length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: \r\n",
        "Content-Length: 9223372036854775808\r\n",
        "Content-Length: 18446744073709551621\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked;a=b\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: \r\n",
    ] {
        assert_eq!(read_fields(fields), Err(Error::AmbiguousEnd), "{fields}");
    }
    for head in [
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert_eq!(read(head), Err(Error::AmbiguousEnd), "{head}");
    }
}

#[test]
fn heads_that_servers_read_in_two_ways_are_refused() {
    for head in [
        "220 mail.example ESMTP\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        " HTTP/1.1 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1 200 OK\n\r\n",
        "HTTP/1.1 200 OK\r\n\n",
        "HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA(: b\r\n\r\n",
    ] {
        assert_eq!(read(head), Err(Error::Malformed), "{head:?}");
    }
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
    assert_eq!(read(upgrade), Err(Error::SwitchesProtocol));
}

#[test]
fn the_connection_stays_only_if_both_sides_can_use_it() {
    for (version, options, keeps) in [
        ("1.1", "", true),
        ("1.1", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: x, Close\r\n", false),
        (
            "1.1",
            "Connection: close\r\nConnection: keep-alive\r\n",
            false,
        ),
        ("1.1", "Connection: x ,\tclose\r\n", false),
        ("1.1", "Connection: closed\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", false),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let head = format!("HTTP/{version} 200 OK\r\nContent-Length: 5\r\n{options}\r\n");
        assert_eq!(
            read(&head),
            Ok((200, BodyLength::Bytes(5), keeps)),
            "{head}"
        );
    }
}

#[test]
fn a_search_goes_on_where_the_last_one_ended() {
    // The LF alone is between bytes that are not searched again.
    let bytes = b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n";
    assert_eq!(find_len(bytes, bytes.len()), Err(Error::Incomplete));
    for searched in [0, 21] {
        assert_eq!(find_len(bytes, searched), Err(Error::Malformed));
    }
}

#[test]
fn informational_heads_are_marked() {
    for (status, is_informational) in [(100, true), (103, true), (200, false), (999, false)] {
        let head = format!("HTTP/1.1 {status} x\r\n\r\n");
        let mut slots = empty_slots();
        let parsed = parse(head.as_bytes(), false, &mut slots).expect("a head");
        assert_eq!(parsed.is_informational(), is_informational);
    }
}

#[test]
fn a_head_ends_at_its_limits() {
    let (start, end) = ("HTTP/1.1 200 OK\r\nA: ", "\r\n\r\n");
    let value = "x".repeat(MAX_HEAD - start.len() - end.len());
    let longest = format!("{start}{value}{end}");
    assert_eq!(find_len(longest.as_bytes(), 0), Ok(MAX_HEAD));
    let longer = format!("{start}x{value}{end}");
    assert_eq!(find_len(longer.as_bytes(), 0), Err(Error::TooLong));
    assert_eq!(
        find_len(&longer.as_bytes()[..MAX_HEAD], 0),
        Err(Error::TooLong)
    );

    let most = "A: b\r\n".repeat(MAX_FIELDS);
    assert!(read_fields(&most).is_ok());
    assert_eq!(read_fields(&format!("{most}A: b\r\n")), Err(Error::TooLong));
}

proptest! {
    #[test]
    fn any_head_that_is_accepted_has_one_meaning(
        fields in prop::collection::vec(
            prop::sample::select(vec![
                "Content-Length: 3", "content-length: 4", "Transfer-Encoding: chunked", "Connection: close",
                "A: b", "A : b", " b", "A: b\n", "\rA: b", "Content-Length:3", "X: Content-Length: 9",
            ]),
            0..5,
        ),
    ) {
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", fields.join("\r\n"));
        if let Ok((_, body, _)) = read(&head) {
            let lower = head.to_ascii_lowercase();
            let counted = |name: &str| lower.matches(name).count();
            let lengths = counted("\r\ncontent-length");
            let codings = counted("\r\ntransfer-encoding");
            prop_assert!(lengths + codings <= 1);
            prop_assert_eq!(body == BodyLength::UntilClose, lengths + codings == 0);
            prop_assert_eq!(lower.matches('\n').count(), counted("\r\n"));
        }
    }

    #[test]
    fn splits_change_nothing(split in 0usize..200, noise in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut bytes = b"HTTP/1.1 200 OK\r\nA: ".to_vec();
        bytes.extend(&noise);
        bytes.extend(b"\r\n\r\n");
        let split = split.min(bytes.len());
        let first = find_len(&bytes[..split], 0);
        let found = match first {
            Err(Error::Incomplete) => find_len(&bytes, split),
            found => found,
        };
        prop_assert_eq!(read_found(found, &bytes, false), read_for(&bytes, false));
    }
}
