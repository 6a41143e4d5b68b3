//! Clients that return with their latest session: the tickets in a resumed handshake, and the end
//! of sessions.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair};
use sessile::client::Mechanism;

use crate::farm_life::clients::{How, openssl};
use crate::peers::{Peer, nginx_with, run};
use crate::store::setup::{Farm, Redis, Server, client, verdict};

/// Number of requests to nginx. Each request opens a connection to sessile.
const REQUESTS: usize = 20;

/// An nginx server that forwards each request over a new TLS connection.
fn nginx_as_a_client(folder: &Path, server: &Server, protocol: &str) -> Peer {
    let address = server.address();
    nginx_with(folder, |port| {
        format!(
            "listen 127.0.0.1:{port};\n\
             location / {{\n\
               proxy_pass https://{address};\n\
               proxy_ssl_protocols {protocol};\n\
               proxy_ssl_server_name on; proxy_ssl_name localhost;\n\
             }}\n"
        )
    })
}

#[test]
fn nginx_as_a_proxy_resumes_all_connections_after_the_first() {
    for (protocol, tickets, how) in [
        ("TLSv1.2", true, How::Ticket),
        ("TLSv1.2", false, How::SessionId),
        ("TLSv1.3", true, How::Psk),
    ] {
        let farm = Farm::new(&format!("tickets = {tickets}\n"));
        let server = farm.serve("web1");
        let nginx = nginx_as_a_client(farm.folder(), &server, protocol);
        let url = format!("http://{}/verdict.json", nginx.address());
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail"]).args(vec![url; REQUESTS]);
        run("curl", &mut curl, "").succeeded();

        let metrics = server.metrics();
        assert_eq!(metrics.verdict("full/nothing-offered"), 1, "{metrics}");
        let resumed = metrics.verdict(how.verdict());
        assert_eq!(resumed, REQUESTS as u64 - 1, "{protocol}: {metrics}");
    }
}

/// The number of NewSessionTicket messages for a client that offers the session in a file.
fn tickets_received(server: &Server, arguments: &[&str], session: &Path) -> usize {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-msg", "-ign_eof", "-servername", "localhost"]);
    command.arg("-connect").arg(server.address().to_string());
    command.args(arguments).arg("-sess_out").arg(session);
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    let request = "HEAD / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let ran = run("openssl", &mut command, request).succeeded();
    let received = ran.stdout.lines().filter(|line| line.starts_with("<<<"));
    received
        .filter(|line| line.contains("NewSessionTicket"))
        .count()
}

#[test]
fn a_resumed_handshake_gives_one_tls13_ticket_and_no_tls12_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let farm = Farm::new("");
    let server = farm.serve("web1");
    let session = folder.path().join("tls13");
    let received = [(); 4].map(|()| tickets_received(&server, &["-tls1_3"], &session));
    assert_eq!(received, [2, 1, 1, 1]);
    let session = folder.path().join("tls12");
    let received = [(); 4].map(|()| tickets_received(&server, &["-tls1_2"], &session));
    assert_eq!(received, [1, 0, 0, 0]);
    let metrics = server.metrics();
    assert_eq!(metrics.verdict("resumed/psk"), 3, "{metrics}");
    assert_eq!(metrics.verdict("resumed/ticket"), 3, "{metrics}");
}

#[test]
fn resuming_by_session_id_gives_no_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "tickets = false\n");
    let without_tickets = farm.serve("web1");
    let settings = format!("store = \"{}\"\nstore-timeout = \"3s\"\n", redis.url());
    let with_tickets = farm.with(&settings).serve("web2");
    let session = folder.path().join("session");
    let arguments = ["-tls1_2"];
    assert_eq!(tickets_received(&without_tickets, &arguments, &session), 0);
    for _ in 0..3 {
        assert_eq!(tickets_received(&with_tickets, &arguments, &session), 0);
    }
    let metrics = with_tickets.metrics();
    assert_eq!(metrics.verdict("resumed/session-id"), 3, "{metrics}");
}

#[test]
fn a_declined_ticket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let server = Farm::new("").serve("web1");
    let session = folder.path().join("session");
    let aes_128 = ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"];
    let aes_256 = ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"];
    assert_eq!(tickets_received(&server, &aes_128, &session), 1);
    // The library first accepts the session, then declines it because the cipher suite differs.
    assert_eq!(tickets_received(&server, &aes_256, &session), 1);
    assert_eq!(tickets_received(&server, &aes_256, &session), 0);
    let metrics = server.metrics();
    assert_eq!(metrics.verdict("full/suite-mismatch"), 1, "{metrics}");
    assert_eq!(metrics.verdict("resumed/ticket"), 1, "{metrics}");
}

