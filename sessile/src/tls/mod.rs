//! TLS as a server speaks it. Takes a connection whose ClientHello was read, looks the offered
//! sessions up before the handshake runs, and gives back a stream and a verdict. No other module
//! knows which library does the cryptography.

mod certificate;
mod client_auth;
mod closing;
mod early_data;
mod early_handshake;
mod handshake;
mod nonce;
mod record_size;
mod resumption;
mod rustls_session;
mod sessions;
mod stream;
pub(crate) mod x509;

pub use certificate::{CertificateError, load as load_certificate};
pub use client_auth::{ClientAuthError, ClientAuthorities};
pub use handshake::{AcceptError, Accepted, Handshake, accept};
pub use sessions::{Sessions, site_id};
pub use stream::{Completion, Status, Stream};

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use sessile_proto::resumption::Policy;

use certificate::CertificateSet;
use client_auth::Clients;

/// How long a handshake may take, from its hello on.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Application protocols, in order of preference.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Tickets in a TLS 1.3 handshake where the client does not say (RFC 9149).
const TLS13_TICKETS: usize = 2;

/// Most tickets that a TLS 1.3 client can ask for (RFC 9149).
const MAX_TLS13_TICKETS: usize = 4;

/// What a handshake needs to know of a site. One for each worker thread, so that cloning it for a
/// connection touches no counter of another thread. Only the verifier of client certificates is shared:
/// its revocation lists can be large.
pub struct Template {
    config: rustls::ServerConfig,
    sessions: Rc<Sessions>,
    policy: Policy,
    certificates: Arc<CertificateSet>,
    /// `None` if no client is asked for a certificate.
    clients: Option<Arc<Clients>>,
}

impl Template {
    /// A site with its certificates, at least one, for different key types; with the authorities of
    /// its clients' certificates; and with the most bytes of early data that it takes, or 0.
    ///
    /// # Errors
    /// If rustls refuses the combination.
    pub fn new(
        site: u64,
        certificates: &[Arc<CertifiedKey>],
        clients: Option<&ClientAuthorities>,
        early_data: u32,
        sessions: Rc<Sessions>,
    ) -> Result<Self, rustls::Error> {
        let clients = clients.map(|authorities| Arc::new(Clients::new(authorities)));
        let verifier = match &clients {
            Some(clients) => Arc::clone(&clients.verifier),
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let client_auth = clients.as_ref().map(|clients| clients.mode);
        let certificates = Arc::new(CertificateSet::new(certificates));
        let provider = Arc::new(nonce::with_short_nonces(crypto()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&certificates) as _);
        // A session resumes with its own cipher suite only: if the client's order counted, one
        // that reorders its suites would get full handshakes.
        config.ignore_client_order = true;
        config.send_tls13_tickets = TLS13_TICKETS;
        config.max_tls13_tickets = MAX_TLS13_TICKETS;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        Ok(Self {
            config,
            policy: sessions.policy(site, client_auth.unwrap_or_default(), early_data),
            sessions,
            certificates,
            clients,
        })
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
