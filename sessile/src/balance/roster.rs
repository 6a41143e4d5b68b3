//! The servers and pools that there are now. A roster never changes: a signal or the operator puts
//! another in its place, and what is known of servers that stay goes over to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sessile_proto::route::{self, Load, Policy};

use super::forgetting::Forgetting;
use super::key_names::KeyNames;
use super::labels::Labels;
use super::metrics::ServerFamilies;
use super::missed::Miss;
use super::server::{Live, Rank, Server};
use super::standing::{Standing, State};
use crate::config::{Balance, BalanceServer, UnknownName};
use crate::key::server_number;
use crate::server_names::ServerNames;

/// What the pool of servers without a pool is called.
const DEFAULT: &str = "default";

pub(super) struct Roster {
    /// What it was made from.
    pub(super) balance: Balance,
    /// `None`: without a key.
    pub(super) labels: Option<Arc<Labels>>,
    /// The default pool first.
    pools: Vec<Pool>,
    names: ServerNames<usize>,
}

/// Servers that are each other's alternatives.
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) servers: Vec<Arc<Server>>,
    /// What checks of its servers ask for.
    pub(super) first_name: Option<String>,
    policy: Policy,
    slow_start: Duration,
    turn: AtomicU64,
    /// How tickets of its servers begin, and where they lead. By pool: no rule leads out of one, and a
    /// server that stands in two is two servers that know nothing of each other. Outlives the roster.
    pub(super) key_names: Arc<KeyNames>,
}

/// Labels could not tell two servers apart.
#[derive(Debug, thiserror::Error)]
#[error(
    "servers {one:?} and {other:?} have the same number, {number}, so that labels cannot tell them apart; set `number` \
     for one of them, here and as server.number there"
)]
pub struct SameNumber {
    one: String,
    other: String,
    number: u32,
}

impl Roster {
    /// `before`: the roster that it takes the place of.
    pub(super) fn new(
        balance: Balance,
        labels: Option<Arc<Labels>>,
        before: Option<&Self>,
        families: &ServerFamilies,
    ) -> Result<Self, SameNumber> {
        let numbers = numbers(&balance.servers, labels.as_deref())?;
        let mut pools = vec![Pool::new(DEFAULT, balance.policy, &balance, before)];
        let mut names = ServerNames::default();
        for (at, written) in (1..).zip(&balance.pools) {
            let policy = written.policy.unwrap_or(balance.policy);
            let mut pool = Pool::new(&written.name, policy, &balance, before);
            let whole = |name: &&String| !name.starts_with("*.");
            pool.first_name = written.names.iter().find(whole).cloned();
            pools.push(pool);
            for name in &written.names {
                names.insert(name, at);
            }
        }
        for (settings, number) in balance.servers.iter().zip(numbers) {
            let known = before.and_then(|roster| roster.server(&settings.name));
            let live = match known {
                // What was at another address was another machine.
                Some(known) if known.address() == settings.address => Arc::clone(&known.live),
                known => {
                    if known.is_some() {
                        families.forget_open(&settings.name);
                    }
                    let standing = match before {
                        None => Standing::default(),
                        Some(_) => Standing::new_at(Instant::now()),
                    };
                    let forgetting = Forgetting::new(families.forgetting(&settings.name));
                    Live::new(standing, families.of(&settings.name), forgetting)
                }
            };
            let of_pool = |pool: &Pool| settings.pool.as_ref() == Some(&pool.name);
            let pool = pools
                .iter()
                .skip(1)
                .position(of_pool)
                .map_or(0, |at| at + 1);
            let pool = &mut pools[pool];
            let key_names = Arc::clone(&pool.key_names);
            let server = Server::new(settings.clone(), number, live, key_names);
            let figures = families.key_names(server.name());
            server.key_names.join(server.id(), server.name(), figures);
            pool.servers.push(Arc::new(server));
        }
        Ok(Self {
            balance,
            labels,
            pools,
            names,
        })
    }

    /// The pool that a server name leads to; `None`: the client is to be refused.
    pub(super) fn pool(&self, server_name: Option<&str>) -> Option<&Pool> {
        let named = server_name.and_then(|name| self.names.find(name));
        match (named, self.balance.unknown_name) {
            (Some(&at), _) => Some(&self.pools[at]),
            (None, UnknownName::Refuse) => None,
            (None, UnknownName::Default) => {
                let default = &self.pools[0];
                (!default.servers.is_empty()).then_some(default)
            }
        }
    }

    pub(super) fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Every server with its pool.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&Pool, &Arc<Server>)> {
        let of_pool = |pool| Pool::with_itself(pool);
        self.pools.iter().flat_map(of_pool)
    }

    /// Where each server is, by its [`Server::id`].
    pub(super) fn addresses(&self) -> impl Iterator<Item = (u32, SocketAddr)> {
        self.servers().map(|(_, it)| (it.id(), it.address()))
    }

    pub(super) fn server(&self, name: &str) -> Option<&Arc<Server>> {
        let mut servers = self.servers().map(|(_, server)| server);
        servers.find(|server| server.name() == name)
    }
}

