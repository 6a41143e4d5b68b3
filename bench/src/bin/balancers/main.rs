//! Compares `sessile balance`, HAProxy in TCP mode and nginx's stream module. Measures the cost of a
//! passthrough connection, of a GiB and of an idle connection. The benchmark starts all programs
//! itself on loopback and prints Markdown.

mod balancer;
mod bare;
mod model;
mod report;
mod traffic;

use std::process::ExitCode;
use std::time::Duration;

use sessile_bench::{Result, pin};

use balancer::Balancer;
use model::{IDLE, LONG, Options, SETTLE, SHORT, Software, WARM_UP};
use report::{Costs, Row};

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("--bare") => bare::serve(),
        _ => Options::from_args().and_then(|options| run(&options)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("balancers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    pin(std::process::id(), options.client_cpu)?;
    let folder = tempfile::tempdir()?;
    let servers = [traffic::serve()?, traffic::serve()?];
    let start = |software| Balancer::start(software, options, &servers, folder.path());
    let balancers = Software::ALL
        .into_iter()
        .map(start)
        .collect::<Result<Vec<_>>>()?;
    let mut costs = Costs::default();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for row in Row::ALL {
            for balancer in balancers
                .iter()
                .filter(|balancer| row.has(balancer.software))
            {
                let cost = cost(options, balancer, row)
                    .map_err(|error| format!("{}: {error}", balancer.software))?;
                costs.add(row, balancer.software, cost);
            }
        }
    }
    drop(balancers);
    let idle_server = [traffic::serve_idle()?];
    for software in Software::others().chain([Software::Sessile]) {
        // Start a new process: an old one would reuse memory that earlier connections have freed.
        let balancer = Balancer::start(software, options, &idle_server, folder.path())?;
        for _ in 0..WARM_UP {
            traffic::open(balancer.address)?;
        }
        std::thread::sleep(SETTLE);
        let before = balancer.memory()?;
        let idle = (0..IDLE)
            .map(|_| traffic::open(balancer.address))
            .collect::<Result<Vec<_>>>()?;
        std::thread::sleep(SETTLE);
        let each = balancer.memory()?.saturating_sub(before) / idle.len() as u64;
        costs.add_memory(software, each);
    }
    report::publish(options, &costs)
}

/// The balancer's processor time for each connection, or for each GiB.
fn cost(options: &Options, balancer: &Balancer, row: Row) -> Result<Duration> {
    let run = |connections| match row {
        Row::Connections { at_once } => traffic::run(balancer.address, connections, at_once, SHORT),
        Row::Bytes => traffic::run(balancer.address, 1, 1, LONG),
    };
    run(WARM_UP)?;
    std::thread::sleep(SETTLE);
    let before = balancer.cpu_time()?;
    run(options.connections)?;
    std::thread::sleep(SETTLE);
    let spent = balancer.cpu_time()? - before;
    Ok(match row {
        Row::Connections { at_once } => {
            let connections = options.connections / at_once * at_once;
            spent / u32::try_from(connections)?
        }
        Row::Bytes => spent * u32::try_from((1 << 30) / LONG)?,
    })
}
