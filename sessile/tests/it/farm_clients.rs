//! Common clients connect through the balancer to servers with a shared farm key. The first
//! connection of each client makes a full handshake, and all later connections resume.

use std::process::Command;

use crate::peers::{Farm, Metrics, run};

/// A request after which the server closes the connection.
const REQUEST: &str = "GET /verdict.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// The expected verdicts: a full handshake, and then a resumption by `how` for each further
/// connection.
fn one_full_and_then(how: &str, connections: usize) -> Vec<String> {
    let mut verdicts = vec![how.to_owned(); connections];
    "full/nothing-offered".clone_into(&mut verdicts[0]);
    verdicts
}

/// True if each of `clients` made one full handshake, and all other handshakes resumed by `how`.
fn all_resumed(metrics: &Metrics, clients: u64, how: &str) -> bool {
    let full = metrics.verdict("full/nothing-offered");
    let resumed = metrics.verdict(how);
    full == clients && full + resumed == metrics.handshakes()
}

fn openssl(farm: &Farm, arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-servername", "localhost"]);
    command.args(["-connect", &farm.address().to_string()]);
    command.args(["-CAfile", &farm.ca(), "-verify_return_error"]);
    command.args(arguments);
    command
}

#[test]
fn openssl_resumes_tickets_and_session_ids_when_it_reconnects() {
    const CLIENTS: u64 = 3;
    const RETURNS: u64 = 5;
    for (arguments, verdict, rule) in [
        (&["-tls1_2"][..], "resumed/ticket", "ticket"),
        (
            &["-tls1_2", "-no_ticket"],
            "resumed/session-id",
            "session-id",
        ),
    ] {
        // With round robin, only the offered session routes a client back to its server.
        let farm = Farm::start(&["--policy", "round-robin"]);
        for _ in 0..CLIENTS {
            let mut command = openssl(&farm, arguments);
            let ran = run("openssl", command.arg("-reconnect"), "").succeeded();
            assert_eq!(ran.count("New, TLSv1.2"), 1, "{}", ran.stdout);
            assert_eq!(
                ran.count("Reused, TLSv1.2"),
                RETURNS as usize,
                "{}",
                ran.stdout
            );
        }
        let metrics = farm.await_metrics(|metrics| metrics.handshakes() == CLIENTS * (1 + RETURNS));
        assert!(all_resumed(&metrics, CLIENTS, verdict), "{metrics}");
        assert_eq!(
            metrics.routed(rule, "resumed"),
            CLIENTS * RETURNS,
            "{metrics}"
        );
        assert_eq!(
            metrics.routed("policy", "not-offered"),
            CLIENTS,
            "{metrics}"
        );
    }
}

#[test]
fn openssl_resumes_tls13_sessions_in_other_processes_and_at_other_servers() {
    const VISITS: usize = 6;
    let farm = Farm::start(&["--policy", "round-robin"]);
    let folder = tempfile::tempdir().unwrap();
    let session = folder.path().join("session.pem");
    let mut servers = Vec::new();
    for visit in 0..VISITS {
        let mut command = openssl(&farm, &["-tls1_3", "-ign_eof"]);
        command.arg("-sess_out").arg(&session);
        if visit > 0 {
            command.arg("-sess_in").arg(&session);
        }
        let ran = run("openssl", &mut command, REQUEST).succeeded();
        let [answer] = ran.answers().try_into().expect("one answer");
        assert_eq!(
            answer.verdict,
            one_full_and_then("resumed/psk", VISITS)[visit]
        );
        servers.push(answer.server);
    }
    let (before, after) = (&servers[..VISITS - 1], &servers[1..]);
    let moved = before
        .iter()
        .zip(after)
        .all(|(before, after)| before != after);
    assert!(moved, "not another server each time: {servers:?}");
    assert!(all_resumed(&farm.metrics(), 1, "resumed/psk"));
}

