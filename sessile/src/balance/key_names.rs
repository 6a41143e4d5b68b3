//! The key names of one pool's tickets, with the log and the metrics of every change. The decisions are in
//! [`sessile_proto::key_names`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use prometheus::IntGauge;
use sessile_proto::key_names::{KeyName, KeyNames};

use crate::client::hex;
use crate::locks::locked;

/// The key names of one pool.
#[derive(Default)]
pub(super) struct PoolKeyNames {
    record: Mutex<NamesRecord>,
}

#[derive(Default)]
struct NamesRecord {
    names: KeyNames,
    /// The servers of the pool, by their ids.
    members: BTreeMap<u32, Member>,
}

/// A server of the pool.
struct Member {
    server: String,
    metrics: KeyNameMetrics,
    /// The state in the last log line and in the metrics.
    published: ProvenNames,
}

/// The metrics of one server's key names.
#[derive(Clone)]
pub(super) struct KeyNameMetrics {
    pub(super) names: IntGauge,
    /// The number of servers in the group, with the server itself.
    pub(super) group_size: IntGauge,
}

/// The proven key names of a server, and the other servers that share a key with it.
#[derive(Default, PartialEq, Eq)]
struct ProvenNames {
    names: BTreeSet<KeyName>,
    group: BTreeSet<u32>,
}

/// A log line about a server.
struct NamesChange {
    server: String,
    names: Vec<String>,
    group: Vec<String>,
}

impl PoolKeyNames {
    /// Adds a server to the pool, or gives a server of the pool new metrics.
    pub(super) fn join(&self, id: u32, server: &str, metrics: KeyNameMetrics) {
        let members = &mut locked(&self.record).members;
        let known = members.remove(&id);
        let member = Member {
            server: server.to_owned(),
            metrics,
            published: known.map_or_else(ProvenNames::default, |known| known.published),
        };
        member.set_metrics();
        members.insert(id, member);
    }

    /// Removes a server from the pool.
    pub(super) fn leave(&self, id: u32) {
        let mut record = locked(&self.record);
        record.members.remove(&id);
        record.names.forget(id);
        let changes = record.publish();
        drop(record);
        log(changes);
    }

    /// Changes the record of a server, and logs the effect.
    ///
    /// Nothing is recorded for a server that left the pool. Connections and checks of this server may still
    /// report.
    pub(super) fn update(&self, id: u32, change: impl FnOnce(&mut KeyNames)) {
        let mut record = locked(&self.record);
        if !record.members.contains_key(&id) {
            return;
        }
        let before = record.names.revision();
        change(&mut record.names);
        if record.names.revision() == before {
            return;
        }
        let changes = record.publish();
        drop(record);
        log(changes);
    }

    /// See [`KeyNames::servers`].
    pub(super) fn servers(&self, name: &KeyName) -> Vec<u32> {
        locked(&self.record).names.servers(name).collect()
    }

    /// See [`KeyNames::names_of`].
    pub(super) fn names_of(&self, id: u32) -> BTreeSet<KeyName> {
        locked(&self.record).names.names_of(id).copied().collect()
    }

    /// See [`KeyNames::group`].
    pub(super) fn group(&self, id: u32) -> BTreeSet<u32> {
        locked(&self.record).names.group(id)
    }

    /// See [`KeyNames::servers_to_try`].
    pub(super) fn servers_to_try(&self, name: KeyName, id: u32) -> Vec<u32> {
        locked(&self.record).names.servers_to_try(name, id)
    }
}

/// Call this without the lock, because the reader of the log may be slow.
fn log(changes: Vec<NamesChange>) {
    for NamesChange {
        server,
        names,
        group,
    } in changes
    {
        tracing::info!(
            server,
            ?names,
            ?group,
            "found the key names of a server's tickets"
        );
    }
}

impl NamesRecord {
    /// Brings the metrics up to date. Returns the changes for the log.
    fn publish(&mut self) -> Vec<NamesChange> {
        let mut changed = Vec::new();
        for (&id, member) in &mut self.members {
            let now = ProvenNames {
                names: self.names.names_of(id).copied().collect(),
                group: self.names.group(id),
            };
            if now != member.published {
                member.published = now;
                member.set_metrics();
                changed.push(id);
            }
        }
        let members = changed.iter().filter_map(|id| self.members.get(id));
        members.map(|member| self.change_of(member)).collect()
    }

    fn change_of(&self, member: &Member) -> NamesChange {
        let ProvenNames { names, group } = &member.published;
        let others = group.iter().filter_map(|id| self.members.get(id));
        NamesChange {
            server: member.server.clone(),
            names: names.iter().map(|name| hex(name)).collect(),
            group: others.map(|other| other.server.clone()).collect(),
        }
    }
}

impl Member {
    fn set_metrics(&self) {
        let gauge_value = |len: usize| i64::try_from(len).unwrap_or(i64::MAX);
        let ProvenNames { names, group } = &self.published;
        self.metrics.names.set(gauge_value(names.len()));
        self.metrics.group_size.set(gauge_value(group.len() + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: KeyName = [7; sessile_proto::key_names::LEN];

    fn metrics() -> KeyNameMetrics {
        let gauge = || IntGauge::new("gauge", "help").unwrap();
        KeyNameMetrics {
            names: gauge(),
            group_size: gauge(),
        }
    }

    /// The number of names and the size of the group.
    fn values(metrics: &KeyNameMetrics) -> [i64; 2] {
        [metrics.names.get(), metrics.group_size.get()]
    }

    #[test]
    fn metrics_of_all_servers_follow_each_change() {
        let names = PoolKeyNames::default();
        let servers = [1, 2, 3].map(|id| {
            let metrics = metrics();
            names.join(id, &id.to_string(), metrics.clone());
            metrics
        });
        assert_eq!(servers.each_ref().map(values), [[0, 1]; 3]);
        names.update(1, |names| names.tried(NAME, 1, 2, true));
        names.update(3, |names| names.tried(NAME, 3, 1, true));
        assert_eq!(servers.each_ref().map(values), [[1, 3]; 3]);
        names.update(2, |names| names.refused_own_ticket(2, NAME));
        assert_eq!(servers.each_ref().map(values), [[1, 2], [0, 1], [1, 2]]);
        names.leave(3);
        assert_eq!(values(&servers[0]), [1, 1]);
    }

    #[test]
    fn nothing_is_recorded_for_a_server_that_left() {
        let names = PoolKeyNames::default();
        for id in [1, 2] {
            names.join(id, &id.to_string(), metrics());
        }
        names.leave(2);
        names.update(2, |names| names.tried(NAME, 2, 1, true));
        assert!(names.servers(&NAME).is_empty());
        // The server comes back without its old names.
        names.join(2, "2", metrics());
        names.update(2, |names| names.tried(NAME, 2, 1, true));
        assert_eq!(names.servers(&NAME), [1, 2]);
    }
}
