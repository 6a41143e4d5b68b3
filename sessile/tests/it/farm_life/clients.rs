//! Clients that return to a farm with their session: OpenSSL, Python and our own client, with each
//! mechanism.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use sessile::client::{Client, Mechanism};

use crate::peers::{Ran, run, set_clock};
use crate::store::setup::{client, verdict};

/// The mechanism by which a client resumes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    SessionId,
    Ticket,
    Psk,
}

pub(crate) const HOW: [How; 3] = [How::SessionId, How::Ticket, How::Psk];

impl How {
    pub(crate) const fn verdict(self) -> &'static str {
        match self {
            Self::SessionId => "resumed/session-id",
            Self::Ticket => "resumed/ticket",
            Self::Psk => "resumed/psk",
        }
    }

    /// The arguments of `openssl s_client`.
    pub(crate) const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::SessionId => &["-tls1_2", "-no_ticket"],
            Self::Ticket => &["-tls1_2"],
            Self::Psk => &["-tls1_3"],
        }
    }
}

/// A client of one of the programs, with one session.
pub(crate) struct Returning {
    how: How,
    program: Program,
    /// The address of the server in the last visit.
    last: Option<SocketAddr>,
    visits: usize,
}

enum Program {
    Openssl { root: PathBuf, session: PathBuf },
    Python(Python),
    Ours(Box<Client>),
}

impl Returning {
    /// One client of each program for each mechanism. The clients trust the authority in `root`,
    /// and keep their session files in `folder`.
    pub(crate) fn of_every_kind(root: &Path, folder: &Path, name: &str) -> Vec<Self> {
        let kinds = HOW.into_iter().flat_map(|how| {
            let openssl = Program::Openssl {
                root: root.to_owned(),
                session: folder.join(format!("{name}-{how:?}.pem")),
            };
            let ours = Program::Ours(Box::new(client(match how {
                How::SessionId => Mechanism::SessionId,
                How::Ticket => Mechanism::Ticket,
                How::Psk => Mechanism::Psk,
            })));
            let python = Program::Python(Python::start(root, how));
            [openssl, python, ours].map(|program| Self {
                how,
                program,
                last: None,
                visits: 0,
            })
        });
        kinds.collect()
    }

    /// Makes the client's first, full handshake.
    pub(crate) async fn arrive(&mut self, server: SocketAddr) {
        let verdict = self.connect(server).await;
        assert_eq!(verdict, "full/nothing-offered", "{}", self.name());
    }

    /// Returns to the next of these servers that is not the server of the last visit. The session
    /// must resume.
    pub(crate) async fn return_to_other_servers(&mut self, servers: &[SocketAddr]) {
        let from = self.visits % servers.len();
        let to = *servers[from..]
            .iter()
            .chain(&servers[..from])
            .find(|server| Some(**server) != self.last)
            .expect("more than one server");
        let last = self.last;
        let verdict = self.connect(to).await;
        let expected = self.how.verdict();
        assert_eq!(verdict, expected, "{}, {last:?} to {to}", self.name());
    }

    async fn connect(&mut self, server: SocketAddr) -> String {
        let verdict = match &mut self.program {
            Program::Openssl { root, session } => openssl(self.how, root, session, server, None),
            Program::Python(python) => python.connect(server),
            Program::Ours(client) => verdict(client, server).await,
        };
        self.last = Some(server);
        self.visits += 1;
        verdict
    }

    fn name(&self) -> String {
        let program = match self.program {
            Program::Openssl { .. } => "OpenSSL",
            Program::Python(_) => "Python",
            Program::Ours(_) => "sessile",
        };
        format!("{program} by {:?}, visit {}", self.how, self.visits)
    }
}

const REQUEST: &str = "HEAD / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// Connects with the session in a file, saves the new session there and returns the verdict. At the
/// first visit, the file may be missing. OpenSSL offers the session if it has not expired by
/// OpenSSL's clock.
pub(crate) fn openssl(
    how: How,
    root: &Path,
    session: &Path,
    server: SocketAddr,
    clock: Option<&str>,
) -> String {
    let visit = try_openssl(how, root, session, server, clock);
    visit.unwrap_or_else(|failure| panic!("{failure}"))
}

