//! Key names: the stable first bytes that most servers put on their tickets, and which servers of a
//! pool resume tickets that begin so. Nothing is taken for one on its looks.
//!
//! A name leads to a server that has accepted two tickets that begin so, which random bytes never do,
//! as long as no other issues such tickets. Another belongs to it once one of the two was seen to
//! resume what the other had just issued: that is the name's group. What a refusal says depends on
//! who refuses. One of the group that refuses what another of it has issued has lost the key: it
//! leaves, and the rest stay. One that is not of the group and issues such tickets has a key of its
//! own behind the same first bytes: they are the header of a format, and lead nowhere as long as two
//! issue them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aws_lc_rs::digest;

/// Bytes of a key name (RFC 5077, 4).
pub const LEN: usize = 16;

/// Most names of a server: the keys of a week that change every few hours.
pub const MAX_NAMES: usize = 32;

/// Most prefixes of a server that were accepted once.
pub const MAX_ONCE: usize = 64;

/// Most servers that tickets of one look are tried at.
pub const MAX_TRIES: usize = 8;

/// The first bytes of a ticket or identity, which may be the name of its key.
pub type KeyName = [u8; LEN];

/// A ticket or identity, as much of it as is needed to know it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its first bytes.
    pub name: KeyName,
    hash: [u8; LEN],
}

impl Token {
    /// `None` where there is nothing behind the first bytes: an identifier, not a ticket.
    #[must_use]
    pub fn new(ticket: &[u8]) -> Option<Self> {
        let (name, rest) = ticket.split_first_chunk()?;
        let digest = digest::digest(&digest::SHA256, ticket);
        let hash = *digest.as_ref().first_chunk()?;
        (rest.len() >= LEN).then_some(Self { name: *name, hash })
    }
}

/// How a server stands to the others of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// No ticket has shown it yet.
    #[default]
    Untried,
    /// It is of the group.
    Shares,
    /// It issues such tickets under another key.
    Apart,
}

/// What is known of a server and a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    /// It put the prefix on two tickets when it was last looked at.
    issued: bool,
    /// It accepted two tickets that begin so.
    accepted: bool,
    standing: Standing,
    /// Of what was last heard of it; the smaller, the longer ago.
    turn: u64,
}

/// A prefix that may be a key's name: the servers that issue or accept such tickets.
#[derive(Clone, Debug, Default)]
struct Name {
    holders: BTreeMap<u32, Held>,
}

impl Name {
    fn standing(&self, server: u32) -> Standing {
        let held = self.holders.get(&server);
        held.map_or(Standing::Untried, |held| held.standing)
    }

    fn has(&self, standing: Standing) -> bool {
        self.holders.values().any(|held| held.standing == standing)
    }

    /// Two keys begin so. Whoever is left alone is apart from nobody.
    fn is_disputed(&self) -> bool {
        self.holders.len() > 1 && self.has(Standing::Apart)
    }

    /// The servers that resume tickets that begin so, as far as it is proven: the group, else the only
    /// one that issues them, else the only one that accepts them.
    fn proven(&self) -> impl Iterator<Item = u32> + '_ {
        let has_group = self.has(Standing::Shares);
        let issuers = self.holders.values().filter(|held| held.issued).count();
        let alone = issuers == 1 || (issuers == 0 && self.holders.len() == 1);
        let is_proven = move |held: &Held| match has_group {
            true => held.standing == Standing::Shares,
            false => alone && held.accepted && held.issued == (issuers == 1),
        };
        let is_disputed = self.is_disputed();
        let proven = self.holders.iter();
        proven
            .filter(move |(_, held)| !is_disputed && is_proven(held))
            .map(|(&server, _)| server)
    }
}

/// What is known of key names in one pool. Servers are known by numbers of the caller's choice.
#[derive(Debug, Default)]
pub struct KeyNames {
    names: BTreeMap<KeyName, Name>,
    /// What each server accepted once, oldest first.
    once: BTreeMap<u32, VecDeque<Token>>,
    turn: u64,
    revision: u64,
}

