//! The TLS settings of a site, from which each handshake gets a rustls configuration.

use std::rc::Rc;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use sessile_proto::resumption::Policy;
use sessile_proto::ticket::ClientAuth;

use super::certificate::CertificateSet;
use super::client_auth::{ClientAuthorities, ClientVerifier};
use super::nonce;
use super::provider::crypto;
use super::sessions::Sessions;

/// The supported ALPN protocols, in order of preference.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The number of tickets in a TLS 1.3 handshake whose client sends no `ticket_request` (RFC 9149).
const TLS13_TICKETS: usize = 2;

/// The most tickets that a client can get by a `ticket_request` (RFC 9149).
const MAX_TLS13_TICKETS: usize = 4;

/// The TLS settings of a site.
///
/// Each worker thread has its own template, so threads contend for few reference counts. The threads
/// share the server's certificates. They also share the verifier of client certificates, because
/// revocation lists can be large.
pub struct Template {
    pub(super) config: rustls::ServerConfig,
    pub(super) sessions: Rc<Sessions>,
    pub(super) policy: Policy,
    pub(super) certificates: Arc<CertificateSet>,
    /// `None` if the site asks no client for a certificate.
    pub(super) client_verifier: Option<Arc<ClientVerifier>>,
}

impl Template {
    /// Makes the TLS settings of the site with the ID `site`.
    ///
    /// `certificates` has at least one certificate, and at most one of each key type. `early_data` limits
    /// the early data of a connection, in bytes; 0 refuses early data.
    ///
    /// # Errors
    /// rustls cannot use the cipher suites and key exchange groups for TLS 1.3 and 1.2.
    pub fn new(
        site: u64,
        certificates: &[Arc<CertifiedKey>],
        client_authorities: Option<&ClientAuthorities>,
        early_data: u32,
        sessions: Rc<Sessions>,
    ) -> Result<Self, rustls::Error> {
        let client_verifier =
            client_authorities.map(|authorities| Arc::new(ClientVerifier::new(authorities)));
        let (verifier, client_auth) = match &client_verifier {
            Some(client_verifier) => (Arc::clone(&client_verifier.verifier), client_verifier.mode),
            None => (WebPkiClientVerifier::no_client_auth(), ClientAuth::None),
        };
        let certificates = Arc::new(CertificateSet::new(certificates));
        let provider = Arc::new(nonce::with_short_nonces(crypto()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&certificates) as _);
        // A session resumes only with its own cipher suite. Some clients reorder their suites. If the
        // server followed the client's order, such a client would get full handshakes.
        config.ignore_client_order = true;
        config.send_tls13_tickets = TLS13_TICKETS;
        config.max_tls13_tickets = MAX_TLS13_TICKETS;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        Ok(Self {
            config,
            policy: sessions.policy(site, client_auth, early_data),
            sessions,
            certificates,
            client_verifier,
        })
    }
}
