//! Runs one handshake, flight by flight. New sessions are stored first, and then announced to the client.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sessile_proto::hello::IllegalRecordLimit;
use sessile_proto::record::separate_messages;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::closing;
use super::connection::Connection;
use super::resumption::HandshakeSessions;
use super::sessions::Sessions;
use crate::store::StoreContext;

/// How long a handshake may take after the ClientHello.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Why a handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// rustls refused the ClientHello or a later message.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// The ClientHello asks for an illegal record size (RFC 8449, 4).
    #[error("{0}")]
    RecordLimit(#[from] IllegalRecordLimit),
    /// The client closed the connection.
    #[error("connection closed during the handshake")]
    Closed,
    #[error("{0}")]
    Io(io::Error),
}

impl AcceptError {
    /// True if the client's certificate is missing or was refused.
    #[must_use]
    pub const fn is_client_certificate(&self) -> bool {
        use rustls::Error;
        matches!(
            self,
            Self::Tls(
                Error::NoCertificatesPresented
                    | Error::InvalidCertificate(_)
                    | Error::InvalidCertRevocationList(_)
            )
        )
    }
}

impl From<io::Error> for AcceptError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// A handshake in progress.
pub(super) struct Handshaking {
    pub(super) resumption: Arc<HandshakeSessions>,
    pub(super) sessions: Rc<Sessions>,
    pub(super) context: StoreContext,
    /// The record size as [`rustls::ServerConfig`] counts it; `None` if the client sets no limit.
    pub(super) max_fragment_size: Option<usize>,
}

impl Handshaking {
    /// Stores new sessions, and sends the next flight. `processed` is the result of rustls for received bytes.
    pub(super) async fn step(
        &mut self,
        io: &mut TcpStream,
        tls: &mut Connection,
        processed: Result<(), rustls::Error>,
    ) -> Result<(), AcceptError> {
        self.observe(tls);
        self.store(!tls.is_handshaking()).await;
        if let Err(error) = processed {
            // The alert must leave before the connection ends. The write may fail: the client may be gone.
            let missing = closing::missing_alert(&error, tls);
            let _ = send(io, tls).await;
            if let Some(alert) = missing {
                let _ = io.write_all(&alert.record()).await;
            }
            closing::end(io).await;
            return Err(error.into());
        }
        let tls13 = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        // After a TLS 1.3 handshake, only tickets are left to send. The stream sends them together with
        // the first response.
        match self.max_fragment_size {
            Some(size) if !tls13 => send_in_small_records(io, tls, size).await?,
            _ if tls.is_handshaking() || !tls13 => send(io, tls).await?,
            _ => {}
        }
        Ok(())
    }

    /// Reports the progress of rustls to [`HandshakeSessions`].
    pub(super) fn observe(&self, tls: &Connection) {
        let suite = tls
            .negotiated_cipher_suite()
            .map(|suite| u16::from(suite.suite()));
        self.resumption.observe(tls.handshake_kind(), suite);
    }

    /// Stores new sessions. A finished handshake also consumes the single-use session that it resumed.
    pub(super) async fn store(&mut self, has_finished: bool) {
        let new_sessions = self.resumption.lock().take_new_sessions();
        let resumed = self.resumption.lock().to_consume();
        let consumed = resumed.filter(|_| has_finished);
        let store = &self.sessions.store;
        store.put(new_sessions, consumed, &mut self.context).await;
    }
}

/// Sends all output.
async fn send(io: &mut TcpStream, tls: &mut Connection) -> io::Result<()> {
    while tls.has_output() {
        poll_fn(|cx| tls.poll_send(io, cx, false)).await?;
    }
    Ok(())
}

/// Sends a flight of TLS 1.2 to a client that asks for small records (RFC 6066, 4, and RFC 8449).
///
/// rustls neither reads nor answers these extensions. A server may send small records even if it does
/// not answer the extension. rustls joins the messages of a flight before it splits them into records.
/// Some small devices cannot read a split message. Here each message begins a new record, so only a
/// message that is longer than a record is split.
async fn send_in_small_records(
    io: &mut TcpStream,
    tls: &mut Connection,
    max_fragment_size: usize,
) -> io::Result<()> {
    let flight = tls.take_output()?;
    let separate = separate_messages(&flight, max_fragment_size);
    io.write_all(separate.as_ref().unwrap_or(&flight)).await
}
