//! Balancers side by side: what a passthrough connection, a GiB and an idle connection cost `sessile
//! balance`, HAProxy in TCP mode and nginx's stream module. Starts all of them itself on loopback and
//! prints Markdown.

mod balancer;
mod bare;
mod report;
mod traffic;

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use balancer::{Balancer, Software};
use report::{Costs, Row};

/// Connections before the counting starts.
const WARM_UP: usize = 200;

/// Connections at the same time.
const AT_ONCE: [usize; 2] = [1, 8];

/// Bytes of a response that is short.
const SHORT: usize = 600;

/// Bytes of one that is long.
const LONG: usize = 256 << 20;

/// Idle connections whose memory is taken.
const IDLE: usize = 2000;

/// The kernel books a thread's time when it goes to sleep: a balancer is given this long to.
const SETTLE: Duration = Duration::from_millis(50);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "usage: balancers --sessile PATH [--rounds N] [--connections N] [--workers N] \
[--balancer-cpu N] [--client-cpu N] [--write FILE]";

struct Options {
    sessile: PathBuf,
    rounds: usize,
    connections: usize,
    workers: usize,
    balancer_cpu: usize,
    client_cpu: usize,
    /// Markdown file whose section is replaced.
    write: Option<PathBuf>,
}

impl Options {
    fn from_args() -> Result<Self> {
        let mut options = Self {
            sessile: PathBuf::new(),
            rounds: 5,
            connections: 4000,
            workers: 1,
            balancer_cpu: 0,
            client_cpu: 1,
            write: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().ok_or(USAGE)?;
            match name.as_str() {
                "--sessile" => options.sessile = value.into(),
                "--rounds" => options.rounds = value.parse()?,
                "--connections" => options.connections = value.parse()?,
                "--workers" => options.workers = value.parse()?,
                "--balancer-cpu" => options.balancer_cpu = value.parse()?,
                "--client-cpu" => options.client_cpu = value.parse()?,
                "--write" => options.write = Some(value.into()),
                _ => return Err(USAGE.into()),
            }
        }
        match options.sessile.as_os_str().is_empty() {
            true => Err(USAGE.into()),
            false => Ok(options),
        }
    }
}

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
    pin(options.client_cpu)?;
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
            for balancer in balancers.iter().filter(|it| row.has(it.software)) {
                let cost = cost(options, balancer, row)
                    .map_err(|error| format!("{}: {error}", balancer.software))?;
                costs.add(row, balancer.software, cost);
            }
        }
    }
    drop(balancers);
    let idle_server = [traffic::serve_idle()?];
    for software in Software::others().chain([Software::Sessile]) {
        // A process of its own, so that nothing that was freed before is there to be used again.
        let balancer = Balancer::start(software, options, &idle_server, folder.path())?;
        for _ in 0..WARM_UP {
            traffic::keep(balancer.address)?;
        }
        std::thread::sleep(SETTLE);
        let before = balancer.memory()?;
        let idle = (0..IDLE)
            .map(|_| traffic::keep(balancer.address))
            .collect::<Result<Vec<_>>>()?;
        std::thread::sleep(SETTLE);
        let each = balancer.memory()?.saturating_sub(before) / idle.len() as u64;
        costs.add_memory(software, each);
    }
    report::publish(options, &costs)
}

/// Keeps this process on a processor.
fn pin(cpu: usize) -> Result<()> {
    let process = std::process::id().to_string();
    let pinned = Command::new("taskset")
        .args(["-cp", &cpu.to_string(), &process])
        .output()
        .map_err(|error| format!("taskset (Debian's util-linux): {error}"))?;
    match pinned.status.success() {
        true => Ok(()),
        false => Err(format!("there is no processor {cpu}").into()),
    }
}

/// A balancer's processor time for each connection, or each GiB.
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
