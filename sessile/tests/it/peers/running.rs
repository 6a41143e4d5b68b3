//! The sessile program, started as users start it. Tests read its addresses and events from its
//! output and its metrics.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use super::{Certificates, Metrics};

/// Deadline for every condition that a test waits for.
const CONDITION_DEADLINE: Duration = Duration::from_secs(15);

/// Pause between two requests for the metrics.
const PAUSE: Duration = Duration::from_millis(5);

/// A path that no user can create, for programs that must keep no state.
pub(crate) const NO_FOLDER: &str = "/proc/nonexistent";

/// A running `sessile`. Killed when dropped.
pub(crate) struct Sessile {
    child: Child,
    said: OutputLog,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Sessile {
    /// `sessile serve` with flags. It serves static files below `root`, and keeps its state below
    /// `state`.
    pub(crate) fn serve(certificates: &Certificates, root: &Path, state: &Path) -> Self {
        let mut command = command("serve", state);
        command.args(["--listen", "127.0.0.1:0"]);
        command.arg("--cert").arg(&certificates.chain);
        command.arg("--key").arg(&certificates.key);
        command.arg("--root").arg(root);
        Self::start(command, "serving address=")
    }

    /// `sessile serve` with a configuration file, whose listener must be `127.0.0.1:0`.
    pub(crate) fn serve_configured(config: &Path, state: &Path) -> Self {
        let mut command = command("serve", state);
        command.arg("--config").arg(config);
        Self::start(command, "serving address=")
    }

    /// As [`Self::serve_configured`], but `starter` starts the server. The server's command is the
    /// last arguments of `starter`.
    pub(crate) fn serve_by(mut starter: Command, config: &Path, state: &Path) -> Self {
        let mut program = command("serve", state);
        program.arg("--config").arg(config);
        pass_to(&mut starter, &program);
        Self::start(starter, "serving address=")
    }

    /// `sessile serve` with a configuration file and a clock in the format of `faketime -f`.
    pub(crate) fn serve_at(clock: &str, config: &Path, state: &Path) -> Self {
        let mut command = command("serve", state);
        super::set_clock(&mut command, clock);
        command.arg("--config").arg(config);
        Self::start(command, "serving address=")
    }

    /// `sessile serve` with a configuration file and a clock that faketime reads from a file.
    pub(crate) fn serve_by_clock(clock: &Path, config: &Path, state: &Path) -> Self {
        let mut command = command("serve", state);
        super::set_clock_by(&mut command, clock);
        command.arg("--config").arg(config);
        Self::start(command, "serving address=")
    }

    /// `sessile balance` in front of servers named a, b, c and so on. Health checks are off unless
    /// the arguments say otherwise.
    pub(crate) fn balance(servers: &[SocketAddr], arguments: &[&str]) -> Self {
        let mut command = command("balance", Path::new(NO_FOLDER));
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        if !arguments.contains(&"--health") {
            command.args(["--health", "off"]);
        }
        for (name, address) in ('a'..='z').zip(servers) {
            command.arg("--server").arg(format!("{name}={address}"));
        }
        Self::start(command, "balancing address=")
    }

    /// `sessile balance` with a configuration file, whose listener must be `127.0.0.1:0`.
    pub(crate) fn balance_configured(config: &Path, state: &Path) -> Self {
        let mut command = command("balance", state);
        command.arg("--config").arg(config);
        Self::start(command, "balancing address=")
    }

    /// `sessile balance` with a configuration file and a limit of open files.
    pub(crate) fn balance_with_files(files: u32, config: &Path, state: &Path) -> Self {
        let mut program = command("balance", state);
        program.arg("--config").arg(config);
        let mut shell = Command::new("sh");
        let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        shell.arg("-c").arg(limited);
        pass_to(&mut shell, &program);
        Self::start(shell, "balancing address=")
    }

    /// `sessile balance` with a configuration file and a clock that faketime reads from a file.
    pub(crate) fn balance_by(clock: &Path, config: &Path, state: &Path) -> Self {
        let mut command = command("balance", state);
        super::set_clock_by(&mut command, clock);
        command.arg("--config").arg(config);
        Self::start(command, "balancing address=")
    }

    /// Starts a role with a configuration file and an inherited listening socket, as a service
    /// manager does. The program sends its state to `notify`.
    pub(crate) fn inheriting(
        role: &str,
        config: &Path,
        state: &Path,
        listener: &TcpListener,
        notify: &Path,
    ) -> Self {
        let mut program = command(role, state);
        program.arg("--config").arg(config);
        let command = inheriting(&program, listener, notify);
        let announced = match role {
            "serve" => "serving address=",
            _ => "balancing address=",
        };
        Self::start(command, announced)
    }

    /// The process ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn start(mut command: Command, announced: &str) -> Self {
        command.args(["--admin", "127.0.0.1:0"]);
        let (child, said) = spawn(command);
        Self {
            address: said.word_after(announced),
            admin: said.word_after("admin address="),
            child,
            said,
        }
    }

