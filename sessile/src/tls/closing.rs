//! The end of a connection that failed: the alert that the client is owed, and the time to read it.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::{Error, HandshakeKind, PeerMisbehaved, ProtocolVersion, ServerConnection};
use sessile_proto::alert::AlertDescription;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// How long a client may take to end its side once ours has ended.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Most bytes that are read from such a client and thrown away.
const MAX_DISCARDED: usize = 256 * 1024;

/// Bytes read at once.
const CHUNK: usize = 4096;

/// Turns away a connection that cannot be served, with a fatal alert in clear.
pub async fn refuse(mut io: TcpStream, alert: AlertDescription) {
    // A client that has gone needs no alert.
    let _ = io.write_all(&alert.record()).await;
    end(&mut io).await;
}

/// Ends our side of a connection, and waits for the client to end its side.
///
/// A socket that is closed while bytes come in resets the connection. The client could lose the alert.
pub(super) async fn end(io: &mut TcpStream) {
    let _ = io.shutdown().await;
    let mut discarded = 0;
    let done = std::future::poll_fn(|cx| poll_discard(io, &mut discarded, cx));
    let _ = tokio::time::timeout(LINGER, done).await;
}

/// Reads and throws away what the client still sends, up to its end or to a limit.
pub(super) fn poll_discard(
    io: &TcpStream,
    discarded: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while *discarded < MAX_DISCARDED {
        ready!(io.poll_read_ready(cx))?;
        let mut chunk = [0; CHUNK];
        match io.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => *discarded += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}

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
