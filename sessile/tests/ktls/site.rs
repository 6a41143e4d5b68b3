//! A server with large files, and a client that records the bytes of the server.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use tempfile::TempDir;

use crate::peers::{Certificates, NAME, Sessile};

/// How long a read of a client may take, on a slow virtual machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const MIB: usize = 1 << 20;

/// A server of one file.
pub(crate) struct Site {
    pub(crate) server: Sessile,
    pub(crate) content: Vec<u8>,
    certificates: Certificates,
    _folder: TempDir,
}

impl Site {
    /// Serves a file of `length` bytes. `settings` are lines of the configuration, before its first table.
    pub(crate) fn with(length: usize, settings: &str) -> Self {
        Self::started_by(None, length, settings)
    }

    /// As [`Self::with`]. The server's command is the last arguments of `starter`.
    pub(crate) fn started_by(starter: Option<Command>, length: usize, settings: &str) -> Self {
        let certificates = Certificates::new();
        let folder = tempfile::tempdir().unwrap();
        let content = content(length);
        fs::write(folder.path().join("file"), &content).unwrap();
        let config = folder.path().join("sessile.toml");
        fs::write(
            &config,
            configuration(&certificates, folder.path(), settings),
        )
        .unwrap();
        Self {
            server: match starter {
                Some(starter) => Sessile::serve_by(starter, &config, folder.path()),
                None => Sessile::serve_configured(&config, folder.path()),
            },
            content,
            certificates,
            _folder: folder,
        }
    }

    pub(crate) fn client(
        &self,
        suite: SupportedCipherSuite,
        resumption: Tls12Resumption,
    ) -> Client {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(&self.certificates.ca).unwrap();
        roots.add(ca).unwrap();
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![suite];
        let version: &SupportedProtocolVersion = match suite.tls13() {
            Some(_) => &rustls::version::TLS13,
            None => &rustls::version::TLS12,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(8).tls12_resumption(resumption);
        Client {
            config: Arc::new(config),
            server: self.server.address(),
        }
    }

    /// The bytes of large files that left through the kernel, and from the server's process.
    pub(crate) fn sent(&self) -> (u64, u64) {
        let metrics = self.server.metrics();
        let by = |records| metrics.sum("sessile_large_file_bytes_total", &[("records", records)]);
        (by("kernel"), by("user-space"))
    }
}

/// The text of a configuration that serves a folder.
pub(crate) fn configuration(certificates: &Certificates, folder: &Path, settings: &str) -> String {
    format!(
        "{settings}\n[[listener]]\naddress = '127.0.0.1:0'\n[[site]]\nnames = ['{NAME}']\n\
         certificates = [{{ chain = '{}', key = '{}' }}]\n\
         [[site.route]]\npath = '/'\nfiles = '{}'\n",
        certificates.chain.display(),
        certificates.key.display(),
        folder.display()
    )
}

/// Bytes that differ from one position to the next, and from one record to the next.
fn content(length: usize) -> Vec<u8> {
    let mut content: Vec<u8> = (0..length.min(MIB) as u64)
        .map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect();
    while content.len() < length {
        let number = content.len() as u64;
        let block = content.len().min(length - content.len());
        content.extend_from_within(..block);
        let at = number as usize;
        content[at..at + 8].copy_from_slice(&number.to_be_bytes());
    }
    content
}

/// A TLS client with one suite.
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    server: SocketAddr,
}

/// A socket that records the bytes of the server.
pub(crate) struct Recorded {
    pub(crate) io: TcpStream,
    pub(crate) received: Vec<u8>,
    pub(crate) is_recording: bool,
}

impl Read for Recorded {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.io.read(buf)?;
        if self.is_recording {
            self.received.extend_from_slice(&buf[..len]);
        }
        Ok(len)
    }
}

impl Write for Recorded {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.io.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.io.flush()
    }
}

/// A connection of a [`Client`].
pub(crate) struct Connection {
    pub(crate) tls: StreamOwned<ClientConnection, Recorded>,
    /// Bytes after the last response.
    rest: Vec<u8>,
}

/// A response.
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(&self) -> Connection {
        let io = TcpStream::connect(self.server).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let tls = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let recorded = Recorded {
            io,
            received: Vec::new(),
            is_recording: false,
        };
        Connection {
            tls: StreamOwned::new(tls, recorded),
            rest: Vec::new(),
        }
    }
}

impl Connection {
    pub(crate) fn send_request(&mut self, headers: &str) {
        let request = format!("GET /file HTTP/1.1\r\nhost: {NAME}\r\n{headers}\r\n");
        self.tls.write_all(request.as_bytes()).unwrap();
    }

    pub(crate) fn read_answer(&mut self) -> io::Result<Answer> {
        let mut received = std::mem::take(&mut self.rest);
        let mut buffer = vec![0; 256 * 1024];
        let end = loop {
            if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.receive(&mut buffer, &mut received)?;
        };
        let mut body = received.split_off(end);
        let head = String::from_utf8(received).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        while body.len() < length {
            self.receive(&mut buffer, &mut body)?;
        }
        self.rest = body.split_off(length);
        Ok(Answer { head, body })
    }

    fn receive(&mut self, buffer: &mut [u8], to: &mut Vec<u8>) -> io::Result<()> {
        let len = self.tls.read(buffer)?;
        if len == 0 {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        to.extend_from_slice(&buffer[..len]);
        Ok(())
    }

    pub(crate) fn get(&mut self, headers: &str) -> Answer {
        self.send_request(headers);
        self.read_answer().unwrap()
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.tls.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// True if the server has closed the connection with close_notify, after these bytes.
    pub(crate) fn is_closed_cleanly(&mut self) -> bool {
        let mut rest = Vec::new();
        self.tls.read_to_end(&mut rest).is_ok() && rest.is_empty()
    }

    /// Sends close_notify, and waits for the server's end.
    pub(crate) fn close(mut self) {
        self.tls.conn.send_close_notify();
        self.tls.flush().unwrap();
        assert!(self.is_closed_cleanly());
    }
}
