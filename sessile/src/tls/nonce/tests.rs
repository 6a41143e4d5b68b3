use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ProducesTickets;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
};

use sessile_proto::record::HEADER_LEN;

use super::*;

thread_local! {
    /// The lengths of the nonces from which the client derived keys.
    static NONCES: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Records the lengths of nonces.
struct RecordingHkdf(&'static dyn Hkdf);

impl Hkdf for RecordingHkdf {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.0.extract_from_zero_ikm(salt)
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        self.0.extract_from_secret(salt, secret)
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(RecordingExpander(self.0.expander_for_okm(okm)))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        self.0.hmac_sign(key, message)
    }
}

struct RecordingExpander(Box<dyn HkdfExpander>);

impl HkdfExpander for RecordingExpander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        self.0.expand_slice(info, output)
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        if let [_, _, _, b"resumption", _, nonce] = info {
            NONCES.with_borrow_mut(|nonces| nonces.push(nonce.len()));
        }
        self.0.expand_block(info)
    }

    fn hash_len(&self) -> usize {
        self.0.hash_len()
    }
}

/// A provider with one unchanged suite of rustls.
fn plain(suite: &SupportedCipherSuite) -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![*suite],
        ..crate::tls::provider::crypto()
    }
}

/// A client's provider with one suite, which records the lengths of nonces.
fn recording(suite: &SupportedCipherSuite) -> CryptoProvider {
    let suite = suite.tls13().expect("a suite of TLS 1.3");
    let recording = Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: suite.common.confidentiality_limit,
        },
        hkdf_provider: Box::leak(Box::new(RecordingHkdf(suite.hkdf_provider))),
        aead_alg: suite.aead_alg,
        quic: None,
    };
    plain(&SupportedCipherSuite::Tls13(Box::leak(Box::new(recording))))
}

fn suites() -> Vec<SupportedCipherSuite> {
    crate::tls::provider::crypto()
        .cipher_suites
        .into_iter()
        .filter(|suite| suite.tls13().is_some())
        .collect()
}

/// The certificate and ticket key that all servers of a test share.
struct Setup {
    root: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    ticketer: Arc<dyn ProducesTickets>,
}

impl Setup {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).expect("a name");
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let key = rcgen::KeyPair::generate().expect("a key");
        Self {
            root: params.self_signed(&key).expect("signed").der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            ticketer: rustls::crypto::aws_lc_rs::Ticketer::new().expect("random bytes"),
        }
    }

    /// A client without sessions.
    fn client(&self, provider: CryptoProvider) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("an authority");
        let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = Resumption::in_memory_sessions(8);
        Arc::new(client)
    }

    /// A server with sealed tickets.
    fn sealed(&self, provider: CryptoProvider) -> ServerConfig {
        let mut server = self.stored(provider);
        server.ticketer = Arc::clone(&self.ticketer);
        server.max_early_data_size = 0;
        server
    }

    /// A server that stores sessions. Its tickets have the early_data extension.
    fn stored(&self, provider: CryptoProvider) -> ServerConfig {
        let mut server = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(vec![self.root.clone()], self.key.clone_key())
            .expect("a certificate");
        server.max_early_data_size = 1024;
        server
    }
}

/// Runs a handshake up to the server's tickets. Returns its kind.
fn connect(client: &Arc<ClientConfig>, server: &ServerConfig) -> HandshakeKind {
    let name = ServerName::try_from("a.example").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::new(server.clone())).expect("a server");
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("written");
        }
        feed(&bytes, |bytes| server.read_tls(bytes));
        server.process_new_packets().expect("the client is right");
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("written");
        }
        feed(&bytes, |bytes| client.read_tls(bytes));
        client.process_new_packets().expect("the server is right");
    }
    server.handshake_kind().expect("a handshake")
}

fn feed(mut bytes: &[u8], mut read: impl FnMut(&mut &[u8]) -> std::io::Result<usize>) {
    while !bytes.is_empty() {
        read(&mut bytes).expect("room for a flight");
    }
}

/// Fails if rustls changes the length of nonces, derives PSKs in another way, or sends nonces in
/// another way.
#[test]
fn clients_see_nonces_of_eight_bytes_and_resume() {
    let setup = Setup::new();
    for suite in suites() {
        let short = || with_short_nonces(plain(&suite));
        for server in [setup.sealed(short()), setup.stored(short())] {
            let client = setup.client(recording(&suite));
            NONCES.take();
            let mut kinds = Vec::new();
            for _ in 0..3 {
                kinds.push(connect(&client, &server));
                assert_eq!(NONCES.take(), [SHORT_NONCE_LEN; 2], "{suite:?}");
            }
            let resumed = HandshakeKind::Resumed;
            assert_eq!(kinds, [HandshakeKind::Full, resumed, resumed], "{suite:?}");
        }
    }
}

