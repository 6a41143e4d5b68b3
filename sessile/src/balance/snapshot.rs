//! What the API says of the balancer, as JSON: what there is, how it stands and what was counted.

use std::time::Instant;

use serde_json::{Map, Value, json};
use sessile_proto::age_limit::CountedFrom;
use sessile_proto::route::RoutedBy;

use super::forgetting::Idle;
use super::server::Server;
use super::session_fault::FAULT;
use super::{Shared, locked};
use crate::client::hex;
use crate::clock;

pub(super) fn snapshot(shared: &Shared) -> Value {
    let roster = shared.roster();
    let metrics = &shared.metrics;
    let routed = metrics.routed();
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
        "connections": by_rule(&routed),
        "missed": by_rule(&metrics.missed()),
        "open": metrics.open(),
        "bytes_up": metrics.bytes_up.get(),
        "bytes_down": metrics.bytes_down.get(),
        "resumption_ratio": resumption_ratio(&routed),
        "learned_entries": locked(&shared.affinity).stats().entries,
    })
}

pub(super) fn server_json(shared: &Shared, pool: &str, server: &Server) -> Value {
    let roster = shared.roster();
    let now = Instant::now();
    let slow_start = roster.balance.slow_start;
    let key_names = server.key_names.of(server.id());
    let key_names: Vec<String> = key_names.iter().map(|name| hex(name)).collect();
    let group = server.key_names.group(server.id());
    let group = roster.servers().filter(|(_, it)| group.contains(&it.id()));
    let group: Vec<_> = group.map(|(_, it)| it.name()).collect();
    let (settings, metrics) = (&server.settings, &server.live.metrics);
    let routed = metrics.routed();
    let forgetting = &server.live.forgetting;
    let forgets = forgetting.diagnosis(shared.session_lifetime);
    let (accepted, refused) = forgetting.idle();
    json!({
        "name": settings.name,
        "state": server.condition(slow_start, now).as_str(),
        "check_failed": server.trouble().map(|trouble| json!({
            "error": trouble.error,
            "since": clock::rfc3339(trouble.since),
        })),
        "session_fault": server.session_fault().map(|fault| json!({
            "diagnosis": FAULT,
            "offered": fault.offered,
            "error": fault.error,
            "since": clock::rfc3339(fault.since),
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
        "outcomes": Map::from_iter(metrics.outcomes().map(|(name, count)| (name.to_owned(), count.into()))),
        "routed": by_rule(&routed),
        "resumption_ratio": resumption_ratio(&routed),
        "offers": { "accepted": idle_json(&accepted), "refused": idle_json(&refused) },
        "forgets": forgets.map(|found| json!({
            "after_seconds": found.age_limit.estimate().as_secs_f64(),
            "since": match found.age_limit.counted_from {
                CountedFrom::LastUse => "last-use",
                CountedFrom::FullHandshake => "full-handshake",
                CountedFrom::Unclear => "either",
            },
            "diagnosis": format!("{} {found}", settings.name),
        })),
        "key_names": key_names,
        "group": group,
    })
}

/// Counts of a rule's outcomes, or of its misses.
type Counts = [(RoutedBy, &'static str, u64)];

/// Counts that are not zero, by rule.
fn by_rule(counts: &Counts) -> Value {
    let mut rules: Map<String, Value> = Map::new();
    for &(by, what, count) in counts {
        let by = rules.entry(by.as_str()).or_insert_with(|| json!({}));
        by[what] = count.into();
    }
    rules.into()
}

/// The share of the sessions that were offered which were resumed; `None`: none was offered.
fn resumption_ratio(routed: &Counts) -> Option<f64> {
    let count = |wanted| -> u64 {
        let counts = routed.iter().filter(|(_, outcome, _)| *outcome == wanted);
        counts.map(|(_, _, count)| count).sum()
    };
    let resumed = count("resumed");
    let offered = resumed + count("refused");
    (offered > 0).then(|| resumed as f64 / offered as f64)
}

/// Offers by how long they were idle, without the steps that have none.
fn idle_json(idle: &[Idle]) -> Value {
    let steps = idle.iter().filter(|step| step.offers > 0);
    let steps = steps.map(|step| json!({ "up_to_seconds": step.up_to, "offers": step.offers }));
    steps.collect::<Vec<_>>().into()
}
