//! `[[balance.pool]]` and `[[balance.server]]`, and the conditions between them.

use std::collections::HashSet;
use std::ops::Range;

use sessile_proto::proxy_protocol::Version;
use toml::Spanned;

use super::raw;
use super::reader::{Reader, Table, Unique};
use super::sites;
use crate::config::base::Base;
use crate::config::settings::POLICIES;
use crate::config::settings::types::{Count, OneOf, SERVER_ADDRESS, not_empty};
use crate::config::{Balance, BalancePool, BalanceServer, MAX_NUMBER, ServerAddress, UnknownName};

const PROXY_PROTOCOL: [(&str, Option<Version>); 3] = [
    ("off", None),
    ("v1", Some(Version::V1)),
    ("v2", Some(Version::V2)),
];

/// Most bytes of a protocol name (RFC 7301, 3.1).
const MAX_PROTOCOL_LEN: usize = 255;

/// The problem with a weight beside the name of SRV records.
pub(crate) const WEIGHT_OF_SERVICE: &str = "`weight` has no effect if `address` is an SRV name, because each record has a weight; remove it";

/// Reads pools and servers. `unknown_name` is the place of `balance.unknown-name`, if the file sets it.
pub(super) fn read(
    reader: &mut Reader<'_>,
    written: raw::Balance,
    unknown_name: Option<&Range<usize>>,
    balance: &mut Balance,
) {
    let used: HashSet<&str> = (written.server.iter())
        .filter_map(|server| server.get_ref().pool.as_ref())
        .map(|pool| pool.get_ref().as_str())
        .collect();
    balance.pools = pools(reader, written.pool, &used);
    balance.servers = servers(reader, written.server, &balance.pools);
    if let Some(place) = unknown_name
        && balance.unknown_name == UnknownName::Refuse
        && balance.pools.is_empty()
    {
        reader.note_reference(
            "balance.pool",
            place.clone(),
            "`unknown-name` is \"refuse\", but no pool has names, so every client would be refused; add a \
             [[balance.pool]]",
        );
    }
}

/// Reads the pools. A pool has a unique name. A server name (SNI) with a protocol (ALPN), or without one,
/// belongs to one pool. `used`: the pools that servers refer to.
fn pools(
    reader: &mut Reader<'_>,
    written: Vec<Spanned<raw::BalancePool>>,
    used: &HashSet<&str>,
) -> Vec<BalancePool> {
    let mut pool_names = Unique::new("pool");
    let mut clients = Unique::new("pool for");
    let mut pools = Vec::new();
    for pool in written {
        let table = Table::new("[[balance.pool]]", &pool);
        let pool = pool.into_inner();
        let name = reader
            .required(pool.name, &table, "name", "\"shop\"")
            .and_then(|written| {
                let span = written.span();
                let parse = |name| not_empty("name", name);
                let name = reader.parse_unique(&mut pool_names, written, parse)?;
                if !used.contains(name.as_str()) {
                    let what = format!(
                        "the pool has no server; add pool = {name:?} to a [[balance.server]]"
                    );
                    reader.note_reference("balance.server", span, what);
                }
                Some(name)
            });
        if pool.names.is_empty() && pool.alpn.is_none() {
            reader.note(
                table.span,
                "the pool has no names; add names = [\"shop.example\"] or alpn = \"h2\", or remove the pool: servers \
                 without a pool take every other name",
            );
        }
        let alpn_place = pool.alpn.as_ref().map(Spanned::span);
        let alpn = pool.alpn.and_then(|alpn| reader.parse(alpn, protocol));
        if let (Some(place), Some(alpn), true) = (alpn_place, &alpn, pool.names.is_empty()) {
            reader.unique(&mut clients, format!("the protocol {alpn}"), &place);
        }
        let mut names = Vec::new();
        for name in pool.names {
            let place = name.span();
            let Some(name) = reader.parse(name, sites::server_name) else {
                continue;
            };
            let client = match &alpn {
                None => format!("the name {name}"),
                Some(alpn) => format!("the name {name} with the protocol {alpn}"),
            };
            reader.unique(&mut clients, client, &place);
            names.push(name);
        }
        let policy = reader.value(&OneOf(&POLICIES), "policy", pool.policy);
        pools.extend(name.map(|name| BalancePool {
            name,
            names,
            alpn,
            policy,
        }));
    }
    pools
}

