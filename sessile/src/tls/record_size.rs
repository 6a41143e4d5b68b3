//! The size of the records that a client is sent: what its hello asks for (RFC 6066, section 4;
//! RFC 8449). The library neither reads these extensions nor answers them. Smaller records are
//! legal without an answer, and the client's own records keep their size.

use std::io;

use rustls::ServerConnection;
use sessile_proto::hello::{ClientHello, IllegalRecordLimit, TLS_1_2, TLS_1_3};
use sessile_proto::record::separate_messages;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// What [`rustls::ServerConfig::max_fragment_size`] is for this client: the same as
/// [`ClientHello::max_record_size`], with a header of five bytes, before encryption.
///
/// # Errors
/// If the client asks for a size that the protocol does not allow.
pub(super) fn max_fragment_size(
    hello: &ClientHello<'_>,
) -> Result<Option<usize>, IllegalRecordLimit> {
    // The library chooses TLS 1.3 wherever it is offered.
    let version = if hello.offers_tls13() {
        TLS_1_3
    } else {
        TLS_1_2
    };
    hello.max_record_size(version)
}

/// Writes a flight of a TLS 1.2 handshake to a client with small records.
///
/// The library joins the messages of a flight before it splits them. Some small devices cannot
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
