//! Clients return to another server each time and never need a second full handshake. The farm has
//! real servers, each with a copy of the key file. It has one Redis and no balancer.

mod attacks;
pub(crate) mod clients;
mod declined;
mod dump;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use sessile::farm::Authority;
use tempfile::TempDir;

use crate::peers::{Peer, eventually, run, set_clock};
use crate::store::setup::Redis;
use clients::{How, Returning, openssl};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sessile");

/// The settings in which a server differs from the other servers.
#[derive(Clone, Copy, Default)]
struct Setup<'a> {
    /// The server's clock as an argument of faketime. The default is the real clock.
    clock: Option<&'a str>,
    /// The key file. The default is the server's own copy.
    key: Option<&'a Path>,
    /// The store. The default is the farm's store.
    store: Option<&'a Redis>,
    /// Lines of `[[site]]`.
    site: &'a str,
}

impl<'a> Setup<'a> {
    fn at(clock: &'a str) -> Self {
        Self {
            clock: Some(clock),
            ..Self::default()
        }
    }
}

/// The parts that all servers of a farm share.
struct Farm {
    folder: TempDir,
    redis: Redis,
}

impl Farm {
    /// A farm whose first key is made with `--rotate` and `--max-lifetime`, by a command with this
    /// clock.
    fn new(rotate: &str, lifetime: &str, clock: Option<&str>) -> Self {
        let farm = Self {
            folder: tempfile::tempdir().unwrap(),
            redis: Redis::start(),
        };
        let mut command = program(clock);
        command.args(["key", "new", "--scope", "life", "--file"]);
        command.arg(farm.path("farm.key"));
        command.args(["--rotate", rotate, "--max-lifetime", lifetime]);
        assert!(command.output().unwrap().status.success());
        farm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The key file of a server, which is a copy of the farm's first file. The first call makes the
    /// copy.
    fn key(&self, server: &str) -> PathBuf {
        let file = self.path(&format!("{server}.key"));
        if !file.exists() {
            fs::copy(self.path("farm.key"), &file).unwrap();
        }
        file
    }

    fn serve(&self, name: &str) -> Peer {
        self.serve_as(name, &Setup::default())
    }

    fn serve_as(&self, name: &str, setup: &Setup<'_>) -> Peer {
        Peer::start("sessile", |port| self.command(name, port, setup))
    }

    fn serve_three(&self) -> [Peer; 3] {
        ["web1", "web2", "web3"].map(|name| self.serve(name))
    }

    fn command(&self, name: &str, port: u16, setup: &Setup<'_>) -> Command {
        let store = setup.store.unwrap_or(&self.redis).url();
        let key = setup.key.map_or_else(|| self.key(name), Path::to_owned);
        let site = setup.site;
        let authority = Authority::open(self.folder.path()).unwrap();
        let config = self.path(&format!("{name}.toml"));
        let text = format!(
            "[server]\nname = \"{name}\"\nstate-dir = \"state-{name}\"\nworkers = 1\n\
             [session]\nstore = \"{store}\"\nstore-timeout = \"3s\"\n\
             [key]\nfile = {key:?}\n[log]\naccess = \"off\"\n\
             [[listener]]\naddress = \"127.0.0.1:{port}\"\n\
             [[site]]\n{site}\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
             [[site.route]]\npath = \"/\"\nverdict = true\n",
            authority.certificate.chain, authority.certificate.key,
        );
        fs::write(&config, text).unwrap();
        let mut command = program(setup.clock);
        command.arg("serve").arg("--config").arg(config);
        command
    }

    fn root(&self) -> PathBuf {
        Authority::open(self.folder.path()).unwrap().root
    }

    /// Clients of every kind, with sessions from one server.
    async fn clients_of(&self, server: &Peer) -> Vec<Returning> {
        let name = server.address().port().to_string();
        let mut clients = Returning::of_every_kind(&self.root(), self.folder.path(), &name);
        for client in &mut clients {
            client.arrive(server.address()).await;
        }
        clients
    }
}

/// The sessile program with a faketime clock. Only the wall clock changes.
fn program(clock: Option<&str>) -> Command {
    let mut command = Command::new(PROGRAM);
    if let Some(clock) = clock {
        set_clock(&mut command, clock);
    }
    command
}

/// The ticket epoch in a key file.
fn stands_at(file: &Path) -> u64 {
    let mut command = program(None);
    command.args(["key", "show", "--json", "--file"]).arg(file);
    let shown = command.output().unwrap().stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    shown["generations"][0]["ticket"]["stands_at"]
        .as_u64()
        .unwrap()
}

fn unix_secs() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// Makes all clients return `times` times, each time to another server. Each session must resume.
async fn return_to_other_servers(clients: &mut [Returning], servers: &[&Peer], times: usize) {
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address()).collect();
    for client in clients {
        for _ in 0..times {
            client.return_to_other_servers(&addresses).await;
        }
    }
}

/// The verdicts on one session that passes through all servers.
fn travel(farm: &Farm, how: How, servers: &[&Peer]) -> Vec<String> {
    let ports = servers.iter().map(|server| server.address().port());
    let name: Vec<String> = ports.map(|port| port.to_string()).collect();
    let session = farm.path(&format!("{how:?}-{}.pem", name.join("-")));
    let visit = |server: &&Peer| openssl(how, &farm.root(), &session, server.address(), None);
    servers.iter().map(visit).collect()
}

/// Stops a server with SIGTERM, as systemd does, and waits for the drain.
fn drain(server: Peer) {
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
}