/// The name of a protocol (ALPN).
fn protocol(written: String) -> Result<String, String> {
    if written.is_empty() || written.len() > MAX_PROTOCOL_LEN {
        return Err(format!(
            "`alpn` is {written:?}; a protocol name (ALPN) has 1 to 255 bytes, such as \"h2\""
        ));
    }
    Ok(written)
}

fn servers(
    reader: &mut Reader<'_>,
    written: Vec<Spanned<raw::BalanceServer>>,
    pools: &[BalancePool],
) -> Vec<BalanceServer> {
    let (mut names, mut numbers) = (Unique::new("server name"), Unique::new("server number"));
    let pools: Vec<_> = pools.iter().map(|pool| (pool.name.as_str(), ())).collect();
    written
        .into_iter()
        .filter_map(|written| server(reader, written, &pools, &mut names, &mut numbers))
        .collect()
}

fn server(
    reader: &mut Reader<'_>,
    written: Spanned<raw::BalanceServer>,
    pools: &[(&str, ())],
    names: &mut Unique<String>,
    numbers: &mut Unique<u32>,
) -> Option<BalanceServer> {
    let table = Table::new("[[balance.server]]", &written);
    let server = written.into_inner();
    let written_name = reader.required(server.name, &table, "name", "\"one\"");
    let name = reader.unique_name(names, written_name);
    let example = "\"10.0.0.1:443\"";
    let address =
        reader.required_value(&SERVER_ADDRESS, server.address, &table, "address", example);
    if let Some(address) = &address {
        let (number, weight) = (&server.number, &server.weight);
        note_useless(
            reader,
            address,
            [number, weight].map(|key| key.as_ref().map(Spanned::span)),
        );
    }
    let number = server.number.and_then(|number| {
        let span = number.span();
        let number = reader.value(&Count(0..=MAX_NUMBER.into()), "number", Some(number))?;
        reader.unique(numbers, number, &span);
        Some(number)
    });
    let weight = reader.value(&Count(1..=u16::MAX.into()), "weight", server.weight);
    let pool = server.pool.as_ref().map(|pool| pool.get_ref().clone());
    if reader.is_complete("balance.pool") {
        reader.value(&OneOf(pools), "pool", server.pool);
    }
    let any_count = Count(0..=u32::MAX.into());
    let max_connections = reader.value(&any_count, "max-connections", server.max_connections);
    let versions = OneOf(&PROXY_PROTOCOL);
    let proxy_protocol = reader.value(&versions, "proxy-protocol", server.proxy_protocol);
    let default = BalanceServer::new(name?, address?);
    Some(BalanceServer {
        number,
        weight: weight.unwrap_or(default.weight),
        proxy_protocol: proxy_protocol.flatten(),
        pool,
        drain: server.drain.unwrap_or(default.drain),
        max_connections: max_connections.unwrap_or(default.max_connections),
        ..default
    })
}

/// Notes the keys that have no effect on the servers of a DNS name: `number` and `weight`, by their places.
fn note_useless(
    reader: &mut Reader<'_>,
    address: &ServerAddress,
    [number, weight]: [Option<Range<usize>>; 2],
) {
    if let Some(place) = number
        && address.is_name()
    {
        reader.note(
            place,
            "`number` has no effect if `address` is a DNS name, because the balancer learns the numbers from the \
             servers' tickets; remove it",
        );
    }
    if let Some(place) = weight
        && matches!(address, ServerAddress::Service(_))
    {
        reader.note(place, WEIGHT_OF_SERVICE);
    }
}

/// The settings of a server in a request of the API: the keys of a `[[balance.server]]` without `name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerRequest {
    pub address: Option<String>,
    pub number: Option<i64>,
    pub weight: Option<i64>,
    pub proxy_protocol: Option<String>,
    pub pool: Option<String>,
    pub drain: Option<bool>,
    pub max_connections: Option<i64>,
}

