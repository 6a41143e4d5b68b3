//! One lookup of a DNS name: A and AAAA records of a host, or SRV records and the hosts that they name.
//!
//! Each lookup reads /etc/resolv.conf and /etc/hosts again, because both change while a container runs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{IntoName, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use sessile_proto::name_resolution::{FoundServer, MAX_SERVERS};
use tokio::time::timeout;

use crate::config::ServerAddress;

/// The time limit of one lookup, with all its queries and their repetitions.
const DEADLINE: Duration = Duration::from_secs(30);

/// The servers that a name stands for.
pub(super) struct Answer {
    pub(super) servers: Vec<FoundServer>,
    /// The time until the first of the records ends.
    pub(super) lifetime: Duration,
}

/// Why a lookup found no server.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error("/etc/resolv.conf cannot be used: {0}; correct the file, or set balance.resolver")]
    SystemConfig(NetError),
    #[error("the name does not exist (NXDOMAIN)")]
    NoSuchName,
    #[error("the name has no {0} record")]
    NoRecord(&'static str),
    #[error("no SRV record of the name leads to an address")]
    NoServer,
    #[error("{0}")]
    Failed(NetError),
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Looks up a name. `resolver`: the DNS server, instead of those of the system. `known`: the servers of the
/// last answer.
pub(super) async fn look_up(
    resolver: Option<SocketAddr>,
    name: &ServerAddress,
    known: &[FoundServer],
) -> Result<Answer, LookupError> {
    let looked_up = timeout(DEADLINE, async {
        match name {
            ServerAddress::Socket(address) => Ok(Answer::lasting(&[address.ip()], address.port())),
            ServerAddress::Host { name, port } => {
                // A name in this file needs no DNS server, also for the other family of addresses.
                let listed = listed_in_hosts(name);
                if !listed.is_empty() {
                    return Ok(Answer::lasting(&listed, *port));
                }
                Lookup::start(resolver, known)?.host(name, *port).await
            }
            ServerAddress::Service(name) => Lookup::start(resolver, known)?.service(name).await,
        }
    });
    looked_up
        .await
        .unwrap_or(Err(LookupError::TimedOut(DEADLINE)))
}

/// The addresses of a host in /etc/hosts.
fn listed_in_hosts(host: &str) -> Vec<IpAddr> {
    let (Ok(hosts), Ok(name)) = (Hosts::from_system(), host.into_name()) else {
        return Vec::new();
    };
    let families = [RecordType::A, RecordType::AAAA].into_iter();
    let listed = families.filter_map(|family| {
        let query = Query::query(name.clone(), family);
        hosts.lookup_static_host(&query)
    });
    listed
        .flat_map(|listed| LookupIp::from(listed).into_iter())
        .collect()
}

fn connect(resolver: Option<SocketAddr>) -> Result<TokioResolver, LookupError> {
    let builder = match resolver {
        None => TokioResolver::builder_tokio().map_err(LookupError::SystemConfig)?,
        Some(address) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            let connections = connections.map(|mut connection| {
                connection.port = address.port();
                connection
            });
            let server = NameServerConfig::new(address.ip(), true, connections.into());
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    builder.build().map_err(LookupError::Failed)
}

/// A lookup that asks DNS servers.
struct Lookup<'k> {
    resolver: TokioResolver,
    known: &'k [FoundServer],
}

/// The addresses of a host, and the end of the records.
struct HostAddresses {
    ips: Vec<IpAddr>,
    valid_until: Instant,
}

impl Answer {
    /// The servers of these addresses, which have no end.
    fn lasting(ips: &[IpAddr], port: u16) -> Self {
        Self {
            servers: servers(ips, port),
            lifetime: Duration::MAX,
        }
    }
}

fn servers(ips: &[IpAddr], port: u16) -> Vec<FoundServer> {
    let servers = ips.iter().map(|ip| FoundServer {
        address: SocketAddr::new(*ip, port),
        weight: None,
    });
    servers.collect()
}

impl<'k> Lookup<'k> {
    fn start(resolver: Option<SocketAddr>, known: &'k [FoundServer]) -> Result<Self, LookupError> {
        let resolver = connect(resolver)?;
        Ok(Self { resolver, known })
    }

    async fn host(&self, name: &str, port: u16) -> Result<Answer, LookupError> {
        let HostAddresses { ips, valid_until } = self.addresses(name).await?;
        Ok(Answer {
            servers: servers(&ips, port),
            lifetime: valid_until.saturating_duration_since(Instant::now()),
        })
    }

    /// The servers of SRV records with the first priority (RFC 2782). Records with other priorities are for
    /// clients that found no server.
    async fn service(&self, name: &str) -> Result<Answer, LookupError> {
        let found = self.resolver.srv_lookup(name).await;
        let found = found.map_err(|error| lookup_error(error, "SRV"))?;
        let mut valid_until = found.valid_until();
        let records: Vec<&SRV> = found
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(service) => Some(service),
                _ => None,
            })
            .collect();
        let mut servers = Vec::new();
        let mut hosts: BTreeMap<_, HostAddresses> = BTreeMap::new();
        for record in first_priority(&records) {
            if !hosts.contains_key(&record.target) {
                match self.addresses(record.target.clone()).await {
                    Ok(host) => {
                        valid_until = valid_until.min(host.valid_until);
                        hosts.insert(record.target.clone(), host);
                    }
                    // The records of a service and of its hosts may change one after the other.
                    Err(LookupError::NoSuchName | LookupError::NoRecord(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            let host = hosts.get(&record.target);
            for ip in host.into_iter().flat_map(|host| &host.ips) {
                servers.push(FoundServer {
                    address: SocketAddr::new(*ip, record.port),
                    // A record with weight 0 should get few clients, but some (RFC 2782).
                    weight: Some(record.weight.max(1)),
                });
            }
        }
        if servers.is_empty() {
            return Err(LookupError::NoServer);
        }
        Ok(Answer {
            servers,
            lifetime: valid_until.saturating_duration_since(Instant::now()),
        })
    }

    /// The IPv4 and IPv6 addresses of a host.
    async fn addresses(&self, host: impl IntoName) -> Result<HostAddresses, LookupError> {
        let found = self.resolver.lookup_ip(host).await;
        let found = found.map_err(|error| lookup_error(error, "A or AAAA"))?;
        let mut addresses = HostAddresses {
            ips: found.iter().collect(),
            valid_until: found.valid_until(),
        };
        for (family, is_member) in [
            (RecordType::A, IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
            (RecordType::AAAA, IpAddr::is_ipv6),
        ] {
            let mut known = self.known.iter();
            let was_known = known.any(|server| is_member(&server.address.ip()));
            if was_known && !addresses.ips.iter().any(is_member) {
                self.confirm_absence(&found, family, &mut addresses).await?;
            }
        }
        if addresses.ips.is_empty() {
            return Err(LookupError::NoRecord("A or AAAA"));
        }
        Ok(addresses)
    }

    /// Asks again for the records of a family that the last answer had. The resolver hides a failed query of
    /// one family if the other family has an answer.
    async fn confirm_absence(
        &self,
        found: &LookupIp,
        family: RecordType,
        addresses: &mut HostAddresses,
    ) -> Result<(), LookupError> {
        let name = found.query().name().clone();
        match self.resolver.lookup(name, family).await {
            Ok(more) => {
                let records = more.answers().iter();
                addresses
                    .ips
                    .extend(records.filter_map(|record| record.data.ip_addr()));
                addresses.valid_until = addresses.valid_until.min(more.valid_until());
                Ok(())
            }
            Err(error) if error.is_no_records_found() => Ok(()),
            Err(error) => Err(LookupError::Failed(error)),
        }
    }
}

/// The records with the lowest number as priority, in a fixed order. The root as target stands for no server.
fn first_priority<'r>(records: &[&'r SRV]) -> Vec<&'r SRV> {
    let first = records.iter().map(|record| record.priority).min();
    let mut named: Vec<&SRV> = records
        .iter()
        .copied()
        .filter(|record| Some(record.priority) == first && !record.target.is_root())
        .collect();
    named.sort_by_key(|record| (&record.target, record.port));
    named.truncate(MAX_SERVERS);
    named
}

fn lookup_error(error: NetError, records: &'static str) -> LookupError {
    if error.is_nx_domain() {
        LookupError::NoSuchName
    } else if error.is_no_records_found() {
        LookupError::NoRecord(records)
    } else {
        LookupError::Failed(error)
    }
}
