//! Parses a NewSessionTicket message of TLS 1.2.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_proto::hello::NewSessionTicket;
use sessile_proto::record::Error;

fuzz_target!(|data: &[u8]| {
    let Ok(parsed) = NewSessionTicket::parse(data) else {
        return;
    };

    assert_eq!(parsed.ticket.len() + 10, data.len());
    for end in 0..data.len().min(100) {
        assert_eq!(
            NewSessionTicket::parse(&data[..end]),
            Err(Error::Incomplete)
        );
    }
});
