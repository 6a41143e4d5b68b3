//! Forwards requests to upstreams over HTTP/1.1, and streams bodies in both directions.
//!
//! [`head`] rewrites the headers. [`upload`] and [`download`] limit the silence of an upstream. If an
//! upstream fails before its response, the client gets 502, 503 or 504. If an upstream fails later, the
//! response is cut off, because a truncated response must not look complete.

mod connections;
mod download;
mod head;
mod slots;
mod upload;

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use prometheus::IntCounter;
use sessile_proto::affinity::Source;
use tokio::time::{Instant, sleep_until};

use super::metrics::UpstreamResults;
use super::pending_upstreams::PendingUpstreams;
use super::request_task::RequestEnd;
use crate::config;
use connections::{BusyConnection, Connections, SendError};
pub(super) use download::Download;
pub(super) use head::ClientAddress;
use slots::{SlotPool, UpstreamSlot};
use upload::{SilenceClock, Upload};

/// Most concurrent requests of a worker at one upstream.
const MAX_REQUESTS: usize = 1024;

/// The HTTP client of one worker for one upstream.
pub(super) struct Upstream {
    name: String,
    connections: Rc<Connections>,
    response_timeout: Duration,
    /// `connection.body-timeout`.
    body_timeout: Duration,
    slots: Rc<SlotPool>,
    /// True if the last request failed. A failure is logged once, not for each request.
    is_down: Cell<bool>,
    /// Becomes true when no slot is free, and false when half of the slots are free again.
    is_full: Cell<bool>,
}

/// Why an upstream gave no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// No server accepts a connection.
    Unreachable,
    /// The connection ended before a response.
    Closed,
    /// The response is not HTTP, or its framing cannot be forwarded.
    Invalid,
    /// The upstream sent nothing for `response-timeout`.
    Silent,
    /// The client did not send its complete request.
    Client,
    /// The client sent no byte of its request's body for `connection.body-timeout`.
    Stalled,
    /// The slot of the request went to a source with fewer slots.
    Displaced,
}

impl Upstream {
    pub(super) fn new(
        config: &config::Upstream,
        body_timeout: Duration,
        results: UpstreamResults,
    ) -> Self {
        Self {
            name: config.name.clone(),
            connections: Connections::new(config),
            response_timeout: config.response_timeout,
            body_timeout,
            slots: SlotPool::new(MAX_REQUESTS, results),
            is_down: Cell::new(false),
            is_full: Cell::new(false),
        }
    }

    /// Forwards a request of `client`, and returns the upstream's response.
    ///
    /// # Errors
    /// The status for the client. 400, 408 and 501 are faults of the request. 502, 503 and 504 are faults
    /// of the upstream.
    pub(super) async fn forward(
        &self,
        client: &ClientAddress,
        pending: &PendingUpstreams,
        request: Request<Incoming>,
        end: RequestEnd,
    ) -> Result<Response<Download>, StatusCode> {
        let (head, body) = request.into_parts();
        let head = head::to_upstream(head, client, body.is_end_stream())?;
        let mut slot = self
            .take_slot(client.ip, &end)
            .ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
        let exchange = self.exchange(head, body, pending);
        let answer = tokio::select! {
            biased;
            answer = exchange => answer.and_then(|(mut response, connection)| {
                match head::to_client(&mut response) {
                    Ok(()) => Ok((response, connection)),
                    Err(head::InvalidFraming) => {
                        connection.close();
                        Err(Failure::Invalid)
                    }
                }
            }),
            () = end.ordered() => Err(Failure::Displaced),
        };
        self.log_change(answer.as_ref().err().copied());
        match answer {
            Ok((response, connection)) => {
                let timeout = self.response_timeout;
                let pending = pending.clone();
                Ok(response.map(|body| Download::new(body, connection, timeout, pending, slot)))
            }
            Err(failure) => {
                slot.end(|results| failure.counter(results));
                Err(failure.status())
            }
        }
    }

    fn take_slot(&self, client: IpAddr, end: &RequestEnd) -> Option<UpstreamSlot> {
        let slot = self.slots.take(Source::of(client), end.clone());
        let taken = self.slots.taken();
        if taken >= MAX_REQUESTS && !self.is_full.replace(true) {
            let upstream = &self.name;
            tracing::warn!(
                upstream,
                requests = taken,
                "an upstream has no free slot: clients with many requests lose some; \
                 see sessile_upstream_requests_total"
            );
        } else if taken <= MAX_REQUESTS / 2 {
            self.is_full.set(false);
        }
        slot
    }

