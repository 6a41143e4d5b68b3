//! Tools for tests against real programs: certificates, free ports, and peers with a configuration.
//! Peers stop with their test.

mod browser;
mod dns;
mod faulty;
pub(crate) mod mail;
mod metrics;
mod proxy;
mod run;
mod running;
mod schema;
mod web;

pub(crate) use browser::Browser;
pub(crate) use dns::Dns;
pub(crate) use faulty::{By, End, Fault, Faulty, ticketer};
pub(crate) use mail::smtp_server;
pub(crate) use metrics::Metrics;
pub(crate) use proxy::{Cut, Proxy, record};
pub(crate) use run::{Answer, Ran, run};
pub(crate) use running::{Farm, NO_FOLDER, Sessile, inheriting};
pub(crate) use schema::assert_follows_schema;
pub(crate) use web::{Resumption, Web};

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::Wrapping;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// Limit of the time until a peer has started, on a busy machine.
const START: Duration = Duration::from_secs(30);

/// The name in [`Certificates`], besides 127.0.0.1.
pub(crate) const NAME: &str = "farm.test";

/// A CA and a server certificate for [`NAME`] and 127.0.0.1, as PEM files in a temporary folder.
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    folder: TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, pem: String| {
            let path = folder.path().join(name);
            fs::write(&path, pem).expect("a file in the temporary folder");
            path
        };

        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("no names");
        // The CA needs another name than the server. If the names are equal, some clients take the certificate
        // for self-signed.
        ca.distinguished_name
            .push(DnType::CommonName, "test authority");
        ca.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
        let issuer = Issuer::new(ca, ca_key);

        let key = KeyPair::generate().expect("a key");
        let names = vec![NAME.to_owned(), Ipv4Addr::LOCALHOST.to_string()];
        let mut server = CertificateParams::new(names).expect("valid names");
        // If a certificate has the name of its issuer, OpenSSL takes the certificate for self-signed.
        let names = &mut server.distinguished_name;
        names.push(DnType::CommonName, NAME);
        server.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = server.signed_by(&key, &issuer).expect("a certificate");

        Self {
            ca: write("ca.pem", ca_certificate.pem()),
            chain: write("chain.pem", certificate.pem()),
            key: write("key.pem", key.serialize_pem()),
            folder,
        }
    }

    /// The directives that name the certificate and its key.
    pub(crate) fn nginx_directives(&self) -> String {
        let (chain, key) = (self.chain.display(), self.key.display());
        format!("ssl_certificate {chain}; ssl_certificate_key {key};")
    }

    /// The temporary folder, also for other files of the test.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The contents of a key file with keys for AES-256. The key with the number 0 consists of zeros.
pub(crate) fn ticket_key(number: u8) -> [u8; 80] {
    let mut bytes = [0; 80];
    if number > 0 {
        // The key must have no pattern that the probe recognises.
        let mut next = Wrapping(u32::from(number));
        for byte in &mut bytes {
            next = next * Wrapping(1_664_525) + Wrapping(1_013_904_223);
            *byte = next.0.to_be_bytes()[0];
        }
    }
    bytes
}

/// A free port on 127.0.0.1 that no earlier call has returned.
///
/// Use this for programs that cannot choose a port. Another program may take the port, so [`Peer::start`] tries
/// again. Each test needs its own ports: sessile sets SO_REUSEPORT, so two servers could share a port
/// unnoticed.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        if GIVEN.lock().expect("no panic inside").insert(port) {
            return port;
        }
    }
}

/// A running program. Killed when dropped.
pub(crate) struct Peer {
    child: Child,
    address: SocketAddr,
    /// The standard error stream goes to a file, because a full pipe would block the program.
    stderr: File,
}

impl Peer {
    /// Starts a program that listens on the given port, and waits until it listens.
    ///
    /// # Panics
    ///
    /// With the name of `package` if the program is missing. With the program's output if the program does not
    /// start.
    pub(crate) fn start(package: &str, command: impl Fn(u16) -> Command) -> Self {
        const TRIES: usize = 3;
        let mut said = String::new();
        for _ in 0..TRIES {
            let port = free_port();
            match Self::start_on(port, package, command(port)) {
                Ok(peer) => return peer,
                Err(error) => said = error,
            }
        }
        panic!("{package} does not start: {said}");
    }

