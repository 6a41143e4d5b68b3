//! The requests of PostgreSQL clients before the ClientHello
//! ([PostgreSQL documentation, 55.2](https://www.postgresql.org/docs/current/protocol-flow.html)).
//!
//! A client asks whether the server speaks TLS (`SSLRequest`). Before that, it may ask for encryption with
//! GSSAPI (`GSSENCRequest`). The server answers each request with one byte.

/// The protocol (ALPN) of PostgreSQL, which clients of version 17 and later offer.
pub const PROTOCOL: &str = "postgresql";

/// Bytes of each request: a length and a code.
pub const REQUEST_LEN: usize = 8;

/// The request for TLS.
pub const SSL_REQUEST: [u8; REQUEST_LEN] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The request for encryption with GSSAPI.
const GSSENC_REQUEST: [u8; REQUEST_LEN] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

/// The answer of a server that speaks TLS.
pub const ACCEPTED: u8 = b'S';

/// The answer of a server that does not speak the requested encryption.
pub const REFUSED: u8 = b'N';

/// A request for encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TLS. The ClientHello follows the answer [`ACCEPTED`].
    Ssl,
    /// GSSAPI. After the answer [`REFUSED`], the client may ask for TLS.
    GssEnc,
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are correct so far, but more are needed.
    #[error("more bytes are needed")]
    Incomplete,
    /// The bytes begin something else, such as a connection without encryption.
    #[error("no request for encryption")]
    Other,
}

/// Reads the request at the start of `bytes`. It takes [`REQUEST_LEN`] bytes.
///
/// # Errors
///
/// [`Error::Incomplete`] if the bytes may be the beginning of a request.
pub fn parse(bytes: &[u8]) -> Result<Request, Error> {
    for (bytes_of, request) in [
        (SSL_REQUEST, Request::Ssl),
        (GSSENC_REQUEST, Request::GssEnc),
    ] {
        if bytes.starts_with(&bytes_of) {
            return Ok(request);
        }
        if bytes_of.starts_with(bytes) {
            return Err(Error::Incomplete);
        }
    }
    Err(Error::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_whatever_follows_them() {
        for (bytes, request) in [
            (SSL_REQUEST, Request::Ssl),
            (GSSENC_REQUEST, Request::GssEnc),
        ] {
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Err(Error::Incomplete));
            }
            assert_eq!(parse(&bytes), Ok(request));
            assert_eq!(parse(&[&bytes[..], b"more"].concat()), Ok(request));
        }
    }

    #[test]
    fn other_first_bytes_are_no_requests() {
        let startup = [0, 0, 0, 9, 0, 3, 0, 0, 0];
        let cancel = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e];
        let hello = [22, 3, 1, 0, 100, 1, 0, 0];
        for bytes in [&startup[..], &cancel, &hello, b"GET / HT"] {
            assert_eq!(parse(bytes), Err(Error::Other));
        }
    }
}
