//! One lookup of a DNS name: A and AAAA records of a host, or SRV records and the hosts that they name.
//!
//! Each lookup reads /etc/resolv.conf and /etc/hosts again, because both change while a container runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::lookup::Lookup as DnsAnswer;
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{IntoName, Name, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use sessile_proto::name_resolution::{Answer, FoundServer, Selection, select, usable_address};
use tokio::time::timeout;

use crate::config::ServerAddress;

/// The time limit of one lookup, with all its queries and their repetitions.
const DEADLINE: Duration = Duration::from_secs(30);

/// The target and the port of an SRV record.
pub(super) type RecordKey = (Name, u16);

/// The inputs of a lookup beside the name.
#[derive(Clone, Debug, Default)]
pub(super) struct LookupInputs {
    /// The DNS server. `None`: those of the system.
    pub(super) resolver: Option<SocketAddr>,
    /// The balancer's own listeners, which are no servers.
    pub(super) listeners: Vec<SocketAddr>,
    /// The addresses of the servers in use.
    pub(super) known: BTreeSet<SocketAddr>,
    /// The SRV records in use.
    pub(super) known_records: BTreeSet<RecordKey>,
}

/// The result of a lookup that found servers.
#[derive(Debug)]
pub(super) struct LookedUp {
    pub(super) answer: Answer,
    /// The SRV records that gave the servers.
    pub(super) records: BTreeSet<RecordKey>,
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
    #[error(
        "no address of the name can be that of a server: the balancer uses no address such as 0.0.0.0, and none of \
         its own listeners"
    )]
    NoUsableAddress,
    #[error("{0}")]
    Failed(NetError),
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Looks up the name of a host or a service.
pub(super) async fn look_up(
    inputs: &LookupInputs,
    name: &ServerAddress,
) -> Result<LookedUp, LookupError> {
    let looked_up = timeout(DEADLINE, async {
        match name {
            ServerAddress::Socket(address) => inputs.host(&[address.ip()], address.port(), None),
            ServerAddress::Host { name, port } => {
                // A name in this file needs no DNS server, also for the other family of addresses.
                let listed = listed_in_hosts(name);
                if !listed.is_empty() {
                    return inputs.host(&listed, *port, None);
                }
                let found = Lookup::start(inputs)?.addresses(&parse(name)?).await?;
                inputs.host(&found.ips, *port, Some(found.valid_until))
            }
            ServerAddress::Service(name) => Lookup::start(inputs)?.service(&parse(name)?).await,
        }
    });
    looked_up
        .await
        .unwrap_or(Err(LookupError::TimedOut(DEADLINE)))
}

impl LookupInputs {
    /// The servers at the addresses of one host. `valid_until`: the end of the records, if they end.
    fn host(
        &self,
        ips: &[IpAddr],
        port: u16,
        valid_until: Option<Instant>,
    ) -> Result<LookedUp, LookupError> {
        let mut answer = Answer::default();
        self.add_host(&mut answer, ips, port, None);
        finish(answer, BTreeSet::new(), valid_until)
    }

    /// Adds the servers at the addresses of a host to an answer.
    fn add_host(&self, answer: &mut Answer, ips: &[IpAddr], port: u16, weight: Option<u16>) {
        let addresses = ips.iter().filter_map(|ip| {
            let usable = usable_address(SocketAddr::new(*ip, port), &self.listeners, is_local);
            answer.unusable += usize::from(usable.is_none());
            usable
        });
        let Selection { items, left_out } = select(
            addresses.collect(),
            |address| self.known.contains(address),
            |address| *address,
        );
        answer.left_out += left_out;
        let servers = items.into_iter();
        answer
            .servers
            .extend(servers.map(|address| FoundServer { address, weight }));
    }
}

/// The result of a lookup, if the answer has servers.
fn finish(
    answer: Answer,
    records: BTreeSet<RecordKey>,
    valid_until: Option<Instant>,
) -> Result<LookedUp, LookupError> {
    if answer.servers.is_empty() {
        return Err(match answer.unusable {
            0 => LookupError::NoServer,
            _ => LookupError::NoUsableAddress,
        });
    }
    let lifetime = valid_until.map(|end| end.saturating_duration_since(Instant::now()));
    Ok(LookedUp {
        answer,
        records,
        lifetime: lifetime.unwrap_or(Duration::MAX),
    })
}