    /// Starts a program that listens on `port`, and waits until it listens. The error is the program's output.
    pub(crate) fn start_on(port: u16, package: &str, mut command: Command) -> Result<Self, String> {
        let stderr = tempfile::tempfile().expect("a temporary file");
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.try_clone().expect("a second handle"));
        let child = quiet
            .spawn()
            .unwrap_or_else(|error| run::missing(package, &command, &error));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut peer = Self {
            child,
            address,
            stderr,
        };
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = peer.child.try_wait().expect("a child's status") {
                return Err(peer.last_words(status));
            }
            // The process is alive, so an answer on the port comes from this process.
            if TcpStream::connect(address).is_ok() {
                return Ok(peer);
            }
            if Instant::now() > deadline {
                return Err(format!("nothing listens on {address} after {START:?}"));
            }
            // Poll the port, because programs have no common way to report that they listen.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn last_words(&mut self, status: ExitStatus) -> String {
        let mut said = String::new();
        // Show as much of the output as can be read.
        let _ = self.stderr.rewind();
        let _ = self.stderr.read_to_string(&mut said);
        format!("{status}: {said}")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok();
        let pid = id.and_then(Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process id"), signal).expect("it runs");
    }

    /// Waits until the program ends by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().expect("it was started")
    }

    /// The standard error output so far.
    pub(crate) fn said(&self) -> String {
        let mut said = vec![0; 1 << 20];
        // Read at a position, because reading a stream would move the position where the program writes.
        let read = self.stderr.read_at(&mut said, 0).expect("a file");
        String::from_utf8_lossy(&said[..read]).into_owned()
    }

    /// Sends SIGHUP once the program handles the signal.
    pub(crate) fn hang_up(&self) {
        hang_up(self.child.id());
    }

    /// Kills the program, which closes its connections.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was started");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends SIGHUP to a process once the process handles the signal.
pub(crate) fn hang_up(id: u32) {
    let catches = || {
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .expect("a mask of signals");
        mask & 1 == 1
    };
    eventually("it catches SIGHUP", catches);
    let id = Pid::from_raw(id.cast_signed()).expect("a process");
    rustix::process::kill_process(id, Signal::HUP).expect("it runs");
}

/// Waits until a condition holds, for as long as a peer may take to start.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + START;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {START:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Gives a program a wall clock in the format of `faketime -f`. The program's monotonic clock does not
/// change.
///
/// The program does not run below faketime, because faketime would not pass a kill on to the program.
pub(crate) fn set_clock(command: &mut Command, clock: &str) {
    static LIBRARY: OnceLock<String> = OnceLock::new();
    command.env("LD_PRELOAD", LIBRARY.get_or_init(faketime_library));
    command.env("FAKETIME", clock).env("TZ", "UTC");
    command.env("DONT_FAKE_MONOTONIC", "1");
}

/// As [`set_clock`], with a clock that the program reads from a file each time.
pub(crate) fn set_clock_by(command: &mut Command, file: &Path) {
    set_clock(command, "");
    command.env_remove("FAKETIME");
    command.env("FAKETIME_TIMESTAMP_FILE", file);
    command.env("FAKETIME_NO_CACHE", "1");
}

/// The path of the library that faketime loads into programs.
fn faketime_library() -> String {
    // Killed programs leave files that are named after their process IDs. faketime fails if its own process has
    // such an ID, so try again.
    const TRIES: usize = 5;
    for _ in 0..TRIES {
        let output = Command::new("faketime")
            .args(["-f", "+0", "env"])
            .output()
            .expect("faketime is needed: install the package faketime");
        let environment = String::from_utf8(output.stdout).expect("paths in UTF-8");
        for line in environment.lines() {
            if let Some(library) = line.strip_prefix("LD_PRELOAD=") {
                return library.to_owned();
            }
        }
    }
    panic!("faketime does not set LD_PRELOAD");
}

/// A time in the format of `faketime -f`, at which the clock stands still.
pub(crate) fn stopped_clock(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time)
        .to_string()
        .replace('T', " ")
        .replace('Z', "")
}