#[test]
fn curl_resumes_with_http1_and_each_tls_version() {
    const CONNECTIONS: usize = 5;
    for (version, protocol, verdict) in [
        // curl takes no tickets in TLS 1.2.
        ("1.2", "TLSv1.2", "resumed/session-id"),
        ("1.3", "TLSv1.3", "resumed/psk"),
    ] {
        let farm = Farm::start(&["--policy", "round-robin"]);
        let mut command = Command::new("curl");
        command.args(["-sS", "--http1.1", "-H", "connection: close"]);
        command.args(["--cacert", &farm.ca(), "--tls-max", version]);
        // A curl process keeps its sessions from one URL to the next.
        command.args(vec![farm.verdict_url(); CONNECTIONS]);
        let ran = run("curl", &mut command, "").succeeded();
        assert_eq!(ran.verdicts(), one_full_and_then(verdict, CONNECTIONS));
        for answer in ran.answers() {
            assert_eq!(
                (answer.protocol.as_str(), answer.http.as_str()),
                (protocol, "HTTP/1.1")
            );
        }
        assert!(all_resumed(&farm.metrics(), 1, verdict));
    }
}

#[test]
fn curl_resumes_with_http2_at_every_server() {
    const SOURCES: usize = 6;
    let farm = Farm::start(&[]);
    let mut command = Command::new("curl");
    for source in 1..=SOURCES {
        // Another local address makes curl open a new connection. The default policy may place this
        // address on another server.
        let address = format!("127.0.0.{source}");
        command.args(["-sS", "--http2", "--cacert", &farm.ca()]);
        command.args(["--interface", &address, &farm.verdict_url(), "--next"]);
    }
    // Without a local address, curl reuses an open connection, which then has its second request.
    command.args([
        "-sS",
        "--http2",
        "--cacert",
        &farm.ca(),
        &farm.verdict_url(),
    ]);
    let ran = run("curl", &mut command, "").succeeded();
    let mut answers = ran.answers();
    let again = answers.pop().unwrap();
    assert_eq!(again.request, 2, "{again:?}");
    let verdicts: Vec<_> = answers.iter().map(|it| it.verdict.clone()).collect();
    assert_eq!(verdicts, one_full_and_then("resumed/psk", SOURCES));
    assert!(answers.iter().all(|it| it.http == "HTTP/2"), "{answers:?}");
    assert!(
        answers.iter().any(|it| it.server != answers[0].server),
        "{answers:?}"
    );
    assert!(all_resumed(&farm.metrics(), 1, "resumed/psk"));
}

#[test]
fn curl_comes_back_to_the_built_in_page_on_a_new_connection() {
    // Some versions of curl do not offer the session of an HTTP/2 connection that they have closed. Such a
    // client looks like a browser on a spare connection. So the server leads it to a third connection.
    let without_session = ("full/nothing-offered", 3);
    for (version, expected) in [
        ("--http1.1", &[("resumed/psk", 2)][..]),
        ("--http2", &[("resumed/psk", 2), without_session]),
    ] {
        let farm = Farm::start(&[]);
        let mut command = Command::new("curl");
        command.args(["-sS", "--include", "--location", version]);
        command.args(["--cacert", &farm.ca()]);
        command.args(["--write-out", "%{num_connects} connections"]);
        command.arg(format!("https://localhost:{}/new-connection", farm.port()));
        let ran = run("curl", &mut command, "").succeeded();
        let is_expected = expected.iter().any(|(verdict, connections)| {
            let mut parts = ran.stdout.split("\r\n\r\n");
            let page = parts.nth(*connections).unwrap_or_default();
            page.starts_with(&format!("{verdict}\nYour "))
                && page.contains("request   1 of this connection")
                && page.ends_with(&format!("{connections} connections"))
        });
        assert!(is_expected, "{version}: {}", ran.stdout);
    }
}

