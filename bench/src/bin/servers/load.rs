//! A client without tickets that resumes by TLS 1.2 session ID. Each connection carries one request
//! and ends cleanly.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};

use sessile_bench::Result;

use super::peer::Certificate;

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// The end of every response.
const BODY: &[u8] = b"ok\n";

/// Sessions that a client keeps. The client offers the newest session.
const SESSIONS: usize = 16;

fn config(certificate: &Certificate) -> Result<ClientConfig> {
    let crypto = CryptoProvider {
        cipher_suites: vec![provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256],
        // The second group is for the certificate only.
        kx_groups: vec![provider::kx_group::X25519, provider::kx_group::SECP256R1],
        ..provider::default_provider()
    };
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der.clone())?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto))
        .with_protocol_versions(&[&rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption =
        Resumption::in_memory_sessions(SESSIONS).tls12_resumption(Tls12Resumption::SessionIdOnly);
    Ok(config)
}

/// A client that makes connections one after another, with its own sessions.
pub(super) struct Load {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Load {
    pub(super) fn new(address: SocketAddr, certificate: &Certificate) -> Result<Self> {
        let config = Arc::new(config(certificate)?);
        Ok(Self { address, config })
    }

    /// The same client with its sessions, for another server.
    pub(super) fn at(&self, address: SocketAddr) -> Self {
        let config = Arc::clone(&self.config);
        Self { address, config }
    }

    /// Makes one connection. Returns the duration of the handshake at the client, and the kind of
    /// the handshake.
    pub(super) fn timed(&self) -> Result<(Duration, HandshakeKind)> {
        let mut io = TcpStream::connect(self.address)?;
        io.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let mut tls = ClientConnection::new(Arc::clone(&self.config), name)?;
        let begin = Instant::now();
        finish_handshake(&mut io, &mut tls)?;
        let took = begin.elapsed();
        let kind = tls.handshake_kind().ok_or("an unfinished handshake")?;
        request(&mut io, &mut tls)?;
        finish(io, tls)?;
        Ok((took, kind))
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
