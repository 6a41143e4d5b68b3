//! The set of servers and pools. A set never changes. A reload or a command replaces it, and the new set keeps
//! the statistics of remaining servers.

use std::collections::HashMap;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sessile_proto::health_state::{Availability, HealthState, PlacementRank};
use sessile_proto::hello::ClientHello;
use sessile_proto::postgres;
use sessile_proto::route::{self, Load, Policy};
use strum::VariantArray;

use super::key_names::PoolKeyNames;
use super::metrics::ServerFamilies;
use super::numbers::{Numbers, SameNumber, server_numbers};
use super::pool_names::PoolNames;
use super::route_miss::SkipReason;
use super::server::{PoolServer, ServerStats};
use super::server_list::{ListedServer, SetInputs};
use crate::config::{Balance, BalanceServer, Health, UnknownName};

/// The name of the pool for servers whose settings name no pool.
pub(super) const DEFAULT_POOL: &str = "default";

/// The servers and pools of one configuration.
pub(super) struct ServerSet {
    /// The inputs that this set was made from.
    pub(super) inputs: SetInputs,
    /// The default pool comes first.
    pub(super) pools: Vec<Pool>,
    pool_names: PoolNames,
    by_name: HashMap<String, Arc<PoolServer>>,
    /// True if an entry of the configuration names no pool. The entry may still have no server.
    has_default: bool,
    /// Servers that labels may not tell apart.
    pub(super) clashes: Vec<SameNumber>,
}

/// Servers that can replace each other.
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) servers: Vec<Arc<PoolServer>>,
    /// The first server name without a wildcard. Health checks send this name if `balance.health-name` is not
    /// set.
    pub(super) first_name: Option<String>,
    /// The protocol (ALPN) that the clients of the pool offer.
    pub(super) alpn: Option<String>,
    pub(super) policy: Policy,
    slow_start: Duration,
    turn: AtomicU64,
    /// A reload keeps the key names. Pools do not share them, because no rule leads a client out of the pool.
    pub(super) key_names: Arc<PoolKeyNames>,
}

impl ServerSet {
    /// `before`: the set that the new set replaces.
    pub(super) fn new(
        mut inputs: SetInputs,
        before: Option<&Self>,
        families: &ServerFamilies,
    ) -> Result<Self, SameNumber> {
        let list = inputs.list();
        let balance = &inputs.balance;
        let is_checked = balance.health != Health::Off;
        let learned = list.iter().map(|server| {
            let known = known_server(server, before)?;
            known.stats.learned_number()
        });
        let learned: Vec<_> = learned.collect();
        let scope = inputs.route_keys.as_ref().map(|keyring| keyring.scope());
        let Numbers { by_server, clashes } = server_numbers(&list, &learned, scope.as_deref())?;
        let mut pools = vec![Pool::new(DEFAULT_POOL, balance.policy, balance, before)];
        let mut pool_names = PoolNames::default();
        for settings in &balance.pools {
            let policy = settings.policy.unwrap_or(balance.policy);
            let mut pool = Pool::new(&settings.name, policy, balance, before);
            let mut names = settings.names.iter();
            pool.first_name = names.find(|name| !name.starts_with("*.")).cloned();
            pool.alpn.clone_from(&settings.alpn);
            pool_names.insert(settings, pools.len());
            pools.push(pool);
        }
        let mut by_name = HashMap::new();
        for (listed, number) in list.into_iter().zip(by_server) {
            // The set is certain to be used now. So it may have metrics.
            let stats = stats_of(&listed, is_checked, before, families);
            let pool = pool_of(&listed.settings, &mut pools);
            let key_names = Arc::clone(&pool.key_names);
            let server = Arc::new(PoolServer::new(listed, number, stats, key_names));
            server.key_names.join(server.id(), server.name());
            by_name.insert(server.name().to_owned(), Arc::clone(&server));
            pool.servers.push(server);
        }
        let mut entries = balance.servers.iter();
        let has_default = entries.any(|entry| entry.pool.is_none());
        Ok(Self {
            inputs,
            pools,
            pool_names,
            by_name,
            has_default,
            clashes,
        })
    }

