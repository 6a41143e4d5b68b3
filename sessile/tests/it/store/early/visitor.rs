//! A TLS 1.3 client that resumes with early data. Tests can record and replay its first flight.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore};

use crate::store::setup::Farm;

/// Read timeout of a connection.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The request of a visitor. The answer names the verdict, and the server closes the connection.
pub(super) const GET: &[u8] =
    b"GET / HTTP/1.1\r\nhost: localhost\r\nsessile-probe: 1\r\nconnection: close\r\n\r\n";

/// A client that keeps its two newest sessions, and uses each session once.
pub(super) struct Visitor {
    sessions: Arc<NewestSessions>,
    config: Arc<ClientConfig>,
    /// The same client without early data.
    config_without_early_data: Arc<ClientConfig>,
}

impl Visitor {
    pub(super) fn new(farm: &Farm) -> Self {
        Self::with(farm, b"http/1.1", provider::default_provider())
    }

    /// A client that offers HTTP/2.
    pub(super) fn http2(farm: &Farm) -> Self {
        Self::with(farm, b"h2", provider::default_provider())
    }

    /// A client that sends a key share of this group.
    pub(super) fn with_key_share(farm: &Farm, group: NamedGroup) -> Self {
        let mut provider = provider::default_provider();
        provider.kx_groups = provider::ALL_KX_GROUPS.to_vec();
        provider
            .kx_groups
            .sort_by_key(|known| known.name() != group);
        Self::with(farm, b"http/1.1", provider)
    }

    fn with(farm: &Farm, alpn: &[u8], provider: CryptoProvider) -> Self {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(farm.root()).unwrap();
        roots.add(root).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]);
        let mut config = builder
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let sessions = Arc::<NewestSessions>::default();
        config.resumption = Resumption::store(Arc::clone(&sessions) as _);
        let config_without_early_data = Arc::new(config.clone());
        config.enable_early_data = true;
        Self {
            sessions,
            config: Arc::new(config),
            config_without_early_data,
        }
    }

    /// The same client and sessions with another application protocol.
    pub(super) fn with_alpn(&self, alpn: &[u8]) -> Self {
        let with_alpn = |config: &ClientConfig| {
            let mut config = config.clone();
            config.alpn_protocols = vec![alpn.to_vec()];
            Arc::new(config)
        };
        Self {
            sessions: Arc::clone(&self.sessions),
            config: with_alpn(&self.config),
            config_without_early_data: with_alpn(&self.config_without_early_data),
        }
    }

    /// Connects without early data, sends a request and returns the answer.
    pub(super) fn visit(&self, server: SocketAddr) -> Answer {
        let mut visit = Visit::to(server, self.hello());
        visit.send(GET);
        visit.answer()
    }

    /// Connects with a request in early data and returns the answer. If the server rejects early
    /// data, the client repeats the request.
    pub(super) fn visit_early(&self, server: SocketAddr) -> Answer {
        let mut visit = Visit::to(server, self.early(GET));
        visit.handshake();
        if !visit.flight.tls.is_early_data_accepted() {
            visit.send(GET);
        }
        visit.answer()
    }

    /// A first flight without early data.
    pub(super) fn hello(&self) -> Flight {
        Flight::of(connection(&self.config_without_early_data))
    }

    /// A first flight with `data` as early data. The session must allow this number of bytes.
    pub(super) fn early(&self, data: &[u8]) -> Flight {
        let mut tls = connection(&self.config);
        let mut early = tls.early_data().expect("a session that allows early data");
        early.write_all(data).unwrap();
        Flight::of(tls)
    }

    /// True if the session of the next connection allows early data.
    pub(super) fn allows_early_data(&self) -> bool {
        let sessions = self.sessions.0.lock().unwrap();
        sessions
            .last()
            .is_some_and(|session| session.max_early_data_size() > 0)
    }
}

fn connection(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::clone(config), name).unwrap()
}

/// The first flight of a client: its ClientHello and early data.
pub(super) struct Flight {
    tls: ClientConnection,
    pub(super) bytes: Vec<u8>,
}

impl Flight {
    fn of(mut tls: ClientConnection) -> Self {
        let mut bytes = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut bytes).unwrap();
        }
        Self { tls, bytes }
    }
}

