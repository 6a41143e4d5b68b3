//! Key names: the stable first bytes that most servers put on their tickets. [`KeyNames`] finds the servers
//! of a pool that resume tickets with these bytes.
//!
//! A server proves a name when it accepts two tickets with the same first bytes; random bytes never repeat.
//! Two servers share a name once one of them resumed a ticket that the other had just issued. These servers
//! are the name's group.
//!
//! A refusal of the group's ticket has one of two meanings. A server of the group has lost the key, and
//! leaves the group. A server outside the group that issues tickets with the same first bytes has another
//! key. In that case the bytes are only the header of a ticket format. Such bytes route nothing while two
//! servers issue them.

pub mod discovery;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hasher};

/// Bytes of a key name ([RFC 5077, 4](https://www.rfc-editor.org/rfc/rfc5077#section-4)).
pub const LEN: usize = 16;

/// Most names of one server. They cover a week of keys that change every six hours.
pub const MAX_NAMES: usize = 32;

/// Most tickets of one server that wait for a second ticket with the same first bytes.
pub const MAX_ACCEPTED_ONCE: usize = 64;

/// Most servers at which the tickets of one check are tried.
pub const MAX_TRIES: usize = 8;

/// The first bytes of a ticket or PSK identity, which may be a key name.
pub type KeyName = [u8; LEN];

/// A ticket or PSK identity, reduced to its first bytes and a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketFingerprint {
    /// The first bytes.
    pub name: KeyName,
    hash: u64,
}

impl TicketFingerprint {
    /// `None` if the bytes are too short for a ticket. Such bytes can only identify a stored session.
    #[must_use]
    pub fn new(ticket: &[u8]) -> Option<Self> {
        let (name, rest) = ticket.split_first_chunk()?;
        if rest.len() < LEN {
            return None;
        }
        // The hash tells tickets of a server apart. A forged collision is useless, because only tickets count
        // that a server has accepted.
        let mut hasher = DefaultHasher::new();
        hasher.write(ticket);
        Some(Self {
            name: *name,
            hash: hasher.finish(),
        })
    }
}

/// Whether a server has the key that the group of a name has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum KeySharing {
    /// No ticket has shown whether the server has the key.
    #[default]
    Untried,
    /// The server belongs to the group.
    Shares,
    /// The server issues tickets with this name under another key.
    Differs,
}

/// The record of a server and a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holder {
    /// The server put the name on two tickets when it was last checked.
    issued: bool,
    /// The server accepted two tickets with this name.
    accepted: bool,
    sharing: KeySharing,
    /// The number of the last report about the server and the name. Later reports have larger numbers.
    reported: u64,
}

/// The servers that issue or accept tickets with one name.
#[derive(Clone, Debug, Default)]
struct NameHolders {
    by_server: BTreeMap<u32, Holder>,
}

impl NameHolders {
    fn shares(&self, server: u32) -> bool {
        let holder = self.by_server.get(&server);
        holder.is_some_and(|holder| holder.sharing == KeySharing::Shares)
    }

    fn has(&self, sharing: KeySharing) -> bool {
        self.by_server
            .values()
            .any(|holder| holder.sharing == sharing)
    }

    /// True if two servers put this name on tickets of different keys.
    fn is_disputed(&self) -> bool {
        self.by_server.len() > 1 && self.has(KeySharing::Differs)
    }

    /// The servers that are proven to resume tickets with this name.
    ///
    /// If there is a group, these are the servers of the group. If there is no group, it is the only server
    /// that issues such tickets, if that server also accepts them. If no server issues them, it is the only
    /// known server that accepts them.
    fn proven(&self) -> impl Iterator<Item = u32> + '_ {
        let is_disputed = self.is_disputed();
        let has_group = self.has(KeySharing::Shares);
        let issuers = self
            .by_server
            .values()
            .filter(|holder| holder.issued)
            .count();
        let is_single = issuers == 1 || (issuers == 0 && self.by_server.len() == 1);
        let is_proven = move |holder: &Holder| {
            if has_group {
                holder.sharing == KeySharing::Shares
            } else {
                is_single && holder.accepted && holder.issued == (issuers == 1)
            }
        };
        self.by_server
            .iter()
            .filter(move |(_, holder)| !is_disputed && is_proven(holder))
            .map(|(&server, _)| server)
    }

    fn is_proven_for(&self, server: u32) -> bool {
        self.proven().any(|proven| proven == server)
    }
}

