//! The servers behind the balancer: who is there, how busy they are, who failed just now.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge, Opts, Registry};
use sessile_proto::Time;
use sessile_proto::route::{self, Load, Policy};

use super::StartError;
use crate::config;
use crate::key::server_number;

/// How long a server that did not take a connection is passed over for others.
const PASS_OVER: Duration = Duration::from_secs(5);

pub(super) struct Servers {
    all: Vec<Server>,
    policy: Policy,
    pub(super) connect_timeout: Duration,
    turn: AtomicU64,
}

pub(super) struct Server {
    name: String,
    address: SocketAddr,
    weight: u16,
    id: u64,
    /// What labels name it by; `None`: none is set, and there is no key to derive it with.
    number: Option<u32>,
    /// Not chosen before this time, Unix milliseconds, unless no other is left.
    failed_until: AtomicU64,
    open: IntGauge,
    connections: IntCounter,
    failures: IntCounter,
}

impl Servers {
    /// `scope`: the farm's name, where its key is known.
    pub(super) fn new(
        config: &config::Balance,
        scope: Option<&str>,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let mut all: Vec<Server> = Vec::with_capacity(config.servers.len());
        for written in &config.servers {
            let derived = || scope.map(|scope| server_number(scope, &written.name));
            let number = written.number.or_else(derived);
            let twin = all
                .iter()
                .find(|other| number.is_some() && other.number == number);
            if let (Some(twin), Some(number)) = (twin, number) {
                return Err(StartError::SameNumber {
                    one: twin.name.clone(),
                    other: written.name.clone(),
                    number,
                });
            }
            all.push(Server::new(written, number, registry)?);
        }
        Ok(Self {
            all,
            policy: config.policy,
            connect_timeout: config.connect_timeout,
            turn: AtomicU64::new(0),
        })
    }

    /// Where the server with this identifier stands.
    pub(super) fn position(&self, id: u32) -> Option<usize> {
        self.all.iter().position(|server| server.id() == id)
    }

    /// Where the server with this number stands.
    pub(super) fn with_number(&self, number: u32) -> Option<usize> {
        let is_it = |server: &Server| server.number == Some(number);
        self.all.iter().position(is_it)
    }

    /// Whether a server is usable and has not more than its share of all connections.
    pub(super) fn has_room(&self, at: usize, now: Time) -> bool {
        let loads = self.loads(now);
        loads[at].usable && route::has_room(&loads[at], &loads)
    }

    fn loads(&self, now: Time) -> Vec<Load> {
        self.all.iter().map(|server| server.load(now)).collect()
    }

    /// All servers in the order in which a new client tries them: those that failed just now come
    /// last, because the alternative is to turn the client away.
    pub(super) fn place(&self, source: IpAddr, now: Time) -> Vec<usize> {
        let loads = self.loads(now);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut order = route::place(self.policy, source, turn, &loads);
        order.extend((0..loads.len()).filter(|&at| !loads[at].usable));
        order
    }
}

impl std::ops::Index<usize> for Servers {
    type Output = Server;

    fn index(&self, at: usize) -> &Server {
        &self.all[at]
    }
}

impl Server {
    fn new(
        config: &config::BalanceServer,
        number: Option<u32>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let opts =
            |name: &str, help: &str| Opts::new(name, help).const_label("server", &config.name);
        let open = IntGauge::with_opts(opts(
            "sessile_balance_server_connections_open",
            "Connections to this server open now.",
        ))?;
        registry.register(Box::new(open.clone()))?;
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::with_opts(opts(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        Ok(Self {
            name: config.name.clone(),
            address: config.address,
            weight: config.weight,
            id: route::server_id(&config.name),
            number,
            failed_until: AtomicU64::new(0),
            open,
            connections: counter(
                "sessile_balance_server_connections_total",
                "Connections made to this server.",
            )?,
            failures: counter(
                "sessile_balance_server_failures_total",
                "Connection attempts that this server refused or let time out.",
            )?,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What learned sessions remember it by: stays the same when other servers come and go.
    pub(super) const fn id(&self) -> u32 {
        self.id as u32
    }

    pub(super) fn has_failed(&self, now: Time) -> bool {
        now.unix_millis() < self.failed_until.load(Ordering::Relaxed)
    }

    /// Takes note of a connection attempt that failed.
    pub(super) fn failed(&self, now: Time) {
        self.failures.inc();
        let until = now.plus(PASS_OVER).unix_millis();
        self.failed_until.store(until, Ordering::Relaxed);
    }

    /// Counts a connection for as long as what it returns lives.
    pub(super) fn connected(&self) -> Connected {
        self.failed_until.store(0, Ordering::Relaxed);
        self.connections.inc();
        self.open.inc();
        Connected(self.open.clone())
    }

    fn load(&self, now: Time) -> Load {
        Load {
            id: self.id,
            weight: self.weight,
            open: u32::try_from(self.open.get()).unwrap_or(0),
            usable: !self.has_failed(now),
        }
    }
}

/// A connection that counts as open.
pub(super) struct Connected(IntGauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