/// True if this host has the address. The system binds sockets only to such addresses.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

fn parse(name: &str) -> Result<Name, LookupError> {
    let parsed = name.into_name();
    parsed.map_err(|error| LookupError::Failed(error.into()))
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

/// A lookup that asks DNS servers.
struct Lookup<'i> {
    inputs: &'i LookupInputs,
    resolver: TokioResolver,
    /// The domains in which a name without a final dot is looked up.
    search: Vec<Name>,
}

/// The addresses of a host, and the end of the records.
struct HostAddresses {
    ips: Vec<IpAddr>,
    valid_until: Instant,
}

impl<'i> Lookup<'i> {
    fn start(inputs: &'i LookupInputs) -> Result<Self, LookupError> {
        let mut search = Vec::new();
        let builder = match inputs.resolver {
            None => {
                let system = system_conf::read_system_conf();
                let (config, options) = system.map_err(LookupError::SystemConfig)?;
                search.extend(config.domain.iter().chain(&config.search).cloned());
                let provider = TokioRuntimeProvider::default();
                TokioResolver::builder_with_config(config, provider).with_options(options)
            }
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
        Ok(Self {
            inputs,
            resolver: builder.build().map_err(LookupError::Failed)?,
            search,
        })
    }

    /// The servers of SRV records with the first priority (RFC 2782). Records with other priorities are for
    /// clients that found no server.
    async fn service(&self, name: &Name) -> Result<LookedUp, LookupError> {
        let found = self.search(name, async |name| {
            let found = self.resolver.lookup(name, RecordType::SRV).await;
            found.map_err(|error| lookup_error(error, "SRV"))
        });
        let found = found.await?;
        let mut valid_until = found.valid_until();
        let records = found.answers().iter();
        let records = records.filter_map(|record| match &record.data {
            RData::SRV(service) => Some(service),
            _ => None,
        });
        let Selection {
            items: records,
            left_out,
        } = first_priority(records.collect(), &self.inputs.known_records);
        let mut answer = Answer {
            left_out,
            ..Answer::default()
        };
        let mut hosts: BTreeMap<&Name, Vec<IpAddr>> = BTreeMap::new();
        for record in &records {
            if !hosts.contains_key(&record.target) {
                let ips = match self.addresses(&record.target).await {
                    Ok(host) => {
                        valid_until = valid_until.min(host.valid_until);
                        host.ips
                    }
                    // The records of a service and of its hosts may change one after the other.
                    Err(LookupError::NoSuchName | LookupError::NoRecord(_)) => Vec::new(),
                    Err(error) => return Err(error),
                };
                hosts.insert(&record.target, ips);
            }
            // A record with weight 0 should get few clients, but some (RFC 2782).
            let weight = Some(record.weight.max(1));
            let ips = &hosts[&record.target];
            self.inputs.add_host(&mut answer, ips, record.port, weight);
        }
        let records = records.into_iter();
        let records = records.map(|record| (record.target.clone(), record.port));
        finish(answer, records.collect(), Some(valid_until))
    }

    /// The IPv4 and IPv6 addresses of a host.
    async fn addresses(&self, host: &Name) -> Result<HostAddresses, LookupError> {
        self.search(host, async |name| {
            let (v4, v6) = tokio::join!(
                self.resolver.lookup(name.clone(), RecordType::A),
                self.resolver.lookup(name, RecordType::AAAA)
            );
            self.merge(v4, v6)
        })
        .await
    }

    /// The addresses of both families. A family whose query failed is left out, unless a server in use has an
    /// address of this family.
    fn merge(
        &self,
        v4: Result<DnsAnswer, NetError>,
        v6: Result<DnsAnswer, NetError>,
    ) -> Result<HostAddresses, LookupError> {
        let mut ips = Vec::new();
        let mut valid_until: Option<Instant> = None;
        let mut first_error = None;
        for (found, is_member) in [
            (v4, IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
            (v6, IpAddr::is_ipv6),
        ] {
            match found.map_err(|error| lookup_error(error, "A or AAAA")) {
                Ok(found) => {
                    let records = found.answers().iter();
                    ips.extend(records.filter_map(|record| record.data.ip_addr()));
                    let end = found.valid_until();
                    valid_until = Some(valid_until.map_or(end, |other| other.min(end)));
                }
                Err(error) => {
                    let mut known = self.inputs.known.iter();
                    let is_failure = matches!(error, LookupError::Failed(_));
                    if is_failure && known.any(|server| is_member(&server.ip())) {
                        return Err(error);
                    }
                    // A failure must end the search, even if the other family has no record.
                    if is_failure || first_error.is_none() {
                        first_error = Some(error);
                    }
                }
            }
        }
        match valid_until.filter(|_| !ips.is_empty()) {
            Some(valid_until) => Ok(HostAddresses { ips, valid_until }),
            None => Err(first_error.unwrap_or(LookupError::NoRecord("A or AAAA"))),
        }
    }

    /// Asks for the name in each search domain, until there is an answer.
    ///
    /// After a failure, the answer in the next domain could be that of another host.
    async fn search<T>(
        &self,
        name: &Name,
        ask: impl AsyncFn(Name) -> Result<T, LookupError>,
    ) -> Result<T, LookupError> {
        let mut result = Err(LookupError::NoSuchName);
        for name in candidates(name, &self.search, self.resolver.options().ndots) {
            result = ask(name).await;
            if !matches!(
                result,
                Err(LookupError::NoSuchName | LookupError::NoRecord(_))
            ) {
                break;
            }
        }
        result
    }
}

/// The absolute names for which a lookup asks, in this order. A name with more than `ndots` labels is first
/// taken as it is.
fn candidates(name: &Name, search: &[Name], ndots: usize) -> Vec<Name> {
    let mut absolute = name.clone();
    absolute.set_fqdn(true);
    if name.is_fqdn() {
        return vec![absolute];
    }
    // A name can be too long for a domain.
    let domains = search.iter();
    let in_domains = domains.filter_map(|domain| name.clone().append_domain(domain).ok());
    let mut names: Vec<Name> = in_domains.collect();
    let is_first = usize::from(name.num_labels()) > ndots || name.is_localhost();
    names.insert(if is_first { 0 } else { names.len() }, absolute);
    names
}

/// The records with the lowest number as priority, in a fixed order. The root as target stands for no server.
fn first_priority<'r>(records: Vec<&'r SRV>, known: &BTreeSet<RecordKey>) -> Selection<&'r SRV> {
    let first = records.iter().map(|record| record.priority).min();
    let named = records
        .into_iter()
        .filter(|record| Some(record.priority) == first && !record.target.is_root());
    select(
        named.collect(),
        |record| known.contains(&(record.target.clone(), record.port)),
        |record| (record.target.clone(), record.port, record.weight),
    )
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

#[cfg(test)]
mod tests {
    use sessile_proto::name_resolution::MAX_SERVERS;

