//! A server that uses only rustls, with one or two certificates and a short answer to each request.
//! `bench/tlsfuzzer.py` compares `sessile serve` with this server, to tell sessile's behaviour from
//! that of rustls.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How long the server waits for bytes from a client.
const READ_DEADLINE: Duration = Duration::from_secs(20);

/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\ncontent-type: text/plain\r\n\r\nhello\n";

const ANSWER_AND_CLOSE: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\ncontent-type: text/plain\r\n\
    connection: close\r\n\r\nhello\n";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (address, chain, key, clients) = match &arguments[..] {
        [address, chain, key] => (address, chain, key, None),
        [address, chain, key, clients] => (address, chain, key, Some(clients)),
        _ => return Err("usage: bare_rustls ADDRESS CHAIN KEY [CLIENT-CA]".into()),
    };
    let config = Arc::new(config(
        chain.as_ref(),
        key.as_ref(),
        clients.map(Path::new),
    )?);
    for io in TcpListener::bind(address)?.incoming() {
        let config = Arc::clone(&config);
        // A failed connection ends only its own thread. The client reports the failure.
        std::thread::spawn(move || io.and_then(|io| serve(io, config)));
    }
    Ok(())
}

fn config(chain: &Path, key: &Path, clients: Option<&Path>) -> Result<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = match clients {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in CertificateDer::pem_file_iter(authorities)? {
                roots.add(authority?)?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()?
        }
    };
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<std::result::Result<_, _>>()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Answers requests until the client closes the connection, sends an HTTP/1.0 request, or violates
/// the protocol.
fn serve(mut io: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    io.set_nodelay(true)?;
    io.set_read_timeout(Some(READ_DEADLINE))?;
    let mut tls = ServerConnection::new(config).map_err(io::Error::other)?;
    // After an error, send nothing more: rustls has already sent an alert, if the error has one.
    if answer(&mut io, &mut tls).is_ok() {
        tls.send_close_notify();
        while tls.wants_write() {
            tls.write_tls(&mut io)?;
        }
    }
    io.shutdown(Shutdown::Write)?;
    // Read the rest first: closing a socket with unread bytes sends a reset, and the client could
    // lose the answer.
    io::copy(&mut io, &mut io::sink())?;
    Ok(())
}

fn answer(io: &mut TcpStream, tls: &mut ServerConnection) -> io::Result<()> {
    let mut head = Vec::new();
    while head.len() < MAX_HEAD {
        tls.complete_io(io)?;
        let mut plaintext = [0; 4096];
        match tls.reader().read(&mut plaintext) {
            Ok(0) => return Ok(()),
            Ok(len) => head.extend_from_slice(&plaintext[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        // A few scripts end their lines without a carriage return.
        if head.ends_with(b"\r\n\r\n") || head.ends_with(b"\n\n") {
            let persistent = head.windows(9).any(|part| part == b" HTTP/1.1");
            if !persistent {
                return tls.writer().write_all(ANSWER_AND_CLOSE);
            }
            tls.writer().write_all(ANSWER)?;
            head.clear();
        }
    }
    Ok(())
}