    /// The pool of a client. `None` if no pool has the name or the protocol, unless the default pool may be used
    /// and has an entry.
    ///
    /// `ssl_request`: the client has sent PostgreSQL's SSLRequest. No other servers understand its bytes.
    pub(super) fn pool(&self, hello: &ClientHello<'_>, ssl_request: bool) -> Option<&Pool> {
        if ssl_request {
            let protocols = iter::once(postgres::PROTOCOL.as_bytes());
            let at = self
                .pool_names
                .find_by_protocol(hello.server_name, protocols)?;
            return Some(&self.pools[at]);
        }
        let found = self.pool_names.find(hello.server_name, hello.alpn.iter());
        match (found, self.inputs.balance.unknown_name) {
            (Some(at), _) => Some(&self.pools[at]),
            (None, UnknownName::Refuse) => None,
            (None, UnknownName::Default) => self.has_default.then_some(&self.pools[0]),
        }
    }

    /// Every server with its pool.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&Pool, &Arc<PoolServer>)> {
        self.pools
            .iter()
            .flat_map(|pool| pool.servers.iter().map(move |server| (pool, server)))
    }

    /// The id and the address of each server.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (u32, SocketAddr)> {
        self.servers()
            .map(|(_, server)| (server.id(), server.address()))
    }

    pub(super) fn server(&self, name: &str) -> Option<&Arc<PoolServer>> {
        self.by_name.get(name)
    }
}

/// The server of the replaced set that has the same name and address.
fn known_server<'s>(
    server: &ListedServer,
    before: Option<&'s ServerSet>,
) -> Option<&'s PoolServer> {
    let known = before?.server(&server.settings.name)?;
    (known.address() == server.address).then_some(known)
}

/// The statistics of a server. They continue those of the replaced set, unless the address of the server has
/// changed.
fn stats_of(
    server: &ListedServer,
    is_checked: bool,
    before: Option<&ServerSet>,
    families: &ServerFamilies,
) -> Arc<ServerStats> {
    if let Some(known) = known_server(server, before) {
        return Arc::clone(&known.stats);
    }
    let name = &server.settings.name;
    if before.is_some_and(|set| set.server(name).is_some()) {
        // Another machine has the name now.
        families.reset_open(name);
    }
    let health = match before {
        // The balancer's host may have no route to the addresses of a name.
        _ if is_checked && server.is_found() => HealthState::awaiting_check(),
        None => HealthState::default(),
        Some(_) if is_checked => HealthState::awaiting_check(),
        Some(_) => HealthState::added_at(Instant::now()),
    };
    Arc::new(ServerStats::new(health, families.for_server(name)))
}

/// The pool of a server. The configuration was checked, so a named pool exists.
fn pool_of<'p>(settings: &BalanceServer, pools: &'p mut [Pool]) -> &'p mut Pool {
    // The search skips the default pool, because a configured pool may also be named `default`.
    let mut named = (1..pools.len()).filter(|&at| settings.pool.as_ref() == Some(&pools[at].name));
    let at = named.next().unwrap_or(0);
    &mut pools[at]
}

impl Pool {
    fn new(name: &str, policy: Policy, balance: &Balance, before: Option<&ServerSet>) -> Self {
        let mut pools = before.into_iter().flat_map(|set| &set.pools);
        let known = pools.find(|pool| pool.name == name);
        Self {
            name: name.to_owned(),
            servers: Vec::new(),
            first_name: None,
            alpn: None,
            policy,
            slow_start: balance.slow_start,
            turn: AtomicU64::new(known.map_or(0, |pool| pool.turn.load(Ordering::Relaxed))),
            key_names: known.map_or_else(Arc::default, |pool| Arc::clone(&pool.key_names)),
        }
    }