/// Requests `/` with `openssl s_client` and these arguments. Returns the output.
pub(crate) fn s_client(server: SocketAddr, clock: Option<&str>, arguments: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-servername", NAME, "-connect"]);
    command.arg(server.to_string()).args(arguments);
    if let Some(clock) = clock {
        set_clock(&mut command, clock);
    }
    let mut request = tempfile::tempfile().expect("a temporary file");
    write!(request, "HEAD / HTTP/1.0\r\nhost: {NAME}\r\n\r\n").expect("a temporary file");
    request.rewind().expect("a temporary file");
    let output = command
        .stdin(request)
        .output()
        .expect("openssl is needed: install the package openssl");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Connects and sends bytes. Returns all bytes of the answer, up to the end of the connection or a reset.
pub(crate) fn send(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut io = TcpStream::connect(address).expect("a connection");
    io.set_read_timeout(Some(START)).expect("a socket");
    // The connection may be refused before all bytes are sent.
    let _ = io.write_all(bytes);
    let _ = io.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = io.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    answer
}

/// `openssl s_server` with these arguments.
pub(crate) fn openssl(certificates: &Certificates, arguments: &[&str]) -> Peer {
    Peer::start("openssl", |port| {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-quiet", "-accept"]);
        command.arg(format!("{}:{port}", Ipv4Addr::LOCALHOST));
        command.arg("-cert").arg(&certificates.chain);
        command.arg("-key").arg(&certificates.key);
        command.args(arguments);
        command
    })
}

/// A curl command that requests a path of a server. curl sends the path unchanged.
pub(crate) fn curl(
    server: &Sessile,
    certificates: &Certificates,
    path: &str,
    arguments: &[&str],
) -> Command {
    let port = server.address().port();
    let mut command = Command::new("curl");
    command.args(["-sS", "--path-as-is", "--cacert"]);
    command.arg(&certificates.ca).args(arguments);
    command.args(["--resolve", &format!("{NAME}:{port}:127.0.0.1")]);
    command.arg(format!("https://{NAME}:{port}{path}"));
    command
}

/// nginx with one TLS server that answers 204, and with these directives.
pub(crate) fn nginx(certificates: &Certificates, directives: &str) -> Peer {
    let protocols = if directives.contains("ssl_protocols") {
        // A second `ssl_protocols` directive would add its versions to those of the first.
        ""
    } else {
        "ssl_protocols TLSv1.2 TLSv1.3;"
    };
    let pair = certificates.nginx_directives();
    nginx_with(certificates.folder(), |port| {
        format!(
            "listen 127.0.0.1:{port} ssl; {pair}\n{protocols}\n{directives}\n\
             location / {{ return 204; }}\n"
        )
    })
}

/// nginx with one server, whose directives are the result of `server` for the port. The files of nginx are in
/// `folder`.
pub(crate) fn nginx_with(folder: &Path, server: impl Fn(u16) -> String) -> Peer {
    Peer::start("nginx", |port| {
        let folder = folder.join(format!("nginx-{port}"));
        fs::create_dir_all(&folder).expect("a folder");
        let config = folder.join("nginx.conf");
        let text = format!(
            // Use one process, because a killed master would leave its workers running.
            "daemon off; master_process off; pid nginx.pid; error_log stderr warn;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n\
               access_log off;\n\
               client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
               uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
               server {{\n{server}}}\n\
             }}\n",
            server = server(port),
        );
        fs::write(&config, text).expect("the configuration");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&folder).arg("-c").arg(&config);
        command.args(["-e", "stderr"]);
        command
    })
}

/// HAProxy with one TLS frontend that answers 204, and these arguments on its bind line.
pub(crate) fn haproxy(certificates: &Certificates, bind: &str) -> Peer {
    Peer::start("haproxy", |port| {
        let pem = certificates.folder().join("chain-and-key.pem");
        let parts = [&certificates.chain, &certificates.key]
            .map(|path| fs::read_to_string(path).expect("the certificate and its key"));
        fs::write(&pem, parts.concat()).expect("a file");
        let config = certificates.folder().join(format!("haproxy-{port}.cfg"));
        let text = format!(
            "global\n  tune.ssl.cachesize 0\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
             frontend tls\n  bind 127.0.0.1:{port} ssl crt {pem} {bind}\n  \
             http-request return status 204\n",
            pem = pem.display(),
        );
        fs::write(&config, text).expect("the configuration");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        command
    })
}
