//! The time that a shared session store adds to a handshake of TLS 1.2 clients without tickets. With the store,
//! clients return to another server, which looks the session up. Without the store, clients return to the
//! server that has the session in memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustls::HandshakeKind;

use sessile_bench::{Result, pin, publish};

use super::load::Load;
use super::model::{SETTLE, Software, WARM_UP};
use super::options::Options;
use super::peer::{Certificate, Peer};
use super::report::measured;
use super::stall::{DELAY, Mode, Network};

/// Handshakes of each round with a slow store, by new and returning clients in turn.
const STALLED: usize = 40;

/// At least this many handshakes wait for the store. Each handshake waits 20 ms, and
/// `store::redis::circuit_breaker` opens after a quarter of a second.
const WAITED_FOR: usize = 8;

/// From this handshake on, the circuit breaker is open.
const GIVEN_UP: usize = 24;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Memory,
    Store,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Full,
    Resumed,
}

impl Step {
    const ALL: [Self; 2] = [Self::Full, Self::Resumed];

    const fn name(self) -> &'static str {
        match self {
            Self::Full => "full, session stored",
            Self::Resumed => "resumed by session ID, session looked up",
        }
    }

    const fn handshake(self) -> HandshakeKind {
        match self {
            Self::Full => HandshakeKind::Full,
            Self::Resumed => HandshakeKind::Resumed,
        }
    }
}

/// The measurements of one kind of handshake.
#[derive(Default)]
struct Sample {
    /// Durations at the client.
    times: Vec<Duration>,
    /// The server's processor time for a connection, with one value for each round.
    server: Vec<Duration>,
    /// The store's processor time for a connection, with one value for each round.
    store: Vec<Duration>,
}

type Samples = BTreeMap<(Step, Side), Sample>;

pub(super) fn run(options: &Options) -> Result<()> {
    pin(std::process::id(), options.client_cpu)?;
    let folder = tempfile::tempdir()?;
    let certificate = Certificate::make(folder.path())?;
    let store = Peer::start(Software::Redis, options, &certificate, folder.path())?;
    let start = |name: &str, session: &str| {
        Peer::sessile(name, session, options, &certificate, folder.path())
    };
    // The timeout is long, because every client must resume even if the machine is busy.
    let shared = format!("{}\nstore-timeout = \"1s\"", store_setting(store.address));
    let memory = start("memory", "")?;
    let (one, other) = (start("one", &shared)?, start("other", &shared)?);
    let sides = [
        (Side::Memory, [&memory, &memory]),
        (Side::Store, [&one, &other]),
    ];
    let mut samples = Samples::new();
    for round in 0..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        // The first round only warms up the servers and is not measured.
        let clients = if round == 0 {
            WARM_UP
        } else {
            options.connections
        };
        for (side, servers) in sides {
            let loads = (0..clients)
                .map(|_| Load::new(servers[0].address, &certificate))
                .collect::<Result<Vec<_>>>()?;
            for (step, server) in Step::ALL.into_iter().zip(servers) {
                let sample = samples.entry((step, side)).or_default();
                measure(step, &loads, server, &store, sample)?;
            }
        }
        if round == 0 {
            samples.clear();
        }
    }
    let stalled = stalled(options, &certificate, folder.path(), &store, &one)?;
    let text = report(options, &mut samples, stalled);
    publish("store", &text, options.write.as_deref())
}

pub(super) fn store_setting(store: SocketAddr) -> String {
    format!("store = \"redis://{store}\"")
}

/// Makes one connection with each client.
fn measure(
    step: Step,
    loads: &[Load],
    server: &Peer,
    store: &Peer,
    sample: &mut Sample,
) -> Result<()> {
    std::thread::sleep(SETTLE);
    let before = (server.cpu_time()?, store.cpu_time()?);
    for load in loads {
        let (took, kind) = load.at(server.address).timed()?;
        if kind != step.handshake() {
            return Err(format!("{}: a handshake came out as {kind:?}", step.name()).into());
        }
        sample.times.push(took);
    }
    std::thread::sleep(SETTLE);
    let clients = u32::try_from(loads.len())?;
    sample
        .server
        .push((server.cpu_time()? - before.0) / clients);
    sample.store.push((store.cpu_time()? - before.1) / clients);
    Ok(())
}

