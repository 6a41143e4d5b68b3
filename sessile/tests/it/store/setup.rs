//! Redis servers, sessile servers that share a Redis, and clients that read their verdicts.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::{Duration, Instant};

use sessile::client::{Client, Mechanism, Target, Trust};
use sessile::farm::Authority;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peers::{Metrics, Peer, eventually, free_port, set_clock, set_clock_by};

/// The Debian package of `redis-server`.
pub(crate) const REDIS: &str = "redis-server";

/// A client's time limit for the connection, and also for the handshake.
const PATIENCE: Duration = Duration::from_secs(5);

/// Deadline for a recovery without an operator.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(30);

/// A Redis process in a temporary working folder.
pub(crate) struct Redis {
    pub(crate) peer: Peer,
    port: u16,
    /// The working folder. A replica writes a dump of its master there. Another Redis in the same folder would
    /// load this dump.
    _folder: TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let peer = Peer::start(REDIS, |port| command(port, folder.path(), arguments));
        Self {
            port: peer.address().port(),
            peer,
            _folder: folder,
        }
    }

    /// Kills this Redis and starts an empty one on the same port.
    pub(crate) fn restart(self) -> Self {
        let port = self.stop();
        Self::start_again(port)
    }

    /// Kills this Redis and returns its port, for [`Self::start_again`].
    pub(crate) fn stop(self) -> u16 {
        self.peer.kill();
        self.port
    }

    pub(crate) fn start_again(port: u16) -> Self {
        Self::start_again_with(port, &[])
    }

    pub(crate) fn start_again_with(port: u16, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let command = command(port, folder.path(), arguments);
        Self {
            peer: Peer::start_on(port, REDIS, command).unwrap(),
            port,
            _folder: folder,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.peer.address()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub(crate) fn connect(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_connection().unwrap()
    }

    /// All keys and their values.
    pub(crate) fn entries(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut connection = self.connect();
        let names: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        let names = names.into_iter();
        names
            .map(|name| {
                let value = redis::cmd("GET").arg(&name).query(&mut connection);
                (name, value.unwrap())
            })
            .collect()
    }

    /// The values with which servers claim their numbers.
    pub(crate) fn claims(&self) -> Vec<Vec<u8>> {
        let is_claim = |name: &[u8]| name.windows(8).any(|part| part == b":server:");
        let entries = self.entries().into_iter();
        let claims = entries.filter(|(name, _)| is_claim(name));
        claims.map(|(_, value)| value).collect()
    }
}

fn command(port: u16, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.args(["--port", &port.to_string()]).args(arguments);
    command.current_dir(folder);
    command
}

/// A folder with a certificate and a farm key that all servers of the farm share.
pub(crate) struct Farm {
    folder: Rc<TempDir>,
    /// The TOML lines of `[session]` and of all later sections.
    settings: String,
    /// `server.number`, or `None` if the servers derive their numbers from their names.
    number: Option<u32>,
    /// A PEM file that replaces the certificate authorities of the system.
    authorities: Option<PathBuf>,
}

impl Farm {
    pub(crate) fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Authority::open(folder.path()).unwrap();
        Self {
            folder: Rc::new(folder),
            settings: settings.to_owned(),
            number: None,
            authorities: None,
        }
    }

    /// A farm with a shared store. The timeout is long enough for a machine under load.
    pub(crate) fn sharing(store: &str, settings: &str) -> Self {
        Self::new(&format!(
            "store = \"{store}\"\nstore-timeout = \"3s\"\n{settings}"
        ))
    }

    /// The same folder with other settings for the servers that start next.
    pub(crate) fn with(&self, settings: &str) -> Self {
        Self {
            folder: Rc::clone(&self.folder),
            settings: settings.to_owned(),
            number: self.number,
            authorities: self.authorities.clone(),
        }
    }

    /// The same farm, but `authorities` is the file with the system's certificate authorities.
    pub(crate) fn with_system_authorities(&self, authorities: &Path) -> Self {
        Self {
            authorities: Some(authorities.to_owned()),
            ..self.with(&self.settings)
        }
    }

    /// The same farm with `server.number` set for all its servers.
    pub(crate) fn numbered(&self, number: u32) -> Self {
        Self {
            number: Some(number),
            ..self.with(&self.settings)
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `sessile serve`.
    pub(crate) fn serve(&self, name: &str) -> Server {
        self.serve_at(name, None)
    }

    /// Starts a server whose wall clock has the offset `clock`, such as `+30s`.
    pub(crate) fn serve_at(&self, name: &str, clock: Option<&str>) -> Server {
        let admin = free_port();
        let peer = Peer::start("sessile", |port| {
            let mut command = self.command(name, port, admin);
            if let Some(clock) = clock {
                set_clock(&mut command, clock);
            }
            command
        });
        Server { peer, admin }
    }

    /// Starts a server that reads its wall clock from the file `clock`.
    pub(crate) fn serve_by(&self, name: &str, clock: &Path) -> Server {
        let admin = free_port();
        let peer = Peer::start("sessile", |port| {
            let mut command = self.command(name, port, admin);
            set_clock_by(&mut command, clock);
            command
        });
        Server { peer, admin }
    }

    /// Starts a server on the port of an earlier process.
    pub(crate) fn serve_again(&self, name: &str, port: u16) -> Server {
        let admin = free_port();
        let command = self.command(name, port, admin);
        let peer = Peer::start_on(port, "sessile", command).unwrap();
        Server { peer, admin }
    }

    /// Changes the settings of the servers that start next.
    pub(crate) fn set(&mut self, settings: &str) {
        settings.clone_into(&mut self.settings);
    }

    /// Writes the settings of this farm for the server `name`, and reloads the running process.
    pub(crate) fn reload(&self, name: &str, server: &Server) {
        // `command` writes the configuration file.
        let _ = self.command(name, server.address().port(), server.admin);
        server.peer.hang_up();
        eventually("the server reloads", || {
            server
                .peer
                .said()
                .contains("configuration and certificates reloaded")
        });
    }

    pub(crate) fn serve_three(&self) -> [Server; 3] {
        ["web1", "web2", "web3"].map(|name| self.serve(name))
    }

    /// Runs a `sessile serve` that fails to start, and returns its output.
    pub(crate) fn run(&self, name: &str, port: u16) -> Output {
        self.command(name, port, 0).output().unwrap()
    }

    fn command(&self, name: &str, port: u16, admin: u16) -> Command {
        let authority = Authority::open(self.folder.path()).unwrap();
        let file = self.folder.path().join(format!("{name}.toml"));
        let number = self.number.map(|number| format!("number = {number}\n"));
        let number = number.unwrap_or_default();
        let text = format!(
            "[server]\nname = \"{name}\"\n{number}state-dir = \"state\"\nworkers = 2\n\
             [key]\nfile = \"farm.key\"\n\
             [log]\naccess = \"off\"\nlevel = \"debug\"\n\
             [admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [[listener]]\naddress = \"127.0.0.1:{port}\"\n\
             [[site]]\ncertificates = [{{ chain = '{}', key = '{}' }}]\n\
             [[site.route]]\npath = \"/\"\nverdict = true\n\
             [session]\n{}",
            authority.certificate.chain.display(),
            authority.certificate.key.display(),
            self.settings,
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
        command.arg("serve").arg("--config").arg(file);
        if let Some(authorities) = &self.authorities {
            command.env("SSL_CERT_FILE", authorities);
            command.env_remove("SSL_CERT_DIR");
        }
        command
    }

    /// The certificate of the farm's authority.
    pub(crate) fn root(&self) -> PathBuf {
        Authority::open(self.folder.path()).unwrap().root
    }
}

/// A `sessile serve` process.
pub(crate) struct Server {
    pub(crate) peer: Peer,
    admin: u16,
}

impl Server {
    pub(crate) fn address(&self) -> SocketAddr {
        self.peer.address()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::fetch(SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin)))
    }

    /// The value of the metric with the name and labels `line`.
    pub(crate) async fn metric(&self, line: &str) -> u64 {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin));
        let mut stream = tokio::net::TcpStream::connect(admin).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let found = answer.lines().find_map(|l| l.strip_prefix(line));
        let value = found.unwrap_or_else(|| panic!("no {line} in {answer}"));
        value.trim().parse().unwrap()
    }

    /// Drains the server and waits until its process ends.
    pub(crate) fn drain(self) {
        self.peer.signal(rustix::process::Signal::TERM);
        assert!(self.peer.wait().success());
    }
}

