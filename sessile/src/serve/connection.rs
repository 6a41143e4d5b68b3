//! One client connection: the handshake, the requests, and the idle timeout. The session stays when the
//! connection ends, unless the configuration says otherwise.

use std::cell::{Cell, OnceCell, RefCell};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Either;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sessile_proto::alert::AlertDescription;
use sessile_proto::exchange::Exchange;
use sessile_proto::frame_budget::FrameBudget;
use sessile_proto::hello::{ClientHello, TLS_1_2};
use sessile_proto::request_framing::MAX_HEAD;
use sessile_proto::session::Gone;
use sessile_proto::verdict::EarlyData;
use tokio::time::{Instant, Timeout};

use super::Worker;
use super::guarded_stream::GuardedStream;
use super::http2_tasks::{Http2, TaskExecutor};
use super::large_file::{self, LargeFile};
use super::metrics::HandshakeFailure;
use super::parking::Http1;
use super::pending_upstreams::PendingUpstreams;
use super::request_task::{Answering, HTTP1_PIECE, HTTP2_PIECE, PacedBody, RequestTask};
use super::respond::{self, Connection, Reply};
use crate::clock;
use crate::listener::{
    Admitted, Client, ClientHandler, DRAIN_GRACE, IntakeFailure, ReceivedHello, Rejection,
};
use crate::tls::{self, AcceptError, Accepted, Completion, HANDSHAKE_DEADLINE};

/// How long the head of a request may take beyond the idle timeout. The time begins with the end of the last
/// response. Each byte of the head restarts the idle timeout.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// Most requests of an HTTP/2 connection that are answered at once.
const MAX_STREAMS: u32 = 32;

/// Most bytes that wait on an HTTP/2 stream for its client.
const MAX_STREAM_BUFFER: usize = 64 * 1024;

/// How long a connection may take to close when it is reclaimed.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// A client after its handshake.
pub(super) struct AcceptedClient {
    connection: Rc<Connection>,
    stream: tls::Stream,
    admitted: Admitted,
}

impl ClientHandler for Rc<Worker> {
    type Connection = Box<AcceptedClient>;
    type Cause = HandshakeFailure;

    async fn accept(
        &self,
        client: Client,
        received: &ReceivedHello<'_>,
    ) -> Result<Box<AcceptedClient>, Rejection<HandshakeFailure>> {
        let hello = &received.hello;
        if let Some(alert) = version_alert(hello) {
            return Err(client.reject(IntakeFailure::BadHello.into(), Some(alert)));
        }
        let sites = self.sites();
        let Some(site) = sites.find(hello.server_name) else {
            let alert = AlertDescription::UnrecognizedName;
            return Err(client.reject(HandshakeFailure::NoSite, Some(alert)));
        };
        let site = Rc::clone(site);
        let handshake = tls::accept(
            client.io,
            received.bytes,
            hello,
            &site.template,
            self.shared.kernel_for(client.kernel),
            clock::now(),
        );
        let Accepted { stream, handshake } =
            match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
                Ok(Ok(accepted)) => accepted,
                Ok(Err(error)) => return Err(Rejection::after_close(failure(&error))),
                Err(_) => return Err(Rejection::after_close(HandshakeFailure::Deadline)),
            };
        let connection = Connection {
            peer: client.source,
            client_address: OnceCell::new(),
            handshake,
            status: Rc::clone(stream.status()),
            counted: Cell::new(false),
            site,
            sites,
            requests: Cell::new(0),
            last_work: Cell::new(Instant::now()),
            is_ending: Cell::new(false),
            pending_upstreams: PendingUpstreams::new(),
            large_file: RefCell::default(),
            has_sent_large_file: Cell::new(false),
            worker: Self::clone(self),
        };
        Ok(Box::new(AcceptedClient {
            connection: Rc::new(connection),
            stream,
            admitted: client.admitted,
        }))
    }

    async fn serve(&self, accepted: Box<AcceptedClient>, displaced: impl Future<Output = ()>) {
        let AcceptedClient {
            connection,
            stream,
            admitted,
        } = *accepted;
        let metrics = &self.shared.metrics;
        metrics.count_early_data(connection.handshake.early_data);
        connection.count_handshake();
        let _cut = Cut(Rc::clone(&connection));
        let mut displaced = pin!(displaced);
        let task = connection.new_task();
        let stream = Box::new(GuardedStream::new(stream, &connection, &task));
        let reclaimed = if connection.handshake.http2 {
            // Box this future, because it is much larger than that of a parked connection.
            Box::pin(answer_http2(&connection, &task, stream, displaced.as_mut())).await
        } else {
            answer_http1(&connection, &task, stream, displaced.as_mut()).await
        };
        connection.count_unfinished();
        connection.log_if_silent();
        settle(&connection, reclaimed).await;
        drop(admitted);
    }

    fn count_rejection(&self, cause: HandshakeFailure) {
        self.shared.metrics.count_failure(cause);
    }

    fn begin_drain(&self) {
        self.shared.store.release_number();
    }
}

