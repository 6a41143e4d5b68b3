//! The numbers of servers, which labels contain. A number is configured, derived from the server's name, or
//! learned from the tickets of a server that was found by a DNS name.

use std::collections::{BTreeSet, HashMap};

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
    /// In the order of the list. `None` if the number is not known, or if another server of the pool has it.
    pub(super) by_server: Vec<Option<u32>>,
    /// Servers whose tickets show the same number.
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
    Ok(without_equal(list, numbers))
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

/// Removes the numbers that a found server has in common with another server of its pool. One server may be
/// found in several pools, so equal numbers in different pools are no clash.
fn without_equal(list: &[ListedServer], mut numbers: Vec<Option<u32>>) -> Numbers {
    let mut first: HashMap<_, &ListedServer> = HashMap::new();
    let mut clashes = Vec::new();
    let mut equal = BTreeSet::new();
    for (server, number) in list.iter().zip(&numbers) {
        let Some(number) = *number else { continue };
        let key = (&server.settings.pool, number);
        let Some(twin) = first.get(&key) else {
            first.insert(key, server);
            continue;
        };
        clashes.push(same_number(twin, server, number));
        equal.insert(key);
    }
    for (server, number) in list.iter().zip(&mut numbers) {
        if number.is_some_and(|number| equal.contains(&(&server.settings.pool, number))) {
            *number = None;
        }
    }
    Numbers {
        by_server: numbers,
        clashes,
    }
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

    fn fixed(name: &str, number: Option<u32>) -> ListedServer {
        server(name, "10.0.0.1:443", number, None)
    }

    fn found(name: &str, pool: Option<&str>) -> ListedServer {
        server(name, "web.test:443", None, pool)
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
    fn an_equal_learned_number_counts_for_no_server_of_the_pool() {
        let shop = Some("shop");
        let list = [
            found("a", None),
            fixed("b", Some(1)),
            found("c", None),
            found("d", None),
            found("e", shop),
        ];
        let learned = [Some(1), None, Some(2), Some(1), Some(1)];
        let numbers = server_numbers(&list, &learned, None).unwrap();
        assert_eq!(numbers.by_server, [None, None, Some(2), None, Some(1)]);
        let clashes = [(0, 1), (0, 3)].map(|(one, other)| same_number(&list[one], &list[other], 1));
        assert_eq!(numbers.clashes, clashes);
    }
}
