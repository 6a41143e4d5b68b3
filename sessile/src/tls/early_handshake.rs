//! The rest of a handshake whose early data was accepted.
//!
//! The server answers early data before the client's Finished. New tickets leave after they are stored.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::Sleep;

use super::connection::Connection;
use super::handshake::{HANDSHAKE_DEADLINE, Handshaking};
use super::status::Status;

pub(super) struct EarlyHandshake {
    /// `None` after the client's Finished.
    handshaking: Option<Handshaking>,
    /// Stores the new sessions. Nothing is sent before all of them are stored.
    storing: Option<Pin<Box<dyn Future<Output = ()>>>>,
    deadline: Pin<Box<Sleep>>,
}

impl EarlyHandshake {
    pub(super) fn new(handshaking: Handshaking) -> Self {
        Self {
            handshaking: Some(handshaking),
            storing: None,
            deadline: Box::pin(tokio::time::sleep(HANDSHAKE_DEADLINE)),
        }
    }

    /// Starts to store the new sessions if the handshake is done. Call this after rustls processed input.
    pub(super) fn advance(&mut self, tls: &Connection, status: &Status) {
        if tls.is_handshaking() {
            return;
        }
        if let Some(mut handshaking) = self.handshaking.take() {
            handshaking.observe(tls);
            let owned = handshaking.resumption.lock().owned();
            status.complete(owned);
            self.storing = Some(Box::pin(async move { handshaking.store(true).await }));
        }
    }

    /// Ready if all new sessions are stored, so that bytes may be sent.
    pub(super) fn poll_stored(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(storing) = &mut self.storing {
            ready!(storing.as_mut().poll(cx));
            self.storing = None;
        }
        Poll::Ready(())
    }

    /// True if the handshake is done and its sessions are stored.
    pub(super) const fn is_finished(&self) -> bool {
        self.handshaking.is_none() && self.storing.is_none()
    }

    /// Ready if the client's Finished is late. Call this if the client sent nothing.
    pub(super) fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.handshaking {
            Some(_) => self.deadline.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
