//! A server's bytes in segments, for clients that offered each kind of session.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_fuzz::segments;
use sessile_proto::hello::ClientHello;
use sessile_proto::watch::{Completion, CompletionWatch, Kind, Watch};

const CLIENTS: [&[u8]; 4] = [
    include_bytes!("../../proto/src/testdata/client-openssl-tls12-ticket-resumed.bin"),
    include_bytes!("../../proto/src/testdata/client-openssl-tls12-id-resumed.bin"),
    include_bytes!("../../proto/src/testdata/client-openssl-tls13-resumed.bin"),
    include_bytes!("../../proto/src/testdata/client-handmade-tls10.bin"),
];

fuzz_target!(|data: &[u8]| {
    for client in CLIENTS {
        let hello = ClientHello::parse(&client[5..]).expect("a fixture");
        let mut whole = Watch::new(&hello);
        let at_once = whole.push(data);
        assert_eq!(at_once.is_some(), whole.is_done());

        let mut watch = Watch::new(&hello);
        let mut in_segments = None;
        for segment in segments(data) {
            if let Some(outcome) = watch.push(segment) {
                assert_eq!(in_segments.replace(outcome), None, "given once");
            }
        }
        assert_eq!(in_segments, at_once);
        assert_eq!(whole.selected_identity(), watch.selected_identity());

        // Without a record of the client after the server's flight, nothing is complete.
        let mut one_sided = CompletionWatch::new(client);
        one_sided.push_server(data);
        assert_ne!(one_sided.result(), Completion::Complete);

        let mut in_segments = CompletionWatch::new(client);
        let mut sides = in_segments.clone();
        for (at, segment) in segments(data).enumerate() {
            in_segments.push_server(segment);
            if at % 2 == 0 {
                sides.push_server(segment);
            } else {
                sides.push_client(segment);
            }
        }
        assert_eq!(in_segments.result(), one_sided.result());

        let Some(outcome) = at_once else { continue };
        assert!(outcome.learned.len() <= 2);
        assert!(outcome.learned.is_empty() || outcome.version < 0x0304);
        assert!(outcome.learned.is_empty() || outcome.kind != Kind::Failed);
    }
});
