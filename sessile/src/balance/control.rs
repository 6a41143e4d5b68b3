//! The balancer's answers to commands: what there is and how it stands, and changes to servers until
//! the configuration is read again.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tokio::sync::mpsc;

use super::Shared;
use super::server::Server;
use super::snapshot::{server_json, snapshot};
use super::standing::State;
use crate::admin::{Command, NoServerUp, ServerChange, UnknownServer};

/// Obeys commands until nobody can give any.
pub(super) async fn obey(shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        // Whoever has gone away does not need the answer.
        match command {
            Command::Balancer(answer) => {
                let _ = answer.send(snapshot(&shared));
            }
            Command::Readiness(answer) => {
                let _ = answer.send(readiness(&shared));
            }
            Command::ChangeServer {
                name,
                change,
                answer,
            } => {
                let _ = answer.send(change_server(&shared, &name, change));
            }
        }
    }
}

/// Whether every pool has a server that is up, draining or not. A default pool that nothing was put
/// into is none.
fn readiness(shared: &Shared) -> Result<(), NoServerUp> {
    let (roster, now) = (shared.roster(), Instant::now());
    let pools = roster.pools().iter().filter(|pool| {
        let is_up = |server: &Arc<Server>| server.state(now) == State::Up;
        !pool.servers.is_empty() && !pool.servers.iter().any(is_up)
    });
    let pools: Vec<_> = pools.map(|pool| format!("pool {}", pool.name)).collect();
    match pools.is_empty() {
        true => Ok(()),
        false => Err(NoServerUp { pools }),
    }
}

fn change_server(
    shared: &Shared,
    name: &str,
    change: ServerChange,
) -> Result<Value, UnknownServer> {
    let changed = shared.change(|balance| {
        let mut servers = balance.servers.iter_mut();
        let server = servers.find(|server| server.name == name)?;
        let before = (server.drain, server.weight);
        server.drain = change.drain.unwrap_or(server.drain);
        server.weight = change.weight.map_or(server.weight, Into::into);
        (before != (server.drain, server.weight)).then_some(())
    });
    let roster = shared.roster();
    let found = roster.servers().find(|(_, server)| server.name() == name);
    match found {
        Some((pool, server)) => {
            if changed.is_some() {
                let settings = &server.settings;
                tracing::info!(
                    server = name,
                    drain = settings.drain,
                    weight = settings.weight,
                    "server changed over the API"
                );
            }
            Ok(server_json(shared, &pool.name, server))
        }
        None => Err(UnknownServer {
            name: name.to_owned(),
            known: roster
                .servers()
                .map(|(_, it)| it.name().to_owned())
                .collect(),
        }),
    }
}
