//! The apparatus: IIS-like servers with registry settings, a balancer in front of them where one is
//! wanted, and clients that read off what became of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sessile_proto::route::{Policy, RoutedBy};
use sessile_proto::watch::Kind;
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{LabError, LabVisit, ServerSettings};
use crate::balance::Balancer;
use crate::client::{
    Client, Close, EstablishedConnection, Mechanism, Options, Sessions, Target, Trust, hex,
};
use crate::config::{Config, reg};
use crate::farm::{self, Authority};
use crate::key::Keyring;
use crate::probe::http::{self, AfterResponse};
use crate::serve::{AccessLog, Server, StartError, Surroundings};

/// The name that every client asks for; the development certificate has it.
const NAME: &str = "localhost";

/// How long an answer, and the end of a connection, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The article's idle time.
const FIVE_MINUTES: Duration = Duration::from_secs(5 * 60);

/// What the scenarios of a run have in common.
pub(super) struct Lab {
    /// After how long an idle connection is reclaimed.
    pub(super) idle: Duration,
    authority: Authority,
    client: Client,
    _folder: TempDir,
}

impl Lab {
    /// `scale`: how many times faster time goes by.
    pub(super) fn new(scale: u32) -> Result<Self, LabError> {
        let folder = tempfile::tempdir().map_err(LabError::Folder)?;
        let authority = Authority::open(folder.path())?;
        let options = Options {
            mechanism: Mechanism::SessionId,
            trust: Trust::ca_file(&authority.root)?,
            connect_timeout: PATIENCE,
            handshake_timeout: PATIENCE,
            alpn: Vec::new(),
        };
        Ok(Self {
            idle: FIVE_MINUTES / scale.max(1),
            authority,
            client: Client::new(options, Sessions::default())?,
            _folder: folder,
        })
    }

    /// A client that has been nowhere yet.
    pub(super) fn client(&self) -> Client {
        self.client.with_empty_sessions()
    }

    /// A moment well inside the idle time that began at `since`.
    pub(super) fn within(&self, since: Instant) -> Instant {
        since + self.idle / 2
    }

    /// A moment well after it.
    pub(super) fn after(&self, since: Instant) -> Instant {
        since + self.idle * 7 / 5
    }
}

/// Servers with a front door; stopped when dropped.
pub(super) struct TestFarm {
    pub(super) front: Target,
    /// Ends with the test_farm.
    pub(super) stop: CancellationToken,
    servers: Vec<(String, Server)>,
    settings: Vec<ServerSettings>,
    balanced: bool,
    registry: prometheus::Registry,
}

impl Drop for TestFarm {
    fn drop(&mut self) {
        // The threads end by themselves; nobody has to wait for them.
        self.stop.cancel();
    }
}

impl TestFarm {
    /// One server, which clients reach without a balancer.
    pub(super) fn server(lab: &Lab, registry: &'static str) -> Result<Self, LabError> {
        let mut test_farm = Self::start(lab, &[registry])?;
        test_farm.front = Target::new(test_farm.servers[0].1.addresses()[0], NAME)?;
        Ok(test_farm)
    }

