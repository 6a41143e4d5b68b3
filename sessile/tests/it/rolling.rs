//! Restarts and kills of all parts while clients of every kind connect. `just soak` runs this test for a minute
//! and requires a minimum rate.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sessile::client::{Client, EstablishedConnection, Mechanism, Target, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::MissedTickBehavior;

use crate::balance_labels::{self, export, visit};
use crate::farm_life::clients::{HOW, How, Python, try_gnutls, try_openssl};
use crate::peers::{Answer, NO_FOLDER, Sessile, eventually};
use crate::store::setup::{Farm, Redis, Server, try_verdict};

const NAMES: [&str; 3] = ["web1", "web2", "web3"];

/// Number of our own clients for each mechanism. OpenSSL, Python and GnuTLS (not for TLS 1.3) add one client
/// each.
const OURS: usize = 8;

/// The pause between two visits of a client.
#[derive(Clone, Copy)]
struct Pace {
    ours: Duration,
    /// The pause for clients that are other programs.
    others: Duration,
}

const PACE: Pace = Pace {
    ours: Duration::from_millis(160),
    others: Duration::from_millis(100),
};

/// Number of visits with a verdict between two events. The number is fixed, so a slow machine does not make the
/// test easier.
const MEANWHILE: usize = 150;

/// The variable that `just soak` sets to the duration in seconds. With this variable, [`SOAK_RATE`] is
/// required.
const SOAK: &str = "SESSILE_SOAK";

/// Minimum number of visits a second.
const SOAK_RATE: f64 = 200.0;

/// The pauses with which the clients reach [`SOAK_RATE`].
const SOAK_PACE: Pace = Pace {
    ours: Duration::from_millis(100),
    others: Duration::from_millis(250),
};

/// Lines of `[balance]`.
const BALANCE: &str = "policy = \"round-robin\"\nhealth-interval = \"250ms\"";

/// Limit of the time until a client has its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection of one client.
#[derive(Debug)]
struct Visit {
    client: String,
    began: Instant,
    ended: Instant,
    came_to: Result<String, String>,
}

/// The results of all clients.
#[derive(Default)]
struct Tally {
    over: AtomicBool,
    visits: Mutex<Vec<Visit>>,
}

impl Tally {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn note(&self, client: &str, began: Instant, came_to: Result<String, String>) {
        self.visits.lock().unwrap().push(Visit {
            client: client.to_owned(),
            began,
            ended: Instant::now(),
            came_to,
        });
    }

    /// The number of visits that began after a time and got a verdict.
    fn good_since(&self, since: Instant) -> usize {
        let visits = self.visits.lock().unwrap();
        let recent = visits.iter().rev().take_while(|visit| visit.ended >= since);
        let good = |visit: &&Visit| visit.began >= since && visit.came_to.is_ok();
        recent.filter(good).count()
    }
}

/// Clients of every kind, which connect until this value is dropped.
struct Clients {
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
    pace: Pace,
    began: Instant,
}

impl Clients {
    fn start(farm: &Farm, address: SocketAddr, pace: Pace) -> Self {
        let mut clients = Self {
            tally: Arc::default(),
            threads: Vec::new(),
            pace,
            began: Instant::now(),
        };
        let tally = Arc::clone(&clients.tally);
        clients
            .threads
            .push(thread::spawn(move || ours(&tally, address, pace.ours)));
        for how in HOW {
            let root = farm.root();
            let session = farm.folder().join(format!("rolling-{how:?}"));
            let mut python = Python::start(&root, how);
            // With TLS 1.3, GnuTLS's program waits for a ticket. If the connection is cut before the ticket,
            // this wait never ends.
            if !matches!(how, How::Psk) {
                let authority = root.clone();
                clients.add(format!("GnuTLS by {how:?}"), move || {
                    try_gnutls(how, &authority, address)
                });
            }
            clients.add(format!("OpenSSL by {how:?}"), move || {
                try_openssl(how, &root, &session, address, None)
            });
            clients.add(format!("Python by {how:?}"), move || {
                let verdict = python.connect(address);
                if verdict.starts_with("failed") {
                    Err(verdict)
                } else {
                    Ok(verdict)
                }
            });
        }
        clients
    }

