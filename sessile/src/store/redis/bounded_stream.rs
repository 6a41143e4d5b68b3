//! A connection to a store that ends when the store exceeds the limits of `reply_limits`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::reply_limits::{ReplyError, ReplyScanner, UnfinishedReplies, UnfinishedShare};
use crate::log_interval::LogInterval;

/// The part of the limits that all connections to a store share.
#[derive(Debug)]
pub(super) struct StoreLimits {
    /// The store's address without passwords.
    store: String,
    unfinished: Arc<UnfinishedReplies>,
    log_interval: LogInterval,
}

/// A stream of bytes in both directions: TCP or TLS.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A stream whose reads fail if a reply exceeds a limit.
pub(super) struct BoundedStream {
    stream: Box<dyn ByteStream>,
    scanner: ReplyScanner,
    unfinished: UnfinishedShare,
    limits: Arc<StoreLimits>,
}

impl StoreLimits {
    pub(super) fn new(store: String) -> Arc<Self> {
        Arc::new(Self {
            store,
            unfinished: Arc::default(),
            log_interval: LogInterval::new(LogInterval::MINUTE),
        })
    }

    fn log(&self, error: ReplyError) {
        if self.log_interval.is_due() {
            tracing::warn!(
                store = self.store,
                %error,
                "closed a connection to the session store because of its reply; check which program \
                 answers at this address"
            );
        }
    }
}

impl BoundedStream {
    pub(super) fn new(stream: Box<dyn ByteStream>, limits: &Arc<StoreLimits>) -> Self {
        Self {
            stream,
            scanner: ReplyScanner::default(),
            unfinished: UnfinishedShare::new(Arc::clone(&limits.unfinished)),
            limits: Arc::clone(limits),
        }
    }

    fn check(&mut self, bytes: &[u8]) -> Result<(), ReplyError> {
        self.scanner.scan(bytes)?;
        self.unfinished.set(self.scanner.weight())
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let checked = self.check(&buf.filled()[before..]);
        Poll::Ready(checked.map_err(|error| {
            // The client must not see the bytes. It takes this kind of error for a lost connection.
            buf.set_filled(before);
            self.limits.log(error);
            io::Error::new(io::ErrorKind::ConnectionAborted, error)
        }))
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
