//! `sessile farm`: runs a whole farm in one process, and prints the next commands to try.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueHint;
use sessile_proto::route::Policy;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::check::counted;
use crate::config::{self, Config};
use crate::farm::{Farm, FarmPlan};
use crate::lifecycle::{Orders, Signals};
use crate::serve::{AccessLog, Environment};

/// Run a whole farm in one process: servers, a balancer, a development certificate.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  sessile farm\n  sessile farm --isolated     a common farm, whose servers share nothing\n\
    and in another terminal:\n  sessile probe 127.0.0.1:8443 --insecure"
)]
pub(super) struct Args {
    /// Where clients connect.
    #[arg(long, value_name = "IP:PORT", value_parser = super::listen_address, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Number of servers behind the balancer.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    servers: u8,
    /// Where the farm's page, /healthz, /readyz, /metrics and the API answer.
    #[arg(long, value_name = "IP:PORT", value_parser = super::listen_address, default_value = "127.0.0.1:9180")]
    admin: SocketAddr,
    /// Where certificates, the farm key and the API's token are kept [default: farm/ in the state folder].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<PathBuf>,
    /// Give each server its own key and session table, as in a common farm.
    #[arg(long)]
    isolated: bool,
    /// How clients without a known session are placed: source, least-connections or round-robin.
    #[arg(long, value_name = "POLICY", default_value = "round-robin")]
    policy: Policy,
    /// Do not print a line for each request.
    #[arg(long)]
    quiet: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::start_log(LevelFilter::WARN);
    let log = if args.quiet {
        config::AccessLog::Off
    } else {
        config::AccessLog::Stdout
    };
    let registry = prometheus::Registry::new();
    let env = Environment {
        stop: CancellationToken::new(),
        access_log: AccessLog::open(&log, &registry)?.brief(),
        registry,
    };
    let plan = FarmPlan {
        listen: args.listen,
        servers: args.servers.into(),
        admin: args.admin,
        data_dir: args
            .data_dir
            .unwrap_or_else(|| config::default_state_dir().join("farm")),
        isolated: args.isolated,
        policy: args.policy,
        base: Config::default(),
    };
    let signals = Signals::watch()?;
    let farm = Farm::start(&plan, &env)?;
    let _ = write!(io::stdout(), "{}", greeting(&plan, &farm));
    signals.wait(Orders::default());
    // The reader of the standard output may be gone, but the drain must go on.
    let _ = writeln!(io::stdout(), "\ndraining");
    env.stop.cancel();
    farm.join();
    env.access_log.flush();
    Ok(ExitCode::SUCCESS)
}

/// The addresses of the farm, and the next commands to try. No line has more than 80 columns, unless the name of
/// the program or of the folder is long.
fn greeting(plan: &FarmPlan, farm: &Farm) -> String {
    let program = std::env::args().next().unwrap_or("sessile".to_owned());
    let address = reachable(farm.address());
    let page = format!("https://{}/", named(farm.address()));
    let admin = format!("http://{}/", reachable(farm.admin.address()));
    let width = page.len().max(admin.len());
    let count = counted(plan.servers, "server");
    let (sharing, contrast) = if plan.isolated {
        (
            "share nothing",
            "Without --isolated, the servers share a farm key, and every session resumes.",
        )
    } else {
        (
            "share a farm key",
            "With --isolated, the servers share nothing, as in many farms.",
        )
    };
    format!(
        "sessile farm: {count} that {sharing}.\n\
         The balancer places new clients by {}.\n\n  \
         {admin:<width$}   the farm: servers, verdicts, metrics, API\n  \
         {page:<width$}   the verdict of your own connection\n\n\
         Next, in another terminal:\n\n  \
         {program} probe {address} --insecure\n  \
         curl --insecure {page}\n  \
         openssl s_client -connect {address} -tls1_2 -reconnect </dev/null |\n    \
         grep -E '^(New|Reused)'\n\n\
         Browsers warn about the certificate, unless they trust this authority:\n  \
         {}\n\n\
         {contrast}\n\
         Each request prints a line: server, protocol, verdict, status, request.\n\
         Ctrl-C drains and stops.\n\n",
        plan.policy,
        farm.authority.root.display(),
    )
}

/// The host and port for a client on this machine: `localhost`, if the name leads to the address.
fn named(address: SocketAddr) -> String {
    let ip = address.ip();
    let is_localhost = ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST;
    if is_localhost || ip.is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

/// The address for a client on this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))
    } else {
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_name_only_if_the_name_leads_to_the_farm() {
        for (address, name) in [
            ("127.0.0.1:8443", "localhost:8443"),
            ("[::1]:8443", "localhost:8443"),
            ("0.0.0.0:8443", "localhost:8443"),
            ("[::]:8443", "localhost:8443"),
            ("127.0.0.2:8443", "127.0.0.2:8443"),
            ("192.0.2.1:8443", "192.0.2.1:8443"),
        ] {
            assert_eq!(named(address.parse().unwrap()), name);
        }
    }
}
