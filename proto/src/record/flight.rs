//! Arranges a flight of handshake messages in new records. mbedTLS before 3.6.3 cannot read a
//! message that is split over records.

use super::{ContentType, HEADER_LEN, Header, message_len};

/// The same flight of TLS 1.2, in which no record has parts of two handshake messages. A message
/// that is larger than a record of `max_record` bytes, header included, is split.
///
/// The first record of another type and all records after it stay as they are, because they may be
/// encrypted. `None`: the flight has no whole messages.
#[must_use]
pub fn separate_messages(flight: &[u8], max_record: usize) -> Option<Vec<u8>> {
    let mut messages = Vec::with_capacity(flight.len());
    let mut rest = flight;
    while let Ok(Header {
        content: ContentType::Handshake,
        len,
        ..
    }) = Header::parse(rest)
    {
        let (record, behind) = rest.split_at_checked(HEADER_LEN + len)?;
        messages.extend_from_slice(&record[HEADER_LEN..]);
        rest = behind;
    }
    let max_content = max_record.saturating_sub(HEADER_LEN).max(1);
    let mut separated = Vec::with_capacity(flight.len() + 8 * HEADER_LEN);
    let mut messages = messages.as_slice();
    while !messages.is_empty() {
        let (message, behind) = messages.split_at_checked(message_len(messages).ok()?)?;
        for fragment in message.chunks(max_content) {
            // Type and version are those of the first record.
            separated.extend_from_slice(&flight[..3]);
            separated.extend(u16::try_from(fragment.len()).ok()?.to_be_bytes());
            separated.extend_from_slice(fragment);
        }
        messages = behind;
    }
    separated.extend_from_slice(rest);
    Some(separated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testdata::{EXCHANGES, in_records, message};

    /// The lengths of a flight's records, headers not included.
    fn lengths(mut flight: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while let Ok(header) = Header::parse(flight) {
            lengths.push(header.len);
            flight = &flight[HEADER_LEN + header.len..];
        }
        lengths
    }

    #[test]
    fn no_record_has_parts_of_two_messages() {
        let bodies = [70, 395, 110, 0].map(|len| message(11, &vec![7; len]));
        let messages = bodies.concat();
        for size in [64, 100, 512, 4096] {
            let flight = in_records(&messages, size);
            let separated = separate_messages(&flight, HEADER_LEN + 512).expect("whole messages");
            assert_eq!(lengths(&separated), [74, 399, 114, 4], "{size}");
            let again = separate_messages(&separated, HEADER_LEN + 512);
            assert_eq!(again.as_ref(), Some(&separated), "{size}");
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_split() {
        let messages = [message(11, &[7; 196]), message(14, &[])].concat();
        let flight = in_records(&messages, 80);
        let separated = separate_messages(&flight, HEADER_LEN + 80).expect("whole messages");
        assert_eq!(lengths(&separated), [80, 80, 40, 4]);
    }

    #[test]
    fn records_behind_the_change_of_keys_stay_as_they_are() {
        let clear = in_records(&[message(2, &[1; 70]), message(4, &[2; 30])].concat(), 50);
        let behind = [20, 3, 3, 0, 1, 1, 22, 3, 3, 0, 5, 255, 255, 255, 255, 255];
        let flight = [&clear[..], &behind].concat();
        let separated = separate_messages(&flight, HEADER_LEN + 50).expect("whole messages");
        assert_eq!(lengths(&separated), [50, 24, 34, 1, 5]);
        assert!(separated.ends_with(&behind));
    }

    #[test]
    fn a_flight_without_whole_messages_is_none() {
        let flight = in_records(&message(2, &[1; 70]), 50);
        for end in 1..flight.len() {
            // Fewer bytes than a record header are passed on unchanged. Half a message gives
            // `None`.
            let separated = separate_messages(&flight[..end], 64);
            assert_eq!(separated.is_some(), end < HEADER_LEN, "{end}");
        }
        assert_eq!(separate_messages(b"", 64), Some(Vec::new()));
    }

    #[test]
    fn captured_flights_of_tls12_keep_their_messages() {
        let tls12 = EXCHANGES
            .iter()
            .filter(|exchange| exchange.name.contains("tls12"));
        for exchange in tls12 {
            let separated = separate_messages(exchange.server, HEADER_LEN + 16_384);
            assert!(separated.is_some(), "{}", exchange.name);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>, max_record in 0..200_usize) {
            let _ = separate_messages(&bytes, max_record);
            let records = in_records(&[&[1], &bytes[..]].concat(), 9);
            let _ = separate_messages(&records, max_record);
        }
    }
}
