//! `sessile serve` from start to end: the sessions that a restart loses, and the connections during
//! a drain.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use sessile::client::{Client, Close, EstablishedConnection, Mechanism, Target, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peers::{Certificates, NAME, Sessile, run};
use crate::store::setup::Farm;

/// A ClientHello of OpenSSL.
const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

const PATIENCE: Duration = Duration::from_secs(10);

/// More bytes than the sockets between a server and a client can hold.
const LARGE: u64 = 24 << 20;

/// A folder with a large file and a small file.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("small"), "small").unwrap();
    let large = File::create(root.path().join("large")).unwrap();
    large.set_len(LARGE).unwrap();
    root
}

/// One visit of an openssl client that keeps its session in a file. Returns the server's verdict.
fn visit(
    server: &Sessile,
    certificates: &Certificates,
    arguments: &[&str],
    session: &Path,
) -> String {
    const REQUEST: &str =
        "GET /small HTTP/1.1\r\nhost: farm.test\r\nsessile-probe: 1\r\nconnection: close\r\n\r\n";
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-servername", NAME, "-connect"]);
    command.arg(server.address().to_string()).args(arguments);
    command
        .args(["-verify_return_error", "-CAfile"])
        .arg(&certificates.ca);
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    command.arg("-sess_out").arg(session);
    let ran = run("openssl", &mut command, REQUEST).succeeded();
    let mut lines = ran.stdout.lines();
    let verdict = lines.find_map(|line| line.strip_prefix("sessile-verdict: "));
    verdict.expect("a verdict").trim_end().to_owned()
}

