//! Parses the replies of servers and proxies that come before TLS.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_proto::clear_replies::{
    Reply, connect, ftp_greeting, imap_greeting, imap_tagged, ldap, numeric, pop3,
};

fuzz_target!(|data: &[u8]| {
    let data = &data[..data.len().min(400)];
    let parsers: [fn(&[u8]) -> Reply; 7] = [
        |reply| numeric(reply, "220"),
        ftp_greeting,
        imap_greeting,
        imap_tagged,
        pop3,
        connect,
        ldap,
    ];
    for parse in parsers {
        for end in 0..=data.len() {
            if let Reply::Negative(shown) = parse(&data[..end]) {
                assert!(shown.chars().count() <= 120 && !shown.contains('\n'));
            }
        }
    }
});
