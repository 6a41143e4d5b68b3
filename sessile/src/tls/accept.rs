//! Accepts a connection whose ClientHello was read: runs the handshake and returns a stream.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use rustls::CipherSuite;
use sessile_proto::Time;
use sessile_proto::alert::AlertDescription;
use sessile_proto::hello::{ClientHello, TLS_1_3};
use sessile_proto::resumption::EarlyDataPlan;
use sessile_proto::verdict::{EarlyData, Verdict};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::closing::refuse;
use super::connection::Connection;
use super::handshake::{AcceptError, Handshaking};
use super::kernel::KernelSupport;
use super::resumption::HandshakeSessions;
use super::stream::Stream;
use super::template::Template;
use super::{client_auth, early_data};

/// The outcome of a handshake.
#[derive(Debug)]
pub struct Handshake {
    pub verdict: Verdict,
    /// Whether the client sent early data, and whether the server accepted it.
    pub early_data: EarlyData,
    /// The protocol version: `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The IANA name of the cipher suite.
    pub suite: &'static str,
    /// The time of the session's full handshake.
    pub established: Time,
    /// The server name that the client sent (SNI).
    pub server_name: Option<String>,
    /// The subject of the client's certificate; the SHA-256 of the certificate if it has no subject.
    ///
    /// In a resumed session, this is the certificate that the client sent in the full handshake. Control
    /// characters are escaped, and a long subject is cut.
    pub client_certificate: Option<String>,
    /// True if ALPN selected HTTP/2.
    pub http2: bool,
}

/// An accepted connection.
///
/// If early data was accepted, the client's Finished may still be missing. [`super::Status::completion`]
/// shows whether it has arrived.
pub struct Accepted {
    pub stream: Stream,
    pub handshake: Handshake,
}

/// Runs the handshake of a connection whose ClientHello was read. `received` holds all bytes so far.
///
/// If early data is accepted, this returns before the client's Finished arrives. With `kernel`, the stream can move
/// its records to the kernel later.
///
/// # Errors
/// The handshake failed. The server has sent a fatal alert, unless the client could no longer read it.
pub async fn accept(
    mut io: TcpStream,
    mut received: &[u8],
    hello: &ClientHello<'_>,
    template: &Template,
    kernel: Option<&Arc<KernelSupport>>,
    now: Time,
) -> Result<Accepted, AcceptError> {
    // Like the setting of rustls, this size includes the record header, but not the bytes that encryption
    // adds.
    let max_fragment_size = match hello.max_record_size() {
        Ok(size) => size,
        Err(illegal) => {
            refuse(io, AlertDescription::IllegalParameter).await;
            return Err(illegal.into());
        }
    };
    // The kernel makes records of any size.
    let kernel = kernel.filter(|_| max_fragment_size.is_none()).cloned();
    let sessions = Rc::clone(&template.sessions);
    let mut context = sessions.store.context(sessions.keys.schedule(now), now);
    let resumption = HandshakeSessions::fetch(hello, template, &mut context).await;
    let resumption = Arc::new(resumption);
    let mut tls = new_connection(template, &resumption, max_fragment_size, kernel.is_some())?;
    let early_data_plan = resumption.lock().early_data_plan();
    if let EarlyDataPlan::Granted(_) = early_data_plan {
        let (hello_records, early) = received.split_at(early_data::hello_len(received));
        if early_data::accepts_early_data(&mut tls, hello_records) {
            received = early;
        } else {
            resumption.lock().restart_without_early_data();
            tls = new_connection(template, &resumption, max_fragment_size, kernel.is_some())?;
        }
    }
    let mut handshaking = Handshaking {
        resumption,
        sessions,
        context,
        max_fragment_size,
    };
    if tls.has_early_data() {
        // rustls has processed the hello already.
        handshaking.step(&mut io, &mut tls, Ok(())).await?;
    }
    while !received.is_empty() {
        match tls.receive(&mut received) {
            Ok(processed) => handshaking.step(&mut io, &mut tls, processed).await?,
            Err(error) => {
                // The hello came in more records than rustls buffers.
                refuse(io, AlertDescription::DecodeError).await;
                return Err(AcceptError::Io(error));
            }
        }
    }
    while tls.is_handshaking() && !tls.has_early_data() {
        let received = poll_fn(|cx| tls.poll_receive(&mut io, cx, &mut ReadBuf::new(&mut [])));
        let (len, processed) = received.await?;
        if len == 0 {
            return Err(AcceptError::Closed);
        }
        handshaking.step(&mut io, &mut tls, processed).await?;
    }
    let handshake = outcome(&mut tls, hello, &handshaking.resumption);
    let stream = Stream::new(io, tls, kernel, handshaking);
    Ok(Accepted { stream, handshake })
}

fn new_connection(
    template: &Template,
    resumption: &Arc<HandshakeSessions>,
    max_fragment_size: Option<usize>,
    may_extract: bool,
) -> Result<Connection, rustls::Error> {
    let mut config = template.config.clone();
    config.session_storage = Arc::clone(resumption) as _;
    config.ticketer = Arc::clone(resumption) as _;
    config.cert_resolver = Arc::clone(resumption) as _;
    config.max_fragment_size = max_fragment_size;
    config.enable_secret_extraction = may_extract;
    let early_data = template.policy.early_data;
    let plan = resumption.lock().early_data_plan();
    let is_single_use = resumption.lock().is_single_use();
    early_data::new_connection(plan, config, is_single_use.then_some(early_data))
}

fn outcome(
    tls: &mut Connection,
    hello: &ClientHello<'_>,
    resumption: &HandshakeSessions,
) -> Handshake {
    let (verdict, established) = resumption.lock().verdict();
    let early_data = resumption.lock().early_data(tls.has_early_data());
    let version = match tls.protocol_version() {
        Some(version) if u16::from(version) == TLS_1_3 => "TLSv1.3",
        _ => "TLSv1.2",
    };
    Handshake {
        verdict,
        early_data,
        version,
        suite: tls
            .negotiated_cipher_suite()
            .map_or("unknown", |suite| suite_name(suite.suite())),
        established,
        server_name: hello.server_name.map(str::to_ascii_lowercase),
        client_certificate: tls
            .peer_certificates()
            .and_then(<[_]>::first)
            .map(client_auth::identity),
        http2: tls.alpn_protocol() == Some(b"h2"),
    }
}

/// The IANA name of a cipher suite.
fn suite_name(suite: CipherSuite) -> &'static str {
    match suite {
        // rustls writes TLS13_AES_…
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}