    fn add(
        &mut self,
        name: String,
        mut visit: impl FnMut() -> Result<String, String> + Send + 'static,
    ) {
        let (tally, pause) = (Arc::clone(&self.tally), self.pace.others);
        self.threads.push(thread::spawn(move || {
            while !tally.is_over() {
                let began = Instant::now();
                let came_to = visit();
                tally.note(&name, began, came_to);
                thread::sleep(pause.saturating_sub(began.elapsed()));
            }
        }));
    }

    /// Waits until [`MEANWHILE`] new visits have begun and got a verdict.
    fn wait_for_visits(&self) {
        let since = Instant::now();
        eventually("clients come and go", || {
            self.tally.good_since(since) >= MEANWHILE
        });
    }

    /// Stops the clients. Returns the results of all visits and the number of visits a second.
    fn finish(mut self) -> (Vec<Visit>, f64) {
        self.tally.over.store(true, Ordering::Relaxed);
        // Visits that have begun may finish, but no new visits begin.
        let seconds = self.began.elapsed().as_secs_f64();
        for thread in mem::take(&mut self.threads) {
            thread.join().expect("no client's program hangs");
        }
        let visits = mem::take(&mut *self.tally.visits.lock().unwrap());
        let rate = visits.len() as f64 / seconds;
        println!(
            "{} visits in {seconds:.1} s, {rate:.0} a second",
            visits.len()
        );
        let mut by_client = BTreeMap::<&str, (usize, Duration)>::new();
        for visit in &visits {
            let (count, longest) = by_client.entry(&visit.client).or_default();
            *count += 1;
            *longest = visit.ended.duration_since(visit.began).max(*longest);
        }
        for (client, (visits, longest)) in by_client {
            println!("  {client}: {visits}, the longest {longest:.1?}");
        }
        (visits, rate)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.tally.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panicked thread has already printed its message, and the test fails.
            let _ = thread.join();
        }
    }
}

fn ours(tally: &Arc<Tally>, address: SocketAddr, pause: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tasks = tokio::task::LocalSet::new();
    for how in (0..OURS).flat_map(|_| HOW) {
        let tally = Arc::clone(tally);
        tasks.spawn_local(async move {
            let client = client(how);
            let mut turns = tokio::time::interval(pause);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !tally.is_over() {
                turns.tick().await;
                let began = Instant::now();
                let result = try_verdict(&client, address)
                    .await
                    .map_err(|error| format!("{error:?}"));
                tally.note(&format!("sessile by {how:?}"), began, result);
            }
        });
    }
    runtime.block_on(tasks);
}

fn client(how: How) -> Client {
    let mechanism = match how {
        How::SessionId => Mechanism::SessionId,
        How::Ticket => Mechanism::Ticket,
        How::Psk => Mechanism::Psk,
    };
    Client::new(mechanism, &Trust::Insecure, PATIENCE).unwrap()
}

/// A balancer with an inherited listening socket, in front of these servers.
fn balancer(farm: &Farm, servers: &[SocketAddr], listener: &TcpListener) -> Sessile {
    let file = farm.folder().join("balance.toml");
    let address = listener.local_addr().unwrap();
    let mut text = format!(
        "[key]\nfile = \"route.key\"\n[[listener]]\naddress = \"{address}\"\nrole = \"balance\"\n\
         [balance]\n{BALANCE}\n"
    );
    for (name, address) in NAMES.iter().zip(servers) {
        text += &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
    }
    fs::write(&file, text).unwrap();
    let nobody = farm.folder().join("notify");
    Sessile::inheriting("balance", &file, Path::new(NO_FOLDER), listener, &nobody)
}

/// The time window from just before a kill until the process was gone.
struct KillWindow {
    from: Instant,
    until: Instant,
}

impl KillWindow {
    fn of(kill: impl FnOnce()) -> Self {
        let from = Instant::now();
        kill();
        Self {
            from,
            until: Instant::now(),
        }
    }

    /// True if the visit was in progress in this window.
    fn cut(&self, visit: &Visit) -> bool {
        visit.began <= self.until && visit.ended >= self.from
    }
}

