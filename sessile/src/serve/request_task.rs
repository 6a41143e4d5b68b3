//! Ends requests early: if the client does not read the response, or if another client needs the slot.
//!
//! hyper does not poll the body of a response while the client does not read. So the timer is not in the
//! body, but in the task that sends the response. In HTTP/2, hyper has one task for each stream, and
//! resets the stream if its task is dropped. In HTTP/1, the task of the connection sends all responses.

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use hyper::body::{Body, Frame, SizeHint};
use sessile_proto::exchange::Exchange;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics::Metrics;

/// Most bytes of a response that hyper gets at once. hyper asks for more when the client has made room.
///
/// A socket has room only after a part of its send buffer has drained, which can be more than this.
pub(super) const HTTP1_PIECE: usize = 16 * 1024;

/// As [`HTTP1_PIECE`], over HTTP/2. A frame with its header fills a TLS record.
pub(super) const HTTP2_PIECE: usize = 16 * 1024 - 9;

/// Ends a request from outside, and tells why the request ended.
#[derive(Clone, Default)]
pub(super) struct RequestEnd(Arc<EndState>);

#[derive(Default)]
struct EndState {
    is_ordered: AtomicBool,
    is_stalled: AtomicBool,
    ordered: Notify,
}

impl RequestEnd {
    /// Orders the request to end.
    pub(super) fn order(&self) {
        self.0.is_ordered.store(true, Ordering::Relaxed);
        // In HTTP/1, the handler and the task of the connection may both wait. Only one of them acts.
        self.0.ordered.notify_waiters();
    }

    /// Waits until the request is ordered to end. Only one caller gets an order.
    pub(super) async fn ordered(&self) {
        loop {
            // An order between the check and the wait must end the wait.
            let notified = self.0.ordered.notified();
            if self.0.is_ordered.swap(false, Ordering::Relaxed) {
                return;
            }
            notified.await;
        }
    }

    /// True if the request ended because its client did not read the response.
    pub(super) fn is_stalled(&self) -> bool {
        self.0.is_stalled.load(Ordering::Relaxed)
    }
}

/// The task of a request. In HTTP/1, the task of all requests of a connection.
#[derive(Clone)]
pub(super) struct RequestTask {
    end: RequestEnd,
    progress: Rc<Progress>,
    body_timeout: Duration,
    metrics: Arc<Metrics>,
}

struct Progress {
    phase: Cell<Phase>,
    /// Used in HTTP/1 only.
    exchange: Cell<Exchange>,
}

#[derive(Clone, Copy)]
enum Phase {
    /// The handler has not answered. A handler that waits for long obeys [`RequestEnd::ordered`] itself.
    Answering,
    /// hyper waits for the next piece of the response.
    ExpectPiece,
    /// hyper has taken a piece.
    PieceTaken,
    /// hyper has not asked for the next piece since then.
    Blocked { since: Instant },
}

impl RequestTask {
    pub(super) fn new(body_timeout: Duration, metrics: &Arc<Metrics>) -> Self {
        Self {
            end: RequestEnd::default(),
            progress: Rc::new(Progress {
                phase: Cell::new(Phase::Answering),
                exchange: Cell::new(Exchange::ExpectHead),
            }),
            body_timeout,
            metrics: Arc::clone(metrics),
        }
    }

    /// Makes the task of a response that is complete and that the client did not take at once.
    pub(super) fn blocked(body_timeout: Duration, metrics: &Arc<Metrics>) -> Self {
        let task = Self::new(body_timeout, metrics);
        task.progress.phase.set(Phase::PieceTaken);
        task
    }

    /// Begins the next request. An order to end the previous request becomes void.
    pub(super) fn begin(&self) -> RequestEnd {
        self.end.0.is_ordered.store(false, Ordering::Relaxed);
        self.update_exchange(Exchange::request_begun);
        self.end.clone()
    }

    /// Notes that a response is on its way. `blocked_since`: its client has to take bytes since then.
    pub(super) fn send(&self, blocked_since: Option<Instant>) {
        self.progress.phase.set(match blocked_since {
            None => Phase::ExpectPiece,
            Some(since) => Phase::Blocked { since },
        });
    }

    /// Notes the end of a response without a [`PacedBody`].
    pub(super) fn end_response(&self) {
        self.progress.phase.set(Phase::Answering);
    }

    /// The progress of an HTTP/1 connection.
    pub(super) fn exchange(&self) -> Exchange {
        self.progress.exchange.get()
    }

    /// Tells an event of an HTTP/1 connection.
    pub(super) fn update_exchange(&self, event: impl FnOnce(Exchange) -> Exchange) {
        self.progress.update_exchange(event);
    }

    /// Runs hyper's part of the task until it is done or must end.
    pub(super) async fn run(self, task: impl Future<Output = ()>) {
        tokio::select! {
            // The task is polled first, because it sets the deadline of `must_end`.
            biased;
            () = task => {}
            () = self.must_end() => {}
        }
    }

