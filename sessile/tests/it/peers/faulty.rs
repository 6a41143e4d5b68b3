//! A real TLS server with a fault that several TLS stacks have. The server ends every handshake that
//! offers its own session, and finishes all others.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::server::{
    NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache, StoresServerSessions,
};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use socket2::SockRef;

use super::Certificates;

/// Limit of the time for which a client may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// A fatal alert internal_error.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// The mechanism of the server's sessions, which also decides its only TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// TLS 1.2.
    SessionId,
    /// TLS 1.2.
    Ticket,
    /// TLS 1.3.
    Psk,
}

impl By {
    pub(crate) const ALL: [Self; 3] = [Self::SessionId, Self::Ticket, Self::Psk];

    /// The name in verdicts.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::SessionId => "session-id",
            Self::Ticket => "ticket",
            Self::Psk => "psk",
        }
    }
}

/// The way in which the server ends a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The server sends a fatal alert.
    Alert,
    /// The server does not answer.
    Hang,
    /// The server resets the TCP connection.
    Reset,
}

impl End {
    pub(crate) const ALL: [Self; 3] = [Self::Alert, Self::Hang, Self::Reset];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Hang => "hang",
            Self::Reset => "reset",
        }
    }
}

/// The handshakes that the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No handshakes.
    None,
    /// Handshakes that offer the server's own session.
    Offers(End),
    /// All handshakes.
    All(End),
    /// All handshakes except the first.
    AllAfterFirst(End),
}

/// The server. It listens until the tests end.
pub(crate) struct Faulty {
    address: SocketAddr,
    state: Arc<FaultyState>,
}

struct FaultyState {
    config: ServerConfig,
    fault: Mutex<Fault>,
    /// Counts of finished handshakes and of offers of the server's own session.
    finished: AtomicUsize,
    offers: AtomicUsize,
}

/// A ticketer that several servers can share.
pub(crate) fn ticketer() -> Arc<dyn ProducesTickets> {
    Ticketer::new().expect("random bytes")
}

impl Faulty {
    pub(crate) fn start(certificates: &Certificates, by: By, fault: Fault) -> Self {
        Self::sharing(certificates, by, fault, &ticketer())
    }

    /// Starts a server with a ticketer that other servers may share.
    pub(crate) fn sharing(
        certificates: &Certificates,
        by: By,
        fault: Fault,
        ticketer: &Arc<dyn ProducesTickets>,
    ) -> Self {
        let chain = CertificateDer::pem_file_iter(&certificates.chain)
            .expect("a file")
            .collect::<Result<_, _>>()
            .expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&certificates.key).expect("a key");
        let version = match by {
            By::Psk => &TLS13,
            By::SessionId | By::Ticket => &TLS12,
        };
        let mut config = ServerConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        match by {
            By::SessionId => config.session_storage = ServerSessionMemoryCache::new(1000),
            By::Ticket | By::Psk => {
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.ticketer = Arc::clone(ticketer);
            }
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(FaultyState {
            config,
            fault: Mutex::new(fault),
            finished: AtomicUsize::new(0),
            offers: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for io in listener.incoming().flatten() {
                let state = Arc::clone(&accepting);
                // Ignore errors: if a client disconnects, only its own connection ends.
                thread::spawn(move || state.serve(io));
            }
        });
        Self { address, state }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
    }

    /// The number of finished handshakes so far.
    pub(crate) fn finished(&self) -> usize {
        self.state.finished()
    }

    /// The number of connections so far that offered the server's own session.
    pub(crate) fn offers(&self) -> usize {
        self.state.offers.load(Ordering::Relaxed)
    }
}

impl FaultyState {
    fn finished(&self) -> usize {
        self.finished.load(Ordering::Relaxed)
    }

    fn serve(&self, mut io: TcpStream) -> io::Result<()> {
        io.set_read_timeout(Some(PATIENCE))?;
        let offered = Arc::new(AtomicBool::new(false));
        let mut config = self.config.clone();
        config.session_storage = Arc::new(Watched {
            inner: config.session_storage,
            offered: Arc::clone(&offered),
        });
        config.ticketer = Arc::new(Watched {
            inner: config.ticketer,
            offered: Arc::clone(&offered),
        });
        let mut tls = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            if tls.read_tls(&mut io)? == 0 {
                return Ok(());
            }
            let processed = tls.process_new_packets();
            let offered = offered.swap(false, Ordering::Relaxed);
            self.offers.fetch_add(offered.into(), Ordering::Relaxed);
            let fault = *self.fault.lock().unwrap();
            match fault {
                Fault::All(how) => return end(io, how),
                Fault::Offers(how) if offered => return end(io, how),
                Fault::AllAfterFirst(how) if self.finished() > 0 => return end(io, how),
                Fault::Offers(_) | Fault::AllAfterFirst(_) | Fault::None => {}
            }
            while tls.wants_write() {
                tls.write_tls(&mut io)?;
            }
            processed.map_err(io::Error::other)?;
        }
        self.finished.fetch_add(1, Ordering::Relaxed);
        answer(tls, io)
    }
}

/// Answers one request of any kind.
fn answer(mut tls: ServerConnection, mut io: TcpStream) -> io::Result<()> {
    let mut stream = rustls::Stream::new(&mut tls, &mut io);
    if stream.read(&mut [0; 4096])? == 0 {
        return Ok(());
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")?;
    stream.conn.send_close_notify();
    stream.flush()?;
    io.shutdown(Shutdown::Write)?;
    read_to_end(io)
}

fn end(mut io: TcpStream, how: End) -> io::Result<()> {
    match how {
        End::Reset => SockRef::from(&io).set_linger(Some(Duration::ZERO)),
        End::Hang => read_to_end(io),
        End::Alert => {
            io.write_all(&ALERT)?;
            io.shutdown(Shutdown::Write)?;
            read_to_end(io)
        }
    }
}

fn read_to_end(mut io: TcpStream) -> io::Result<()> {
    while io.read(&mut [0; 4096])? > 0 {}
    Ok(())
}

/// A session storage or ticketer for rustls. The wrapper notices offers of the server's own session.
#[derive(Debug)]
struct Watched<T> {
    inner: T,
    offered: Arc<AtomicBool>,
}

impl<T> Watched<T> {
    fn notice(&self, found: Option<Vec<u8>>) -> Option<Vec<u8>> {
        self.offered.fetch_or(found.is_some(), Ordering::Relaxed);
        found
    }
}

impl StoresServerSessions for Watched<Arc<dyn StoresServerSessions>> {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.inner.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.notice(self.inner.get(key))
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.notice(self.inner.take(key))
    }

    fn can_cache(&self) -> bool {
        self.inner.can_cache()
    }
}

impl ProducesTickets for Watched<Arc<dyn ProducesTickets>> {
    fn enabled(&self) -> bool {
        self.inner.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.inner.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.notice(self.inner.decrypt(cipher))
    }
}
