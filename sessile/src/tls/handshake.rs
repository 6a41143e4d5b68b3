//! The handshake, one flight at a time: the library is fed, what it wants stored is stored, and
//! only then does its answer leave.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConnection;
use sessile_proto::Time;
use sessile_proto::alert::AlertDescription;
use sessile_proto::hello::{ClientHello, IllegalRecordLimit, TLS_1_3};
use sessile_proto::resumption::{EarlyDataPlan, StoreKey};
use sessile_proto::verdict::{EarlyData, Verdict};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::early_handshake::EarlyHandshake;
use super::resumption::HandshakeSessions;
use super::stream::{self, Stream};
use super::{Sessions, Template, client_auth, early_data, record_size};
use crate::store::WaitBudget;

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

/// What a handshake came to.
#[derive(Debug)]
pub struct Handshake {
    pub verdict: Verdict,
    /// What became of the data that came with the first flight.
    pub early_data: EarlyData,
    /// Protocol version, as people write it: `TLSv1.3`.
    pub version: &'static str,
    /// Cipher suite, by its IANA name.
    pub suite: String,
    /// When the session's full handshake was.
    pub established: Time,
    /// The server name that the client asked for.
    pub server_name: Option<String>,
    /// Whose certificate the client has shown, in this handshake or in the one that is resumed. Without
    /// control characters, and not long.
    pub client_certificate: Option<String>,
    /// Whether HTTP/2 was agreed on.
    pub http2: bool,
}

/// A connection whose handshake is done; or as good as done, where early data was accepted: then it may
/// still wait for the client to finish, which [`super::Status::completion`] tells.
pub struct Accepted {
    pub stream: Stream,
    pub handshake: Handshake,
}

/// Runs the handshake of a connection whose ClientHello is read; `received` is all that came. Where early
/// data is accepted it returns as soon as that can be read and answered.
///
/// # Errors
/// Where it does not finish; the client was sent an alert if it can be.
pub async fn accept(
    mut io: TcpStream,
    mut received: &[u8],
    hello: &ClientHello<'_>,
    template: &Template,
    now: Time,
) -> Result<Accepted, AcceptError> {
    let max_fragment_size = match record_size::max_fragment_size(hello) {
        Ok(size) => size,
        Err(illegal) => {
            refuse(io, AlertDescription::IllegalParameter).await;
            return Err(illegal.into());
        }
    };
    let mut budget = template.sessions.store.wait_budget();
    let resumption = HandshakeSessions::fetch(hello, template, now, &mut budget).await;
    let resumption = Arc::new(resumption);
    let mut tls = connection(template, &resumption, max_fragment_size)?;
    if let EarlyDataPlan::Granted(_) = resumption.early_data_plan() {
        let (hello_records, early) = received.split_at(early_data::hello_len(received));
        if early_data::takes_early_data(&mut tls, hello_records) {
            received = early;
        } else {
            resumption.restart_without_early_data();
            tls = connection(template, &resumption, max_fragment_size)?;
        }
    }
    let mut handshaking = Handshaking {
        resumption,
        sessions: Rc::clone(&template.sessions),
        now,
        budget,
        max_fragment_size,
    };
    loop {
        handshaking.step(&mut io, &mut tls).await?;
        if received.is_empty() {
            break;
        }
        if let Err(error) = tls.read_tls(&mut received) {
            // A hello in so many records that the library does not hold them.
            refuse(io, AlertDescription::DecodeError).await;
            return Err(AcceptError::Io(error));
        }
    }
    while tls.is_handshaking() && tls.early_data().is_none() {
        if stream::read_tls(&mut io, &mut tls).await? == 0 {
            return Err(AcceptError::Closed);
        }
        handshaking.step(&mut io, &mut tls).await?;
    }
    let handshake = outcome(&mut tls, &handshaking.resumption);
    let stream = if tls.is_handshaking() {
        Stream::early_handshake(io, tls, EarlyHandshake::new(handshaking))
    } else {
        Stream::new(io, tls, handshaking.owned())
    };
    Ok(Accepted { stream, handshake })
}

fn connection(
    template: &Template,
    resumption: &Arc<HandshakeSessions>,
    max_fragment_size: Option<usize>,
) -> Result<Box<ServerConnection>, rustls::Error> {
    let mut config = template.config.clone();
    config.session_storage = Arc::clone(resumption) as _;
    config.ticketer = Arc::clone(resumption) as _;
    config.cert_resolver = Arc::clone(resumption) as _;
    config.max_fragment_size = max_fragment_size;
    let early_data = template.policy.early_data;
    let single_use = resumption.is_single_use().then_some(early_data);
    early_data::connect(resumption.early_data_plan(), config, single_use)
}

/// A handshake in progress: its sessions, where they are stored, and how long it may still wait for the
/// store.
pub(super) struct Handshaking {
    resumption: Arc<HandshakeSessions>,
    sessions: Rc<Sessions>,
    now: Time,
    budget: WaitBudget,
    max_fragment_size: Option<usize>,
}

impl Handshaking {
    /// Lets the library take in what was received and sends its answer. What it announces is in the
    /// store before.
    async fn step(
        &mut self,
        io: &mut TcpStream,
        tls: &mut ServerConnection,
    ) -> Result<(), AcceptError> {
        let processed = tls.process_new_packets();
        self.observe(tls);
        self.store(!tls.is_handshaking()).await;
        if let Err(error) = processed {
            // The alert, as far as the socket takes it at once: the peer has no claim on more.
            let _ = stream::write_tls(io, tls).await;
            return Err(error.into());
        }
        let tls13 = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        // TLS 1.3 ends with the client's flight; the tickets that follow can ride with the response.
        match self.max_fragment_size {
            Some(size) if !tls13 => record_size::write_flight(io, tls, size).await?,
            _ if tls.is_handshaking() || !tls13 => stream::write_tls(io, tls).await?,
            _ => {}
        }
        Ok(())
    }

    /// Takes note of how far the library is.
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

fn outcome(tls: &mut ServerConnection, resumption: &HandshakeSessions) -> Handshake {
    let (verdict, established) = resumption.verdict();
    let early_data = resumption.early_data(tls.early_data().is_some());
    let version = match tls.protocol_version() {
        Some(version) if u16::from(version) == TLS_1_3 => "TLSv1.3",
        _ => "TLSv1.2",
    };
    let suite = tls.negotiated_cipher_suite();
    let name = suite.and_then(|suite| suite.suite().as_str());
    Handshake {
        verdict,
        early_data,
        version,
        // rustls writes TLS13_AES_…, IANA TLS_AES_….
        suite: name.unwrap_or("unknown").replacen("TLS13_", "TLS_", 1),
        established,
        server_name: tls.server_name().map(str::to_owned),
        client_certificate: tls
            .peer_certificates()
            .and_then(<[_]>::first)
            .map(client_auth::identity),
        http2: tls.alpn_protocol() == Some(b"h2"),
    }
}

/// Turns away a connection that cannot be served, with a fatal alert in clear.
pub async fn refuse(mut io: TcpStream, alert: AlertDescription) {
    // A client that has gone needs no alert.
    let _ = io.write_all(&alert.record()).await;
    let _ = io.shutdown().await;
}
