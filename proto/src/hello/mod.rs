//! The messages that a TLS handshake shows in clear: ClientHello (TLS 1.3 down to the SSLv2 form),
//! ServerHello and TLS 1.2's NewSessionTicket; also TLS 1.3's NewSessionTicket. This module only parses; [`crate::route`] and
//! [`crate::affinity`] decide what a hello leads to.

mod client;
mod cursor;
mod extensions;
mod fingerprint;
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
pub use server::{NewSessionTicket, ServerHello, Tls13NewSessionTicket};

/// SSL 3.0.
pub const SSL_3_0: u16 = 0x0300;
/// TLS 1.2.
pub const TLS_1_2: u16 = 0x0303;
/// TLS 1.3.
pub const TLS_1_3: u16 = 0x0304;

/// Types of handshake messages (RFC 9846, appendix B.3; RFC 5246, 7.4).
pub mod kind {
    /// Asks the client to begin a new handshake; TLS 1.2 and earlier.
    pub const HELLO_REQUEST: u8 = 0;
    /// The client's first message.
    pub const CLIENT_HELLO: u8 = 1;
    /// The server's answer; also HelloRetryRequest.
    pub const SERVER_HELLO: u8 = 2;
    /// A ticket; only TLS 1.2 and earlier send it in clear.
    pub const NEW_SESSION_TICKET: u8 = 4;
    /// A change of the sender's traffic key; only TLS 1.3.
    pub const KEY_UPDATE: u8 = 24;
    /// Certificate, ServerKeyExchange, CertificateRequest and ServerHelloDone. In TLS 1.2 and earlier, a
    /// server sends these messages only in full handshakes.
    pub const ONLY_WHERE_FULL: [u8; 4] = [11, 12, 13, 14];
}
