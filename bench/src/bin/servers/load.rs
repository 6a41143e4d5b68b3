//! The load: TLS connections of one kind, each with one request and a clean end. A connection of
//! another kind is an error.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore};

use sessile_bench::Result;

use super::bare;
use super::model::ConnectionKind;
use super::peer::Certificate;

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// The end of every response.
const BODY: &[u8] = b"ok\n";

/// Sessions that a client keeps. The client offers the newest session.
const SESSIONS: usize = 16;

/// The handshake and the configuration of rustls for each kind of connection.
impl ConnectionKind {
    const fn handshake(self) -> HandshakeKind {
        match self {
            Self::Full => HandshakeKind::Full,
            Self::Psk | Self::SessionId | Self::Ticket => HandshakeKind::Resumed,
        }
    }

    fn config(self, certificate: &Certificate) -> Result<ClientConfig> {
        let (version, suite) = match self {
            Self::Full | Self::Psk => (
                &rustls::version::TLS13,
                provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ),
            Self::SessionId | Self::Ticket => (
                &rustls::version::TLS12,
                provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            ),
        };
        let crypto = CryptoProvider {
            cipher_suites: vec![suite],
            // The second group is for the certificate only. With TLS 1.2, OpenSSL requires that
            // clients offer the curve of the certificate.
            kx_groups: vec![provider::kx_group::X25519, provider::kx_group::SECP256R1],
            ..provider::default_provider()
        };
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der.clone())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(crypto))
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = match self {
            Self::Full => Resumption::disabled(),
            Self::Psk | Self::Ticket => Resumption::in_memory_sessions(SESSIONS),
            Self::SessionId => Resumption::in_memory_sessions(SESSIONS)
                .tls12_resumption(Tls12Resumption::SessionIdOnly),
        };
        Ok(config)
    }
}

/// A client that makes connections one after another, with its own sessions.
pub(super) struct Load {
    address: SocketAddr,
    /// `None` for the bare server.
    tls: Option<(Arc<ClientConfig>, ConnectionKind)>,
}

/// An open connection.
pub(super) struct Idle {
    _io: TcpStream,
    _tls: ClientConnection,
}

impl Load {
    pub(super) fn new(
        address: SocketAddr,
        certificate: &Certificate,
        kind: ConnectionKind,
    ) -> Result<Self> {
        let config = Arc::new(kind.config(certificate)?);
        Ok(Self {
            address,
            tls: Some((config, kind)),
        })
    }

    /// The same client with its sessions, for another server.
    pub(super) fn at(&self, address: SocketAddr) -> Self {
        Self {
            address,
            tls: self.tls.clone(),
        }
    }

    pub(super) const fn bare(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    /// Makes a connection of any kind to get the first session.
    pub(super) fn prime(&self) -> Result<()> {
        if let Some((config, _)) = &self.tls {
            self.connect(config).and_then(|(io, tls)| finish(io, tls))?;
        }
        Ok(())
    }

    pub(super) fn run(&self, connections: usize) -> Result<()> {
        (0..connections).try_for_each(|_| self.connection())
    }

    /// Makes one connection from its start to its end.
    pub(super) fn connection(&self) -> Result<()> {
        let Some((config, kind)) = &self.tls else {
            return Ok(bare::connect(self.address)?);
        };
        let (io, tls) = self.connect(config)?;
        let handshake = tls.handshake_kind();
        if handshake != Some(kind.handshake()) {
            return Err(format!("a handshake came out as {handshake:?}").into());
        }
        let group = tls.negotiated_key_exchange_group();
        if group.is_some_and(|group| group.name() != NamedGroup::X25519) {
            return Err(format!("keys were exchanged by {group:?}").into());
        }
        finish(io, tls)
    }

    /// Makes one connection. Returns the duration of the handshake at the client, and the kind of
    /// the handshake.
    pub(super) fn timed(&self) -> Result<(Duration, HandshakeKind)> {
        let (config, _) = self
            .tls
            .as_ref()
            .ok_or("the bare server has no handshakes")?;
        let (mut io, mut tls) = self.begin(config)?;
        let begin = Instant::now();
        finish_handshake(&mut io, &mut tls)?;
        let took = begin.elapsed();
        let kind = tls.handshake_kind().ok_or("an unfinished handshake")?;
        request(&mut io, &mut tls)?;
        finish(io, tls)?;
        Ok((took, kind))
    }

    /// Makes one connection and keeps it open after the request.
    pub(super) fn idle_connection(&self) -> Result<Idle> {
        let (config, _) = self
            .tls
            .as_ref()
            .ok_or("the bare server keeps no connections")?;
        let (io, tls) = self.connect(config)?;
        Ok(Idle { _io: io, _tls: tls })
    }

    /// Connects, makes one request and reads the response.
    fn connect(&self, config: &Arc<ClientConfig>) -> Result<(TcpStream, ClientConnection)> {
        let (mut io, mut tls) = self.begin(config)?;
        finish_handshake(&mut io, &mut tls)?;
        request(&mut io, &mut tls)?;
        Ok((io, tls))
    }

    fn begin(&self, config: &Arc<ClientConfig>) -> Result<(TcpStream, ClientConnection)> {
        let io = TcpStream::connect(self.address)?;
        io.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        Ok((io, ClientConnection::new(Arc::clone(config), name)?))
    }
}

fn finish_handshake(io: &mut TcpStream, tls: &mut ClientConnection) -> Result<()> {
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(io)?;
    }
    Ok(())
}

/// Makes one request and reads the response.
fn request(io: &mut TcpStream, tls: &mut ClientConnection) -> Result<()> {
    tls.writer().write_all(REQUEST)?;
    write_all(io, tls)?;
    let mut response = Vec::new();
    while !response.ends_with(BODY) {
        read_some(io, tls)?.then_some(()).ok_or("no response")?;
        match tls.reader().read_to_end(&mut response) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            _ => {}
        }
    }
    if response.starts_with(b"HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err("a response other than 200".into())
    }
}

/// Sends close_notify and waits until the server closes the connection.
fn finish(mut io: TcpStream, mut tls: ClientConnection) -> Result<()> {
    tls.send_close_notify();
    write_all(&mut io, &mut tls)?;
    io.shutdown(Shutdown::Write)?;
    while read_some(&mut io, &mut tls)? {}
    Ok(())
}

fn write_all(io: &mut TcpStream, tls: &mut ClientConnection) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(io)?;
    }
    Ok(())
}

/// Reads once. Returns false at the end of the stream.
fn read_some(io: &mut TcpStream, tls: &mut ClientConnection) -> Result<bool> {
    if tls.read_tls(io)? == 0 {
        return Ok(false);
    }
    tls.process_new_packets()?;
    Ok(true)
}
