//! `sessile balance`: runs a TLS balancer from a configuration file or from flags.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use sessile_proto::route::Policy;
use tokio_util::sync::CancellationToken;

use crate::admin::{Api, Token};
use crate::balance::{Balancer, Changes};
use crate::check::without_labels;
use crate::config::{
    self, Balance, BalanceServer, Config, Health, Key, Listener, Role, ServerAddress,
};
use crate::lifecycle::{Orders, Signals};
use crate::listener;

/// Route TLS connections to the servers that can resume them, without decrypting.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  sessile balance --listen 0.0.0.0:443 \\\n    \
    --server web1=10.0.0.1:443 --server web2=10.0.0.2:443"
)]
pub(super) struct Args {
    /// Configuration file; without it, use the flags below.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["listen", "server", "policy", "key", "health"])]
    config: Option<PathBuf>,
    /// Where to listen; :PORT is every address.
    #[arg(long, value_name = "IP:PORT", value_parser = super::listen_address, requires = "server")]
    listen: Option<SocketAddr>,
    /// A server behind the balancer, or a DNS name of servers (HOST:PORT, or an SRV name); repeat the flag for
    /// each server.
    #[arg(long, value_name = "NAME=IP:PORT", value_parser = named_server)]
    server: Vec<BalanceServer>,
    /// How clients without a known session are placed: source, least-connections or round-robin.
    #[arg(long, value_name = "POLICY", default_value = "source")]
    policy: Policy,
    /// How servers are checked: tls, tcp or off.
    #[arg(long, value_name = "HOW", default_value = "tls", value_parser = health)]
    health: Health,
    /// The farm key's route part, or a whole key: routes tickets to the servers that made them.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where the page of the admin listener, /healthz, /readyz, /metrics and /api/balancer answer.
    #[arg(long, value_name = "IP:PORT", value_parser = super::listen_address)]
    admin: Option<SocketAddr>,
}

fn named_server(text: &str) -> Result<BalanceServer, String> {
    let (name, address) = text
        .split_once('=')
        .ok_or("expected NAME=IP:PORT, as in web1=10.0.0.1:443")?;
    if name.is_empty() {
        return Err("the name before = is empty".to_owned());
    }
    let parsed = address.parse::<ServerAddress>();
    let parsed = parsed.map_err(|error| format!("the address is {address:?}, {error}"))?;
    Ok(BalanceServer::new(name.to_owned(), parsed))
}

fn health(text: &str) -> Result<Health, &'static str> {
    match text {
        "tls" => Ok(Health::Tls),
        "tcp" => Ok(Health::Tcp),
        "off" => Ok(Health::Off),
        _ => Err("expected tls, tcp or off"),
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = configuration(&args)?;
    listener::inherit(&config.addresses())?;
    super::start_log(config.log.level);
    let mut signals = Signals::watch()?;
    let stop = CancellationToken::new();
    let registry = prometheus::Registry::new();
    let balancer = Balancer::start(&config, stop.clone(), &registry)?;
    let entries = &config.balance.servers;
    let names = entries
        .iter()
        .filter(|entry| entry.address.is_name())
        .count();
    let servers = entries.len() - names;
    for address in balancer.addresses() {
        tracing::info!(%address, servers, names, policy = %config.balance.policy, "balancing");
    }
    log_label_source(&config, &balancer);
    let api = || {
        Some(Api {
            commands: balancer.commands.clone(),
            token: open_token(&config),
        })
    };
    let admin = super::start_admin(&config, &registry, api, &stop)?;
    // Without a configuration file and a key file, there is nothing to reload.
    if args.config.is_some() || balancer.farm().is_some() {
        signals.watch_hangup()?;
    }
    signals.wait(Orders {
        reload: Some(Box::new(|| reload(&args, &config, &balancer))),
        ..Orders::default()
    });
    stop.cancel();
    balancer.join();
    if let Some(admin) = admin {
        admin.join();
    }
    Ok(ExitCode::SUCCESS)
}

fn configuration(args: &Args) -> anyhow::Result<Config> {
    let mut config = match (&args.config, args.listen) {
        (Some(file), _) => config::file::load(file)?,
        (None, Some(address)) => {
            let defaults = Config::default();
            Config {
                key: args.key.clone().map_or(defaults.key, Key::File),
                listeners: vec![Listener::new(address, Role::Balance)],
                balance: Balance {
                    policy: args.policy,
                    health: args.health,
                    servers: args.server.clone(),
                    ..defaults.balance
                },
                ..defaults
            }
        }
        (None, None) => bail!("nothing to balance: give --config FILE, or --listen and --server"),
    };
    super::require_listener(&config, Role::Balance)?;
    if let Some(server) = duplicate_name(&config.balance.servers) {
        bail!("two servers are named {server:?}; give each --server a different name");
    }
    config.admin.listen = args.admin.or(config.admin.listen);
    Ok(config)
}

/// Logs whether the balancer reads labels. If not, the line names the consequences.
fn log_label_source(config: &Config, balancer: &Balancer) {
    match (balancer.farm(), &config.key) {
        (Some(farm), Key::File(file)) => {
            tracing::info!(file = %file.display(), farm, "the route key is loaded: tickets of sessile servers are \
            routed to the server that made them");
        }
        (_, Key::Ephemeral) => tracing::info!("ticket labels are not read: key.file is \"none\""),
        (None, Key::File(file)) => tracing::info!(
            file = %file.display(),
            "no key file, so ticket labels are not read (only sessile servers make labels): TLS 1.3 clients of sessile \
             servers {}. Run `sessile key export --route` on a server and copy the file here",
            without_labels(config)
        ),
    }
}

/// Opens the token that API requests must present, and logs its file. Without a token, no request
/// can change anything.
fn open_token(config: &Config) -> Option<Token> {
    let configured = config.admin.token_file.clone();
    let file = configured.unwrap_or_else(|| config.server.state_dir.join("admin.token"));
    match Token::open(&file) {
        Ok(token) => {
            tracing::info!(file = %file.display(), "API requests that change something need the token in this file");
            Some(token)
        }
        Err(error) => {
            tracing::warn!(%error, "no token could be opened, so the API refuses all changes; check \
            admin.token-file");
            None
        }
    }
}

/// Reloads the configuration and the key, and logs the result.
fn reload(args: &Args, running: &Config, balancer: &Balancer) {
    let apply = |written: &Config| Ok(balancer.reload(written)?);
    let reloaded = super::reload(Role::Balance, running, || configuration(args), apply);
    if let Some((_, changes)) = reloaded {
        let Changes {
            added,
            changed,
            removed,
        } = changes;
        tracing::info!(
            ?added,
            ?changed,
            ?removed,
            farm = balancer.farm(),
            "configuration and key reloaded"
        );
    }
}

/// A name that several servers have.
fn duplicate_name(servers: &[BalanceServer]) -> Option<&str> {
    let mut names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    names.sort_unstable();
    names
        .windows(2)
        .find(|pair| pair[0] == pair[1])
        .map(|pair| pair[0])
}
