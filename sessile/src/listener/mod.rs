//! Listening for clients: sockets for each worker, the first bytes of a connection, limits, the count of open
//! connections, and the drain.
//!
//! Both roles use this module. A [`ClientHandler`] serves a client whose ClientHello is complete. This module
//! decrypts nothing, and uses no code of a role.

mod admission;
pub(crate) mod closing;
mod connection_count;
mod fair_places;
mod inherited;
mod intake;
mod rejection;
mod socket;

pub use admission::{Admission, Admitted, BufferGuard, BufferLimit};
pub(crate) use connection_count::OpenGauge;
pub use connection_count::{ConnectionCount, ConnectionMetrics};
pub use fair_places::{FairPlaces, Place, WhenFull};
pub use inherited::{InheritError, inherit};
pub use intake::DRAIN_GRACE;
pub use rejection::{IntakeFailure, Rejection};
pub(crate) use socket::has_event;
pub use socket::{AddressSetting, ListenError, Socket, accept, bind};

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sessile_proto::alert::AlertDescription;
use sessile_proto::hello::ClientHello;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, KernelTls, Role};
use crate::lifecycle::{self, Workers};
use connection_count::OpenConnection;
use intake::{ClientIntake, IntakeError};

/// A client whose ClientHello is complete.
pub struct Client {
    pub io: TcpStream,
    /// The address of the client, also behind a proxy.
    pub source: SocketAddr,
    /// The address that the client connected to, if a PROXY header has it.
    pub destination: Option<SocketAddr>,
    /// Where the listener's TLS records may be.
    pub kernel: KernelTls,
    /// Counts the connection for its source. Keep this value while the connection is open.
    pub admitted: Admitted,
}

/// A complete ClientHello.
pub struct ReceivedHello<'a> {
    /// The bytes as they came, with record headers and with everything that came after the message.
    pub bytes: &'a [u8],
    pub hello: ClientHello<'a>,
    /// True if the client sent PostgreSQL's SSLRequest before, and got the answer that TLS is spoken here.
    pub ssl_request: bool,
}

impl Client {
    /// Turns the client away, with a fatal alert or without one.
    #[must_use]
    pub fn reject<C>(self, cause: C, alert: Option<AlertDescription>) -> Rejection<C> {
        Rejection {
            cause,
            io: Some(self.io),
            alert,
        }
    }
}

/// The work of a role with its clients. Each worker thread has one handler.
pub trait ClientHandler: Clone + 'static {
    /// A client that the role has accepted. Use a box, because the future of [`Self::serve`] reserves space
    /// for its argument.
    type Connection;
    /// Why the role turns a client away.
    type Cause: From<IntakeFailure>;

    /// Takes the client from the ClientHello to the first bytes of the application.
    ///
    /// The memory of this future is freed when the future ends, so an idle connection does not hold this
    /// memory.
    fn accept(
        &self,
        client: Client,
        received: &ReceivedHello<'_>,
    ) -> impl Future<Output = Result<Self::Connection, Rejection<Self::Cause>>>;

    /// Serves the client until the connection ends. If another source gets its place, `displaced` is ready, and
    /// the connection has to end at once.
    fn serve(
        &self,
        connection: Self::Connection,
        displaced: impl Future<Output = ()>,
    ) -> impl Future<Output = ()>;

    /// Counts a client that is turned away.
    fn count_rejection(&self, cause: Self::Cause);

    /// Called once, when the worker has accepted its last connection.
    fn begin_drain(&self) {}
}

/// The bound sockets of a role, before a worker accepts connections.
pub struct Listeners {
    bound: Vec<(ClientIntake, Vec<Socket>)>,
    drain_timeout: Duration,
}

impl Listeners {
    /// Binds every listener of the role, once for each worker.
    ///
    /// # Errors
    /// If an address is not available. No socket stays open then.
    pub fn bind(
        config: &Config,
        role: Role,
        admission: &Arc<Admission>,
        stop: &CancellationToken,
    ) -> Result<Self, ListenError> {
        let count = lifecycle::worker_count(config.server.workers);
        let mut bound = Vec::new();
        for listener in config.listeners.iter().filter(|it| it.role == role) {
            let intake = ClientIntake::new(admission, config, listener, stop);
            bound.push((
                intake,
                bind(listener.address, count, AddressSetting::Listener)?,
            ));
        }
        Ok(Self {
            bound,
            drain_timeout: config.connection.drain_timeout,
        })
    }

