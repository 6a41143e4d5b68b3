//! `servers store` measures the cost of a shared session store for a handshake of `sessile serve`.
//! `servers outages` measures the effects of a failing store. The benchmark starts all programs
//! itself on loopback and prints Markdown.

mod load;
mod model;
mod options;
mod outages;
mod peer;
mod report;
mod stall;
mod store;

use std::process::ExitCode;

use options::{Options, USAGE};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let outcome = match args.next().as_deref() {
        Some("outages") => Options::read(args).and_then(|options| outages::run(&options)),
        Some("store") => Options::read(args).and_then(|options| store::run(&options)),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("servers: {error}");
            ExitCode::FAILURE
        }
    }
}
