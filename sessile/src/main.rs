//! The `sessile` binary.

use std::process::ExitCode;

use clap::Parser;
use sessile::cli::{check, settings};

#[derive(Parser)]
enum Command {
    Check(check::Args),
    Settings(settings::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Check(args) => check::run(args),
        Command::Settings(args) => settings::run(args),
    }
}
