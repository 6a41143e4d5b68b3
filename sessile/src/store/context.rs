//! The data of one handshake that the store needs: keys, time, and how long the handshake may still
//! wait.

use std::sync::Arc;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::keys::Schedule;
use tokio::time::Instant;

/// One handshake, as the store sees it.
pub struct StoreContext {
    pub schedule: Arc<Schedule>,
    /// When the handshake began.
    pub now: Time,
    /// How long the handshake may still wait for the store, over all requests together.
    pub(super) budget: Duration,
}

impl StoreContext {
    /// Waits for a result, and subtracts the time from the budget.
    pub(super) async fn wait_for<T>(&mut self, result: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let result = result.await;
        self.budget = self.budget.saturating_sub(begin.elapsed());
        result
    }
}