    /// The address where clients connect.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the admin listener.
    pub(crate) const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The status and the JSON of an API response.
    pub(crate) fn api(&self, request: &str, token: Option<&str>, body: &str) -> (u16, Value) {
        super::metrics::ask(self.admin, request, token, body)
    }

    /// The status and the text of `/readyz`.
    pub(crate) fn readiness(&self) -> (u16, String) {
        super::metrics::text(self.admin, "GET /readyz", None, "")
    }

    /// The balancer's state in the API.
    pub(crate) fn snapshot(&self) -> Value {
        let (status, said) = self.api("GET /api/balancer", None, "");
        assert_eq!(status, 200, "{said}");
        said
    }

    /// Waits until a server's state in the API satisfies a condition.
    pub(crate) fn await_server(&self, name: &str, as_it_should: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + CONDITION_DEADLINE;
        loop {
            let snapshot = self.snapshot();
            let mut servers = snapshot["servers"].as_array().expect("a list").iter();
            let server = servers.find(|server| server["name"] == name);
            if let Some(server) = server.filter(|server| as_it_should(server)) {
                return server.clone();
            }
            assert!(
                Instant::now() < deadline,
                "still, after a while: {snapshot:#}"
            );
            thread::sleep(PAUSE);
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn metrics_text(&self) -> String {
        let (status, text) = super::metrics::text(self.admin, "GET /metrics", None, "");
        assert_eq!(status, 200, "{text}");
        text
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::fetch(self.admin)
    }

    /// Waits until the metrics satisfy a condition, and returns them.
    ///
    /// Some events follow the last byte that a client sees. For example, the server counts a
    /// handshake shortly after the client has disconnected.
    pub(crate) fn await_metrics(&self, as_they_should: impl Fn(&Metrics) -> bool) -> Metrics {
        let deadline = Instant::now() + CONDITION_DEADLINE;
        loop {
            let metrics = self.metrics();
            if as_they_should(&metrics) {
                return metrics;
            }
            assert!(Instant::now() < deadline, "still, after a while: {metrics}");
            thread::sleep(PAUSE);
        }
    }

    /// Waits for a line with this text on either stream, and returns the line.
    pub(crate) fn await_line(&self, part: &str) -> String {
        self.said.find(part)
    }

    /// The number of lines so far that contain a text.
    pub(crate) fn count_lines(&self, part: &str) -> usize {
        self.said.all().matches(part).count()
    }

    /// Sends SIGHUP, waits for the result of the reload, and returns all output since then.
    pub(crate) fn reload(&self) -> String {
        let before = self.said.len();
        self.hang_up();
        let outcomes = [
            "configuration and certificates reloaded",
            "configuration and key reloaded",
            "configuration not reloaded",
        ];
        self.said.find_after(before, &outcomes);
        self.said.since(before)
    }

    /// Sends SIGTERM without waiting.
    pub(crate) fn terminate(&self) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    }

    /// Sends SIGHUP.
    pub(crate) fn hang_up(&self) {
        super::hang_up(self.child.id());
    }

    /// Waits until the program ends by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + CONDITION_DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child's status") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Sessile {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("what sessile said:\n{}", self.said.all());
        }
    }
}

/// `sessile farm` with its own data folder.
pub(crate) struct Farm {
    sessile: Sessile,
    data: TempDir,
}

impl Farm {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let mut command = command("farm", data.path());
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(data.path()).args(arguments);
        let (child, said) = spawn(command);
        let sessile = Sessile {
            address: said.address("https://localhost", "127.0.0.1"),
            admin: said.address("http://", ""),
            child,
            said,
        };
        Self { sessile, data }
    }

    /// The folder of the farm.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// The certificate of the development authority.
    pub(crate) fn ca(&self) -> String {
        let path = self.data.path().join("ca.pem");
        path.into_os_string().into_string().expect("UTF-8")
    }

    pub(crate) fn port(&self) -> u16 {
        self.address().port()
    }

    /// The URL of the built-in page with the verdict.
    pub(crate) fn verdict_url(&self) -> String {
        format!("https://localhost:{}/verdict.json", self.port())
    }
}

