//! The connections of one worker to one upstream. A connection has at most one request at a time.
//!
//! All connections stay on the thread of the worker, so the pool has no lock. hyper's task of a connection
//! notices if the upstream closes an idle connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::upload::Upload;
use crate::config;

/// Most idle connections of a worker to an upstream.
const MAX_IDLE: usize = 128;

/// How long a worker keeps an idle connection.
///
/// Apache and Node.js close idle connections after five seconds. A request that arrives after the close is
/// lost, and only some requests may be sent again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// How long an upload may go on after its response is complete.
const ENDING_TIMEOUT: Duration = Duration::from_secs(60);

/// Most bytes of a response's status line and headers.
const MAX_HEAD: usize = 64 * 1024;

/// Connects to the servers of an upstream in their configured order, and keeps idle connections.
pub(super) struct Connections {
    servers: Box<[String]>,
    connect_timeout: Duration,
    /// The connection that was used last is at the end.
    idle: RefCell<VecDeque<Idle>>,
    ending: RefCell<Vec<Ending>>,
    /// True if a task closes the expired connections.
    has_reaper: Cell<bool>,
}

struct Idle {
    open: Open,
    since: Instant,
}

/// A connection whose response is complete, and whose request is not.
struct Ending {
    task: AbortHandle,
    since: Instant,
}

/// An open connection.
struct Open {
    sender: SendRequest<Upload>,
    /// hyper's task. Without an end from outside, it sends an upload to its last byte.
    task: AbortHandle,
}

/// A connection with a request in progress. If the connection can take another request when this value is
/// dropped, the connection becomes idle. Otherwise, the connection closes after the rest of the request.
pub(super) struct BusyConnection {
    /// `None` only while this value is dropped.
    open: Option<Open>,
    connections: Rc<Connections>,
}

/// A request got no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// No server accepts a connection.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    #[error("{0}")]
    Http(#[source] hyper::Error),
}

impl Connections {
    pub(super) fn new(config: &config::Upstream) -> Rc<Self> {
        Rc::new(Self {
            servers: config.servers.as_slice().into(),
            connect_timeout: config.connect_timeout,
            idle: RefCell::default(),
            ending: RefCell::default(),
            has_reaper: Cell::new(false),
        })
    }

    /// Sends a request over an idle connection, or else over a new connection.
    ///
    /// # Errors
    /// No server accepts a connection, or the connection failed after a part of the request was sent.
    pub(super) async fn send(
        self: &Rc<Self>,
        mut request: Request<Upload>,
    ) -> Result<(Response<Incoming>, BusyConnection), SendError> {
        self.start_reaper();
        // The reaper goes on while a request is open.
        let connections = Rc::clone(self);
        loop {
            let idle = self.take_idle();
            let is_reused = idle.is_some();
            let open = match idle {
                Some(open) => open,
                // Box this future, because few requests need a new connection.
                None => Box::pin(self.connect()).await?,
            };
            let mut connection = BusyConnection {
                open: None,
                connections: Rc::clone(&connections),
            };
            let open = connection.open.insert(open);
            match open.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => match error.take_message() {
                    // The connection closed before hyper sent a byte of the request.
                    Some(unsent) if is_reused => request = unsent,
                    _ => return Err(SendError::Http(error.into_error())),
                },
            }
        }
    }

    /// The idle connection that was used last.
    fn take_idle(&self) -> Option<Open> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { open, since }) = idle.pop_back() {
            if since.elapsed() < IDLE_TIMEOUT && open.sender.is_ready() {
                return Some(open);
            }
        }
        None
    }

    /// Closes all idle connections.
    pub(super) fn close_idle(&self) {
        self.idle.borrow_mut().clear();
    }

    fn keep_idle(&self, open: Open) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == MAX_IDLE {
            idle.pop_front();
        }
        let since = Instant::now();
        idle.push_back(Idle { open, since });
    }

    async fn connect(&self) -> Result<Open, SendError> {
        let io = self.connect_first_available().await;
        let io = TokioIo::new(io.map_err(SendError::Connect)?);
        let mut builder = Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (sender, connection) = builder.handshake(io).await.map_err(SendError::Http)?;
        let task = tokio::task::spawn_local(async move {
            // The request on the connection gets the error too.
            let _ = connection.await;
        });
        Ok(Open {
            sender,
            task: task.abort_handle(),
        })
    }

    /// Connects to the first available server. The error is that of the last server.
    async fn connect_first_available(&self) -> io::Result<TcpStream> {
        let mut last_error = io::Error::from(io::ErrorKind::NotFound);
        for server in &self.servers {
            // `connect` resolves a host name each time, because its address can change.
            match timeout(self.connect_timeout, TcpStream::connect(server)).await {
                Ok(Ok(io)) => {
                    // Nagle's algorithm could delay a request's body. The proxy also works without
                    // `nodelay`, so an error is ignored.
                    let _ = io.set_nodelay(true);
                    return Ok(io);
                }
                Ok(Err(error)) => last_error = error,
                Err(_) => last_error = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last_error)
    }

    fn start_reaper(self: &Rc<Self>) {
        if !self.has_reaper.replace(true) {
            tokio::task::spawn_local(close_expired(Rc::downgrade(self)));
        }
    }
}

