//! The JSON of `GET /api/balancer`: pools, servers with their state, and counts.

use std::time::Instant;

use serde_json::{Map, Value, json};
use sessile_proto::Word;
use sessile_proto::age_limit::CountedFrom;
use sessile_proto::watch::SessionOutcome;

use super::metrics::{RoutedCounters, RuleCount};
use super::server::{PoolServer, SESSION_FAULT};
use super::servers::{DEFAULT_POOL, Pool, ServerSet};
use super::session_loss::{IdleBucket, SessionLoss, buckets};
use super::state::BalancerState;
use crate::client::hex;
use crate::clock;
use crate::config::BalanceServer;
use crate::locks::locked;

pub(super) fn balancer_json(state: &BalancerState) -> Value {
    let set = state.server_set();
    let metrics = &state.metrics;
    let pools: Vec<Value> = set.pools.iter().map(|pool| pool_json(&set, pool)).collect();
    let servers: Vec<Value> = set
        .servers()
        .map(|(pool, server)| server_json(state, &pool.name, server))
        .collect();
    let entries = set.inputs.balance.servers.iter();
    let names: Vec<Value> = entries
        .filter(|entry| entry.address.is_name())
        .map(|entry| name_json(state, &set, entry))
        .collect();
    json!({
        "farm": set.inputs.route_keys.as_ref().map(|keyring| keyring.scope()),
        "pools": pools,
        "servers": servers,
        "names": names,
        "connections": by_rule(metrics.routed.by_rule()),
        "missed": by_rule(metrics.misses()),
        "open": metrics.connections.open.get(),
        "bytes_up": metrics.bytes.up.get(),
        "bytes_down": metrics.bytes.down.get(),
        "resumption_ratio": resumption_ratio(&metrics.routed),
        "learned_entries": locked(&state.learned).entries(),
        "address_entries": state.addresses.entries(),
    })
}

fn pool_json(set: &ServerSet, pool: &Pool) -> Value {
    let servers: Vec<&str> = pool.servers.iter().map(|server| server.name()).collect();
    let settings = set.inputs.balance.pools.iter();
    let names: Vec<&String> = settings
        .filter(|settings| settings.name == pool.name)
        .flat_map(|settings| &settings.names)
        .collect();
    json!({
        "name": pool.name,
        "names": names,
        "alpn": pool.alpn,
        "policy": pool.policy.as_str(),
        "servers": servers,
    })
}

/// A server or the DNS name of servers, by the name in the configuration.
pub(super) fn entry_json(state: &BalancerState, name: &str) -> Option<Value> {
    let set = state.server_set();
    let mut servers = set.servers();
    if let Some((pool, server)) = servers.find(|(_, server)| server.name() == name) {
        return Some(server_json(state, &pool.name, server));
    }
    let mut entries = set.inputs.balance.servers.iter();
    let entry = entries.find(|entry| entry.name == name && entry.address.is_name())?;
    Some(name_json(state, &set, entry))
}

/// The DNS name of servers, and the servers that were found.
fn name_json(state: &BalancerState, set: &ServerSet, entry: &BalanceServer) -> Value {
    let found = set
        .servers()
        .filter(|(_, server)| server.is_found() && server.entry == entry.name);
    let found: Vec<&str> = found.map(|(_, server)| server.name()).collect();
    let failure = state.names.failure(&entry.address);
    json!({
        "name": entry.name,
        "address": entry.address.to_string(),
        "pool": entry.pool.as_deref().unwrap_or(DEFAULT_POOL),
        "drain": entry.drain,
        "weight": entry.weight,
        "from_api": set.inputs.api_servers.contains(&entry.name),
        "servers": found,
        "lookup_failed": failure.map(|failure| json!({
            "error": failure.error,
            "since": clock::rfc3339(failure.since),
        })),
    })
}

