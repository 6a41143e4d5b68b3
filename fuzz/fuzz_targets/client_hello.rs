//! A ClientHello in a record, or in the SSLv2 form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_proto::hello::{ClientHello, HelloReader, MAX_LIMIT};
use sessile_proto::record::{Error, HEADER_LEN};

fn parse(bytes: &[u8], ssl2: bool) -> Result<ClientHello<'_>, Error> {
    if ssl2 {
        ClientHello::parse_ssl2(bytes)
    } else {
        ClientHello::parse(bytes)
    }
}

fuzz_target!(|data: &[u8]| {
    let ssl2 = data.first().is_some_and(|first| first & 0x80 != 0);
    let header = if ssl2 { 0 } else { HEADER_LEN };
    let bytes = data.get(header..).unwrap_or_default();
    let Ok(hello) = parse(bytes, ssl2) else {
        return;
    };

    assert!(hello.session_id.len() <= 32 && hello.random.len() <= 32);
    assert!(hello.cipher_suites.iter().count() * 2 <= bytes.len());
    assert!(hello.alpn.iter().all(|name| !name.is_empty()));
    assert_eq!(hello.offers_tls13(), hello.max_version() == 0x0304);
    assert!(hello.server_name.is_none_or(|name| name.is_ascii()));
    if let Some(psks) = hello.pre_shared_key {
        assert_eq!(psks.identities().count(), psks.count());
    }
    let size = hello.max_record_size();
    assert!(matches!(size, Err(_) | Ok(None | Some(68..=16_388))));
    let sum = |part: &[u8]| part.iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(hello.fingerprint(sum), hello.fingerprint(sum));
    for end in [0, 1, 4, bytes.len() / 2, bytes.len() - 1] {
        assert_eq!(parse(&bytes[..end], ssl2).err(), Some(Error::Incomplete));
    }
    if ssl2 {
        let mut reader = HelloReader::new(MAX_LIMIT);
        assert_eq!(reader.push(bytes), Ok(true));
        assert_eq!(reader.hello(), Ok(hello));
    }
});