    /// True if the servers are PostgreSQL. They then await a request for TLS before the ClientHello.
    pub(super) fn is_postgres(&self) -> bool {
        self.alpn.as_deref() == Some(postgres::PROTOCOL)
    }

    pub(super) fn has_available_server(&self, now: Instant) -> bool {
        let mut servers = self.servers.iter();
        servers.any(|server| server.availability(now) == Availability::Up)
    }

    /// The addresses of the server with this number.
    pub(super) fn with_number(&self, number: u32) -> impl Iterator<Item = &Arc<PoolServer>> {
        let servers = self.servers.iter();
        servers.filter(move |server| server.number == Some(number))
    }

    pub(super) fn with_id(&self, id: u32) -> Option<&Arc<PoolServer>> {
        self.servers.iter().find(|server| server.id() == id)
    }

    /// Whether a server takes a client that has a session there. A draining server also takes returning
    /// clients.
    pub(super) fn takes_returning(
        &self,
        server: &PoolServer,
        now: Instant,
    ) -> Result<(), SkipReason> {
        if server.is_full() {
            return Err(SkipReason::Full);
        }
        self.unavailable(server, now).map_or(Ok(()), Err)
    }

    /// Why a server takes no clients now. `None` if no server is available, because another is no better.
    pub(super) fn unavailable(&self, server: &PoolServer, now: Instant) -> Option<SkipReason> {
        let reason = SkipReason::for_availability(server.availability(now))?;
        self.has_available_server(now).then_some(reason)
    }

    /// True if address entries may lead to this server.
    ///
    /// The entries of a draining server end, so that its clients move on. A server with a session fault ends the
    /// handshakes of returning clients.
    pub(super) fn keeps_addresses(&self, id: u32, now: Instant) -> bool {
        self.with_id(id).is_some_and(|server| {
            !server.settings.drain
                && !server.has_session_fault()
                && self.unavailable(server, now).is_none()
        })
    }

    /// The available servers of this list that have room. The preferred server of the source comes first.
    ///
    /// The error is the reason why no server qualifies.
    pub(super) fn with_room(
        &self,
        ids: &[u32],
        source: IpAddr,
        now: Instant,
    ) -> Result<Vec<&Arc<PoolServer>>, SkipReason> {
        let availabilities = self.servers.iter().map(|server| server.availability(now));
        let mut unavailable: Vec<Option<SkipReason>> =
            availabilities.map(SkipReason::for_availability).collect();
        if !unavailable.contains(&None) {
            // If no server is available, availability must not exclude any server.
            unavailable.fill(None);
        }
        let servers = self.servers.iter().zip(&unavailable);
        let all: Vec<Load> = servers
            .map(|(server, reason)| server.load(reason.is_none()))
            .collect();
        let mut loads = all.clone();
        let mut first_reason: Option<SkipReason> = None;
        for ((server, load), unavailable) in self.servers.iter().zip(&mut loads).zip(unavailable) {
            let reason = if !ids.contains(&server.id()) {
                Some(SkipReason::NotInPool)
            } else if unavailable.is_some() {
                unavailable
            } else if server.is_full() {
                Some(SkipReason::Full)
            } else if !route::has_room(load, &all) {
                Some(SkipReason::OverShare)
            } else {
                None
            };
            load.usable = reason.is_none();
            first_reason = first_reason.into_iter().chain(reason).min();
        }
        let order = route::place(Policy::Source, source, 0, &loads);
        if order.is_empty() {
            return Err(first_reason.unwrap_or(SkipReason::NotInPool));
        }
        Ok(order.into_iter().map(|at| &self.servers[at]).collect())
    }

