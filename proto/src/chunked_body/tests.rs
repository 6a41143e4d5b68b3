use proptest::prelude::*;

use super::*;
use crate::response_head;
use crate::testdata::RESPONSES;

#[derive(Debug, Default, PartialEq)]
struct Decoded {
    data: Vec<u8>,
    trailers: Vec<u8>,
    /// How many bytes the body has.
    len: usize,
}

/// Decodes a body that arrives in parts. `None` if the body is incomplete.
fn decode<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> Result<Option<Decoded>, Error> {
    let (mut body, mut decoded) = (ChunkedBody::new(), Decoded::default());
    let mut received = Vec::new();
    for part in parts {
        received.extend(part);
        loop {
            let skipped = body.skip_framing(&received)?;
            received.drain(..skipped);
            let taken = body.take_data(received.len());
            decoded.data.extend(received.drain(..taken));
            let trailing = body.take_trailers().unwrap_or(0);
            decoded.trailers.extend(received.drain(..trailing));
            decoded.len += skipped + taken + trailing;
            if skipped + taken + trailing == 0 {
                break;
            }
        }
    }
    Ok(body.is_complete().then_some(decoded))
}

fn data_of(bytes: &str) -> Result<Option<String>, Error> {
    let decoded = decode([bytes.as_bytes()])?;
    Ok(decoded.map(|body| String::from_utf8(body.data).expect("text")))
}

/// Chunks with everything that a server may write.
const CHUNKS: &str =
    "5\r\nHello\r\n0001;x=\"y\"\r\n,\r\nA \t\r\n 234\r\n6789\r\n000;last\r\nA: b\r\nC: d\r\n\r\n";
const DATA: &str = "Hello, 234\r\n6789";

#[test]
fn data_is_found_between_the_framing() {
    let decoded = decode([CHUNKS.as_bytes()]).expect("valid");
    let body = decoded.expect("complete");
    assert_eq!((&*body.data, body.len), (DATA.as_bytes(), CHUNKS.len()));
    let fields = parse_trailers(&body.trailers).expect("trailers");
    let fields: Vec<_> = fields
        .iter()
        .map(|field| (field.name, field.value))
        .collect();
    assert_eq!(fields, [("A", &b"b"[..]), ("C", b"d")]);
    assert_eq!(data_of("0\r\n\r\n"), Ok(Some(String::new())));
}

#[test]
fn bodies_of_servers_are_decoded() {
    for (name, bytes) in RESPONSES {
        let body = &bytes[response_head::find_len(bytes, 0).expect(name)..];
        if name.ends_with("chunked") {
            let decoded = decode([body]).expect(name).expect(name);
            assert_eq!(decoded.len, body.len(), "{name}");
            assert!(decoded.data.starts_with(b"Lorem ipsum"), "{name}");
        }
    }
}

#[test]
fn a_part_of_a_body_is_incomplete() {
    for end in 0..CHUNKS.len() {
        assert_eq!(decode([&CHUNKS.as_bytes()[..end]]), Ok(None), "{end}");
    }
}

#[test]
fn bytes_behind_the_body_are_left() {
    for body in ["0\r\n\r\n", CHUNKS] {
        let more = format!("{body}HTTP/1.1 200 OK\r\n\r\n");
        let decoded = decode([more.as_bytes()]).expect("valid");
        assert_eq!(decoded.map(|body| body.len), Some(body.len()));
    }
}

#[test]
fn malformed_chunks_are_refused() {
    for body in [
        "\r\n",
        "g\r\n",
        " 1\r\na",
        "-1\r\na",
        "+1\r\na",
        "0x1\r\na",
        "1 1\r\na",
        "1,1\r\na",
        "00000000000000001\r\na",
        "10000000000000000\r\na",
        "1\r\nab\r\n",
        "1\r\na\n0\r\n\r\n",
        "1\r\na\rb",
        "1\r\na0\r\n\r\n",
        // A CR or LF alone.
        "1\na",
        "1;x\na",
        "1;x\ry\r\na",
        "1\r\r\na",
        "0\n\r\n",
        "0\r\n\n",
        "0\r\n\rx",
        "0\r\na: b\n\r\n",
        "0\r\na: b\r\n\n",
    ] {
        assert_eq!(data_of(body), Err(Error::Malformed), "{body:?}");
    }
    for trailers in [
        "a\r\n\r\n",
        "a : b\r\n\r\n",
        " a: b\r\n\r\n",
        "a: b\r\n c\r\n\r\n",
    ] {
        assert_eq!(
            parse_trailers(trailers.as_bytes()).err(),
            Some(Error::Malformed)
        );
    }
}

#[test]
fn framing_has_limits() {
    let size_line = |len: usize| format!("0;{}\r\n\r\n", "x".repeat(len - 4));
    assert_eq!(data_of(&size_line(MAX_SIZE_LINE)), Ok(Some(String::new())));
    assert_eq!(data_of(&size_line(MAX_SIZE_LINE + 1)), Err(Error::TooLong));
    // The extensions of all chunks have a limit too.
    let chunks = |extensions: usize| {
        let chunk = format!("1;{}\r\na\r\n", "x".repeat(1023));
        let last = format!("0{}\r\n\r\n", ";".repeat(extensions - 15 * 1024));
        format!("{}{last}", chunk.repeat(15))
    };
    let data = "a".repeat(15);
    assert_eq!(data_of(&chunks(MAX_EXTENSIONS)), Ok(Some(data)));
    let longer = chunks(MAX_EXTENSIONS + 1);
    assert_eq!(data_of(&longer), Err(Error::TooLong));
    assert_eq!(decode(longer.as_bytes().chunks(7)), Err(Error::TooLong));
    let trailers = |len: usize| format!("0\r\na: {}\r\n\r\n", "x".repeat(len - 7));
    assert_eq!(data_of(&trailers(MAX_TRAILERS)), Ok(Some(String::new())));
    assert_eq!(data_of(&trailers(MAX_TRAILERS + 1)), Err(Error::TooLong));
    let many = format!("{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
    assert_eq!(parse_trailers(many.as_bytes()).err(), Some(Error::TooLong));
    // The largest size needs no room.
    let mut body = ChunkedBody::new();
    assert_eq!(body.skip_framing(b"ffffffffffffffff\r\nabc"), Ok(18));
    assert_eq!((body.take_data(3), body.take_data(3)), (3, 3));
}

proptest! {
    #[test]
    fn splits_change_nothing(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        ending in prop::sample::select(vec!["0\r\n\r\n", "0\r\nA: b\r\n\r\n", "0\n\r\n", "0\r\n\rA"]),
        size in 1usize..30,
    ) {
        let mut bytes = Vec::new();
        for chunk in &chunks {
            bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(ending.bytes());
        let at_once = decode([&bytes[..]]);
        let is_valid = ending.ends_with("\r\n\r\n");
        prop_assert_eq!(at_once.is_ok(), is_valid);
        if let Ok(decoded) = &at_once {
            prop_assert_eq!(decoded.as_ref().map(|body| &body.data), Some(&chunks.concat()));
        }
        prop_assert_eq!(decode(bytes.chunks(size)), at_once);
    }
}
