//! Limits the size of records to the limit in the ClientHello (RFC 6066, 4, and RFC 8449).
//!
//! rustls neither reads nor answers these extensions. Small records are legal without an answer. The
//! client's own records keep their size.

use std::io;

use rustls::ServerConnection;
use sessile_proto::hello::{ClientHello, IllegalRecordLimit};
use sessile_proto::record::separate_messages;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// The value of [`rustls::ServerConfig::max_fragment_size`] for this client, in bytes.
///
/// Like [`ClientHello::max_record_size`], the value includes the record header but not the encryption.
///
/// # Errors
/// The client asks for an illegal size.
pub(super) fn max_fragment_size(
    hello: &ClientHello<'_>,
) -> Result<Option<usize>, IllegalRecordLimit> {
    // rustls selects TLS 1.3 if the client offers it.
    hello.max_record_size(hello.negotiated_version())
}

/// Writes a flight of a TLS 1.2 handshake to a client with small records.
///
/// rustls joins the messages of a flight before it splits them into records. Some small devices cannot
/// read a split message, so each message begins a new record.
pub(super) async fn write_flight(
    io: &mut TcpStream,
    tls: &mut ServerConnection,
    max_fragment_size: usize,
) -> io::Result<()> {
    let mut flight = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut flight)?;
    }
    let flight = separate_messages(&flight, max_fragment_size).unwrap_or(flight);
    io.write_all(&flight).await
}
