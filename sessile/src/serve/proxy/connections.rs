//! The connections of one worker to one upstream. A connection has at most one request at a time.
//!
//! All connections stay on the thread of the worker, so the pool has no lock. No task watches an idle
//! connection. Before its next request, a connection is checked for an end or unexpected bytes. An idle
//! connection that the upstream has closed stays open for up to 8 seconds.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::config;

/// Most idle connections of a worker to an upstream.
const MAX_IDLE: usize = 128;

/// How long a worker keeps an idle connection.
///
/// Apache and Node.js close idle connections after five seconds. A request that arrives after the close is
/// lost, and only some requests may be sent again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The size of the buffer for small responses. An idle connection keeps this buffer.
const FIRST_READ: usize = 8 * 1024;

/// The size of the buffer for the rest of a larger response.
const LARGE_READ: usize = 32 * 1024;

/// Least free bytes of the buffer before a read.
const LEAST_READ: usize = 4 * 1024;

/// Connects to the servers of an upstream in their configured order, and keeps idle connections.
pub(super) struct Connections {
    servers: Box<[String]>,
    connect_timeout: Duration,
    /// The connection that was used last is at the end.
    idle: RefCell<VecDeque<Idle>>,
    /// True if a task closes the expired connections.
    has_reaper: Cell<bool>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// An open connection. A task can send the rest of a request during the response, so the halves are apart.
pub(super) struct Connection {
    pub(super) reader: Reader,
    pub(super) writer: OwnedWriteHalf,
}

/// The half of a connection that receives responses.
pub(super) struct Reader {
    io: OwnedReadHalf,
    /// Bytes of the response that were received and not taken.
    pub(super) received: BytesMut,
    /// True if a read of the present response filled the buffer.
    is_large: bool,
    timer: Pin<Box<Sleep>>,
}

impl Connections {
    pub(super) fn new(config: &config::Upstream) -> Rc<Self> {
        Rc::new(Self {
            servers: config.servers.as_slice().into(),
            connect_timeout: config.connect_timeout,
            idle: RefCell::default(),
            has_reaper: Cell::new(false),
        })
    }