    /// Servers that share nothing, one for each registry text, behind a balancer.
    pub(super) fn farm(lab: &Lab, registries: &[&'static str]) -> Result<Self, LabError> {
        let mut test_farm = Self::start(lab, registries)?;
        // Round robin: a client that is placed anew shows by coming to with_empty_sessions server.
        let policy = Policy::RoundRobin;
        let config =
            farm::balancer_config(&Config::default(), ANY_PORT, policy, &test_farm.servers);
        let balancer = Balancer::start(&config, test_farm.stop.clone(), &test_farm.registry)?;
        test_farm.front = Target::new(balancer.addresses()[0], NAME)?;
        test_farm.balanced = true;
        Ok(test_farm)
    }

    fn start(lab: &Lab, registries: &[&'static str]) -> Result<Self, LabError> {
        let around = Surroundings {
            stop: CancellationToken::new(),
            registry: prometheus::Registry::new(),
            access_log: AccessLog::default(),
        };
        let mut test_farm = Self {
            front: Target::new(ANY_PORT, NAME)?,
            stop: around.stop.clone(),
            servers: Vec::new(),
            settings: Vec::new(),
            balanced: false,
            registry: around.registry.clone(),
        };
        for (number, registry) in (1..).zip(registries) {
            let name = format!("web{number}");
            let base = iis_like_config(lab.idle, registry)?;
            let keys = Arc::new(Keyring::ephemeral(base.session.lifetime)?);
            let config = farm::server_config(&base, &lab.authority, &name);
            let server = Server::start_with_key(&config, keys, &around);
            let server = server.map_err(|error: StartError| Box::new(error))?;
            test_farm.servers.push((name.clone(), server));
            test_farm.settings.push(ServerSettings { name, registry });
        }
        Ok(test_farm)
    }

    /// What each server was told.
    pub(super) fn settings(&self) -> Vec<ServerSettings> {
        self.settings.clone()
    }

    /// The first server, the only one where there is no balancer.
    pub(super) fn first(&self) -> &Server {
        &self.servers[0].1
    }

    /// Connects, asks for the verdict and leaves the connection open.
    pub(super) async fn visit(
        &self,
        client: &Client,
    ) -> Result<(LabVisit, IdleConnection), LabError> {
        let before = self.connections_by_rule();
        let connected = client.connect(&self.front).await;
        let mut connection = connected.map_err(|source| LabError::Connect {
            server: self.front.address.to_string(),
            source,
        })?;
        let asked = Instant::now();
        let told = http::ask(
            connection.stream(),
            NAME,
            AfterResponse::KeepAlive,
            PATIENCE,
        )
        .await;
        let verdict = told.verdict.and_then(|verdict| verdict.parse().ok());
        let offered = connection.offered().map(|offer| hex(&offer.bytes));
        let resumed = matches!(connection.outcome().kind, Kind::Resumed(_));
        let session_id = match resumed {
            true => offered.clone(),
            false => connection.assigned_session_id().map(hex),
        };
        let visit = LabVisit {
            server: told.server.ok_or(LabError::NoVerdict)?,
            verdict: verdict.ok_or(LabError::NoVerdict)?,
            resumed,
            routed_by: self.balanced.then(|| self.rule_applied_since(&before)),
            offered,
            session_id,
        };
        let idle = IdleConnection {
            connection,
            asked,
            answered: Instant::now(),
        };
        Ok((visit, idle))
    }

    /// Connects, asks for the verdict and ends the connection.
    pub(super) async fn visit_and_close(&self, client: &Client) -> Result<LabVisit, LabError> {
        let (visit, mut idle) = self.visit(client).await?;
        idle.connection.close(PATIENCE).await;
        Ok(visit)
    }

    /// How many handshakes the balancer has connections_by_rule by each rule.
    fn connections_by_rule(&self) -> Vec<f64> {
        let families = self.registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == "sessile_balance_connections_total");
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let by = |rule: RoutedBy| {
            let of_rule = metrics.iter().filter(|metric| {
                let labels = metric.get_label().iter();
                labels
                    .into_iter()
                    .any(|label| label.value() == rule.as_str())
            });
            of_rule.map(|metric| metric.get_counter().get_value()).sum()
        };
        RoutedBy::ALL.into_iter().map(by).collect()
    }

    /// The rule that was applied since, by a test_farm's one client at a time.
    fn rule_applied_since(&self, before: &[f64]) -> String {
        let after = self.connections_by_rule();
        let counted = RoutedBy::ALL.iter().zip(after.iter().zip(before));
        let mut more = counted.filter(|(_, (after, before))| after > before);
        more.next()
            .map_or("nothing", |(by, _)| by.as_str())
            .to_owned()
    }
}

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server like IIS 6.0, with the registry on top: session IDs only, in a table of its own.
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

/// A connection that its client leaves open and does not use.
pub(super) struct IdleConnection {
    connection: EstablishedConnection,
    /// Before the last request was sent: the server cannot count from earlier.
    asked: Instant,
    /// After its answer came: nor from later.
    pub(super) answered: Instant,
}

impl IdleConnection {
    /// Whether the server cannot have reclaimed it yet.
    pub(super) fn is_within_idle_time(&self, lab: &Lab) -> bool {
        self.asked.elapsed() < lab.idle
    }

    /// Waits until the idle time is well over and gives how the server ended the connection; `None`:
    /// not at all.
    pub(super) async fn wait_past_idle_time(mut self, lab: &Lab) -> Option<Close> {
        let after = lab.after(self.answered);
        let ended = timeout_at(after + PATIENCE, self.connection.closed()).await;
        sleep_until(after).await;
        ended.ok()
    }
}
