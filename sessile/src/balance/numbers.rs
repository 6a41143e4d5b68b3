//! The numbers of servers, which labels contain.
//!
//! A number is configured, derived from the server's name, or learned from the tickets of a found server.

use std::collections::HashMap;
use std::iter;

use super::server_list::ListedServer;
use crate::key::server_number;

/// Labels could not tell two servers apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "servers {one:?} and {other:?} have the same number, {number}, so that labels cannot tell them apart; set `number` \
     for one of them, here and as server.number in its own file"
)]
pub struct SameNumber {
    pub(super) one: String,
    pub(super) other: String,
    pub(super) number: u32,
}

/// The numbers of a list of servers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    /// In the order of the list. `None` if the number is not known, or does not identify the server.
    pub(super) by_server: Vec<Option<u32>>,
    /// For each number that servers of different names show, two of these servers.
    pub(super) clashes: Vec<SameNumber>,
}

/// Determines the numbers. `learned`: the numbers of the found servers, in the order of the list.
///
/// # Errors
/// Two numbers that are configured or derived are equal.
pub(super) fn server_numbers(
    list: &[ListedServer],
    learned: &[Option<u32>],
    scope: Option<&str>,
) -> Result<Numbers, SameNumber> {
    let numbers: Vec<Option<u32>> = list
        .iter()
        .zip(learned)
        .map(|(server, learned)| {
            if server.is_found() {
                return *learned;
            }
            let settings = &server.settings;
            // The same derivation as on the server.
            let derived = || Some(server_number(scope?, &settings.name));
            settings.number.or_else(derived)
        })
        .collect();
    refuse_equal(list, &numbers)?;
    Ok(without_ambiguous(list, numbers))
}

/// Configured and derived numbers must differ in all pools.
fn refuse_equal(list: &[ListedServer], numbers: &[Option<u32>]) -> Result<(), SameNumber> {
    let mut first = HashMap::new();
    for (server, number) in list.iter().zip(numbers) {
        let Some(number) = number.filter(|_| !server.is_found()) else {
            continue;
        };
        if let Some(twin) = first.insert(number, server) {
            return Err(same_number(twin, server, number));
        }
    }
    Ok(())
}

/// The servers of one pool that have the same number.
struct SameNumbered {
    /// The server whose number is configured or derived, or else the first server of the list.
    owner: usize,
    others: Vec<usize>,
}

/// Removes the numbers that do not identify a server of their pool.
///
/// A configured or derived number identifies its server. A learned number may be that of several servers if
/// they are one target. One server may be in several pools, so equal numbers in different pools are no clash.
fn without_ambiguous(list: &[ListedServer], mut numbers: Vec<Option<u32>>) -> Numbers {
    let mut groups: HashMap<(Option<&str>, u32), SameNumbered> = HashMap::new();
    let mut order = Vec::new();
    for (at, (server, number)) in list.iter().zip(&numbers).enumerate() {
        let Some(number) = *number else { continue };
        let key = (server.settings.pool.as_deref(), number);
        let Some(group) = groups.get_mut(&key) else {
            let others = Vec::new();
            groups.insert(key, SameNumbered { owner: at, others });
            order.push(key);
            continue;
        };
        if server.is_found() {
            group.others.push(at);
        } else {
            group.others.push(group.owner);
            group.owner = at;
        }
    }
    let mut clashes = Vec::new();
    for key in order {
        let SameNumbered { owner, others } = &groups[&key];
        let first = &list[*owner];
        let same_number_at = others.iter().copied();
        let mut dropped: Vec<usize> = same_number_at
            .filter(|&at| !is_one_target(first, &list[at]))
            .collect();
        if let Some(&stranger) = dropped.first() {
            clashes.push(same_number(first, &list[stranger], key.1));
        }
        if !dropped.is_empty() && first.is_found() {
            // No server of the group has a better claim to the number.
            dropped = iter::once(owner).chain(others).copied().collect();
        }
        for at in dropped {
            numbers[at] = None;
        }
    }
    Numbers {
        by_server: numbers,
        clashes,
    }
}

