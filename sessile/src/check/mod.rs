//! Explains a configuration in plain sentences, and checks the files that it names. This module changes no file.

mod certificate;
mod client_auth;
mod durability;
mod state;

pub(crate) use state::without_labels;

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use humantime::format_duration;

use crate::config::{
    AccessLog, Action, BYTES_PER_ENTRY, Balance, BalanceServer, Certificate, Config, Health,
    KernelTls, Key, Role, ServerAddress, Site, StoreUrl, Symlinks, human_bytes,
};
use crate::tls::KernelSupport;
use crate::{balance, clock, key, serve};

/// One sentence about a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub grade: Grade,
    pub text: String,
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// An explanation.
    Note,
    /// The configuration works, but probably not as the operator intended.
    Warning,
    /// The configuration does not work.
    Error,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.grade {
            Grade::Note => "",
            Grade::Warning => "warning: ",
            Grade::Error => "error: ",
        })?;
        f.write_str(&self.text)
    }
}

/// Explains a configuration, and finds the problems of the files that it names.
#[must_use]
pub fn check(config: &Config, now: SystemTime) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    listeners(config, &mut findings);
    for site in &config.sites {
        check_site(config, site, now, &mut findings);
    }
    upstreams(config, &mut findings);
    state::check(config, &mut findings);
    server_numbers(config, &mut findings);
    if config.has_role(Role::Serve) {
        durability::check(config, &mut findings);
        durability::check_store(config, &mut findings);
        durability::check_forget(config, clock::at(now), &mut findings);
        session_table(config, &mut findings);
        kernel_tls(config, &mut findings);
    }
    connections(config, &mut findings);
    if let AccessLog::File(path) = &config.log.access {
        state::check_log(path, &mut findings);
    }
    findings.0
}

/// Explains the sessions that are lost at once, at a restart and at a crash. A server logs this at its start.
#[must_use]
pub fn durability(config: &Config) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    durability::check(config, &mut findings);
    state::check_state_folder(config, &mut findings);
    findings.0
}

/// A warning if other users can read a configuration file that contains a password.
#[must_use]
pub fn config_file(path: &Path, config: &Config) -> Option<Finding> {
    let StoreUrl::Redis(redis) = &config.session.store else {
        return None;
    };
    let mut findings = Findings(Vec::new());
    if redis.has_password() {
        state::check_private(path, Grade::Warning, &mut findings);
    }
    findings.0.pop()
}

/// The findings so far.
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, grade: Grade, text: impl Into<String>) {
        let text = text.into();
        self.0.push(Finding { grade, text });
    }

    fn note(&mut self, text: impl Into<String>) {
        self.add(Grade::Note, text);
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.add(Grade::Warning, text);
    }

    fn fail(&mut self, text: impl Into<String>) {
        self.add(Grade::Error, text);
    }
}

/// "1 site", "2 sites".
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A time in UTC, to the second.
fn utc(time: SystemTime) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(time)
}

fn listeners(config: &Config, findings: &mut Findings) {
    if config.listeners.is_empty() {
        findings.warn("There is no [[listener]]: sessile serve and sessile balance cannot run with this file.");
    }
    for listener in &config.listeners {
        let address = listener.address;
        findings.note(match listener.role {
            Role::Serve => format!(
                "{address} serves {}: TLS 1.2 and 1.3 end here.",
                counted(config.sites.len(), "site")
            ),
            Role::Balance => format!(
                "{address} balances over {} in {} and decrypts nothing; a server has {} to accept a connection, and \
                 health checks are {}.",
                counted_servers(&config.balance),
                counted(pools(&config.balance), "pool"),
                format_duration(config.balance.connect_timeout),
                health_checks(&config.balance),
            ),
        });
    }
    if config.has_role(Role::Balance) {
        pool_protocols(&config.balance, findings);
        server_names(&config.balance, findings);
    }
    if !config.sites.is_empty() && !config.has_role(Role::Serve) {
        findings.warn("There are sites, but no listener serves them.");
    }
    if let Some(address) = config.admin.listen {
        let paths = if config.has_role(Role::Balance) {
            "/healthz, /readyz, /metrics and /api/balancer"
        } else {
            "/healthz, /readyz and /metrics"
        };
        findings.note(format!("{address} answers {paths} in plain HTTP."));
        if !address.ip().is_loopback() {
            findings.warn(format!(
                "admin.listen = \"{address}\" can be reached from other machines; \"127.0.0.1:{}\" cannot.",
                address.port()
            ));
        }
    }
}

