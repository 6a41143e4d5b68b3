//! Offers one TLS 1.3 session several times with the same bytes, as an attacker does with recorded early data.
//!
//! rustls offers each session once, and sessions cannot be copied. So the full handshake is repeated in memory: with
//! the same random bytes and the recorded bytes of the server, it gives the same session again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::{ResolvesClientCert as _, Resumption};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::{ServerName, UnixTime};
use sessile_proto::watch::Kind;

use super::certificate::{CertificateSource, ClientCertificate};
use super::seeded::{self, Seed};
use super::sessions::HandshakeSessions;
use super::{
    Client, EarlyData, EstablishedConnection, Failure, Mechanism, Sessions, SetupError, Target,
    Trust,
};

/// A client whose sessions can be offered several times.
pub struct ReplayClient {
    client: Client,
    /// The time at which the last full handshake had given its tickets.
    received: Instant,
}

/// A session that can be offered several times. All offers have the same ClientHello and the same early data.
pub struct RepeatedOffer {
    /// The client of the offers. Its clock stands still.
    client: Client,
    early_data: Vec<u8>,
    full_handshake: FullHandshake,
    /// The bytes of the first offer, up to the server's answer.
    first_flight: Vec<u8>,
    /// Until then, the session has the age that the ClientHello says, in whole seconds. Servers may refuse early
    /// data with another age.
    correct_until: Instant,
}

/// A session that can be offered several times, each time in another ClientHello.
pub struct RepeatedSession {
    client: Client,
    full_handshake: FullHandshake,
}

/// All that decides which session a full handshake gives.
struct FullHandshake {
    config: ClientConfig,
    seed: Seed,
    server_name: ServerName<'static>,
    server_bytes: Vec<u8>,
}

impl ReplayClient {
    /// Makes a client as [`Client::with_certificate`] does, for TLS 1.3.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub fn new(
        trust: &Trust,
        certificate: Option<&ClientCertificate>,
        timeout: Duration,
    ) -> Result<Self, SetupError> {
        let provider = Arc::new(seeded::crypto());
        let certificate = Arc::new(CertificateSource::new(certificate));
        let client = Client::build(Mechanism::Psk, trust, certificate, timeout, provider)?;
        Ok(Self {
            client,
            received: Instant::now(),
        })
    }

    /// Sets the application protocols, as [`Client::with_alpn`] does.
    #[must_use]
    pub fn with_alpn(self, protocols: &[&[u8]]) -> Self {
        Self {
            client: self.client.with_alpn(protocols),
            ..self
        }
    }

    /// Makes a full handshake, and waits at most `ticket_wait` for the server's tickets.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn connect(
        &mut self,
        target: &Target,
        ticket_wait: Duration,
    ) -> Result<EstablishedConnection, Failure> {
        self.client.seed = Some(Seed::random().map_err(super::Error::from_tls)?);
        self.client.config.time_provider = Arc::new(StoppedClock(UnixTime::now()));
        let nothing = self.client.sessions.empty_like();
        let mut connection = self.client.attempt_with(&nothing, target).await?;
        connection.await_ticket(ticket_wait).await;
        self.received = Instant::now();
        Ok(connection)
    }

    /// The newest session of `connection`, the last connection of [`ReplayClient::connect`]. `None` if the connection
    /// gave no session, or if its session cannot be made again.
    #[must_use]
    pub fn repeated_session(
        &self,
        connection: &EstablishedConnection,
        target: &Target,
    ) -> Option<RepeatedSession> {
        let full_handshake = self.full_handshake(connection, target)?;
        full_handshake
            .sessions()
            .filter(|given| !given.is_empty())?;
        Some(RepeatedSession {
            client: self.client.clone(),
            full_handshake,
        })
    }

    /// What decides the sessions of `connection`.
    ///
    /// A full handshake with a client certificate cannot be repeated, because its signature is random.
    fn full_handshake(
        &self,
        connection: &EstablishedConnection,
        target: &Target,
    ) -> Option<FullHandshake> {
        if connection.certificate_requested && self.client.certificate.has_certs() {
            return None;
        }
        Some(FullHandshake {
            config: self.client.config.clone(),
            seed: self.client.seed.clone()?,
            server_name: target.server_name.clone(),
            server_bytes: connection.stream.observer.server_bytes.clone(),
        })
    }

    /// The offer of the newest session of `connection`, the last connection of [`ReplayClient::connect`]. `None` if
    /// the connection gave no session for early data, or if its session cannot be made again.
    #[must_use]
    pub fn repeated_offer(
        &self,
        connection: &EstablishedConnection,
        target: &Target,
        early_data: &[u8],
    ) -> Option<RepeatedOffer> {
        let full_handshake = self.full_handshake(connection, target)?;
        let mut client = self.client.clone();
        client.seed = Some(Seed::random().ok()?);
        let received = client.config.time_provider.current_time()?;
        let age = Duration::from_secs(self.received.elapsed().as_secs());
        let now = Duration::from_secs(received.as_secs()) + age;
        client.config.time_provider = Arc::new(StoppedClock(UnixTime::since_unix_epoch(now)));
        let sessions = full_handshake.sessions()?;
        if !sessions.allows_early_data(&target.server_name, early_data.len()) {
            return None;
        }
        Some(RepeatedOffer {
            client,
            early_data: early_data.to_vec(),
            full_handshake,
            first_flight: Vec::new(),
            correct_until: self.received + age + Duration::from_secs(1),
        })
    }
}

