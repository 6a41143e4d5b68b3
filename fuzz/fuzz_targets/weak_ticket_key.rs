//! Tries weak keys against a ticket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_proto::weak_ticket_key::recognise;

fuzz_target!(|data: &[u8]| {
    let found = recognise(data);
    // A change of the MAC makes every key wrong.
    if let (Some(_), Some((last, rest))) = (found, data.split_last()) {
        let changed = [rest, &[last ^ 1]].concat();
        assert_eq!(recognise(&changed), None);
    }
});