fn server_json(state: &BalancerState, pool: &str, server: &PoolServer) -> Value {
    let set = state.server_set();
    let now = Instant::now();
    let slow_start = set.inputs.balance.slow_start;
    let key_names: Vec<String> = server.key_names.read(|names| {
        let proven = names.names_of(server.id());
        proven.map(|name| hex(name)).collect()
    });
    let (settings, metrics) = (&server.settings, &server.stats.metrics);
    let session_loss = &server.stats.session_loss;
    json!({
        "name": settings.name,
        "state": server.state(slow_start, now).as_str(),
        "check_failed": server.check_failure().map(|failure| json!({
            "error": failure.error,
            "since": clock::rfc3339(failure.since),
        })),
        "session_fault": session_fault_json(server),
        "pool": pool,
        "address": server.address(),
        "found_by": server.is_found().then(|| settings.address.to_string()),
        "from_api": set.inputs.api_servers.contains(&server.entry),
        "number": server.number,
        "drain": settings.drain,
        "weight": settings.weight,
        "share_percent": server.share_percent(slow_start, now),
        "max_connections": settings.max_connections,
        "open": server.open(),
        "connections": metrics.connections.get(),
        "failures": metrics.failures.get(),
        "bytes_up": metrics.bytes.up.get(),
        "bytes_down": metrics.bytes.down.get(),
        "outcomes": outcomes_json(&metrics.handshakes),
        "routed": by_rule(metrics.handshakes.by_rule()),
        "resumption_ratio": resumption_ratio(&metrics.handshakes),
        "offers": {
            "accepted": idle_json(&buckets(&metrics.offers_accepted)),
            "refused": idle_json(&buckets(&metrics.offers_refused)),
        },
        "forgets": session_loss_json(state, &settings.name, session_loss),
        "key_names": key_names,
        "group": group_names(&set, server),
    })
}

fn session_fault_json(server: &PoolServer) -> Option<Value> {
    let fault = server.session_fault()?;
    let offered: Vec<&str> = fault.offered.iter().map(|how| how.as_str()).collect();
    Some(json!({
        "diagnosis": SESSION_FAULT,
        "offered": offered,
        "error": fault.error,
        "since": clock::rfc3339(fault.since),
    }))
}

fn session_loss_json(
    state: &BalancerState,
    server: &str,
    session_loss: &SessionLoss,
) -> Option<Value> {
    let diagnosis = session_loss.diagnosis(state.session_lifetime)?;
    Some(json!({
        "after_seconds": diagnosis.age_limit.estimate().as_secs_f64(),
        "since": match diagnosis.age_limit.counted_from {
            CountedFrom::LastUse => "last-use",
            CountedFrom::FullHandshake => "full-handshake",
            CountedFrom::Unclear => "either",
        },
        "diagnosis": format!("{server} {diagnosis}"),
    }))
}

/// The servers that share a ticket key with this server.
fn group_names<'s>(set: &'s ServerSet, server: &PoolServer) -> Vec<&'s str> {
    let group = server.key_names.read(|names| names.group(server.id()));
    set.servers()
        .filter(|(_, other)| group.contains(&other.id()))
        .map(|(_, other)| other.name())
        .collect()
}

fn outcomes_json(routed: &RoutedCounters) -> Map<String, Value> {
    SessionOutcome::all()
        .map(|outcome| (outcome.as_str().to_owned(), routed.total(outcome).into()))
        .collect()
}

fn by_rule(counts: Vec<RuleCount>) -> Map<String, Value> {
    let mut rules = Map::new();
    for RuleCount { rule, word, count } in counts {
        if count == 0 {
            continue;
        }
        let counts = rules.entry(rule.as_str()).or_insert_with(|| json!({}));
        counts[word] = count.into();
    }
    rules
}

/// The resumed share of the offered sessions. `None` if no session was offered.
fn resumption_ratio(routed: &RoutedCounters) -> Option<f64> {
    let resumed = routed.total(SessionOutcome::Resumed);
    let offered = resumed + routed.total(SessionOutcome::Refused);
    (offered > 0).then(|| resumed as f64 / offered as f64)
}

/// Offers by idle time, without empty buckets.
fn idle_json(buckets: &[IdleBucket]) -> Vec<Value> {
    buckets
        .iter()
        .filter(|bucket| bucket.offers > 0)
        .map(|bucket| json!({ "up_to_seconds": bucket.up_to, "offers": bucket.offers }))
        .collect()
}