/// Closes idle connections at the latest after twice [`IDLE_TIMEOUT`]. Ends when no connection is left.
async fn close_expired(connections: Weak<Connections>) {
    loop {
        sleep(IDLE_TIMEOUT).await;
        let Some(connections) = connections.upgrade() else {
            return;
        };
        let mut idle = connections.idle.borrow_mut();
        idle.retain(|idle| idle.since.elapsed() < IDLE_TIMEOUT && !idle.open.sender.is_closed());
        let mut ending = connections.ending.borrow_mut();
        ending.retain(|ending| {
            let is_late = ending.since.elapsed() >= ENDING_TIMEOUT;
            if is_late {
                ending.task.abort();
            }
            !is_late && !ending.task.is_finished()
        });
        // The upstream and this task hold a reference each, and so does each busy connection.
        let is_unused = idle.is_empty() && ending.is_empty();
        if is_unused && Rc::strong_count(&connections) <= 2 {
            connections.has_reaper.set(false);
            return;
        }
    }
}

impl BusyConnection {
    /// Closes the connection, whatever its state is.
    pub(super) fn close(mut self) {
        if let Some(open) = self.open.take() {
            open.task.abort();
        }
    }
}

impl Drop for BusyConnection {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        if open.sender.is_ready() {
            self.connections.keep_idle(open);
        } else if !open.task.is_finished() {
            let (task, since) = (open.task, Instant::now());
            let ending = Ending { task, since };
            self.connections.ending.borrow_mut().push(ending);
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;
    use crate::serve::pending_upstreams::PendingUpstreams;
    use crate::serve::proxy::upload::SilenceClock;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    async fn upstream() -> (TcpListener, Rc<Connections>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Rc::new(Connections {
            servers: [address.to_string()].into(),
            connect_timeout: Duration::from_secs(10),
            idle: RefCell::default(),
            ending: RefCell::default(),
            has_reaper: Cell::new(false),
        });
        (listener, connections)
    }

    /// Sends a GET request, and reads the complete response.
    async fn get(connections: &Rc<Connections>) {
        let clock = SilenceClock::start(&PendingUpstreams::new());
        let request = Request::new(Upload::new(None, &clock, Duration::from_secs(10)));
        let (response, _connection) = connections.send(request).await.expect("a response");
        let body = response.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), "ok");
    }

    /// Reads a request without a body, and answers it.
    async fn answer(io: &mut TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.expect("a request"));
        }
        io.write_all(ANSWER).await.expect("an open connection");
    }

    #[tokio::test]
    async fn an_idle_connection_takes_the_next_request() {
        let requests = async {
            let (listener, connections) = upstream().await;
            let server = async {
                let (mut io, _) = listener.accept().await.expect("a connection");
                answer(&mut io).await;
                answer(&mut io).await;
            };
            let client = async {
                get(&connections).await;
                assert_eq!(connections.idle.borrow().len(), 1);
                get(&connections).await;
            };
            tokio::join!(server, client);
        };
        LocalSet::new().run_until(requests).await;
    }

    #[tokio::test]
    async fn a_closed_connection_takes_no_request() {
        let requests = async {
            let (listener, connections) = upstream().await;
            for _ in 0..2 {
                let server = async {
                    let (mut io, _) = listener.accept().await.expect("a connection");
                    answer(&mut io).await;
                };
                // The server closes its connection after the response.
                tokio::join!(server, get(&connections));
                while connections
                    .idle
                    .borrow()
                    .iter()
                    .any(|idle| !idle.open.sender.is_closed())
                {
                    tokio::task::yield_now().await;
                }
            }
        };
        LocalSet::new().run_until(requests).await;
    }

    #[tokio::test]
    async fn a_connection_with_an_unread_response_closes() {
        let requests = async {
            let (listener, connections) = upstream().await;
            let server = async {
                let (mut io, _) = listener.accept().await.expect("a connection");
                let unread = ANSWER.strip_suffix(b"k").expect("the last byte");
                io.write_all(unread).await.expect("an open connection");
                let mut rest = Vec::new();
                // The connection closes, or is reset.
                let _ = io.read_to_end(&mut rest).await;
            };
            let client = async {
                let clock = SilenceClock::start(&PendingUpstreams::new());
                let request = Request::new(Upload::new(None, &clock, Duration::from_secs(10)));
                drop(connections.send(request).await.expect("a response"));
                assert!(connections.idle.borrow().is_empty());
            };
            tokio::join!(server, client);
        };
        LocalSet::new().run_until(requests).await;
    }

    #[tokio::test]
    async fn an_expired_connection_takes_no_request() {
        let requests = async {
            let (listener, connections) = upstream().await;
            for _ in 0..2 {
                let server = async {
                    let (mut io, _) = listener.accept().await.expect("a new connection");
                    answer(&mut io).await;
                    io
                };
                let (_open, ()) = tokio::join!(server, get(&connections));
                for idle in &mut *connections.idle.borrow_mut() {
                    idle.since -= IDLE_TIMEOUT;
                }
            }
        };
        LocalSet::new().run_until(requests).await;
    }
}