impl std::ops::Deref for Farm {
    type Target = Sessile;

    fn deref(&self) -> &Sessile {
        &self.sessile
    }
}

impl std::ops::DerefMut for Farm {
    fn deref_mut(&mut self) -> &mut Sessile {
        &mut self.sessile
    }
}

/// The command for a role. Variables of the tests' environment must not influence the program, so
/// the command removes them.
fn command(role: impl AsRef<OsStr>, state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.arg(role).env("XDG_STATE_HOME", state);
    command.stdin(Stdio::null());
    for variable in [
        "STATE_DIRECTORY",
        "SESSILE_CONFIG",
        "RUST_LOG",
        "NOTIFY_SOCKET",
    ] {
        command.env_remove(variable);
    }
    command
}

/// A shell that starts the program, with the shell's standard input as the first inherited socket.
/// Otherwise, programs that other tests start would also inherit the socket.
pub(crate) fn inheriting(program: &Command, listener: &TcpListener, notify: &Path) -> Command {
    const PASS_ON: &str =
        "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(PASS_ON);
    pass_to(&mut shell, program);
    shell.env("NOTIFY_SOCKET", notify);
    let socket = listener.try_clone().expect("a second handle");
    shell.stdin(OwnedFd::from(socket));
    shell
}

/// Passes a command to a shell, which starts the command from its arguments.
fn pass_to(shell: &mut Command, program: &Command) {
    shell.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
}

fn spawn(mut command: Command) -> (Child, OutputLog) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program under test");
    let said = OutputLog::default();
    said.listen(child.stdout.take().expect("a pipe"));
    said.listen(child.stderr.take().expect("a pipe"));
    (child, said)
}

/// The output of a program on both streams.
#[derive(Clone, Default)]
struct OutputLog(Arc<(Mutex<OutputLogState>, Condvar)>);

#[derive(Default)]
struct OutputLogState {
    lines: Vec<String>,
    /// The number of streams that are still open.
    open: usize,
}

impl OutputLog {
    /// Reads a stream to its end on a separate thread, because a full pipe would block the program.
    fn listen(&self, stream: impl Read + Send + 'static) {
        let said = self.clone();
        said.0.0.lock().unwrap().open += 1;
        thread::spawn(move || {
            let (heard, changed) = &*said.0;
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                heard.lock().unwrap().lines.push(line);
                changed.notify_all();
            }
            heard.lock().unwrap().open -= 1;
            changed.notify_all();
        });
    }

    fn find(&self, part: &str) -> String {
        self.find_after(0, &[part])
    }

    /// Skips `lines` lines, and waits for the first line that contains one of the parts.
    fn find_after(&self, lines: usize, parts: &[&str]) -> String {
        let (heard, changed) = &*self.0;
        let deadline = Instant::now() + CONDITION_DEADLINE;
        let mut heard = heard.lock().unwrap();
        loop {
            let has_one = |line: &&String| parts.iter().any(|part| line.contains(part));
            if let Some(line) = heard.lines.iter().skip(lines).find(has_one) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || heard.open == 0 {
                let lines = heard.lines.join("\n");
                // Release the lock before the panic, so that other threads can still use the log.
                drop(heard);
                panic!("sessile does not say {parts:?}, but:\n{lines}");
            }
            heard = changed.wait_timeout(heard, left).unwrap().0;
        }
    }

    /// The address after `part`, up to a space.
    fn word_after(&self, part: &str) -> SocketAddr {
        let line = self.find(part);
        let (_, rest) = line.split_once(part).expect("it was found");
        let word = rest.split(' ').next().unwrap_or(rest);
        word.parse().expect("an address")
    }

    /// The address in the first URL that begins with `prefix`. The result begins with `host`.
    fn address(&self, prefix: &str, host: &str) -> SocketAddr {
        let line = self.find(prefix);
        let (_, rest) = line.split_once(prefix).expect("it was found");
        let (address, _) = rest.split_once('/').expect("a URL with a path");
        format!("{host}{address}").parse().expect("an address")
    }

    fn len(&self) -> usize {
        self.0.0.lock().unwrap().lines.len()
    }

    fn since(&self, lines: usize) -> String {
        self.0.0.lock().unwrap().lines[lines..].join("\n")
    }

    fn all(&self) -> String {
        self.since(0)
    }
}