#[test]
fn sessions_survive_a_restart_and_a_crash_with_the_same_key_file() {
    let certificates = Certificates::new();
    let (root, state) = (root(), tempfile::tempdir().unwrap());
    let sessions = tempfile::tempdir().unwrap();
    let start = || Sessile::serve(&certificates, root.path(), state.path());
    let offers = [
        (&["-tls1_3"][..], "resumed/psk"),
        (&["-tls1_2"], "resumed/ticket"),
        (&["-tls1_2", "-no_ticket"], "resumed/session-id"),
    ];
    let verdicts = |server: &Sessile| {
        let session = |at: usize| sessions.path().join(at.to_string());
        let all = offers.iter().enumerate();
        all.map(|(at, (arguments, _))| visit(server, &certificates, arguments, &session(at)))
            .collect::<Vec<_>>()
    };

    let mut first = start();
    first.await_line("made a farm key");
    assert_eq!(verdicts(&first), ["full/nothing-offered"; 3]);
    assert_eq!(verdicts(&first), offers.map(|(_, resumed)| resumed));
    let key = fs::metadata(state.path().join("sessile/farm.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    first.terminate();
    assert_eq!(first.ended().code(), Some(0));

    // The drained server has saved its session table, so session IDs also resume.
    let second = start();
    assert_eq!(verdicts(&second), offers.map(|(_, resumed)| resumed));
    // After a crash, sessions by session ID are lost, because they were only in the memory of the
    // process.
    drop(second);
    let survivors = ["resumed/psk", "resumed/ticket", "full/unknown"];
    let third = start();
    assert_eq!(verdicts(&third), survivors);
    let metrics = third.metrics();
    let counted = survivors.map(|verdict| metrics.verdict(verdict));
    assert_eq!((counted, metrics.handshakes()), ([1; 3], 3), "{metrics}");

    // A server with another state folder belongs to another farm.
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Sessile::serve(&certificates, root.path(), elsewhere.path());
    let unknown = ["full/unknown-key", "full/unknown-key", "full/unknown"];
    assert_eq!(verdicts(&stranger), unknown);
}

#[test]
fn a_tls12_ticket_in_a_tls13_handshake_is_a_version_mismatch() {
    let certificates = Certificates::new();
    let (root, state) = (root(), tempfile::tempdir().unwrap());
    let server = Sessile::serve(&certificates, root.path(), state.path());
    let session = state.path().join("session.pem");
    let visit = |arguments: &[&str]| visit(&server, &certificates, arguments, &session);
    assert_eq!(visit(&["-tls1_2"]), "full/nothing-offered");
    assert_eq!(visit(&[]), "full/version-mismatch");
}

#[test]
fn a_close_notify_in_the_last_segment_of_the_handshake_counts() {
    let certificates = Certificates::new();
    let (state, config) = (tempfile::tempdir().unwrap(), "sessile.toml");
    let config = state.path().join(config);
    let text = format!(
        "[session]\nrequire-close-notify = true\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
         [[site.route]]\npath = \"/\"\nverdict = true\n",
        certificates.chain, certificates.key,
    );
    fs::write(&config, text).unwrap();
    let server = Sessile::serve_configured(&config, state.path());
    // The Finished message, the request and the close_notify arrive together, because the client
    // sends them in one write.
    let script = "import socket, ssl, sys\n\
        host, port, ca = sys.argv[1], int(sys.argv[2]), sys.argv[3]\n\
        context = ssl.create_default_context(cafile=ca)\n\
        session = None\n\
        for _ in range(3):\n\
        \x20   tcp = socket.create_connection((host, port))\n\
        \x20   coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()\n\
        \x20   tls = context.wrap_bio(coming, going, server_hostname='farm.test', session=session)\n\
        \x20   while True:\n\
        \x20       try:\n\
        \x20           tls.do_handshake()\n\
        \x20           break\n\
        \x20       except ssl.SSLWantReadError:\n\
        \x20           tcp.sendall(going.read())\n\
        \x20           coming.write(tcp.recv(65536))\n\
        \x20   tls.write(b'GET / HTTP/1.1\\r\\nHost: farm.test\\r\\n\\r\\n')\n\
        \x20   try:\n\
        \x20       tls.unwrap()\n\
        \x20   except ssl.SSLWantReadError:\n\
        \x20       pass\n\
        \x20   tcp.sendall(going.read())\n\
        \x20   body = b''\n\
        \x20   while True:\n\
        \x20       got = tcp.recv(65536)\n\
        \x20       if not got:\n\
        \x20           break\n\
        \x20       coming.write(got)\n\
        \x20   try:\n\
        \x20       while True:\n\
        \x20           more = tls.read(65536)\n\
        \x20           if not more:\n\
        \x20               break\n\
        \x20           body += more\n\
        \x20   except ssl.SSLError:\n\
        \x20       pass\n\
        \x20   session = tls.session\n\
        \x20   tcp.close()\n";
    let mut python = Command::new("python3");
    python.args(["-c", script, "127.0.0.1"]);
    python.arg(server.address().port().to_string());
    python.arg(&certificates.ca);
    run("python3", &mut python, "").succeeded();
    let metrics = server.await_metrics(|metrics| metrics.handshakes() == 3);
    assert_eq!(metrics.verdict("full/not-closed-cleanly"), 0, "{metrics}");
    assert_eq!(metrics.verdict("resumed/psk"), 2, "{metrics}");
}

fn client(certificates: &Certificates, mechanism: Mechanism) -> Client {
    let trust = Trust::ca_file(&certificates.ca).unwrap();
    Client::new(mechanism, &trust, PATIENCE).unwrap()
}

async fn connect(client: &Client, server: &Sessile) -> EstablishedConnection {
    let target = Target::new(server.address(), NAME).unwrap();
    client.connect(&target).await.unwrap()
}

/// Requests a file and reads the head of the response.
async fn ask(connection: &mut EstablishedConnection, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {NAME}\r\n\r\n");
    connection
        .stream
        .write_all(request.as_bytes())
        .await
        .unwrap();
    let head = head(connection).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

async fn head(connection: &mut EstablishedConnection) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Reads to the end of the stream, which must be a close_notify. Returns the length of the body.
async fn rest(connection: &mut EstablishedConnection) -> u64 {
    let mut body = Vec::new();
    let length = tokio::time::timeout(PATIENCE, connection.stream.read_to_end(&mut body))
        .await
        .expect("in time")
        .expect("a clean end");
    length as u64
}

#[tokio::test]
async fn a_drain_finishes_downloads_and_closes_idle_connections_cleanly() {
    let certificates = Certificates::new();
    let (root, state) = (root(), tempfile::tempdir().unwrap());
    let mut server = Sessile::serve(&certificates, root.path(), state.path());
    for mechanism in [Mechanism::Psk, Mechanism::Ticket] {
        let client = client(&certificates, mechanism);
        let mut connections = Vec::new();
        for path in ["", "/small", "/large"] {
            let mut connection = connect(&client, &server).await;
            if !path.is_empty() {
                ask(&mut connection, path).await;
            }
            connections.push(connection);
        }
        let [mut silent, mut idle, mut busy] = connections.try_into().ok().unwrap();
        idle.stream.read_exact(&mut [0; 5]).await.unwrap();
        let requests = "sessile_requests_total";
        server.await_metrics(|metrics| metrics.sum(requests, &[]) == 2);

        server.terminate();
        server.await_line("draining");
        assert_eq!(
            within(silent.closed()).await,
            Close::Notify,
            "{mechanism:?}"
        );
        assert_eq!(within(idle.closed()).await, Close::Notify, "{mechanism:?}");
        // Close these connections, as clients do after a close_notify.
        drop((silent, idle));
        assert_eq!(rest(&mut busy).await, LARGE, "{mechanism:?}");
        drop(busy);
        assert_eq!(server.ended().code(), Some(0), "{mechanism:?}");
        let target = Target::new(server.address(), NAME).unwrap();
        assert!(client.connect(&target).await.is_err());
        server = Sessile::serve(&certificates, root.path(), state.path());
    }
}

#[tokio::test]
async fn requests_in_flight_when_the_drain_begins_are_answered() {
    let certificates = Certificates::new();
    let (root, state) = (root(), tempfile::tempdir().unwrap());
    let mut server = Sessile::serve(&certificates, root.path(), state.path());
    let client = client(&certificates, Mechanism::Psk);
    let mut late = connect(&client, &server).await;
    let mut later = tokio::net::TcpStream::connect(server.address())
        .await
        .unwrap();
    server.terminate();
    server.await_line("draining");
    ask(&mut late, "/small").await;
    later.write_all(HELLO).await.unwrap();
    const HANDSHAKE: u8 = 22;
    assert_eq!(later.read_u8().await.unwrap(), HANDSHAKE);
    drop((late, later));
    assert_eq!(server.ended().code(), Some(0));
}

async fn within<T>(end: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, end).await.expect("in time")
}

#[test]
fn a_drain_finishes_an_http2_download() {
    let certificates = Certificates::new();
    let (root, state) = (root(), tempfile::tempdir().unwrap());
    let mut server = Sessile::serve(&certificates, root.path(), state.path());
    let port = server.address().port();
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "--http2",
        "--limit-rate",
        "16M",
        "--output",
        "/dev/null",
    ]);
    command.args([
        "--write-out",
        "%{http_version} %{http_code} %{size_download}",
    ]);
    command.arg("--cacert").arg(&certificates.ca);
    command.args(["--resolve", &format!("{NAME}:{port}:127.0.0.1")]);
    command.arg(format!("https://{NAME}:{port}/large"));
    let ran = std::thread::scope(|scope| {
        let download = scope.spawn(|| run("curl", &mut command, ""));
        server.await_metrics(|metrics| metrics.sum("sessile_requests_total", &[]) == 1);
        server.terminate();
        download.join().unwrap()
    });
    assert_eq!(ran.succeeded().stdout, format!("2 200 {LARGE}"));
    assert_eq!(server.ended().code(), Some(0));
}

