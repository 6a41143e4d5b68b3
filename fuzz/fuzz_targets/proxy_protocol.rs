//! Parses a PROXY protocol header with bytes after it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_proto::proxy_protocol::{Error, MAX_LEN, Version, encode, parse};

fuzz_target!(|data: &[u8]| {
    let Ok(header) = parse(data) else {
        return;
    };
    assert!(header.len <= MAX_LEN && header.len <= data.len());
    for end in 0..header.len {
        assert_eq!(parse(&data[..end]), Err(Error::Incomplete));
    }
    if let Some(addresses) = header.addresses {
        for version in [Version::V1, Version::V2] {
            let written = encode(version, addresses, Some("farm.test"), Some(b"h2"));
            let again = parse(&written).expect("what is written is read");
            assert_eq!(again.len, written.len());
            let read = again.addresses.expect("addresses");
            assert_eq!(read.source.port(), addresses.source.port());
            assert_eq!(
                read.source.ip().to_canonical(),
                addresses.source.ip().to_canonical()
            );
        }
    }
});
