//! What a handshake needs to know of a site.

use std::rc::Rc;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use sessile_proto::resumption::Policy;

use super::certificate::CertificateSet;
use super::client_auth::{ClientAuthorities, Clients};
use super::nonce;
use super::provider::crypto;
use super::sessions::Sessions;

/// Application protocols, in order of preference.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Tickets in a TLS 1.3 handshake where the client does not say (RFC 9149).
const TLS13_TICKETS: usize = 2;

/// Most tickets that a TLS 1.3 client can ask for (RFC 9149).
const MAX_TLS13_TICKETS: usize = 4;

/// A site, as a handshake needs it. One for each worker thread, so that cloning it for a
/// connection touches no counter of another thread. Only the verifier of client certificates is shared:
/// its revocation lists can be large.
pub struct Template {
    pub(super) config: rustls::ServerConfig,
    pub(super) sessions: Rc<Sessions>,
    pub(super) policy: Policy,
    pub(super) certificates: Arc<CertificateSet>,
    /// `None` if no client is asked for a certificate.
    pub(super) clients: Option<Arc<Clients>>,
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
