//! Hands a request to an upstream and its response back, bodies as streams, over HTTP/1.1. What goes
//! on of a message's head is [`head`]'s; how long either side may be silent is [`body`]'s. An upstream
//! that fails costs a 502, 503 or 504, or cuts the response off; it never makes one look complete.

mod body;
mod connect;
mod head;
mod slot;

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus::IntCounter;
use tokio::time::{Instant, sleep_until};

use super::metrics::UpstreamResults;
use super::pending_upstreams::PendingUpstreams;
use crate::config;
use body::{Clock, Download, Upload};
use connect::Connector;
use slot::UpstreamSlot;

/// Most requests that a worker has at one upstream at once; a further one is answered 503.
const MAX_REQUESTS: usize = 1024;

/// Most connections that a worker keeps open to an upstream with nothing to do.
const MAX_IDLE: usize = 32;

/// How long it keeps one. Less than the five seconds after which widely used servers (Apache, Node.js)
/// close theirs: a request that crosses with that is lost, and not every request may be sent twice.
const IDLE: Duration = Duration::from_secs(4);

/// Most bytes of a response's head.
const MAX_HEAD: usize = 64 * 1024;

/// One worker's way to an upstream.
pub(super) struct Upstream {
    name: String,
    client: Client<Connector, Upload>,
    response_timeout: Duration,
    results: Arc<UpstreamResults>,
    /// Whether the last request found it gone; said once, not for each request.
    lost: Cell<bool>,
}

/// Why there is no response to hand back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// No server takes a connection.
    Unreachable,
    /// The connection ended before there was a response.
    Closed,
    /// What came back is no response that can be handed on.
    Invalid,
    /// Nothing came for too long.
    Silent,
    /// The client did not send the whole of its request.
    Client,
}

impl Upstream {
    pub(super) fn new(config: &config::Upstream, results: UpstreamResults) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_HEAD)
            .set_host(false)
            .build(Connector::new(config));
        Self {
            name: config.name.clone(),
            client,
            response_timeout: config.response_timeout,
            results: Arc::new(results),
            lost: Cell::new(false),
        }
    }

    /// The upstream's response to a request of `client`'s, or the status that says why there is none.
    pub(super) async fn forward(
        &self,
        client: IpAddr,
        pending: &PendingUpstreams,
        request: Request<Incoming>,
    ) -> Result<Response<Download>, StatusCode> {
        let (head, body) = request.into_parts();
        let head = head::to_upstream(head, client, body.is_end_stream())?;
        let Some(mut slot) = self.take_slot() else {
            self.results.overloaded.inc();
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        };
        let answered = self.exchange(head, body, pending).await;
        let answered = answered.and_then(|mut response| {
            head::to_client(&mut response).map_err(|head::Unfit| Failure::Invalid)?;
            Ok(response)
        });
        self.say_whether_lost(answered.as_ref().err().copied());
        match answered {
            Ok(response) => {
                let (timeout, pending) = (self.response_timeout, pending.clone());
                Ok(response.map(|body| Download::new(body, timeout, pending, slot)))
            }
            Err(failure) => {
                slot.end(|results| failure.counter(results));
                Err(failure.status())
            }
        }
    }

    fn take_slot(&self) -> Option<UpstreamSlot> {
        UpstreamSlot::take(&self.results, MAX_REQUESTS)
    }

    async fn exchange(
        &self,
        head: Parts,
        body: Incoming,
        pending: &PendingUpstreams,
    ) -> Result<Response<Incoming>, Failure> {
        // The upstream may close a connection while a request is on its way to it. One that may be
        // sent twice is (RFC 9110, 9.2.2); the client library does the same for one not yet sent.
        let repeatable = head.method.is_idempotent() && body.is_end_stream();
        let again = repeatable.then(|| head.clone());
        match (self.attempt(head, Some(body), pending).await, again) {
            (Err(Failure::Closed), Some(head)) => self.attempt(head, None, pending).await,
            (answered, _) => answered,
        }
    }

    async fn attempt(
        &self,
        head: Parts,
        body: Option<Incoming>,
        pending: &PendingUpstreams,
    ) -> Result<Response<Incoming>, Failure> {
        let clock = Clock::start(pending);
        let body = Upload::new(body, &clock);
        let mut response = pin!(self.client.request(Request::from_parts(head, body)));
        loop {
            let until = clock.silent_since() + self.response_timeout;
            tokio::select! {
                answered = &mut response => {
                    return answered.map_err(|error| {
                        tracing::debug!(upstream = self.name, error = chain(&error), "no response");
                        Failure::of(&error, &clock)
                    });
                }
                () = sleep_until(until) => {
                    if clock.silent_since() + self.response_timeout <= Instant::now() {
                        return Err(Failure::Silent);
                    }
                }
            }
        }
    }

    fn say_whether_lost(&self, failure: Option<Failure>) {
        let upstream = &self.name;
        match failure {
            Some(Failure::Client) => {}
            Some(failure) => {
                if !self.lost.replace(true) {
                    let reason = failure.reason();
                    tracing::warn!(upstream, reason, "an upstream does not answer");
                }
            }
            None => {
                if self.lost.replace(false) {
                    tracing::info!(upstream, "an upstream answers again");
                }
            }
        }
    }
}

impl Failure {
    fn of(error: &legacy::Error, clock: &Clock) -> Self {
        if clock.was_cut() {
            return Self::Client;
        }
        let timed_out = causes(error).any(|cause| {
            let io = cause.downcast_ref::<io::Error>();
            io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut)
        });
        if timed_out {
            Self::Silent
        } else if error.is_connect() {
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
        }
    }

    const fn counter(self, results: &UpstreamResults) -> &IntCounter {
        match self {
            Self::Unreachable => &results.unreachable,
            Self::Closed => &results.closed,
            Self::Invalid => &results.invalid,
            Self::Silent => &results.timeout,
            Self::Client => &results.abandoned,
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Unreachable => "no server takes a connection",
            Self::Closed => "it closes the connection",
            Self::Invalid => "what it answers is no HTTP response that can be handed on",
            Self::Silent => "nothing came in time",
            Self::Client => "the client went away",
        }
    }
}

/// An error and what it stems from.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn chain(error: &legacy::Error) -> String {
    let causes = causes(error).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Keyring;
    use crate::serve::Metrics;
    use crate::store::Store;

    #[test]
    fn an_upstream_takes_so_many_requests_at_once_and_no_more() {
        let (registry, everything) = (prometheus::Registry::new(), config::Config::default());
        let keys = Keyring::ephemeral(everything.session.lifetime).expect("a key");
        let store = Store::new(&everything, &Arc::new(keys), 1, &registry, 0).expect("a store");
        let metrics = Metrics::register(&registry, "web1", &store, 1).expect("its first server");
        let app = config::Upstream {
            name: "app".to_owned(),
            servers: vec!["127.0.0.1:9".to_owned()],
            connect_timeout: config::DEFAULT_CONNECT_TIMEOUT,
            response_timeout: config::DEFAULT_RESPONSE_TIMEOUT,
        };
        let upstream = Upstream::new(&app, metrics.upstream("app"));
        let mut slots: Vec<_> = (0..MAX_REQUESTS).map(|_| upstream.take_slot()).collect();
        assert!(slots.iter().all(Option::is_some));
        assert!(upstream.take_slot().is_none());
        slots.pop();
        assert!(upstream.take_slot().is_some());
    }
}