#[tokio::test(flavor = "current_thread")]
async fn all_clients_resume_at_every_server_before_and_after_a_reload() {
    let farm = Farm::new("1h", "10h", None);
    let servers = farm.serve_three();
    let [one, two, three] = &servers;
    let mut clients = farm.clients_of(one).await;
    return_to_other_servers(&mut clients, &[one, two, three], 6).await;
    for server in &servers {
        server.hang_up();
        eventually("it reloads", || {
            server.said().contains("certificates reloaded")
        });
    }
    return_to_other_servers(&mut clients, &[one, two, three], 3).await;
}

#[tokio::test(flavor = "current_thread")]
async fn sessions_survive_the_restart_and_the_crash_of_their_server() {
    let farm = Farm::new("1h", "10h", None);
    let [one, two, three] = farm.serve_three();
    // These clients have visited only the server that stops.
    let mut drained = farm.clients_of(&one).await;
    drain(one);
    return_to_other_servers(&mut drained, &[&two, &three], 2).await;
    let one = farm.serve("web1");
    return_to_other_servers(&mut drained, &[&one, &two, &three], 3).await;

    let mut killed = farm.clients_of(&two).await;
    two.kill();
    return_to_other_servers(&mut killed, &[&one, &three], 2).await;
    let two = farm.serve("web2");
    return_to_other_servers(&mut killed, &[&one, &two, &three], 3).await;

    // Kill a server, and let its clients return to this server first.
    let mut own = farm.clients_of(&three).await;
    three.kill();
    let three = farm.serve("web3");
    return_to_other_servers(&mut own, &[&three, &one], 2).await;
}

#[tokio::test(flavor = "current_thread")]
async fn all_clients_resume_after_a_server_joins_or_leaves() {
    let farm = Farm::new("1h", "10h", None);
    let [one, two, three] = farm.serve_three();
    let mut before = farm.clients_of(&one).await;
    let joined = farm.serve("web4");
    return_to_other_servers(&mut before, &[&joined, &two], 2).await;
    let mut of_joined = farm.clients_of(&joined).await;
    drain(one);
    return_to_other_servers(&mut before, &[&two, &three, &joined], 3).await;
    return_to_other_servers(&mut of_joined, &[&two, &three, &joined], 3).await;
    joined.kill();
    return_to_other_servers(&mut of_joined, &[&two, &three], 2).await;
}

/// The certificate of a server, as PEM.
fn certificate_of(server: &Peer) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-servername", "localhost", "-connect"]);
    command.arg(server.address().to_string());
    let said = run("openssl", &mut command, "").succeeded().stdout;
    let end = "-----END CERTIFICATE-----\n";
    let begin = said.find("-----BEGIN CERTIFICATE-----").unwrap();
    said[begin..said.find(end).unwrap() + end.len()].to_owned()
}

#[tokio::test(flavor = "current_thread")]
async fn a_renewed_certificate_causes_no_full_handshake() {
    let farm = Farm::new("1h", "10h", None);
    let servers = farm.serve_three();
    let [one, two, three] = &servers;
    let mut clients = farm.clients_of(one).await;
    let mut patient = farm.clients_of(two).await;
    let old = certificate_of(one);
    // The renewed certificate has another key, too.
    for file in ["server.pem", "server.key"] {
        fs::remove_file(farm.path(file)).unwrap();
    }
    let certificate = Authority::open(farm.folder.path()).unwrap().certificate;
    let renewed = fs::read_to_string(certificate.chain).unwrap();
    assert_ne!(old, renewed);
    // Renew one server after another, and let all clients return in between.
    for server in &servers {
        server.hang_up();
        eventually("it has it", || certificate_of(server) == renewed);
        return_to_other_servers(&mut clients, &[one, two, three], 2).await;
    }
    return_to_other_servers(&mut patient, &[one, three], 2).await;
}

#[tokio::test(flavor = "current_thread")]
async fn twelve_key_rotations_cause_no_full_handshake() {
    const ROTATIONS: u64 = 12;
    // The key is older than its maximum lifetime, so that the files drop keys in each epoch.
    let farm = Farm::new("1s", "2m", Some("-300s"));
    let made = stands_at(&farm.key("web1"));
    let servers = farm.serve_three();
    let [one, two, three] = &servers;
    let mut regulars = farm.clients_of(one).await;
    let mut patient = farm.clients_of(two).await;
    let files = ["web1", "web2", "web3"].map(|name| farm.key(name));
    let stand = || files.each_ref().map(|file| stands_at(file));
    eventually("the files move", || stand().iter().all(|at| *at > made));
    let (first, mut epoch) = (stand(), unix_secs());
    for _ in 0..=ROTATIONS {
        return_to_other_servers(&mut regulars, &[one, two, three], 1).await;
        eventually("the next epoch", || unix_secs() > epoch);
        epoch = unix_secs();
    }
    eventually("each file has left so many epochs behind", || {
        let mut moved = stand().into_iter().zip(first);
        moved.all(|(at, first)| at >= first + ROTATIONS)
    });
    return_to_other_servers(&mut regulars, &[one, two, three], 3).await;
    return_to_other_servers(&mut patient, &[one, three], 2).await;
}

#[tokio::test(flavor = "current_thread")]
async fn clocks_one_epoch_apart_cause_no_full_handshake() {
    let farm = Farm::new("1h", "10h", None);
    let servers = [
        farm.serve("web1"),
        farm.serve_as("web2", &Setup::at("-59m")),
        farm.serve_as("web3", &Setup::at("+59m")),
    ];
    let [one, two, three] = &servers;
    for maker in &servers {
        let mut clients = farm.clients_of(maker).await;
        return_to_other_servers(&mut clients, &[one, two, three], 4).await;
    }
}