/// Lifetime of the certificate in the tests below. Sessions end one minute before the certificate.
const CERTIFICATE: Duration = Duration::from_secs(30 * 60);

/// Two servers with a certificate that expires soon, and a clock that both servers read from a
/// file.
struct EndingCertificate {
    _redis: Redis,
    farm: Farm,
    servers: [Server; 2],
    clock: std::path::PathBuf,
}

impl EndingCertificate {
    fn new(settings: &str) -> Self {
        let redis = Redis::start();
        let farm = Farm::sharing(&redis.url(), settings);
        let pem = fs::read_to_string(farm.folder().join("server.key")).unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_1970 + CERTIFICATE;
        let certificate = params.self_signed(&KeyPair::from_pem(&pem).unwrap());
        let chain = farm.folder().join("server.pem");
        fs::write(chain, certificate.unwrap().pem()).unwrap();

        let clock = farm.folder().join("clock");
        fs::write(&clock, "+0").unwrap();
        let servers = ["web1", "web2"].map(|name| farm.serve_by(name, &clock));
        Self {
            _redis: redis,
            farm,
            servers,
            clock,
        }
    }

    /// Sets the servers' clocks to the time `left` before the end of the certificate.
    fn set_clock_before_the_end(&self, left: Duration) {
        let ahead = CERTIFICATE - left;
        fs::write(&self.clock, format!("+{}", ahead.as_secs())).unwrap();
    }

    fn visit(&self, server: usize, how: How, session: &Path) -> String {
        let address = self.servers[server].address();
        openssl(how, &self.farm.root(), session, address, None)
    }
}

/// The announced lifetime of the ticket in a file, in seconds.
fn announced(session: &Path) -> Option<u64> {
    let mut command = Command::new("openssl");
    command
        .args(["sess_id", "-noout", "-text", "-in"])
        .arg(session);
    let ran = run("openssl", &mut command, "").succeeded();
    ran.stdout.lines().find_map(|line| {
        let (_, hint) = line.split_once("lifetime hint: ")?;
        hint.split(' ').next()?.parse().ok()
    })
}

fn sessions_end_with_the_certificate(settings: &str, mechanisms: &[How]) {
    let farm = EndingCertificate::new(settings);
    let folder = tempfile::tempdir().unwrap();
    for &how in mechanisms {
        farm.set_clock_before_the_end(CERTIFICATE);
        let session = folder.path().join(format!("{how:?}"));
        let resumed = how.verdict();
        assert_eq!(farm.visit(0, how, &session), "full/nothing-offered");
        for server in [1, 0, 1] {
            assert_eq!(farm.visit(server, how, &session), resumed);
            if let Some(seconds) = announced(&session).filter(|_| settings.is_empty()) {
                let most = CERTIFICATE - Duration::from_secs(60);
                assert!(seconds <= most.as_secs(), "{how:?}: {seconds} s announced");
                assert!(
                    seconds > most.as_secs() / 2,
                    "{how:?}: {seconds} s announced"
                );
            }
        }
        farm.set_clock_before_the_end(Duration::from_secs(120));
        assert_eq!(farm.visit(0, how, &session), resumed);
        // Tickets from resumed handshakes also end one minute before the certificate.
        farm.set_clock_before_the_end(Duration::from_secs(30));
        assert_eq!(farm.visit(1, how, &session), "full/expired");
    }
}

#[test]
fn a_session_ends_with_the_certificate_of_its_full_handshake() {
    sessions_end_with_the_certificate("", &[How::SessionId, How::Ticket, How::Psk]);
}

#[test]
fn a_stored_session_ends_with_the_certificate_of_its_full_handshake() {
    sessions_end_with_the_certificate("early-data = \"16KiB\"\n", &[How::Psk]);
    sessions_end_with_the_certificate("require-close-notify = true\n", &[How::Ticket, How::Psk]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_certificate_about_to_expire_gives_no_session() {
    let farm = EndingCertificate::new("");
    farm.set_clock_before_the_end(Duration::from_secs(50));
    for mechanism in [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk] {
        let client = client(mechanism);
        let address = farm.servers[0].address();
        assert_eq!(verdict(&client, address).await, "full/nothing-offered");
        assert!(client.sessions.is_empty(), "{mechanism:?}");
    }
    // A client that accepts an expired certificate still connects and resumes.
    farm.set_clock_before_the_end(Duration::ZERO);
    let client = client(Mechanism::Psk);
    let address = farm.servers[0].address();
    assert_eq!(verdict(&client, address).await, "full/nothing-offered");
    assert_eq!(verdict(&client, address).await, "resumed/psk");
}
