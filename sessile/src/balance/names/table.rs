//! The state of the DNS names: their last answers, their failures and their next lookups.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::name_resolution::{FoundServer, MAX_SERVERS, NameLookups};
use tokio::sync::watch;

use super::super::metrics::{LookupCounters, LookupResult};
use super::resolver::{Answer, LookupError};
use crate::clock;
use crate::config::ServerAddress;
use crate::locks::locked;

/// The state of all names.
pub(in crate::balance) struct Names {
    by_name: Mutex<BTreeMap<ServerAddress, NameState>>,
    /// A change asks each task to look its name up now.
    repeat: watch::Sender<()>,
    lookups: LookupCounters,
}

/// The state of one name.
#[derive(Default)]
struct NameState {
    lookups: NameLookups,
    failure: Option<LookupFailure>,
}

/// Lookups that failed in a row.
#[derive(Clone)]
pub(in crate::balance) struct LookupFailure {
    /// The error of the last lookup.
    pub(in crate::balance) error: String,
    /// The time of the first failed lookup.
    pub(in crate::balance) since: Time,
}

impl Names {
    pub(in crate::balance) fn new(lookups: LookupCounters) -> Self {
        Self {
            by_name: Mutex::default(),
            repeat: watch::Sender::new(()),
            lookups,
        }
    }

    /// Asks all tasks to look their names up now.
    pub(in crate::balance) fn repeat_lookups(&self) {
        self.repeat.send_replace(());
    }

    /// Notices when lookups are to be repeated.
    pub(super) fn repeat_requests(&self) -> watch::Receiver<()> {
        self.repeat.subscribe()
    }

    /// The failure of the last lookups of a name. `None` if the last lookup had an answer.
    pub(in crate::balance) fn failure(&self, name: &ServerAddress) -> Option<LookupFailure> {
        locked(&self.by_name).get(name)?.failure.clone()
    }

    /// The time until the next lookup of a name.
    pub(super) fn wait(&self, name: &ServerAddress) -> Duration {
        let by_name = locked(&self.by_name);
        by_name
            .get(name)
            .map_or(Duration::ZERO, |state| state.lookups.wait())
    }

    /// The servers of the last answer.
    pub(super) fn servers(&self, name: &ServerAddress) -> Vec<FoundServer> {
        let by_name = locked(&self.by_name);
        by_name
            .get(name)
            .map_or_else(Vec::new, |state| state.lookups.servers().to_vec())
    }

    /// Forgets a name that the configuration does not have any more.
    pub(super) fn forget(&self, name: &ServerAddress) {
        locked(&self.by_name).remove(name);
    }

    /// Records and logs the result of a lookup. Returns the servers if there is an answer. The next lookup
    /// follows after `max_wait` at the latest.
    pub(super) fn record(
        &self,
        name: &ServerAddress,
        result: Result<Answer, LookupError>,
        max_wait: Duration,
    ) -> Option<Vec<FoundServer>> {
        let mut by_name = locked(&self.by_name);
        let state = by_name.entry(name.clone()).or_default();
        match result {
            Ok(answer) => {
                self.lookups.count(LookupResult::Answered);
                let effect =
                    state
                        .lookups
                        .record_answer(&answer.servers, answer.lifetime, max_wait);
                state.failure = None;
                let servers = state.lookups.servers();
                tracing::debug!(%name, servers = servers.len(), wait = ?state.lookups.wait(), "looked up a name");
                if effect.recovered {
                    tracing::info!(%name, "the name of servers has an answer again");
                }
                if let Some(left_out) = effect.newly_left_out {
                    tracing::warn!(
                        %name, left_out,
                        "the name has more than {MAX_SERVERS} servers; the balancer uses {MAX_SERVERS} of them"
                    );
                }
                Some(state.lookups.servers().to_vec())
            }
            Err(error) => {
                self.lookups.count(LookupResult::Failed);
                let is_first = state.lookups.record_failure();
                let since = state.failure.as_ref().map(|failure| failure.since);
                state.failure = Some(LookupFailure {
                    error: error.to_string(),
                    since: since.unwrap_or_else(clock::now),
                });
                if is_first {
                    log_failure(name, &error, state.lookups.servers().len());
                }
                None
            }
        }
    }
}

/// Logs the first of several failures. `servers`: the number of servers in the last answer.
fn log_failure(name: &ServerAddress, error: &LookupError, servers: usize) {
    if servers == 0 {
        tracing::warn!(
            %name, %error,
            "cannot look up the name of servers, so the balancer has no server of this name; it goes on asking"
        );
    } else {
        tracing::warn!(
            %name, %error, servers,
            "cannot look up the name of servers; the servers of the last answer stay, and the balancer goes on asking"
        );
    }
}