/// Names the protocol of each pool that has one.
fn pool_protocols(balance: &Balance, findings: &mut Findings) {
    for pool in &balance.pools {
        let Some(protocol) = &pool.alpn else { continue };
        let names = match pool.names.as_slice() {
            [] => "every name".to_owned(),
            names => names.join(", "),
        };
        findings.note(format!(
            "Pool {} takes clients that offer the protocol {protocol:?} (ALPN), for {names}.",
            pool.name
        ));
    }
}

/// "2 servers", "2 servers and the servers of 1 DNS name".
fn counted_servers(balance: &Balance) -> String {
    let all = balance.servers.len();
    let is_name = |server: &&BalanceServer| server.address.is_name();
    let names = balance.servers.iter().filter(is_name).count();
    let names_in_words = counted(names, "DNS name");
    match (all - names, names) {
        (servers, 0) => counted(servers, "server"),
        (0, _) => format!("the servers of {names_in_words}"),
        (servers, _) => {
            let servers = counted(servers, "server");
            format!("{servers} and the servers of {names_in_words}")
        }
    }
}

/// Explains the servers that DNS names stand for. Nothing is looked up.
fn server_names(balance: &Balance, findings: &mut Findings) {
    let resolver = match balance.resolver {
        Some(address) => format!("the DNS server {address}"),
        None => "the DNS servers of /etc/resolv.conf".to_owned(),
    };
    let interval = format_duration(balance.lookup_interval);
    for server in &balance.servers {
        let name = &server.name;
        let meaning = match &server.address {
            ServerAddress::Socket(_) => continue,
            ServerAddress::Host { name: host, port } => format!(
                "Each address of the host {host} is a server with port {port}, named {name}/IP:{port}"
            ),
            ServerAddress::Service(service) => format!(
                "The SRV records of {service} name the hosts, the ports and the weights of the servers {name}/IP:PORT"
            ),
        };
        findings.note(format!(
            "{meaning}; /etc/hosts goes first; the balancer asks {resolver} again when the lifetime of the records \
             ends, after {interval} at the latest."
        ));
    }
}

/// The number of pools. The default pool counts if it has servers.
fn pools(balance: &Balance) -> usize {
    let default = balance.servers.iter().any(|server| server.pool.is_none());
    balance.pools.len() + usize::from(default)
}

fn health_checks(balance: &Balance) -> String {
    let every = format_duration(balance.health_interval);
    match balance.health {
        Health::Tls => format!("a TLS handshake every {every}"),
        Health::Tcp => format!("a connection every {every}"),
        Health::Off => "off (balance.health is \"off\")".to_owned(),
    }
}

fn check_site(config: &Config, site: &Site, now: SystemTime, findings: &mut Findings) {
    let names = match site.names.as_slice() {
        [] => "\"*\" (every other name)".to_owned(),
        names => names.join(", "),
    };
    findings.note(format!(
        "Site {names}: {}, {}.",
        counted(site.certificates.len(), "certificate"),
        counted(site.routes.len(), "route")
    ));
    if site.routes.is_empty() {
        findings.warn(format!(
            "Site {names} has no [[site.route]]: every request is answered 404."
        ));
    }
    for pair in &site.certificates {
        check_certificate(pair, site, now, findings);
    }
    client_auth::check(config, site, &names, now, findings);
    for route in &site.routes {
        if let Action::Files(folder) = &route.action {
            state::check_served(&folder.path, findings);
            if folder.symlinks == Symlinks::Follow {
                findings.note(format!(
                    "Symbolic links in {} are followed, also to files outside the folder.",
                    folder.path.display()
                ));
            }
        }
    }
}