    /// True if a response is on its way.
    pub(super) fn is_sending(&self) -> bool {
        !matches!(self.progress.phase.get(), Phase::Answering)
    }

    /// Waits until the response must end. Poll this future after each poll of the response.
    pub(super) async fn must_end(&self) {
        let mut ordered = pin!(self.end.ordered());
        let mut timer = pin!(tokio::time::sleep(self.body_timeout));
        std::future::poll_fn(|cx| {
            let phase = self.progress.phase.get();
            if matches!(phase, Phase::Answering) {
                return Poll::Pending;
            }
            if ordered.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let since = match phase {
                Phase::Answering | Phase::ExpectPiece => return Poll::Pending,
                Phase::PieceTaken => Instant::now(),
                Phase::Blocked { since } => since,
            };
            self.progress.phase.set(Phase::Blocked { since });
            let deadline = since + self.body_timeout;
            loop {
                ready!(timer.as_mut().poll(cx));
                if deadline <= Instant::now() {
                    break;
                }
                timer.as_mut().reset(deadline);
            }
            self.end.0.is_stalled.store(true, Ordering::Relaxed);
            self.metrics.count_stalled_response();
            Poll::Ready(())
        })
        .await;
    }
}

impl Progress {
    fn update_exchange(&self, event: impl FnOnce(Exchange) -> Exchange) {
        self.exchange.set(event(self.exchange.get()));
    }
}

/// The body of a response, in pieces. Notes if hyper has taken a piece.
pub(super) struct PacedBody<B> {
    body: B,
    /// The rest of a large piece.
    rest: Bytes,
    /// Most bytes of a piece.
    max_piece: usize,
    /// `None` if the body is one piece.
    progress: Option<Rc<Progress>>,
}

impl<B> PacedBody<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin,
{
    pub(super) fn new(body: B, max_piece: usize, task: &RequestTask) -> Self {
        let progress = Rc::clone(&task.progress);
        progress.phase.set(Phase::ExpectPiece);
        Self {
            body,
            rest: Bytes::new(),
            max_piece,
            progress: Some(progress),
        }
    }

    /// Makes a body that is in memory and has one piece. hyper needs such a body only once.
    pub(super) fn of_one_piece(body: B) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            max_piece: usize::MAX,
            progress: None,
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.rest.is_empty() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(self.max_piece));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl<B> Body for PacedBody<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = self.poll_piece(cx);
        if let Some(progress) = &self.progress {
            let has_piece = matches!(polled, Poll::Ready(Some(Ok(_))));
            progress.phase.set(if has_piece {
                Phase::PieceTaken
            } else {
                Phase::ExpectPiece
            });
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl<B> Drop for PacedBody<B> {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.phase.set(Phase::Answering);
            progress.update_exchange(Exchange::response_ended);
        }
    }
}

/// The response to a request, at once or later.
pub(super) enum Answering<B> {
    Ready(Option<Response<PacedBody<B>>>),
    Waiting(Pin<Box<dyn Future<Output = Response<PacedBody<B>>>>>),
}

impl<B: Unpin> Future for Answering<B> {
    type Output = Result<Response<PacedBody<B>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ready(response) => {
                let response = response
                    .take()
                    .expect("a future is polled until it is ready");
                Poll::Ready(Ok(response))
            }
            Self::Waiting(response) => response.as_mut().poll(cx).map(Ok),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::task::Waker;

    use crate::config::Config;
    use crate::key::Keyring;
    use crate::serve::request_task::*;
    use crate::store::Store;

    pub(in crate::serve) fn metrics() -> Arc<Metrics> {
        let registry = prometheus::Registry::new();
        let config = Config::default();
        let keys = Arc::new(Keyring::ephemeral(config.session.lifetime).expect("a key"));
        let store = Store::new(&config, &keys, 1, &registry, 0).expect("a store");
        let metrics = Metrics::register(&registry, "web1", &store, &keys, 1);
        Arc::new(metrics.expect("its first server"))
    }

    fn is_ready(future: Pin<&mut impl Future<Output = ()>>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        future.poll(&mut context).is_ready()
    }

    #[tokio::test]
    async fn an_order_reaches_a_handler_behind_an_earlier_response() {
        let task = RequestTask::new(Duration::from_secs(60), &metrics());
        let mut must_end = pin!(task.must_end());
        task.begin();
        let sending = PacedBody::new(http_body_util::Empty::new(), HTTP1_PIECE, &task);
        assert!(!is_ready(must_end.as_mut()));
        drop(sending);

        let end = task.begin();
        let mut handler = pin!(end.ordered());
        assert!(!is_ready(handler.as_mut()));
        assert!(!is_ready(must_end.as_mut()));
        end.order();
        assert!(is_ready(handler));
        // The handler answers 503, and its response is not cut.
        let _answer = PacedBody::new(http_body_util::Empty::new(), HTTP1_PIECE, &task);
        assert!(!is_ready(must_end.as_mut()));
        end.order();
        assert!(is_ready(must_end));
    }
}
