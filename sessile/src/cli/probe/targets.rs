//! The targets of a probe: names from the command line and from a file, and their addresses.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use sessile_proto::verdict::How;
use tokio::net::lookup_host;

use super::args::Args;
use crate::cli::endpoint::Endpoint;
use crate::client::{ClientCertificate, StartTls, Target, Trust};
use crate::probe::{MECHANISMS, Pace, ProbePlan, Request, WatchLimits};

/// Maximum number of a host's addresses that are tried.
const MAX_ADDRESSES: usize = 64;

const DEFAULT_PORT: u16 = 443;

/// The port of an HTTP proxy whose URL has no port.
const DEFAULT_PROXY_PORT: u16 = 80;

/// The targets of the command line and of its file, each once.
///
/// # Errors
///
/// The file cannot be read, a line of it is no target, or there is no target. Options for one target were given with
/// several.
pub(super) fn list(args: &Args) -> anyhow::Result<Vec<Endpoint>> {
    let mut targets = args.targets.clone();
    if let Some(file) = &args.targets_from {
        targets.extend(read(file)?);
    }
    let mut seen: Vec<Endpoint> = Vec::new();
    for target in targets {
        if !seen.contains(&target) {
            seen.push(target);
        }
    }
    anyhow::ensure!(
        !seen.is_empty(),
        "no target: the file has no line with HOST:PORT"
    );
    if seen.len() > 1 {
        let option = if args.addresses.is_empty() {
            "--sni"
        } else {
            "--address"
        };
        let is_for_one = !args.addresses.is_empty() || args.sni.is_some();
        anyhow::ensure!(
            !is_for_one,
            "{option} needs a single target, and there are {}",
            seen.len()
        );
    }
    Ok(seen)
}

/// The targets in a file, one a line. `#` begins a comment, and `-` is the standard input.
fn read(file: &Path) -> anyhow::Result<Vec<Endpoint>> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    let file = file.display();
    read.with_context(|| format!("cannot read the targets from {file}"))?;
    let mut targets = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let target = line.split('#').next().unwrap_or_default().trim();
        if !target.is_empty() {
            let target = target.parse::<Endpoint>().map_err(|error| {
                anyhow::anyhow!("{file}, line {}: {target:?}: {error}", index + 1)
            })?;
            targets.push(target);
        }
    }
    Ok(targets)
}

/// What all targets have in common.
pub(super) struct Common {
    trust: Trust,
    certificate: Option<ClientCertificate>,
    proxy: Option<SocketAddr>,
    pace: Pace,
}

impl Common {
    /// # Errors
    ///
    /// A file cannot be read, or the proxy has no address.
    pub(super) async fn of(args: &Args) -> anyhow::Result<Self> {
        let trust = match &args.ca {
            Some(path) => Trust::ca_file(path)?,
            None if args.insecure => Trust::Insecure,
            None => Trust::System,
        };
        let certificate = match (&args.cert, &args.key) {
            (Some(chain), Some(key)) => Some(ClientCertificate::read(chain, key)?),
            _ => None,
        };
        let proxy = match &args.proxy {
            Some(proxy) => {
                let port = proxy.port.unwrap_or(DEFAULT_PROXY_PORT);
                resolve(&proxy.host, port).await?.first().copied()
            }
            None => None,
        };
        Ok(Self {
            trust,
            certificate,
            proxy,
            pace: Pace::new(args.rate),
        })
    }

