//! Runs the commands of the admin API. Servers that the API added stay until the end of the process. Other changes
//! last until the configuration is read again.

use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::api::{balancer_json, entry_json};
use super::numbers::SameNumber;
use super::server_list::{SetInputs, finding_entry};
use super::servers::{Pool, ServerSet};
use super::state::{BalancerState, Changes};
use crate::admin::{Command, NoServerUp, ServerChange, ServerCommand, ServerError};
use crate::config::{BalanceServer, ServerAddress, ServerRequest, WEIGHT_OF_SERVICE};

/// Most servers and DNS names that the API adds.
const MAX_API_SERVERS: usize = 1000;

/// Most DNS names that the API adds. Each can stand for many servers.
const MAX_API_NAMES: usize = 100;

impl From<SameNumber> for ServerError {
    fn from(same: SameNumber) -> Self {
        Self::SameNumber(same.to_string())
    }
}

/// Runs commands until every sender is gone.
pub(super) async fn run(state: Arc<BalancerState>, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        // If the client is gone, `send` fails. Ignore the error, because no answer is needed.
        match command {
            Command::Balancer(answer) => {
                let _ = answer.send(balancer_json(&state));
            }
            Command::Readiness(answer) => {
                let _ = answer.send(readiness(&state));
            }
            Command::Server {
                name,
                command,
                answer,
            } => {
                let _ = answer.send(execute(&state, &name, command));
            }
        }
    }
}

/// Ready if every pool has a server that is up. A server that is up counts even while it drains. The default
/// pool may have no servers if another pool has some.
fn readiness(state: &BalancerState) -> Result<(), NoServerUp> {
    let (set, now) = (state.server_set(), Instant::now());
    let pools: Vec<String> = set
        .pools
        .iter()
        .filter_map(|pool| {
            if pool.servers.is_empty() {
                return empty_pool(state, &set, pool);
            }
            (!pool.has_available_server(now)).then(|| format!("pool {}", pool.name))
        })
        .collect();
    if pools.is_empty() {
        Ok(())
    } else {
        Err(NoServerUp { pools })
    }
}

/// Why a pool without servers is not ready. `None` if the pool needs no servers.
fn empty_pool(state: &BalancerState, set: &ServerSet, pool: &Pool) -> Option<String> {
    let mut entries = set.inputs.balance.servers.iter();
    let is_default = ptr::eq(pool, &set.pools[0]);
    let in_pool = |entry: &&BalanceServer| match &entry.pool {
        Some(name) => !is_default && *name == pool.name,
        None => is_default,
    };
    let Some(entry) = entries.find(in_pool) else {
        let is_needed = !is_default || set.servers().next().is_none();
        return is_needed.then(|| format!("pool {} (it has no server)", pool.name));
    };
    let failure = state.names.failure(&entry.address);
    let error = failure.map_or_else(|| "no answer yet".to_owned(), |failure| failure.error);
    Some(format!("pool {} ({}: {error})", pool.name, entry.address))
}

fn execute(
    state: &BalancerState,
    name: &str,
    command: ServerCommand,
) -> Result<Value, ServerError> {
    let adds_or_removes = !matches!(command, ServerCommand::Change(_));
    let changes = state.change(|inputs| match command {
        ServerCommand::Change(change) => change_server(state, inputs, name, change),
        ServerCommand::Put(request) => put_server(state, inputs, name, request),
        ServerCommand::Remove => remove_server(state, inputs, name),
    })?;
    let Changes {
        added,
        changed,
        removed,
    } = &changes;
    if changes != Changes::default() {
        tracing::info!(?added, ?changed, ?removed, "servers changed over the API");
    }
    if adds_or_removes {
        // An entry that was removed and added again has no servers until the next lookup.
        state.names.repeat_lookups();
    }
    let removed = || json!({ "removed": removed });
    Ok(entry_json(state, name).unwrap_or_else(removed))
}

