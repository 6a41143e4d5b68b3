//! Measures the cost of a failing session store. The results are the duration of handshakes during
//! the failure, and the time until sessions resume. A failed connection ends the benchmark.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::HandshakeKind;

use sessile_bench::{Result, pin, publish};

use super::load::Load;
use super::model::{Software, WARM_UP};
use super::options::Options;
use super::peer::{Certificate, Peer};
use super::report::measured;
use super::stall::{DELAY, Mode, Network};
use super::store::{percentile_micros, store_setting};

/// Duration of a failure. In this time, the pauses between reconnects reach their maximum length.
const OUTAGE: Duration = Duration::from_secs(10);

/// Pause between clients.
const PACE: Duration = Duration::from_millis(20);

/// Limit of the time until sessions resume again.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq)]
enum StoreFailure {
    Stopped,
    Restarted,
    Paused,
    Stalled,
    Cut,
    Delayed,
}

impl StoreFailure {
    const ALL: [Self; 6] = [
        Self::Stopped,
        Self::Restarted,
        Self::Paused,
        Self::Stalled,
        Self::Cut,
        Self::Delayed,
    ];

    fn name(self) -> String {
        match self {
            Self::Stopped => "stopped, then started empty".to_owned(),
            Self::Restarted => "restarted empty, at once".to_owned(),
            Self::Paused => "paused (SIGSTOP)".to_owned(),
            Self::Stalled => "behind a network that stalls".to_owned(),
            Self::Cut => "behind a network that cuts connections".to_owned(),
            Self::Delayed => format!("behind a network that is {} ms late", DELAY.as_millis()),
        }
    }

    fn duration(self) -> Duration {
        match self {
            Self::Restarted => Duration::ZERO,
            _ => OUTAGE,
        }
    }
}

/// A store that can be made to fail, and the network in front of the store.
struct Store<'a> {
    redis: Option<Peer>,
    address: SocketAddr,
    network: Network,
    setup: &'a Setup<'a>,
}

/// The parameters with which servers are started.
struct Setup<'a> {
    options: &'a Options,
    certificate: &'a Certificate,
    folder: &'a Path,
}

impl Setup<'_> {
    fn redis(&self, address: Option<SocketAddr>) -> Result<Peer> {
        let (software, options) = (Software::Redis, self.options);
        let (certificate, folder) = (self.certificate, self.folder);
        match address {
            Some(at) => Peer::start_at(at, software, options, certificate, folder),
            None => Peer::start(software, options, certificate, folder),
        }
    }

    fn sessile(&self, name: &str, session: &str) -> Result<Peer> {
        Peer::sessile(name, session, self.options, self.certificate, self.folder)
    }

    fn client(&self, server: &Peer) -> Result<Load> {
        Load::new(server.address, self.certificate)
    }
}

impl<'a> Store<'a> {
    fn start(setup: &'a Setup<'_>) -> Result<Self> {
        let redis = setup.redis(None)?;
        Ok(Self {
            address: redis.address,
            network: Network::in_front_of(redis.address)?,
            redis: Some(redis),
            setup,
        })
    }

    fn begin(&mut self, failure: StoreFailure) -> Result<()> {
        match (failure, &self.redis) {
            (StoreFailure::Stopped | StoreFailure::Restarted, _) => self.redis = None,
            (StoreFailure::Paused, Some(redis)) => redis.signal("STOP")?,
            (StoreFailure::Paused, None) => return Err("there is no store to pause".into()),
            (StoreFailure::Stalled, _) => self.network.set(Mode::Stall),
            (StoreFailure::Cut, _) => self.network.set(Mode::Cut),
            (StoreFailure::Delayed, _) => self.network.set(Mode::Delay),
        }
        Ok(())
    }

    fn end(&mut self, failure: StoreFailure) -> Result<()> {
        match (failure, &self.redis) {
            (StoreFailure::Paused, Some(redis)) => redis.signal("CONT")?,
            (_, None) => self.redis = Some(self.setup.redis(Some(self.address))?),
            _ => self.network.set(Mode::Pass),
        }
        Ok(())
    }
}

/// The measurements of one failure.
#[derive(Default)]
struct Measurements {
    /// Durations of handshakes from the start of the failure until sessions resumed again.
    handshakes: Vec<Duration>,
    /// Times from the end of the failure until sessions resumed, one for each round.
    recovery: Vec<Duration>,
}