/// Handshakes while the store answers late.
struct Stalled {
    /// Handshakes that waited for the store.
    waited: Vec<Duration>,
    /// Handshakes after the server had stopped waiting for the store.
    after: Vec<Duration>,
}

fn stalled(
    options: &Options,
    certificate: &Certificate,
    folder: &Path,
    store: &Peer,
    elsewhere: &Peer,
) -> Result<Stalled> {
    let network = Network::in_front_of(store.address)?;
    let mut stalled = Stalled {
        waited: Vec::new(),
        after: Vec::new(),
    };
    for round in 0..options.rounds {
        network.set(Mode::Pass);
        let name = format!("stalled-{round}");
        let shared = store_setting(network.address);
        let server = Peer::sessile(&name, &shared, options, certificate, folder)?;
        // Wait until the server has connected to the store and its caches are warm.
        for _ in 0..WARM_UP {
            Load::new(server.address, certificate)?.timed()?;
        }
        network.set(Mode::Delay);
        for n in 0..STALLED {
            let client = Load::new(elsewhere.address, certificate)?;
            if n % 2 == 1 {
                client.timed()?;
            }
            let (took, kind) = client.at(server.address).timed()?;
            if kind != HandshakeKind::Full {
                return Err("a session came through a store that is stalled".into());
            }
            match n {
                ..WAITED_FOR => stalled.waited.push(took),
                GIVEN_UP.. => stalled.after.push(took),
                _ => {}
            }
        }
    }
    Ok(stalled)
}

fn report(options: &Options, samples: &mut Samples, mut stalled: Stalled) -> String {
    let mut text = format!(
        "{} {} rounds of {} clients, one at a time.\n\n\
         | TLS 1.2 without tickets, µs | | memory | shared store | added | ratio |\n|---|---|--:|--:|--:|--:|\n",
        measured(options, &[Software::Sessile, Software::Redis]),
        options.rounds,
        options.connections,
    );
    for step in Step::ALL {
        let mut row = |what: &str, value: fn(&mut Sample) -> f64| {
            let [memory, store] = [Side::Memory, Side::Store]
                .map(|side| value(samples.entry((step, side)).or_default()));
            let _ = writeln!(
                text,
                "| {} | {what} | {memory:.1} | {store:.1} | **{:.1}** | {:.2} |",
                step.name(),
                store - memory,
                store / memory,
            );
        };
        row("handshake at the client, p50", |s| {
            percentile_micros(&mut s.times, 50)
        });
        row("handshake at the client, p99", |s| {
            percentile_micros(&mut s.times, 99)
        });
        row("server's processor time a connection", |s| {
            percentile_micros(&mut s.server, 50)
        });
        let store = samples.entry((step, Side::Store)).or_default();
        let spent = percentile_micros(&mut store.store, 50);
        let _ = writeln!(
            text,
            "| {} | Redis's processor time a connection | – | {spent:.1} | **{spent:.1}** | – |",
            step.name(),
        );
    }
    let _ = writeln!(
        text,
        "\n| answers {} ms late, `store-timeout` 20 ms; handshakes at the client, ms | p50 | slowest |\n|---|--:|--:|",
        DELAY.as_millis(),
    );
    let full = &mut samples.entry((Step::Full, Side::Memory)).or_default().times;
    for (what, times) in [
        ("full, while the store is waited for", &mut stalled.waited),
        ("full, once it is taken for down", &mut stalled.after),
        ("full, without a store", full),
    ] {
        let (half, slowest) = (
            percentile_micros(times, 50) / 1e3,
            percentile_micros(times, 100) / 1e3,
        );
        let _ = writeln!(text, "| {what} | {half:.2} | {slowest:.2} |");
    }
    text
}

/// A percentile in microseconds.
pub(super) fn percentile_micros(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times
        .get(last * percent / 100)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}