impl ServerRequest {
    /// Validates the settings as those of a file. `pools`: the pools of the running configuration.
    ///
    /// # Errors
    /// All problems, in the words of the problems of a file.
    pub fn validate(self, name: &str, pools: &[BalancePool]) -> Result<BalanceServer, String> {
        let server = raw::BalanceServer {
            name: Some(placeless(name.to_owned())),
            address: self.address.map(placeless),
            number: self.number.map(raw::Whole).map(placeless),
            weight: self.weight.map(raw::Whole).map(placeless),
            proxy_protocol: self.proxy_protocol.map(placeless),
            pool: self.pool.map(placeless),
            drain: self.drain,
            max_connections: self.max_connections.map(raw::Whole).map(placeless),
        };
        let base = Base::working_folder();
        let mut reader = Reader::new("", &base);
        let servers = servers(&mut reader, vec![placeless(server)], pools);
        let servers = reader.finish(servers).map_err(|problems| {
            let texts: Vec<String> = problems.into_iter().map(|problem| problem.what).collect();
            texts.join("; ")
        })?;
        Ok(servers
            .into_iter()
            .next()
            .expect("a server without problems is read"))
    }
}

/// A value that is not in a file.
fn placeless<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;
    use std::time::Duration;

    use sessile_proto::route::Policy;

    use super::*;
    use crate::config::Health;
    use crate::config::file::{LoadError, parse};

    fn read(text: &str) -> Result<Balance, Vec<String>> {
        match parse(text, Path::new("b.toml")) {
            Ok(config) => Ok(config.balance),
            Err(LoadError::Invalid { problems, .. }) => {
                Err(problems.iter().map(ToString::to_string).collect())
            }
            Err(error) => panic!("{error}"),
        }
    }

    const POOL: &str =
        "[[balance.pool]]\nname = 'shop'\nnames = ['Shop.example', '*.shop.example']\n";

    fn server(name: &str, more: &str) -> String {
        format!("[[balance.server]]\nname = '{name}'\naddress = '10.0.0.1:1'\n{more}\n")
    }

    #[test]
    fn pools_servers_and_checks_are_read() {
        let text = format!(
            "[balance]\nunknown-name = 'refuse'\nhealth = 'tcp'\nhealth-interval = '1m'\n\
             health-name = 'Shop.example'\nslow-start = '30s'\n{POOL}policy = 'round-robin'\n{}{}",
            server("a", "pool = 'shop'\ndrain = true\nmax-connections = 7"),
            server("b", ""),
        );
        let balance = read(&text).unwrap();
        assert_eq!(balance.unknown_name, UnknownName::Refuse);
        assert_eq!(balance.health, Health::Tcp);
        assert_eq!(balance.health_interval, Duration::from_secs(60));
        assert_eq!(balance.health_name.as_deref(), Some("shop.example"));
        assert_eq!(balance.slow_start, Duration::from_secs(30));
        let [pool] = &balance.pools[..] else {
            panic!("one pool")
        };
        assert_eq!(pool.names, ["shop.example", "*.shop.example"]);
        assert_eq!(pool.policy, Some(Policy::RoundRobin));
        let address = SocketAddr::from(([10, 0, 0, 1], 1));
        let a = BalanceServer {
            pool: Some("shop".to_owned()),
            drain: true,
            max_connections: 7,
            ..BalanceServer::new("a".to_owned(), address)
        };
        let b = BalanceServer::new("b".to_owned(), address);
        assert_eq!(balance.servers, [a, b]);
    }

    #[test]
    fn the_address_of_a_server_may_be_a_dns_name() {
        let named = |address: &str, more: &str| {
            format!("[[balance.server]]\nname = 'web'\naddress = '{address}'\n{more}\n")
        };
        let text = named("Web.shop.example:443", "weight = 3");
        let [server] = &read(&text).unwrap().servers[..] else {
            panic!("one server")
        };
        assert_eq!(server.address.to_string(), "web.shop.example:443");
        assert_eq!(server.weight, 3);
        let problem = |address, more| read(&named(address, more)).unwrap_err().join("\n");
        assert_eq!(
            problem("web.shop.example", ""),
            "3:11: `address` is \"web.shop.example\", which has no port; write for example \
             \"web.shop.example:443\", or an SRV name such as \"_tls._tcp.web.shop.example\""
        );
        assert_eq!(
            problem("_tls._tcp.web.shop.example:443", ""),
            "3:11: `address` is \"_tls._tcp.web.shop.example:443\", an SRV name, whose port comes from the record; \
             remove the port"
        );
        assert!(problem("web:443", "number = 1").starts_with("4:10: `number` has no effect"));
        let weight = problem("_tls._tcp.web", "weight = 1");
        assert!(
            weight.starts_with("4:10: `weight` has no effect"),
            "{weight}"
        );
    }

    #[test]
    fn a_pool_may_have_a_protocol_with_names_and_without() {
        let server = |name: &str| server(name, &format!("pool = '{name}'"));
        let text = format!(
            "[[balance.pool]]\nname = 'a'\nnames = ['shop.example']\nalpn = 'h2'\n\
             [[balance.pool]]\nname = 'b'\nalpn = 'acme-tls/1'\n\
             [[balance.pool]]\nname = 'c'\nnames = ['shop.example']\n{}{}{}",
            server("a"),
            server("b"),
            server("c"),
        );
        let pools = read(&text).unwrap().pools;
        let alpn: Vec<_> = pools.iter().map(|pool| pool.alpn.as_deref()).collect();
        assert_eq!(alpn, [Some("h2"), Some("acme-tls/1"), None]);
        let pool =
            |name: &str, lines: &str| format!("[[balance.pool]]\nname = '{name}'\n{lines}\n");
        let twice = |lines: &str| {
            let pools = [pool("a", lines), pool("b", lines), server("a"), server("b")];
            read(&pools.concat()).unwrap_err().join("\n")
        };
        assert_eq!(
            twice("alpn = 'h2'"),
            "6:8: a second pool for the protocol h2; the first is in line 3; remove one"
        );
        assert_eq!(
            twice("names = ['x.test']\nalpn = 'h2'"),
            "7:10: a second pool for the name x.test with the protocol h2; the first is in line 3; remove one"
        );
        let empty = [pool("a", "alpn = ''"), server("a")].concat();
        assert!(read(&empty).unwrap_err()[0].starts_with("3:8: `alpn` is \"\"; a protocol name"));
    }

    #[test]
    fn inconsistent_pools_and_servers_are_refused_with_their_location() {
        let problems = |text: &str| read(text).unwrap_err().join("\n");
        let misspelt = format!(
            "{POOL}{}{}",
            server("a", "pool = 'shop'"),
            server("b", "pool = 'shpo'")
        );
        assert_eq!(
            problems(&misspelt),
            "11:8: `pool` is \"shpo\"; did you mean `shop`?"
        );
        let none = server("a", "pool = 'shop'");
        assert_eq!(
            problems(&none),
            "4:8: `pool` is \"shop\"; none is defined yet"
        );
        assert!(problems(POOL).starts_with("2:8: the pool has no server"));
        let nameless = format!(
            "[[balance.pool]]\nname = 'shop'\n{}",
            server("a", "pool = 'shop'")
        );
        assert!(problems(&nameless).starts_with("1:1: the pool has no names"));
        let twice = format!("{POOL}{POOL}{}", server("a", "pool = 'shop'"));
        assert_eq!(
            problems(&twice),
            "5:8: a second pool shop; the first is in line 2; remove one\n\
             6:10: a second pool for the name shop.example; the first is in line 3; remove one\n\
             6:26: a second pool for the name *.shop.example; the first is in line 3; remove one"
        );
        assert!(
            problems("balance.unknown-name = 'refuse'")
                .starts_with("1:24: `unknown-name` is \"refuse\", but no pool")
        );
        assert!(
            problems("balance.health-name = '*.x'")
                .starts_with("1:23: \"*.x\" is not a server name for health checks")
        );
        assert!(problems("balance.health = 'ping'").contains("known here: tls, tcp, off"));
    }
}
