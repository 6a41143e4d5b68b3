//! Reads sessions in the encoding of rustls 0.23.
//!
//! sessile reads the client's certificates, the age of the ticket and the announced early data. It
//! verifies the certificates again when a session resumes, because rustls does not.

use rustls_pki_types::CertificateDer;
use sessile_proto::resumption::TicketAge;

/// The number of this encoding in envelopes. It changes with the pinned version of rustls.
pub(super) const FORMAT: u16 = 23;

/// The client's certificate chain in a session, leaf first; empty if the client sent no certificate.
///
/// `None` if the bytes are no session.
pub(super) fn client_chain(session: &[u8]) -> Option<Vec<CertificateDer<'_>>> {
    let mut rest = session;
    if flag(&mut rest)? {
        let _server_name = vector::<1>(&mut rest)?;
    }
    let _version_and_suite = take(&mut rest, 4)?;
    let _master_secret = vector::<1>(&mut rest)?;
    let _extended_master_secret = take(&mut rest, 1)?;
    let mut chain = Vec::new();
    if flag(&mut rest)? {
        let mut certificates = vector::<3>(&mut rest)?;
        while !certificates.is_empty() {
            chain.push(CertificateDer::from(vector::<3>(&mut certificates)?));
        }
    }
    Some(chain)
}

/// The creation time of a ticket and its `ticket_age_add`, which rustls encodes last.
///
/// `None` if the bytes are too short.
pub(super) fn age(session: &[u8]) -> Option<TicketAge> {
    let (rest, age_add) = session.split_last_chunk()?;
    let (_, made) = rest.split_last_chunk()?;
    Some(TicketAge {
        made: u64::from_be_bytes(*made),
        age_add: u32::from_be_bytes(*age_add),
    })
}

/// The `max_early_data_size` that the server announced for a single-use session, in bytes.
///
/// The server stores the size as resumption data, which stands before the age: two bytes of length,
/// then four bytes.
pub(super) fn announced_early_data(session: &[u8]) -> Option<u32> {
    let (rest, _age) = session.split_last_chunk::<12>()?;
    let (rest, bytes) = rest.split_last_chunk()?;
    let (_, len) = rest.split_last_chunk()?;
    (*len == [0, 4]).then(|| u32::from_be_bytes(*bytes))
}

fn flag(rest: &mut &[u8]) -> Option<bool> {
    Some(take(rest, 1)? == [1])
}

/// The content of a vector whose length prefix has `N` bytes (RFC 9846, 3.4).
fn vector<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take(rest, N)?
        .iter()
        .fold(0, |len, &byte| len << 8 | usize::from(byte));
    take(rest, len)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::server::{StoresServerSessions, WebPkiClientVerifier};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

    use super::*;

    /// Records the sessions that rustls stores.
    #[derive(Debug, Default)]
    struct RecordedSessions(Mutex<Vec<Vec<u8>>>);

    impl StoresServerSessions for RecordedSessions {
        fn put(&self, _: Vec<u8>, value: Vec<u8>) -> bool {
            self.0
                .lock()
                .unwrap_or_else(|_| panic!("poisoned"))
                .push(value);
            true
        }

        fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
            None
        }

        fn take(&self, _: &[u8]) -> Option<Vec<u8>> {
            None
        }

        fn can_cache(&self) -> bool {
            true
        }
    }

    /// The session of a real handshake in which the client sends `chain` or no certificate.
    fn session(
        version: &'static rustls::SupportedProtocolVersion,
        chain: Option<&[CertificateDer<'static>]>,
        (root, key): (&CertificateDer<'static>, &PrivateKeyDer<'static>),
    ) -> Vec<u8> {
        let provider = Arc::new(crate::tls::provider::crypto());
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).expect("an authority");
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .expect("a verifier");
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![root.clone()], key.clone_key())
            .expect("a certificate");
        let sessions = Arc::new(RecordedSessions::default());
        server.session_storage = Arc::clone(&sessions) as _;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots);
        let client = match chain {
            Some(chain) => client.with_client_auth_cert(chain.to_vec(), key.clone_key()),
            None => Ok(client.with_no_client_auth()),
        };
        let name = ServerName::try_from("a.example").expect("a name");
        let client = Arc::new(client.expect("a certificate"));
        let mut client = ClientConnection::new(client, name).expect("a client");
        let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
        server.set_resumption_data(&16_384_u32.to_be_bytes());
        while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).expect("written");
            server.read_tls(&mut bytes.as_slice()).expect("read");
            server.process_new_packets().expect("the client is right");
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).expect("written");
            client.read_tls(&mut bytes.as_slice()).expect("read");
            client.process_new_packets().expect("the server is right");
        }
        let mut sessions = sessions.0.lock().unwrap_or_else(|_| panic!("poisoned"));
        sessions.pop().expect("a session")
    }

    #[test]
    fn client_certificates_are_read_from_real_sessions() {
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).expect("a name");
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let key = rcgen::KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("signed").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let chain = [root.clone(), root.clone()];
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let anonymous = session(version, None, (&root, &key));
            assert_eq!(client_chain(&anonymous), Some(Vec::new()));
            assert_eq!(announced_early_data(&anonymous), Some(16_384));
            let authenticated = session(version, Some(&chain), (&root, &key));
            assert_eq!(client_chain(&authenticated).as_deref(), Some(&chain[..]));
            // A prefix that is shorter than `too_short` ends before the end of the chain.
            let too_short = authenticated.len() - 2 * root.len();
            assert!((0..too_short).all(|end| client_chain(&authenticated[..end]).is_none()));
        }
    }
}
