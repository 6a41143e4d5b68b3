//! A stand-in: the real one replaces it.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "sessile")]
enum Command {
    Probe(sessile::cli::probe::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Probe(args) => sessile::cli::probe::run(args),
    }
}
