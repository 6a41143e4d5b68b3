use proptest::prelude::*;

use super::*;

const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;

const fn name(n: u8) -> KeyName {
    [n; LEN]
}

/// The `n`th ticket with this name.
fn ticket(of: u8, n: u32) -> TicketFingerprint {
    let mut bytes = [of; 64].to_vec();
    bytes.extend(n.to_be_bytes());
    TicketFingerprint::new(&bytes).unwrap()
}

fn servers(names: &KeyNames, of: u8) -> Vec<u32> {
    names.servers(&name(of)).collect()
}

#[test]
fn two_accepted_tickets_prove_a_name() {
    let mut names = KeyNames::default();
    names.accepted(A, ticket(7, 1), true);
    names.accepted(A, ticket(7, 1), true);
    assert_eq!(servers(&names, 7), []);
    names.accepted(A, ticket(7, 2), true);
    assert_eq!(servers(&names, 7), [A]);
    assert_eq!(names.names_of(A).collect::<Vec<_>>(), [&name(7)]);
    assert!(names.group(A).is_empty());
}

#[test]
fn issued_tickets_alone_prove_nothing() {
    let mut names = KeyNames::default();
    names.issued(A, name(7));
    names.issued(A, name(7));
    names.accepted(A, ticket(7, 1), true);
    assert_eq!(servers(&names, 7), []);
}

#[test]
fn a_header_of_servers_without_a_shared_key_is_no_name() {
    let mut names = KeyNames::default();
    for server in [A, B] {
        names.issued(server, name(7));
        for n in 0..2 {
            names.accepted(server, ticket(7, 10 * server + n), true);
        }
    }
    // It is not known yet whether the two servers share a key.
    assert_eq!(servers(&names, 7), []);
    assert_eq!(names.servers_to_try(name(7), A), [B]);
    names.tried(name(7), A, B, false);
    assert_eq!(servers(&names, 7), []);
    names.accepted(A, ticket(7, 99), true);
    names.accepted(C, ticket(7, 1), true);
    names.accepted(C, ticket(7, 2), true);
    assert_eq!(servers(&names, 7), []);
    assert!(names.group(A).is_empty());
}

#[test]
fn an_unchecked_server_is_believed_while_no_other_accepts_its_name() {
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
    // A check finds out which server issues the tickets.
    names.issued(B, name(7));
    assert_eq!(servers(&names, 7), [B]);
    names.tried(name(7), B, A, false);
    assert_eq!(servers(&names, 7), [B]);
    assert_eq!(names.servers_to_try(name(7), B), []);
}

#[test]
fn two_servers_that_resume_each_others_tickets_are_a_group() {
    let mut names = KeyNames::default();
    for server in [A, B, C] {
        names.issued(server, name(7));
    }
    names.tried(name(7), B, A, true);
    assert_eq!(servers(&names, 7), [A, B]);
    assert_eq!(names.servers_to_try(name(7), C), [B, A]);
    names.tried(name(7), C, A, true);
    assert_eq!(servers(&names, 7), [A, B, C]);
    assert_eq!(names.group(B), [A, C].into());
}

/// Three servers that form a group.
fn group() -> KeyNames {
    let mut names = KeyNames::default();
    for server in [A, B, C] {
        names.issued(server, name(7));
        names.tried(name(7), A, server, true);
    }
    names
}

#[test]
fn a_server_that_refuses_its_groups_ticket_leaves_the_group() {
    let mut names = group();
    names.tried(name(7), A, B, false);
    assert_eq!(servers(&names, 7), [A, C]);
    assert_eq!(names.group(A), [C].into());
    assert!(names.group(B).is_empty());
    // The server has a new key of another name.
    names.issued(B, name(8));
    names.issues_only(B, &[name(8)]);
    for n in 0..2 {
        names.accepted(B, ticket(8, n), true);
    }
    assert_eq!(
        (servers(&names, 7), servers(&names, 8)),
        (vec![A, C], vec![B])
    );
    // The server has the old key again.
    names.tried(name(7), B, A, true);
    assert_eq!(servers(&names, 7), [A, B, C]);
}

#[test]
fn a_server_that_refuses_its_own_ticket_leaves_if_others_have_the_key() {
    let mut names = group();
    for server in [B, A] {
        names.refused_own_ticket(server, name(7));
    }
    assert_eq!(servers(&names, 7), [C]);
    names.refused_own_ticket(C, name(7));
    assert_eq!(servers(&names, 7), [C]);
}

#[test]
fn a_second_key_with_the_same_first_bytes_makes_them_a_header() {
    let mut names = KeyNames::default();
    for server in [A, B, C] {
        names.issued(server, name(7));
    }
    names.tried(name(7), A, B, true);
    names.tried(name(7), C, A, false);
    assert_eq!(servers(&names, 7), []);
    // Later reports of the group change nothing.
    names.tried(name(7), A, B, true);
    names.tried(name(7), B, A, true);
    names.refused_own_ticket(B, name(7));
    assert_eq!(servers(&names, 7), []);
    assert_eq!(names.servers_to_try(name(7), C).len(), 2);
    // A whole check shows that the server no longer issues such tickets.
    names.issues_only(C, &[name(8)]);
    assert_eq!(servers(&names, 7), [A, B]);
}

#[test]
fn the_server_with_the_oldest_report_is_asked_first() {
    let mut names = group();
    assert_eq!(names.servers_to_try(name(7), B), [A, C]);
    names.tried(name(7), B, A, true);
    assert_eq!(names.servers_to_try(name(7), B), [C, A]);
    // An unknown server asks the group before all others.
    names.issued(9, name(7));
    assert_eq!(names.servers_to_try(name(7), 10), [C, B, A, 9]);
}

