//! Errors in making a client, and errors in connecting to a server.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};

use super::{Close, Offer, Refusal, StartTls};

/// A client or a target cannot be made from the given values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The name is neither a host name nor an IP address.
    #[error("{0:?} is neither a host name nor an IP address")]
    ServerName(String),
    /// The file of CA certificates cannot be read as PEM.
    #[error("cannot read CA certificates from {path}: {source}", path = .path.display())]
    CaFile {
        path: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    /// A CA certificate cannot be a trust anchor.
    #[error("a CA certificate cannot be used: {0}")]
    CaCertificate(#[source] rustls::Error),
    /// There is no trust anchor to verify a server's certificate with.
    #[error("no CA certificates were found")]
    NoCa,
    /// The TLS library refuses the configuration. This is a fault of sessile.
    #[error("the TLS library refuses the configuration: {0}")]
    Tls(#[source] rustls::Error),
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The TCP connection was refused, or the address has no route.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The proxy did not connect to the server.
    #[error(
        "the proxy {proxy} opened no connection: {refusal}; check that it allows CONNECT to this address and port"
    )]
    Proxy { proxy: SocketAddr, refusal: Refusal },
    /// The server did not agree to TLS in the dialogue before it.
    #[error(
        "{protocol} did not start TLS: {refusal}; check the port, and that the server has TLS on"
    )]
    StartTls {
        protocol: StartTls,
        refusal: Refusal,
    },
    /// A stage did not finish before the deadline.
    #[error("{stage} not finished after {}", humantime::format_duration(*.after))]
    TimedOut { stage: Stage, after: Duration },
    /// The server refused with a fatal alert.
    #[error("the server refused the handshake: alert {}", alert_name(*.0))]
    Alert(AlertDescription),
    /// The server chose a TLS version that was not offered.
    #[error("the server chose a TLS version that was not offered")]
    Version,
    /// The client does not trust the server's certificate for this name.
    #[error("the server's certificate is not accepted: {}", certificate_fault(.0))]
    Certificate(CertificateError),
    /// The server's answer is not TLS.
    #[error("the server does not speak TLS")]
    NotTls,
    /// The server closed the connection before the handshake was finished.
    #[error("the server closed the connection during the handshake ({0})")]
    ClosedEarly(Close),
    /// The server broke the protocol, or shares no parameters with the client.
    #[error("the handshake failed: {0}")]
    Protocol(rustls::Error),
    /// The handshake finished, but sessile's own parser could not read its clear part. This is a
    /// fault of sessile.
    #[error("the handshake finished, but its clear part could not be read")]
    Unreadable,
}

/// A failed connection and the session that the client offered on it.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    #[source]
    pub error: Error,
    /// The session in the ClientHello. `None` if the client offered no session or sent no
    /// ClientHello.
    pub offered: Option<Offer>,
    /// True if the server requested a certificate of the client.
    pub certificate_requested: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            offered: None,
            certificate_requested: false,
        }
    }
}

/// A step of connecting that has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Connect,
    /// The CONNECT request to a proxy.
    Proxy,
    /// The dialogue in clear before TLS.
    StartTls,
    Handshake,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "the TCP connection",
            Self::Proxy => "the CONNECT request to the proxy",
            Self::StartTls => {
                "the dialogue that starts TLS (a server may expect TLS at once on this port)"
            }
            Self::Handshake => "the TLS handshake",
        })
    }
}

impl Error {
    /// True if the server refused the offered TLS versions or chose another version.
    #[must_use]
    pub const fn refuses_version(&self) -> bool {
        matches!(
            self,
            Self::Version | Self::Alert(AlertDescription::ProtocolVersion)
        )
    }

    /// True if the server ended the handshake, or did not finish it in time.
    #[must_use]
    pub const fn is_ended_by_server(&self) -> bool {
        matches!(
            self,
            Self::Alert(_)
                | Self::ClosedEarly(_)
                | Self::TimedOut {
                    stage: Stage::Handshake,
                    ..
                }
        )
    }

    /// True if the connection fails with every mechanism.
    pub(crate) const fn is_for_every_mechanism(&self) -> bool {
        matches!(
            self,
            Self::Connect(_)
                | Self::Proxy { .. }
                | Self::StartTls { .. }
                | Self::TimedOut { .. }
                | Self::NotTls
                | Self::Certificate(_)
        )
    }

    /// True if this machine has no route to the address, for instance because it has no IPv6.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect(error) if matches!(
            error.kind(),
            io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::AddrNotAvailable
        ))
    }

    /// True if the host refused the TCP connection, because no program listens on the port.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    pub(super) fn from_tls(error: rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Alert(alert),
            rustls::Error::InvalidCertificate(error) => Self::Certificate(error),
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotTls,
            rustls::Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Self::Version,
            other => Self::Protocol(other),
        }
    }
}

/// The fault of a certificate as a sentence.
fn certificate_fault(error: &CertificateError) -> String {
    // rustls displays the most common faults as the names of its own types.
    match error {
        CertificateError::UnknownIssuer => "its issuer is not trusted".to_owned(),
        CertificateError::Other(other) => match other.0.to_string().as_str() {
            "CaUsedAsEndEntity" => "it is a CA's certificate (CA:TRUE), and not a server's".into(),
            fault => fault.to_owned(),
        },
        other => other.to_string(),
    }
}

/// An alert's name as the RFCs write it: `protocol_version`.
pub(super) fn alert_name(alert: AlertDescription) -> String {
    let Some(camel) = alert.as_str() else {
        return u8::from(alert).to_string();
    };
    let mut name = String::new();
    let mut after_lower = false;
    let mut letters = camel.chars().peekable();
    while let Some(letter) = letters.next() {
        // A word begins at an upper-case letter, except inside an acronym (UnknownPSKIdentity).
        let before_lower = letters.peek().is_some_and(char::is_ascii_lowercase);
        if letter.is_ascii_uppercase() && !name.is_empty() && (after_lower || before_lower) {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
        after_lower = letter.is_ascii_lowercase();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_have_the_names_of_the_rfcs() {
        for (alert, name) in [
            (AlertDescription::ProtocolVersion, "protocol_version"),
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::UnknownPSKIdentity, "unknown_psk_identity"),
            (
                AlertDescription::NoApplicationProtocol,
                "no_application_protocol",
            ),
            (AlertDescription::Unknown(200), "200"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }

    #[test]
    fn a_refused_version_is_distinct_from_other_refusals() {
        assert!(Error::Alert(AlertDescription::ProtocolVersion).refuses_version());
        assert!(!Error::Alert(AlertDescription::HandshakeFailure).refuses_version());
        let chosen = PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig;
        assert!(Error::from_tls(rustls::Error::PeerIncompatible(chosen)).refuses_version());
    }
}
