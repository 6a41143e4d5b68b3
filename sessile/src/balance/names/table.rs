//! The state of the DNS names: their last answers, their failures and their next lookups.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::name_resolution::{Answered, FoundServer, MAX_SERVERS, NameLookups};
use tokio::sync::watch;

use super::super::metrics::{LookupCounters, LookupResult};
use super::resolver::{LookedUp, LookupError, LookupInputs, RecordKey};
use crate::clock;
use crate::config::{Balance, ServerAddress};
use crate::locks::locked;

/// The state of all names.
pub(in crate::balance) struct Names {
    by_name: Mutex<BTreeMap<ServerAddress, NameState>>,
    /// A change asks each task to look its name up now.
    repeat: watch::Sender<()>,
    /// The addresses of the balancer's listeners, which are no servers.
    listeners: Mutex<Vec<SocketAddr>>,
    lookups: LookupCounters,
}

/// The state of one name.
#[derive(Default)]
struct NameState {
    lookups: NameLookups,
    /// The SRV records in the last answer that are used.
    records: BTreeSet<RecordKey>,
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
            listeners: Mutex::default(),
            lookups,
        }
    }

    /// Sets the addresses of the balancer's listeners. No answer can make one of them a server.
    pub(in crate::balance) fn set_listeners(&self, listeners: Vec<SocketAddr>) {
        *locked(&self.listeners) = listeners;
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

    /// The inputs of the next lookup of a name.
    pub(super) fn inputs(&self, name: &ServerAddress, balance: &Balance) -> LookupInputs {
        let mut inputs = LookupInputs {
            resolver: balance.resolver,
            listeners: locked(&self.listeners).clone(),
            ..LookupInputs::default()
        };
        if let Some(state) = locked(&self.by_name).get(name) {
            let servers = state.lookups.servers().iter();
            inputs.known = servers.map(|server| server.address).collect();
            inputs.known_records.clone_from(&state.records);
        }
        inputs
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
        result: Result<LookedUp, LookupError>,
        max_wait: Duration,
    ) -> Option<Vec<FoundServer>> {
        match result {
            Ok(found) => {
                self.lookups.count(LookupResult::Answered);
                Some(self.record_answer(name, found, max_wait))
            }
            Err(error) => {
                self.lookups.count(LookupResult::Failed);
                self.record_failure(name, &error);
                None
            }
        }
    }

    fn record_answer(
        &self,
        name: &ServerAddress,
        found: LookedUp,
        max_wait: Duration,
    ) -> Vec<FoundServer> {
        let LookedUp {
            answer,
            records,
            lifetime,
        } = found;
        let mut by_name = locked(&self.by_name);
        let state = by_name.entry(name.clone()).or_default();
        let effect = state.lookups.record_answer(answer, lifetime, max_wait);
        state.records = records;
        state.failure = None;
        let servers = state.lookups.servers().to_vec();
        let wait = state.lookups.wait();
        drop(by_name);
        tracing::debug!(%name, servers = servers.len(), ?wait, "looked up a name");
        log_answer(name, effect);
        servers
    }

    fn record_failure(&self, name: &ServerAddress, error: &LookupError) {
        let mut by_name = locked(&self.by_name);
        let state = by_name.entry(name.clone()).or_default();
        let is_first = state.lookups.record_failure();
        let since = state.failure.as_ref().map(|failure| failure.since);
        state.failure = Some(LookupFailure {
            error: error.to_string(),
            since: since.unwrap_or_else(clock::now),
        });
        let servers = state.lookups.servers().len();
        drop(by_name);
        if is_first {
            log_failure(name, error, servers);
        }
    }
}

fn log_answer(name: &ServerAddress, effect: Answered) {
    if effect.recovered {
        tracing::info!(%name, "the name of servers has an answer again");
    }
    if let Some(left_out) = effect.newly_left_out {
        tracing::warn!(
            %name, left_out,
            "the name has more than {MAX_SERVERS} servers; the balancer uses {MAX_SERVERS} of them"
        );
    }
    if let Some(unusable) = effect.newly_unusable {
        tracing::warn!(
            %name, unusable,
            "the name has addresses that cannot be those of servers, such as 0.0.0.0 or a listener of this \
             balancer; the balancer does not use them; correct the records of the name"
        );
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
