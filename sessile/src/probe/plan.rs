//! The plan of a probe: target, requests, number of connections, and shortest time.

use std::net::SocketAddr;
use std::time::Duration;

use sessile_proto::age_search::AgeSearch;
use sessile_proto::verdict::How;
use strum::{IntoStaticStr, VariantArray};

use super::events::WatchLimits;
use super::pace::Pace;
use crate::client::{ClientCertificate, SetupError, StartTls, Target, Trust};

/// The target of a probe, and how to probe it.
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// The target as the user wrote it; only displayed.
    pub target: String,
    /// Host name or IP address, for SNI and for the certificate.
    pub server_name: String,
    /// `Host` of the HTTP request.
    pub host: String,
    /// At least one address. Each address counts as one server.
    pub addresses: Vec<SocketAddr>,
    /// The addresses of each name that was looked up. The probe leaves out an address that is missing, if its name
    /// has another.
    pub names: Vec<Vec<SocketAddr>>,
    /// Other names of the same servers. Sessions of `server_name` must not resume for them.
    pub other_names: Vec<String>,
    /// The mechanisms to test, in the order of the report.
    pub mechanisms: Vec<How>,
    /// The number of sessions of each server that are offered to each server, for each mechanism.
    pub returns: usize,
    /// The request after the handshake.
    pub request: Request,
    /// The application protocols to offer. `None`: those of the request, with a second try if a server insists on
    /// others.
    pub alpn: Option<Vec<String>>,
    /// The gaps before delayed returns. Empty: the probe returns at once only.
    pub gaps: Vec<Duration>,
    /// The limits of the search for the age at which servers refuse sessions. `None`: no search.
    pub age_limits: Option<AgeLimits>,
    /// How to watch the servers after the tests. `None`: not at all.
    pub watch: Option<WatchLimits>,
    /// What happens to the first connection in each gap, and at each age.
    pub first_connections: Vec<FirstConnection>,
    pub trust: Trust,
    /// The certificate for servers that request one.
    pub certificate: Option<ClientCertificate>,
    /// The time limit of a TCP connection, and also of a handshake.
    pub timeout: Duration,
    /// Limits the rate of connections to each address.
    pub pace: Pace,
    /// The protocol by which the probe asks for TLS.
    pub start_tls: Option<StartTls>,
    /// The HTTP proxy of all connections.
    pub proxy: Option<SocketAddr>,
}

/// The limits of a search for an age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgeLimits {
    /// The largest age that is tried.
    pub max: Duration,
    /// The search ends when the age is known to this bound.
    pub within: Duration,
}

impl AgeLimits {
    /// The number of sessions that one search needs at most, and its longest time.
    fn most(self) -> (usize, Duration) {
        let rounds = AgeSearch::most_rounds(self.max, self.within);
        let sessions = rounds as usize * AgeSearch::TRIES as usize;
        (sessions, self.max.saturating_mul(rounds))
    }
}

/// What the probe sends after a handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Request {
    /// Nothing. The probe only waits a moment for tickets.
    None,
    /// `HEAD /` of HTTP/1.1, or the preface of HTTP/2 if the server chose `h2`.
    #[default]
    Http1,
    /// The preface of HTTP/2.
    H2,
}

/// What happens to the first connection before a delayed return.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    IntoStaticStr,
    VariantArray,
    clap::ValueEnum,
)]
#[strum(serialize_all = "kebab-case")]
pub enum FirstConnection {
    /// It stays open and idle.
    Idle,
    /// It ends with close_notify.
    CloseNotify,
    /// The client closes it without close_notify.
    Fin,
    /// The client resets it.
    Reset,
}

/// The mechanisms in the order of the report.
pub const MECHANISMS: [How; 3] = [How::SessionId, How::Ticket, How::Psk];

/// Default number of returns if the target has one address.
const RETURNS_OF_ONE: usize = 5;

/// Default number of returns for each pair of addresses.
const RETURNS_OF_PAIR: usize = 2;

/// Connections for each server and each other name.
const CONNECTIONS_OF_OTHER_NAME: usize = 3;

/// Connections for the test of one server that may accept early data twice: a full handshake, the first offer, and the
/// same bytes at this server and at another one.
const CONNECTIONS_OF_REPLAYS: usize = 4;

/// A full handshake and two returns for each server.
const CONNECTIONS_OF_USABLE_TWICE: usize = 3;

/// Tickets that most TLS 1.3 servers give in a full handshake.
const USUAL_TICKETS: usize = 2;

impl ProbePlan {
    /// The address under a name of the farm, with the way to it.
    pub(super) fn connection_target(
        &self,
        address: SocketAddr,
        server_name: &str,
    ) -> Result<Target, SetupError> {
        let target = Target::new(address, server_name)?;
        Ok(Target {
            start_tls: self.start_tls,
            proxy: self.proxy,
            ..target
        })
    }

    /// The default of [`ProbePlan::returns`] for a number of addresses.
    #[must_use]
    pub const fn default_returns(addresses: usize) -> usize {
        if addresses == 1 {
            RETURNS_OF_ONE
        } else {
            RETURNS_OF_PAIR
        }
    }

    /// The expected number of connections. Servers that give no sessions get fewer. Servers that refuse sessions,
    /// end handshakes or give few tickets get more.
    #[must_use]
    pub fn connections(&self) -> usize {
        let servers = self.addresses.len();
        let offers = servers * servers * self.returns;
        let other_names = CONNECTIONS_OF_OTHER_NAME * servers * self.other_names.len();
        let sessions_by_age = self.age_limits.map_or(0, |limits| limits.most().0);
        let sessions = self.gaps.len() + sessions_by_age;
        let watch = self.watch.map_or(0, |limits| {
            let ticks = limits.duration.as_nanos() / limits.interval.as_nanos().max(1);
            2 * servers * (1 + u32::try_from(ticks).unwrap_or(u32::MAX) as usize)
        });
        let delayed = 2 * servers * sessions * self.first_connections.len();
        let usable_twice = if self.mechanisms.contains(&How::Psk) {
            CONNECTIONS_OF_USABLE_TWICE * servers
        } else {
            0
        };
        usable_twice + self.mechanisms.len() * (servers + offers + other_names + delayed + watch)
    }

    /// The largest number of further connections if the servers accept early data.
    #[must_use]
    pub fn early_data_connections(&self) -> usize {
        if self.request != Request::Http1 || !self.mechanisms.contains(&How::Psk) {
            return 0;
        }
        let servers = self.addresses.len();
        let offers = servers * servers;
        // Each offer can need a new session first.
        2 * offers + CONNECTIONS_OF_REPLAYS * servers
    }

    /// The time that the connections take under the limit of the rate, if the servers answer at once.
    #[must_use]
    pub fn shortest_time(&self) -> Duration {
        let search = self
            .age_limits
            .map_or(Duration::ZERO, |limits| limits.most().1);
        let watch = self.watch.map_or(Duration::ZERO, |limits| limits.duration);
        let longest = self.gaps.iter().max().copied().unwrap_or_default() + search + watch;
        if self.pace.rate() == 0 {
            return longest;
        }
        let each = self.connections().div_ceil(self.addresses.len().max(1));
        let gaps = u32::try_from(each.saturating_sub(1)).unwrap_or(u32::MAX);
        longest + Duration::from_secs(1) / self.pace.rate() * gaps
    }

    /// The largest number of full handshakes with one server and one mechanism, so that a server that gives few
    /// sessions does not get connections without end.
    pub(super) fn max_full_handshakes(&self, servers: usize) -> usize {
        (self.returns * servers).max(USUAL_TICKETS)
    }
}
