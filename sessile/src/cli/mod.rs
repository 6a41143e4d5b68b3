//! The command line. Raw arguments and raw configuration end here; errors become exit codes here
//! and nowhere else: 2 for whatever kept a command from doing its work.

mod balance;
mod check;
mod farm;
mod forget;
mod key;
mod lab;
mod probe;
mod serve;
mod settings;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Keeps TLS sessions attached to a web farm: a client that has completed one handshake never pays
/// for a full one again while its session lives.
#[derive(Parser)]
#[command(name = "sessile", version, propagate_version = true)]
#[command(after_help = "Begin with:\n  sessile farm\n  sessile probe 127.0.0.1:8443 --insecure")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Farm(farm::Args),
    Probe(probe::Args),
    Lab(lab::Args),
    Settings(settings::Args),
    Check(check::Args),
    Key(key::Args),
    Forget(forget::Args),
    Serve(serve::Args),
    Balance(balance::Args),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let ran = match Arguments::parse().command {
        Command::Farm(args) => farm::run(args),
        Command::Probe(args) => probe::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Settings(args) => settings::run(args),
        Command::Check(args) => check::run(args),
        Command::Key(args) => key::run(args),
        Command::Forget(args) => forget::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Balance(args) => balance::run(args),
    };
    ran.unwrap_or_else(|error| {
        eprintln!("sessile: {}", in_one_line(&error));
        ExitCode::from(2)
    })
}

/// An error and its causes. Most errors quote their cause themselves, in the middle of a sentence.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            said if said.contains(&cause) => text,
            said => format!("{said}: {cause}"),
        }
    })
}

/// The program's own log, on the standard error stream; `RUST_LOG` has the last word.
fn start_log(level: LevelFilter) {
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
