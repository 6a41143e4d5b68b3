//! Test farms for the scenarios: IIS-like servers with registry settings, with or without a
//! balancer, and clients that observe their own handshakes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prometheus::proto::MetricFamily;
use sessile_proto::Word;
use sessile_proto::route::{Policy, RoutedBy};
use sessile_proto::verdict::Verdict;
use sessile_proto::watch::Kind;
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{LabError, LabVisit, ServerSettings};
use crate::balance::Balancer;
use crate::client::{Client, Close, EstablishedConnection, Mechanism, Target, Trust, hex};
use crate::config::{Config, reg};
use crate::farm::{self, Authority};
use crate::key::Keyring;
use crate::probe::http::{self, AfterResponse};
use crate::serve::{AccessLog, Environment, Server};

/// The server name in every ClientHello. The development certificate covers this name.
const NAME: &str = "localhost";

/// Longest wait for a response, and for the end of a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// The idle time in the article.
const FIVE_MINUTES: Duration = Duration::from_secs(5 * 60);

/// The parts that all scenarios of a run share.
pub(super) struct Lab {
    /// The idle time after which servers reclaim a connection.
    pub(super) idle: Duration,
    authority: Authority,
    client: Client,
    _folder: TempDir,
}

impl Lab {
    /// `scale` is the factor by which time is compressed.
    pub(super) fn new(scale: u32) -> Result<Self, LabError> {
        let folder = tempfile::tempdir().map_err(LabError::Folder)?;
        let authority = Authority::open(folder.path())?;
        let trust = Trust::ca_file(&authority.root)?;
        Ok(Self {
            idle: FIVE_MINUTES / scale.max(1),
            authority,
            client: Client::new(Mechanism::SessionId, &trust, PATIENCE)?,
            _folder: folder,
        })
    }

    /// A new client without sessions.
    pub(super) fn client(&self) -> Client {
        self.client.with_empty_sessions()
    }

    /// A time well inside the idle time that began at `since`.
    pub(super) fn within(&self, since: Instant) -> Instant {
        since + self.idle / 2
    }

    /// A time well after the end of the idle time that began at `since`.
    pub(super) fn after(&self, since: Instant) -> Instant {
        since + self.idle * 7 / 5
    }
}

/// Running servers, and the address where clients reach them. A drop stops the servers.
pub(super) struct TestFarm {
    /// The server, or the balancer if there is one.
    pub(super) front: Target,
    /// Cancelled when the test farm is dropped.
    pub(super) stop: CancellationToken,
    servers: Vec<(String, Server)>,
    settings: Vec<ServerSettings>,
    balanced: bool,
    registry: prometheus::Registry,
}

impl Drop for TestFarm {
    fn drop(&mut self) {
        // The threads end by themselves, so there is no need to join them.
        self.stop.cancel();
    }
}

impl TestFarm {
    /// Starts one server without a balancer.
    pub(super) fn server(lab: &Lab, registry: &'static str) -> Result<Self, LabError> {
        let mut test_farm = Self::start(lab, &[registry])?;
        test_farm.front = Target::new(test_farm.servers[0].1.addresses()[0], NAME)?;
        Ok(test_farm)
    }

