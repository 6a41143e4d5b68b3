//! `sessile probe`: resolves the host, runs the probe and prints its report.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::{ArgGroup, ValueHint};
use sessile_proto::verdict::How;
use tokio::net::lookup_host;
use tokio::signal::unix::{SignalKind, signal};

use super::endpoint::{Endpoint, Endpoints};
use super::terminal::{self, EXIT_INTERRUPTED, ProgressLine};
use crate::client::{ClientCertificate, StartTls, Target, Trust};
use crate::probe::finding::Severity;
use crate::probe::findings;
use crate::probe::table::{self, Detail};
use crate::probe::{
    self, AgeLimits, FirstConnection, MECHANISMS, ProbePlan, ProbeProgress, ProbeReport, Request,
    WatchLimits, html, json, prometheus,
};

/// Find out whether, how and across which servers a farm resumes TLS sessions.
///
/// Each address counts as one server. For each of TLS 1.2 session ID, TLS 1.2 ticket and TLS 1.3 PSK, the probe
/// makes a full handshake with each server. Then it offers sessions of each server to each server.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(group(ArgGroup::new("gaps").args(["after", "find_age"]).multiple(true)))]
pub(super) struct Args {
    /// Host name or IP address, and port (443 if none is given); or an https:// URL, whose path is ignored
    #[arg(value_name = "HOST:PORT", value_hint = ValueHint::Hostname)]
    target: Endpoint,

    /// Server name (SNI) to send, if it is not HOST
    #[arg(long, value_name = "NAME", value_hint = ValueHint::Hostname)]
    sni: Option<String>,

    /// Trust only the authorities in this PEM file
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,

    /// Accept any certificate
    #[arg(long)]
    insecure: bool,

    /// The servers of the farm, instead of the addresses of HOST; a name stands for all its addresses
    #[arg(long = "address", value_name = "HOST:PORT", value_hint = ValueHint::Hostname)]
    addresses: Vec<Endpoints>,

    /// Sessions of each server that each server gets, for each mechanism [default: 5 with one address, else 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    attempts: Option<u16>,

    /// Also offer the sessions to this name of the same servers; they must not resume for a name with client certificates
    #[arg(long = "other-name", value_name = "NAME", value_delimiter = ',', value_hint = ValueHint::Hostname)]
    other_names: Vec<String>,

    /// Also return after these gaps, such as 1s,1m,6m
    #[arg(long, value_name = "DURATION", value_delimiter = ',', value_parser = duration)]
    after: Vec<Duration>,

    /// The first connection in the gap: open and idle, or ended [default: idle,close-notify]
    #[arg(
        long = "first-connection",
        value_name = "FATE",
        value_delimiter = ',',
        requires = "gaps"
    )]
    first_connections: Vec<FirstConnection>,

    /// Also search for the age at which each server refuses its sessions, up to this age
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    find_age: Option<Duration>,

    /// End this search when the age is known to this bound [default: a twentieth of the age]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "find_age")]
    within: Option<Duration>,

    /// After the tests, return to each server for this time, and say when it loses sessions or changes keys
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    watch: Option<Duration>,

    /// The time between two returns of --watch
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration, requires = "watch")]
    interval: Duration,

    /// Test only these mechanisms
    #[arg(long = "mechanism", value_name = "MECHANISM", value_delimiter = ',')]
    mechanisms: Vec<MechanismName>,

    /// What to send after the handshake
    #[arg(long, value_name = "REQUEST", value_enum, default_value_t)]
    request: Request,

    /// Ask for TLS by this protocol, on its own default port, and send no HTTP request
    #[arg(
        long = "starttls",
        value_name = "PROTOCOL",
        value_enum,
        conflicts_with = "request"
    )]
    start_tls: Option<StartTls>,

    /// Connect through this HTTP proxy (http://HOST:PORT), by CONNECT
    #[arg(long, value_name = "URL", value_parser = proxy_url, value_hint = ValueHint::Url)]
    proxy: Option<Endpoint>,

    /// Application protocols to offer, such as h2 or mqtt [default: that of the request]
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',')]
    alpn: Option<Vec<String>>,

    /// Certificate chain (PEM) for servers that request a client certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// Private key (PEM) of the client certificate
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// Longest time for a connection, and for a handshake
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    timeout: Duration,

    /// Most connections to one address in a second; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 5)]
    rate: u32,

    /// Say how many connections the probe makes in what time, and make none
    #[arg(long)]
    dry_run: bool,

    /// Exit with 1 only if less than this share of the offered sessions resumed, such as 99%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    fail_under: Option<f64>,

    /// Show a row for each attempt, also with several addresses
    #[arg(long, short)]
    verbose: bool,

    /// Write JSON for programs instead of tables
    #[arg(long)]
    json: bool,

    /// Also write the report as an HTML page into this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write metrics in the text format of Prometheus instead of tables
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
}

