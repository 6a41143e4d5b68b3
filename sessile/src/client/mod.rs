//! A TLS client that remembers sessions and says what became of each: what it offered and what the
//! server did are read from the wire. Used by the probe, the lab, health checks and upstreams. It
//! resolves no names and knows no HTTP.

mod connection;
mod error;
mod sessions;
mod stream;
mod trust;
mod wire_observer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::client::{Resumption, Tls12Resumption};
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::ServerName;
use sessile_proto::verdict::How;
use sessile_proto::watch::{Kind, Learned, Outcome};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use connection::{Close, EstablishedConnection, HandshakeTimes};
pub use error::{Error, Failure, SetupError, Stage, alert_name};
pub use sessions::Sessions;
pub use stream::Stream;
pub use trust::Trust;
pub use wire_observer::Offer;
pub(crate) use wire_observer::hex;

use sessions::HandshakeSessions;
use wire_observer::WireObserver;

/// Where to connect, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub address: SocketAddr,
    /// Sent as SNI unless it is an IP address; the certificate has to be its. Sessions are kept
    /// by it: every address of a name is offered the same ones.
    pub server_name: ServerName<'static>,
    /// Said before TLS begins, to a server that wants to hear whose connection it is.
    pub preface: &'static [u8],
}

impl Target {
    /// `server_name`: a host name or an IP address.
    ///
    /// # Errors
    ///
    /// The name is neither.
    pub fn new(address: SocketAddr, server_name: &str) -> Result<Self, SetupError> {
        let server_name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| SetupError::ServerName(server_name.to_owned()))?;
        Ok(Self {
            address,
            server_name,
            preface: &[],
        })
    }
}

/// By what a client resumes, and with that the TLS versions it offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// TLS 1.3 and 1.2, by whatever the server gives.
    #[default]
    Any,
    /// TLS 1.2 session IDs only.
    SessionId,
    /// TLS 1.2 tickets only; a session that came without one is not kept.
    Ticket,
    /// TLS 1.3 only.
    Psk,
    /// TLS 1.3 and 1.2; keeps and offers no session.
    None,
}

/// How a client connects.
#[derive(Clone, Debug)]
pub struct Options {
    pub mechanism: Mechanism,
    pub trust: Trust,
    pub connect_timeout: Duration,
    pub handshake_timeout: Duration,
    /// Application protocols on offer, the preferred one first; empty: the extension is not sent.
    pub alpn: Vec<Vec<u8>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mechanism: Mechanism::Any,
            trust: Trust::System,
            connect_timeout: DEFAULT_TIMEOUT,
            handshake_timeout: DEFAULT_TIMEOUT,
            alpn: Vec::new(),
        }
    }
}

/// How long a TCP connection, and a handshake, may take where nothing else is set.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client: how it connects, and the sessions that it holds.
///
/// Cheap to clone; clones share the sessions.
#[derive(Clone, Debug)]
pub struct Client {
    /// Made once: rustls resumes only between configurations with the very same verifier.
    config: ClientConfig,
    sessions: Sessions,
    mechanism: Mechanism,
    connect_timeout: Duration,
    handshake_timeout: Duration,
}

