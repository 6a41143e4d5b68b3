//! Connections to an upstream: the first of its servers that takes one.

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

/// Connects to an upstream's servers in their order, whatever URI it is asked for.
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

    /// The last server's error where none takes a connection.
    async fn connect(self) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for server in &*self.servers {
            // A host's name is looked up each time: it may have moved.
            match timeout(self.timeout, TcpStream::connect(server)).await {
                Ok(Ok(io)) => {
                    // Without it a request's body may wait for an acknowledgement. Slower is not
                    // broken.
                    let _ = io.set_nodelay(true);
                    return Ok(io);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
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
