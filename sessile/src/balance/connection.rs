//! One connection through the balancer: reads the ClientHello, finds a server, and forwards the bytes.

use std::cell::{OnceCell, RefCell};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use sessile_proto::alert::AlertDescription;
use sessile_proto::hello::ClientHello;
use sessile_proto::proxy_protocol::{self, Addresses, Version};
use sessile_proto::route::RoutedBy;
use sessile_proto::watch::{CompletionWatch, Watch};
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use super::connect::connect_and_send;
use super::handshake::Handshake;
use super::metrics::TurnAwayCause;
use super::outcome::RoutedConnection;
use super::relay::{self, Timeouts, Watches};
use super::route_miss::{FirstMiss, SkipReason};
use super::routing::{OfferedSessions, Router};
use super::server::{PoolServer, is_local_error};
use super::servers::ServerSet;
use super::state::BalancerState;
use crate::client::{RequestTlsError, request_tls};
use crate::clock;
use crate::listener::{Admitted, Client, ClientHandler, OpenGauge, ReceivedHello, Rejection};

impl ClientHandler for Arc<BalancerState> {
    type Connection = Box<Placed>;
    type Cause = TurnAwayCause;

    async fn accept(
        &self,
        client: Client,
        received: &ReceivedHello<'_>,
    ) -> Result<Box<Placed>, Rejection<TurnAwayCause>> {
        let hello = &received.hello;
        let set = self.server_set();
        let Some(pool) = set.pool(hello, received.ssl_request) else {
            if received.ssl_request {
                self.warn_about_postgres(hello.server_name);
            }
            let alert = AlertDescription::UnrecognizedName;
            return Err(client.reject(TurnAwayCause::UnknownName, Some(alert)));
        };
        let offered = OfferedSessions::new(hello);
        let search = Search {
            state: self,
            set: &set,
            client: &client,
            received,
            has_session: offered.has_session,
        };
        let router = Router {
            set: &set,
            pool,
            learned: &self.learned,
            addresses: &self.addresses,
            address_key: OnceCell::new(),
            hello,
            offered: &offered,
            source: client.source.ip(),
            now: clock::now(),
            instant: Instant::now(),
        };
        let found = search.find(&router).await;
        let Attempt {
            rule,
            server,
            connection,
        } = match found {
            Ok(attempt) => attempt,
            Err(cause) => return Err(client.reject(cause, None)),
        };
        let address_key = teaches_address(hello, &offered, rule, &server)
            .then(|| router.address_key())
            .flatten();
        Ok(Box::new(Placed {
            client: client.io,
            admitted: client.admitted,
            server: connection,
            timeouts: Timeouts {
                idle: set.inputs.balance.idle_timeout,
                total: set.inputs.balance.total_timeout,
                ..Timeouts::default()
            },
            watch: Watch::new(hello),
            completion: address_key.map(|_| CompletionWatch::new(received.bytes)),
            connection: RoutedConnection {
                server,
                rule,
                client: client.source,
                offered,
                address_key,
                sessions: RefCell::default(),
            },
        }))
    }

    /// Forwards bytes until the connection ends.
    async fn serve(&self, placed: Box<Placed>, displaced: impl Future<Output = ()>) {
        let Placed {
            client,
            admitted,
            connection,
            server,
            timeouts,
            watch,
            completion,
        } = *placed;
        let handshake = Handshake::new(self, &connection, watch, completion);
        let handshake = RefCell::new(handshake);
        let count_bytes = |bytes| {
            self.metrics.bytes.add(bytes);
            connection.server.stats.metrics.bytes.add(bytes);
        };
        let watches = Watches {
            client: |bytes: &[u8]| handshake.borrow_mut().take_client_bytes(bytes),
            server: |bytes: &[u8]| handshake.borrow_mut().take_server_bytes(bytes),
        };
        let relayed = relay::run(
            &client,
            &server.io,
            &admitted,
            timeouts,
            &count_bytes,
            watches,
            displaced,
        );
        let end = relayed.await;
        connection.report_end(self, &end, handshake.into_inner().has_outcome);
        drop(server.open);
    }

    fn count_rejection(&self, cause: TurnAwayCause) {
        self.metrics.count_turned_away(cause);
    }
}

/// A client whose hello a server has received.
pub(super) struct Placed {
    client: TcpStream,
    admitted: Admitted,
    connection: RoutedConnection,
    server: ServerConnection,
    timeouts: Timeouts,
    watch: Watch,
    /// `None` if the connection teaches no address.
    completion: Option<CompletionWatch>,
}