impl RepeatedSession {
    /// Returns with the session in a handshake of its own. True if the server resumed it.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn resumes(
        &mut self,
        target: &Target,
        close_wait: Duration,
    ) -> Result<bool, Failure> {
        self.client.seed = Some(Seed::random().map_err(super::Error::from_tls)?);
        let again = self.full_handshake.sessions();
        let offered = again.unwrap_or_else(|| self.client.sessions.empty_like());
        let mut connection = self.client.attempt_with(&offered, target).await?;
        let resumed = matches!(connection.outcome.kind, Kind::Resumed(_));
        // The server may count the session as used only after the client's Finished.
        connection.close(close_wait).await;
        Ok(resumed)
    }
}

impl RepeatedOffer {
    /// Offers the session for the first time, and finishes the handshake.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn offer(&mut self, target: &Target) -> Result<EstablishedConnection, Failure> {
        let connection = self.send(target, EarlyData::Send(&self.early_data)).await?;
        self.first_flight
            .clone_from(&connection.stream.observer.first_flight);
        Ok(connection)
    }

    /// Sends the bytes of the first offer again, and nothing else. An attacker cannot finish the handshake either.
    /// `None` if other bytes were sent.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn replay(&self, target: &Target) -> Result<Option<EstablishedConnection>, Failure> {
        let connection = self
            .send(target, EarlyData::SendOnly(&self.early_data))
            .await?;
        let is_same = connection.stream.observer.first_flight == self.first_flight;
        Ok(is_same.then_some(connection))
    }

    /// True if the offer is so old that servers may refuse it.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        Instant::now() >= self.correct_until
    }

    async fn send(
        &self,
        target: &Target,
        early_data: EarlyData<'_>,
    ) -> Result<EstablishedConnection, Failure> {
        let again = self.full_handshake.sessions();
        let offered = again.unwrap_or_else(|| self.client.sessions.empty_like());
        self.client.open(&offered, target, early_data).await
    }
}

impl FullHandshake {
    /// The sessions that the server gave. Each call makes them anew.
    fn sessions(&self) -> Option<Sessions> {
        let [nothing, given] = [(); 2].map(|()| Sessions::default());
        let store = Arc::new(HandshakeSessions::new(&nothing, &given));
        let mut config = self.config.clone();
        let cache = Arc::<HandshakeSessions>::clone(&store);
        config.resumption = Resumption::store(cache);
        let start = || ClientConnection::new(Arc::new(config), self.server_name.clone());
        let mut tls = self.seed.run(start).ok()?;
        let mut unread = self.server_bytes.as_slice();
        while !unread.is_empty() {
            tls.read_tls(&mut unread).ok()?;
            let state = tls.process_new_packets().ok()?;
            // rustls reads no more tickets while its buffer is full of data.
            let mut data = vec![0; state.plaintext_bytes_to_read()];
            let _ = std::io::Read::read_exact(&mut tls.reader(), &mut data);
            if state.peer_has_closed() {
                break;
            }
        }
        store.finish_handshake(&self.server_name, false, false);
        Some(given)
    }
}

/// A clock that stands still, so that the age of a session is the same in each ClientHello.
#[derive(Debug)]
struct StoppedClock(UnixTime);

impl TimeProvider for StoppedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}
