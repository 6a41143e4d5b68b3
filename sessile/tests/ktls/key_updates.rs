//! KeyUpdate on a connection whose records are in the kernel (RFC 9846, 4.7.3).

use rustls::client::Tls12Resumption;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;

use crate::peers::eventually;
use crate::site::{MIB, Site};

/// True if the kernel can take the next keys of a connection. `just ktls` says which kernels can.
fn can_rekey() -> bool {
    std::env::var("SESSILE_KTLS_REKEY").expect("`just ktls` sets it") == "yes"
}

#[test]
fn a_client_may_update_its_keys_before_and_after_the_move() {
    let site = Site::with(MIB, "");
    let client = site.client(suite::TLS13_AES_128_GCM_SHA256, Tls12Resumption::Disabled);
    let mut connection = client.connect();
    assert!(connection.get("range: bytes=0-9\r\n").body == site.content[..10]);
    // This update happens in the server's process, and its answer leaves with the head of the file.
    connection.tls.conn.refresh_traffic_keys().unwrap();
    assert!(connection.get("").body == site.content);
    assert_eq!(site.sent(), (MIB as u64, 0));
    for update in 1..=3 {
        connection.tls.conn.refresh_traffic_keys().unwrap();
        if can_rekey() {
            assert!(connection.get("").body == site.content, "update {update}");
        } else {
            connection.send_request("");
            assert!(connection.is_closed_cleanly());
            eventually("the server closes the connection", || {
                site.server.metrics().sum("sessile_connections_open", &[]) == 0
            });
            return;
        }
    }
    connection.close();
    assert_eq!(site.sent(), (4 * MIB as u64, 0));
}
