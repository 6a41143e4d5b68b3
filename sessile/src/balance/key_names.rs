//! What a pool knows of how its servers' tickets begin. Whatever changes it, a look, a check, a
//! client's ticket or a server that is gone, is said here: in the log and in metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use prometheus::IntGauge;
use sessile_proto::key_names::{self, KeyName};

use super::locked;
use crate::client::hex;

/// The key names of one pool.
#[derive(Default)]
pub(super) struct KeyNames {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    names: key_names::KeyNames,
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

    /// A server has gone from the pool.
    pub(super) fn leave(&self, id: u32) {
        let mut inner = locked(&self.inner);
        inner.members.remove(&id);
        inner.names.forget(id);
        let news = inner.news();
        drop(inner);
        say(news);
    }

    /// Takes note of something about a server, and says what that has changed. Of one that has gone,
    /// and whose connections and looks may still be ending, nothing is noted.
    pub(super) fn note(&self, id: u32, note: impl FnOnce(&mut key_names::KeyNames)) {
        let mut inner = locked(&self.inner);
        if !inner.members.contains_key(&id) {
            return;
        }
        let before = inner.names.revision();
        note(&mut inner.names);
        let news = match inner.names.revision() == before {
            true => Vec::new(),
            false => inner.news(),
        };
        drop(inner);
        say(news);
    }

    /// As [`key_names::KeyNames::servers`].
    pub(super) fn servers(&self, name: &KeyName) -> Vec<u32> {
        locked(&self.inner).names.servers(name).collect()
    }

    /// As [`key_names::KeyNames::names_of`].
    pub(super) fn of(&self, id: u32) -> BTreeSet<KeyName> {
        locked(&self.inner).names.names_of(id).copied().collect()
    }

    /// As [`key_names::KeyNames::group`].
    pub(super) fn group(&self, id: u32) -> BTreeSet<u32> {
        locked(&self.inner).names.group(id)
    }

    /// As [`key_names::KeyNames::servers_to_try`].
    pub(super) fn to_try(&self, name: KeyName, id: u32) -> Vec<u32> {
        locked(&self.inner).names.servers_to_try(name, id)
    }
}

/// Not under the lock: whoever reads the log may be slow.
fn say(news: Vec<News>) {
    for News {
        server,
        names,
        group,
    } in news
    {
        tracing::info!(server, ?names, ?group, "key names of its tickets");
    }
}

impl Inner {
    /// What has become otherwise since it was last said.
    fn news(&mut self) -> Vec<News> {
        let mut changed = Vec::new();
        for (&id, member) in &mut self.members {
            let now = Standing {
                names: self.names.names_of(id).copied().collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: KeyName = [7; key_names::LEN];

    fn figures() -> Figures {
        let gauge = || IntGauge::new("figure", "help").unwrap();
        Figures {
            names: gauge(),
            group: gauge(),
        }
    }

    fn shown(figures: &Figures) -> [i64; 2] {
        [figures.names.get(), figures.group.get()]
    }

    #[test]
    fn figures_follow_whoever_changes_what_is_known() {
        let names = KeyNames::default();
        let servers = [1, 2, 3].map(|id| {
            let figures = figures();
            names.join(id, &id.to_string(), figures.clone());
            figures
        });
        assert_eq!(servers.each_ref().map(shown), [[0, 1]; 3]);
        names.note(1, |names| names.tried(NAME, 1, 2, true));
        names.note(3, |names| names.tried(NAME, 3, 1, true));
        assert_eq!(servers.each_ref().map(shown), [[1, 3]; 3]);
        names.note(2, |names| names.refused_own_ticket(2, NAME));
        assert_eq!(servers.each_ref().map(shown), [[1, 2], [0, 1], [1, 2]]);
        names.leave(3);
        assert_eq!(shown(&servers[0]), [1, 1]);
    }

    #[test]
    fn of_a_server_that_has_gone_nothing_is_noted() {
        let names = KeyNames::default();
        for id in [1, 2] {
            names.join(id, &id.to_string(), figures());
        }
        names.leave(2);
        names.note(2, |names| names.tried(NAME, 2, 1, true));
        assert!(names.servers(&NAME).is_empty());
        // It is back, and what was known of it before is not.
        names.join(2, "2", figures());
        names.note(2, |names| names.tried(NAME, 2, 1, true));
        assert_eq!(names.servers(&NAME), [1, 2]);
    }
}
