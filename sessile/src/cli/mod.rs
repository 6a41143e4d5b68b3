//! The command line. Arguments and configuration files become typed values here. Errors become
//! exit codes here and nowhere else: 2 if a command could not do its work.

mod balance;
mod check;
mod endpoint;
mod farm;
mod forget;
mod generate;
mod key;
mod lab;
mod probe;
mod serve;
mod settings;
mod terminal;

use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use prometheus::Registry;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::admin::{Admin, Api};
use crate::config::settings::changes_for_restart;
use crate::config::{Config, Role, parse_listen_address};

/// The version and the build, for `--version`. The build script records the build.
const BUILD: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit:    ",
    env!("SESSILE_BUILD_COMMIT"),
    "\ntarget:    ",
    env!("SESSILE_BUILD_TARGET"),
    "\ncompiler:  ",
    env!("SESSILE_BUILD_COMPILER"),
    "\nfeatures:  ",
    env!("SESSILE_BUILD_FEATURES"),
    "\nlibraries: ",
    env!("SESSILE_BUILD_LIBRARIES"),
);

/// Keeps TLS sessions attached to a web farm: a client that has completed one handshake never pays
/// for a full one again while its session lives.
#[derive(Parser)]
#[command(name = "sessile", version, long_version = BUILD, propagate_version = true)]
#[command(after_help = "Begin with:\n  sessile farm\n  sessile probe 127.0.0.1:8443 --insecure")]
struct Arguments {
    #[command(subcommand)]
    command: CommandArgs,
}

#[derive(Subcommand)]
enum CommandArgs {
    Farm(farm::Args),
    Probe(Box<probe::Args>),
    Lab(lab::Args),
    Settings(settings::Args),
    Check(check::Args),
    Key(key::Args),
    Forget(forget::Args),
    Serve(serve::Args),
    Balance(balance::Args),
    Generate(generate::Args),
}

/// Runs the command in the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        CommandArgs::Farm(args) => farm::run(args),
        CommandArgs::Probe(args) => probe::run(&args),
        CommandArgs::Lab(args) => lab::run(args),
        CommandArgs::Settings(args) => settings::run(args),
        CommandArgs::Check(args) => check::run(args),
        CommandArgs::Key(args) => key::run(args),
        CommandArgs::Forget(args) => forget::run(args),
        CommandArgs::Serve(args) => serve::run(args),
        CommandArgs::Balance(args) => balance::run(args),
        CommandArgs::Generate(args) => generate::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sessile: {}", in_one_line(&error));
        ExitCode::from(2)
    })
}

/// Parses the address of `--listen` or `--admin`.
fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    parse_listen_address(text)
        .ok_or("expected IP:PORT, :PORT or localhost:PORT, as in 0.0.0.0:443 (other names are not looked up)")
}

/// Writes to the standard output.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("the standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// A runtime on one thread, for commands that end by themselves.
fn runtime() -> anyhow::Result<Runtime> {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().build().context("cannot start")
}

/// Starts the admin listener with the role's API, if the configuration names an address.
fn start_admin(
    config: &Config,
    registry: &Registry,
    api: impl FnOnce() -> Option<Api>,
    draining: &CancellationToken,
) -> anyhow::Result<Option<Admin>> {
    let Some(address) = config.admin.listen else {
        return Ok(None);
    };
    let admin = Admin::start(address, registry.clone(), api(), draining.clone())?;
    tracing::info!(address = %admin.address(), "admin");
    Ok(Some(admin))
}

/// Refuses a configuration without a listener of this role.
fn require_listener(config: &Config, role: Role) -> anyhow::Result<()> {
    let name = match role {
        Role::Serve => "serve",
        Role::Balance => "balance",
    };
    ensure!(
        config.has_role(role),
        "no listener has role = \"{name}\"; add a [[listener]] with that role"
    );
    Ok(())
}

/// Reads the configuration again and applies it. Logs the changes that need a restart, or why the old
/// configuration stays.
fn reload<T>(
    role: Role,
    running: &Config,
    read: impl FnOnce() -> anyhow::Result<Config>,
    apply: impl FnOnce(&Config) -> anyhow::Result<T>,
) -> Option<(Config, T)> {
    let reloaded = read().and_then(|written| {
        let applied = apply(&written)?;
        Ok((written, applied))
    });
    match &reloaded {
        Ok((written, _)) => {
            for setting in changes_for_restart(role, running, written) {
                tracing::warn!("{setting} has changed; restart to apply it");
            }
        }
        Err(error) => {
            // Each fault in the file has its own line.
            for line in in_one_line(error).lines() {
                tracing::error!("{line}");
            }
            tracing::error!("configuration not reloaded: the old one stays in use");
        }
    }
    reloaded.ok()
}

/// An error and its causes in one line.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Most errors already contain their cause.
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

/// The DNS library logs many lines for each query. The balancer logs the result of each lookup itself.
const QUIET: &str = "hickory=off";

/// Starts the program's log on the standard error stream. `RUST_LOG` overrides the level.
fn start_log(level: LevelFilter) {
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy()
        .add_directive(QUIET.parse().expect("the directive is valid"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