impl KeyNames {
    /// A server put the same prefix on two tickets, for two sessions.
    pub fn issued(&mut self, server: u32, name: KeyName) {
        self.hold(server, name, |held| held.issued = true);
    }

    /// A whole look at a server has shown it to issue tickets that begin so, and no others. It may accept
    /// older ones still; but where two keys begin the same, neither is this server's any more.
    pub fn issues_only(&mut self, server: u32, issued: &[KeyName]) {
        let mut gone = Vec::new();
        for (name, known) in &mut self.names {
            let is_disputed = known.is_disputed();
            let Some(held) = known.holders.get_mut(&server) else {
                continue;
            };
            if issued.contains(name) {
                continue;
            }
            self.revision += u64::from(held.issued);
            held.issued = false;
            if is_disputed || !(held.accepted || held.standing == Standing::Shares) {
                gone.push(*name);
            }
        }
        for name in gone {
            self.leave(server, name);
        }
    }

    /// A server accepted a ticket of a client. `certain`: that very ticket, and not another offer of
    /// the client, as far as anyone can tell; otherwise it may only confirm what is known.
    pub fn accepted(&mut self, server: u32, token: Token, certain: bool) {
        let known = self.names.get(&token.name);
        let held = known.and_then(|name| name.holders.get(&server));
        if held.is_some_and(|held| held.accepted) {
            self.hold(server, token.name, |held| held.accepted = true);
            return;
        }
        if !certain {
            return;
        }
        let once = self.once.entry(server).or_default();
        match once.iter().position(|other| other.name == token.name) {
            Some(at) if once[at] != token => {
                once.remove(at);
                self.hold(server, token.name, |held| held.accepted = true);
            }
            Some(_) => {}
            None => {
                if once.len() >= MAX_ONCE {
                    once.pop_front();
                }
                once.push_back(token);
            }
        }
    }

    /// A ticket that `from` had just issued was offered to `to`, which resumed it or did not.
    pub fn tried(&mut self, name: KeyName, from: u32, to: u32, resumed: bool) {
        match resumed {
            _ if from == to => {}
            true => self.resumed(name, from, to),
            false => self.refused(name, from, to),
        }
    }

    fn resumed(&mut self, name: KeyName, from: u32, to: u32) {
        let known = self.names.get(&name);
        let is_of_it = |known: &Name| {
            let mut standings = [from, to].into_iter().map(|it| known.standing(it));
            standings.any(|standing| standing == Standing::Shares)
        };
        // Else they share a key that is not the group's, or the group is still to be asked.
        if known.is_none_or(|known| !known.has(Standing::Shares) || is_of_it(known)) {
            for server in [from, to] {
                self.hold(server, name, |held| held.standing = Standing::Shares);
            }
        }
    }

    fn refused(&mut self, name: KeyName, from: u32, to: u32) {
        self.issued(from, name);
        let Some(known) = self.names.get(&name) else {
            return;
        };
        let shares = |server| known.standing(server) == Standing::Shares;
        let issues = known.holders.get(&to).is_some_and(|held| held.issued);
        let has_lost_it = match shares(to) {
            true => shares(from),
            // It may have accepted such tickets before its key was changed.
            false => !issues,
        };
        if has_lost_it {
            self.leave(to, name);
            return;
        }
        let apart = [from, to].map(|server| (!shares(server)).then_some(server));
        for server in apart.into_iter().flatten() {
            self.hold(server, name, |held| held.standing = Standing::Apart);
        }
    }

    /// A server refused a ticket that it had just issued itself. Where others of its group are left, they
    /// are the ones that hold the key; where not, there is nobody better.
    pub fn lost(&mut self, server: u32, name: KeyName) {
        let leads_elsewhere = |known: &Name| {
            let others = known.proven().any(|other| other != server);
            others && known.standing(server) == Standing::Shares
        };
        if self.names.get(&name).is_some_and(leads_elsewhere) {
            self.leave(server, name);
        }
    }

