//! The admin listener: plain HTTP for the operator and for Prometheus. It reads metrics, sends commands
//! on a channel, and calls no role.

mod api;
mod command;
mod token;

pub use api::Api;
pub use command::{Command, NoServerUp, ServerChange, UnknownServer, channel};
pub use token::{Token, TokenError};

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::lifecycle::Workers;
use crate::listener::{self, ListenError};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may last; a scraper makes a new one.
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
    /// Ends it when dropped.
    end: DropGuard,
}

impl Admin {
    /// Binds the address and starts answering. `draining`: the order to the roles to stop, over which
    /// it goes on answering.
    ///
    /// # Errors
    /// Where the address cannot be had.
    pub fn start(
        address: SocketAddr,
        registry: Registry,
        draining: CancellationToken,
    ) -> Result<Self, StartError> {
        Self::start_with(address, registry, None, draining)
    }

    /// The same with an API.
    ///
    /// # Errors
    /// Where the address cannot be had.
    pub fn start_with(
        address: SocketAddr,
        registry: Registry,
        api: Option<Api>,
        draining: CancellationToken,
    ) -> Result<Self, StartError> {
        let desk = Desk {
            registry,
            api,
            draining,
        };
        let stop = CancellationToken::new();
        let end = stop.clone().drop_guard();
        let socket = listener::bind(address, 1)?.remove(0);
        let address = socket.address();
        let mut workers = Workers::default();
        workers.spawn("admin", move || async move {
            let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            let desk = Rc::new(desk);
            let accepted = listener::accept(socket, stop.cancelled(), |io, _| {
                let desk = Rc::clone(&desk);
                // Closed at once where there are too many: an operator tries again.
                let Ok(permit) = Arc::clone(&places).try_acquire_owned() else {
                    return;
                };
                tokio::task::spawn_local(async move {
                    let answer = service_fn(|request| {
                        let desk = Rc::clone(&desk);
                        async move { Ok::<_, Infallible>(answer(&desk, request).await) }
                    });
                    // A timer makes hyper drop those who do not finish their request.
                    let served = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(io), answer);
                    let _ = tokio::time::timeout(CONNECTION_DEADLINE, served).await;
                    drop(permit);
                });
            });
            if let Err(error) = accepted.await {
                tracing::error!(%error, "the admin listener cannot listen");
            }
        })?;
        Ok(Self {
            address,
            workers,
            end,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it, once the roles have drained, and waits until it has ended.
    pub fn join(self) {
        drop(self.end);
        self.workers.join();
    }
}

/// What requests are answered from.
struct Desk {
    registry: Registry,
    api: Option<Api>,
    draining: CancellationToken,
}

async fn answer(desk: &Desk, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if let Some(api) = &desk.api
        && request.uri().path().starts_with("/api/")
    {
        return api::answer(api, request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed\n".into(),
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => {
            let api = desk.api.as_ref().map_or("", |_| "/api/balancer\n");
            text(
                StatusCode::OK,
                format!("sessile\n\n/healthz\n/readyz\n/metrics\n{api}").into(),
            )
        }
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => match unready(desk).await {
            None => text(StatusCode::OK, "ready\n".into()),
            Some(reason) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{reason}\n").into(),
            ),
        },
        "/metrics" => metrics(&desk.registry),
        _ => text(StatusCode::NOT_FOUND, "not found\n".into()),
    }
}

/// Why new clients had better go elsewhere; `None`: there is no reason.
async fn unready(desk: &Desk) -> Option<String> {
    if desk.draining.is_cancelled() {
        return Some("draining".to_owned());
    }
    match &desk.api {
        Some(api) => api::unready(api).await,
        None => None,
    }
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let encoder = TextEncoder::new();
    let mut page = Vec::new();
    if let Err(error) = encoder.encode(&registry.gather(), &mut page) {
        let error = format!("metrics cannot be written: {error}\n");
        return text(StatusCode::INTERNAL_SERVER_ERROR, error.into());
    }
    let mut response = Response::new(Full::new(page.into()));
    if let Ok(content_type) = HeaderValue::from_str(encoder.format_type()) {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    response
}

fn text(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
