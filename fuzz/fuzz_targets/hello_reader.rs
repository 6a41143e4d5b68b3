//! A client's first bytes, in segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_fuzz::segments;
use sessile_proto::hello::{ClientHello, HelloReader};
use sessile_proto::record::{Deframer, Error, Item};

const LIMIT: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let mut whole = HelloReader::new(LIMIT);
    let at_once = whole.push(data);
    assert_ne!(at_once, Err(Error::Incomplete));

    let mut reader = HelloReader::new(LIMIT);
    let mut in_segments = Ok(false);
    for segment in segments(data) {
        let before = in_segments;
        in_segments = reader.push(segment);
        // After an error or a complete hello, more bytes do not change the result.
        assert!(before == Ok(false) || before == in_segments);
    }
    assert_eq!(in_segments, at_once);
    assert_eq!(reader.hello(), whole.hello());
    assert!(data.starts_with(reader.bytes()));
    if at_once != Ok(true) {
        assert!(reader.hello().is_err());
        return;
    }
    assert_eq!(reader.bytes(), data);
    assert_ne!(reader.hello().err(), Some(Error::Incomplete));

    // The deframer must assemble the same message.
    if data[0] & 0x80 == 0 {
        match Deframer::new(LIMIT, |_| true).next(&mut &data[..]) {
            Ok(Item::Handshake(message)) => assert_eq!(ClientHello::parse(message), reader.hello()),
            other => panic!("{other:?}"),
        }
    }
});
