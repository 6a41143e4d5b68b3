//! Connects to the first available server of an upstream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use crate::config;

/// Connects to the servers of an upstream in their configured order. The URI of a request is ignored.
#[derive(Clone)]
pub(super) struct Connector {
    servers: Arc<[String]>,
    timeout: Duration,
}

impl Connector {
    pub(super) fn new(config: &config::Upstream) -> Self {
        Self {
            servers: config.servers.as_slice().into(),
            timeout: config.connect_timeout,
        }
    }

    /// Connects to the first available server.
    ///
    /// # Errors
    /// No server accepts a connection. The error is that of the last server.
    async fn connect(self) -> io::Result<TcpStream> {
        let mut last_error = io::Error::from(io::ErrorKind::NotFound);
        for server in &*self.servers {
            // `connect` resolves a host name each time, because its address can change.
            match timeout(self.timeout, TcpStream::connect(server)).await {
                Ok(Ok(io)) => {
                    // Nagle's algorithm could delay a request's body. The proxy also works without
                    // `nodelay`, so an error is ignored.
                    let _ = io.set_nodelay(true);
                    return Ok(io);
                }
                Ok(Err(error)) => last_error = error,
                Err(_) => last_error = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last_error)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.clone().connect();
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}