#[tokio::test]
async fn a_client_that_sends_close_notify_early_gets_the_whole_response() {
    let certificates = Certificates::new();
    let (root, state) = (root(), tempfile::tempdir().unwrap());
    let server = Sessile::serve(&certificates, root.path(), state.path());
    for mechanism in [Mechanism::Psk, Mechanism::Ticket] {
        let client = client(&certificates, mechanism);
        let mut connection = connect(&client, &server).await;
        ask(&mut connection, "/large").await;
        // The client sends close_notify and FIN.
        connection.stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut connection).await, LARGE, "{mechanism:?}");
    }
    server.await_metrics(|metrics| metrics.sum("sessile_connections_open", &[]) == 0);
}

#[tokio::test]
async fn data_after_the_close_does_not_truncate_the_response() {
    // The response fits into the send buffer of the server, but not into the receive buffer of the
    // client.
    const LENGTH: u64 = 2 << 20;
    let certificates = Certificates::new();
    let (root, state) = (root(), tempfile::tempdir().unwrap());
    let file = File::create(root.path().join("answer")).unwrap();
    file.set_len(LENGTH).unwrap();
    let server = Sessile::serve(&certificates, root.path(), state.path());
    let client = client(&certificates, Mechanism::Psk);
    let mut connection = connect(&client, &server).await;
    ask(&mut connection, "/answer").await;
    server.terminate();
    server.await_line("draining");
    // To the server, these requests look as if they were in flight when the close_notify was sent.
    for _ in 0..50 {
        let request = b"GET /small HTTP/1.1\r\nhost: farm.test\r\n\r\n";
        connection.stream.write_all(request).await.unwrap();
        connection.stream.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut body = vec![0; LENGTH as usize];
    connection.stream.read_exact(&mut body).await.unwrap();
    // The connection may get a request before it gets the order to stop. Such a request is answered.
    let mut next = Vec::new();
    connection.stream.read_to_end(&mut next).await.unwrap();
    assert!(next.is_empty() || next.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_signal_right_after_the_start_drains() {
    for _ in 0..10 {
        // `serve` returns when the port accepts connections, which is before the server has logged
        // that it serves.
        let server = Farm::new("").serve("web1");
        server.peer.signal(Signal::TERM);
        assert!(server.peer.wait().success());
    }
}
