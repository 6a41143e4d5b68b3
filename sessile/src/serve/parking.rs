//! HTTP/1 connections that are parked while no request is open. A parked connection keeps its TLS stream, and
//! frees hyper's state and buffers.
//!
//! `proto`'s `Exchange` decides when a connection can be parked. Parking changes no byte that a client sees.

use std::convert::Infallible;
use std::future::Future;
use std::io;
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
use tokio::time::Instant;

use super::file_transfer::{FileTransfer, Next};
use super::guarded_stream::GuardedStream;
use super::large_file::LargeFile;
use super::request_task::{PacedBody, RequestTask};
use super::respond::{Body, Connection};
use crate::listener::OpenGauge;

/// Answers the requests of an HTTP/1 connection. The future ends with the connection.
pub(super) struct Http1<S: HttpService<Incoming>> {
    state: State<S>,
    connection: Rc<Connection>,
    task: RequestTask,
    can_park: bool,
    /// True if the connection ends after the open request.
    is_ending: bool,
}

enum State<S: HttpService<Incoming>> {
    Parked(Parked<S>),
    Active(Box<Active<S>>),
    /// A large file is being sent.
    Sending(Sending<S>),
    /// The connection ends while no request is open, so hyper is not needed.
    Closing(Box<GuardedStream>),
    Closed,
}

struct Active<S: HttpService<Incoming>> {
    http: http1::Connection<TokioIo<Box<GuardedStream>>, S>,
    /// Made when a response is not sent at once.
    must_end: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

struct Sending<S> {
    stream: Box<GuardedStream>,
    service: S,
    transfer: Box<FileTransfer>,
    /// Ready if the response has to end early.
    must_end: Pin<Box<dyn Future<Output = ()>>>,
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
            is_ending: false,
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
        self.is_ending = true;
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
            State::Sending(mut sending) => {
                sending.transfer.end_connection();
                State::Sending(sending)
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

    /// Waits for the next request after a file, or ends the connection.
    fn go_on(&mut self, sending: Sending<S>, sent: io::Result<Next>) {
        self.connection.last_work.set(Instant::now());
        match sent {
            Ok(Next::Request) => {
                self.task.update_exchange(|_| Exchange::Idle);
                self.park(sending.stream, sending.service);
            }
            Ok(Next::End) => {
                self.task.update_exchange(Exchange::closed);
                self.state = State::Closing(sending.stream);
            }
            // The client finds the end of the connection before the end of the file.
            Err(_) => self.task.update_exchange(Exchange::closed),
        }
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
        if self.task.exchange() == Exchange::ExpectResponsePart
            && let Some(file) = self.connection.large_file.take()
        {
            self.take_over(*file);
            return Poll::Ready(());
        }
        if !self.can_park || self.task.exchange() != Exchange::Idle {
            return Poll::Pending;
        }
        if let State::Active(active) = mem::replace(&mut self.state, State::Closed) {
            let parts = active.http.into_parts();
            let mut stream = parts.io.into_inner();
            // If `read_buf` has bytes, hyper and `RequestFraming` disagree about the end of a request.
            if parts.read_buf.is_empty() && !stream.stream().is_worn_out() {
                self.park(stream, parts.service);
            } else {
                self.state = State::Closing(stream);
            }
        }
        Poll::Ready(())
    }
}

impl<S> Http1<S>
where
    S: HttpService<Incoming, ResBody = PacedBody<Body>, Error = Infallible> + Unpin,
{
    /// Takes the connection from hyper, to send a file.
    fn take_over(&mut self, file: LargeFile) {
        if let State::Active(active) = mem::replace(&mut self.state, State::Closed) {
            let parts = active.http.into_parts();
            let mut stream = parts.io.into_inner();
            stream.put_back(parts.read_buf);
            let file = if self.is_ending {
                file.ending_connection()
            } else {
                file
            };
            let transfer = FileTransfer::new(file, stream.stream(), &self.connection, &self.task);
            self.state = State::Sending(Sending {
                stream,
                service: parts.service,
                transfer: Box::new(transfer),
                must_end: must_end(&self.task),
            });
        }
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
        let must_end = self.must_end.get_or_insert_with(|| must_end(task));
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
                State::Sending(sending) => {
                    let Poll::Ready(sent) = sending.transfer.poll(sending.stream.stream(), cx)
                    else {
                        ready!(sending.must_end.as_mut().poll(cx));
                        self.state = State::Closed;
                        continue;
                    };
                    if let State::Sending(sending) = mem::replace(&mut self.state, State::Closed) {
                        self.go_on(sending, sent);
                    }
                }
                State::Closing(stream) => return Pin::new(stream).poll_shutdown(cx).map(drop),
                State::Closed => return Poll::Ready(()),
            }
        }
    }
}

/// Ready if the response of a task has to end.
fn must_end(task: &RequestTask) -> Pin<Box<dyn Future<Output = ()>>> {
    let task = task.clone();
    Box::pin(async move { task.must_end().await })
}
