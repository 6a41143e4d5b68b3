use super::*;
use crate::testdata::{EXCHANGES, Exchange, exchange, in_records, message};
use proptest::prelude::*;

/// An [`Item`] that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Handshake(Vec<u8>),
    Skipped(u8),
    ChangeCipherSpec,
    Alert(u8, u8),
    ApplicationData(Vec<u8>),
}

/// The items in `segments`, and the error at the end.
///
/// Pieces of application data are joined, because the segments decide where the data is cut.
fn deframe<'a>(
    mut deframer: Deframer,
    segments: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Owned>, Error) {
    let mut items = Vec::new();
    for mut segment in segments {
        loop {
            let item = match deframer.next(&mut segment) {
                Ok(Item::Handshake(message)) => Owned::Handshake(message.to_vec()),
                Ok(Item::Skipped(kind)) => Owned::Skipped(kind),
                Ok(Item::ChangeCipherSpec) => Owned::ChangeCipherSpec,
                Ok(Item::Alert { level, description }) => Owned::Alert(level, description),
                Ok(Item::ApplicationData(data)) => {
                    if let Some(Owned::ApplicationData(before)) = items.last_mut() {
                        before.extend(data);
                        continue;
                    }
                    Owned::ApplicationData(data.to_vec())
                }
                Err(Error::Incomplete) => break,
                Err(error) => return (items, error),
            };
            items.push(item);
        }
        assert!(segment.is_empty(), "Incomplete leaves nothing");
    }
    (items, Error::Incomplete)
}

fn all(bytes: &[u8]) -> (Vec<Owned>, Error) {
    deframe(Deframer::new(1 << 14, |_| true), [bytes])
}

#[test]
fn a_full_flight_comes_apart_into_its_messages() {
    let server = exchange("openssl-tls12-ticket-full").server;
    let (items, error) = all(server);
    let kinds = items.iter().map(|item| match item {
        Owned::Handshake(message) => i32::from(message[0]),
        Owned::ChangeCipherSpec => -20,
        other => panic!("{other:?}"),
    });
    // The server's Finished is encrypted. Its bytes look like a message that never ends or is over
    // the limit.
    assert_eq!(kinds.collect::<Vec<_>>()[..6], [2, 11, 12, 14, 4, -20]);
    assert!(matches!(error, Error::Incomplete | Error::OverLimit(_)));
}

#[test]
fn alerts_and_application_data_come_through() {
    assert_eq!(
        all(&[
            21, 3, 3, 0, 2, 2, 40, 23, 3, 3, 0, 3, 7, 8, 9, 23, 3, 3, 0, 0
        ])
        .0,
        [Owned::Alert(2, 40), Owned::ApplicationData(vec![7, 8, 9])]
    );
}

#[test]
fn what_is_not_a_record_is_refused_as_soon_as_it_shows() {
    let refused = |bytes: &[u8], error| assert_eq!(Header::parse(bytes), Err(error), "{bytes:?}");
    refused(b"", Error::Incomplete);
    refused(b"G", Error::ContentType(b'G'));
    refused(&[24], Error::ContentType(24));
    refused(&[22, 2, 0], Error::Version(0x0200));
    refused(&[22, 3, 1, 0], Error::Incomplete);
    refused(&[22, 3, 1, 0, 0], Error::EmptyFragment);
    refused(&[22, 3, 1, 0x40, 1], Error::TooLong(0x4001));
    refused(&[23, 3, 1, 0x48, 1], Error::TooLong(0x4801));
    refused(&[20, 3, 1, 0, 2], Error::Length);
    refused(&[21, 3, 1, 0, 3], Error::Length);
    assert_eq!(
        Header::parse(&[22, 3, 1, 0x40, 0]).map(|it| it.len),
        Ok(MAX_PLAINTEXT)
    );
    assert_eq!(
        Header::parse(&[23, 3, 1, 0x48, 0]).map(|it| it.len),
        Ok(MAX_CIPHERTEXT)
    );
}

#[test]
fn a_change_cipher_spec_of_another_value_is_refused() {
    let error = Error::Illegal("ChangeCipherSpec");
    assert_eq!(all(&[20, 3, 3, 0, 1, 2]), (vec![], error));
}