/// A farm can contain a server with an older version of sessile, which has long nonces.
#[test]
fn servers_with_long_and_short_nonces_resume_each_others_sessions() {
    let setup = Setup::new();
    for suite in suites() {
        let long = setup.sealed(plain(&suite));
        let short = setup.sealed(with_short_nonces(plain(&suite)));
        let client = setup.client(recording(&suite));
        NONCES.take();
        assert_eq!(connect(&client, &long), HandshakeKind::Full);
        assert_eq!(NONCES.take(), [RUSTLS_NONCE_LEN; 2], "{suite:?}");
        for server in [&short, &long, &short] {
            assert_eq!(
                connect(&client, server),
                HandshakeKind::Resumed,
                "{suite:?}"
            );
            // A client uses its newest session first, so sessions with long and with short nonces
            // resume in this loop.
            NONCES.take();
        }
    }
}

/// The record size decides at which bytes tickets are split.
#[test]
fn sessions_resume_with_every_size_of_records() {
    let setup = Setup::new();
    let suite = suites()[0];
    let smallest = HEADER_LEN + 63;
    for size in (smallest..smallest + 300).chain([517, 1029, 2053, 4101]) {
        for stored in [false, true] {
            let provider = with_short_nonces(plain(&suite));
            let mut server = if stored {
                setup.stored(provider)
            } else {
                setup.sealed(provider)
            };
            server.max_fragment_size = Some(size);
            server.send_tls13_tickets = 4;
            let client = setup.client(recording(&suite));
            NONCES.take();
            assert_eq!(connect(&client, &server), HandshakeKind::Full, "{size}");
            assert_eq!(NONCES.take(), [SHORT_NONCE_LEN; 4], "{size}");
            assert_eq!(connect(&client, &server), HandshakeKind::Resumed, "{size}");
        }
    }
}

/// A NewSessionTicket whose nonce and ticket have these lengths in bytes.
fn ticket(nonce_len: u8, ticket_len: u16) -> Vec<u8> {
    let mut body = vec![1, 2, 3, 4, 5, 6, 7, 8, nonce_len];
    body.extend(100..100 + nonce_len);
    body.extend(ticket_len.to_be_bytes());
    body.extend((0..ticket_len).map(|index| (index % 251) as u8));
    body.extend([0, 0]);
    message(NEW_SESSION_TICKET, &body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a short body");
    let [_, len @ ..] = len.to_be_bytes();
    [&[kind], &len[..], body].concat()
}

#[test]
fn nonces_are_cut_for_every_record_size() {
    // For some of these ticket lengths, the low byte of the message length underflows when the nonce
    // is cut. The last length is that of a large session.
    let lengths = [1, 213, 214, 230, 237, 238, 300, 6500];
    let [flight, expected] = [RUSTLS_NONCE_LEN, SHORT_NONCE_LEN].map(|nonce| {
        let tickets = lengths.iter().flat_map(|len| ticket(nonce as u8, *len));
        tickets.chain(message(24, &[0])).collect::<Vec<_>>()
    });
    for size in 63..flight.len() + 1 {
        let mut shortener = TicketFlight::default();
        let records: Vec<_> = flight
            .chunks(size)
            .map(|fragment| shortener.shorten(fragment))
            .collect();
        assert!(
            records
                .iter()
                .all(|record| !record.is_empty() && record.len() <= size),
            "{size}"
        );
        assert!(records.concat() == expected, "{size}");
    }
}

#[test]
fn any_message_passes_without_a_panic() {
    let long = message(NEW_SESSION_TICKET, &[7; 40]);
    let short = message(NEW_SESSION_TICKET, &[]);
    for message in [
        &long[..],
        &short,
        &[NEW_SESSION_TICKET],
        &[0; 9],
        &[0xff; 99],
    ] {
        for size in 1..=message.len() {
            let mut shortener = TicketFlight::default();
            for fragment in message.chunks(size) {
                let shortened = shortener.shorten(fragment);
                assert!(shortened.len() <= fragment.len() + 3);
            }
        }
    }
}
