//! The bytes of an HTTP/2 connection in both directions, at once and in segments.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sessile_fuzz::segments;
use sessile_proto::frame_budget::FrameBudget;

fuzz_target!(|data: &[u8]| {
    let now = Duration::ZERO;
    let mut whole = FrameBudget::new();
    whole.send(data);
    let at_once = whole.receive(data, now);
    let mut budget = FrameBudget::new();
    segments(data).for_each(|segment| budget.send(segment));
    let in_segments = segments(data).try_for_each(|segment| budget.receive(segment, now));
    assert_eq!(in_segments, at_once);
    assert_eq!(budget.goaway(), whole.goaway());
});
