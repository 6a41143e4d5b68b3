//! A store that sends endless replies takes little memory of a server, and costs full handshakes only.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sessile::client::Mechanism;

use super::secured;
use super::setup::{Farm, REDIS, Redis, Server, hop, hop_until};
use crate::peers::{Certificates, Peer, eventually};

/// Most bytes that the attacker sends on a connection.
const MAX_FLOOD: usize = 256 << 20;

/// Most memory that an attack may take.
const MAX_MEMORY: usize = 32 << 20;

/// Verdicts at another server while the store attacks or has just recovered.
const FAILURE_VERDICTS: [&str; 3] = ["full/store-timeout", "full/store-down", "full/unknown"];

/// The log line about a reply that exceeds a limit.
const CLOSED: &str = "closed a connection to the session store because of its reply";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// A line without an end.
    Line,
    /// A string of a gigabyte.
    Bulk,
    /// An array with a billion elements.
    Array,
    /// Arrays in arrays.
    Nesting,
    /// A line without an end that comes in small pieces.
    Trickle,
}

impl Attack {
    /// The limit that this attack exceeds, as the log names it.
    fn limit(self) -> &'static str {
        match self {
            Self::Line | Self::Trickle => "a line of a reply is longer than 4096 bytes",
            Self::Bulk => "a string of a reply is longer than 131072 bytes",
            Self::Array => "a reply has more than 131072 elements",
            Self::Nesting => "a reply is nested more than 8 levels deep",
        }
    }

    /// Sends an endless reply until the client closes the connection.
    fn flood(self, to: &mut impl Write) -> io::Result<()> {
        let (begin, more) = match self {
            Self::Line | Self::Trickle => ("+", "x"),
            Self::Bulk => ("$999999999\r\n", "x"),
            Self::Array => ("*1000000000\r\n", "+\r\n"),
            Self::Nesting => ("", "*1\r\n"),
        };
        to.write_all(begin.as_bytes())?;
        let (size, pause) = match self {
            Self::Trickle => (16, Duration::from_millis(1)),
            _ => (64 << 10, Duration::ZERO),
        };
        let chunk = more.repeat(size / more.len());
        for _ in 0..MAX_FLOOD / chunk.len() {
            to.write_all(chunk.as_bytes())?;
            to.flush()?;
            thread::sleep(pause);
        }
        Ok(())
    }
}

/// A server that answers as an empty Redis, a sentinel or a cluster does, until it attacks.
struct Attacker {
    shared: Arc<Shared>,
    accepts: JoinHandle<()>,
}

struct Shared {
    port: u16,
    tls: Option<Arc<ServerConfig>>,
    /// The attack, and the command after which it begins. An empty name stands for every command.
    attack: Mutex<Option<(Attack, &'static str)>>,
    /// The port of the master that a sentinel names, and of the cluster's only node.
    master: AtomicU16,
    /// The number of attacks that the client ended.
    ended: AtomicUsize,
    is_stopped: AtomicBool,
}

impl Attacker {
    fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            port,
            tls,
            attack: Mutex::new(None),
            master: AtomicU16::new(port),
            ended: AtomicUsize::new(0),
            is_stopped: AtomicBool::new(false),
        });
        let state = Arc::clone(&shared);
        let accepts = thread::spawn(move || {
            for client in listener.incoming() {
                if state.is_stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (client, state) = (client.unwrap(), Arc::clone(&state));
                thread::spawn(move || state.serve(client));
            }
        });
        Self { shared, accepts }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.shared.port)
    }

    fn attack(&self, attack: Attack, after: &'static str) {
        *self.shared.attack.lock().unwrap() = Some((attack, after));
    }

    fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// Ends the attack and names a Redis as the master. Then the servers must recover.
    async fn name_master_and_recover(&self, victims: &Victims) {
        let redis = Redis::start();
        let port = redis.address().port();
        self.shared.master.store(port, Ordering::SeqCst);
        *self.shared.attack.lock().unwrap() = None;
        victims.recover().await;
    }

    /// Stops listening and returns the port.
    fn stop(self) -> u16 {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.shared.port)).unwrap();
        self.accepts.join().unwrap();
        self.shared.port
    }
}