/// A connection to a server that counts as open.
struct ServerConnection {
    io: TcpStream,
    open: OpenGauge,
}

/// No further server is tried after this many times `balance.connect-timeout`.
const MAX_SEARCH_TIMEOUTS: u32 = 3;

/// The search for a server that takes the connection.
struct Search<'a> {
    state: &'a BalancerState,
    set: &'a ServerSet,
    client: &'a Client,
    received: &'a ReceivedHello<'a>,
    /// True if the client offers a session.
    has_session: bool,
}

/// A server that took the connection and has the hello.
struct Attempt {
    rule: RoutedBy,
    server: Arc<PoolServer>,
    connection: ServerConnection,
}

impl Search<'_> {
    /// Finds a server, and counts the first route miss.
    async fn find(&self, router: &Router<'_>) -> Result<Attempt, TurnAwayCause> {
        let mut first_miss = FirstMiss::default();
        let found = self.connect_first_available(router, &mut first_miss).await;
        let placed_by = found.as_ref().ok().map(|attempt| attempt.rule);
        if let Some(miss) = first_miss.of_connection(placed_by) {
            self.state.metrics.count_miss(miss);
        }
        found
    }

    /// Tries the servers in turn.
    ///
    /// The first server that closes the connection without a reply is skipped too. A stopping server closes
    /// its waiting connections like this, and the client has seen no byte. If no other server takes the
    /// connection, the client sees the close.
    async fn connect_first_available<'r>(
        &self,
        router: &'r Router<'r>,
        first_miss: &mut FirstMiss,
    ) -> Result<Attempt, TurnAwayCause> {
        let connect_timeout = self.set.inputs.balance.connect_timeout;
        let deadline = router.instant + connect_timeout * MAX_SEARCH_TIMEOUTS;
        let client = &self.client.io;
        let mut tried: Vec<&'r Arc<PoolServer>> = Vec::new();
        let mut silent: Option<Attempt> = None;
        for choice in router.choices() {
            let rule = choice.rule;
            let server = match choice.server {
                Ok(server) => server,
                Err(reason) => {
                    first_miss.record(rule, reason);
                    continue;
                }
            };
            if tried.iter().any(|other| Arc::ptr_eq(other, server)) {
                continue;
            }
            if !tried.is_empty() {
                if has_gone(client) {
                    return silent.ok_or(TurnAwayCause::ClientGone);
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            tried.push(server);
            let connection = match self.connect(server).await {
                Ok(connection) => connection,
                Err(reason) => {
                    first_miss.record(rule, reason);
                    continue;
                }
            };
            let attempt = Attempt {
                rule,
                server: Arc::clone(server),
                connection,
            };
            if let Some(silent) = silent {
                let source = self.client.source.ip();
                let server = &silent.server;
                server.record_cut(source, self.has_session, Instant::now());
                return Ok(attempt);
            }
            let io = &attempt.connection.io;
            // Early data must reach one server only, so a hello with early data goes to no second server.
            if self.received.hello.early_data
                || !closes_without_reply(io, client, connect_timeout).await
            {
                return Ok(attempt);
            }
            first_miss.record(rule, SkipReason::ClosedWithoutReply);
            silent = Some(attempt);
        }
        silent.ok_or(TurnAwayCause::NoServer)
    }

    /// Connects to a server and writes the first bytes.
    async fn connect(&self, server: &PoolServer) -> Result<ServerConnection, SkipReason> {
        let open = server.reserve().ok_or(SkipReason::Full)?;
        let deadline = tokio::time::Instant::now() + self.set.inputs.balance.connect_timeout;
        let mut io = match timeout_at(deadline, self.open(server)).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => return Err(self.record_failure(server, Some(&error))),
            Err(_) => return Err(self.record_failure(server, None)),
        };
        if self.received.ssl_request {
            match timeout_at(deadline, self.send_after_consent(server, &mut io)).await {
                Ok(Ok(())) => {}
                Ok(Err(error @ RequestTlsError::Refused(_))) => {
                    return Err(self.record_failure(server, Some(&error.into())));
                }
                Ok(Err(RequestTlsError::Io(_))) | Err(_) => {
                    // The server took the connection, so count the end as that of any other connection.
                    let source = self.client.source.ip();
                    server.record_cut(source, self.has_session, Instant::now());
                    return Err(SkipReason::ClosedWithoutReply);
                }
            }
        }
        server.stats.metrics.connections.inc();
        Ok(ServerConnection { io, open })
    }

    /// Connects, and writes the first bytes if the server needs not agree to TLS first.
    async fn open(&self, server: &PoolServer) -> io::Result<TcpStream> {
        let (address, hello) = (server.address(), self.received.bytes);
        if self.received.ssl_request {
            return connect_and_send(address, &[]).await;
        }
        let header = self.proxy_header(server.settings.proxy_protocol)?;
        if header.is_empty() {
            connect_and_send(address, hello).await
        } else {
            connect_and_send(address, &[&header, hello].concat()).await
        }
    }

    /// Asks a PostgreSQL server for TLS, and then writes the hello.
    async fn send_after_consent(
        &self,
        server: &PoolServer,
        io: &mut TcpStream,
    ) -> Result<(), RequestTlsError> {
        let header = self.proxy_header(server.settings.proxy_protocol)?;
        request_tls(io, &header).await?;
        io.write_all(self.received.bytes).await?;
        Ok(())
    }

    /// Records that a server does not take the connection. `error` is `None` if the connection timed out.
    fn record_failure(&self, server: &PoolServer, error: Option<&io::Error>) -> SkipReason {
        if let Some(error) = error.filter(|error| is_local_error(error)) {
            let metrics = &self.state.metrics;
            metrics.count_local_error(server.name(), error);
            return SkipReason::LocalError;
        }
        tracing::debug!(
            server = server.name(),
            ?error,
            "server does not take connections"
        );
        // Read the clock again, because the attempt may have used its whole timeout. The ejection starts now.
        server.record_failure(error, Instant::now());
        SkipReason::Unreachable
    }

    /// The PROXY header that the server expects. Empty if it expects none.
    fn proxy_header(&self, version: Option<Version>) -> io::Result<Vec<u8>> {
        let hello = &self.received.hello;
        let Some(version) = version else {
            return Ok(Vec::new());
        };
        let destination = match self.client.destination {
            Some(destination) => destination,
            None => self.client.io.local_addr()?,
        };
        let addresses = Addresses {
            source: self.client.source,
            destination,
        };
        let alpn = hello.alpn.iter().next();
        let name = hello.server_name;
        Ok(proxy_protocol::encode(version, addresses, name, alpn))
    }
}