/// The alert for a hello whose version is not accepted.
fn version_alert(hello: &ClientHello<'_>) -> Option<AlertDescription> {
    if hello.is_fallback() && !hello.offers_tls13() {
        // The client supports a higher version than it offers. An attacker may have caused that.
        Some(AlertDescription::InappropriateFallback)
    } else if hello.max_version() < TLS_1_2 {
        Some(AlertDescription::ProtocolVersion)
    } else {
        None
    }
}

fn failure(error: &AcceptError) -> HandshakeFailure {
    if matches!(error, AcceptError::Closed | AcceptError::Io(_)) {
        return HandshakeFailure::Closed;
    }
    tracing::debug!(%error, "handshake refused");
    if error.is_client_certificate() {
        HandshakeFailure::ClientCertificate
    } else {
        HandshakeFailure::Tls
    }
}

/// When a connection ends if the client does nothing more.
enum Expiry {
    Idle(Instant),
    /// The head of a request is late.
    Head(Instant),
}

impl Expiry {
    const fn at(&self) -> Instant {
        match self {
            Self::Idle(at) | Self::Head(at) => *at,
        }
    }
}

/// Polls an HTTP connection until it ends, is idle for too long, or has drained.
///
/// A macro, because HTTP/1 and HTTP/2 connections have no trait in common.
macro_rules! drive {
    ($connection:expr, $task:expr, $displaced:expr, $http:expr) => {{
        let worker = &$connection.worker.shared;
        let status = &$connection.status;
        let mut http = pin!($http);
        let mut stop = pin!($connection.told_to_stop());
        let mut stopping = false;
        let mut timer = pin!(tokio::time::sleep_until($connection.expiry($task).at()));
        loop {
            tokio::select! {
                // HTTP is polled first, because it moves the deadlines of the other branches.
                biased;
                _ = http.as_mut() => break false,
                () = status.completed(), if !$connection.counted.get() => {
                    $connection.count_handshake();
                }
                () = timer.as_mut() => {
                    let expiry = $connection.expiry($task);
                    if expiry.at() > Instant::now() {
                        timer.as_mut().reset(expiry.at());
                        continue;
                    }
                    if matches!(expiry, Expiry::Head(_)) {
                        break false;
                    }
                    worker.metrics.count_reclaimed();
                    if worker.config.connection.purge_on_reclaim {
                        // The sessions are removed before the connection closes, because the client may return
                        // at once.
                        Box::pin(remove($connection, Gone::Purged)).await;
                    }
                    // Without `require-close-notify`, the close does not wait for the client's close_notify.
                    if !worker.config.session.require_close_notify {
                        status.end_without_lingering();
                    }
                    http.as_mut().graceful_shutdown(false);
                    let _ = close(http.as_mut()).await;
                    break true;
                }
                () = &mut stop, if !stopping => {
                    stopping = true;
                    http.as_mut().graceful_shutdown(true);
                }
                () = $displaced.as_mut() => {
                    http.as_mut().graceful_shutdown(false);
                    let _ = close(http.as_mut()).await;
                    break false;
                }
            }
        }
    }};
}

/// Waits until an HTTP connection has closed, for a limited time. In a box, because an idle connection needs no
/// memory for this timer.
fn close<H: Future>(http: H) -> Pin<Box<Timeout<H>>> {
    Box::pin(tokio::time::timeout(CLOSE_DEADLINE, http))
}