    /// Where a fresh ticket of `server` that begins so should be tried, to learn whether they share
    /// a key: at the group, then at those that may be of it, first at whom nothing was heard of for
    /// longest.
    #[must_use]
    pub fn to_try(&self, name: KeyName, server: u32) -> Vec<u32> {
        let Some(known) = self.names.get(&name) else {
            return Vec::new();
        };
        let others = known.holders.iter().filter(|(other, _)| **other != server);
        let order = |held: &Held| (held.standing != Standing::Shares, held.turn);
        let mut others: Vec<_> = others.map(|(&other, held)| (order(held), other)).collect();
        others.sort_unstable();
        others.into_iter().map(|(_, other)| other).collect()
    }

    /// The servers that are known to resume a ticket that begins so; none where it is not known.
    pub fn servers(&self, name: &KeyName) -> impl Iterator<Item = u32> + '_ {
        self.names.get(name).into_iter().flat_map(Name::proven)
    }

    /// The other servers that are known to share a key with this one.
    #[must_use]
    pub fn group(&self, server: u32) -> BTreeSet<u32> {
        let names = self.names.values();
        let shared = names.filter(|name| name.proven().any(|it| it == server));
        let mut group: BTreeSet<u32> = shared.flat_map(Name::proven).collect();
        group.remove(&server);
        group
    }

    /// The proven names of a server.
    pub fn of(&self, server: u32) -> impl Iterator<Item = &KeyName> + '_ {
        let names = self.names.iter();
        names
            .filter(move |(_, name)| name.proven().any(|it| it == server))
            .map(|(name, _)| name)
    }

    /// Rises with whatever may have changed the names or the group of a server.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Forgets all about a server: it is gone, or another one has its place.
    pub fn forget(&mut self, server: u32) {
        self.revision += 1;
        self.once.remove(&server);
        self.names.retain(|_, name| {
            name.holders.remove(&server);
            !name.holders.is_empty()
        });
    }

    /// A server no longer resumes tickets that begin so.
    fn leave(&mut self, server: u32, name: KeyName) {
        self.revision += 1;
        if let Some(known) = self.names.get_mut(&name) {
            known.holders.remove(&server);
            if known.holders.is_empty() {
                self.names.remove(&name);
            }
        }
    }

    /// Notes what is known of a server and a name, unless the server's names are as many as there may
    /// be and all better proven.
    fn hold(&mut self, server: u32, name: KeyName, note: impl FnOnce(&mut Held)) {
        self.turn += 1;
        let known = self.names.get(&name);
        let before = known.and_then(|known| known.holders.get(&server)).copied();
        let mut held = before.unwrap_or_default();
        note(&mut held);
        if before.is_none() && !self.make_room(server, &held) {
            return;
        }
        if before != Some(held) {
            self.revision += 1;
        }
        held.turn = self.turn;
        let holders = &mut self.names.entry(name).or_default().holders;
        holders.insert(server, held);
    }

    /// Makes room for one more name of a server: those that say nothing leave first, then those
    /// that were heard of least lately, but none of them for a name that nobody has accepted.
    fn make_room(&mut self, server: u32, fresh: &Held) -> bool {
        let of_server = self.names.iter().filter_map(|(name, known)| {
            let held = known.holders.get(&server)?;
            let is_proven = known.proven().any(|it| it == server);
            Some((is_proven, held.turn, *name))
        });
        let of_server: BTreeSet<_> = of_server.collect();
        if of_server.len() < MAX_NAMES {
            return true;
        }
        let is_accepted = fresh.accepted || fresh.standing == Standing::Shares;
        match of_server.first() {
            Some(&(is_proven, _, name)) if !is_proven || is_accepted => {
                self.leave(server, name);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