#[test]
fn a_report_that_changes_no_name_is_no_revision() {
    let mut names = group();
    names.accepted(A, ticket(7, 1), true);
    let revision = names.revision();
    names.accepted(A, ticket(7, 1), true);
    names.tried(name(7), A, B, true);
    names.refused_own_ticket(A, name(8));
    assert_eq!(names.revision(), revision);
    names.accepted(A, ticket(7, 2), true);
    assert!(names.revision() > revision);
}

#[test]
fn under_encrypted_hellos_names_are_confirmed_and_never_proven() {
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
fn random_prefixes_take_bounded_room_and_displace_no_name() {
    let mut names = KeyNames::default();
    for n in 0..2 {
        names.accepted(A, ticket(7, n), true);
    }
    for n in 0..10_000_u32 {
        let mut random = [0; 64];
        random[..4].copy_from_slice(&n.to_be_bytes());
        names.accepted(A, TicketFingerprint::new(&random).unwrap(), true);
        let mut looks_like_one = name(0);
        looks_like_one[..4].copy_from_slice(&n.to_le_bytes());
        names.issued(A, looks_like_one);
    }
    assert_eq!(servers(&names, 7), [A]);
    assert_eq!(names.names.len(), MAX_NAMES);
    assert_eq!(names.accepted_once[&A].len(), MAX_ACCEPTED_ONCE);
}

#[test]
fn the_proven_name_with_the_oldest_report_leaves_first() {
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
fn forgetting_a_server_keeps_the_names_of_the_others() {
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
fn an_identifier_has_no_fingerprint() {
    assert_eq!(TicketFingerprint::new(&[1; 31]), None);
    assert!(TicketFingerprint::new(&[1; 32]).is_some());
}

/// The true state of a pool: the key of each server.
struct Pool {
    keys: [u8; 4],
    tickets: u32,
}

/// Keys up to this number put a name on tickets. Larger keys put only the header of a format on them.
const NAMED: u8 = 3;

impl Pool {
    fn name_of(&self, server: u32) -> KeyName {
        name(self.keys[server as usize].min(NAMED))
    }

    /// Checks one server, as the balancer does.
    fn look(&mut self, names: &mut KeyNames, server: u32) {
        let of = self.name_of(server);
        for other in names.servers_to_try(of, server) {
            let resumed = self.keys[server as usize] == self.keys[other as usize];
            names.tried(of, server, other, resumed);
        }
        for _ in 0..2 {
            self.tickets += 1;
            names.accepted(server, ticket(of[0], self.tickets), true);
        }
        names.issued(server, of);
        names.issues_only(server, &[of]);
    }

    fn look_at_all(&mut self, names: &mut KeyNames) {
        for _ in 0..2 {
            for server in 0..4 {
                self.look(names, server);
            }
        }
    }

    /// The servers that a name should lead to.
    fn truth(&self, of: u8) -> Vec<u32> {
        let holders = (0..4).filter(|&it| self.name_of(it) == name(of));
        let holders: Vec<u32> = holders.collect();
        let mut keys: Vec<u8> = holders.iter().map(|&it| self.keys[it as usize]).collect();
        keys.dedup();
        match keys.len() {
            1 => holders,
            _ => Vec::new(),
        }
    }
}

proptest! {
    /// After any changes, a check of all servers finds for each name the servers with its key. A format
    /// header routes to no server.
    #[test]
    fn checks_find_out_which_server_has_which_key(
        steps in prop::collection::vec((0..3_u8, 0..4_u32, 0..6_u8), 0..60),
    ) {
        let mut names = KeyNames::default();
        let mut pool = Pool { keys: [0, 0, 3, 4], tickets: 0 };
        for (kind, server, key) in steps {
            let had = pool.name_of(server);
            match kind {
                0 => pool.keys[server as usize] = key,
                1 => {
                    pool.keys[server as usize] = key;
                    names.refused_own_ticket(server, had);
                }
                _ => pool.look(&mut names, server),
            }
        }
        pool.look_at_all(&mut names);
        for of in 0..=NAMED {
            // No client has a ticket with a name that no server issues.
            if (0..4).any(|server| pool.name_of(server) == name(of)) {
                prop_assert_eq!(servers(&names, of), pool.truth(of), "{:?} {:?}", pool.keys, names);
            }
        }
    }

    /// A server that changes its key leaves its group; the others stay.
    #[test]
    fn a_lost_key_costs_the_group_one_server(
        refused_own_ticket in 0..4_u32,
        looks in prop::collection::vec(0..4_u32, 0..12),
    ) {
        let mut names = KeyNames::default();
        let mut pool = Pool { keys: [0; 4], tickets: 0 };
        pool.look_at_all(&mut names);
        prop_assert_eq!(servers(&names, 0), [0, 1, 2, 3]);
        pool.keys[refused_own_ticket as usize] = 1;
        for server in looks {
            pool.look(&mut names, server);
            let found = servers(&names, 0);
            prop_assert!((0..4).all(|it| it == refused_own_ticket || found.contains(&it)), "{:?}", found);
        }
    }

    /// After any reports the tables are bounded. A name leads to several servers only if one of them resumed
    /// another's ticket.
    #[test]
    fn names_are_bounded_and_proven(
        steps in prop::collection::vec((0..7_u8, 0..4_u32, 0..4_u32, 0..50_u8, any::<bool>()), 0..600),
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
                4 => names.refused_own_ticket(server, name(of)),
                5 => names.issues_only(server, &[name(of)]),
                _ => names.forget(server),
            }
        }
        for server in 0..4 {
            let held = names.names.values().filter(|holders| holders.by_server.contains_key(&server));
            prop_assert!(held.count() <= MAX_NAMES);
            prop_assert!(names.accepted_once.get(&server).is_none_or(|it| it.len() <= MAX_ACCEPTED_ONCE));
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
