//! One client connection: hello, handshake, requests, and the idle clock that reclaims it. Its
//! session is not its own: it stays when the connection goes, unless configured otherwise.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sessile_proto::alert::AlertDescription;
use sessile_proto::session::Gone;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Worker;
use super::awaited::Awaited;
use super::metrics::Open;
use super::respond::{self, Connection};
use super::sites::{Site, Sites};
use crate::admission::Stay;
use crate::clock;
use crate::detect::{DetectError, Entrance};
use crate::lifecycle::LAST_CALL;
use crate::tls::{self, AcceptError, Accepted, Completion, HANDSHAKE_DEADLINE};

/// How long a request's head may take beyond the idle time: the idle clock begins again with each
/// byte that trickles in.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;

/// Most requests of an HTTP/2 connection that are answered at once.
const MAX_STREAMS: u32 = 32;

/// Most bytes that wait on an HTTP/2 stream for its client.
const MAX_STREAM_BUFFER: usize = 64 * 1024;

/// How long a connection may take to say goodbye when it is reclaimed.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// TLS 1.2 on the wire: the oldest version that is spoken here.
const OLDEST_VERSION: u16 = 0x0303;

pub(super) async fn run(
    worker: Rc<Worker>,
    entrance: Rc<Entrance>,
    io: TcpStream,
    mut peer: SocketAddr,
    open: Open,
) {
    let metrics = &worker.shared.metrics;
    // In a box, so that what a handshake needs does not stay with the connection.
    let done = Box::pin(handshake(&worker, &entrance, io, &mut peer)).await;
    let (sites, site, accepted, stay) = match done {
        Ok(done) => done,
        Err(cause) => return metrics.count_failure(cause),
    };
    metrics.count_early_data(accepted.handshake.early_data);
    let Accepted { stream, handshake } = accepted;
    let connection = Rc::new(Connection {
        peer,
        handshake,
        status: Rc::clone(stream.status()),
        counted: Cell::new(false),
        site,
        sites,
        requests: Cell::new(0),
        awaited: Awaited::new(),
        worker: Rc::clone(&worker),
    });
    connection.count_handshake();
    let _cut = Cut(Rc::clone(&connection));
    let reclaimed = serve(&connection, stream).await;
    connection.count_unfinished();
    connection.log_if_silent();
    settle(&connection, reclaimed).await;
    drop((open, stay));
}

/// Up to the end of the handshake; the error is the cause that is counted. `peer` becomes the
/// client's address, where a proxy says whose connection it is.
async fn handshake(
    worker: &Worker,
    entrance: &Entrance,
    mut io: TcpStream,
    peer: &mut SocketAddr,
) -> Result<(Rc<Sites>, Rc<Site>, Accepted, Stay), &'static str> {
    let arrival = match entrance.receive(&mut io, *peer).await {
        Ok(arrival) => arrival,
        Err(error) => {
            return Err(turn_away(io, &error).await);
        }
    };
    *peer = arrival.source;
    let hello = match arrival.hello() {
        Ok(hello) => hello,
        Err(error) => return Err(turn_away(io, &error).await),
    };
    if hello.is_fallback() && !hello.offers_tls13() {
        // The client speaks more than it offers, and somebody may have made it offer less.
        tls::refuse(io, AlertDescription::InappropriateFallback).await;
        return Err("bad-hello");
    }
    if hello.max_version() < OLDEST_VERSION {
        tls::refuse(io, AlertDescription::ProtocolVersion).await;
        return Err("bad-hello");
    }
    let sites = worker.sites();
    let Some(site) = sites.find(hello.server_name) else {
        tls::refuse(io, AlertDescription::UnrecognizedName).await;
        return Err("no-site");
    };
    let accepted = tls::accept(
        io,
        arrival.reader.bytes(),
        &hello,
        &site.template,
        clock::now(),
    );
    match tokio::time::timeout(HANDSHAKE_DEADLINE, accepted).await {
        Ok(Ok(accepted)) => Ok((Rc::clone(&sites), Rc::clone(site), accepted, arrival.stay)),
        Ok(Err(AcceptError::Closed | AcceptError::Io(_))) => Err("closed"),
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake refused");
            Err(match error.is_client_certificate() {
                true => "client-certificate",
                false => "tls",
            })
        }
        Err(_) => Err("deadline"),
    }
}

/// Ends a connection that brought no good ClientHello. Returns the cause that is counted.
async fn turn_away(io: TcpStream, error: &DetectError) -> &'static str {
    if let Some(alert) = error.alert() {
        tls::refuse(io, alert).await;
    }
    error.cause()
}

