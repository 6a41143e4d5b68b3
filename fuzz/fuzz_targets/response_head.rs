//! The head of an HTTP/1.1 response, at once and in segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_fuzz::segments;
use sessile_proto::response_head::{Error, empty_slots, find_len, parse};

fuzz_target!(|data: &[u8]| {
    let at_once = find_len(data, 0);
    let mut searched = 0;
    let mut in_segments = Err(Error::Incomplete);
    for segment in segments(data) {
        let end = searched + segment.len();
        in_segments = find_len(&data[..end], searched);
        searched = end;
        if in_segments != Err(Error::Incomplete) {
            break;
        }
    }
    assert_eq!(in_segments.is_ok(), at_once.is_ok());
    if let Ok(len) = at_once {
        assert_eq!(in_segments, at_once);
        let (head, mut slots) = (&data[..len], empty_slots());
        if let Ok(parsed) = parse(head, false, &mut slots) {
            let lines = head.split(|byte| *byte == b'\n').count();
            assert_eq!(lines, parsed.fields.len() + 3, "a line for each field");
        }
    }
});
