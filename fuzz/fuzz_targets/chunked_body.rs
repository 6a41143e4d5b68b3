//! A body with the chunked transfer coding, at once and in segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_fuzz::segments;
use sessile_proto::chunked_body::{ChunkedBody, Error, parse_trailers};

/// The data of a body, and how many bytes belong to the body.
fn decode<'p>(parts: impl Iterator<Item = &'p [u8]>) -> Result<(Vec<u8>, usize), Error> {
    let mut body = ChunkedBody::new();
    let (mut received, mut data, mut len) = (Vec::new(), Vec::new(), 0);
    for part in parts {
        received.extend(part);
        loop {
            let skipped = body.skip_framing(&received)?;
            received.drain(..skipped);
            let taken = body.take_data(received.len());
            data.extend(received.drain(..taken));
            let trailing = body.take_trailers().unwrap_or(0);
            // Trailers can be malformed.
            let _ = parse_trailers(&received[..trailing]);
            received.drain(..trailing);
            if skipped + taken + trailing == 0 {
                break;
            }
            len += skipped + taken + trailing;
        }
    }
    assert!(data.len() <= len);
    Ok((data, len))
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(decode(segments(data)), decode(std::iter::once(data)));
});