#[test]
fn restarts_cost_no_connection_and_kills_only_those_that_are_open() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let mut servers = Vec::from(farm.serve_three());
    let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
    export(&farm);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut balancing = balancer(&farm, &addresses, &listener);
    let soak = soak();
    let pace = soak.map_or(PACE, |_| SOAK_PACE);
    let clients = Clients::start(&farm, listener.local_addr().unwrap(), pace);
    clients.wait_for_visits();

    let is_up = |server: &serde_json::Value| server["state"] == "up";
    let mut rounds = 0;
    while rounds == 0 || soak.is_some_and(|soak| clients.began.elapsed() < soak) {
        for (at, name) in NAMES.iter().enumerate() {
            servers.remove(at).drain();
            servers.insert(at, farm.serve_again(name, addresses[at].port()));
            balancing.await_server(name, is_up);
            clients.wait_for_visits();
        }
        balancing.terminate();
        assert!(balancing.ended().success());
        balancing = balancer(&farm, &addresses, &listener);
        clients.wait_for_visits();
        rounds += 1;
    }

    let server = servers.remove(0);
    let server_killed = KillWindow::of(|| server.peer.kill());
    clients.wait_for_visits();
    servers.insert(0, farm.serve_again(NAMES[0], addresses[0].port()));
    balancing.await_server(NAMES[0], is_up);
    let balancer_killed = KillWindow::of(|| drop(balancing));
    let balancing = balancer(&farm, &addresses, &listener);
    clients.wait_for_visits();

    let (visits, rate) = clients.finish();
    let killings = [server_killed, balancer_killed];
    let (good, bad): (Vec<_>, Vec<_>) = visits.iter().partition(|visit| visit.came_to.is_ok());
    let excused = |visit: &Visit| killings.iter().any(|killing| killing.cut(visit));
    let lost: Vec<_> = bad.iter().filter(|visit| !excused(visit)).collect();
    assert!(lost.is_empty(), "of {}: {lost:#?}", visits.len());
    // No session may be lost, so only new clients and cut-off clients may have made full handshakes.
    let full = |visit: &&&Visit| {
        let verdict = visit.came_to.as_deref().unwrap_or_default();
        !verdict.starts_with("resumed/")
    };
    let full: Vec<_> = good.iter().filter(full).collect();
    let new = OURS * HOW.len() + 2 * HOW.len();
    assert!(full.len() <= new + bad.len(), "{full:#?}");
    let clients = ["OpenSSL", "Python", "sessile"].map(|client| HOW.map(|how| (client, how)));
    let gnutls = [How::SessionId, How::Ticket].map(|how| ("GnuTLS", how));
    for (client, how) in clients.as_flattened().iter().chain(&gnutls) {
        let name = format!("{client} by {how:?}");
        assert!(good.iter().any(|visit| visit.client == name), "{name}");
    }
    let metrics = balancing.metrics();
    assert_eq!(metrics.turned_away("no-server"), 0, "{metrics}");
    let cut = bad.len();
    let restarts = rounds * (NAMES.len() + 1);
    println!("{restarts} restarts cost no connection, two kills the {cut} that were open");
    if soak.is_some() {
        assert!(rate >= SOAK_RATE, "only {rate:.0} a second");
    }
}

/// The duration of the soak test. `None` in a normal test run.
fn soak() -> Option<Duration> {
    let seconds = env::var(SOAK).ok()?;
    Some(Duration::from_secs(
        seconds.parse().expect("a number of seconds"),
    ))
}

/// A connection that stays open, and its server.
struct Held {
    connection: EstablishedConnection,
    balancer: usize,
    server: String,
}

impl Held {
    async fn open(balancer: usize, address: SocketAddr) -> Self {
        let target = Target::new(address, "localhost").unwrap();
        let connection = client(How::Psk).connect(&target).await.unwrap();
        let mut held = Self {
            connection,
            balancer,
            server: String::new(),
        };
        held.server = held.ask().await.unwrap();
        held
    }

    /// Asks for the name of the server.
    async fn ask(&mut self) -> io::Result<String> {
        let request = b"GET /verdict.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let stream = &mut self.connection.stream;
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            answer.push(stream.read_u8().await?);
        }
        let answer = String::from_utf8(answer).unwrap();
        let json = answer.rsplit("\r\n\r\n").next().unwrap();
        Ok(Answer::parse(json).server)
    }
}

