//! A handshake that goes on below its stream: early data is answered before the client has finished.
//! New tickets leave after they are stored.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use tokio::time::Sleep;

use super::handshake::{HANDSHAKE_DEADLINE, Handshaking};
use super::status::Status;

pub(super) struct EarlyHandshake {
    /// Until the client has finished.
    handshaking: Option<Handshaking>,
    /// Runs from then until the store has the new sessions. Nothing is sent meanwhile.
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

    /// To be called whenever the library has taken something in.
    pub(super) fn advance(&mut self, tls: &ServerConnection, status: &Status) {
        if tls.is_handshaking() {
            return;
        }
        if let Some(mut handshaking) = self.handshaking.take() {
            handshaking.observe(tls);
            status.complete(handshaking.owned());
            self.storing = Some(Box::pin(async move { handshaking.store(true).await }));
        }
    }

    /// Whether something may be sent.
    pub(super) fn poll_stored(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(storing) = &mut self.storing {
            ready!(storing.as_mut().poll(cx));
            self.storing = None;
        }
        Poll::Ready(())
    }

    /// Whether the client has finished and its sessions are stored.
    pub(super) const fn is_over(&self) -> bool {
        self.handshaking.is_none() && self.storing.is_none()
    }

    /// To be asked where the client has nothing to say.
    pub(super) fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.handshaking {
            Some(_) => self.deadline.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
