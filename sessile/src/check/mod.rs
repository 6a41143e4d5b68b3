//! What a configuration means, in plain sentences, and whether what it refers to is there and fits:
//! certificates, keys, folders. It reads and writes nothing that a session depends on.

mod certificate;
mod client_auth;
mod numbers;
mod state;
mod survival;

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use crate::clock;
use crate::config::{
    AccessLog, Action, BYTES_PER_ENTRY, Balance, Config, Health, Role, Site, SiteRoute, StoreUrl,
    human_bytes,
};
use certificate::Moment;

/// One thing to say about a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub grade: Grade,
    pub text: String,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// What the configuration means.
    Note,
    /// It works, and is hardly what was meant.
    Warning,
    /// It does not work.
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

/// Says what a configuration means and what is wrong with what it refers to.
#[must_use]
pub fn check(config: &Config, now: SystemTime) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    listeners(config, &mut findings);
    for site in &config.sites {
        check_site(config, site, now, &mut findings);
    }
    upstreams(config, &mut findings);
    state::check(config, &mut findings);
    numbers::check(config, &mut findings);
    if serves(config) {
        survival::check(config, &mut findings);
        survival::check_store(config, &mut findings);
        survival::check_forget(config, clock::at(now), &mut findings);
        table(config, &mut findings);
    }
    connections(config, &mut findings);
    if let AccessLog::File(path) = &config.log.access {
        state::check_log(path, &mut findings);
    }
    findings.0
}

/// The sentences on what a restart and a crash cost, for the lines that a server says at its start.
#[must_use]
pub fn survives(config: &Config) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    survival::check(config, &mut findings);
    findings.0
}

/// Whether the configuration file itself has to be kept from others, and is not.
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

/// What was found so far.
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

fn has_role(config: &Config, role: Role) -> bool {
    config
        .listeners
        .iter()
        .any(|listener| listener.role == role)
}

fn serves(config: &Config) -> bool {
    has_role(config, Role::Serve)
}

/// "1 site", "2 sites".
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn span(duration: std::time::Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn listeners(config: &Config, findings: &mut Findings) {
    if config.listeners.is_empty() {
        findings.warn("There is no [[listener]]: sessile serve and sessile balance have nothing to do with this file.");
    }
    for listener in &config.listeners {
        let address = listener.address;
        findings.note(match listener.role {
            Role::Serve => format!(
                "{address} serves {}: TLS 1.2 and 1.3 end here.",
                counted(config.sites.len(), "site")
            ),
            Role::Balance => format!(
                "{address} balances over {} in {} and decrypts nothing; each may take {} to answer, and is checked {}.",
                counted(config.balance.servers.len(), "server"),
                counted(pools(&config.balance), "pool"),
                span(config.balance.connect_timeout),
                checks(&config.balance),
            ),
        });
    }
    if !config.sites.is_empty() && !serves(config) {
        findings.warn("There are sites and no listener that serves them.");
    }
    if let Some(address) = config.admin.listen {
        let paths = match has_role(config, Role::Balance) {
            true => "/healthz, /readyz, /metrics and /api/balancer",
            false => "/healthz, /readyz and /metrics",
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

/// How many pools have servers, the default pool included.
fn pools(balance: &Balance) -> usize {
    let default = balance.servers.iter().any(|server| server.pool.is_none());
    balance.pools.len() + usize::from(default)
}

fn checks(balance: &Balance) -> String {
    let every = span(balance.health_interval);
    match balance.health {
        Health::Tls => format!("by a TLS handshake every {every}"),
        Health::Tcp => format!("by a connection every {every}"),
        Health::Off => "by nobody (balance.health is \"off\")".to_owned(),
    }
}

fn check_site(config: &Config, site: &Site, now: SystemTime, findings: &mut Findings) {
    let names = match site.names.as_slice() {
        [] => "every other name".to_owned(),
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
        let (until, errors) = certificate::examine(pair, &site.names, now);
        let path = pair.chain.display();
        match until {
            Some(until) if errors.is_empty() => {
                findings.note(format!(
                    "{path}: fits its key and names, valid until {}.",
                    Moment(until)
                ));
                if until < now + certificate::SOON {
                    findings.warn(format!("{path}: ends on {}; renew it.", Moment(until)));
                }
            }
            _ => {}
        }
        for error in errors {
            findings.fail(format!("{error}."));
        }
        state::check_private(&pair.key, Grade::Warning, findings);
    }
    client_auth::check(config, site, &names, now, findings);
    for route in &site.routes {
        if let Action::Files(folder) = &route.action {
            state::check_served(folder, findings);
        }
    }
}

fn upstreams(config: &Config, findings: &mut Findings) {
    let routes = || config.sites.iter().flat_map(|site| &site.routes);
    for upstream in &config.upstreams {
        let name = &upstream.name;
        findings.note(format!(
            "Upstream {name}: {} in plain HTTP; {} to connect, {} to answer.",
            upstream.servers.join(", then "),
            span(upstream.connect_timeout),
            span(upstream.response_timeout),
        ));
        let leads_there =
            |route: &SiteRoute| matches!(&route.action, Action::Proxy(to) if to.name == *name);
        if !routes().any(leads_there) {
            findings.warn(format!("No route has proxy = {name:?}."));
        }
    }
}

fn table(config: &Config, findings: &mut Findings) {
    let entries = config.session.max_entries;
    if entries > 0 {
        findings.note(format!(
            "The session table takes up to {} when full: {entries} entries of about {BYTES_PER_ENTRY} bytes.",
            human_bytes(entries as u64 * BYTES_PER_ENTRY as u64)
        ));
    }
}

fn connections(config: &Config, findings: &mut Findings) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let max = config.connection.max as u64;
    if let Some(files) = limit.maximum.filter(|&files| max > files) {
        findings.warn(format!(
            "connection.max is {max}, and a process of this user may open {files} files at most (ulimit -Hn)."
        ));
    }
}

#[cfg(test)]
mod tests;