pub(super) fn run(options: &Options) -> Result<()> {
    pin(std::process::id(), options.client_cpu)?;
    let folder = tempfile::tempdir()?;
    let certificate = Certificate::make(folder.path())?;
    let setup = Setup {
        options,
        certificate: &certificate,
        folder: folder.path(),
    };
    let mut store = Store::start(&setup)?;
    let mut measurements = StoreFailure::ALL.map(|failure| (failure, Measurements::default()));
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (failure, measurements) in &mut measurements {
            fail(&mut store, *failure, round, measurements)
                .map_err(|error| format!("{}: {error}", failure.name()))?;
        }
    }
    let mut without = without_a_store(&setup)?;
    let text = report(options, &mut measurements, &mut without);
    publish("outages", &text, options.write.as_deref())
}

/// Makes the store fail once, with two servers that share it.
fn fail(
    store: &mut Store<'_>,
    failure: StoreFailure,
    round: usize,
    measurements: &mut Measurements,
) -> Result<()> {
    let setup = store.setup;
    let shared = store_setting(store.network.address);
    let start = |name: &str| setup.sessile(&format!("{name}-{round}-{}", failure as u8), &shared);
    let (one, other) = (start("one")?, start("other")?);
    let pair = (&one, &other);
    for _ in 0..WARM_UP {
        setup.client(&one)?.timed()?;
    }
    wait_until_resumed(setup, pair, &mut Vec::new())?;
    store.begin(failure)?;
    let begin = Instant::now();
    while begin.elapsed() < failure.duration() {
        move_client(setup, pair, &mut measurements.handshakes)?;
        std::thread::sleep(PACE);
    }
    store.end(failure)?;
    let end = Instant::now();
    wait_until_resumed(setup, pair, &mut measurements.handshakes)?;
    measurements.recovery.push(end.elapsed());
    Ok(())
}

/// Makes new clients move from one server to the other, until a client resumes there.
fn wait_until_resumed(
    setup: &Setup<'_>,
    pair: (&Peer, &Peer),
    handshakes: &mut Vec<Duration>,
) -> Result<()> {
    let begin = Instant::now();
    while move_client(setup, pair, handshakes)? != HandshakeKind::Resumed {
        if begin.elapsed() > PATIENCE {
            return Err("no session resumes any more".into());
        }
        std::thread::sleep(PACE);
    }
    Ok(())
}

/// Connects a new client to one server and then to the other. Returns the kind of the second
/// handshake.
fn move_client(
    setup: &Setup<'_>,
    (one, other): (&Peer, &Peer),
    handshakes: &mut Vec<Duration>,
) -> Result<HandshakeKind> {
    let client = setup.client(one)?;
    handshakes.push(client.timed()?.0);
    let (took, kind) = client.at(other.address).timed()?;
    handshakes.push(took);
    Ok(kind)
}

/// Makes full handshakes with a server without a store, with [`PACE`] between clients.
fn without_a_store(setup: &Setup<'_>) -> Result<Vec<Duration>> {
    let server = setup.sessile("alone", "")?;
    for _ in 0..WARM_UP {
        setup.client(&server)?.timed()?;
    }
    let mut handshakes = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < OUTAGE {
        handshakes.push(setup.client(&server)?.timed()?.0);
        std::thread::sleep(PACE);
    }
    Ok(handshakes)
}

fn report(
    options: &Options,
    measurements: &mut [(StoreFailure, Measurements)],
    without: &mut [Duration],
) -> String {
    let mut text = format!(
        "{} Each failure lasts {} s, {} times; clients that make a session at one server and come back to another, one at a time.\n\n\
         | a store that is | handshakes | p50, ms | slowest, ms | resumes again after, p50, s | longest, s |\n\
         |---|--:|--:|--:|--:|--:|\n",
        measured(options, &[Software::Sessile, Software::Redis]),
        OUTAGE.as_secs(),
        options.rounds,
    );
    let millis = |times: &mut [Duration], percent| percentile_micros(times, percent) / 1e3;
    for (
        failure,
        Measurements {
            handshakes,
            recovery,
        },
    ) in measurements
    {
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} |",
            failure.name(),
            handshakes.len(),
            millis(handshakes, 50),
            millis(handshakes, 100),
            millis(recovery, 50) / 1e3,
            millis(recovery, 100) / 1e3,
        );
    }
    let _ = writeln!(
        text,
        "| absent (full handshakes without a store) | {} | {:.2} | {:.2} | – | – |",
        without.len(),
        millis(without, 50),
        millis(without, 100),
    );
    text
}