#[test]
fn the_way_to_a_new_connection_names_its_status() {
    let farm = Farm::start(&[]);
    let mut command = Command::new("curl");
    command.args(["-sS", "--cacert", &farm.ca()]);
    command.arg(format!("https://localhost:{}/new-connection", farm.port()));
    let ran = run("curl", &mut command, "").succeeded();
    assert_eq!(ran.stdout, "303 See Other\n");
}

#[test]
fn a_page_of_another_site_closes_no_connection() {
    let farm = Farm::start(&[]);
    for version in ["--http1.1", "--http2"] {
        let mut command = Command::new("curl");
        command.args(["-sS", "--location", version, "--cacert", &farm.ca()]);
        command.args(["-H", "sec-fetch-site: cross-site"]);
        command.args([
            "--write-out",
            "%{num_connects} connections, %{num_redirects} redirects",
        ]);
        command.arg(format!("https://localhost:{}/new-connection", farm.port()));
        let ran = run("curl", &mut command, "").succeeded();
        assert!(
            ran.stdout.ends_with("1 connections, 1 redirects"),
            "{}",
            ran.stdout
        );
        assert!(
            ran.stdout.contains("request   2 of this connection"),
            "{}",
            ran.stdout
        );
    }
}

/// Arguments: port, CA file, TLS version, whether to accept tickets, and the number of connections.
const PYTHON: &str = r#"
import socket, ssl, sys
port, ca, version, tickets, connections = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
if tickets == "no":
    context.options |= ssl.OP_NO_TICKET
session = None
for connection in range(int(connections)):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as tcp:
        with context.wrap_socket(tcp, server_hostname="localhost", session=session) as tls:
            tls.sendall(sys.stdin.buffer.peek())
            answer = b"".join(iter(lambda: tls.recv(4096), b""))
            print(answer.decode().partition("\r\n\r\n")[2], end="")
            assert tls.session_reused == (connection > 0), connection
            session = tls.session
"#;

#[test]
fn python_resumes_by_session_id_ticket_and_psk() {
    const CONNECTIONS: usize = 5;
    for (version, tickets, verdict) in [
        ("TLSv1_2", "no", "resumed/session-id"),
        ("TLSv1_2", "yes", "resumed/ticket"),
        ("TLSv1_3", "yes", "resumed/psk"),
    ] {
        let farm = Farm::start(&["--policy", "round-robin"]);
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON, &farm.port().to_string(), &farm.ca()]);
        command.args([version, tickets, &CONNECTIONS.to_string()]);
        let ran = run("python3", &mut command, REQUEST).succeeded();
        assert_eq!(ran.verdicts(), one_full_and_then(verdict, CONNECTIONS));
        assert!(all_resumed(&farm.metrics(), 1, verdict));
    }
}

#[test]
fn gnutls_resumes_by_session_id_ticket_and_psk() {
    const CLIENTS: u64 = 3;
    for (priority, verdict) in [
        ("NORMAL:-VERS-TLS1.3:%NO_TICKETS", "resumed/session-id"),
        ("NORMAL:-VERS-TLS1.3", "resumed/ticket"),
        ("NORMAL", "resumed/psk"),
    ] {
        let farm = Farm::start(&["--policy", "round-robin"]);
        for _ in 0..CLIENTS {
            let mut command = Command::new("gnutls-cli");
            command.args(["--resume", "--waitresumption", "--priority", priority]);
            command.args(["--x509cafile", &farm.ca()]);
            command.args(["--port", &farm.port().to_string(), "localhost"]);
            // GnuTLS closes its side right after the request, but must still get the response.
            let ran = run("gnutls-bin", &mut command, REQUEST).succeeded();
            assert_eq!(
                ran.count("*** This is a resumed session"),
                1,
                "{}",
                ran.stdout
            );
            // The first connection of each run sends no request.
            assert_eq!(ran.verdicts(), [verdict], "{}", ran.stdout);
        }
        assert!(all_resumed(&farm.metrics(), CLIENTS, verdict));
    }
}
