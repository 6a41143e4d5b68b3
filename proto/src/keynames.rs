//! Key names: the stable first bytes that most servers put on their tickets, and which servers
//! resume tickets that begin so. Nothing is taken for one on its looks. A prefix has to be proven by
//! tickets that servers accepted; and where several servers issue it, by a ticket of one that another
//! resumed: a format header looks the same on servers that share no key, and random bytes never come
//! twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use aws_lc_rs::digest;

/// Bytes of a key name (RFC 5077, 4).
pub const LEN: usize = 16;

/// Most names of a server: the keys of a week that change every few hours.
pub const MAX_NAMES: usize = 32;

/// Most prefixes of a server that were accepted once.
pub const MAX_ONCE: usize = 64;

/// Most servers that one ticket is tried at.
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

/// What is known of a server and a prefix.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// It put the prefix on two tickets.
    issued: bool,
    /// It accepted two tickets that begin so.
    accepted: bool,
    /// It resumed a ticket of another holder, or another holder one of its own.
    shared: bool,
    /// Of what was last heard of it; the smaller, the longer ago.
    turn: u64,
}

/// A prefix that may be a key's name.
#[derive(Clone, Debug, Default)]
struct Name {
    holders: BTreeMap<u32, Held>,
    /// One issuer refused what another had just issued: no key's name, or no longer.
    refuted: bool,
}

impl Name {
    /// The servers that resume tickets that begin so, as far as it is proven: those that have shown
    /// it to each other, else the only one that issues them, else the only one that accepts them.
    fn proven(&self) -> impl Iterator<Item = u32> + '_ {
        let shared = self.holders.values().any(|held| held.shared);
        let issuers = self.holders.values().filter(|held| held.issued).count();
        let alone = issuers == 1 || (issuers == 0 && self.holders.len() == 1);
        let is_proven = move |held: &Held| match shared {
            true => held.shared,
            false => alone && held.accepted && held.issued == (issuers == 1),
        };
        let proven = self.holders.iter();
        proven
            .filter(move |(_, held)| !self.refuted && is_proven(held))
            .map(|(&server, _)| server)
    }
}

/// What is known of key names. Servers are known by numbers of the caller's choice.
#[derive(Debug, Default)]
pub struct KeyNames {
    names: BTreeMap<KeyName, Name>,
    /// What each server accepted once, oldest first.
    once: BTreeMap<u32, VecDeque<Token>>,
    turn: u64,
}

impl KeyNames {
    /// A server put the same prefix on two tickets, for two sessions.
    pub fn issued(&mut self, server: u32, name: KeyName) {
        self.hold(server, name, |held| held.issued = true);
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
        if from == to {
            return;
        }
        if resumed {
            self.hold(from, name, |held| held.shared = true);
            self.hold(to, name, |held| held.shared = true);
        }
        let Some(known) = self.names.get_mut(&name) else {
            return;
        };
        let issues = |server| known.holders.get(server).is_some_and(|held| held.issued);
        if resumed {
            known.refuted = false;
        } else if issues(&from) && issues(&to) {
            known.refuted = true;
        } else {
            // It may have accepted such tickets before its key was changed.
            known.holders.remove(&to);
        }
    }