    use super::*;

    fn name(text: &str) -> Name {
        text.into_name().unwrap()
    }

    #[test]
    fn a_name_is_looked_up_in_the_search_domains_unless_it_ends_with_a_dot() {
        let search = ["ns.svc.test", "test."].map(name);
        for (asked, ndots, expected) in [
            ("web.", 5, &["web."] as &[&str]),
            ("web", 1, &["web.ns.svc.test.", "web.test.", "web."]),
            (
                "web.ns",
                1,
                &["web.ns.", "web.ns.ns.svc.test.", "web.ns.test."],
            ),
            (
                "web.ns",
                5,
                &["web.ns.ns.svc.test.", "web.ns.test.", "web.ns."],
            ),
        ] {
            let names = candidates(&name(asked), &search, ndots);
            let names: Vec<String> = names.iter().map(Name::to_string).collect();
            assert_eq!(names, expected);
        }
    }

    /// A lookup for a name whose server in use has this address.
    fn lookup<T>(known: &str, use_it: impl FnOnce(Lookup<'_>) -> T) -> T {
        let address: SocketAddr = known.parse().unwrap();
        let inputs = LookupInputs {
            resolver: Some(address),
            known: BTreeSet::from([address]),
            ..LookupInputs::default()
        };
        let mut lookup = Lookup::start(&inputs).unwrap();
        lookup.search = ["one.test.", "other.test."].map(name).into();
        use_it(lookup)
    }

    #[test]
    fn a_failure_in_one_search_domain_ends_the_lookup() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let asked = |error: fn() -> LookupError| {
            let asked = std::cell::RefCell::new(Vec::new());
            let result: Result<(), LookupError> = lookup("10.0.0.1:53", |lookup| {
                let ask = async |name: Name| {
                    asked.borrow_mut().push(name.to_string());
                    Err(error())
                };
                let name = name("web");
                runtime
                    .as_ref()
                    .unwrap()
                    .block_on(lookup.search(&name, ask))
            });
            assert!(result.is_err());
            asked.into_inner()
        };
        let all = ["web.one.test.", "web.other.test.", "web."];
        assert_eq!(asked(|| LookupError::NoSuchName), all);
        assert_eq!(asked(|| LookupError::NoRecord("SRV")), all);
        assert_eq!(asked(|| LookupError::Failed(NetError::Timeout)), all[..1]);
    }