    /// The plan for one target.
    ///
    /// # Errors
    ///
    /// A name has no address, or cannot be used as a server name.
    pub(super) async fn plan(&self, args: &Args, target: &Endpoint) -> anyhow::Result<ProbePlan> {
        let Endpoint { host, port } = target;
        let default_port = args.start_tls.map_or(DEFAULT_PORT, StartTls::default_port);
        let port = port.unwrap_or(default_port);
        let mut endpoints: Vec<&Endpoint> = args.addresses.iter().flat_map(|it| &it.0).collect();
        if endpoints.is_empty() {
            endpoints.push(target);
        }
        let Addresses { all, names } = Addresses::of(&endpoints, port).await?;
        let mut mechanisms = MECHANISMS.to_vec();
        if !args.mechanisms.is_empty() {
            let chosen: Vec<How> = args.mechanisms.iter().copied().map(How::from).collect();
            mechanisms.retain(|how| chosen.contains(how));
        }
        let request = if args.start_tls.is_some() {
            Request::None
        } else {
            args.request
        };
        for name in &args.other_names {
            Target::new(all[0], name)?;
        }
        let default_returns = ProbePlan::default_returns(all.len());
        let server_name = args.sni.clone().unwrap_or_else(|| host.clone());
        Ok(ProbePlan {
            target: target.to_string(),
            host: Endpoint {
                host: server_name.clone(),
                port: Some(port).filter(|port| *port != DEFAULT_PORT),
            }
            .to_string(),
            server_name,
            addresses: all,
            names,
            other_names: args.other_names.clone(),
            mechanisms,
            gaps: args.after.clone(),
            age_limits: args.age_limits(),
            watch: args.watch.map(|duration| WatchLimits {
                duration,
                interval: args.interval,
            }),
            first_connections: args.first_connections(),
            request,
            start_tls: args.start_tls,
            proxy: self.proxy,
            alpn: args.alpn.clone(),
            certificate: self.certificate.clone(),
            pace: self.pace.clone(),
            returns: args.attempts.map_or(default_returns, usize::from),
            trust: self.trust.clone(),
            timeout: args.timeout,
        })
    }
}

/// Adds the names of targets with a common address as other names, so that sessions of one are offered to the other.
pub(super) fn add_other_names(plans: &mut [&mut ProbePlan]) {
    let known: Vec<(String, Vec<SocketAddr>)> = plans
        .iter()
        .map(|plan| (plan.server_name.clone(), plan.addresses.clone()))
        .collect();
    for plan in plans {
        for (name, addresses) in &known {
            let is_new = *name != plan.server_name && !plan.other_names.contains(name);
            if is_new
                && addresses
                    .iter()
                    .any(|address| plan.addresses.contains(address))
            {
                plan.other_names.push(name.clone());
            }
        }
    }
}

/// The addresses to connect to, each once.
#[derive(Default)]
struct Addresses {
    all: Vec<SocketAddr>,
    /// The addresses of each name.
    names: Vec<Vec<SocketAddr>>,
}

impl Addresses {
    /// Resolves the names among the endpoints.
    async fn of(endpoints: &[&Endpoint], default_port: u16) -> anyhow::Result<Self> {
        let mut addresses = Self::default();
        for endpoint in endpoints {
            let port = endpoint.port.unwrap_or(default_port);
            if let Ok(ip) = endpoint.host.parse::<IpAddr>() {
                addresses.add(SocketAddr::new(ip, port));
                continue;
            }
            let found = resolve(&endpoint.host, port).await?;
            for address in &found {
                addresses.add(*address);
            }
            addresses.names.push(found);
        }
        Ok(addresses)
    }

    fn add(&mut self, address: SocketAddr) {
        if !self.all.contains(&address) {
            self.all.push(address);
        }
    }
}

async fn resolve(host: &str, port: u16) -> anyhow::Result<Vec<SocketAddr>> {
    let found = lookup_host((host, port))
        .await
        .with_context(|| format!("cannot find the address of {host}"))?;
    let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
    anyhow::ensure!(!addresses.is_empty(), "{host} has no address");
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_without_a_port_take_the_port_of_the_target_and_count_once() {
        let endpoints = ["192.0.2.1", "192.0.2.1:1", "192.0.2.1:8443"];
        let endpoints = endpoints.map(|text| text.parse::<Endpoint>().unwrap());
        let Addresses { all, names } = Addresses::of(&endpoints.each_ref(), 8443).await.unwrap();
        let expected: [SocketAddr; 2] = [([192, 0, 2, 1], 8443).into(), ([192, 0, 2, 1], 1).into()];
        assert_eq!(all, expected);
        assert!(names.is_empty());
    }

    #[tokio::test]
    async fn a_name_stands_for_its_addresses() {
        let endpoint: Endpoint = "localhost:1".parse().unwrap();
        let Addresses { all, names } = Addresses::of(&[&endpoint], 443).await.unwrap();
        assert!(all.contains(&([127, 0, 0, 1], 1).into()), "{all:?}");
        assert_eq!([all], *names);
    }
}