    /// Where a fresh ticket of `server` that begins so should be tried, to learn whether they share
    /// a key: at the other holders, at one of those that are known to.
    #[must_use]
    pub fn to_try(&self, name: KeyName, server: u32) -> Vec<u32> {
        let Some(known) = self.names.get(&name) else {
            return Vec::new();
        };
        let others = known.holders.iter().filter(|(other, _)| **other != server);
        let is_shared = |held: &Held| !known.refuted && held.shared;
        let (shared, apart): (Vec<_>, Vec<_>) = others.partition(|(_, held)| is_shared(held));
        let one = shared.into_iter().take(1);
        one.chain(apart)
            .map(|(&other, _)| other)
            .take(MAX_TRIES)
            .collect()
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

    /// Forgets all about a server: it is gone, or another one has its place.
    pub fn forget(&mut self, server: u32) {
        self.once.remove(&server);
        self.names.retain(|_, name| {
            name.holders.remove(&server);
            !name.holders.is_empty()
        });
    }

    /// Notes what is known of a server and a name, unless the server's names are as many as there may
    /// be and all better proven.
    fn hold(&mut self, server: u32, name: KeyName, note: impl FnOnce(&mut Held)) {
        self.turn += 1;
        let mut fresh = Held::default();
        let known = self.names.get_mut(&name);
        match known.and_then(|known| known.holders.get_mut(&server)) {
            Some(held) => {
                note(held);
                held.turn = self.turn;
            }
            None => {
                note(&mut fresh);
                fresh.turn = self.turn;
                if self.make_room(server, &fresh) {
                    let holders = &mut self.names.entry(name).or_default().holders;
                    holders.insert(server, fresh);
                }
            }
        }
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
        match of_server.first() {
            Some(&(is_proven, _, name)) if !is_proven || fresh.accepted || fresh.shared => {
                if let Some(known) = self.names.get_mut(&name) {
                    known.holders.remove(&server);
                    if known.holders.is_empty() {
                        self.names.remove(&name);
                    }
                }
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: u32 = 1;
    const B: u32 = 2;
    const C: u32 = 3;

    const fn name(n: u8) -> KeyName {
        [n; LEN]
    }

    /// The `n`th ticket that begins with that name.
    fn ticket(of: u8, n: u32) -> Token {
        let mut bytes = [of; 64].to_vec();
        bytes.extend(n.to_be_bytes());
        Token::new(&bytes).unwrap()
    }

    fn servers(names: &KeyNames, of: u8) -> Vec<u32> {
        names.servers(&name(of)).collect()
    }

    #[test]
    fn two_tickets_that_a_server_accepted_prove_its_name() {
        let mut names = KeyNames::default();
        names.accepted(A, ticket(7, 1), true);
        names.accepted(A, ticket(7, 1), true);
        assert_eq!(servers(&names, 7), []);
        names.accepted(A, ticket(7, 2), true);
        assert_eq!(servers(&names, 7), [A]);
        assert_eq!(names.of(A).collect::<Vec<_>>(), [&name(7)]);
        assert!(names.group(A).is_empty());
    }

    #[test]
    fn what_a_server_puts_on_its_tickets_proves_nothing() {
        let mut names = KeyNames::default();
        names.issued(A, name(7));
        names.issued(A, name(7));
        names.accepted(A, ticket(7, 1), true);
        assert_eq!(servers(&names, 7), []);
    }

    #[test]
    fn a_header_of_servers_that_share_no_key_is_no_name() {
        let mut names = KeyNames::default();
        for server in [A, B] {
            names.issued(server, name(7));
            for n in 0..2 {
                names.accepted(server, ticket(7, 10 * server + n), true);
            }
        }
        // Either may be right, as far as is known.
        assert_eq!(servers(&names, 7), []);
        assert_eq!(names.to_try(name(7), A), [B]);
        names.tried(name(7), A, B, false);
        assert_eq!(servers(&names, 7), []);
        names.accepted(A, ticket(7, 99), true);
        names.accepted(C, ticket(7, 1), true);
        names.accepted(C, ticket(7, 2), true);
        assert_eq!(servers(&names, 7), []);
        assert!(names.group(A).is_empty());
    }

    #[test]
    fn who_is_not_checked_is_believed_while_no_other_accepts_the_same() {
        let mut names = KeyNames::default();
        let accept = |names: &mut KeyNames, server| {
            for n in 0..2 {
                names.accepted(server, ticket(7, n), true);
            }
        };
        accept(&mut names, A);
        assert_eq!(servers(&names, 7), [A]);
        accept(&mut names, B);
        assert_eq!(servers(&names, 7), []);
        // A check finds out whose it is.
        names.issued(B, name(7));
        assert_eq!(servers(&names, 7), [B]);
        names.tried(name(7), B, A, false);
        assert_eq!(servers(&names, 7), [B]);
        assert_eq!(names.to_try(name(7), B), []);
    }

    #[test]
    fn a_ticket_of_one_that_resumes_at_another_makes_them_a_group() {
        let mut names = KeyNames::default();
        for server in [A, B, C] {
            names.issued(server, name(7));
        }
        names.tried(name(7), B, A, true);
        assert_eq!(servers(&names, 7), [A, B]);
        assert_eq!(names.to_try(name(7), C), [A]);
        names.tried(name(7), C, A, true);
        assert_eq!(servers(&names, 7), [A, B, C]);
        assert_eq!(names.group(B), [A, C].into());
        // One of them has a new key that the others have not.
        names.tried(name(7), A, B, false);
        assert_eq!(servers(&names, 7), []);
        names.tried(name(7), A, B, true);
        assert_eq!(servers(&names, 7), [A, B, C]);
    }

    #[test]
    fn under_encrypted_hellos_nothing_is_proven_and_what_is_proven_stays() {
        let mut names = KeyNames::default();
        for n in 0..9 {
            names.accepted(A, ticket(7, n), false);
        }
        assert_eq!(servers(&names, 7), []);
        for n in 0..2 {
            names.accepted(A, ticket(7, n), true);
        }
        names.accepted(B, ticket(7, 1), false);
        names.accepted(B, ticket(7, 2), false);
        assert_eq!(servers(&names, 7), [A]);
    }

    #[test]
    fn random_prefixes_take_a_bounded_place_and_push_no_name_out() {
        let mut names = KeyNames::default();
        for n in 0..2 {
            names.accepted(A, ticket(7, n), true);
        }
        for n in 0..10_000_u32 {
            let mut random = [0; 64];
            random[..4].copy_from_slice(&n.to_be_bytes());
            names.accepted(A, Token::new(&random).unwrap(), true);
            let mut looks_like_one = name(0);
            looks_like_one[..4].copy_from_slice(&n.to_le_bytes());
            names.issued(A, looks_like_one);
        }
        assert_eq!(servers(&names, 7), [A]);
        assert_eq!(names.names.len(), MAX_NAMES);
        assert_eq!(names.once[&A].len(), MAX_ONCE);
    }

    #[test]
    fn of_proven_names_the_one_heard_of_least_lately_leaves() {
        let mut names = KeyNames::default();
        let prove = |names: &mut KeyNames, of: u8| {
            for n in 0..2 {
                names.accepted(A, ticket(of, n), true);
            }
        };
        for of in 0..MAX_NAMES as u8 {
            prove(&mut names, of);
        }
        names.accepted(A, ticket(0, 9), false);
        prove(&mut names, 200);
        assert_eq!(servers(&names, 0), [A]);
        assert_eq!(servers(&names, 1), []);
        assert_eq!(servers(&names, 200), [A]);
    }

    #[test]
    fn a_server_that_is_forgotten_leaves_the_others_their_names() {
        let mut names = KeyNames::default();
        names.tried(name(7), A, B, true);
        names.tried(name(7), A, C, true);
        names.forget(B);
        assert_eq!(servers(&names, 7), [A, C]);
        names.forget(A);
        names.forget(C);
        assert!(names.names.is_empty());
    }

    #[test]
    fn an_identifier_is_no_ticket() {
        assert_eq!(Token::new(&[1; 31]), None);
        assert!(Token::new(&[1; 32]).is_some());
    }

    proptest! {
        /// Whatever is reported, tables stay bounded, and a name that leads to several servers does so
        /// because one resumed another's ticket.
        #[test]
        fn names_are_bounded_and_proven(
            steps in prop::collection::vec((0..5_u8, 0..4_u32, 0..4_u32, 0..50_u8, any::<bool>()), 0..600),
        ) {
            let mut names = KeyNames::default();
            let mut resumed = BTreeSet::new();
            for (kind, server, other, of, flag) in steps {
                match kind {
                    0 => names.issued(server, name(of)),
                    1 | 2 => names.accepted(server, ticket(of, other), flag),
                    3 => {
                        names.tried(name(of), server, other, flag);
                        if flag && server != other {
                            resumed.extend([(of, server), (of, other)]);
                        }
                    }
                    _ => names.forget(server),
                }
            }
            for server in 0..4 {
                let held = names.names.values().filter(|it| it.holders.contains_key(&server));
                prop_assert!(held.count() <= MAX_NAMES);
                prop_assert!(names.once.get(&server).is_none_or(|it| it.len() <= MAX_ONCE));
                for other in names.group(server) {
                    prop_assert!(names.group(other).contains(&server));
                }
            }
            for of in 0..50 {
                let found = servers(&names, of);
                prop_assert!(found.len() < 2 || found.iter().all(|&it| resumed.contains(&(of, it))));
            }
        }
    }
}
