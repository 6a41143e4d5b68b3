//! The count of open connections, up to `connection.max`.

use prometheus::{IntCounter, IntGauge};

/// The open connections of a role and their limit. Clones share the counters.
#[derive(Clone)]
pub struct ConnectionCount {
    pub max: usize,
    pub open: IntGauge,
    /// Connections that were closed at once because there were `max`.
    pub refused: IntCounter,
    /// All other connections, for a role that has this metric.
    pub accepted: Option<IntCounter>,
}

impl ConnectionCount {
    /// Counts one more connection, unless the limit is reached.
    #[must_use]
    pub fn try_open(&self) -> Option<OpenConnection> {
        if usize::try_from(self.open.get()).is_ok_and(|open| open >= self.max) {
            self.refused.inc();
            return None;
        }
        if let Some(accepted) = &self.accepted {
            accepted.inc();
        }
        Some(OpenConnection::count(&self.open))
    }
}

/// Counts a connection as open until it is dropped.
pub struct OpenConnection(IntGauge);

impl OpenConnection {
    pub(crate) fn count(open: &IntGauge) -> Self {
        open.inc();
        Self(open.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
