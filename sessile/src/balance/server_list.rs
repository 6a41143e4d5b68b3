//! Derives the list of servers from the configuration, the answers of DNS and the changes of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use sessile_proto::name_resolution::FoundServer;
use sessile_proto::route;

use crate::admin::ServerChange;
use crate::config::{Balance, BalanceServer, ServerAddress};
use crate::key::RouteKeyring;

/// The inputs from which a server set is made.
#[derive(Clone)]
pub(super) struct SetInputs {
    /// The configuration, with the servers that the API added.
    pub(super) balance: Balance,
    /// `None` without a key.
    pub(super) route_keys: Option<Arc<RouteKeyring>>,
    /// The servers in the last answer for each name.
    pub(super) found: BTreeMap<ServerAddress, Vec<FoundServer>>,
    /// Changes to single servers of a name, by the names of these servers.
    pub(super) changes: BTreeMap<String, ServerChange>,
    /// The names of the entries that the API added.
    pub(super) api_servers: BTreeSet<String>,
    /// Found servers that are not used, because another server has their name or their id.
    skipped: BTreeSet<String>,
}

/// A server of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedServer {
    /// The settings. A server that was found by a DNS name has its own name and weight.
    pub(super) settings: BalanceServer,
    pub(super) address: SocketAddr,
    /// The name of the entry in the configuration.
    pub(super) entry: String,
}

impl ListedServer {
    /// True if DNS gave the address.
    pub(super) fn is_found(&self) -> bool {
        self.settings.address.is_name()
    }
}

impl SetInputs {
    /// The inputs of a configuration without names.
    pub(super) fn new(balance: Balance, route_keys: Option<Arc<RouteKeyring>>) -> Self {
        Self {
            balance,
            route_keys,
            found: BTreeMap::new(),
            changes: BTreeMap::new(),
            api_servers: BTreeSet::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// Takes over another configuration and key. The answers for names and the servers of the API stay.
    pub(super) fn reload(&mut self, written: Balance, route_keys: Option<Arc<RouteKeyring>>) {
        let running = mem::replace(&mut self.balance, written);
        self.route_keys = route_keys;
        self.changes.clear();
        let written: BTreeSet<String> = names_of(&self.balance.servers);
        let mut kept = BTreeSet::new();
        for server in running.servers {
            if !self.api_servers.contains(&server.name) {
                continue;
            }
            if written.contains(&server.name) {
                tracing::warn!(
                    server = server.name,
                    "the configuration now has a server with the name of a server that the API added; the server of \
                     the API is removed"
                );
            } else if !has_pool(&self.balance, server.pool.as_deref()) {
                tracing::warn!(
                    server = server.name,
                    pool = server.pool,
                    "the configuration has no longer the pool of a server that the API added; the server is removed"
                );
            } else {
                kept.insert(server.name.clone());
                self.balance.servers.push(server);
            }
        }
        self.api_servers = kept;
    }

    /// The DNS names of the configuration.
    pub(super) fn names(&self) -> BTreeSet<&ServerAddress> {
        names(&self.balance)
    }

    /// True if the configuration has this DNS name.
    pub(super) fn has_name(&self, name: &ServerAddress) -> bool {
        let mut servers = self.balance.servers.iter();
        servers.any(|server| server.address == *name)
    }

    /// The servers, in the order of the configuration. Forgets what concerns servers that are gone.
    pub(super) fn list(&mut self) -> Vec<ListedServer> {
        let names: BTreeSet<_> = self.names().into_iter().cloned().collect();
        self.found.retain(|name, _| names.contains(name));
        let configured = names_of(&self.balance.servers);
        let mut taken: BTreeSet<u32> = configured.iter().map(|name| short_id(name)).collect();
        let mut used = BTreeSet::new();
        let mut skipped = BTreeSet::new();
        let mut list = Vec::with_capacity(self.balance.servers.len());
        for entry in &self.balance.servers {
            if let Some(address) = entry.address.socket() {
                list.push(ListedServer {
                    settings: entry.clone(),
                    address,
                    entry: entry.name.clone(),
                });
                continue;
            }
            for server in self.found.get(&entry.address).into_iter().flatten() {
                let settings = found_settings(entry, server, &self.changes);
                // Names are hashed to ids, and the learned table has ids only.
                if taken.insert(short_id(&settings.name)) {
                    used.insert(settings.name.clone());
                    list.push(ListedServer {
                        settings,
                        address: server.address,
                        entry: entry.name.clone(),
                    });
                } else {
                    skipped.insert(settings.name);
                }
            }
        }
        for name in skipped.difference(&self.skipped) {
            tracing::warn!(
                server = name,
                "a server that DNS gave is not used, because another server has its name or the same internal id; \
                 change the name of the entry"
            );
        }
        self.skipped = skipped;
        self.changes.retain(|name, _| used.contains(name));
        list
    }
}

fn names_of(servers: &[BalanceServer]) -> BTreeSet<String> {
    servers.iter().map(|server| server.name.clone()).collect()
}

/// The id of a server in the learned table and in key names.
pub(super) fn short_id(name: &str) -> u32 {
    route::server_id(name) as u32
}

/// The DNS names of a configuration.
pub(super) fn names(balance: &Balance) -> BTreeSet<&ServerAddress> {
    let addresses = balance.servers.iter().map(|server| &server.address);
    addresses.filter(|address| address.is_name()).collect()
}

/// True if the configuration has the pool. `None` is the default pool.
fn has_pool(balance: &Balance, name: Option<&str>) -> bool {
    name.is_none_or(|name| balance.pools.iter().any(|pool| pool.name == name))
}

/// The name of a server that was found by the DNS name of an entry.
fn found_name(entry: &str, address: SocketAddr) -> String {
    format!("{entry}/{address}")
}

/// The entry whose server would have this name. `None` if the name is not of the form `ENTRY/IP:PORT`, or if the
/// entry has no DNS name.
pub(super) fn finding_entry<'e>(name: &str, entries: &'e [BalanceServer]) -> Option<&'e str> {
    let (entry, address) = name.rsplit_once('/')?;
    address.parse::<SocketAddr>().ok()?;
    let mut named = entries.iter().filter(|other| other.address.is_name());
    let found = named.find(|other| other.name == entry)?;
    Some(&found.name)
}