impl Args {
    fn age_limits(&self) -> Option<AgeLimits> {
        let max = self.find_age?;
        let within = self.within.unwrap_or(max / DEFAULT_AGE_STEPS);
        Some(AgeLimits { max, within })
    }

    fn first_connections(&self) -> Vec<FirstConnection> {
        if self.first_connections.is_empty() {
            vec![FirstConnection::Idle, FirstConnection::CloseNotify]
        } else {
            self.first_connections.clone()
        }
    }
}

/// The name of a mechanism on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MechanismName {
    /// TLS 1.2 session ID
    SessionId,
    /// TLS 1.2 ticket
    Ticket,
    /// TLS 1.3 PSK
    Psk,
}

impl From<MechanismName> for How {
    fn from(name: MechanismName) -> Self {
        match name {
            MechanismName::SessionId => Self::SessionId,
            MechanismName::Ticket => Self::Ticket,
            MechanismName::Psk => Self::Psk,
        }
    }
}

const AFTER_HELP: &str = "\
Examples:
  sessile probe https://www.example.org/
  sessile probe farm.example.org --address 192.0.2.1,192.0.2.2
  sessile probe 127.0.0.1:8443 --sni farm.test --ca ca.pem --json
  sessile probe farm.example.org --mechanism psk --fail-under 99%

Exit status: 0 every mechanism that the server offers resumes; 1 one does not;
2 wrong usage or no connection; 130 \
interrupted.";

/// Maximum number of a host's addresses that are tried.
const MAX_ADDRESSES: usize = 64;

const DEFAULT_PORT: u16 = 443;

/// The number of bounds in the largest age of a search.
const DEFAULT_AGE_STEPS: u32 = 20;

/// The port of an HTTP proxy whose URL has no port.
const DEFAULT_PROXY_PORT: u16 = 80;

/// Exit status for wrong usage, and for a target that accepts no connection.
const EXIT_NO_CONNECTION: u8 = 2;

/// Runs the probe and prints its report.
///
/// # Errors
///
/// The runtime cannot be started, or the report cannot be written. Faults of the user or the server
/// are printed and give the exit status 2.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
        let planned = tokio::select! {
            planned = plan(args) => planned,
            _ = interrupt.recv() => return Ok(ExitCode::from(EXIT_INTERRUPTED)),
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return Ok(print_error(&error)),
        };
        if args.dry_run {
            terminal::print_report(&format!("{}\n", announcement(&plan)))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut report = ProbeReport::new(&plan);
        let line = ProgressLine::new();
        line.show(format_args!("{}", announcement(&plan)));
        let mut progress = |progress| show_progress(&line, progress);
        let result = tokio::select! {
            result = probe::run(&plan, &mut report, &mut progress) => result,
            _ = interrupt.recv() => Ok(()),
        };
        drop(line);
        if let Err(error) = result {
            return Ok(print_error(&error.into()));
        }
        print(args, &report)
    });
    // Do not wait for a name lookup that is still running.
    runtime.shutdown_background();
    code
}

async fn plan(args: &Args) -> anyhow::Result<ProbePlan> {
    let Endpoint { host, port } = &args.target;
    let default_port = args.start_tls.map_or(DEFAULT_PORT, StartTls::default_port);
    let port = port.unwrap_or(default_port);
    let mut endpoints: Vec<&Endpoint> = args.addresses.iter().flat_map(|it| &it.0).collect();
    if endpoints.is_empty() {
        endpoints.push(&args.target);
    }
    let Addresses { all, names } = Addresses::of(&endpoints, port).await?;
    let trust = match &args.ca {
        Some(path) => Trust::ca_file(path)?,
        None if args.insecure => Trust::Insecure,
        None => Trust::System,
    };
    let certificate = match (&args.cert, &args.key) {
        (Some(chain), Some(key)) => Some(ClientCertificate::read(chain, key)?),
        _ => None,
    };
    let mut mechanisms = MECHANISMS.to_vec();
    if !args.mechanisms.is_empty() {
        let chosen: Vec<How> = args.mechanisms.iter().copied().map(How::from).collect();
        mechanisms.retain(|how| chosen.contains(how));
    }
    let proxy = match &args.proxy {
        Some(proxy) => {
            let port = proxy.port.unwrap_or(DEFAULT_PROXY_PORT);
            resolve(&proxy.host, port).await?.first().copied()
        }
        None => None,
    };
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
        target: args.target.to_string(),
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
        proxy,
        alpn: args.alpn.clone(),
        certificate,
        rate: args.rate,
        returns: args.attempts.map_or(default_returns, usize::from),
        trust,
        timeout: args.timeout,
    })
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

