//! What of a connection's silence is an upstream's. A client that waits for its answer is not idle, and
//! how long an upstream may take is for `response-timeout` to say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// The upstreams that a connection waits for.
#[derive(Clone)]
pub(super) struct Awaited(Arc<Mutex<State>>);

struct State {
    waits: usize,
    /// When the last one ended.
    ended: Instant,
}

/// An upstream is waited for while this is there.
pub(super) struct Wait(Awaited);

impl Awaited {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            waits: 0,
            ended: Instant::now(),
        })))
    }

    pub(super) fn begin(&self) -> Wait {
        self.state().waits += 1;
        Wait(self.clone())
    }

    /// Since when no upstream is waited for; now, where one is.
    pub(super) fn none_since(&self) -> Instant {
        let state = self.state();
        match state.waits {
            0 => state.ended,
            _ => Instant::now(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waits -= 1;
        state.ended = Instant::now();
    }
}