fn check_certificate(pair: &Certificate, site: &Site, now: SystemTime, findings: &mut Findings) {
    let (until, errors) = certificate::examine(pair, &site.names, now);
    let path = pair.chain.display();
    if let Some(until) = until
        && errors.is_empty()
    {
        let end = utc(until);
        findings.note(format!(
            "{path}: matches its key and names, valid until {end}."
        ));
        if until < now + certificate::SOON {
            findings.warn(format!("{path}: ends on {end}; renew it."));
        }
    }
    for error in errors {
        findings.fail(format!("{error}."));
    }
    state::check_private(&pair.key, Grade::Warning, findings);
}

fn upstreams(config: &Config, findings: &mut Findings) {
    for upstream in &config.upstreams {
        let name = &upstream.name;
        findings.note(format!(
            "Upstream {name}: {} in plain HTTP; {} to connect, {} to answer.",
            upstream.servers.join(", then "),
            format_duration(upstream.connect_timeout),
            format_duration(upstream.response_timeout),
        ));
        let mut routes = config.sites.iter().flat_map(|site| &site.routes);
        let is_used =
            routes.any(|route| matches!(&route.action, Action::Proxy(to) if to.name == *name));
        if !is_used {
            findings.warn(format!("No route has proxy = {name:?}."));
        }
    }
}

/// Finds servers with the same number. Numbers are derived from the farm's scope, which is in the key file.
/// Without this file, nothing is checked.
fn server_numbers(config: &Config, findings: &mut Findings) {
    let servers = &config.balance.servers;
    let Key::File(file) = &config.key else {
        return;
    };
    if servers.is_empty() || !file.exists() {
        return;
    }
    // `state::check` reports problems with the file.
    let Ok(key) = key::load_any(file) else {
        return;
    };
    // The numbers of servers that are found by a DNS name come from their tickets.
    let configured = servers.iter().filter(|server| !server.address.is_name());
    let servers = configured.map(|server| (server.name.as_str(), server.number));
    for key::Clash { number, names } in key::clashes(&key.scope, servers) {
        let [one, other] = names;
        findings.fail(format!(
            "Servers {one} and {other} both have the number {number} in farm {:?}: the balancer cannot tell their \
             tickets apart. Set another number for one of them, here (number) and in its own file (server.number).",
            key.scope
        ));
    }
}

fn session_table(config: &Config, findings: &mut Findings) {
    let entries = config.session.max_entries;
    if entries > 0 {
        findings.note(format!(
            "The session table takes up to {} when full: {entries} entries of about {BYTES_PER_ENTRY} bytes.",
            human_bytes(entries as u64 * BYTES_PER_ENTRY as u64)
        ));
    }
}

/// Explains where the TLS records of large files are made.
fn kernel_tls(config: &Config, findings: &mut Findings) {
    let mut routes = config.sites.iter().flat_map(|site| &site.routes);
    let has_files = routes.any(|route| matches!(route.action, Action::Files(_)));
    let servers = config
        .listeners
        .iter()
        .filter(|listener| listener.role == Role::Serve);
    let settings: Vec<_> = servers
        .map(|listener| config.kernel_tls(listener))
        .collect();
    let must_have = settings.contains(&KernelTls::On);
    let may_have = settings.contains(&KernelTls::Auto) && has_files;
    if !must_have && !may_have {
        return;
    }
    match KernelSupport::probe() {
        Ok(support) => findings.note(format!(
            "Files of 64 KiB and more leave through kernel TLS, over HTTP/1.1. This kernel has {support}."
        )),
        Err(cause) if must_have => {
            findings.fail(format!("tls.kernel is \"on\", but {cause}."));
        }
        Err(cause) => findings.note(format!("Large files are encrypted in user space: {cause}.")),
    }
}

fn connections(config: &Config, findings: &mut Findings) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = limit.maximum.unwrap_or(u64::MAX);
    for (role, limit) in [
        (Role::Serve, serve::connection_limit(config, files)),
        (Role::Balance, balance::connection_limit(config, files)),
    ] {
        if config.has_role(role)
            && let Some(warning) = limit.warning()
        {
            findings.warn(format!("For a process of this user, {warning}."));
        }
    }
}

#[cfg(test)]
mod tests;
