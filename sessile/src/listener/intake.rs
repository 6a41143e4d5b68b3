//! Reads the first bytes of a connection: a PROXY header, if the listener expects one, and the ClientHello.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use sessile_proto::alert::AlertDescription;
use sessile_proto::hello::HelloReader;
use sessile_proto::postgres::{self, ACCEPTED, REFUSED, REQUEST_LEN, Request};
use sessile_proto::proxy_protocol::{self, Addresses};
use sessile_proto::record;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Admitted, PendingHello};
use super::rejection::{IntakeFailure, Rejection};
use super::socket::expect_next_event;
use crate::config::{Config, KernelTls, Listener, Network, Role};

/// How long a client may take to send its PROXY header and its ClientHello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// How long a client that connected before a drain may still take to send its ClientHello or its first
/// request. A lost segment is sent again within this time.
pub const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Most bytes that are read at once. Almost every ClientHello is shorter.
const CHUNK: usize = 4096;

/// Why there is no ClientHello.
pub(super) struct IntakeError {
    cause: IntakeFailure,
    alert: Option<AlertDescription>,
}

impl From<record::Error> for IntakeError {
    fn from(error: record::Error) -> Self {
        Self {
            cause: IntakeFailure::BadHello,
            alert: AlertDescription::for_client_hello(error),
        }
    }
}

impl From<IntakeFailure> for IntakeError {
    fn from(cause: IntakeFailure) -> Self {
        Self { cause, alert: None }
    }
}

impl IntakeError {
    pub(super) fn reject<C: From<IntakeFailure>>(self, io: TcpStream) -> Rejection<C> {
        Rejection {
            cause: self.cause.into(),
            io: Some(io),
            alert: self.alert,
        }
    }
}

/// The result of the intake: a ClientHello and addresses.
pub(super) struct Received<'a> {
    /// Holds the complete ClientHello.
    pub(super) reader: HelloReader,
    pub(super) source: SocketAddr,
    pub(super) destination: Option<SocketAddr>,
    pub(super) admitted: Admitted,
    /// True if the client sent PostgreSQL's SSLRequest.
    pub(super) ssl_request: bool,
    /// Counts the bytes in `reader`.
    _pending: PendingHello<'a>,
}

/// Reads the first bytes of the connections of one listener.
#[derive(Clone)]
pub(super) struct ClientIntake {
    admission: Arc<Admission>,
    /// Sources whose connections begin with a PROXY header. If the list is empty, no connection begins with a
    /// PROXY header.
    trusted_proxies: Arc<[Network]>,
    pub(super) kernel: KernelTls,
    /// True if PostgreSQL's requests for encryption are answered.
    answers_postgres: bool,
    pub(super) stop: CancellationToken,
}