    /// The addresses, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let first = |(_, sockets): &(_, Vec<Socket>)| sockets[0].address();
        self.bound.iter().map(first).collect()
    }

    /// Starts a thread for each socket. Each thread calls `new_handler`, and ends if this returns `None`.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start<H, F>(
        self,
        workers: &mut Workers,
        thread_name: &str,
        count: &ConnectionCount,
        new_handler: impl Fn() -> F + Clone + Send + 'static,
    ) -> io::Result<()>
    where
        H: ClientHandler,
        F: Future<Output = Option<H>> + 'static,
    {
        let drain_timeout = self.drain_timeout;
        for (intake, sockets) in self.bound {
            for socket in sockets {
                let (new_handler, intake) = (new_handler.clone(), intake.clone());
                let count = count.clone();
                workers.spawn(thread_name, move || async move {
                    if let Some(handler) = new_handler().await {
                        let connections = listen(&handler, intake, socket, &count).await;
                        handler.begin_drain();
                        drain(&connections, drain_timeout).await;
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// Accepts connections until the order to stop. Returns the connections that are still open.
async fn listen<H: ClientHandler>(
    handler: &H,
    intake: ClientIntake,
    socket: Socket,
    count: &ConnectionCount,
) -> TaskTracker {
    let intake = Rc::new(intake);
    let connections = TaskTracker::new();
    let accepted = accept(socket, intake.stop.cancelled(), |io, peer| {
        // If the limit is reached, close the connection at once, because this costs least.
        if let Some(open) = count.try_open(peer.ip()) {
            let (handler, intake) = (handler.clone(), Rc::clone(&intake));
            let open = Box::new(open);
            connections.spawn_local(run_connection(handler, intake, io, peer, open));
        }
    });
    if let Err(error) = accepted.await {
        tracing::error!(%error, "a worker thread cannot listen");
    }
    connections
}

/// Waits for the open connections of a worker to end, at most for `connection.drain-timeout`.
async fn drain(connections: &TaskTracker, drain_timeout: Duration) {
    connections.close();
    let drained = tokio::time::timeout(drain_timeout, connections.wait()).await;
    if drained.is_err() {
        let left = connections.len();
        tracing::warn!(
            left,
            "closed the connections that were open at the end of the drain"
        );
    }
}

async fn run_connection<H: ClientHandler>(
    handler: H,
    intake: Rc<ClientIntake>,
    io: TcpStream,
    peer: SocketAddr,
    // Box this value, because the future reserves space for an argument twice.
    mut open: Box<OpenConnection>,
) {
    // Box this future, because an idle connection needs none of its memory.
    match Box::pin(accept_client(&handler, &intake, io, peer, &mut open)).await {
        // Box this future too, because the runtime copies a task several times.
        Ok(connection) => Box::pin(handler.serve(connection, open.displaced())).await,
        Err(rejection) => {
            let Rejection { cause, io, alert } = rejection;
            handler.count_rejection(cause);
            if let (Some(io), Some(alert)) = (io, alert) {
                // Box this future for the same reason as the first one.
                Box::pin(refuse(io, alert, &mut open)).await;
            }
        }
    }
    drop(open);
}

/// Sends an alert to a client that is turned away, unless another source gets its place.
async fn refuse(io: TcpStream, alert: AlertDescription, open: &mut OpenConnection) {
    tokio::select! {
        biased;
        () = closing::refuse(io, alert) => {}
        () = open.displaced() => {}
    }
}

async fn accept_client<H: ClientHandler>(
    handler: &H,
    intake: &ClientIntake,
    mut io: TcpStream,
    peer: SocketAddr,
    open: &mut OpenConnection,
) -> Result<H::Connection, Rejection<H::Cause>> {
    let received = tokio::select! {
        biased;
        received = intake.receive(&mut io, peer) => match received {
            Ok(received) => received,
            Err(error) => return Err(error.reject(io)),
        },
        () = open.displaced() => return Err(displaced()),
    };
    open.move_to(received.source.ip());
    let hello = match received.reader.hello() {
        Ok(hello) => hello,
        Err(error) => return Err(IntakeError::from(error).reject(io)),
    };
    let client = Client {
        io,
        source: received.source,
        destination: received.destination,
        kernel: intake.kernel,
        admitted: received.admitted,
    };
    let hello = ReceivedHello {
        bytes: received.reader.bytes(),
        hello,
        ssl_request: received.ssl_request,
    };
    tokio::select! {
        biased;
        accepted = handler.accept(client, &hello) => accepted,
        () = open.displaced() => Err(displaced()),
    }
}

/// Turns away a client whose connection is displaced before the client is accepted.
fn displaced<C: From<IntakeFailure>>() -> Rejection<C> {
    Rejection::after_close(IntakeFailure::Displaced.into())
}
