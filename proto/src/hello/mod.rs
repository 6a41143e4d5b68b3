//! The messages that a TLS handshake shows in clear: ClientHello (TLS 1.3 down to the SSLv2 form),
//! ServerHello and TLS 1.2's NewSessionTicket. Parsing only; what a hello leads to is decided in
//! [`crate::route`] and [`crate::affinity`].

mod client;
mod cursor;
mod extensions;
mod offered;
mod reader;
mod record_limit;
mod server;
#[cfg(test)]
mod tests;

pub use client::ClientHello;
pub use offered::{Identity, OfferedPsks, Protocols, Suites, Versions};
pub use reader::{DEFAULT_LIMIT, HelloReader, MAX_LIMIT};
pub use record_limit::IllegalRecordLimit;
pub use server::{NewSessionTicket, ServerHello};

/// SSL 3.0.
pub const SSL_3_0: u16 = 0x0300;
/// TLS 1.2.
pub const TLS_1_2: u16 = 0x0303;
/// TLS 1.3.
pub const TLS_1_3: u16 = 0x0304;

/// Types of handshake messages (RFC 9846, appendix B.3; RFC 5246, 7.4).
pub mod kind {
    /// Asks the client to begin anew; TLS 1.2 and earlier.
    pub const HELLO_REQUEST: u8 = 0;
    /// The first message of all.
    pub const CLIENT_HELLO: u8 = 1;
    /// The server's answer; also HelloRetryRequest.
    pub const SERVER_HELLO: u8 = 2;
    /// A ticket; in clear in TLS 1.2 and earlier only.
    pub const NEW_SESSION_TICKET: u8 = 4;
    /// Certificate, ServerKeyExchange, CertificateRequest and ServerHelloDone: of TLS 1.2 and
    /// earlier, a server sends them in full handshakes only.
    pub const ONLY_WHERE_FULL: [u8; 4] = [11, 12, 13, 14];
}