/// As [`openssl`], but `change` modifies the command before it runs.
pub(crate) fn openssl_with(
    how: How,
    root: &Path,
    session: &Path,
    server: SocketAddr,
    change: impl FnOnce(&mut Command),
) -> String {
    let mut command = s_client(how, root, session, server);
    change(&mut command);
    let visit = answer(&mut command);
    visit.unwrap_or_else(|failure| panic!("{failure}"))
}

/// As [`openssl`], but the connection may fail. The error is OpenSSL's output.
pub(crate) fn try_openssl(
    how: How,
    root: &Path,
    session: &Path,
    server: SocketAddr,
    clock: Option<&str>,
) -> Result<String, String> {
    let mut command = s_client(how, root, session, server);
    if let Some(clock) = clock {
        set_clock(&mut command, clock);
    }
    answer(&mut command)
}

fn s_client(how: How, root: &Path, session: &Path, server: SocketAddr) -> Command {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-servername", "localhost"]);
    command.arg("-connect").arg(server.to_string());
    command.args(how.arguments()).arg("-CAfile").arg(root);
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    command.arg("-sess_out").arg(session);
    command
}

/// The verdict in the server's answer.
fn answer(command: &mut Command) -> Result<String, String> {
    verdict_in(&run("openssl", command, REQUEST))
}

/// The verdict on the second of two GnuTLS connections. GnuTLS's program cannot save its session.
/// This function does not support TLS 1.3, where the program would have to wait for a ticket.
pub(crate) fn try_gnutls(how: How, root: &Path, server: SocketAddr) -> Result<String, String> {
    let priority = match how {
        How::SessionId => "NORMAL:-VERS-TLS1.3:%NO_TICKETS",
        How::Ticket => "NORMAL:-VERS-TLS1.3",
        How::Psk => return Err("not by this program".to_owned()),
    };
    let mut command = Command::new("gnutls-cli");
    command.args(["--resume", "--priority", priority]);
    command.arg("--x509cafile").arg(root);
    command.args(["--port", &server.port().to_string(), "localhost"]);
    verdict_in(&run("gnutls-bin", &mut command, REQUEST))
}

/// The verdict in a program's output. The error is the whole output.
fn verdict_in(ran: &Ran) -> Result<String, String> {
    let head = ran.stdout.split_once("sessile-verdict: ");
    match head.and_then(|(_, rest)| rest.split_whitespace().next()) {
        Some(verdict) if ran.status.success() => Ok(verdict.to_owned()),
        _ => Err(format!("{}:\n{}\n{}", ran.status, ran.stdout, ran.stderr)),
    }
}

/// A Python program that connects to given ports and prints the verdict or the error.
pub(crate) struct Python {
    child: Child,
    ports: ChildStdin,
    verdicts: BufReader<ChildStdout>,
}

/// Arguments: CA file, TLS version, whether to accept tickets, and the request.
const PYTHON: &str = r#"
import socket, ssl, sys
ca, version, tickets, request = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
if tickets == "no":
    context.options |= ssl.OP_NO_TICKET
session = None

def visit(port):
    global session
    with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as tcp:
        with context.wrap_socket(tcp, server_hostname="localhost", session=session) as tls:
            tls.sendall(request.encode())
            answer = b"".join(iter(lambda: tls.recv(4096), b"")).decode()
            verdict = answer.partition("sessile-verdict: ")[2].split()[0]
            assert tls.session_reused == verdict.startswith("resumed/"), verdict
            session = tls.session
            return verdict

for port in sys.stdin:
    try:
        print(visit(port), flush=True)
    except Exception as error:
        print("failed:", repr(error), flush=True)
"#;

impl Python {
    pub(crate) fn start(root: &Path, how: How) -> Self {
        let (version, tickets) = match how {
            How::SessionId => ("TLSv1_2", "no"),
            How::Ticket => ("TLSv1_2", "yes"),
            How::Psk => ("TLSv1_3", "yes"),
        };
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON]).arg(root);
        command.args([version, tickets, REQUEST]);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped
            .spawn()
            .expect("python3 is missing: install the package python3");
        Self {
            ports: child.stdin.take().expect("a pipe"),
            verdicts: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
        }
    }

    pub(crate) fn connect(&mut self, server: SocketAddr) -> String {
        writeln!(self.ports, "{}", server.port()).expect("it listens");
        let mut verdict = String::new();
        self.verdicts.read_line(&mut verdict).expect("text");
        verdict.trim_end().to_owned()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
