//! A connection after its handshake: the offer, the outcome, the times and the stream.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sessile_proto::ticket_reader::read_tickets;
use sessile_proto::watch::{Learned, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::error::{Error, alert_name};
use super::stream::Stream;
use super::ticket_secret::TicketSecret;
use super::wire_observer::Offer;
use crate::tls::x509;

/// A TLS connection after its handshake.
pub struct EstablishedConnection {
    pub stream: Stream,
    /// The session that the client offered in its ClientHello.
    pub offered: Option<Offer>,
    /// The server's answer to the offer, read from the wire. The kind is never `Failed`.
    pub outcome: Outcome,
    pub times: HandshakeTimes,
    /// True if the server requested a certificate of the client in this handshake.
    pub certificate_requested: bool,
    pub(super) ticket_secret: Arc<TicketSecret>,
}

/// A ticket that the server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenTicket {
    /// The ticket of TLS 1.2, or the PSK identity of TLS 1.3.
    pub bytes: Vec<u8>,
    /// How long the server promises to accept the ticket, in seconds. 0 with TLS 1.2: the server does not say.
    pub lifetime: u32,
    /// Most bytes of early data. `None` if the server accepts no early data with this ticket.
    pub max_early_data: Option<u32>,
}

/// Durations of the steps up to the end of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeTimes {
    /// Time to connect over TCP.
    pub connect: Duration,
    /// Time from the start of the TLS handshake to the server's first byte.
    pub first_byte: Duration,
    /// Time of the TLS handshake, until the client may send data.
    pub handshake: Duration,
}

/// How a peer ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The peer sent close_notify.
    Notify,
    /// The peer closed the TCP connection without close_notify.
    Eof,
    /// The peer reset the TCP connection.
    Reset,
    /// The peer sent a fatal alert.
    Alert(rustls::AlertDescription),
    /// The connection failed in another way.
    Failed(io::ErrorKind),
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notify => f.write_str("close_notify"),
            Self::Eof => f.write_str("end of stream without close_notify"),
            Self::Reset => f.write_str("connection reset"),
            Self::Alert(alert) => write!(f, "alert {}", alert_name(*alert)),
            Self::Failed(kind) => write!(f, "{kind}"),
        }
    }
}

impl From<&io::Error> for Close {
    fn from(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match (error.kind(), inner) {
            (_, Some(rustls::Error::AlertReceived(alert))) => Self::Alert(*alert),
            (io::ErrorKind::UnexpectedEof, _) => Self::Eof,
            (io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe, _) => Self::Reset,
            (kind, _) => Self::Failed(kind),
        }
    }
}

impl EstablishedConnection {
    /// The session ID that the server gave in a full TLS 1.2 handshake.
    #[must_use]
    pub fn assigned_session_id(&self) -> Option<&[u8]> {
        self.outcome
            .learned
            .iter()
            .find_map(|learned| match learned {
                Learned::SessionId(id) => Some(id.as_slice()),
                Learned::Ticket(_) => None,
            })
    }

    /// True if the server accepted the early data of this connection.
    #[must_use]
    pub fn has_accepted_early_data(&self) -> bool {
        self.stream.tls().is_early_data_accepted()
    }

    /// The number of TLS 1.3 tickets received so far. Tickets follow the handshake, so this number
    /// rises only while the stream is read.
    #[must_use]
    pub fn tls13_tickets(&self) -> u32 {
        self.stream.tls().tls13_tickets_received()
    }

    /// The tickets received so far. Those of TLS 1.3 are read among the first bytes that the server sent, and follow
    /// the handshake as in [`EstablishedConnection::tls13_tickets`].
    #[must_use]
    pub fn tickets(&self) -> Vec<GivenTicket> {
        if let Some(secret) = self.ticket_secret.get() {
            let server_bytes = &self.stream.observer.server_bytes;
            return read_tickets(self.outcome.cipher_suite, &secret, server_bytes)
                .into_iter()
                .map(|ticket| GivenTicket {
                    bytes: ticket.ticket,
                    lifetime: ticket.lifetime,
                    max_early_data: ticket.max_early_data,
                })
                .collect();
        }
        let learned = self.outcome.learned.iter();
        learned
            .filter_map(|learned| match learned {
                Learned::Ticket(bytes) => Some(GivenTicket {
                    bytes: bytes.clone(),
                    lifetime: self.outcome.lifetime_hint,
                    max_early_data: None,
                }),
                Learned::SessionId(_) => None,
            })
            .collect()
    }

    /// Reads for at most `wait`, until a TLS 1.3 ticket, data or the peer's close has arrived. The
    /// data stays readable. Returns [`EstablishedConnection::tls13_tickets`].
    pub async fn await_ticket(&mut self, wait: Duration) -> u32 {
        // The number of tickets, or the next read, shows how the wait ended.
        let _ = timeout(wait, self.stream.await_ticket()).await;
        self.tls13_tickets()
    }

    /// Waits as [`EstablishedConnection::await_ticket`] does.
    ///
    /// # Errors
    ///
    /// The handshake failed: with TLS 1.3, the server checks the client's certificate and Finished only now.
    /// - The server sent a fatal alert.
    /// - The server requested a certificate, and then closed the connection without close_notify. Some servers
    ///   close before their alert is sent.
    pub async fn settle(&mut self, wait: Duration) -> Result<(), Error> {
        let Ok(Err(error)) = timeout(wait, self.stream.await_ticket()).await else {
            return Ok(());
        };
        match Close::from(&error) {
            Close::Alert(alert) => Err(Error::Alert(alert)),
            close @ (Close::Eof | Close::Reset) if self.certificate_requested => {
                Err(Error::ClosedEarly(close))
            }
            _ => Ok(()),
        }
    }

    /// SHA-256 of the server's certificate. For a resumed handshake, this is the certificate of the
    /// session's full handshake.
    #[must_use]
    pub fn certificate_fingerprint(&self) -> Option<[u8; 32]> {
        let certificate = self.stream.tls().peer_certificates()?.first()?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        digest.as_ref().try_into().ok()
    }

    /// The time until the server's certificate ends. Zero if it has ended.
    #[must_use]
    pub fn certificate_left(&self) -> Option<Duration> {
        let certificate = self.stream.tls().peer_certificates()?.first()?;
        let until = x509::validity(certificate)?.until;
        Some(until.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// Waits without a limit until the server ends the connection, and discards all data until
    /// then. Cancel-safe.
    pub async fn closed(&mut self) -> Close {
        let mut discarded = [0; 4096];
        loop {
            match self.stream.read(&mut discarded).await {
                Ok(0) => return Close::Notify,
                Ok(_) => {}
                Err(error) => return Close::from(&error),
            }
        }
    }

    /// Sends close_notify and waits at most `wait` for the server's close. Returns `None` if the
    /// server did not close in time.
    pub async fn close(&mut self, wait: Duration) -> Option<Close> {
        // Some servers forget the session of a connection that ended without close_notify.
        let end = async {
            match self.stream.shutdown().await {
                Ok(()) => self.closed().await,
                Err(error) => Close::from(&error),
            }
        };
        timeout(wait, end).await.ok()
    }
}