    #[test]
    fn a_family_of_servers_in_use_does_not_leave_because_its_query_failed() {
        let v4 = || -> Result<DnsAnswer, NetError> {
            let address = RData::A(std::net::Ipv4Addr::new(10, 0, 0, 1).into());
            let query = Query::query(name("web.test."), RecordType::A);
            Ok(DnsAnswer::from_rdata(query, address))
        };
        let merged = |known, v6| lookup(known, |lookup| lookup.merge(v4(), v6));
        let found = merged("10.0.0.2:443", Err(NetError::Timeout)).unwrap();
        assert_eq!(found.ips, [IpAddr::from([10, 0, 0, 1])]);
        let refused = merged("[2001:db8::1]:443", Err(NetError::Timeout));
        assert!(matches!(refused, Err(LookupError::Failed(_))));
    }

    #[test]
    fn records_of_the_first_priority_are_cut_in_a_fixed_order_but_those_in_use_stay() {
        let record =
            |number: usize, weight| SRV::new(1, weight, 443, name(&format!("{number:03}.test.")));
        let mut records: Vec<SRV> = (0..MAX_SERVERS + 3).map(|n| record(n, 1)).collect();
        records.push(record(0, 7));
        records.push(SRV::new(2, 1, 443, name("second.test.")));
        records.push(SRV::new(1, 1, 443, Name::root()));
        let last = records[MAX_SERVERS + 2].clone();
        let known = BTreeSet::from([(last.target.clone(), 443)]);
        let selected = first_priority(records.iter().collect(), &known);
        assert_eq!((selected.items.len(), selected.left_out), (MAX_SERVERS, 4));
        assert_eq!(*selected.items[0], last);
        assert_eq!(selected.items[1..3], [&record(0, 1), &record(0, 7)]);
        let reversed = first_priority(records.iter().rev().collect(), &known);
        assert_eq!(reversed, selected);
    }

    #[test]
    fn a_host_has_at_most_64_servers_and_those_in_use_stay() {
        let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 443));
        let mut inputs = LookupInputs {
            listeners: vec!["10.0.0.3:443".parse().unwrap()],
            known: BTreeSet::from([address(200)]),
            ..LookupInputs::default()
        };
        let mut ips: Vec<IpAddr> = (1..=200).map(|n| address(n).ip()).collect();
        ips.extend(ips.clone());
        ips.push("0.0.0.0".parse().unwrap());
        let LookedUp { answer, .. } = inputs.host(&ips, 443, None).unwrap();
        assert_eq!(answer.servers.len(), MAX_SERVERS);
        assert_eq!(answer.servers[0].address, address(200));
        // 10.0.0.3 is the balancer, and came twice.
        assert_eq!((answer.left_out, answer.unusable), (199 - MAX_SERVERS, 3));
        inputs.known.clear();
        let refused = inputs.host(&["0.0.0.0".parse().unwrap()], 443, None);
        assert!(matches!(refused, Err(LookupError::NoUsableAddress)));
    }
}
