//! The state of a stream that other code can watch.

use std::cell::{Cell, Ref, RefCell};

use sessile_proto::resumption::StoreKey;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The state of a stream that stays readable after hyper has taken the stream.
pub struct Status {
    last_activity: Cell<Instant>,
    pub(super) closed_cleanly: Cell<bool>,
    /// True if a shutdown waits until the client closes the connection.
    pub(super) waits_for_client: Cell<bool>,
    pub(super) is_blocked: Cell<bool>,
    pub(super) last_output: Cell<LastOutput>,
    /// True if the last flush of an HTTP/2 connection sent nothing.
    pub(super) holds_output: Cell<bool>,
    completion: Cell<Completion>,
    completed: Notify,
    owned: RefCell<Vec<StoreKey>>,
}

/// Whether the next output is the last of the connection. The last output leaves in one write with
/// close_notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastOutput {
    /// More responses may follow.
    Unknown,
    /// The next response is the last one.
    Announced,
    /// The response is complete and waits for the shutdown, after one flush.
    Flushed,
    /// The same after two flushes.
    FlushedTwice,
}

/// The progress of an accepted connection's handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The client's Finished is missing. All requests so far came as early data and can be replays.
    UnderWay,
    Done,
    /// The client's Finished did not come in time.
    Deadline,
    /// rustls refused a message of the client.
    Refused,
}

impl Status {
    pub(super) fn new(completion: Completion, closed_cleanly: bool, owned: Vec<StoreKey>) -> Self {
        Self {
            last_activity: Cell::new(Instant::now()),
            closed_cleanly: Cell::new(closed_cleanly),
            waits_for_client: Cell::new(true),
            is_blocked: Cell::new(false),
            last_output: Cell::new(LastOutput::Unknown),
            holds_output: Cell::new(false),
            completion: Cell::new(completion),
            completed: Notify::new(),
            owned: RefCell::new(owned),
        }
    }

    /// The progress of the handshake.
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

    /// Ends the handshake. `owned` lists the stored sessions that belong to the connection.
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

    /// When the stream last read or wrote bytes.
    #[must_use]
    pub const fn last_activity(&self) -> Instant {
        self.last_activity.get()
    }

    /// True if pending output does not fit into the socket's send buffer.
    #[must_use]
    pub const fn is_blocked(&self) -> bool {
        self.is_blocked.get()
    }

    /// True if output of an HTTP/2 connection waits for another flush. True once for each such output.
    #[must_use]
    pub fn take_held_output(&self) -> bool {
        self.holds_output.take()
    }

    /// True if the client sent close_notify.
    #[must_use]
    pub const fn closed_cleanly(&self) -> bool {
        self.closed_cleanly.get()
    }

    /// Lets a shutdown end at once, without a wait for the client.
    ///
    /// Use this only if no response is in flight: a reset could discard it.
    pub fn end_without_lingering(&self) {
        self.waits_for_client.set(false);
    }

    /// Announces that the connection ends after the next response, and that all of this response is in memory.
    pub fn announce_last_response(&self) {
        self.last_output.set(LastOutput::Announced);
    }

    pub(super) fn touch(&self) {
        self.last_activity.set(Instant::now());
    }
}