impl Client {
    /// A client with these sessions, which no client of other options should share: sessions made
    /// by one are not offered by the other.
    ///
    /// # Errors
    ///
    /// There is no usable CA certificate, or the TLS library refuses the configuration.
    pub fn new(options: Options, sessions: Sessions) -> Result<Self, SetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = options.trust.verifier(Arc::clone(&provider))?;
        let versions = match options.mechanism {
            Mechanism::SessionId | Mechanism::Ticket => &[&TLS12][..],
            Mechanism::Psk => &[&TLS13][..],
            Mechanism::Any | Mechanism::None => &[&TLS13, &TLS12][..],
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(SetupError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = options.alpn;
        Ok(Self {
            config,
            sessions,
            mechanism: options.mechanism,
            connect_timeout: options.connect_timeout,
            handshake_timeout: options.handshake_timeout,
        })
    }

    /// Another client like this one, with sessions of its own and none as yet.
    #[must_use]
    pub fn with_empty_sessions(&self) -> Self {
        Self {
            sessions: self.sessions.empty_like(),
            ..self.clone()
        }
    }

    /// The sessions that this client holds.
    #[must_use]
    pub const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Connects and finishes the handshake, offering the newest session there is for the target.
    ///
    /// # Errors
    ///
    /// The TCP connection or the handshake was refused, failed or took too long.
    pub async fn connect(&self, target: &Target) -> Result<EstablishedConnection, Error> {
        self.attempt(target).await.map_err(|failure| failure.error)
    }

    /// The same; a failure says which session was offered.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn attempt(&self, target: &Target) -> Result<EstablishedConnection, Failure> {
        // A thread's first random bytes take the library tens of milliseconds to gather: they are no
        // part of the connection's times. A failure shows again in the handshake.
        let _ = self.config.crypto_provider().secure_random.fill(&mut [0]);

        let started = Instant::now();
        let mut tcp = timeout(self.connect_timeout, TcpStream::connect(target.address))
            .await
            .map_err(|_| Error::TimedOut {
                stage: Stage::Connect,
                after: self.connect_timeout,
            })?
            .map_err(Error::Connect)?;
        // Without it the second flight may wait for an acknowledgement. Slower is not broken.
        let _ = tcp.set_nodelay(true);

        let connected = Instant::now();
        tcp.write_all(target.preface)
            .await
            .map_err(Error::Connect)?;
        let handshake_sessions = Arc::new(HandshakeSessions::new(&self.sessions));
        let name = target.server_name.clone();
        let observer = || WireObserver::new(handshake_sessions.offers_tls12_session());
        let mut stream = Stream::new(
            tcp,
            self.config_for(&handshake_sessions),
            name.clone(),
            observer,
        )?;
        let handshake = timeout(self.handshake_timeout, stream.handshake()).await;
        let handshake = handshake.unwrap_or(Err(Error::TimedOut {
            stage: Stage::Handshake,
            after: self.handshake_timeout,
        }));
        if let Err(error) = handshake {
            let offered = stream.observer.offered.take();
            return Err(Failure { error, offered });
        }
        let times = HandshakeTimes {
            connect: connected - started,
            first_byte: stream
                .observer
                .first_byte
                .map_or(Duration::ZERO, |at| at - connected),
            handshake: connected.elapsed(),
        };

        let offered = stream.observer.offered.take();
        let mut outcome = stream.observer.outcome.take().ok_or(Error::Unread)?;
        match outcome.kind {
            Kind::Failed => return Err(Error::Unread.into()),
            // The wire does not show that a session ID beside TLS 1.3 was a session; the observer knows.
            Kind::NotOffered if offered.is_some() => outcome.kind = Kind::Refused,
            Kind::NotOffered | Kind::Refused | Kind::Resumed(_) => {}
        }
        let resumed = matches!(outcome.kind, Kind::Resumed(_));
        handshake_sessions.finish_handshake(&name, resumed, self.keeps_tls12_session(&outcome));
        Ok(EstablishedConnection {
            stream,
            offered,
            outcome,
            times,
        })
    }

    fn config_for(&self, handshake_sessions: &Arc<HandshakeSessions>) -> Arc<ClientConfig> {
        let tls12 = match self.mechanism {
            Mechanism::SessionId => Tls12Resumption::SessionIdOnly,
            Mechanism::Any | Mechanism::Ticket | Mechanism::Psk => {
                Tls12Resumption::SessionIdOrTickets
            }
            Mechanism::None => Tls12Resumption::Disabled,
        };
        let resumption = match self.mechanism {
            Mechanism::None => Resumption::disabled(),
            _ => Resumption::store(Arc::<HandshakeSessions>::clone(handshake_sessions)),
        };
        let mut config = self.config.clone();
        config.resumption = resumption.tls12_resumption(tls12);
        Arc::new(config)
    }

    /// rustls falls back on the session ID where a server gives no ticket.
    fn keeps_tls12_session(&self, outcome: &Outcome) -> bool {
        let is_ticket = |learned: &Learned| matches!(learned, Learned::Ticket(_));
        self.mechanism != Mechanism::Ticket
            || outcome.kind == Kind::Resumed(How::Ticket)
            || outcome.learned.iter().any(is_ticket)
    }
}
