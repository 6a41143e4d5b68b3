//! The key names of one pool's tickets, with the log of every change. The decisions are in
//! [`sessile_proto::key_names`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

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
    /// The proven names in the last log line about the server.
    logged: ProvenNames,
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
    /// Adds a server to the pool, if the pool does not have it.
    pub(super) fn join(&self, id: u32, server: &str) {
        let members = &mut locked(&self.record).members;
        members.entry(id).or_insert_with(|| Member {
            server: server.to_owned(),
            logged: ProvenNames::default(),
        });
    }

    /// Removes a server from the pool.
    pub(super) fn leave(&self, id: u32) {
        let mut record = locked(&self.record);
        record.members.remove(&id);
        record.names.forget(id);
        let changes = record.take_changes();
        drop(record);
        log(changes);
    }

    /// Changes the record of a server, and logs the effect.
    ///
    /// Connections and checks may still report about a server that left the pool. Their reports are ignored.
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
        let changes = record.take_changes();
        drop(record);
        log(changes);
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&KeyNames) -> T) -> T {
        read(&locked(&self.record).names)
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
    /// Returns the changes that were not logged yet.
    fn take_changes(&mut self) -> Vec<NamesChange> {
        let mut changed = Vec::new();
        for (&id, member) in &mut self.members {
            let now = ProvenNames {
                names: self.names.names_of(id).copied().collect(),
                group: self.names.group(id),
            };
            if now != member.logged {
                member.logged = now;
                changed.push(id);
            }
        }
        let members = changed.iter().filter_map(|id| self.members.get(id));
        members.map(|member| self.change_of(member)).collect()
    }

    fn change_of(&self, member: &Member) -> NamesChange {
        let ProvenNames { names, group } = &member.logged;
        let others = group.iter().filter_map(|id| self.members.get(id));
        NamesChange {
            server: member.server.clone(),
            names: names.iter().map(|name| hex(name)).collect(),
            group: others.map(|other| other.server.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: KeyName = [7; sessile_proto::key_names::LEN];

    /// The number of names, and the number of other servers in the group.
    fn sizes(names: &PoolKeyNames, id: u32) -> [usize; 2] {
        names.read(|names| [names.names_of(id).count(), names.group(id).len()])
    }

    #[test]
    fn names_and_groups_of_all_servers_follow_each_change() {
        let names = PoolKeyNames::default();
        for id in [1, 2, 3] {
            names.join(id, &id.to_string());
        }
        let all = || [1, 2, 3].map(|id| sizes(&names, id));
        assert_eq!(all(), [[0, 0]; 3]);
        names.update(1, |names| names.tried(NAME, 1, 2, true));
        names.update(3, |names| names.tried(NAME, 3, 1, true));
        assert_eq!(all(), [[1, 2]; 3]);
        names.update(2, |names| names.refused_own_ticket(2, NAME));
        assert_eq!(all(), [[1, 1], [0, 0], [1, 1]]);
        names.leave(3);
        assert_eq!(sizes(&names, 1), [1, 0]);
    }

    #[test]
    fn nothing_is_recorded_for_a_server_that_left() {
        let names = PoolKeyNames::default();
        for id in [1, 2] {
            names.join(id, &id.to_string());
        }
        names.leave(2);
        names.update(2, |names| names.tried(NAME, 2, 1, true));
        let servers = || names.read(|names| names.servers(&NAME).collect::<Vec<_>>());
        assert!(servers().is_empty());
        // The server comes back without its old names.
        names.join(2, "2");
        names.update(2, |names| names.tried(NAME, 2, 1, true));
        assert_eq!(servers(), [1, 2]);
    }
}