/// The position of the only PSK identity, which has 32 bytes. `pre_shared_key` is the last
/// extension, and ends with a binder of 32 bytes.
pub(super) fn position_of_identity(flight: &[u8]) -> usize {
    let len = usize::from(u16::from_be_bytes([flight[3], flight[4]]));
    let end = 5 + len;
    let binders = 2 + 1 + 32;
    end - binders - 4 - 32
}

/// Sends a first flight as an attacker would, and waits until the server closes the connection.
pub(super) fn send_flight(server: SocketAddr, bytes: &[u8]) {
    let mut io = TcpStream::connect(server).unwrap();
    io.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
    io.write_all(bytes).unwrap();
    io.shutdown(Shutdown::Write).unwrap();
    // Ignore the answer, which cannot be decrypted without the secrets of the original client.
    let _ = io.read_to_end(&mut Vec::new());
}

/// One connection of a visitor.
pub(super) struct Visit {
    io: TcpStream,
    flight: Flight,
    received: Vec<u8>,
}

impl Visit {
    pub(super) fn to(server: SocketAddr, flight: Flight) -> Self {
        let mut io = TcpStream::connect(server).unwrap();
        io.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        io.write_all(&flight.bytes).unwrap();
        let received = Vec::new();
        Self {
            io,
            flight,
            received,
        }
    }

    /// Finishes the handshake.
    pub(super) fn handshake(&mut self) {
        while self.flight.tls.is_handshaking() {
            assert!(self.read() > 0, "the server ends the handshake");
            self.flush();
        }
        self.flush();
    }

    pub(super) fn send(&mut self, request: &[u8]) {
        self.handshake();
        self.flight.tls.writer().write_all(request).unwrap();
        self.flush();
    }

    /// Reads until the answer holds `part`. The client sends nothing, so the server gets no
    /// Finished message.
    pub(super) fn read_until(&mut self, part: &[u8]) {
        let holds = |heard: &[u8]| heard.windows(part.len()).any(|seen| seen == part);
        while !holds(&self.received) {
            assert!(self.read() > 0, "not in {}", self.answered());
        }
    }

    /// Reads until the server closes the connection. Does not finish the handshake.
    pub(super) fn until_closed(&mut self) {
        while self.read() > 0 {}
    }

    /// Finishes the handshake, reads until the server closes the connection and returns the answer.
    pub(super) fn answer(mut self) -> Answer {
        self.handshake();
        self.until_closed();
        self.flight.tls.send_close_notify();
        let _ = self.flight.tls.write_tls(&mut self.io);
        Answer {
            text: self.answered(),
        }
    }

    fn answered(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }

    /// Reads once. Returns 0 at the end of the connection.
    fn read(&mut self) -> usize {
        let tls = &mut self.flight.tls;
        let read = tls.read_tls(&mut self.io).unwrap_or_default();
        let closed = tls.process_new_packets().unwrap().peer_has_closed();
        // Reading fails if there are no data yet, or at an end without close_notify.
        let _ = tls.reader().read_to_end(&mut self.received);
        if closed { 0 } else { read }
    }

    fn flush(&mut self) {
        while self.flight.tls.wants_write() {
            self.flight.tls.write_tls(&mut self.io).unwrap();
        }
    }
}

/// The answer of a server.
pub(super) struct Answer {
    pub(super) text: String,
}

impl Answer {
    pub(super) fn status(&self) -> &str {
        self.text.split(' ').nth(1).unwrap_or_default()
    }

    /// The verdict and the outcome of early data, such as `resumed/psk accepted`.
    pub(super) fn outcome(&self) -> String {
        let header = |name: &str| {
            let mut lines = self.text.lines();
            let found = lines.find_map(|line| line.strip_prefix(name));
            found.unwrap_or_else(|| panic!("no {name} in {}", self.text))
        };
        let verdict = header("sessile-verdict: ");
        format!("{verdict} {}", header("sessile-early-data: "))
    }
}

/// The newest sessions, the oldest of them first.
#[derive(Debug, Default)]
struct NewestSessions(Mutex<Vec<Tls13ClientSessionValue>>);

/// The number of tickets that a server issues in a full handshake.
const TICKETS: usize = 2;

impl ClientSessionStore for NewestSessions {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut sessions = self.0.lock().unwrap();
        if sessions.len() == TICKETS {
            sessions.remove(0);
        }
        sessions.push(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap().pop()
    }
}