/// The number of each server, as set or as the server itself derives it.
fn numbers(
    servers: &[BalanceServer],
    labels: Option<&Labels>,
) -> Result<Vec<Option<u32>>, SameNumber> {
    let scope = labels.map(Labels::scope);
    let mut numbers: Vec<Option<u32>> = Vec::with_capacity(servers.len());
    for server in servers {
        let derived = || Some(server_number(scope.as_deref()?, &server.name));
        let number = server.number.or_else(derived);
        let twin = numbers.iter().position(|other| *other == number);
        if let (Some(number), Some(twin)) = (number, twin) {
            return Err(SameNumber {
                one: servers[twin].name.clone(),
                other: server.name.clone(),
                number,
            });
        }
        numbers.push(number);
    }
    Ok(numbers)
}

impl Pool {
    fn new(name: &str, policy: Policy, balance: &Balance, before: Option<&Roster>) -> Self {
        let mut known = before.into_iter().flat_map(Roster::pools);
        let known = known.find(|pool| pool.name == name);
        Self {
            name: name.to_owned(),
            servers: Vec::new(),
            first_name: None,
            policy,
            slow_start: balance.slow_start,
            turn: AtomicU64::new(0),
            key_names: known.map_or_else(Arc::default, |pool| Arc::clone(&pool.key_names)),
        }
    }

    fn with_itself(&self) -> impl Iterator<Item = (&Self, &Arc<Server>)> {
        self.servers.iter().map(move |server| (self, server))
    }

    pub(super) const fn policy(&self) -> Policy {
        self.policy
    }

    pub(super) fn with_number(&self, number: u32) -> Option<&Arc<Server>> {
        let is_it = |server: &&Arc<Server>| server.number == Some(number);
        self.servers.iter().find(is_it)
    }

    pub(super) fn with_id(&self, id: u32) -> Option<&Arc<Server>> {
        self.servers.iter().find(|server| server.id() == id)
    }

    /// Whether a server takes a client that has a session there, draining or not. Where all have
    /// failed, that is no reason to send it to another.
    pub(super) fn takes_returning(&self, server: &Server, now: Instant) -> Result<(), Miss> {
        if server.is_full() {
            return Err(Miss::Full);
        }
        let is_up = |server: &Arc<Server>| server.state(now) == State::Up;
        match Miss::of(server.state(now)) {
            Some(miss) if self.servers.iter().any(is_up) => Err(miss),
            _ => Ok(()),
        }
    }

    /// Of these servers, those that take the client and have not more than their share of
    /// connections, its source's own first; or why there is none.
    pub(super) fn with_room(
        &self,
        ids: &[u32],
        source: IpAddr,
        now: Instant,
    ) -> Result<Vec<&Arc<Server>>, Miss> {
        let misses = self.servers.iter().map(|it| Miss::of(it.state(now)));
        let mut misses: Vec<Option<Miss>> = misses.collect();
        if !misses.contains(&None) {
            misses.fill(None);
        }
        let loads = self.servers.iter().zip(&misses);
        let all: Vec<Load> = loads.map(|(it, miss)| it.load(miss.is_none())).collect();
        let mut loads = all.clone();
        let mut least: Option<Miss> = None;
        for ((server, load), down) in self.servers.iter().zip(&mut loads).zip(misses) {
            let miss = match down {
                _ if !ids.contains(&server.id()) => Some(Miss::Elsewhere),
                Some(miss) => Some(miss),
                None if server.is_full() => Some(Miss::Full),
                None if !route::has_room(load, &all) => Some(Miss::Share),
                None => None,
            };
            load.usable = miss.is_none();
            least = [least, miss].into_iter().flatten().min();
        }
        let order = route::place(Policy::Source, source, 0, &loads);
        match order.is_empty() {
            true => Err(least.unwrap_or(Miss::Elsewhere)),
            false => Ok(order.into_iter().map(|at| &self.servers[at]).collect()),
        }
    }

    /// All servers that are not full in the order in which a new client tries them. Those that are
    /// not fit for it come last, because the alternative is to turn the client away.
    pub(super) fn place(&self, source: IpAddr, now: Instant) -> Vec<&Arc<Server>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let ranks: Vec<_> = self.servers.iter().map(|server| server.rank(now)).collect();
        let is_starting = |server: &Arc<Server>| server.is_starting(self.slow_start, now);
        let starting = self.servers.iter().any(is_starting);
        let mut order = Vec::with_capacity(self.servers.len());
        for rank in Rank::ALL {
            if !ranks.contains(&rank) {
                continue;
            }
            let loads = self.servers.iter().zip(&ranks).map(|(server, its)| {
                let mut load = server.load(*its == rank && !server.is_full());
                if starting {
                    load.weight *= server.share(self.slow_start, now);
                }
                load
            });
            let loads: Vec<Load> = loads.collect();
            order.extend(route::place(self.policy, source, turn, &loads));
        }
        order.into_iter().map(|at| &self.servers[at]).collect()
    }
}
