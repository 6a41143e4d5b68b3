//! What is known of a stream while something else reads and writes it.

use std::cell::{Cell, Ref, RefCell};

use sessile_proto::resumption::StoreKey;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What is known of a stream from outside while something else reads and writes it.
pub struct Status {
    last_activity: Cell<Instant>,
    closed_cleanly: Cell<bool>,
    lingers: Cell<bool>,
    blocked: Cell<bool>,
    completion: Cell<Completion>,
    completed: Notify,
    owned: RefCell<Vec<StoreKey>>,
}

/// How far the handshake of an accepted connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The client has not finished. What it has sent so far was early data, which it may have sent
    /// elsewhere too.
    UnderWay,
    Done,
    /// The client took too long.
    Deadline,
    /// What the client sent was refused.
    Refused,
}

impl Status {
    pub(super) fn new(completion: Completion, closed_cleanly: bool, owned: Vec<StoreKey>) -> Self {
        Self {
            last_activity: Cell::new(Instant::now()),
            closed_cleanly: Cell::new(closed_cleanly),
            lingers: Cell::new(true),
            blocked: Cell::new(false),
            completion: Cell::new(completion),
            completed: Notify::new(),
            owned: RefCell::new(owned),
        }
    }

    /// How far the handshake is.
    #[must_use]
    pub const fn completion(&self) -> Completion {
        self.completion.get()
    }

    /// Waits until the handshake is done or has failed.
    pub async fn completed(&self) {
        while self.completion() == Completion::UnderWay {
            self.completed.notified().await;
        }
    }

    /// The stored sessions that belong to the connection.
    #[must_use]
    pub fn owned(&self) -> Ref<'_, [StoreKey]> {
        Ref::map(self.owned.borrow(), Vec::as_slice)
    }

    /// The client has finished, and these sessions are the connection's own.
    pub(super) fn complete(&self, owned: Vec<StoreKey>) {
        *self.owned.borrow_mut() = owned;
        self.end(Completion::Done);
    }

    pub(super) fn end(&self, completion: Completion) {
        if self.completion() == Completion::UnderWay {
            self.completion.set(completion);
            self.completed.notify_one();
        }
    }

    /// When a byte last passed, either way.
    #[must_use]
    pub const fn last_activity(&self) -> Instant {
        self.last_activity.get()
    }

    /// True if a shutdown waits for the client to end its side.
    pub(super) const fn lingers(&self) -> bool {
        self.lingers.get()
    }

    pub(super) fn set_blocked(&self, is_blocked: bool) {
        self.blocked.set(is_blocked);
    }

    pub(super) fn set_closed_cleanly(&self, closed_cleanly: bool) {
        self.closed_cleanly.set(closed_cleanly);
    }

    /// Whether bytes wait for the client to take them.
    #[must_use]
    pub const fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Whether the client has ended the connection with close_notify.
    #[must_use]
    pub const fn closed_cleanly(&self) -> bool {
        self.closed_cleanly.get()
    }

    /// Makes a shutdown end at once, whether or not the client ends its side too: for connections
    /// on which nothing is on its way.
    pub fn end_without_lingering(&self) {
        self.lingers.set(false);
    }

    pub(super) fn touch(&self) {
        self.last_activity.set(Instant::now());
    }
}
