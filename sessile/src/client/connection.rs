//! A connection whose handshake is finished, and what is known of it.

use std::fmt;
use std::io;
use std::time::Duration;

use sessile_proto::watch::{Learned, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::error::alert_name;
use super::stream::Stream;
use super::wire_observer::Offer;

/// A finished handshake and the stream it made.
pub struct EstablishedConnection {
    pub(super) stream: Stream,
    pub(super) offered: Option<Offer>,
    pub(super) outcome: Outcome,
    pub(super) times: HandshakeTimes,
}

/// How long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeTimes {
    /// The TCP connection.
    pub connect: Duration,
    /// From the start of the TLS handshake to the server's first byte.
    pub first_byte: Duration,
    /// The TLS handshake, until the client may send data.
    pub handshake: Duration,
}

/// How a peer ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// With a close_notify, as TLS wants it.
    Notify,
    /// The TCP connection ended and no close_notify came.
    Eof,
    /// The TCP connection was reset.
    Reset,
    /// With a fatal alert.
    Alert(rustls::AlertDescription),
    /// With something that is no end: the connection failed in with_empty_sessions way.
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
    /// The session that the client offered, as it went over the wire.
    #[must_use]
    pub const fn offered(&self) -> Option<&Offer> {
        self.offered.as_ref()
    }

    /// What the server did, as it came over the wire. Its kind is never `Failed`.
    #[must_use]
    pub const fn outcome(&self) -> &Outcome {
        &self.outcome
    }

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

    /// The session ticket that the server gave in the TLS 1.2 handshake.
    #[must_use]
    pub fn assigned_ticket(&self) -> Option<&[u8]> {
        self.outcome
            .learned
            .iter()
            .find_map(|learned| match learned {
                Learned::Ticket(ticket) => Some(ticket.as_slice()),
                Learned::SessionId(_) => None,
            })
    }

    /// How many TLS 1.3 tickets have come so far. They come after the handshake, and are seen
    /// while reading.
    #[must_use]
    pub fn tls13_tickets(&self) -> u32 {
        self.stream.tls().tls13_tickets_received()
    }

    /// Reads for at most `wait` until a TLS 1.3 ticket, data or the peer's end has come; data is
    /// left to be read. Gives [`EstablishedConnection::tls13_tickets`].
    pub async fn await_ticket(&mut self, wait: Duration) -> u32 {
        // How the wait ended shows in the number, or at the next read.
        let _ = timeout(wait, self.stream.await_ticket()).await;
        self.tls13_tickets()
    }

    /// How long it took.
    #[must_use]
    pub const fn times(&self) -> HandshakeTimes {
        self.times
    }

    /// The application protocol agreed on.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.stream.tls().alpn_protocol()
    }

    /// SHA-256 of the server's certificate. A resumed handshake shows none: it is then the one of
    /// the session's full handshake.
    #[must_use]
    pub fn certificate_fingerprint(&self) -> Option<[u8; 32]> {
        let certificate = self.stream.tls().peer_certificates()?.first()?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        digest.as_ref().try_into().ok()
    }

    /// The stream, to read and to write.
    pub const fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// The stream alone.
    #[must_use]
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Waits, however long, until the server ends the connection. What it sends meanwhile is read
    /// and thrown away. May be cancelled and called again.
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

    /// Ends the connection cleanly: some servers forget the session of one that did not end with
    /// close_notify. Waits for the server's end too, at most `wait`; `None`: it did not come.
    pub async fn close(&mut self, wait: Duration) -> Option<Close> {
        let end = async {
            match self.stream.shutdown().await {
                Ok(()) => self.closed().await,
                Err(error) => Close::from(&error),
            }
        };
        timeout(wait, end).await.ok()
    }
}