/// True if labels with the number of both servers may lead to either.
///
/// A machine can have an IPv4 and an IPv6 address. A restarted pod keeps its number, and gets a new address.
fn is_one_target(one: &ListedServer, other: &ListedServer) -> bool {
    one.address == other.address || one.settings.address == other.settings.address
}

fn same_number(one: &ListedServer, other: &ListedServer, number: u32) -> SameNumber {
    SameNumber {
        one: one.settings.name.clone(),
        other: other.settings.name.clone(),
        number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BalanceServer, ServerAddress};

    fn server(name: &str, address: &str, number: Option<u32>, pool: Option<&str>) -> ListedServer {
        let address: ServerAddress = address.parse().unwrap();
        ListedServer {
            settings: BalanceServer {
                number,
                pool: pool.map(str::to_owned),
                ..BalanceServer::new(name.to_owned(), address)
            },
            address: "10.0.0.1:443".parse().unwrap(),
            entry: name.to_owned(),
        }
    }

    /// A server of an entry.
    fn at(entry: &ListedServer, address: &str) -> ListedServer {
        ListedServer {
            address: address.parse().unwrap(),
            ..entry.clone()
        }
    }

    fn fixed(name: &str, number: Option<u32>) -> ListedServer {
        server(name, "10.0.0.1:443", number, None)
    }

    fn found(name: &str, pool: Option<&str>) -> ListedServer {
        server(name, &format!("{name}.test:443"), None, pool)
    }

    #[test]
    fn a_number_is_configured_derived_or_learned() {
        let list = [
            fixed("a", Some(7)),
            fixed("b", None),
            found("c", None),
            found("d", None),
        ];
        let learned = [None, None, Some(9), None];
        let numbers = |scope| server_numbers(&list, &learned, scope).unwrap().by_server;
        let derived = server_number("farm", "b");
        assert_eq!(
            numbers(Some("farm")),
            [Some(7), Some(derived), Some(9), None]
        );
        assert_eq!(numbers(None), [Some(7), None, Some(9), None]);
    }

    #[test]
    fn equal_configured_numbers_are_refused() {
        let derived = server_number("farm", "b");
        let list = [fixed("a", Some(derived)), fixed("b", None)];
        let refused = server_numbers(&list, &[None, None], Some("farm")).unwrap_err();
        assert_eq!(refused, same_number(&list[0], &list[1], derived));
    }

    #[test]
    fn a_learned_number_of_different_entries_leads_to_none_of_them() {
        let shop = Some("shop");
        let web = found("web", None);
        let api = at(&found("api", None), "10.0.0.2:443");
        let list = [
            web.clone(),
            api.clone(),
            at(&api, "10.0.0.3:443"),
            at(&web, "[::1]:443"),
            at(&found("e", shop), "10.0.0.9:443"),
        ];
        let learned = [Some(1), Some(1), Some(2), Some(1), Some(1)];
        let numbers = server_numbers(&list, &learned, None).unwrap();
        assert_eq!(numbers.by_server, [None, None, Some(2), None, Some(1)]);
        assert_eq!(numbers.clashes, [same_number(&web, &api, 1)]);
    }

    #[test]
    fn a_learned_number_leads_to_all_addresses_of_one_machine() {
        let web = found("web", None);
        let list = [web.clone(), at(&web, "[::1]:443"), found("other", None)];
        let numbers = server_numbers(&list, &[Some(1); 3], None).unwrap();
        assert_eq!(numbers.by_server, [Some(1); 3]);
        assert_eq!(numbers.clashes, []);
    }

    #[test]
    fn a_configured_number_wins_over_a_learned_one() {
        let web = found("web", None);
        let list = [
            at(&web, "10.0.0.2:443"),
            web.clone(),
            fixed("a", Some(1)),
            fixed("b", Some(2)),
        ];
        let learned = [Some(1), Some(1), None, None];
        let numbers = server_numbers(&list, &learned, None).unwrap();
        // The second server has the address of the configured server.
        assert_eq!(numbers.by_server, [None, Some(1), Some(1), Some(2)]);
        assert_eq!(numbers.clashes, [same_number(&list[2], &list[0], 1)]);
    }
}
