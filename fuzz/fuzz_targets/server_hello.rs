//! Parses the first message of a record as a ServerHello.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_proto::hello::ServerHello;
use sessile_proto::record::{Error, HEADER_LEN, message_len};

fuzz_target!(|data: &[u8]| {
    let bytes = data.get(HEADER_LEN..).unwrap_or_default();
    let len = message_len(bytes).unwrap_or(usize::MAX).min(bytes.len());
    let message = &bytes[..len];
    let Ok(hello) = ServerHello::parse(message) else {
        return;
    };

    assert!(hello.session_id.len() <= 32 && hello.random.len() == 32);
    assert_eq!(
        hello.version(),
        hello.supported_versions.unwrap_or(hello.legacy_version)
    );
    let _ = hello.is_hello_retry_request();
    for end in [0, 1, 4, len / 2, len - 1] {
        assert_eq!(ServerHello::parse(&message[..end]), Err(Error::Incomplete));
    }
    if let Some(longer) = bytes.get(..=len) {
        assert_eq!(ServerHello::parse(longer), Err(Error::Length));
    }
});