/// Answers requests until the connection ends. Returns true if the idle timeout ended it.
async fn answer_http1(
    connection: &Rc<Connection>,
    task: &RequestTask,
    stream: Box<GuardedStream>,
    mut displaced: Pin<&mut impl Future<Output = ()>>,
) -> bool {
    let service = service_fn(|request| answer(connection, request, || task.clone()));
    // With early data, the rest of the handshake runs in the stream.
    let can_park = connection.handshake.early_data != EarlyData::Accepted;
    let http = Http1::new(stream, service, connection, task, can_park);
    drive!(connection, task, displaced, http)
}

/// As [`answer_http1`]. `connection_task` stays idle, because a request has a separate task.
async fn answer_http2(
    connection: &Rc<Connection>,
    connection_task: &RequestTask,
    stream: Box<GuardedStream>,
    mut displaced: Pin<&mut impl Future<Output = ()>>,
) -> bool {
    let shared = &connection.worker.shared;
    let executor = TaskExecutor::new(shared.config.connection.body_timeout, &shared.metrics);
    let service = service_fn(|request| answer(connection, request, || executor.new_task()));
    let mut builder = http2::Builder::new(executor.clone());
    // Each stream may have an open file and a full buffer.
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_STREAM_BUFFER)
        .max_header_list_size(MAX_HEAD as u32);
    let io = TokioIo::new(stream);
    let http = builder.serve_connection(io, service);
    let http = Http2::new(http, executor.clone(), connection);
    drive!(connection, connection_task, displaced, http)
}

/// Answers one request. `task`: makes the task of the request. In HTTP/2, a ready response of one piece needs no
/// task.
fn answer(
    connection: &Rc<Connection>,
    request: Request<Incoming>,
    task: impl FnOnce() -> RequestTask,
) -> Answering<respond::Body> {
    let piece = if connection.handshake.http2 {
        HTTP2_PIECE
    } else {
        HTTP1_PIECE
    };
    match respond::answer(connection, request) {
        Reply::Ready(response) if connection.handshake.http2 && is_one_piece(response.body()) => {
            Answering::Ready(Some(response.map(PacedBody::of_one_piece)))
        }
        Reply::Ready(response) => {
            let task = task();
            task.begin();
            Answering::Ready(Some(
                response.map(|body| PacedBody::new(body, piece, &task)),
            ))
        }
        Reply::Waiting(waiting) => {
            let task = task();
            let end = task.begin();
            let connection = Rc::clone(connection);
            Answering::Waiting(Box::pin(async move {
                let (may_leave_hyper, is_last) =
                    (waiting.may_leave_hyper(), waiting.summary.is_last);
                let mut response = waiting.answer(end).await;
                if may_leave_hyper {
                    response = keep_large_file(&connection, response, is_last).await;
                }
                response.map(|body| PacedBody::new(body, piece, &task))
            }))
        }
    }
}

/// Keeps a response whose content is a large file, and never returns then: [`Http1`] takes the connection from
/// hyper. Returns another response.
async fn keep_large_file(
    connection: &Connection,
    response: Response<respond::Body>,
    is_last: bool,
) -> Response<respond::Body> {
    let (head, body) = response.into_parts();
    match body {
        Either::Right(Either::Left(content)) if large_file::is_large(&content) => {
            let file = LargeFile::new(head, content, is_last);
            *connection.large_file.borrow_mut() = Some(Box::new(file));
            std::future::pending().await
        }
        body => Response::from_parts(head, body),
    }
}

/// True for a body in memory that hyper gets at once.
fn is_one_piece(body: &respond::Body) -> bool {
    let Either::Left(body) = body else {
        return false;
    };
    body.size_hint()
        .upper()
        .is_some_and(|length| length <= HTTP2_PIECE as u64)
}

impl Connection {
    /// Waits for the order to stop. A connection without a request gets [`DRAIN_GRACE`] more, because its
    /// first request may be on the way.
    async fn told_to_stop(&self) {
        self.worker.shared.env.stop.cancelled().await;
        if self.requests.get() == 0 {
            // Box the timer, because an idle connection needs no memory for it.
            Box::pin(tokio::time::sleep(DRAIN_GRACE)).await;
        }
    }