    /// The idle connection that was used last.
    pub(super) fn take_idle(&self, now: Instant) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { connection, since }) = idle.pop_back() {
            if now.saturating_duration_since(since) < IDLE_TIMEOUT && connection.reader.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Closes all idle connections.
    pub(super) fn close_idle(&self) {
        self.idle.borrow_mut().clear();
    }

    /// Keeps a connection for a later request, unless the connection cannot take a request.
    pub(super) fn keep(self: &Rc<Self>, mut connection: Connection) {
        let reader = &mut connection.reader;
        if !reader.received.is_empty() {
            return;
        }
        if reader.is_large {
            reader.received = BytesMut::new();
            reader.is_large = false;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() == MAX_IDLE {
            idle.pop_front();
        }
        let since = Instant::now();
        idle.push_back(Idle { connection, since });
        if !self.has_reaper.replace(true) {
            tokio::task::spawn_local(close_expired(Rc::downgrade(self)));
        }
    }

    /// Connects to the first available server.
    ///
    /// # Errors
    /// The error of the last server.
    pub(super) async fn connect(&self) -> io::Result<Connection> {
        let mut last_error = io::Error::from(io::ErrorKind::NotFound);
        for server in &self.servers {
            // `connect` resolves a host name each time, because its address can change.
            match timeout(self.connect_timeout, TcpStream::connect(server)).await {
                Ok(Ok(io)) => {
                    // Nagle's algorithm could delay a request's body. The proxy also works without
                    // `nodelay`, so an error is ignored.
                    let _ = io.set_nodelay(true);
                    return Ok(Connection::new(io));
                }
                Ok(Err(error)) => last_error = error,
                Err(_) => last_error = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last_error)
    }
}

/// Closes idle connections at the latest after twice [`IDLE_TIMEOUT`]. Ends when no idle connection is left.
async fn close_expired(connections: Weak<Connections>) {
    loop {
        sleep(IDLE_TIMEOUT).await;
        let Some(connections) = connections.upgrade() else {
            return;
        };
        let mut idle = connections.idle.borrow_mut();
        idle.retain(|idle| {
            idle.since.elapsed() < IDLE_TIMEOUT && idle.connection.reader.is_quiet()
        });
        if idle.is_empty() {
            connections.has_reaper.set(false);
            return;
        }
    }
}

impl Connection {
    fn new(io: TcpStream) -> Self {
        let (io, writer) = io.into_split();
        let reader = Reader {
            io,
            received: BytesMut::new(),
            is_large: false,
            timer: Box::pin(sleep(Duration::ZERO)),
        };
        Self { reader, writer }
    }
}

impl Reader {
    /// Ready at a deadline. The deadlines of a connection never become earlier.
    pub(super) fn poll_deadline(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // Most upstreams answer in time. So the timer goes on to an earlier deadline, and is then set again.
            ready!(self.timer.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    /// Receives more bytes. Ready with 0 if the upstream has closed its side.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let free = self.received.capacity() - self.received.len();
        if free < LEAST_READ {
            self.received.reserve(if self.is_large {
                LARGE_READ
            } else {
                FIRST_READ
            });
        }
        let received = pin!(self.io.read_buf(&mut self.received)).poll(cx);
        self.is_large |= self.received.len() == self.received.capacity();
        received
    }

    /// True if the upstream has neither sent a byte nor closed its side.
    fn is_quiet(&self) -> bool {
        // Ask the system, because tokio learns about new bytes only in its next turn. Otherwise bytes that
        // follow a response could become the response to the next request.
        let found = SockRef::from(self.io.as_ref()).peek(&mut [MaybeUninit::uninit()]);
        found.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rustix::event::{PollFd, PollFlags, poll};
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    pub(in crate::serve::proxy) async fn upstream() -> (TcpListener, Rc<Connections>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Rc::new(Connections {
            servers: [address.to_string()].into(),
            connect_timeout: Duration::from_secs(10),
            idle: RefCell::default(),
            has_reaper: Cell::new(false),
        });
        (listener, connections)
    }

    /// A new connection, and the upstream's end.
    pub(in crate::serve::proxy) async fn connect(
        listener: &TcpListener,
        connections: &Rc<Connections>,
    ) -> (Connection, TcpStream) {
        let connection = connections.connect().await.expect("a connection");
        let (io, _) = listener.accept().await.expect("a connection");
        (connection, io)
    }

    /// Runs a test with two idle connections. The upstream has both ends of them.
    async fn with_idle<F: Future<Output = ()>>(
        test: impl FnOnce(Rc<Connections>, [TcpStream; 2]) -> F,
    ) {
        let run = async {
            let (listener, connections) = upstream().await;
            let (first, first_end) = connect(&listener, &connections).await;
            let (second, second_end) = connect(&listener, &connections).await;
            connections.keep(first);
            connections.keep(second);
            test(connections, [first_end, second_end]).await;
        };
        LocalSet::new().run_until(run).await;
    }

    /// Waits until the system has bytes or an end for the newest connection. tokio gets no turn meanwhile.
    fn await_event(connections: &Connections) {
        let idle = connections.idle.borrow();
        let newest = &idle.back().expect("an idle connection").connection;
        let mut events = [PollFd::new(newest.reader.io.as_ref(), PollFlags::IN)];
        poll(&mut events, None).expect("events");
    }

    #[tokio::test]
    async fn the_idle_connection_that_was_used_last_takes_the_next_request() {
        with_idle(async |connections, [first, second]| {
            for end in [second, first] {
                let taken = connections.take_idle(Instant::now()).expect("a connection");
                assert_eq!(taken.writer.local_addr().ok(), end.peer_addr().ok());
            }
            assert!(connections.take_idle(Instant::now()).is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn a_closed_connection_takes_no_request() {
        with_idle(async |connections, [first, second]| {
            drop(second);
            await_event(&connections);
            let taken = connections.take_idle(Instant::now()).expect("the first");
            assert_eq!(taken.writer.local_addr().ok(), first.peer_addr().ok());
            assert!(connections.idle.borrow().is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn a_connection_with_bytes_behind_its_response_takes_no_request() {
        with_idle(async |connections, [first, mut second]| {
            second
                .write_all(b"HTTP/1.1 ")
                .await
                .expect("an open connection");
            await_event(&connections);
            let mut taken = connections.take_idle(Instant::now()).expect("the first");
            assert_eq!(taken.writer.local_addr().ok(), first.peer_addr().ok());
            // Bytes that were already read.
            taken.reader.received.extend_from_slice(b"H");
            connections.keep(taken);
            assert!(connections.take_idle(Instant::now()).is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn an_expired_connection_takes_no_request() {
        with_idle(async |connections, _ends| {
            let later = Instant::now() + IDLE_TIMEOUT;
            assert!(connections.take_idle(later).is_none());
            assert!(connections.idle.borrow().is_empty());
        })
        .await;
    }
}