impl Shared {
    fn serve(&self, client: TcpStream) {
        client.set_nodelay(true).unwrap();
        // Every error means that the client is gone.
        let _ = match &self.tls {
            Some(config) => {
                let tls = ServerConnection::new(Arc::clone(config)).unwrap();
                self.answer_all(BufReader::new(StreamOwned::new(tls, client)))
            }
            None => self.answer_all(BufReader::new(client)),
        };
    }

    fn answer_all<S: Read + Write>(&self, mut client: BufReader<S>) -> io::Result<()> {
        loop {
            let command = read_command(&mut client)?;
            let attack = *self.attack.lock().unwrap();
            if let Some((attack, after)) = attack
                && (after.is_empty() || command[0] == after)
            {
                if attack.flood(client.get_mut()).is_err() {
                    self.ended.fetch_add(1, Ordering::SeqCst);
                }
                return Ok(());
            }
            let answer = self.answer(&command);
            client.get_mut().write_all(answer.as_bytes())?;
            client.get_mut().flush()?;
        }
    }

    fn answer(&self, command: &[String]) -> String {
        let port = self.master.load(Ordering::SeqCst);
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        match command[0].as_str() {
            "GET" | "MGET" | "SET" if port != self.port => {
                format!("-MOVED 0 127.0.0.1:{port}\r\n")
            }
            "GET" => "$-1\r\n".to_owned(),
            "MGET" => format!("*{}\r\n", command.len() - 1) + &"$-1\r\n".repeat(command.len() - 1),
            "PING" => "+PONG\r\n".to_owned(),
            "ROLE" => format!("*2\r\n{}*1\r\n{}", bulk("sentinel"), bulk("mymaster")),
            "SENTINEL" => {
                let master = [
                    "name",
                    "mymaster",
                    "ip",
                    "127.0.0.1",
                    "flags",
                    "master",
                    "port",
                ];
                let fields: String = master.into_iter().map(bulk).collect();
                format!("*1\r\n*8\r\n{fields}{}", bulk(&port.to_string()))
            }
            "CLUSTER" => {
                let host = bulk("127.0.0.1");
                format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n{host}:{port}\r\n")
            }
            _ => "+OK\r\n".to_owned(),
        }
    }
}

/// Reads a command and its arguments.
fn read_command(client: &mut impl BufRead) -> io::Result<Vec<String>> {
    let count = read_length(client, '*')?;
    let words = (0..count).map(|_| {
        let mut word = vec![0; read_length(client, '$')? + 2];
        client.read_exact(&mut word)?;
        word.truncate(word.len() - 2);
        Ok(String::from_utf8_lossy(&word).into_owned())
    });
    words.collect()
}