impl ClientIntake {
    pub(super) fn new(
        admission: &Arc<Admission>,
        config: &Config,
        listener: &Listener,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            admission: Arc::clone(admission),
            trusted_proxies: listener.proxies.as_slice().into(),
            kernel: config.kernel_tls(listener),
            answers_postgres: listener.role == Role::Balance,
            stop: stop.clone(),
        }
    }

    /// Reads until the ClientHello is complete. The time limit is [`HELLO_DEADLINE`], and [`DRAIN_GRACE`]
    /// after the order to stop.
    pub(super) async fn receive(
        &self,
        io: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<Received<'_>, IntakeError> {
        let drain_deadline = async {
            self.stop.cancelled().await;
            tokio::time::sleep(DRAIN_GRACE).await;
        };
        tokio::select! {
            biased;
            read = tokio::time::timeout(HELLO_DEADLINE, self.read(io, peer)) => {
                read.unwrap_or(Err(IntakeFailure::Deadline.into()))
            }
            () = drain_deadline => Err(IntakeFailure::Deadline.into()),
        }
    }

    async fn read(
        &self,
        io: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<Received<'_>, IntakeError> {
        let mut pending = self.admission.begin_hello(peer.ip());
        let (addresses, first_bytes) = if self.trusted_proxies.is_empty() {
            (None, Vec::new())
        } else if self.trusted_proxies.iter().any(|it| it.contains(peer.ip())) {
            read_proxy_header(io, &mut pending).await?
        } else {
            return Err(IntakeFailure::UntrustedProxy.into());
        };
        let source = addresses.map_or(peer, |addresses| addresses.source);
        let admitted = pending.admit(source.ip(), Instant::now)?;
        let mut reader = HelloReader::new(self.admission.max_hello_size());
        let mut ssl_request = false;
        let mut pushed = reader.push(&first_bytes);
        loop {
            match pushed {
                Ok(true) => break,
                Ok(false) => {}
                // PostgreSQL's requests begin with a zero, and no TLS record does.
                Err(record::Error::ContentType(0)) if self.answers_postgres && !ssl_request => {
                    let hello = answer_postgres(io, &mut pending, reader.bytes().to_vec()).await?;
                    ssl_request = true;
                    reader = HelloReader::new(self.admission.max_hello_size());
                    pushed = reader.push(&hello);
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            pushed = read_chunk(io, &mut pending, |bytes| reader.push(bytes)).await?;
        }
        pending.complete();
        Ok(Received {
            reader,
            source,
            destination: addresses.map(|addresses| addresses.destination),
            admitted,
            ssl_request,
            _pending: pending,
        })
    }
}

/// Reads a PROXY header. Returns the addresses of the header, and the bytes that came after the header.
async fn read_proxy_header(
    io: &TcpStream,
    pending: &mut PendingHello<'_>,
) -> Result<(Option<Addresses>, Vec<u8>), IntakeError> {
    let mut received = Vec::new();
    loop {
        read_chunk(io, pending, |bytes| received.extend_from_slice(bytes)).await?;
        match proxy_protocol::parse(&received) {
            Ok(header) => return Ok((header.addresses, received.split_off(header.len))),
            Err(proxy_protocol::Error::Incomplete) => {}
            Err(_) => return Err(IntakeFailure::BadProxyHeader.into()),
        }
    }
}

/// Answers PostgreSQL's requests for encryption, up to the request for TLS. Returns the bytes after that request.
async fn answer_postgres(
    io: &mut TcpStream,
    pending: &mut PendingHello<'_>,
    mut received: Vec<u8>,
) -> Result<Vec<u8>, IntakeError> {
    loop {
        let answer = match postgres::parse(&received) {
            Ok(Request::Ssl) => ACCEPTED,
            Ok(Request::GssEnc) => REFUSED,
            Err(postgres::Error::Incomplete) => {
                read_chunk(io, pending, |bytes| received.extend_from_slice(bytes)).await?;
                continue;
            }
            Err(postgres::Error::Other) => return Err(IntakeFailure::BadHello.into()),
        };
        received.drain(..REQUEST_LEN);
        let written = io.write_all(&[answer]).await;
        written.map_err(|_| IntakeFailure::NoHello)?;
        if answer == ACCEPTED {
            return Ok(received);
        }
    }
}

/// Counts the next bytes and passes them to `take`. A connection that waits for bytes holds no buffer.
async fn read_chunk<T>(
    io: &TcpStream,
    pending: &mut PendingHello<'_>,
    mut take: impl FnMut(&[u8]) -> T,
) -> Result<T, IntakeFailure> {
    poll_fn(|cx| {
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        loop {
            // Ask the socket first, because the runtime learns of the first bytes only at its next turn.
            let received = match recv(io, &mut chunk, RecvFlags::empty()) {
                Ok(((bytes @ [_, ..], _), _)) => {
                    if bytes.len() < CHUNK {
                        expect_next_event(io);
                    }
                    pending.add_bytes(bytes.len()).map(|()| take(bytes))
                }
                Err(Errno::AGAIN) => {
                    expect_next_event(io);
                    if io.poll_read_ready(cx).is_pending() {
                        return pending.poll_displaced(cx).map(Err);
                    }
                    continue;
                }
                Ok(_) | Err(_) => Err(IntakeFailure::NoHello),
            };
            return Poll::Ready(received);
        }
    })
    .await
}
