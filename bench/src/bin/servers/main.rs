//! Compares the cost of TLS connections to `sessile serve`, nginx and HAProxy, in processor time and
//! in memory. `servers store` measures the cost of a shared session store for a handshake. `servers
//! outages` measures the effects of a failing store. The benchmark starts all
//! programs itself on loopback and prints Markdown.

mod bare;
mod load;
mod model;
mod options;
mod outages;
mod peer;
mod report;
mod stall;
mod store;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use sessile_bench::{Result, pin};

use load::Load;
use model::{CONCURRENCY, ConnectionKind, IDLE, SETTLE, Software, WARM_UP};
use options::Options;
use peer::{Certificate, Peer};
use report::{Costs, Report};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    let outcome = match args.peek().map(String::as_str) {
        Some("--bare") => bare::serve(),
        Some("outages") => Options::read(args.skip(1)).and_then(|options| outages::run(&options)),
        Some("store") => Options::read(args.skip(1)).and_then(|options| store::run(&options)),
        _ => Options::read(args).and_then(|options| run(&options)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("servers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    pin(std::process::id(), options.client_cpu)?;
    let folder = tempfile::tempdir()?;
    let certificate = Certificate::make(folder.path())?;
    let start = |software| Peer::start(software, options, &certificate, folder.path());

    let software = options.software();
    let peers = software
        .iter()
        .map(|software| start(*software))
        .collect::<Result<Vec<_>>>()?;
    let mut costs = Costs::default();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for concurrency in CONCURRENCY {
            for kind in options.kinds() {
                for peer in &peers {
                    let cost = cost(options, &certificate, peer, kind, concurrency)?;
                    costs.add(kind, concurrency, peer.software, cost);
                }
            }
        }
    }
    drop(peers);

    let mut report = Report::new(options, costs);
    for software in software
        .into_iter()
        .filter(|software| *software != Software::Bare)
    {
        // Start a new process: an old one would reuse memory that earlier connections have freed.
        let peer = start(software)?;
        let load = Load::new(peer.address, &certificate, ConnectionKind::Full)?;
        for _ in 0..WARM_UP {
            load.connection()?;
        }
        std::thread::sleep(SETTLE);
        let before = peer.memory()?;
        let idle = (0..IDLE)
            .map(|_| load.idle_connection())
            .collect::<Result<Vec<_>>>()?;
        std::thread::sleep(SETTLE);
        let after = peer.memory()?;
        report.memory(software, before, after, idle.len());
    }
    report.publish(options.write.as_deref())
}

/// A server's processor time for each connection of a kind.
fn cost(
    options: &Options,
    certificate: &Certificate,
    peer: &Peer,
    kind: ConnectionKind,
    concurrency: usize,
) -> Result<Duration> {
    let loads = (0..concurrency)
        .map(|_| match peer.software {
            Software::Bare => Ok(Load::bare(peer.address)),
            _ => Load::new(peer.address, certificate, kind),
        })
        .collect::<Result<Vec<_>>>()?;
    let with_context =
        |error: Box<dyn Error + Send + Sync>| format!("{}, {kind}: {error}", peer.software);
    let run = |connections: usize| {
        let done: Result<()> = std::thread::scope(|scope| {
            let start = |load| scope.spawn(move || Load::run(load, connections / concurrency));
            let threads: Vec<_> = loads.iter().map(start).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a load thread panicked")?)
        });
        done.map_err(with_context)
    };
    // The first connection of each load makes a full handshake and gets the first session.
    loads
        .iter()
        .try_for_each(Load::prime)
        .map_err(with_context)?;
    run(WARM_UP)?;
    std::thread::sleep(SETTLE);
    let before = peer.cpu_time()?;
    run(options.connections)?;
    std::thread::sleep(SETTLE);
    let spent = peer.cpu_time()? - before;
    let connections = options.connections / concurrency * concurrency;
    Ok(spent / u32::try_from(connections)?)
}