/// The settings of one server of a name.
fn found_settings(
    entry: &BalanceServer,
    server: &FoundServer,
    changes: &BTreeMap<String, ServerChange>,
) -> BalanceServer {
    let name = found_name(&entry.name, server.address);
    let change = changes.get(&name).copied().unwrap_or_default();
    let weight = change.weight.map(Into::into).or(server.weight);
    BalanceServer {
        drain: change.drain.unwrap_or(entry.drain),
        weight: weight.unwrap_or(entry.weight),
        name,
        ..entry.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, address: &str) -> BalanceServer {
        let address: ServerAddress = address.parse().unwrap();
        BalanceServer::new(name.to_owned(), address)
    }

    fn found(address: &str, weight: Option<u16>) -> FoundServer {
        let address = address.parse().unwrap();
        FoundServer { address, weight }
    }

    fn inputs(entries: &[BalanceServer]) -> SetInputs {
        let balance = Balance {
            servers: entries.to_vec(),
            ..Balance::default()
        };
        SetInputs::new(balance, None)
    }

    /// The names and weights of the servers, and which of them drain.
    fn shown(list: &[ListedServer]) -> Vec<(&str, u16, bool)> {
        let settings = list.iter().map(|server| &server.settings);
        let shown = settings.map(|server| (server.name.as_str(), server.weight, server.drain));
        shown.collect()
    }

    #[test]
    fn each_address_of_a_name_is_a_server_with_the_settings_of_the_entry() {
        let host = BalanceServer {
            weight: 3,
            pool: Some("shop".to_owned()),
            max_connections: 7,
            ..entry("web", "web.shop.test:443")
        };
        let mut inputs = inputs(&[entry("one", "10.0.0.1:443"), host.clone()]);
        assert_eq!(shown(&inputs.list()), [("one", 1, false)]);
        let servers = vec![found("10.0.0.2:443", None), found("[::1]:443", None)];
        inputs.found.insert(host.address.clone(), servers);
        let list = inputs.list();
        let expected = [
            ("one", 1, false),
            ("web/10.0.0.2:443", 3, false),
            ("web/[::1]:443", 3, false),
        ];
        assert_eq!(shown(&list), expected);
        let last = &list[2];
        assert_eq!(last.address, "[::1]:443".parse().unwrap());
        assert_eq!(last.entry, "web");
        let settings = BalanceServer {
            name: "web/[::1]:443".to_owned(),
            ..host
        };
        assert_eq!(last.settings, settings);
        assert_eq!(list.iter().filter(|server| server.is_found()).count(), 2);
    }

    #[test]
    fn the_weight_of_a_record_counts_and_a_change_of_the_api_counts_before_it() {
        let service = entry("web", "_tls._tcp.web.test");
        let mut inputs = inputs(std::slice::from_ref(&service));
        let servers = vec![
            found("10.0.0.1:8443", Some(20)),
            found("10.0.0.2:8444", Some(5)),
        ];
        inputs.found.insert(service.address, servers);
        let [one, other] = ["web/10.0.0.1:8443", "web/10.0.0.2:8444"];
        assert_eq!(shown(&inputs.list()), [(one, 20, false), (other, 5, false)]);
        let change = ServerChange {
            drain: Some(true),
            weight: Some(9.try_into().unwrap()),
        };
        inputs.changes.insert(other.to_owned(), change);
        assert_eq!(shown(&inputs.list()), [(one, 20, false), (other, 9, true)]);
    }

    #[test]
    fn entries_with_one_name_share_its_servers_and_what_is_gone_is_forgotten() {
        let entries = [entry("a", "web.test:1"), entry("b", "web.test:1")];
        let mut inputs = inputs(&entries);
        let name = &entries[0].address;
        inputs
            .found
            .insert(name.clone(), vec![found("10.0.0.1:1", None)]);
        let change = ServerChange::default();
        inputs.changes.insert("a/10.0.0.1:1".to_owned(), change);
        let list = inputs.list();
        assert_eq!(
            shown(&list),
            [("a/10.0.0.1:1", 1, false), ("b/10.0.0.1:1", 1, false)]
        );
        inputs.balance.servers.remove(0);
        assert_eq!(shown(&inputs.list()), [("b/10.0.0.1:1", 1, false)]);
        assert!(inputs.changes.is_empty());
        inputs.balance.servers.clear();
        assert_eq!(inputs.list(), []);
        assert!(inputs.found.is_empty());
    }

    #[test]
    fn a_configured_server_keeps_its_name() {
        let entries = [
            entry("web", "web.test:1"),
            entry("web/10.0.0.1:1", "10.0.0.9:1"),
        ];
        let mut inputs = inputs(&entries);
        let servers = vec![found("10.0.0.1:1", None)];
        inputs.found.insert(entries[0].address.clone(), servers);
        assert_eq!(shown(&inputs.list()), [("web/10.0.0.1:1", 1, false)]);
        assert!(inputs.skipped.contains("web/10.0.0.1:1"));
        inputs.balance.servers.pop();
        assert_eq!(inputs.list().len(), 1);
        assert!(inputs.skipped.is_empty());
    }

    #[test]
    fn names_of_servers_that_dns_can_give_are_recognized() {
        let entries = [entry("web", "web.test:1"), entry("one", "10.0.0.1:1")];
        let finding = |name| finding_entry(name, &entries);
        assert_eq!(finding("web/10.0.0.1:1"), Some("web"));
        assert_eq!(finding("web/[::1]:1"), Some("web"));
        for other in [
            "web/10.0.0.1",
            "web/x:1",
            "one/10.0.0.1:1",
            "no/10.0.0.1:1",
            "web",
        ] {
            assert_eq!(finding(other), None);
        }
    }

    #[test]
    fn a_found_server_whose_id_is_taken_is_not_used() {
        // The ids of these two names are equal.
        let [web, one] = ["web/10.0.242.1:446", "s9444"];
        let entries = [entry("web", "web.test:1"), entry(one, "10.0.0.9:1")];
        assert_eq!(short_id(web), short_id(one));
        let mut inputs = inputs(&entries);
        let address = web.strip_prefix("web/").unwrap();
        let servers = vec![found(address, None), found("10.0.0.1:2", None)];
        inputs.found.insert(entries[0].address.clone(), servers);
        let list = inputs.list();
        assert_eq!(
            shown(&list),
            [("web/10.0.0.1:2", 1, false), (one, 1, false)]
        );
    }
}
