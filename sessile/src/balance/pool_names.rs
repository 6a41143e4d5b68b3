//! Finds the pool of a client by the server name (SNI) and the protocols (ALPN) of its ClientHello.

use std::collections::HashMap;

use crate::config::BalancePool;
use crate::server_names::ServerNames;

/// The names and the protocols of all pools. A pool is a position in the list of pools.
#[derive(Default)]
pub(super) struct PoolNames {
    by_name: ServerNames<usize>,
    /// Pools with a protocol. The default pool has none.
    by_protocol: HashMap<Vec<u8>, ProtocolPools>,
}

/// The pools of one protocol.
#[derive(Default)]
struct ProtocolPools {
    by_name: ServerNames<usize>,
    /// The pool without names, which takes every other name.
    any_name: Option<usize>,
}

impl PoolNames {
    /// Adds the pool at this position.
    pub(super) fn insert(&mut self, pool: &BalancePool, at: usize) {
        let by_name = match &pool.alpn {
            None => &mut self.by_name,
            Some(protocol) => {
                let protocol = protocol.as_bytes().to_vec();
                let pools = self.by_protocol.entry(protocol).or_default();
                if pool.names.is_empty() {
                    pools.any_name = Some(at);
                }
                &mut pools.by_name
            }
        };
        for name in &pool.names {
            by_name.insert(name, at);
        }
    }

    /// The pool of a client. A pool with a protocol goes before a pool without one, and then a pool with names
    /// before a pool without names. Among several protocols, the client's order decides.
    pub(super) fn find<'p>(
        &self,
        name: Option<&str>,
        protocols: impl Iterator<Item = &'p [u8]> + Clone,
    ) -> Option<usize> {
        self.find_by_protocol(name, protocols).or_else(|| {
            let at = self.by_name.find(name?)?;
            Some(*at)
        })
    }

    /// Like [`Self::find`], for pools that have one of these protocols.
    pub(super) fn find_by_protocol<'p>(
        &self,
        name: Option<&str>,
        protocols: impl Iterator<Item = &'p [u8]> + Clone,
    ) -> Option<usize> {
        if self.by_protocol.is_empty() {
            return None;
        }
        let mut pools = protocols.filter_map(|protocol| self.by_protocol.get(protocol));
        let named = pools.clone().find_map(|pools| pools.by_name.find(name?));
        named
            .copied()
            .or_else(|| pools.find_map(|pools| pools.any_name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pool that these names and protocols of a client lead to.
    fn found(pools: &[(&[&str], Option<&str>)], name: &str, protocols: &[&str]) -> Option<usize> {
        let mut names = PoolNames::default();
        for (at, (its_names, alpn)) in pools.iter().enumerate() {
            let pool = BalancePool {
                name: at.to_string(),
                names: its_names.iter().map(|name| (*name).to_owned()).collect(),
                alpn: alpn.map(str::to_owned),
                policy: None,
            };
            names.insert(&pool, at);
        }
        let name = (!name.is_empty()).then_some(name);
        names.find(name, protocols.iter().map(|protocol| protocol.as_bytes()))
    }

    #[test]
    fn a_protocol_goes_before_a_name_and_both_go_before_one() {
        let pools: &[(&[&str], Option<&str>)] = &[
            (&["shop.test", "*.shop.test"], None),
            (&[], Some("acme-tls/1")),
            (&["shop.test"], Some("h2")),
            (&["*.shop.test"], Some("grpc")),
        ];
        let found = |name, protocols| found(pools, name, protocols);
        assert_eq!(found("shop.test", &[]), Some(0));
        assert_eq!(found("shop.test", &["http/1.1"]), Some(0));
        assert_eq!(found("Shop.test", &["http/1.1", "h2"]), Some(2));
        assert_eq!(found("www.shop.test", &["h2"]), Some(0));
        assert_eq!(found("www.shop.test", &["h2", "grpc"]), Some(3));
        assert_eq!(found("shop.test", &["acme-tls/1"]), Some(1));
        assert_eq!(found("shop.test", &["acme-tls/1", "h2"]), Some(2));
        assert_eq!(found("other.test", &["acme-tls/1"]), Some(1));
        assert_eq!(found("", &["acme-tls/1"]), Some(1));
        assert_eq!(found("other.test", &["h2"]), None);
        assert_eq!(found("", &[]), None);
    }

    #[test]
    fn the_order_of_the_client_decides_between_two_protocols() {
        let pools: &[(&[&str], Option<&str>)] = &[(&[], Some("one")), (&[], Some("other"))];
        assert_eq!(found(pools, "shop.test", &["one", "other"]), Some(0));
        assert_eq!(
            found(pools, "shop.test", &["none", "other", "one"]),
            Some(1)
        );
    }
}
