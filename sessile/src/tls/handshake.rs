//! The handshake, one flight at a time: the library is fed, what it wants stored is stored, and
//! only then does its answer leave.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConnection;
use sessile_proto::Time;
use sessile_proto::alert::AlertDescription;
use sessile_proto::hello::ClientHello;
use sessile_proto::verdict::{EarlyData, Verdict};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client_auth;
use super::closing::{self, refuse};
use super::context::{Context, TLS13};
use super::early::{self, Plan};
use super::stream::{self, Stream};
use super::unfinished::Unfinished;
use super::{Sessions, Template};
use crate::store::{Key, Patience};

/// Why a handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The hello was not one, or the library refused what the client sent.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
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
    let mut patience = template.sessions.store.patience();
    let context = Context::prefetch(hello, template, now, &mut patience).await;
    let context = Arc::new(context);
    let mut tls = connection(template, &context)?;
    if let Plan::Granted(_) = context.early_data_plan() {
        let (its_records, behind) = received.split_at(early::hello_len(received));
        if early::takes(&mut tls, its_records) {
            received = behind;
        } else {
            context.begin_again(hello);
            tls = connection(template, &context)?;
        }
    }
    let mut handshaking = Handshaking {
        context,
        sessions: Rc::clone(&template.sessions),
        now,
        patience,
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
    let handshake = outcome(&mut tls, &handshaking.context);
    let stream = match tls.is_handshaking() {
        true => Stream::unfinished(io, tls, Unfinished::new(handshaking)),
        false => Stream::new(io, tls, handshaking.owned()),
    };
    Ok(Accepted { stream, handshake })
}

fn connection(
    template: &Template,
    context: &Arc<Context>,
) -> Result<Box<ServerConnection>, rustls::Error> {
    let mut config = template.config.clone();
    config.session_storage = Arc::clone(context) as _;
    config.ticketer = Arc::clone(context) as _;
    let single_use = context.is_single_use().then_some(template.early_data);
    context.early_data_plan().connect(config, single_use)
}

/// A handshake on its way: what it knows of sessions, where they are, and how long it may still wait for
/// them.
pub(super) struct Handshaking {
    context: Arc<Context>,
    sessions: Rc<Sessions>,
    now: Time,
    patience: Patience,
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
            // The client is owed the alert, and nothing after it.
            let missing = closing::missing_alert(&error, tls);
            let _ = stream::write_tls(io, tls).await;
            if let Some(alert) = missing {
                let _ = io.write_all(&alert.record()).await;
            }
            closing::end(io).await;
            return Err(error.into());
        }
        let tls13 = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        // TLS 1.3 ends with the client's flight; the tickets that follow can ride with the response.
        if tls.is_handshaking() || !tls13 {
            stream::write_tls(io, tls).await?;
        }
        Ok(())
    }

    /// Takes note of how far the library is.
    pub(super) fn observe(&self, tls: &ServerConnection) {
        let suite = tls.negotiated_cipher_suite();
        let suite = suite.map(|suite| u16::from(suite.suite()));
        self.context.observe(tls.handshake_kind(), suite);
    }

    /// Stores what the library wants stored, and lets a session for single use be spent once the handshake
    /// that it resumed has `finished`.
    pub(super) async fn store(&mut self, finished: bool) {
        let puts = self.context.take_outbox();
        let spent = match finished {
            true => self.context.used_up(),
            false => None,
        };
        let (store, schedule) = (&self.sessions.store, self.context.schedule());
        let patience = &mut self.patience;
        store.put(puts, spent, schedule, self.now, patience).await;
    }

    /// The stored sessions that belong to the connection, once the handshake has finished.
    pub(super) fn owned(&self) -> Vec<Key> {
        self.context.owned()
    }
}

fn outcome(tls: &mut ServerConnection, context: &Context) -> Handshake {
    let (verdict, established) = context.settle();
    let early_data = context.early_data(tls.early_data().is_some());
    let version = match tls.protocol_version() {
        Some(version) if u16::from(version) == TLS13 => "TLSv1.3",
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