/// The key names in one pool. The caller numbers the servers.
#[derive(Debug, Default)]
pub struct KeyNames {
    names: BTreeMap<KeyName, NameHolders>,
    /// The tickets that each server accepted, one for each name, oldest first.
    accepted_once: BTreeMap<u32, VecDeque<TicketFingerprint>>,
    reports: u64,
    revision: u64,
}

impl KeyNames {
    /// Reports that a server put this name on two tickets, for two sessions.
    pub fn issued(&mut self, server: u32, name: KeyName) {
        self.update_holder(server, name, |holder| holder.issued = true);
    }

    /// Reports the result of a whole check: a server issues tickets with these names, and with no others.
    pub fn issues_only(&mut self, server: u32, issued: &[KeyName]) {
        let mut gone = Vec::new();
        for (name, holders) in &mut self.names {
            let is_disputed = holders.is_disputed();
            let Some(holder) = holders.by_server.get_mut(&server) else {
                continue;
            };
            if issued.contains(name) {
                continue;
            }
            self.revision += u64::from(holder.issued);
            holder.issued = false;
            // The server may still accept older tickets with the name. If two keys have the name, it is
            // unknown whether these tickets were the server's own.
            let may_accept = holder.accepted || holder.sharing == KeySharing::Shares;
            if is_disputed || !may_accept {
                gone.push(*name);
            }
        }
        for name in gone {
            self.remove_holder(server, name);
        }
    }

    /// Reports that a server accepted a client's ticket.
    ///
    /// `is_certain` is false if the server may have accepted another offer of the client. Such a report can
    /// confirm a known name but cannot prove a new name.
    pub fn accepted(&mut self, server: u32, ticket: TicketFingerprint, is_certain: bool) {
        let known = self.holder(server, &ticket.name);
        if known.is_some_and(|holder| holder.accepted) {
            self.update_holder(server, ticket.name, |holder| holder.accepted = true);
            return;
        }
        if !is_certain {
            return;
        }
        let once = self.accepted_once.entry(server).or_default();
        match once.iter().position(|other| other.name == ticket.name) {
            Some(at) if once[at] != ticket => {
                once.remove(at);
                self.update_holder(server, ticket.name, |holder| holder.accepted = true);
            }
            Some(_) => {}
            None => {
                if once.len() >= MAX_ACCEPTED_ONCE {
                    once.pop_front();
                }
                once.push_back(ticket);
            }
        }
    }

    /// Reports that a ticket which `from` had just issued was offered to `to`, and whether `to` resumed it.
    pub fn tried(&mut self, name: KeyName, from: u32, to: u32, resumed: bool) {
        if from == to {
            return;
        }
        if resumed {
            self.resumed(name, from, to);
        } else {
            self.refused(name, from, to);
        }
    }

    fn resumed(&mut self, name: KeyName, from: u32, to: u32) {
        let has_other_group = self.names.get(&name).is_some_and(|holders| {
            let has_group = holders.has(KeySharing::Shares);
            has_group && !holders.shares(from) && !holders.shares(to)
        });
        if has_other_group {
            // The two servers share a key. Only an answer of the group shows whether this key is the group's
            // key.
            return;
        }
        for server in [from, to] {
            self.update_holder(server, name, |holder| holder.sharing = KeySharing::Shares);
        }
    }

    fn refused(&mut self, name: KeyName, from: u32, to: u32) {
        self.issued(from, name);
        let Some(holders) = self.names.get(&name) else {
            return;
        };
        let has_lost_key = if holders.shares(to) {
            holders.shares(from)
        } else {
            // The server may have accepted such tickets before its key changed.
            !self.holder(to, &name).is_some_and(|holder| holder.issued)
        };
        if has_lost_key {
            self.remove_holder(to, name);
            return;
        }
        for server in [from, to] {
            if self
                .names
                .get(&name)
                .is_some_and(|holders| !holders.shares(server))
            {
                self.update_holder(server, name, |holder| holder.sharing = KeySharing::Differs);
            }
        }
    }