/// Sends a request on each connection. Connections for which `cut` is true must have ended. Returns the
/// connections that are still open.
async fn check_open_connections(held: Vec<Held>, cut: impl Fn(&Held) -> bool) -> Vec<Held> {
    let mut left = Vec::new();
    for mut held in held {
        let expected = if cut(&held) {
            None
        } else {
            Some(held.server.clone())
        };
        assert_eq!(held.ask().await.ok(), expected, "{}", held.balancer);
        if expected.is_some() {
            left.push(held);
        }
    }
    left
}

/// An OpenSSL client, and the server that wrote the label in the client's session.
struct Labelled {
    session: PathBuf,
    version: &'static str,
    labelled_server: String,
}

impl Labelled {
    fn new(farm: &Farm, version: &'static str, name: usize, balancer: &Sessile) -> Self {
        let session = farm.folder().join(format!("labelled-{name}"));
        let (labelled_server, _) = visit(balancer.address(), version, &session);
        Self {
            session,
            version,
            labelled_server,
        }
    }

    /// Returns through each of these balancers, and must resume. The result is the servers that answered.
    fn return_through(&self, balancers: &[Sessile]) -> Vec<String> {
        let resumed = balancers.iter().map(|balancer| {
            let (server, verdict) = visit(balancer.address(), self.version, &self.session);
            assert!(verdict.starts_with("resumed/"), "{verdict} at {server}");
            server
        });
        resumed.collect()
    }

    /// Returns through each of these balancers, which all must lead to the server of the label.
    fn return_to_same_server(&self, balancers: &[Sessile]) {
        let all = vec![self.labelled_server.clone(); balancers.len()];
        assert_eq!(self.return_through(balancers), all, "{}", self.version);
    }

    /// Returns to the server of the label after that server's restart. A TLS 1.2 ticket still has its label. In
    /// TLS 1.3, each handshake gave a new ticket, so the label may have changed.
    fn return_after_restart(&mut self, balancers: &[Sessile]) {
        self.labelled_server = self.return_through(&balancers[..1]).remove(0);
        self.return_to_same_server(balancers);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn killing_a_server_affects_only_its_open_connections() {
    let farm = Farm::new("");
    let mut servers = Vec::from(farm.serve_three());
    export(&farm);
    let start = |servers: &[Server]| balance_labels::balancer(&farm, servers, BALANCE);
    let mut balancers = Vec::from([(); 3].map(|()| start(&servers)));
    let versions = ["-tls1_3", "-tls1_2"].into_iter().cycle().enumerate();
    let new = |(name, version)| Labelled::new(&farm, version, name, &balancers[0]);
    let mut clients: Vec<Labelled> = versions.take(6).map(new).collect();
    let mut held = Vec::new();
    for (at, balancer) in balancers.iter().enumerate() {
        for _ in NAMES {
            held.push(Held::open(at, balancer.address()).await);
        }
    }
    for at in 0..balancers.len() {
        drop(balancers.remove(at));
        held = check_open_connections(held, |held| held.balancer == at).await;
        clients
            .iter()
            .for_each(|it| it.return_to_same_server(&balancers));
        balancers.insert(at, start(&servers));
        clients
            .iter()
            .for_each(|it| it.return_to_same_server(&balancers));
        for _ in NAMES {
            held.push(Held::open(at, balancers[at].address()).await);
        }
    }
    for (at, name) in NAMES.into_iter().enumerate() {
        let port = servers[at].address().port();
        servers.remove(at).peer.kill();
        held = check_open_connections(held, |held| held.server == name).await;
        for client in &clients {
            if client.labelled_server == name {
                let elsewhere = client.return_through(&balancers);
                assert!(
                    !elsewhere.contains(&client.labelled_server),
                    "{elsewhere:?}"
                );
            } else {
                client.return_to_same_server(&balancers);
            }
        }
        servers.insert(at, farm.serve_again(name, port));
        for balancer in &balancers {
            balancer.await_server(name, |server| server["state"] == "up");
        }
        clients
            .iter_mut()
            .for_each(|it| it.return_after_restart(&balancers));
    }
    assert!(held.is_empty(), "each server was killed once");
}