    /// Starts one server for each registry text, and a balancer. The servers share nothing.
    pub(super) fn farm(lab: &Lab, registries: &[&'static str]) -> Result<Self, LabError> {
        let mut test_farm = Self::start(lab, registries)?;
        // With round robin, a client that returns without a session reaches another server.
        let policy = Policy::RoundRobin;
        let config =
            farm::balancer_config(&Config::default(), ANY_PORT, policy, &test_farm.servers);
        let balancer = Balancer::start(&config, test_farm.stop.clone(), &test_farm.registry)?;
        test_farm.front = Target::new(balancer.addresses()[0], NAME)?;
        test_farm.balanced = true;
        Ok(test_farm)
    }

    fn start(lab: &Lab, registries: &[&'static str]) -> Result<Self, LabError> {
        let env = Environment {
            stop: CancellationToken::new(),
            registry: prometheus::Registry::new(),
            access_log: AccessLog::default(),
        };
        let mut test_farm = Self {
            front: Target::new(ANY_PORT, NAME)?,
            stop: env.stop.clone(),
            servers: Vec::new(),
            settings: Vec::new(),
            balanced: false,
            registry: env.registry.clone(),
        };
        for (number, registry) in (1..).zip(registries) {
            let name = format!("web{number}");
            let base = iis_like_config(lab.idle, registry)?;
            let keys = Arc::new(Keyring::ephemeral(base.session.lifetime)?);
            let config = farm::server_config(&base, &lab.authority, &name);
            let server = Server::start_with_key(&config, keys, &env).map_err(Box::new)?;
            test_farm.servers.push((name.clone(), server));
            test_farm.settings.push(ServerSettings { name, registry });
        }
        Ok(test_farm)
    }

    /// The registry settings of each server.
    pub(super) fn settings(&self) -> Vec<ServerSettings> {
        self.settings.clone()
    }

    /// The first server. Without a balancer, this is the only server.
    pub(super) fn first(&self) -> &Server {
        &self.servers[0].1
    }

    /// Connects, asks for the verdict, and leaves the connection open.
    pub(super) async fn visit(
        &self,
        client: &Client,
    ) -> Result<(LabVisit, IdleConnection), LabError> {
        let before = self.connections_by_rule();
        let mut connection = connect(client, &self.front).await?;
        let request_sent = Instant::now();
        let headers = http::request_head(
            &mut connection.stream,
            NAME,
            AfterResponse::KeepAlive,
            PATIENCE,
        )
        .await
        .headers;
        let offered = connection.offered.as_ref().map(|offer| hex(&offer.bytes));
        let resumed = matches!(connection.outcome.kind, Kind::Resumed(_));
        let session_id = if resumed {
            offered.clone()
        } else {
            connection.assigned_session_id().map(hex)
        };
        let visit = LabVisit {
            server: headers.server.ok_or(LabError::NoVerdict)?,
            verdict: headers
                .verdict
                .and_then(|verdict| Verdict::parse(&verdict))
                .ok_or(LabError::NoVerdict)?,
            resumed,
            routed_by: self.balanced.then(|| self.rule_applied_since(&before)),
            offered,
            session_id,
        };
        let idle = IdleConnection {
            connection,
            request_sent,
            response_received: Instant::now(),
        };
        Ok((visit, idle))
    }

    /// Connects, asks for the verdict, and closes the connection.
    pub(super) async fn visit_and_close(&self, client: &Client) -> Result<LabVisit, LabError> {
        let (visit, mut idle) = self.visit(client).await?;
        idle.connection.close(PATIENCE).await;
        Ok(visit)
    }

    /// How many connections had their TLS records in the kernel.
    pub(super) fn kernel_connections(&self) -> u64 {
        let families = self.registry.gather();
        count(&families, "sessile_large_file_connections_total", "kernel") as u64
    }

    /// The balancer's connections by rule, in the order of [`Word::all`].
    fn connections_by_rule(&self) -> Vec<f64> {
        let families = self.registry.gather();
        let of_rule = |rule: RoutedBy| {
            count(
                &families,
                "sessile_balance_connections_total",
                rule.as_str(),
            )
        };
        RoutedBy::all().map(of_rule).collect()
    }

    /// The rule whose count has grown since `before`. Only one client connects at a time.
    fn rule_applied_since(&self, before: &[f64]) -> String {
        let after = self.connections_by_rule();
        RoutedBy::all()
            .zip(after.iter().zip(before))
            .find(|(_, (after, before))| after > before)
            .map_or("nothing", |(rule, _)| rule.as_str())
            .to_owned()
    }
}

/// Connects to a target, and names its address in errors.
pub(super) async fn connect(
    client: &Client,
    target: &Target,
) -> Result<EstablishedConnection, LabError> {
    client
        .connect(target)
        .await
        .map_err(|source| LabError::Connect {
            server: target.address.to_string(),
            source,
        })
}

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The sum of a metric's counters that have a label of this value.
fn count(families: &[MetricFamily], name: &str, value: &str) -> f64 {
    let mut named = families.iter();
    let family = named.find(|family| family.name() == name);
    let metrics = family.map_or(&[][..], MetricFamily::get_metric);
    let labelled = metrics.iter().filter(|metric| {
        let mut labels = metric.get_label().iter();
        labels.any(|label| label.value() == value)
    });
    labelled
        .map(|metric| metric.get_counter().get_value())
        .sum()
}

/// The configuration of a server like IIS 6.0, which gives session IDs only. The registry text is
/// applied last.
pub(super) fn iis_like_config(idle: Duration, registry: &str) -> Result<Config, LabError> {
    let mut config = Config::default();
    config.session.tickets = false;
    config.connection.idle_timeout = idle;
    let report = reg::apply(&reg::parse(registry.as_bytes())?, &mut config);
    match report.ignored.into_iter().next() {
        Some(ignored) => Err(LabError::Ignored(ignored)),
        None => Ok(config),
    }
}

/// A connection that the client keeps open without using it.
pub(super) struct IdleConnection {
    connection: EstablishedConnection,
    /// The server's idle time begins after this time.
    request_sent: Instant,
    /// The server's idle time begins before this time.
    pub(super) response_received: Instant,
}

impl IdleConnection {
    /// True if the server cannot have reclaimed the connection yet.
    pub(super) fn is_within_idle_time(&self, lab: &Lab) -> bool {
        self.request_sent.elapsed() < lab.idle
    }

    /// Waits until the idle time is well over. Returns how the server closed the connection, or
    /// `None` if it did not.
    pub(super) async fn wait_past_idle_time(mut self, lab: &Lab) -> Option<Close> {
        let after = lab.after(self.response_received);
        let close = timeout_at(after + PATIENCE, self.connection.closed()).await;
        sleep_until(after).await;
        close.ok()
    }
}
