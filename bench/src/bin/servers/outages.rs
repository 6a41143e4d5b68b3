//! What a shared session store that fails costs: how long handshakes take meanwhile, and how soon after the
//! failure's end sessions resume through the store again. A connection that fails ends the benchmark.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::HandshakeKind;

use super::load::{Kind, Load};
use super::options::Options;
use super::peer::{self, Certificate, Peer, Software};
use super::report::{measured, publish};
use super::stall::{DELAY, Mode, Network};
use super::store::{micros, sharing};
use super::{Result, WARM_UP};

/// How long a failure lasts: until pauses between attempts to connect are as long as they get.
const OUTAGE: Duration = Duration::from_secs(10);

/// Time between clients: as many as keep a worker's counts going, and no flood.
const PACE: Duration = Duration::from_millis(20);

/// How long sessions may take to resume again, over which it is an error.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    Stopped,
    Restarted,
    Paused,
    Stalled,
    Cut,
    Delayed,
}

impl Failure {
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

    fn lasts(self) -> Duration {
        match self {
            Self::Restarted => Duration::ZERO,
            _ => OUTAGE,
        }
    }
}

/// A store that can be made to fail, and a network in front of it.
struct Store<'a> {
    redis: Option<Peer>,
    address: SocketAddr,
    network: Network,
    around: &'a Around<'a>,
}

/// What servers are started with.
struct Around<'a> {
    options: &'a Options,
    certificate: &'a Certificate,
    folder: &'a Path,
}

impl Around<'_> {
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
        Load::new(server.address, self.certificate, Kind::SessionId)
    }
}

impl<'a> Store<'a> {
    fn start(around: &'a Around<'_>) -> Result<Self> {
        let redis = around.redis(None)?;
        Ok(Self {
            address: redis.address,
            network: Network::before(redis.address)?,
            redis: Some(redis),
            around,
        })
    }

    fn begin(&mut self, failure: Failure) -> Result<()> {
        match (failure, &self.redis) {
            (Failure::Stopped | Failure::Restarted, _) => self.redis = None,
            (Failure::Paused, Some(redis)) => redis.signal("STOP")?,
            (Failure::Paused, None) => return Err("there is no store to pause".into()),
            (Failure::Stalled, _) => self.network.set(Mode::Stall),
            (Failure::Cut, _) => self.network.set(Mode::Cut),
            (Failure::Delayed, _) => self.network.set(Mode::Delay),
        }
        Ok(())
    }

    fn end(&mut self, failure: Failure) -> Result<()> {
        match (failure, &self.redis) {
            (Failure::Paused, Some(redis)) => redis.signal("CONT")?,
            (_, None) => self.redis = Some(self.around.redis(Some(self.address))?),
            _ => self.network.set(Mode::Pass),
        }
        Ok(())
    }
}

/// What came of one failure.
#[derive(Default)]
struct Outcome {
    /// How long handshakes took from its beginning until sessions resumed again.
    handshakes: Vec<Duration>,
    /// How long after its end that was, for each round.
    back: Vec<Duration>,
}

pub(super) fn run(options: &Options) -> Result<()> {
    peer::pin(std::process::id(), options.client_cpu)?;
    let folder = tempfile::tempdir()?;
    let certificate = Certificate::make(folder.path())?;
    let around = Around {
        options,
        certificate: &certificate,
        folder: folder.path(),
    };
    let mut store = Store::start(&around)?;
    let mut outcomes = Failure::ALL.map(|failure| (failure, Outcome::default()));
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (failure, outcome) in &mut outcomes {
            fail(&mut store, *failure, round, outcome)
                .map_err(|error| format!("{}: {error}", failure.name()))?;
        }
    }
    let mut without = without_a_store(&around)?;
    let text = report(options, &mut outcomes, &mut without);
    publish("outages", &text, options.write.as_deref())
}

/// Lets a store fail once, between servers of its own.
fn fail(
    store: &mut Store<'_>,
    failure: Failure,
    round: usize,
    outcome: &mut Outcome,
) -> Result<()> {
    let around = store.around;
    let shared = sharing(store.network.address);
    let start = |name: &str| around.sessile(&format!("{name}-{round}-{}", failure as u8), &shared);
    let (one, other) = (start("one")?, start("other")?);
    let pair = (&one, &other);
    for _ in 0..WARM_UP {
        around.client(&one)?.timed()?;
    }
    until_it_resumes(around, pair, &mut Vec::new())?;
    store.begin(failure)?;
    let begin = Instant::now();
    while begin.elapsed() < failure.lasts() {
        hop(around, pair, &mut outcome.handshakes)?;
        std::thread::sleep(PACE);
    }
    store.end(failure)?;
    let end = Instant::now();
    until_it_resumes(around, pair, &mut outcome.handshakes)?;
    outcome.back.push(end.elapsed());
    Ok(())
}

/// Lets clients hop until one resumes.
fn until_it_resumes(
    around: &Around<'_>,
    pair: (&Peer, &Peer),
    handshakes: &mut Vec<Duration>,
) -> Result<()> {
    let begin = Instant::now();
    while hop(around, pair, handshakes)? != HandshakeKind::Resumed {
        if begin.elapsed() > PATIENCE {
            return Err("no session resumes any more".into());
        }
        std::thread::sleep(PACE);
    }
    Ok(())
}

/// A new client comes to one server and back to the other one: how its second handshake came out.
fn hop(
    around: &Around<'_>,
    (one, other): (&Peer, &Peer),
    handshakes: &mut Vec<Duration>,
) -> Result<HandshakeKind> {
    let client = around.client(one)?;
    handshakes.push(client.timed()?.0);
    let (took, kind) = client.at(other.address).timed()?;
    handshakes.push(took);
    Ok(kind)
}

/// Full handshakes of a server that has no store, at the same pace.
fn without_a_store(around: &Around<'_>) -> Result<Vec<Duration>> {
    let server = around.sessile("alone", "")?;
    for _ in 0..WARM_UP {
        around.client(&server)?.timed()?;
    }
    let mut handshakes = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < OUTAGE {
        handshakes.push(around.client(&server)?.timed()?.0);
        std::thread::sleep(PACE);
    }
    Ok(handshakes)
}

fn report(
    options: &Options,
    outcomes: &mut [(Failure, Outcome)],
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
    let millis = |times: &mut [Duration], percent| micros(times, percent) / 1e3;
    for (failure, Outcome { handshakes, back }) in outcomes {
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} |",
            failure.name(),
            handshakes.len(),
            millis(handshakes, 50),
            millis(handshakes, 100),
            millis(back, 50) / 1e3,
            millis(back, 100) / 1e3,
        );
    }
    let _ = writeln!(
        text,
        "| not there (full handshakes without one) | {} | {:.2} | {:.2} | – | – |",
        without.len(),
        millis(without, 50),
        millis(without, 100),
    );
    text
}
