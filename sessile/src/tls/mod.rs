//! TLS as a server speaks it. Takes a connection whose ClientHello was read, looks the offered
//! sessions up before the handshake runs, and gives back a stream and a verdict. No other module
//! knows which library does the cryptography.

mod certificate;
mod client_auth;
mod closing;
mod context;
mod early;
mod handshake;
mod offered;
mod sessions;
mod stream;
mod unfinished;
mod value;
pub(crate) mod x509;

pub use certificate::{CertificateError, load as load_certificate};
pub use client_auth::{ClientAuthError, ClientAuthorities};
pub use closing::refuse;
pub use handshake::{AcceptError, Accepted, Handshake, accept};
pub use sessions::{Sessions, site_id};
pub use stream::{Completion, Status, Stream};

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use sessile_proto::keys::Schedule;

use client_auth::Clients;

/// How long a handshake may take, from its hello on.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Application protocols, in order of preference.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Tickets in a TLS 1.3 handshake where the client does not say (RFC 9149).
const TLS13_TICKETS: usize = 2;

/// Most tickets that a TLS 1.3 client can ask for (RFC 9149).
const MAX_TLS13_TICKETS: usize = 4;

/// Everything about a site that a handshake needs. One for each worker thread: cloning it for a
/// connection touches no counter that another thread touches (but for the verifier of client
/// certificates, whose revocation lists may be large, and its work too).
pub struct Template {
    config: rustls::ServerConfig,
    sessions: Rc<Sessions>,
    site: u64,
    /// `None`: nobody is asked for a certificate.
    clients: Option<Arc<Clients>>,
    /// Most bytes of early data; 0: none is taken.
    early_data: u32,
}

impl Template {
    /// A site with its certificates, at least one, for different key types, and with those whose
    /// certificates its clients show.
    ///
    /// # Errors
    /// Where the library refuses the combination.
    pub fn new(
        site: u64,
        certificates: &[Arc<CertifiedKey>],
        clients: Option<&ClientAuthorities>,
        sessions: Rc<Sessions>,
    ) -> Result<Self, rustls::Error> {
        let clients = clients.map(|authorities| Arc::new(Clients::new(authorities)));
        let verifier = match &clients {
            Some(clients) => Arc::clone(&clients.verifier),
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(crypto()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(certificate::ByKeyType(certificates.to_vec())));
        // A session resumes with its own cipher suite only: if the client's order counted, one
        // that reorders its suites would get full handshakes.
        config.ignore_client_order = true;
        config.send_tls13_tickets = TLS13_TICKETS;
        config.max_tls13_tickets = MAX_TLS13_TICKETS;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        Ok(Self {
            config,
            sessions,
            site,
            clients,
            early_data: 0,
        })
    }

    /// The same, with so many bytes of early data taken from a client; 0: none.
    #[must_use]
    pub fn with_early_data(mut self, bytes: u32) -> Self {
        self.early_data = bytes;
        self
    }

    /// Whether clients may send early data. Not where they show a certificate: who they are would be
    /// taken for true before they have proven that they are there.
    fn takes_early_data(&self) -> bool {
        self.early_data > 0
            && self.clients.is_none()
            && self.sessions.tickets
            && self.sessions.store.is_shared()
    }

    /// Whether sessions can be stored now so that they may bring early data. A sealed ticket outlives a store
    /// that is down.
    fn keeps_single_use(&self, schedule: &Schedule) -> bool {
        self.takes_early_data() && self.sessions.store.keeps_single_use() && schedule.can_seal()
    }
}

/// The same suites in the same order on every server of every farm, SHA-256 first: its key
/// schedule costs a quarter less than SHA-384's.
fn crypto() -> CryptoProvider {
    use provider::{cipher_suite as suite, kx_group};
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..provider::default_provider()
    }
}