fn read_length(client: &mut impl BufRead, kind: char) -> io::Result<usize> {
    let mut line = String::new();
    client.read_line(&mut line)?;
    let length = line.trim_end().strip_prefix(kind);
    length
        .and_then(|length| length.parse().ok())
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The most memory that a process had, in bytes.
fn peak(process: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

/// Two servers with the same store, and their memory at the start.
struct Victims {
    one: Server,
    other: Server,
    before: usize,
}

impl Victims {
    fn start(store: &str) -> Self {
        // The servers give up a silent connection after five seconds. The limits end it earlier.
        let farm = Farm::new(&format!("store = \"{store}\"\nstore-timeout = \"1s\"\n"));
        let (one, other) = (farm.serve("web1"), farm.serve("web2"));
        let before = peak(other.peer.id());
        Self { one, other, before }
    }

    async fn hop(&self) -> String {
        hop(Mechanism::SessionId, &self.one, &self.other).await
    }

    /// Waits until the servers have given up many connections, and checks what that took.
    async fn endure(&self, attacker: &Attacker, attack: Attack) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while attacker.ended() < 8 {
            let said = || self.other.peer.said();
            assert!(Instant::now() < deadline, "{} {}", attacker.ended(), said());
            let verdict = self.hop().await;
            assert!(FAILURE_VERDICTS.contains(&verdict.as_str()), "{verdict}");
        }
        let more = peak(self.other.peer.id()) - self.before;
        assert!(more < MAX_MEMORY, "{attack:?}: {more} bytes");
        eventually("the attack is logged", || {
            self.other.peer.said().contains(CLOSED)
        });
        let said = self.other.peer.said();
        let lines: Vec<_> = said.lines().filter(|line| line.contains(CLOSED)).collect();
        assert_eq!(lines.len(), 1, "{said}");
        assert!(lines[0].contains(attack.limit()), "{said}");
        assert!(lines[0].contains(&attacker.address()), "{said}");
    }

    async fn recover(&self) {
        hop_until(
            "resumed/session-id",
            &FAILURE_VERDICTS,
            &self.one,
            &self.other,
        )
        .await;
        eventually("every worker thread is connected to the store", || {
            self.other.metrics().sum("sessile_store_up", &[]) == 1
        });
    }
}

async fn a_single_server_attacks(attack: Attack) {
    let attacker = Attacker::start(None);
    let victims = Victims::start(&format!("redis://{}", attacker.address()));
    assert_eq!(victims.hop().await, "full/unknown");
    attacker.attack(attack, "");
    victims.endure(&attacker, attack).await;
    let _redis = Redis::start_again(attacker.stop());
    victims.recover().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_line_without_an_end_takes_little_memory() {
    a_single_server_attacks(Attack::Line).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_string_of_a_gigabyte_takes_little_memory() {
    a_single_server_attacks(Attack::Bulk).await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_array_of_a_billion_elements_takes_little_memory() {
    a_single_server_attacks(Attack::Array).await;
}

#[tokio::test(flavor = "current_thread")]
async fn arrays_in_arrays_take_little_memory() {
    a_single_server_attacks(Attack::Nesting).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_line_without_an_end_that_trickles_ends_the_connection() {
    a_single_server_attacks(Attack::Trickle).await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_endless_reply_over_tls_takes_little_memory() {
    let certificates = Certificates::new();
    let attacker = Attacker::start(Some(tls(&certificates)));
    let shown = |path: &Path| path.display().to_string();
    let Certificates { ca, chain, key, .. } = &certificates;
    let (ca, chain, key) = (shown(ca), shown(chain), shown(key));
    let address = attacker.address();
    let victims = Victims::start(&format!(
        "rediss://{address}?ca={ca}&cert={chain}&key={key}"
    ));
    assert_eq!(victims.hop().await, "full/unknown");
    attacker.attack(Attack::Bulk, "");
    victims.endure(&attacker, Attack::Bulk).await;
    let port = attacker.stop();
    let _redis = Peer::start_on(port, REDIS, secured::command(&certificates, port)).unwrap();
    victims.recover().await;
}

fn tls(certificates: &Certificates) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&certificates.chain).unwrap();
    let chain = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(&certificates.key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

#[tokio::test(flavor = "current_thread")]
async fn an_endless_reply_of_a_sentinel_takes_little_memory() {
    let attacker = Attacker::start(None);
    attacker.attack(Attack::Bulk, "SENTINEL");
    let store = format!("redis+sentinel://{}/mymaster", attacker.address());
    let victims = Victims::start(&store);
    victims.endure(&attacker, Attack::Bulk).await;
    attacker.name_master_and_recover(&victims).await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_endless_list_of_a_clusters_slots_takes_little_memory() {
    let attacker = Attacker::start(None);
    attacker.attack(Attack::Array, "CLUSTER");
    let victims = Victims::start(&format!("redis+cluster://{}", attacker.address()));
    victims.endure(&attacker, Attack::Array).await;
    attacker.name_master_and_recover(&victims).await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_endless_reply_of_a_clusters_node_takes_little_memory() {
    let attacker = Attacker::start(None);
    let victims = Victims::start(&format!("redis+cluster://{}", attacker.address()));
    assert_eq!(victims.hop().await, "full/unknown");
    attacker.attack(Attack::Array, "SET");
    victims.endure(&attacker, Attack::Array).await;
    attacker.name_master_and_recover(&victims).await;
}