/// Changes the settings of an entry, or of one server of a name.
fn change_server(
    state: &BalancerState,
    inputs: &mut SetInputs,
    name: &str,
    change: ServerChange,
) -> Result<(), ServerError> {
    let mut entries = inputs.balance.servers.iter_mut();
    if let Some(entry) = entries.find(|entry| entry.name == name) {
        if change.weight.is_some() && matches!(entry.address, ServerAddress::Service(_)) {
            return Err(ServerError::Invalid(WEIGHT_OF_SERVICE.to_owned()));
        }
        entry.drain = change.drain.unwrap_or(entry.drain);
        entry.weight = change.weight.map_or(entry.weight, Into::into);
        let set = state.server_set();
        let found = set.servers().filter(|(_, server)| server.entry == name);
        for (_, server) in found {
            // The new setting of the entry counts for all its servers.
            if let Some(earlier) = inputs.changes.get_mut(server.name()) {
                earlier.drain = earlier.drain.filter(|_| change.drain.is_none());
                earlier.weight = earlier.weight.filter(|_| change.weight.is_none());
            }
        }
        return Ok(());
    }
    if state.server_set().server(name).is_none() {
        return Err(unknown_server(state, name));
    }
    let changed = inputs.changes.entry(name.to_owned()).or_default();
    changed.drain = change.drain.or(changed.drain);
    changed.weight = change.weight.or(changed.weight);
    Ok(())
}

/// Adds an entry, or replaces its settings. An added entry stays over a reload.
fn put_server(
    state: &BalancerState,
    inputs: &mut SetInputs,
    name: &str,
    request: ServerRequest,
) -> Result<(), ServerError> {
    refuse_found(state, name)?;
    let server = request.validate(name, &inputs.balance.pools);
    let server = server.map_err(ServerError::Invalid)?;
    let servers = &mut inputs.balance.servers;
    if let Some(entry) = servers.iter_mut().find(|entry| entry.name == name) {
        *entry = server;
    } else {
        if let Some(entry) = finding_entry(name, servers) {
            return Err(ServerError::Invalid(format!(
                "{name:?} is the name of a server that the DNS name of {entry:?} can give; choose another name"
            )));
        }
        inputs.api_servers.insert(name.to_owned());
        servers.push(server);
    }
    within_limits(inputs)
}

/// Checks how many servers and DNS names the API has added.
fn within_limits(inputs: &SetInputs) -> Result<(), ServerError> {
    let servers = inputs.balance.servers.iter();
    let added = servers.filter(|entry| inputs.api_servers.contains(&entry.name));
    let names = added.filter(|entry| entry.address.is_name()).count();
    for (count, limit, things) in [
        (inputs.api_servers.len(), MAX_API_SERVERS, "servers"),
        (names, MAX_API_NAMES, "DNS names"),
    ] {
        if count > limit {
            return Err(ServerError::Invalid(format!(
                "the API has added {limit} {things}, which is the limit; remove one"
            )));
        }
    }
    Ok(())
}

/// Removes an entry. A reload restores an entry of the configuration.
fn remove_server(
    state: &BalancerState,
    inputs: &mut SetInputs,
    name: &str,
) -> Result<(), ServerError> {
    refuse_found(state, name)?;
    let servers = &mut inputs.balance.servers;
    let Some(at) = servers.iter().position(|entry| entry.name == name) else {
        return Err(unknown_server(state, name));
    };
    servers.remove(at);
    inputs.api_servers.remove(name);
    Ok(())
}

/// The settings of a server that DNS gave are those of the entry with the DNS name.
fn refuse_found(state: &BalancerState, name: &str) -> Result<(), ServerError> {
    let set = state.server_set();
    match set.server(name) {
        Some(server) if server.is_found() => Err(ServerError::Found {
            name: name.to_owned(),
            entry: server.entry.clone(),
        }),
        _ => Ok(()),
    }
}

fn unknown_server(state: &BalancerState, name: &str) -> ServerError {
    let set = state.server_set();
    let entries = set
        .inputs
        .balance
        .servers
        .iter()
        .map(|entry| entry.name.clone());
    let mut known: Vec<String> = entries.collect();
    let found = set.servers().filter(|(_, server)| server.is_found());
    known.extend(found.map(|(_, server)| server.name().to_owned()));
    ServerError::Unknown {
        name: name.to_owned(),
        known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Balance;

    #[test]
    fn the_api_adds_a_limited_number_of_servers_and_of_names() {
        let added = |address: &str, count: usize| {
            let address: ServerAddress = address.parse().unwrap();
            let servers = (0..count).map(|n| BalanceServer::new(n.to_string(), address.clone()));
            let balance = Balance {
                servers: servers.collect(),
                ..Balance::default()
            };
            let mut inputs = SetInputs::new(balance, None);
            inputs.api_servers = (0..count).map(|n| n.to_string()).collect();
            within_limits(&inputs).is_ok()
        };
        for (address, limit) in [
            ("10.0.0.1:443", MAX_API_SERVERS),
            ("web.test:443", MAX_API_NAMES),
        ] {
            assert_eq!([limit, limit + 1].map(|n| added(address, n)), [true, false]);
        }
    }
}
