//! After SIGHUP, `sessile serve` reloads the configuration and its files while clients connect. If
//! the new configuration is invalid, the server keeps the old configuration.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sessile::client::{Client, EstablishedConnection, Mechanism, Target};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::peers::{Certificates, NAME, Sessile, run};
use crate::store::setup::client;

/// A folder with a configuration and a certificate. Tests can change both files.
struct Setup {
    state: TempDir,
    first: Certificates,
    second: Certificates,
}

impl Setup {
    fn new() -> Self {
        let setup = Self {
            state: tempfile::tempdir().unwrap(),
            first: Certificates::new(),
            second: Certificates::new(),
        };
        setup.install(&setup.first);
        setup.write(&setup.site("", "/", "one"));
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    /// Replaces the certificate.
    fn install(&self, certificates: &Certificates) {
        fs::copy(&certificates.chain, self.path("cert.pem")).unwrap();
        fs::copy(&certificates.key, self.path("key.pem")).unwrap();
    }

    fn write(&self, text: &str) {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{text}");
        fs::write(self.path("sessile.toml"), text).unwrap();
    }

    /// A site that answers with a text below a path, and with the verdict at `/verdict`.
    fn site(&self, names: &str, path: &str, text: &str) -> String {
        format!(
            "[[site]]\nnames = [{names}]\ncertificates = [{{ chain = \"cert.pem\", key = \"key.pem\" }}]\n\
             [[site.route]]\npath = \"/verdict\"\nverdict = true\n\
             [[site.route]]\npath = {path:?}\nrespond = {text:?}\n"
        )
    }

    fn serve(&self) -> Sessile {
        Sessile::serve_configured(&self.path("sessile.toml"), self.state.path())
    }
}

/// The head and body of the response for a path.
async fn ask(connection: &mut EstablishedConnection, host: &str, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nsessile-probe: 1\r\n\r\n");
    let stream = &mut connection.stream;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = |line: &str| line.strip_prefix("content-length: ")?.parse().ok();
    let mut body = vec![0; head.lines().find_map(length).unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Connects and closes cleanly. Returns the verdict.
async fn visit(client: &Client, server: SocketAddr) -> String {
    let target = Target::new(server, NAME).unwrap();
    let mut connection = client.connect(&target).await.unwrap();
    let (head, _) = ask(&mut connection, NAME, "/verdict").await;
    connection.close(Duration::from_secs(5)).await;
    let verdict = |line: &str| Some(line.strip_prefix("sessile-verdict: ")?.to_owned());
    head.lines().find_map(verdict).unwrap()
}

/// Reloads on another thread, so that clients can connect at the same time.
async fn reload(server: &Arc<Sessile>) -> String {
    let server = Arc::clone(server);
    let reload = tokio::task::spawn_blocking(move || server.reload());
    reload.await.unwrap()
}

/// True if openssl accepts the served certificate with this authority.
fn is_served(server: &Sessile, authority: &Path) -> bool {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-verify_return_error", "-servername", NAME]);
    command.arg("-connect").arg(server.address().to_string());
    command.arg("-CAfile").arg(authority);
    run("openssl", &mut command, "").status.success()
}

#[tokio::test(flavor = "current_thread")]
async fn serves_a_renewed_certificate_and_resumes_every_session() {
    let setup = Setup::new();
    let server = Arc::new(setup.serve());
    let address = server.address();
    assert!(is_served(&server, &setup.first.ca));
    assert!(!is_served(&server, &setup.second.ca));
    let clients = [
        (client(Mechanism::SessionId), "resumed/session-id"),
        (client(Mechanism::Ticket), "resumed/ticket"),
        (client(Mechanism::Psk), "resumed/psk"),
    ];
    for (client, _) in &clients {
        assert_eq!(visit(client, address).await, "full/nothing-offered");
    }
    // These clients connect during all reloads.
    let (done, stop) = tokio::sync::watch::channel(false);
    let visitors = clients.clone().map(|(client, how)| {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut visits = 0;
            while !*stop.borrow() {
                assert_eq!(visit(&client, address).await, how);
                visits += 1;
            }
            visits
        })
    });
    for renewed in [&setup.second, &setup.first, &setup.second] {
        setup.install(renewed);
        let said = reload(&server).await;
        assert!(said.contains("certificates reloaded sites=1"), "{said}");
        for (client, how) in &clients {
            assert_eq!(visit(client, address).await, *how);
        }
    }
    done.send_replace(true);
    for visitor in visitors {
        assert!(visitor.await.unwrap() > 0);
    }
    assert!(is_served(&server, &setup.second.ca));
    assert!(!is_served(&server, &setup.first.ca));
}

#[test]
fn an_invalid_configuration_changes_nothing_and_each_fault_is_located() {
    let setup = Setup::new();
    let server = setup.serve();
    let good = setup.site("", "/", "one");
    let no_ca = good.replacen(
        "[[site.route]]",
        "client-auth = { ca = \"no-ca.pem\" }\n[[site.route]]",
        1,
    );
    let cases = [
        (
            good.replace("certificates", "certificate")
                .replace("respond", "respnd"),
            &[
                "sessile.toml:5:1: unknown key `certificate` in [site]; did you mean `certificates`?",
                "sessile.toml:11:1: unknown key `respnd` in [site.route]; did you mean `respond`?",
            ][..],
        ),
        (good.replace("cert.pem", "gone.pem"), &["gone.pem: "]),
        (no_ca, &["no-ca.pem: cannot be read: No such file"]),
        ("not = [toml".to_owned(), &["sessile.toml:3:"]),
    ];
    for (text, expected) in cases {
        setup.write(&text);
        let said = server.reload();
        let expected = expected.iter().chain(&["the old one stays in use"]);
        for part in expected {
            assert!(said.contains(part), "{part}:\n{said}");
        }
        assert!(is_served(&server, &setup.first.ca));
    }
    // Replace the certificate, but not the key.
    setup.write(&good);
    fs::copy(&setup.second.chain, setup.path("cert.pem")).unwrap();
    let said = server.reload();
    assert!(said.contains("does not match certificate"), "{said}");
    assert!(is_served(&server, &setup.first.ca));
    setup.install(&setup.second);
    server.reload();
    assert!(is_served(&server, &setup.second.ca));
    server.await_metrics(|metrics| {
        let reloads = |result| metrics.sum("sessile_reloads_total", &[("result", result)]);
        (reloads("failed"), reloads("ok")) == (5, 1)
    });
}

#[tokio::test(flavor = "current_thread")]
async fn open_connections_keep_the_site_of_their_handshake() {
    let setup = Setup::new();
    let server = Arc::new(setup.serve());
    let target = Target::new(server.address(), NAME).unwrap();
    let client = client(Mechanism::Any);
    let mut before = client.connect(&target).await.unwrap();
    assert_eq!(ask(&mut before, NAME, "/").await.1, "one");
    let changed = setup.site(&format!("{NAME:?}"), "/", "two");
    setup.write(&(changed + &setup.site("\"other.test\"", "/", "three")));
    let said = reload(&server).await;
    assert!(said.contains("sites=2"), "{said}");
    // The status is not 421, because this connection keeps its site.
    assert_eq!(ask(&mut before, NAME, "/").await.1, "one");
    let mut after = client.connect(&target).await.unwrap();
    assert_eq!(ask(&mut after, NAME, "/").await.1, "two");
    let other = Target::new(server.address(), "other.test").unwrap();
    let mut other = client.connect(&other).await.unwrap();
    assert_eq!(ask(&mut other, "other.test", "/").await.1, "three");
    let (head, _) = ask(&mut other, NAME, "/").await;
    assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
    // The reload removed the site for all names.
    let unknown = Target::new(server.address(), "unknown.test").unwrap();
    assert!(client.connect(&unknown).await.is_err());
}

/// An upstream that answers every request with this text.
async fn upstream(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(io.read_u8().await.unwrap());
            }
            let length = text.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
            );
            io.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "current_thread")]
