//! A TLS client that keeps sessions, and reads from the wire whether the server resumed them. The
//! probe, the lab and health checks use it. It resolves no names and speaks no HTTP.

mod age_clock;
mod certificate;
mod connection;
mod error;
mod postgres;
mod replay;
mod seeded;
mod sessions;
mod start_tls;
mod stream;
mod ticket_secret;
mod trust;
mod wire_observer;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::CryptoProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use sessile_proto::watch::{Kind, Learned, Outcome};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use certificate::{ClientCertificate, ClientCertificateError};
pub use connection::{Close, EstablishedConnection, GivenTicket, HandshakeTimes};
pub use error::{Error, Failure, SetupError, Stage};
pub(crate) use postgres::{RequestTlsError, request_tls};
pub use replay::{RepeatedOffer, RepeatedSession, ReplayClient};
pub use sessions::Sessions;
pub use start_tls::{Refusal, StartTls};
pub use stream::Stream;
pub use trust::Trust;
pub use wire_observer::Offer;
pub(crate) use wire_observer::hex;

use age_clock::AgeClock;
use certificate::CertificateSource;
use seeded::Seed;
use sessions::HandshakeSessions;
use ticket_secret::TicketSecret;
use wire_observer::WireObserver;

/// A server to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub address: SocketAddr,
    /// The name that the certificate must have. It is sent as SNI unless it is an IP address. The
    /// client keeps sessions by this name, so it offers the same sessions to all addresses of a
    /// name.
    pub server_name: ServerName<'static>,
    /// Bytes sent before TLS begins: a PROXY header, for servers that require one.
    pub preface: &'static [u8],
    /// The protocol by which the client asks for TLS after the preface.
    pub start_tls: Option<StartTls>,
    /// The HTTP proxy that connects to `address`.
    pub proxy: Option<SocketAddr>,
}

impl Target {
    /// `server_name` is a host name or an IP address.
    ///
    /// # Errors
    ///
    /// The name is neither a host name nor an IP address.
    pub fn new(address: SocketAddr, server_name: &str) -> Result<Self, SetupError> {
        let server_name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| SetupError::ServerName(server_name.to_owned()))?;
        Ok(Self {
            address,
            server_name,
            preface: &[],
            start_tls: None,
            proxy: None,
        })
    }
}

/// The kind of session that a client offers. The kind also decides the TLS versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// TLS 1.3 and 1.2, with any kind of session.
    Any,
    /// TLS 1.2 session IDs only.
    SessionId,
    /// TLS 1.2 tickets only. The client drops sessions without a ticket.
    Ticket,
    /// TLS 1.3 only.
    Psk,
}

