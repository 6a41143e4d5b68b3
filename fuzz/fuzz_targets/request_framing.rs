//! The bytes of an HTTP/1 connection, at once and in segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_fuzz::segments;
use sessile_proto::request_framing::RequestFraming;

fuzz_target!(|data: &[u8]| {
    let at_once = RequestFraming::new().find_refused(data);
    let mut framing = RequestFraming::new();
    let mut found = None;
    let mut start = 0;
    for segment in segments(data) {
        if let Some(index) = framing.find_refused(segment) {
            assert_eq!(found.replace(start + index), None, "found once");
        }
        start += segment.len();
    }
    assert_eq!(found, at_once);
});
