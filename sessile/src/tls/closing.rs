//! The alert for a handshake that fails, and the end of the connection.

use rustls::{Error, HandshakeKind, PeerMisbehaved, ProtocolVersion};
use sessile_proto::alert::AlertDescription;

use super::connection::Connection;

pub(super) use crate::listener::closing::{LINGER, end, poll_discard, refuse};

/// The alert for an error for which rustls sends none. `None` if rustls sends an alert, or if the
/// client expects encrypted records.
///
/// Call this before the output is sent, because that output may contain an alert.
pub(super) fn missing_alert(error: &Error, tls: &Connection) -> Option<AlertDescription> {
    // A TLS 1.2 server encrypts after its ChangeCipherSpec. A full handshake ends with this
    // message, and a resumed handshake does not.
    let in_clear = tls.is_handshaking()
        && tls.protocol_version() != Some(ProtocolVersion::TLSv1_3)
        && tls.handshake_kind() != Some(HandshakeKind::Resumed);
    // rustls sends no alert for these errors, even if it has other messages to send.
    let without_alert = matches!(
        error,
        Error::PeerMisbehaved(
            PeerMisbehaved::MessageInterleavedWithHandshakeMessage
                | PeerMisbehaved::TooManyEmptyFragments
                | PeerMisbehaved::TooManyWarningAlertsReceived
        )
    );
    if !in_clear || (tls.has_output() && !without_alert) {
        return None;
    }
    match error {
        Error::PeerMisbehaved(_) => Some(AlertDescription::UnexpectedMessage),
        Error::InvalidMessage(_) => Some(AlertDescription::DecodeError),
        _ => None,
    }
}
