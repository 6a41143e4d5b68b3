//! Reads the beginning of a connection, as far as it takes to know whose it is and what the client
//! wants: a PROXY header, where one is due, and the ClientHello.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::ready;
use std::time::{Duration, Instant};

use sessile_proto::alert::AlertDescription;
use sessile_proto::hello::{ClientHello, HelloReader};
use sessile_proto::proxy_protocol::{self, Addresses};
use sessile_proto::record;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Entry, Refusal, Stay};
use crate::config::Network;
use crate::lifecycle::LAST_CALL;

/// How long a client may take over its ClientHello, however it trickles in, the PROXY header before it
/// included.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes read at once: more than almost any hello has.
const CHUNK: usize = 4096;

/// Why there is no hello.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    #[error("connection closed before a ClientHello")]
    Closed,
    #[error("no ClientHello within the deadline")]
    Deadline,
    #[error("not a ClientHello: {0}")]
    Invalid(record::Error),
    #[error("{0}")]
    Proxy(proxy_protocol::Error),
    #[error("not from a source in proxy-trusted")]
    Untrusted,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Io(io::Error),
}

impl DetectError {
    /// Every cause that [`Self::cause`] can give.
    pub const CAUSES: [&str; 9] = [
        "no-hello",
        "bad-hello",
        "deadline",
        "bad-proxy-header",
        "untrusted-proxy",
        "hello-limit",
        "source-limit",
        "source-connections",
        "source-rate",
    ];

    /// The cause that is counted.
    #[must_use]
    pub const fn cause(&self) -> &'static str {
        match self {
            Self::Closed | Self::Io(_) => "no-hello",
            Self::Invalid(_) => "bad-hello",
            Self::Deadline => "deadline",
            Self::Proxy(_) => "bad-proxy-header",
            Self::Untrusted => "untrusted-proxy",
            Self::Refused(refusal) => refusal.cause(),
        }
    }

    /// The fatal alert that the client is owed; `None`: the connection is closed without one.
    #[must_use]
    pub const fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Invalid(error) => AlertDescription::for_client_hello(*error),
            Self::Closed
            | Self::Deadline
            | Self::Proxy(_)
            | Self::Untrusted
            | Self::Refused(_)
            | Self::Io(_) => None,
        }
    }
}

/// The way in of one listener.
#[derive(Clone)]
pub struct Entrance {
    admission: Arc<Admission>,
    /// Sources whose connections begin with a PROXY header; empty: none does.
    proxies: Arc<[Network]>,
    stop: CancellationToken,
}

/// A client that has said what it wants.
pub struct Arrival {
    /// With its hello, whole.
    pub reader: HelloReader,
    /// Its own address, whoever stands between.
    pub source: SocketAddr,
    /// What it connected to, where a proxy said so; else it is the socket's to say.
    pub destination: Option<SocketAddr>,
    /// To be kept for as long as the connection is open; the rest goes when there is a server, or the
    /// handshake is over.
    pub stay: Stay,
    /// What holding the hello counts as.
    _entry: Entry,
}

impl Arrival {
    /// The ClientHello.
    ///
    /// # Errors
    /// Where the whole message is no good ClientHello.
    pub fn hello(&self) -> Result<ClientHello<'_>, DetectError> {
        self.reader.hello().map_err(DetectError::Invalid)
    }
}

impl Entrance {
    /// `proxies`: as in the configuration of the listener.
    #[must_use]
    pub fn new(admission: Arc<Admission>, proxies: &[Network], stop: CancellationToken) -> Self {
        Self {
            admission,
            proxies: proxies.into(),
            stop,
        }
    }

    /// Reads until the ClientHello is whole: within [`HELLO_DEADLINE`], and soon where the order to
    /// stop comes.
    ///
    /// # Errors
    /// Where there is none, or it may not come in.
    pub async fn receive(
        &self,
        io: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<Arrival, DetectError> {
        let too_late = async {
            self.stop.cancelled().await;
            tokio::time::sleep(LAST_CALL).await;
        };
        tokio::select! {
            biased;
            read = tokio::time::timeout(HELLO_DEADLINE, self.read(io, peer)) => {
                read.unwrap_or(Err(DetectError::Deadline))
            }
            () = too_late => Err(DetectError::Deadline),
        }
    }

    async fn read(&self, io: &mut TcpStream, peer: SocketAddr) -> Result<Arrival, DetectError> {
        let mut entry = self.admission.enter()?;
        let (addresses, early) = if self.proxies.is_empty() {
            (None, Vec::new())
        } else if self.proxies.iter().any(|proxy| proxy.contains(peer.ip())) {
            header(io, &mut entry).await?
        } else {
            return Err(DetectError::Untrusted);
        };
        let source = addresses.map_or(peer, |addresses| addresses.source);
        let stay = entry.comes_from(source.ip(), Instant::now())?;
        let mut reader = HelloReader::new(self.admission.max_hello_size());
        let mut whole = reader.push(&early).map_err(DetectError::Invalid)?;
        let mut take = |bytes: &[u8]| {
            entry.hold(bytes.len())?;
            reader.push(bytes).map_err(DetectError::Invalid)
        };
        while !whole {
            whole = next(io, &mut take).await?;
        }
        entry.heard();
        Ok(Arrival {
            reader,
            source,
            destination: addresses.map(|addresses| addresses.destination),
            stay,
            _entry: entry,
        })
    }
}

/// Reads a PROXY header; what came after it comes back with it.
async fn header(
    io: &mut TcpStream,
    entry: &mut Entry,
) -> Result<(Option<Addresses>, Vec<u8>), DetectError> {
    let mut bytes = Vec::new();
    loop {
        let mut take = |more: &[u8]| {
            entry.hold(more.len())?;
            bytes.extend_from_slice(more);
            Ok(())
        };
        next(io, &mut take).await?;
        match proxy_protocol::parse(&bytes) {
            Ok(header) => return Ok((header.addresses, bytes.split_off(header.len))),
            Err(proxy_protocol::Error::Incomplete) => {}
            Err(error) => return Err(DetectError::Proxy(error)),
        }
    }
}

/// Hands on what comes next. A connection that waits holds no buffer.
async fn next<T>(
    io: &mut TcpStream,
    take: &mut impl FnMut(&[u8]) -> Result<T, DetectError>,
) -> Result<T, DetectError> {
    poll_fn(|cx| {
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut chunk));
        read.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionReset => DetectError::Closed,
            _ => DetectError::Io(error),
        })?;
        match chunk.filled() {
            [] => Err(DetectError::Closed),
            bytes => take(bytes),
        }
        .into()
    })
    .await
}
