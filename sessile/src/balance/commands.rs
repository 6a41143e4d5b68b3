//! Runs the commands of the admin API. Changes last until the configuration is read again.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tokio::sync::mpsc;

use super::api::{balancer_json, server_json};
use super::state::BalancerState;
use crate::admin::{Command, NoServerUp, ServerChange, UnknownServer};
use crate::config::Balance;

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
            Command::ChangeServer {
                name,
                change,
                answer,
            } => {
                let _ = answer.send(change_server(&state, &name, change));
            }
        }
    }
}

/// Ready if every pool has a server that is up. A server that is up counts even while it drains. The default
/// pool may have no servers.
fn readiness(state: &BalancerState) -> Result<(), NoServerUp> {
    let (set, now) = (state.server_set(), Instant::now());
    let pools: Vec<String> = set
        .pools
        .iter()
        .filter(|pool| !pool.servers.is_empty() && !pool.has_available_server(now))
        .map(|pool| format!("pool {}", pool.name))
        .collect();
    if pools.is_empty() {
        Ok(())
    } else {
        Err(NoServerUp { pools })
    }
}

fn change_server(
    state: &BalancerState,
    name: &str,
    change: ServerChange,
) -> Result<Value, UnknownServer> {
    let has_changed = state.change(|balance| apply(balance, name, change));
    let set = state.server_set();
    let Some((pool, server)) = set.servers().find(|(_, server)| server.name() == name) else {
        let names = set.servers().map(|(_, server)| server.name().to_owned());
        return Err(UnknownServer {
            name: name.to_owned(),
            known: names.collect(),
        });
    };
    if has_changed {
        let settings = &server.settings;
        tracing::info!(
            server = name,
            drain = settings.drain,
            weight = settings.weight,
            "server changed over the API"
        );
    }
    Ok(server_json(state, &pool.name, server))
}

/// Applies a change to the settings of a server. Returns true if a setting got another value.
fn apply(balance: &mut Balance, name: &str, change: ServerChange) -> bool {
    let mut servers = balance.servers.iter_mut();
    let Some(server) = servers.find(|server| server.name == name) else {
        return false;
    };
    let drain = change.drain.unwrap_or(server.drain);
    let weight = change.weight.map_or(server.weight, Into::into);
    let differs = drain != server.drain || weight != server.weight;
    server.drain = drain;
    server.weight = weight;
    differs
}
