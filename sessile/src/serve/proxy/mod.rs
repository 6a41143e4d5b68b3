//! Forwards requests to upstreams over HTTP/1.1, and streams bodies in both directions.
//!
//! [`head`] rewrites the headers. [`exchange`] sends a request and receives the head of its response, on the
//! task of the request. If an upstream fails before its response, the client gets 502, 503 or 504. If an
//! upstream fails later, the response is cut off, because a truncated response must not look complete.

mod connections;
mod download;
mod exchange;
mod failure;
mod head;
mod silence;
mod slots;
mod upload;

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use sessile_proto::affinity::Source;
use tokio::time::{Instant, timeout_at};

use super::metrics::UpstreamResults;
use super::pending_upstreams::PendingUpstreams;
use super::request_task::RequestEnd;
use crate::config;
use connections::{Connection, Connections};
pub(super) use download::Download;
use download::{Link, ResponseBody};
use exchange::{Broken, UpstreamExchange, UpstreamHead};
use failure::Failure;
pub(super) use head::ClientAddress;
use silence::Silence;
use slots::{SlotPool, UpstreamSlot};
use upload::Upload;

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
    ) -> Result<Response<ResponseBody>, StatusCode> {
        let (head, body) = request.into_parts();
        let written = head::to_upstream(&head, client, body.is_end_stream())?;
        let mut slot = self
            .take_slot(client.ip, &end)
            .ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
        let mut upload = Upload::new(written, body, self.body_timeout);
        let now = Instant::now();
        let mut silence = Silence::begin(now, self.response_timeout, pending);
        let answer = tokio::select! {
            biased;
            answer = self.answer(&mut upload, &mut silence, &head.method, now) => answer,
            () = end.ordered() => Err(Failure::Displaced),
        };
        self.log_change(answer.as_ref().err().copied());
        match answer {
            Ok((head, connection)) => {
                let connections = Rc::clone(&self.connections);
                let link = Link::new(connection, connections, upload, head.keeps_connection);
                let body = Download::new(head.body, link, silence, slot);
                Ok(head.response.map(|()| body.into_body()))
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

    /// Sends a request over an idle connection, or else over a new connection.
    async fn answer(
        &self,
        upload: &mut Upload,
        silence: &mut Silence,
        method: &Method,
        now: Instant,
    ) -> Result<(UpstreamHead, Connection), Failure> {
        let is_head = *method == Method::HEAD;
        while let Some(mut connection) = self.connections.take_idle(now) {
            let exchange = UpstreamExchange::new(&mut connection, upload, silence, is_head);
            match exchange.head().await {
                // The next idle connection can take the request.
                Err(Broken::Unanswered) if upload.is_unsent() => upload.rewind(),
                // The upstream may close an idle connection while a request is on its way. An idempotent
                // request is sent again (RFC 9110, 9.2.2).
                Err(Broken::Unanswered) if method.is_idempotent() && upload.can_rewind() => {
                    // The other idle connections may be closed too.
                    self.connections.close_idle();
                    upload.rewind();
                    silence.restart();
                }
                answer => return Ok((answer?, connection)),
            }
        }
        // Box this future, because few requests need a new connection.
        let mut connection = Box::pin(self.connect(silence)).await?;
        let exchange = UpstreamExchange::new(&mut connection, upload, silence, is_head);
        Ok((exchange.head().await?, connection))
    }

    /// Connects. `response-timeout` also limits this time, because the upstream is silent meanwhile.
    async fn connect(&self, silence: &mut Silence) -> Result<Connection, Failure> {
        let connected = timeout_at(silence.go_on(), self.connections.connect()).await;
        let connected = connected.unwrap_or_else(|elapsed| Err(elapsed.into()));
        connected.map_err(|error| self.connect_failure(&error))
    }

    fn connect_failure(&self, error: &io::Error) -> Failure {
        tracing::debug!(upstream = self.name, %error, "no connection");
        if error.kind() == io::ErrorKind::TimedOut {
            Failure::Silent
        } else {
            Failure::Unreachable
        }
    }

    /// Logs if the upstream went down or came back.
    fn log_change(&self, failure: Option<Failure>) {
        let upstream = &self.name;
        match failure {
            Some(failure) if failure.is_of_upstream() => {
                if !self.is_down.replace(true) {
                    let reason = failure.reason();
                    tracing::warn!(upstream, reason, "an upstream does not answer");
                }
            }
            Some(_) => {}
            None => {
                if self.is_down.replace(false) {
                    tracing::info!(upstream, "an upstream answers again");
                }
            }
        }
    }
}
