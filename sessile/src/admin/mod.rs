//! The admin listener: plain HTTP for operators and Prometheus. It reads metrics and sends commands
//! on a channel. It calls no role directly.

mod api;
mod command;
mod overview;
mod token;

pub use api::Api;
pub use command::{Command, NoServerUp, ServerChange, ServerCommand, ServerError, channel};
pub use token::{Token, TokenError};

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use overview::{Farm, Overview};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use sessile_proto::affinity::Source;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::lifecycle::Workers;
use crate::listener::{self, AddressSetting, FairPlaces, ListenError, WhenFull};
use crate::page;

/// Maximum number of connections at once. At this limit, old connections give way.
const MAX_CONNECTIONS: usize = 64;

/// A connection that has been open for longer than this gives way before the others.
const HEALTHY: Duration = Duration::from_secs(1);

/// Maximum duration of a connection. A scraper can open another connection.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(60);

/// Why the admin listener does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("admin: {0}")]
    Listen(#[from] ListenError),
    #[error("admin: cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

/// A running admin listener.
pub struct Admin {
    address: SocketAddr,
    workers: Workers,
    /// Stops the listener when dropped.
    stop_guard: DropGuard,
}

impl Admin {
    /// Binds the address and starts answering. `draining` orders the roles to stop. The admin
    /// listener answers until [`Admin::join`], also while the roles drain.
    ///
    /// # Errors
    ///
    /// The address cannot be bound, or no thread can be started.
    pub fn start(
        address: SocketAddr,
        registry: Registry,
        api: Option<Api>,
        draining: CancellationToken,
    ) -> Result<Self, StartError> {
        let context = Context {
            registry,
            api,
            draining,
        };
        let stop = CancellationToken::new();
        let stop_guard = stop.clone().drop_guard();
        let socket = listener::bind(address, 1, AddressSetting::Admin)?.remove(0);
        let address = socket.address();
        let mut workers = Workers::default();
        workers.spawn("admin", move || async move {
            // Old connections give way, so that idle clients cannot keep health checks out.
            let places = FairPlaces::new(MAX_CONNECTIONS, WhenFull::Newcomer { healthy: HEALTHY });
            let context = Rc::new(context);
            let accepted = listener::accept(socket, stop.cancelled(), |io, peer| {
                let context = Rc::clone(&context);
                let Some(mut place) = places.enter(Source::of(peer.ip())) else {
                    return;
                };
                tokio::task::spawn_local(async move {
                    let answer = service_fn(|request| {
                        let context = Rc::clone(&context);
                        async move { Ok::<_, Infallible>(answer(&context, request).await) }
                    });
                    // The timer lets hyper drop clients that do not finish their request.
                    let served = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(io), answer);
                    tokio::select! {
                        biased;
                        _ = tokio::time::timeout(CONNECTION_DEADLINE, served) => {}
                        () = place.displaced() => {}
                    }
                });
            });
            if let Err(error) = accepted.await {
                tracing::error!(%error, "cannot start the admin listener");
            }
        })?;
        Ok(Self {
            address,
            workers,
            stop_guard,
        })
    }

    /// The address of the listener.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the listener and waits for its thread. Call this after the roles have drained.
    pub fn join(self) {
        drop(self.stop_guard);
        self.workers.join();
    }
}

/// The data behind the answers.
struct Context {
    registry: Registry,
    api: Option<Api>,
    draining: CancellationToken,
}

async fn answer(context: &Context, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if let Some(api) = &context.api
        && request.uri().path().starts_with("/api/")
    {
        return api::answer(api, request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    match request.uri().path() {
        "/" => {
            let (not_ready, farm) = tokio::join!(not_ready_reason(context), farm(context));
            let overview = Overview::new(not_ready, &context.registry, &farm);
            if page::accepts_html(request.headers()) {
                overview.html().map(Full::new)
            } else {
                let mut response = text(StatusCode::OK, overview.text());
                page::mark_as_negotiated(response.headers_mut());
                response
            }
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match not_ready_reason(context).await {
            None => text(StatusCode::OK, "ready\n"),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        "/metrics" => metrics(&context.registry),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// Why the process should get no new clients; `None` if it is ready.
async fn not_ready_reason(context: &Context) -> Option<String> {
    if context.draining.is_cancelled() {
        return Some("draining".to_owned());
    }
    match &context.api {
        Some(api) => api::not_ready_reason(api).await,
        None => None,
    }
}

/// The servers that the overview is about.
async fn farm(context: &Context) -> Farm {
    match &context.api {
        Some(api) => Farm::Balancer(api::balancer_state(api).await),
        None => Farm::Process,
    }
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(page) => respond(StatusCode::OK, TEXT_FORMAT, page),
        Err(error) => {
            let error = format!("metrics cannot be written: {error}\n");
            text(StatusCode::INTERNAL_SERVER_ERROR, error)
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