/// True if the address table may need the server of this client.
fn teaches_address(
    hello: &ClientHello<'_>,
    offered: &OfferedSessions,
    rule: RoutedBy,
    server: &PoolServer,
) -> bool {
    // A client that another rule recognises needs no guess.
    if !matches!(rule, RoutedBy::Address | RoutedBy::Policy) {
        return false;
    }
    if offered.has_ticket {
        return true;
    }
    let takes_tickets = hello.offers_tls13() || hello.session_ticket.is_some();
    // Tickets with a proven key name are no anonymous offers.
    let has_key_name = || {
        let id = server.id();
        server
            .key_names
            .read(|names| names.names_of(id).next().is_some())
    };
    takes_tickets && !has_key_name()
}

/// True if the client has ended its side. The handshake needs more bytes from the client, so an answer is
/// useless.
fn has_gone(client: &TcpStream) -> bool {
    let readiness = relay::readiness(client);
    readiness.is_read_closed() || readiness.is_error()
}

/// True if the server closes the connection before it sends a byte. This function must not read, because the
/// relay needs the server's bytes and the error of a reset.
async fn closes_without_reply(server: &TcpStream, client: &TcpStream, patience: Duration) -> bool {
    let server_has_event = poll_fn(|cx| {
        if server.poll_read_ready(cx).is_ready() {
            return Poll::Ready(true);
        }
        // The client has sent more bytes, or is gone. `poll_peek` asks the system, because the runtime can be
        // wrong. After a read that filled the whole buffer, the runtime still reports the socket as readable.
        let mut byte = [0];
        client
            .poll_peek(cx, &mut ReadBuf::new(&mut byte))
            .map(|_| false)
    });
    if !matches!(timeout(patience, server_has_event).await, Ok(true)) {
        return false;
    }
    let ready = relay::readiness(server);
    let has_ended = ready.is_read_closed() || ready.is_error();
    has_ended && matches!(rustix::io::ioctl_fionread(server), Ok(0))
}
