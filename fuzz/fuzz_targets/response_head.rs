//! The head of an HTTP/1.1 response, at once and in segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_fuzz::segments;
use sessile_proto::response_head::{Error, empty_slots, find_len, parse};

/// The length of a head, and the number of its fields.
fn read(len: Result<usize, Error>, bytes: &[u8]) -> Result<(usize, usize), Error> {
    let (head, mut slots) = (&bytes[..len?], empty_slots());
    let fields = parse(head, false, &mut slots)?.fields.len();
    let lines = head.split(|byte| *byte == b'\n').count();
    assert_eq!(lines, fields + 3, "a line for each field");
    Ok((head.len(), fields))
}

fuzz_target!(|data: &[u8]| {
    let mut searched = 0;
    let mut found = Err(Error::Incomplete);
    for segment in segments(data) {
        let end = searched + segment.len();
        found = find_len(&data[..end], searched);
        searched = end;
        if found != Err(Error::Incomplete) {
            break;
        }
    }
    let at_once = read(find_len(data, 0), data);
    let in_segments = read(found, data);
    // A fault can be found before or after the end of the head.
    assert_eq!(in_segments.ok(), at_once.ok());
});