    /// All servers that are not full, in the order in which the balancer tries them for a new client.
    ///
    /// Ejected, down and draining servers come last. Without them, the client would be turned away.
    pub(super) fn place(&self, source: IpAddr, now: Instant) -> Vec<&Arc<PoolServer>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let ranks: Vec<_> = self.servers.iter().map(|server| server.rank(now)).collect();
        let mut servers = self.servers.iter();
        let has_starting = servers.any(|server| server.is_starting(self.slow_start, now));
        let mut order = Vec::with_capacity(self.servers.len());
        for &rank in PlacementRank::VARIANTS {
            if !ranks.contains(&rank) {
                continue;
            }
            let mut loads = Vec::with_capacity(self.servers.len());
            for (server, server_rank) in self.servers.iter().zip(&ranks) {
                let mut load = server.load(*server_rank == rank && !server.is_full());
                if has_starting {
                    load.weight *= server.share_percent(self.slow_start, now);
                }
                loads.push(load);
            }
            order.extend(route::place(self.policy, source, turn, &loads));
        }
        order.into_iter().map(|at| &self.servers[at]).collect()
    }
}

#[cfg(test)]
mod tests {
    use sessile_proto::name_resolution::FoundServer;

    use super::*;
    use crate::config::ServerAddress;

    fn server(name: &str, address: &str) -> BalanceServer {
        let address: ServerAddress = address.parse().unwrap();
        BalanceServer::new(name.to_owned(), address)
    }

    /// The inputs of a set with the servers `a` and `b`, and a server that was found by the DNS name `web`.
    fn inputs() -> SetInputs {
        let servers = [
            server("a", "10.0.0.1:443"),
            server("b", "10.0.0.2:443"),
            server("web", "web.test:443"),
        ];
        let balance = Balance {
            servers: servers.into(),
            policy: Policy::RoundRobin,
            ..Balance::default()
        };
        let mut inputs = SetInputs::new(balance, None);
        let found = FoundServer {
            address: "10.0.0.3:443".parse().unwrap(),
            weight: None,
        };
        inputs
            .found
            .insert("web.test:443".parse().unwrap(), vec![found]);
        inputs
    }

    fn families() -> ServerFamilies {
        ServerFamilies::register(&prometheus::Registry::new()).unwrap()
    }

    #[test]
    fn a_found_server_counts_as_down_until_its_first_check_also_at_the_start() {
        let set = ServerSet::new(inputs(), None, &families()).unwrap();
        let now = Instant::now();
        let servers = set.servers();
        let is_up = servers.map(|(_, server)| server.availability(now) == Availability::Up);
        assert_eq!(is_up.collect::<Vec<_>>(), [true, true, false]);
        let mut unchecked = inputs();
        unchecked.balance.health = Health::Off;
        let set = ServerSet::new(unchecked, None, &families()).unwrap();
        let mut servers = set.servers();
        assert!(servers.all(|(_, server)| server.availability(now) == Availability::Up));
    }

    #[test]
    fn a_new_set_continues_the_turn_of_round_robin() {
        let families = families();
        let source = IpAddr::from([192, 0, 2, 1]);
        let first = |set: &ServerSet| {
            let order = set.pools[0].place(source, Instant::now());
            order[0].name().to_owned()
        };
        let set = ServerSet::new(inputs(), None, &families).unwrap();
        let one = first(&set);
        let replacement = ServerSet::new(inputs(), Some(&set), &families).unwrap();
        assert_ne!(first(&replacement), one);
    }

    #[test]
    fn a_refused_set_leaves_the_metrics_as_they_are() {
        let registry = prometheus::Registry::new();
        let families = ServerFamilies::register(&registry).unwrap();
        let set = ServerSet::new(inputs(), None, &families).unwrap();
        let series = || {
            let mut all = registry.gather();
            all.iter_mut()
                .map(|family| family.take_metric().len())
                .sum::<usize>()
        };
        let before = series();
        set.server("a").unwrap().stats.metrics.open.set(7);
        let mut refused = inputs();
        for server in &mut refused.balance.servers[..2] {
            server.number = Some(1);
        }
        refused.balance.servers[0].address = "10.0.0.9:443".parse().unwrap();
        refused.balance.servers.push(server("new", "10.0.0.8:443"));
        assert!(ServerSet::new(refused, Some(&set), &families).is_err());
        assert_eq!(series(), before);
        assert_eq!(families.for_server("a").open.get(), 7);
    }
}