fn show_progress(line: &ProgressLine, progress: ProbeProgress) {
    match progress {
        ProbeProgress::Handshake {
            mechanism,
            connection,
            connections,
            address,
        } => line.show(format_args!(
            "{}, handshake {connection} of {connections}, {address}",
            table::title(mechanism),
        )),
        ProbeProgress::Waiting { returns, left } => {
            let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
            line.show(format_args!("waiting {left} for {returns} delayed returns"));
        }
        ProbeProgress::Watching { left, events } => {
            let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
            let events = table::count(events, "event", "events");
            line.show(format_args!("watching for {left}, {events} so far"));
        }
        ProbeProgress::WatchBegins { servers } => {
            let servers = table::count(servers, "server", "servers");
            line.print(&format!("watching {servers}"));
        }
        ProbeProgress::Event(event) => line.print(&table::event_line(&event)),
    }
}

/// What the probe is about to do.
fn announcement(plan: &ProbePlan) -> String {
    let time = match plan.shortest_time() {
        Duration::ZERO => String::new(),
        time => format!(" in about {}", humantime::format_duration(time)),
    };
    let rate = match plan.rate {
        0 => "no limit of the rate".to_owned(),
        rate => format!("at most {rate} a second to one address"),
    };
    format!(
        "about {} connections to {} of {}{time}, {rate}",
        plan.connections(),
        table::count(plan.addresses.len(), "address", "addresses"),
        plan.target,
    )
}

fn print(args: &Args, report: &ProbeReport) -> anyhow::Result<ExitCode> {
    let text = if args.json {
        json::write(report) + "\n"
    } else if args.prometheus {
        prometheus::write(report)
    } else {
        let detail = if args.verbose {
            Detail::Attempts
        } else {
            Detail::Summary
        };
        table::write(report, terminal::colour(), detail)
    };
    if let Some(file) = &args.html {
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        std::fs::write(file, html::write(report, &date))
            .with_context(|| format!("cannot write the HTML page to {}", file.display()))?;
    }
    terminal::print_report(&text)?;
    if !report.complete {
        return Ok(ExitCode::from(EXIT_INTERRUPTED));
    }
    if report.has_no_connection() {
        let hint = if report.requires_certificate() {
            ": a client certificate is required (--cert FILE --key FILE)"
        } else if !report.has_refused_certificate() {
            ""
        } else if args.ca.is_some() {
            " (--insecure accepts any certificate, also a self-signed one)"
        } else {
            " (--ca FILE names the authority to trust, --insecure accepts any certificate)"
        };
        return Ok(print_error(&anyhow::anyhow!(
            "no connection to {}{hint}",
            report.target
        )));
    }
    let is_good = match args.fail_under {
        None => report.all_resume(),
        Some(percent) => report.reaches(percent),
    };
    let has_critical = findings::of(report)
        .iter()
        .any(|finding| finding.severity() == Severity::Critical);
    Ok(if is_good && !has_critical {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_error(error: &anyhow::Error) -> ExitCode {
    eprintln!("sessile probe: {error:#}");
    ExitCode::from(EXIT_NO_CONNECTION)
}

fn percent(text: &str) -> Result<f64, &'static str> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("expected a percentage from 0% to 100%, such as 99%"),
    }
}

/// The host and port of `http://HOST:PORT/`.
fn proxy_url(text: &str) -> Result<Endpoint, &'static str> {
    let rest = text.strip_prefix("http://");
    let authority = rest.ok_or("give the proxy as http://HOST:PORT")?;
    authority.strip_suffix('/').unwrap_or(authority).parse()
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("the duration must be longer than 0s".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
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