    /// Notes that HTTP/2 frames with requests or data passed. Other frames keep no connection open.
    pub(super) fn note_work(&self, budget: &mut FrameBudget) {
        if budget.take_work() {
            self.last_work.set(Instant::now());
        }
    }

    fn new_task(&self) -> RequestTask {
        let shared = &self.worker.shared;
        RequestTask::new(shared.config.connection.body_timeout, &shared.metrics)
    }

    fn expiry(&self, task: &RequestTask) -> Expiry {
        let idle_timeout = self.worker.shared.config.connection.idle_timeout;
        let idle_until = self.idle_since(task) + idle_timeout;
        let head_until = self.last_work.get() + idle_timeout + HEAD_DEADLINE;
        if task.exchange() == Exchange::ExpectHead
            && !self.handshake.http2
            && head_until < idle_until
        {
            Expiry::Head(head_until)
        } else {
            Expiry::Idle(idle_until)
        }
    }

    /// When the client last sent or took bytes, or an upstream last answered. Without an open request, when the
    /// last response ended.
    fn idle_since(&self, task: &RequestTask) -> Instant {
        let is_idle = task.exchange() == Exchange::Idle;
        let active = if self.handshake.http2 || is_idle {
            self.last_work.get()
        } else {
            self.status.last_activity()
        };
        if self.status.is_blocked() {
            // A client that does not read is idle, even if an upstream has more for it.
            return active;
        }
        active.max(self.pending_upstreams.none_since())
    }

    /// Counts a flood of frames that ends the connection.
    pub(super) fn count_flood(&self) {
        let metrics = &self.worker.shared.metrics;
        if metrics.count_flood() == 1 {
            let client = self.peer.ip();
            tracing::warn!(
                %client,
                "closed an HTTP/2 connection whose client sent only frames without requests or data; \
                 further floods are counted in sessile_http2_floods_total"
            );
        }
    }

    /// Counts the handshake once, when it is over. Requests in early data are answered before the end of the
    /// handshake.
    fn count_handshake(&self) {
        let metrics = &self.worker.shared.metrics;
        match self.status.completion() {
            Completion::UnderWay => {}
            _ if self.counted.replace(true) => {}
            Completion::Done => metrics.count_verdict(self.handshake.verdict),
            Completion::Deadline => metrics.count_failure(HandshakeFailure::Deadline),
            Completion::Refused => metrics.count_failure(HandshakeFailure::Tls),
        }
    }

    /// Counts a handshake that the client did not finish before the connection ended.
    fn count_unfinished(&self) {
        self.count_handshake();
        if !self.counted.replace(true) {
            let metrics = &self.worker.shared.metrics;
            metrics.count_failure(HandshakeFailure::Closed);
        }
    }
}

/// Removes the sessions of a connection that is over, if the configuration says so.
async fn settle(connection: &Connection, reclaimed: bool) {
    if let Some(gone) = removal_reason(connection, reclaimed) {
        Box::pin(remove(connection, gone)).await;
    }
}

async fn remove(connection: &Connection, gone: Gone) {
    let owned = connection.status.owned().to_vec();
    for key in &owned {
        connection.worker.store.remove(key, gone).await;
    }
}

/// Why the sessions of a connection that is over are removed.
fn removal_reason(connection: &Connection, reclaimed: bool) -> Option<Gone> {
    let config = &connection.worker.shared.config;
    // The sessions of a reclaimed connection are purged already.
    let purged = reclaimed && config.connection.purge_on_reclaim;
    let unclean = config.session.require_close_notify && !connection.status.closed_cleanly();
    (unclean && !purged).then_some(Gone::NotClosedCleanly)
}

/// Removes the sessions of a connection that is cut at the end of a drain, before [`settle`] ran. These
/// sessions must not get into the snapshot. After [`settle`], no session is left to remove.
struct Cut(Rc<Connection>);

impl Drop for Cut {
    fn drop(&mut self) {
        let Self(connection) = self;
        if let Some(gone) = removal_reason(connection, false) {
            for key in connection.status.owned().iter() {
                connection.worker.store.remove_from_table(key, gone);
            }
        }
    }
}