async fn a_reload_changes_the_upstream_for_new_connections() {
    let setup = Setup::new();
    let hand_on = |address: SocketAddr| {
        let site = setup.site("", "/", "one");
        let proxy = site.replace("respond = \"one\"", "proxy = \"app\"");
        setup.write(&format!(
            "[[upstream]]\nname = \"app\"\nservers = [\"http://{address}\"]\n{proxy}"
        ));
    };
    hand_on(upstream("old").await);
    let server = Arc::new(setup.serve());
    let target = Target::new(server.address(), NAME).unwrap();
    let client = client(Mechanism::Any);
    let mut before = client.connect(&target).await.unwrap();
    assert_eq!(ask(&mut before, NAME, "/").await.1, "old");
    hand_on(upstream("new").await);
    reload(&server).await;
    let mut after = client.connect(&target).await.unwrap();
    assert_eq!(ask(&mut after, NAME, "/").await.1, "new");
    assert_eq!(ask(&mut before, NAME, "/").await.1, "old");
}

#[tokio::test(flavor = "current_thread")]
async fn names_the_settings_that_need_a_restart_and_applies_the_others() {
    let setup = Setup::new();
    let server = Arc::new(setup.serve());
    let text = setup.site("", "/", "two");
    let settings = "[session]\nlifetime = \"1h\"\nstore-timeout = \"20ms\"\n[key]\nfile = \"other.key\"\n\
        [[listener]]\naddress = \"127.0.0.2:0\"\n[balance]\npolicy = \"round-robin\"\n";
    setup.write(&(settings.to_owned() + &text));
    let said = reload(&server).await;
    let named: Vec<_> = said
        .lines()
        .filter(|line| line.contains("restart to apply it"))
        .collect();
    assert_eq!(named.len(), 3, "{said}");
    for (line, name) in named
        .iter()
        .zip(["session.lifetime", "key.file", "[[listener]]"])
    {
        assert!(line.contains(name), "{line}");
    }
    let target = Target::new(server.address(), NAME).unwrap();
    let mut connection = client(Mechanism::Any).connect(&target).await.unwrap();
    assert_eq!(ask(&mut connection, NAME, "/").await.1, "two");
    // The setting for early data is part of the sites, so a reload applies this setting.
    let store = "redis://127.0.0.1:1";
    setup.write(&format!(
        "[session]\nstore = \"{store}\"\nearly-data = \"16KiB\"\n{text}"
    ));
    let said = reload(&server).await;
    assert!(said.contains("session.store has changed"), "{said}");
    assert!(!said.contains("session.early-data"), "{said}");
    setup.write(&text);
    assert!(!reload(&server).await.contains("restart to apply it"));
}

#[test]
fn a_reload_without_a_configuration_file_reads_the_certificate_again() {
    let (served, renewed) = (Certificates::new(), Certificates::new());
    let state = tempfile::tempdir().unwrap();
    let server = Sessile::serve(&served, state.path(), state.path());
    assert!(is_served(&server, &served.ca));
    fs::copy(&renewed.chain, &served.chain).unwrap();
    fs::copy(&renewed.key, &served.key).unwrap();
    let said = server.reload();
    assert!(said.contains("certificates reloaded sites=1"), "{said}");
    assert!(is_served(&server, &renewed.ca));
    fs::write(&served.key, "no key").unwrap();
    assert!(server.reload().contains("the old one stays in use"));
    assert!(is_served(&server, &renewed.ca));
}