#[test]
fn nothing_may_stand_between_the_fragments_of_a_message() {
    let whole = in_records(&message(1, b"body"), 3);
    for between in [
        &[20, 3, 3, 0, 1, 1][..],
        &[21, 3, 3, 0, 2, 1, 0],
        &[23, 3, 3, 0, 1, 0],
    ] {
        let mut bytes = whole[..8].to_vec();
        bytes.extend(between);
        assert_eq!(all(&bytes), (vec![], Error::Interleaved));
        // A skipped message gives the same error.
        let mut bytes = in_records(&message(11, b"body"), 5)[..10].to_vec();
        bytes.extend(between);
        let (items, error) = deframe(Deframer::new(100, |_| false), [&bytes[..]]);
        assert_eq!(
            (&items[..], error),
            (&[Owned::Skipped(11)][..], Error::Interleaved)
        );
    }
}

#[test]
fn a_message_over_the_limit_is_refused_by_its_header() {
    let bytes = in_records(&message(1, &[0; 97]), 200);
    assert_eq!(
        deframe(Deframer::new(101, |_| true), [&bytes[..]]).1,
        Error::Incomplete
    );
    let refused = deframe(
        Deframer::new(100, |_| true),
        [&bytes[..HEADER_LEN + HANDSHAKE_HEADER_LEN]],
    );
    assert_eq!(refused, (vec![], Error::OverLimit(100)));
}

#[test]
fn a_message_that_is_not_kept_has_no_limit_and_takes_no_memory() {
    let mut deframer = Deframer::new(100, |kind| kind != 11);
    let mut bytes = in_records(&message(11, &[0; 1 << 20]), MAX_PLAINTEXT);
    bytes.extend(in_records(&message(14, &[]), 4));
    let (mut segment, mut seen) = (&bytes[..], Vec::new());
    while let Ok(item) = deframer.next(&mut segment) {
        seen.push(format!("{item:?}"));
    }
    assert_eq!(seen, ["Skipped(11)", "Handshake([14, 0, 0, 0])"]);
    assert!(deframer.message.capacity() < 100);
}

#[test]
fn an_error_is_final() {
    let mut deframer = Deframer::new(100, |_| true);
    assert_eq!(
        deframer.next(&mut &b"GET"[..]),
        Err(Error::ContentType(b'G'))
    );
    let hello = in_records(&message(1, b""), 4);
    assert_eq!(
        deframer.next(&mut &hello[..]),
        Err(Error::ContentType(b'G'))
    );
}

#[test]
fn segments_and_records_make_no_difference() {
    for Exchange { name, server, .. } in EXCHANGES {
        let expected = all(server);
        assert_eq!(
            deframe(Deframer::new(1 << 14, |_| true), server.chunks(1)),
            expected,
            "{name}"
        );
    }
    let messages = [
        message(2, b"hello"),
        message(11, &[1; 300]),
        message(14, b""),
    ]
    .concat();
    let expected = all(&in_records(&messages, MAX_PLAINTEXT));
    assert_eq!(expected.0.len(), 3);
    for size in 1..messages.len() {
        assert_eq!(all(&in_records(&messages, size)), expected, "{size}");
    }
}

proptest! {
    #[test]
    fn any_bytes_in_any_cut_give_the_same(
        bytes in bytes_like_records(),
        cuts in proptest::collection::vec(1..40usize, 1..20),
    ) {
        let mut rest = &bytes[..];
        let segments = cuts.iter().cycle().map_while(|cut| {
            let (segment, after) = rest.split_at((*cut).min(rest.len()));
            rest = after;
            (!segment.is_empty()).then_some(segment)
        });
        let deframer = Deframer::new(50, |kind| kind % 2 == 0);
        prop_assert_eq!(deframe(deframer.clone(), segments), deframe(deframer, [&bytes[..]]));
    }
}

/// Records, most of them correct, with small messages that mostly fit.
fn bytes_like_records() -> impl Strategy<Value = Vec<u8>> {
    let body =
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), 0..6u8, any::<u8>()], 0..30);
    let record = (19..25u8, body).prop_map(|(content, body)| {
        let mut record = vec![content, 3, 1, 0, u8::try_from(body.len()).expect("short")];
        record.extend(body);
        record
    });
    proptest::collection::vec(record, 0..10).prop_map(|records| records.concat())
}