    /// Reports that a server refused a ticket that it had just issued.
    pub fn refused_own_ticket(&mut self, server: u32, name: KeyName) {
        // If no other server of the group is left, this server is still the best choice.
        let has_others = self.names.get(&name).is_some_and(|holders| {
            holders.shares(server) && holders.proven().any(|other| other != server)
        });
        if has_others {
            self.remove_holder(server, name);
        }
    }

    /// The servers at which a fresh ticket of `server` should be tried, to learn whether they share a key.
    ///
    /// The servers of the group come first, and then the other servers. In each of these two parts, the
    /// server with the oldest report comes first.
    #[must_use]
    pub fn servers_to_try(&self, name: KeyName, server: u32) -> Vec<u32> {
        let Some(holders) = self.names.get(&name) else {
            return Vec::new();
        };
        let mut others: Vec<_> = holders
            .by_server
            .iter()
            .filter(|(other, _)| **other != server)
            .map(|(&other, holder)| {
                let is_outside = holder.sharing != KeySharing::Shares;
                (is_outside, holder.reported, other)
            })
            .collect();
        others.sort_unstable();
        others.into_iter().map(|(_, _, other)| other).collect()
    }

    /// The servers that are proven to resume a ticket with this name.
    pub fn servers(&self, name: &KeyName) -> impl Iterator<Item = u32> + '_ {
        self.names
            .get(name)
            .into_iter()
            .flat_map(NameHolders::proven)
    }

    /// The other servers that are proven to share a key with this one.
    #[must_use]
    pub fn group(&self, server: u32) -> BTreeSet<u32> {
        self.names
            .values()
            .filter(|holders| holders.is_proven_for(server))
            .flat_map(NameHolders::proven)
            .filter(|&other| other != server)
            .collect()
    }

    /// The proven names of a server.
    pub fn names_of(&self, server: u32) -> impl Iterator<Item = &KeyName> + '_ {
        self.names
            .iter()
            .filter(move |(_, holders)| holders.is_proven_for(server))
            .map(|(name, _)| name)
    }

    /// A number that rises whenever the names or the group of a server may have changed.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Forgets everything about a server that is gone or replaced.
    pub fn forget(&mut self, server: u32) {
        self.revision += 1;
        self.accepted_once.remove(&server);
        self.names.retain(|_, holders| {
            holders.by_server.remove(&server);
            !holders.by_server.is_empty()
        });
    }

    fn holder(&self, server: u32, name: &KeyName) -> Option<&Holder> {
        self.names.get(name)?.by_server.get(&server)
    }

    fn remove_holder(&mut self, server: u32, name: KeyName) {
        self.revision += 1;
        if let Some(holders) = self.names.get_mut(&name) {
            holders.by_server.remove(&server);
            if holders.by_server.is_empty() {
                self.names.remove(&name);
            }
        }
    }

    /// Changes the record of a server and a name. A new name needs room among the server's names.
    fn update_holder(&mut self, server: u32, name: KeyName, change: impl FnOnce(&mut Holder)) {
        self.reports += 1;
        let before = self.holder(server, &name).copied();
        let mut holder = before.unwrap_or_default();
        change(&mut holder);
        if before.is_none() && !self.make_room(server, &holder) {
            return;
        }
        if before != Some(holder) {
            self.revision += 1;
        }
        holder.reported = self.reports;
        let holders = self.names.entry(name).or_default();
        holders.by_server.insert(server, holder);
    }

    /// Makes room for one more name of a server. Returns false if there is no room.
    ///
    /// Unproven names are removed first, those with the oldest report before all others. A proven name is
    /// removed only to make room for a name that the server has accepted.
    fn make_room(&mut self, server: u32, fresh: &Holder) -> bool {
        let mut of_server = BTreeSet::new();
        for (name, holders) in &self.names {
            if let Some(holder) = holders.by_server.get(&server) {
                let is_proven = holders.is_proven_for(server);
                of_server.insert((is_proven, holder.reported, *name));
            }
        }
        if of_server.len() < MAX_NAMES {
            return true;
        }
        let is_accepted = fresh.accepted || fresh.sharing == KeySharing::Shares;
        match of_server.first() {
            Some(&(is_proven, _, name)) if !is_proven || is_accepted => {
                self.remove_holder(server, name);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
