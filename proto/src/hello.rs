//! The messages that a TLS handshake shows in clear: ClientHello (TLS 1.3 down to the SSLv2 form),
//! ServerHello and TLS 1.2's NewSessionTicket. Parsing only; what a hello leads to is decided in
//! [`crate::route`] and [`crate::affinity`].
