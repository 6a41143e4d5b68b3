//! What a pool knows of how its servers' tickets begin. Whatever changes it, a look, a check, a
//! client's ticket or a server that is gone, is said here: in the log and in metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use prometheus::IntGauge;
use sessile_proto::keynames::{self, KeyName};

use super::locked;
use crate::client::hex;

/// The key names of one pool.
#[derive(Default)]
pub(super) struct KeyNames {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    names: keynames::KeyNames,
    /// The servers of the pool, by the number that they are known by.
    members: BTreeMap<u32, Member>,
}

/// A server, and what was last said of it.
struct Member {
    server: String,
    figures: Figures,
    said: Standing,
}

/// How many names a server has, and how many servers are of its group, itself included.
#[derive(Clone)]
pub(super) struct Figures {
    pub(super) names: IntGauge,
    pub(super) group: IntGauge,
}

/// The names of a server, and who else shares a key with it.
#[derive(Default, PartialEq, Eq)]
struct Standing {
    names: BTreeSet<KeyName>,
    group: BTreeSet<u32>,
}

/// What is to be said of a server.
struct News {
    server: String,
    names: Vec<String>,
    group: Vec<String>,
}

impl KeyNames {
    /// A server has come into the pool, or is there still.
    pub(super) fn join(&self, id: u32, server: &str, figures: Figures) {
        let inner = &mut *locked(&self.inner);
        let known = inner.members.remove(&id);
        let member = Member {
            server: server.to_owned(),
            figures,
            said: known.map_or_else(Standing::default, |known| known.said),
        };
        member.show();
        inner.members.insert(id, member);
    }

    /// A server has gone from the pool; of it nothing more is said.
    pub(super) fn leave(&self, id: u32) {
        locked(&self.inner).members.remove(&id);
        self.note(|names| names.forget(id));
    }

    /// Takes note of something, and says what that has changed.
    pub(super) fn note<T>(&self, note: impl FnOnce(&mut keynames::KeyNames) -> T) -> T {
        let mut inner = locked(&self.inner);
        let before = inner.names.revision();
        let noted = note(&mut inner.names);
        let news = match inner.names.revision() == before {
            true => Vec::new(),
            false => inner.news(),
        };
        drop(inner);
        for News {
            server,
            names,
            group,
        } in news
        {
            tracing::info!(server, ?names, ?group, "key names of its tickets");
        }
        noted
    }

    /// As [`keynames::KeyNames::servers`].
    pub(super) fn servers(&self, name: &KeyName) -> Vec<u32> {
        locked(&self.inner).names.servers(name).collect()
    }

    /// As [`keynames::KeyNames::of`].
    pub(super) fn of(&self, id: u32) -> BTreeSet<KeyName> {
        locked(&self.inner).names.of(id).copied().collect()
    }

    /// As [`keynames::KeyNames::group`].
    pub(super) fn group(&self, id: u32) -> BTreeSet<u32> {
        locked(&self.inner).names.group(id)
    }

    /// As [`keynames::KeyNames::to_try`].
    pub(super) fn to_try(&self, name: KeyName, id: u32) -> Vec<u32> {
        locked(&self.inner).names.to_try(name, id)
    }
}

impl Inner {
    /// What has become otherwise since it was last said.
    fn news(&mut self) -> Vec<News> {
        let mut changed = Vec::new();
        for (&id, member) in &mut self.members {
            let now = Standing {
                names: self.names.of(id).copied().collect(),
                group: self.names.group(id),
            };
            if now != member.said {
                member.said = now;
                member.show();
                changed.push(id);
            }
        }
        let of = |id: &u32| self.members.get(id);
        let news = changed.iter().filter_map(of).map(|member| News {
            server: member.server.clone(),
            names: member.said.names.iter().map(|name| hex(name)).collect(),
            group: {
                let others = member.said.group.iter().filter_map(of);
                others.map(|other| other.server.clone()).collect()
            },
        });
        news.collect()
    }
}

impl Member {
    fn show(&self) {
        let count = |len: usize| i64::try_from(len).unwrap_or(i64::MAX);
        self.figures.names.set(count(self.said.names.len()));
        self.figures.group.set(count(self.said.group.len() + 1));
    }
}
