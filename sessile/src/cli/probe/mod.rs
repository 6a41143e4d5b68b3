//! `sessile probe`: resolves the host, runs the probe and prints its report.

mod args;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use sessile_proto::verdict::How;
use tokio::net::lookup_host;
use tokio::signal::unix::{SignalKind, signal};

pub(super) use args::Args;

use super::endpoint::Endpoint;
use super::terminal::{self, EXIT_INTERRUPTED, ProgressLine};
use crate::client::{ClientCertificate, StartTls, Target, Trust};
use crate::probe::finding::Severity;
use crate::probe::findings;
use crate::probe::table::{self, Detail};
use crate::probe::{
    self, MECHANISMS, ProbePlan, ProbeProgress, ProbeReport, Request, WatchLimits, html, json,
    prometheus,
};

/// Maximum number of a host's addresses that are tried.
const MAX_ADDRESSES: usize = 64;

const DEFAULT_PORT: u16 = 443;

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
    let early_data = match plan.early_data_connections() {
        0 => String::new(),
        more => format!("; up to {more} more if they accept early data"),
    };
    format!(
        "about {} connections to {} of {}{time}, {rate}{early_data}",
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
