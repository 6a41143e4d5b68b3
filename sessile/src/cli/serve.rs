//! `sessile serve`: runs a TLS server from a configuration file or from flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueHint;
use tokio_util::sync::CancellationToken;

use crate::check::{self, Grade};
use crate::config::{
    self, Action, Certificate, Config, Folder, Listener, Role, Site, SiteRoute, Symlinks,
};
use crate::key::{Keyring, Origin, Reloaded};
use crate::lifecycle::{Orders, Signals};
use crate::listener;
use crate::serve::{AccessLog, Environment, Server};

/// Serve sites over TLS; their sessions resume on every server of the farm.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  sessile serve --config /etc/sessile.toml\n  \
    sessile serve --listen 0.0.0.0:443 --root www \\\n    \
    --cert cert.pem --key key.pem"
)]
pub(super) struct Args {
    /// Configuration file; without it, use the flags below.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["listen", "cert", "key", "root"])]
    config: Option<PathBuf>,
    /// Where to listen; :PORT is every address.
    #[arg(long, value_name = "IP:PORT", value_parser = super::listen_address)]
    listen: Option<SocketAddr>,
    /// Certificate chain, PEM.
    #[arg(long, value_name = "PEM")]
    cert: Option<PathBuf>,
    /// Private key, PEM.
    #[arg(long, value_name = "PEM")]
    key: Option<PathBuf>,
    /// Folder of static files.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    root: Option<PathBuf>,
    /// Where the page of the admin listener, /healthz, /readyz and /metrics answer.
    #[arg(long, value_name = "IP:PORT", value_parser = super::listen_address)]
    admin: Option<SocketAddr>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = configuration(&args)?;
    listener::inherit(&config.addresses())?;
    super::start_log(config.log.level);
    let mut signals = Signals::watch()?;
    signals.watch_hangup()?;
    let registry = prometheus::Registry::new();
    let env = Environment {
        stop: CancellationToken::new(),
        access_log: AccessLog::open(&config.log.access, &registry)?,
        registry,
    };
    // Start the admin listener first. The start of the server removes the snapshot, so everything
    // else that can fail must fail before.
    let admin = super::start_admin(&config, &env.registry, || None, &env.stop)?;
    let server = Server::start(&config, &env)?;
    for address in server.addresses() {
        tracing::info!(%address, server = config.server.name, "serving");
    }
    log_what_survives(&config, server.keys());
    signals.wait(Orders {
        reopen_logs: Some(Box::new(|| env.access_log.reopen())),
        reload: Some(Box::new(|| {
            let key = reload_key(&server);
            let configuration = reload_configuration(&server, &config, &args);
            server.count_reload(key && configuration);
        })),
    });
    env.stop.cancel();
    server.join();
    if let Some(admin) = admin {
        admin.join();
    }
    let dropped = env.access_log.flush();
    if dropped > 0 {
        tracing::warn!(dropped, "access log lines were dropped");
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the configuration file, or makes a configuration from the flags.
fn configuration(args: &Args) -> anyhow::Result<Config> {
    let mut config = match args {
        Args {
            listen: Some(listen),
            cert: Some(chain),
            key: Some(key),
            root: Some(root),
            ..
        } => Config {
            listeners: vec![Listener::new(*listen, Role::Serve)],
            sites: vec![Site {
                names: Vec::new(),
                certificates: vec![Certificate {
                    chain: chain.clone(),
                    key: key.clone(),
                }],
                client_auth: None,
                early_data: 0,
                routes: vec![SiteRoute {
                    path: "/".to_owned(),
                    action: Action::Files(Folder {
                        path: folder(root)?,
                        symlinks: Symlinks::Inside,
                    }),
                }],
            }],
            ..Config::default()
        },
        Args {
            config: Some(file), ..
        } => config::file::load(file)?,
        _ => bail!("nothing to serve: give --config FILE, or --listen, --cert, --key and --root"),
    };
    super::require_listener(&config, Role::Serve)?;
    config.admin.listen = args.admin.or(config.admin.listen);
    Ok(config)
}

fn folder(root: &Path) -> anyhow::Result<PathBuf> {
    let metadata = std::fs::metadata(root).with_context(|| format!("--root {}", root.display()))?;
    if !metadata.is_dir() {
        bail!("--root {}: not a folder", root.display());
    }
    Ok(root.to_owned())
}

/// Reloads the farm key and logs the result. Returns false if the reload failed.
fn reload_key(server: &Server) -> bool {
    let reloaded = server.reload_key();
    let succeeded = reloaded.is_ok();
    match reloaded {
        Ok(Reloaded::Ephemeral) => {
            tracing::info!("the farm key is not reloaded: key.file is \"none\"")
        }
        Ok(Reloaded::Unchanged) => tracing::info!("farm key reloaded: it has not changed"),
        Ok(Reloaded::Changed {
            generations,
            sealing,
            missing,
        }) => {
            tracing::info!(?generations, sealing, "farm key reloaded");
            if !missing.is_empty() {
                tracing::warn!(
                    ?missing,
                    "the new farm key lacks generations that the old one accepted: their tickets no longer resume"
                );
            }
        }
        Err(error) => tracing::error!(%error, "farm key not reloaded: the old one stays in use"),
    }
    succeeded
}

/// Reloads the configuration and its files, and logs the result. Returns false if the reload
/// failed.
fn reload_configuration(server: &Server, running: &Config, args: &Args) -> bool {
    let apply = |written: &Config| Ok(server.reload(written)?);
    let reloaded = super::reload(Role::Serve, running, || configuration(args), apply);
    if let Some((written, ())) = &reloaded {
        let sites = written.sites.len();
        tracing::info!(sites, "configuration and certificates reloaded");
    }
    reloaded.is_some()
}

/// Logs the origin of the key, and the cost of a restart and of a crash with this configuration.
fn log_what_survives(config: &Config, keys: &Keyring) {
    let farm = keys.scope();
    match keys.origin() {
        Origin::Made(file) => {
            let file = file.display();
            tracing::info!(%file, farm, "made a farm key; copy the file to the farm's other servers");
        }
        Origin::Loaded(file) => tracing::info!(file = %file.display(), farm, "farm key"),
        Origin::Ephemeral => {}
    }
    for finding in check::durability(config) {
        match finding.grade {
            Grade::Note => tracing::info!("{}", finding.text),
            Grade::Warning | Grade::Error => tracing::warn!("{}", finding.text),
        }
    }
}
