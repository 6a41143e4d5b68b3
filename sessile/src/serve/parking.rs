//! HTTP/1 connections that are parked while no request is open. A parked connection keeps its TLS stream, and
//! frees hyper's state and buffers.
//!
//! `proto`'s `Exchange` decides when a connection can be parked. Parking changes no byte that a client sees.

use std::convert::Infallible;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use sessile_proto::exchange::Exchange;
use sessile_proto::request_framing::MAX_HEAD;
use tokio::io::AsyncWrite;

use super::guarded_stream::GuardedStream;
use super::request_task::{PacedBody, RequestTask};
use super::respond::{Body, Connection};
use crate::listener::OpenGauge;

/// Answers the requests of an HTTP/1 connection. The future ends with the connection.
pub(super) struct Http1<S: HttpService<Incoming>> {
    state: State<S>,
    connection: Rc<Connection>,
    task: RequestTask,
    can_park: bool,
}

enum State<S: HttpService<Incoming>> {
    Parked(Parked<S>),
    Active(Box<Active<S>>),
    /// The connection ends while no request is open, so hyper is not needed.
    Closing(Box<GuardedStream>),
    Closed,
}

struct Active<S: HttpService<Incoming>> {
    http: http1::Connection<TokioIo<Box<GuardedStream>>, S>,
    /// Made when a response is not sent at once.
    must_end: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

struct Parked<S> {
    stream: Box<GuardedStream>,
    service: S,
    _gauge: OpenGauge,
}

impl<S> Http1<S>
where
    S: HttpService<Incoming, ResBody = PacedBody<Body>, Error = Infallible> + Unpin,
{
    /// `can_park`: false if the connection must keep its HTTP state.
    pub(super) fn new(
        stream: Box<GuardedStream>,
        service: S,
        connection: &Rc<Connection>,
        task: &RequestTask,
        can_park: bool,
    ) -> Self {
        let mut http = Self {
            state: State::Closed,
            connection: Rc::clone(connection),
            task: task.clone(),
            can_park,
        };
        if can_park {
            task.update_exchange(|_| Exchange::Idle);
            http.park(stream, service);
        } else {
            http.activate(stream, service);
        }
        http
    }

    /// Ends the connection after the open request.
    ///
    /// `awaits_first`: if the head of the connection's first request has begun, this request is answered too.
    pub(super) fn graceful_shutdown(mut self: Pin<&mut Self>, awaits_first: bool) {
        let is_first = self.connection.requests.get() == 0;
        let is_between =
            self.task.exchange() == Exchange::ExpectHead && !(is_first && awaits_first);
        self.state = match mem::replace(&mut self.state, State::Closed) {
            State::Parked(Parked { stream, .. }) => State::Closing(stream),
            // hyper treats each request after a park as the first one, and would wait for its head.
            State::Active(active) if is_between => {
                State::Closing(active.http.into_parts().io.into_inner())
            }
            State::Active(mut active) => {
                Pin::new(&mut active.http).graceful_shutdown();
                State::Active(active)
            }
            ending => ending,
        };
    }

    fn park(&mut self, stream: Box<GuardedStream>, service: S) {
        self.state = State::Parked(Parked {
            stream,
            service,
            _gauge: self.connection.worker.shared.metrics.count_parked(),
        });
    }

    fn activate(&mut self, stream: Box<GuardedStream>, service: S) {
        // A client may close its sending side after a request. A disconnect looks the same. With an upstream,
        // both count as a disconnect, because the answer may take long.
        let http = http1::Builder::new()
            .half_close(!self.connection.site.has_upstream())
            .max_buf_size(MAX_HEAD)
            // `Connection::expiry` limits the time of a head, because hyper's timer would end with each park.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service);
        self.state = State::Active(Box::new(Active {
            http,
            must_end: None,
        }));
    }

    /// Ready if the connection has ended or has become idle.
    fn poll_active(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Active(active) = &mut self.state else {
            return Poll::Ready(());
        };
        if active.poll(&self.task, cx).is_ready() {
            self.state = State::Closed;
            return Poll::Ready(());
        }
        if !self.can_park || self.task.exchange() != Exchange::Idle {
            return Poll::Pending;
        }
        if let State::Active(active) = mem::replace(&mut self.state, State::Closed) {
            let parts = active.http.into_parts();
            let stream = parts.io.into_inner();
            if parts.read_buf.is_empty() {
                self.park(stream, parts.service);
            } else {
                // hyper and `RequestFraming` disagree about the end of a request.
                self.state = State::Closing(stream);
            }
        }
        Poll::Ready(())
    }
}

impl<S> Active<S>
where
    S: HttpService<Incoming, ResBody = PacedBody<Body>, Error = Infallible> + Unpin,
{
    /// Ready if hyper has ended the connection, or if a response has to end.
    fn poll(&mut self, task: &RequestTask, cx: &mut Context<'_>) -> Poll<()> {
        let mut polled = Pin::new(&mut self.http).poll(cx).map(drop);
        if polled.is_pending() && task.exchange() == Exchange::ExpectRead {
            // hyper does not read again in this poll if an earlier read found nothing.
            polled = Pin::new(&mut self.http).poll(cx).map(drop);
        }
        if polled.is_ready() || !task.is_sending() {
            return polled;
        }
        let must_end = self.must_end.get_or_insert_with(|| {
            let task = task.clone();
            Box::pin(async move { task.must_end().await })
        });
        must_end.as_mut().poll(cx)
    }
}

impl<S> Future for Http1<S>
where
    S: HttpService<Incoming, ResBody = PacedBody<Body>, Error = Infallible> + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.state {
                State::Parked(parked) => {
                    ready!(parked.stream.poll_readable(cx));
                    if let State::Parked(parked) = mem::replace(&mut self.state, State::Closed) {
                        self.task.update_exchange(Exchange::received);
                        self.activate(parked.stream, parked.service);
                    }
                }
                State::Active(_) => ready!(self.poll_active(cx)),
                State::Closing(stream) => return Pin::new(stream).poll_shutdown(cx).map(drop),
                State::Closed => return Poll::Ready(()),
            }
        }
    }
}