    async fn exchange(
        &self,
        mut head: Parts,
        body: Incoming,
        pending: &PendingUpstreams,
    ) -> Result<(Response<Incoming>, BusyConnection), Failure> {
        // The upstream may close an idle connection while a request is on its way. An idempotent request is
        // sent again (RFC 9110, 9.2.2).
        let is_retryable = head.method.is_idempotent() && body.is_end_stream();
        let mut retry_head = is_retryable.then(|| head.clone());
        let mut body = Some(body);
        loop {
            let answer = self.attempt(head, body.take(), pending).await;
            head = match (&answer, retry_head.take()) {
                (Err(Failure::Closed), Some(head)) => {
                    // The other idle connections may be closed too.
                    self.connections.close_idle();
                    head
                }
                _ => return answer,
            };
        }
    }

    async fn attempt(
        &self,
        head: Parts,
        body: Option<Incoming>,
        pending: &PendingUpstreams,
    ) -> Result<(Response<Incoming>, BusyConnection), Failure> {
        let clock = SilenceClock::start(pending);
        let body = Upload::new(body, &clock, self.body_timeout);
        let mut answer = pin!(self.connections.send(Request::from_parts(head, body)));
        loop {
            let deadline = clock.silent_since() + self.response_timeout;
            tokio::select! {
                // Most upstreams answer before the deadline.
                biased;
                answer = &mut answer => {
                    return answer.map_err(|error| {
                        tracing::debug!(upstream = self.name, error = causes_text(&error), "no response");
                        Failure::of(&error, &clock)
                    });
                }
                () = sleep_until(deadline) => {
                    // The deadline moves if the proxy waited for the client meanwhile.
                    if clock.silent_since() + self.response_timeout <= Instant::now() {
                        return Err(Failure::Silent);
                    }
                }
            }
        }
    }

    /// Logs if the upstream went down or came back.
    fn log_change(&self, failure: Option<Failure>) {
        let upstream = &self.name;
        match failure {
            Some(Failure::Client | Failure::Stalled | Failure::Displaced) => {}
            Some(failure) => {
                if !self.is_down.replace(true) {
                    let reason = failure.reason();
                    tracing::warn!(upstream, reason, "an upstream does not answer");
                }
            }
            None => {
                if self.is_down.replace(false) {
                    tracing::info!(upstream, "an upstream answers again");
                }
            }
        }
    }
}

impl Failure {
    fn of(error: &SendError, clock: &SilenceClock) -> Self {
        if clock.client_aborted() {
            return Self::Client;
        }
        if clock.client_stalled() {
            return Self::Stalled;
        }
        let timed_out = causes(error).any(|cause| {
            let io = cause.downcast_ref::<io::Error>();
            io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut)
        });
        if timed_out {
            Self::Silent
        } else if matches!(error, SendError::Connect(_)) {
            Self::Unreachable
        } else if causes(error)
            .filter_map(|cause| cause.downcast_ref::<hyper::Error>())
            .any(hyper::Error::is_parse)
        {
            Self::Invalid
        } else {
            Self::Closed
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::Unreachable | Self::Closed | Self::Invalid => StatusCode::BAD_GATEWAY,
            Self::Silent => StatusCode::GATEWAY_TIMEOUT,
            Self::Client => StatusCode::BAD_REQUEST,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::Displaced => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    const fn counter(self, results: &UpstreamResults) -> &IntCounter {
        match self {
            Self::Unreachable => &results.unreachable,
            Self::Closed => &results.closed,
            Self::Invalid => &results.invalid,
            Self::Silent => &results.timeout,
            Self::Client => &results.abandoned,
            Self::Stalled => &results.stalled,
            Self::Displaced => &results.displaced,
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Unreachable => "no server accepts a connection",
            Self::Closed => "it closes the connection before it answers",
            Self::Invalid => "its answer is not HTTP, or cannot be forwarded",
            Self::Silent => "it sent nothing within response-timeout",
            Self::Client => "the client closed the connection",
            Self::Stalled => "the client stopped sending",
            Self::Displaced => "another client needed the slot",
        }
    }
}

/// An error and its sources, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn causes_text(error: &SendError) -> String {
    causes(error)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
