//! The size of the records that a client is sent: what its hello asks for (RFC 6066, section 4;
//! RFC 8449). The library neither reads these extensions nor answers them. A smaller record is
//! right without an answer, and the client's own records keep their size.

use sessile_proto::hello::{ClientHello, IllegalRecordLimit, TLS_1_2, TLS_1_3};

/// The alert illegal_parameter (RFC 9846, section 6).
pub(super) const ILLEGAL_PARAMETER: u8 = 47;

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