/// The early data (0-RTT) of one connection: data in the first flight, before the server has answered.
#[derive(Clone, Copy)]
enum EarlyData<'a> {
    None,
    Send(&'a [u8]),
    /// The connection sends nothing after the early data, so the server sees no end of the handshake.
    SendOnly(&'a [u8]),
}

/// A TLS client with its sessions.
///
/// Cheap to clone; clones share the sessions.
#[derive(Clone)]
pub struct Client {
    /// Template of each connection's configuration.
    config: ClientConfig,
    pub sessions: Sessions,
    certificate: Arc<CertificateSource>,
    mechanism: Mechanism,
    timeout: Duration,
    /// The source of all random bytes of a ClientHello, for a client with the seeded provider.
    seed: Option<Seed>,
}

impl Client {
    /// Makes a client without sessions. It sends no ALPN.
    ///
    /// `timeout` limits the TCP connection and the TLS handshake separately.
    ///
    /// # Errors
    ///
    /// There is no usable CA certificate, or the TLS library refuses the configuration.
    pub fn new(mechanism: Mechanism, trust: &Trust, timeout: Duration) -> Result<Self, SetupError> {
        Self::with_certificate(mechanism, trust, None, timeout)
    }

    /// Makes a client as [`Client::new`] does. The client sends the certificate to servers that request one.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub fn with_certificate(
        mechanism: Mechanism,
        trust: &Trust,
        certificate: Option<&ClientCertificate>,
        timeout: Duration,
    ) -> Result<Self, SetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certificate = Arc::new(CertificateSource::new(certificate));
        Self::build(mechanism, trust, certificate, timeout, provider)
    }

    fn build(
        mechanism: Mechanism,
        trust: &Trust,
        // rustls resumes only between configurations with the same source of certificates.
        certificate: Arc<CertificateSource>,
        timeout: Duration,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, SetupError> {
        // All connections share one verifier, because rustls resumes only between configurations
        // with the same verifier.
        let verifier = trust.verifier(Arc::clone(&provider))?;
        let versions = match mechanism {
            Mechanism::SessionId | Mechanism::Ticket => &[&TLS12][..],
            Mechanism::Psk => &[&TLS13][..],
            Mechanism::Any => &[&TLS13, &TLS12][..],
        };
        let resolver = Arc::<CertificateSource>::clone(&certificate);
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(SetupError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(resolver);
        Ok(Self {
            config,
            sessions: Sessions::default(),
            certificate,
            mechanism,
            timeout,
            seed: None,
        })
    }

    /// A copy of this client that starts without sessions.
    #[must_use]
    pub fn with_empty_sessions(&self) -> Self {
        Self {
            sessions: self.sessions.empty_like(),
            ..self.clone()
        }
    }

    /// The age of sessions counts in whole seconds from now on.
    ///
    /// rustls subtracts two times of day in whole seconds, which can be a second more than the age. Some servers then
    /// refuse early data.
    pub fn restart_clock(&mut self) {
        self.config.time_provider = Arc::new(AgeClock::start());
    }

    /// Sets the application protocols to offer, the preferred one first. If `protocols` is empty,
    /// the client sends no ALPN.
    #[must_use]
    pub fn with_alpn(mut self, protocols: &[&[u8]]) -> Self {
        self.config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        self
    }

    /// Connects and finishes the handshake. The client offers its newest session for the target.
    ///
    /// # Errors
    ///
    /// The TCP connection or the handshake was refused, failed or took too long.
    pub async fn connect(&self, target: &Target) -> Result<EstablishedConnection, Error> {
        self.attempt(target).await.map_err(|failure| failure.error)
    }

    /// Connects as [`Client::connect`] does. A failure contains the session that was offered.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn attempt(&self, target: &Target) -> Result<EstablishedConnection, Failure> {
        self.attempt_with(&self.sessions, target).await
    }

    /// Connects as [`Client::attempt`] does, but offers a session of `offered`. New sessions go to the sessions of
    /// this client.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn attempt_with(
        &self,
        offered: &Sessions,
        target: &Target,
    ) -> Result<EstablishedConnection, Failure> {
        self.open(offered, target, EarlyData::None).await
    }

    /// Connects as [`Client::attempt_with`] does, and sends early data if the offered session allows it.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn attempt_with_early_data(
        &self,
        offered: &Sessions,
        target: &Target,
        early_data: &[u8],
    ) -> Result<EstablishedConnection, Failure> {
        let early_data = EarlyData::Send(early_data);
        self.open(offered, target, early_data).await
    }

    async fn open(
        &self,
        offered: &Sessions,
        target: &Target,
        early_data: EarlyData<'_>,
    ) -> Result<EstablishedConnection, Failure> {
        // A thread's first random bytes take the library tens of milliseconds. Draw them before the
        // connection is timed. If this fails, the handshake fails as well.
        let _ = self.config.crypto_provider().secure_random.fill(&mut [0]);

        let started = Instant::now();
        let mut tcp = connect_tcp(target.proxy.unwrap_or(target.address), self.timeout).await?;
        // Without nodelay, the second flight may wait for an acknowledgement. An error here is no
        // reason to fail, because the connection is only slower.
        let _ = tcp.set_nodelay(true);

        if let Some(proxy) = target.proxy {
            self.open_tunnel(&mut tcp, proxy, target.address).await?;
        }
        let connected = Instant::now();
        self.send_preface(&mut tcp, target).await?;
        let tls_started = Instant::now();
        let name = &target.server_name;
        let sessions = Arc::new(HandshakeSessions::new(offered, &self.sessions));
        self.certificate.forget_request();
        // The new rustls connection takes the session to offer from the cache. The observer must
        // know of this session, so it is made afterwards.
        let ticket_secret = Arc::new(TicketSecret::default());
        let config = self.config_for(&sessions, &ticket_secret);
        let tls = self.start_tls(config, name, early_data)?;
        let observer = WireObserver::new(sessions.offers_tls12_session());
        let mut stream = Stream::new(tcp, tls, observer);
        stream.ends_with_first_flight = matches!(early_data, EarlyData::SendOnly(_));
        timeout(self.timeout, stream.handshake())
            .await
            .unwrap_or(Err(Error::TimedOut {
                stage: Stage::Handshake,
                after: self.timeout,
            }))
            .map_err(|error| Failure {
                error,
                offered: stream.observer.offered.take(),
                certificate_requested: self.certificate.was_requested(),
            })?;
        let times = HandshakeTimes {
            connect: connected - started,
            first_byte: stream
                .observer
                .first_byte
                .map_or(Duration::ZERO, |at| at - tls_started),
            handshake: tls_started.elapsed(),
        };

        let offered = stream.observer.offered.take();
        let mut outcome = stream.observer.outcome.take().ok_or(Error::Unreadable)?;
        match outcome.kind {
            Kind::Failed => return Err(Error::Unreadable.into()),
            // If a ClientHello offers TLS 1.3, its session ID looks random on the wire. The
            // observer knows whether the session ID belongs to a session.
            Kind::NotOffered if offered.is_some() => outcome.kind = Kind::Refused,
            Kind::NotOffered | Kind::Refused | Kind::Resumed(_) => {}
        }
        let resumed = matches!(outcome.kind, Kind::Resumed(_));
        sessions.finish_handshake(name, resumed, self.keeps_tls12_session(&outcome));
        Ok(EstablishedConnection {
            stream,
            offered,
            outcome,
            times,
            certificate_requested: self.certificate.was_requested(),
            ticket_secret,
        })
    }

    /// Makes the ClientHello, with the early data if the offered session allows it.
    fn start_tls(
        &self,
        mut config: ClientConfig,
        name: &ServerName<'static>,
        early_data: EarlyData<'_>,
    ) -> Result<ClientConnection, Error> {
        let data = match early_data {
            EarlyData::None => &[],
            EarlyData::Send(data) | EarlyData::SendOnly(data) => data,
        };
        config.enable_early_data = !data.is_empty();
        let start = || ClientConnection::new(Arc::new(config), name.clone());
        let started = match &self.seed {
            Some(seed) => seed.run(start),
            None => start(),
        };
        let mut tls = started.map_err(Error::from_tls)?;
        if let Some(mut writer) = tls.early_data()
            && writer.bytes_left() >= data.len()
        {
            writer.write_all(data).map_err(Error::Connect)?;
        }
        Ok(tls)
    }

    /// Sends the bytes before the ClientHello, and waits for the server's consent if TLS needs one.
    async fn send_preface(&self, tcp: &mut TcpStream, target: &Target) -> Result<(), Error> {
        let Some(protocol) = target.start_tls else {
            return tcp.write_all(target.preface).await.map_err(Error::Connect);
        };
        match timeout(self.timeout, protocol.start(tcp, target.preface)).await {
            Ok(started) => started.map_err(|refusal| Error::StartTls { protocol, refusal }),
            Err(_) => Err(Error::TimedOut {
                stage: Stage::StartTls,
                after: self.timeout,
            }),
        }
    }

    async fn open_tunnel(
        &self,
        tcp: &mut TcpStream,
        proxy: SocketAddr,
        address: SocketAddr,
    ) -> Result<(), Error> {
        match timeout(self.timeout, start_tls::open_tunnel(tcp, address)).await {
            Ok(opened) => opened.map_err(|refusal| Error::Proxy { proxy, refusal }),
            Err(_) => Err(Error::TimedOut {
                stage: Stage::Proxy,
                after: self.timeout,
            }),
        }
    }

    fn config_for(
        &self,
        sessions: &Arc<HandshakeSessions>,
        ticket_secret: &Arc<TicketSecret>,
    ) -> ClientConfig {
        let tls12 = match self.mechanism {
            Mechanism::SessionId => Tls12Resumption::SessionIdOnly,
            Mechanism::Any | Mechanism::Ticket | Mechanism::Psk => {
                Tls12Resumption::SessionIdOrTickets
            }
        };
        let mut config = self.config.clone();
        let store = Arc::<HandshakeSessions>::clone(sessions);
        config.resumption = Resumption::store(store).tls12_resumption(tls12);
        config.key_log = Arc::<TicketSecret>::clone(ticket_secret);
        config
    }

    fn keeps_tls12_session(&self, outcome: &Outcome) -> bool {
        let has_ticket = || {
            outcome
                .learned
                .iter()
                .any(|learned| matches!(learned, Learned::Ticket(_)))
        };
        match outcome.kind {
            // Without a new ticket, the session is the offered one. It stays in the cache of the offer.
            Kind::Resumed(_) => has_ticket(),
            // If the server gives no ticket, rustls keeps the session ID instead, which
            // [`Mechanism::Ticket`] must not offer.
            _ => self.mechanism != Mechanism::Ticket || has_ticket(),
        }
    }
}

/// Connects over TCP, within a time limit.
pub(crate) async fn connect_tcp(address: SocketAddr, limit: Duration) -> Result<TcpStream, Error> {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(Error::Connect),
        Err(_) => Err(Error::TimedOut {
            stage: Stage::Connect,
            after: limit,
        }),
    }
}