pub(crate) fn client(mechanism: Mechanism) -> Client {
    Client::new(mechanism, &Trust::Insecure, PATIENCE).unwrap()
}

/// Connects, asks for the verdict and closes the connection cleanly. Panics if the connection fails.
pub(crate) async fn verdict(client: &Client, address: SocketAddr) -> String {
    try_verdict(client, address).await.unwrap()
}

/// Like [`verdict`], but returns an error if the connection fails.
pub(crate) async fn try_verdict(
    client: &Client,
    address: SocketAddr,
) -> Result<String, Box<dyn std::error::Error>> {
    let target = Target::new(address, "localhost")?;
    let mut connection = client.connect(&target).await?;
    let stream = &mut connection.stream;
    let request = b"HEAD / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("sessile-verdict: "));
    let verdict = line.ok_or("no verdict")?.to_owned();
    connection.close(Duration::from_secs(5)).await;
    Ok(verdict)
}

/// Returns the verdict at server `to` for a new client with a session from server `from`.
pub(crate) async fn hop(mechanism: Mechanism, from: &Server, to: &Server) -> String {
    let client = client(mechanism);
    let first = verdict(&client, from.address()).await;
    assert_eq!(first, "full/nothing-offered");
    verdict(&client, to.address()).await
}

/// Repeats [`hop`] until the verdict is `expected`. Panics at a verdict that is not in `others`.
pub(crate) async fn hop_until(expected: &str, others: &[&str], from: &Server, to: &Server) {
    let deadline = Instant::now() + RECOVERY_DEADLINE;
    loop {
        let verdict = hop(Mechanism::SessionId, from, to).await;
        if verdict == expected {
            return;
        }
        assert!(others.contains(&verdict.as_str()), "{verdict}");
        let said = || from.peer.said();
        assert!(
            Instant::now() < deadline,
            "still {verdict}, not {expected}: {}",
            said()
        );
    }
}
