//! The balancer's answers to commands: what there is and how it stands, and changes to servers until
//! the configuration is read again.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use sessile_proto::cliff::Since;
use tokio::sync::mpsc;

use super::server::Server;
use super::standing::State;
use super::{Shared, locked};
use crate::admin::{Command, NoServerUp, ServerChange, UnknownServer};
use crate::client::hex;
use crate::clock;

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
    let (roster, now) = (shared.roster(), clock::now());
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

fn snapshot(shared: &Shared) -> Value {
    let roster = shared.roster();
    let mut routed: Map<String, Value> = Map::new();
    for (by, outcome, count) in shared.metrics.routed() {
        let by = routed.entry(by.as_str()).or_insert_with(|| json!({}));
        by[outcome] = count.into();
    }
    let mut missed: Map<String, Value> = Map::new();
    for (by, cause, count) in shared.metrics.missed() {
        let by = missed.entry(by.as_str()).or_insert_with(|| json!({}));
        by[cause] = count.into();
    }
    let pools = roster.pools().iter().map(|pool| {
        let servers: Vec<_> = pool.servers.iter().map(|server| server.name()).collect();
        let names = roster.balance.pools.iter();
        let names = names.filter(|written| written.name == pool.name);
        let names: Vec<_> = names.flat_map(|written| &written.names).collect();
        json!({
            "name": pool.name,
            "names": names,
            "policy": pool.policy().as_str(),
            "servers": servers,
        })
    });
    let servers = roster.servers();
    json!({
        "farm": roster.labels.as_ref().map(|labels| labels.scope()),
        "pools": pools.collect::<Vec<_>>(),
        "servers": servers
            .map(|(pool, server)| server_json(shared, &pool.name, server))
            .collect::<Vec<_>>(),
        "connections": routed,
        "missed": missed,
        "learned_entries": locked(&shared.affinity).stats().entries,
    })
}

fn server_json(shared: &Shared, pool: &str, server: &Server) -> Value {
    let roster = shared.roster();
    let now = clock::now();
    let slow_start = roster.balance.slow_start;
    let names = locked(&shared.key_names);
    let mut key_names: Vec<String> = names.of(server.id()).map(|name| hex(name)).collect();
    key_names.sort_unstable();
    let group = names.group(server.id());
    let group = roster.servers().filter(|(_, it)| group.contains(&it.id()));
    let group: Vec<_> = group.map(|(_, it)| it.name()).collect();
    let (settings, metrics) = (&server.settings, &server.live.metrics);
    let outcomes: Vec<_> = metrics.outcomes().collect();
    let count = |wanted| {
        let found = outcomes.iter().find(|(outcome, _)| *outcome == wanted);
        found.map_or(0, |&(_, count)| count)
    };
    let resumed = count("resumed");
    let offered = resumed + count("refused");
    let forgets = server.live.forgetting.diagnosis(shared.session_lifetime);
    json!({
        "name": settings.name,
        "state": server.condition(slow_start, now).as_str(),
        "check_failed": server.trouble().map(|trouble| json!({
            "error": trouble.error,
            "since": clock::rfc3339(trouble.since),
        })),
        "pool": pool,
        "address": settings.address,
        "number": server.number,
        "drain": settings.drain,
        "weight": settings.weight,
        "share_percent": server.share(slow_start, now),
        "max_connections": settings.max_connections,
        "open": server.open(),
        "connections": metrics.connections.get(),
        "failures": metrics.failures.get(),
        "bytes_up": metrics.bytes_up.get(),
        "bytes_down": metrics.bytes_down.get(),
        "outcomes": Map::from_iter(outcomes.iter().map(|&(name, count)| (name.to_owned(), count.into()))),
        "resumption_ratio": (offered > 0).then(|| resumed as f64 / offered as f64),
        "forgets": forgets.map(|found| json!({
            "after_seconds": found.cliff.after().as_secs_f64(),
            "since": match found.cliff.since {
                Since::LastUse => "last-use",
                Since::FullHandshake => "full-handshake",
                Since::Either => "either",
            },
            "diagnosis": format!("{} {found}", settings.name),
        })),
        "key_names": key_names,
        "group": group,
    })
}
