//! A handshake in progress, one flight at a time: rustls is fed, new sessions are stored, and only then
//! its answer leaves.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConnection;
use sessile_proto::Time;
use sessile_proto::hello::IllegalRecordLimit;
use sessile_proto::resumption::StoreKey;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::io::write_tls;
use super::resumption::HandshakeSessions;
use super::sessions::Sessions;
use super::{closing, record_size};
use crate::store::WaitBudget;

/// How long a handshake may take, from its hello on.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Why a handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The hello was not one, or the library refused what the client sent.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// The hello asks for records of a size that is not allowed.
    #[error("{0}")]
    RecordLimit(#[from] IllegalRecordLimit),
    /// The client went away.
    #[error("connection closed during the handshake")]
    Closed,
    #[error("{0}")]
    Io(io::Error),
}

impl AcceptError {
    /// Whether it is the client's certificate: none where one is required, or one that is not accepted.
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

/// A handshake in progress: its sessions, where they are stored, and how long it may still wait for the
/// store.
pub(super) struct Handshaking {
    pub(super) resumption: Arc<HandshakeSessions>,
    pub(super) sessions: Rc<Sessions>,
    pub(super) now: Time,
    pub(super) budget: WaitBudget,
    /// `None` if the client sets no limit.
    pub(super) max_fragment_size: Option<usize>,
}

impl Handshaking {
    /// Lets rustls process what was received, and sends its answer. Sessions that the answer announces
    /// are stored first.
    pub(super) async fn step(
        &mut self,
        io: &mut TcpStream,
        tls: &mut ServerConnection,
    ) -> Result<(), AcceptError> {
        let processed = tls.process_new_packets();
        self.observe(tls);
        self.store(!tls.is_handshaking()).await;
        if let Err(error) = processed {
            // The client is owed the alert, and nothing after it.
            let missing = closing::missing_alert(&error, tls);
            let _ = write_tls(io, tls).await;
            if let Some(alert) = missing {
                let _ = io.write_all(&alert.record()).await;
            }
            closing::end(io).await;
            return Err(error.into());
        }
        let tls13 = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        // TLS 1.3 ends with the client's flight; the tickets that follow can ride with the response.
        match self.max_fragment_size {
            Some(size) if !tls13 => record_size::write_flight(io, tls, size).await?,
            _ if tls.is_handshaking() || !tls13 => write_tls(io, tls).await?,
            _ => {}
        }
        Ok(())
    }

    /// Notes how far rustls is.
    pub(super) fn observe(&self, tls: &ServerConnection) {
        let suite = tls.negotiated_cipher_suite();
        let suite = suite.map(|suite| u16::from(suite.suite()));
        self.resumption.observe(tls.handshake_kind(), suite);
    }

    /// Stores new sessions. If the handshake has finished, a session for single use that it resumed is
    /// consumed.
    pub(super) async fn store(&mut self, has_finished: bool) {
        let new_sessions = self.resumption.take_new_sessions();
        let consumed = if has_finished {
            self.resumption.to_consume()
        } else {
            None
        };
        let (store, schedule) = (&self.sessions.store, self.resumption.schedule());
        let budget = &mut self.budget;
        store
            .put(new_sessions, consumed, schedule, self.now, budget)
            .await;
    }

    /// The stored sessions that belong to the connection, once the handshake has finished.
    pub(super) fn owned(&self) -> Vec<StoreKey> {
        self.resumption.owned()
    }
}
