//! How long one handshake may wait for the shared store.

use std::time::Duration;

use tokio::time::Instant;

/// How long one handshake may still wait for the store, in all of its requests together.
#[derive(Debug)]
pub struct WaitBudget(Duration);

impl WaitBudget {
    pub(super) const fn new(budget: Duration) -> Self {
        Self(budget)
    }

    pub(super) const fn left(&self) -> Duration {
        self.0
    }

    /// Waits for a result, and subtracts the time from the budget.
    pub(super) async fn wait_for<T>(&mut self, result: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let result = result.await;
        self.0 = self.0.saturating_sub(begin.elapsed());
        result
    }
}