/// Polls a hyper connection under the idle clock and the order to stop. HTTP/1 and HTTP/2
/// connections share no trait that could take the place of this macro.
macro_rules! drive {
    ($connection:expr, $http:expr) => {{
        let worker = &$connection.worker.shared;
        let status = &$connection.status;
        let idle_since = || $connection.idle_since();
        let idle_timeout = worker.config.connection.idle_timeout;
        let mut http = pin!($http);
        let mut stop = pin!($connection.told_to_stop());
        let mut stopping = false;
        loop {
            let idle_until = idle_since() + idle_timeout;
            tokio::select! {
                _ = http.as_mut() => break false,
                () = status.completed(), if !$connection.counted.get() => {
                    $connection.count_handshake();
                }
                () = tokio::time::sleep_until(idle_until) => {
                    if idle_since() + idle_timeout > Instant::now() {
                        continue;
                    }
                    worker.metrics.count_reclaimed();
                    if worker.config.connection.purge_on_reclaim {
                        // Before the goodbye: a client that hears it may be back at once.
                        remove($connection, Gone::Purged).await;
                    }
                    // Whether the client says goodbye too is of interest only where it counts.
                    if !worker.config.session.require_close_notify {
                        status.end_without_lingering();
                    }
                    http.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(GOODBYE_DEADLINE, http.as_mut()).await;
                    break true;
                }
                () = &mut stop, if !stopping => {
                    stopping = true;
                    http.as_mut().graceful_shutdown();
                }
            }
        }
    }};
}

/// Answers requests until the connection ends. Returns whether it ended by being reclaimed.
async fn serve(connection: &Rc<Connection>, stream: tls::Stream) -> bool {
    let answer = service_fn(|request| respond::answer(Rc::clone(connection), request));
    let io = TokioIo::new(stream);
    let idle_timeout = connection.worker.shared.config.connection.idle_timeout;
    if connection.handshake.http2 {
        let mut builder = http2::Builder::new(LocalExecutor);
        // Each stream may hold a file open and a buffer full of it.
        builder
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(MAX_STREAM_BUFFER)
            .max_header_list_size(MAX_HEAD as u32);
        drive!(connection, builder.serve_connection(io, answer))
    } else {
        let mut builder = http1::Builder::new();
        // A client may end its side once it has asked. Where the answer may take long, one that ends
        // its side is taken for gone: it could not be told from one that is.
        builder
            .half_close(!connection.site.has_upstream())
            .max_buf_size(MAX_HEAD)
            .timer(TokioTimer::new())
            .header_read_timeout(idle_timeout + HEAD_DEADLINE);
        drive!(connection, builder.serve_connection(io, answer))
    }
}

impl Connection {
    /// Waits for the order to stop, and then for the first request if there was none as yet: it may be
    /// on its way, and hyper would close the connection on it.
    async fn told_to_stop(&self) {
        self.worker.shared.around.stop.cancelled().await;
        if self.requests.get() == 0 {
            tokio::time::sleep(LAST_CALL).await;
        }
    }

    /// Since when nothing has passed that was for the client to send or to take.
    fn idle_since(&self) -> Instant {
        let passed = self.status.last_activity();
        if self.status.is_blocked() {
            // Whatever an upstream does meanwhile: a client that takes nothing may not hold it up for ever.
            return passed;
        }
        passed.max(self.awaited.none_since())
    }

    /// Counts the handshake, once and when it is over: after early data that is while requests are
    /// answered.
    fn count_handshake(&self) {
        let metrics = &self.worker.shared.metrics;
        match self.status.completion() {
            Completion::UnderWay => {}
            _ if self.counted.replace(true) => {}
            Completion::Done => metrics.count_verdict(self.handshake.verdict),
            Completion::Deadline => metrics.count_failure("deadline"),
            Completion::Refused => metrics.count_failure("tls"),
        }
    }

    /// Counts the handshake of a connection that is over, if its client never finished it.
    fn count_unfinished(&self) {
        self.count_handshake();
        if !self.counted.replace(true) {
            self.worker.shared.metrics.count_failure("closed");
        }
    }
}

/// What becomes of the connection's sessions when it is over.
async fn settle(connection: &Connection, reclaimed: bool) {
    if let Some(gone) = removed_as(connection, reclaimed) {
        remove(connection, gone).await;
    }
}

async fn remove(connection: &Connection, gone: Gone) {
    let owned = connection.status.owned().to_vec();
    for key in &owned {
        connection.worker.store.remove(key, gone).await;
    }
}

/// Why the sessions of a connection that is over go with it, if they do.
fn removed_as(connection: &Connection, reclaimed: bool) -> Option<Gone> {
    let config = &connection.worker.shared.config;
    // Purged when it was reclaimed: nothing is left to remove.
    let purged = reclaimed && config.connection.purge_on_reclaim;
    let unclean = config.session.require_close_notify && !connection.status.closed_cleanly();
    (unclean && !purged).then_some(Gone::NotClosedCleanly)
}

/// A connection that is cut at the end of a drain is not settled any more; what it would have
/// removed must not get into the snapshot. After [`settle`] this finds nothing left to do.
struct Cut(Rc<Connection>);

impl Drop for Cut {
    fn drop(&mut self) {
        let Self(connection) = self;
        if let Some(gone) = removed_as(connection, false) {
            for key in connection.status.owned().iter() {
                connection.worker.store.remove_from_table(key, gone);
            }
        }
    }
}

/// Runs hyper's tasks on the connection's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
