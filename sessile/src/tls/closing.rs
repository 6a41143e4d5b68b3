//! The alert for a handshake that fails, and the end of the connection.

use rustls::{Error, HandshakeKind, PeerMisbehaved, ProtocolVersion, ServerConnection};
use sessile_proto::alert::AlertDescription;

pub(super) use crate::listener::closing::{LINGER, end, poll_discard, refuse};

/// The alert for an error that rustls reports without one, if it can still go out in clear.
///
/// To be asked before the output of rustls is written: an alert of its own is there.
pub(super) fn missing_alert(error: &Error, tls: &ServerConnection) -> Option<AlertDescription> {
    // A TLS 1.2 server encrypts from its ChangeCipherSpec on. In a full handshake that ends it.
    let in_clear = tls.is_handshaking()
        && tls.protocol_version() != Some(ProtocolVersion::TLSv1_3)
        && tls.handshake_kind() != Some(HandshakeKind::Resumed);
    // These come without an alert, even where a flight of rustls waits to be written.
    let silent = matches!(
        error,
        Error::PeerMisbehaved(
            PeerMisbehaved::MessageInterleavedWithHandshakeMessage
                | PeerMisbehaved::TooManyEmptyFragments
                | PeerMisbehaved::TooManyWarningAlertsReceived
        )
    );
    if !in_clear || (tls.wants_write() && !silent) {
        return None;
    }
    match error {
        Error::PeerMisbehaved(_) => Some(AlertDescription::UnexpectedMessage),
        Error::InvalidMessage(_) => Some(AlertDescription::DecodeError),
        _ => None,
    }
}
