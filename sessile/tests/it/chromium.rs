//! A browser that people have: it comes back after the server has closed its idle connection, and
//! resumes. It sends GREASE, an ECH that is none, and a post-quantum key share.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::peers::{Answer, Browser, Certificates, NAME, Peer, Sessile, nginx, run};

/// Two servers that share a farm key and close connections soon, behind a balancer that spreads
/// clients.
struct Servers {
    certificates: Certificates,
    servers: [Sessile; 2],
    balancer: Sessile,
}

impl Servers {
    fn start(tickets: bool) -> Self {
        let certificates = Certificates::new();
        let folder = certificates.folder();
        // Its icon is no request of its own, whose connection a fetch would share.
        let page = "<!doctype html><link rel=icon href=data:,><title>farm</title>";
        fs::create_dir(folder.join("www")).unwrap();
        fs::write(folder.join("www/index.html"), page).unwrap();
        let servers = ["one", "two"].map(|name| {
            let text = format!(
                "[server]\nname = \"{name}\"\n[key]\nfile = \"farm.key\"\n\
                 [connection]\nidle-timeout = \"300ms\"\n[session]\ntickets = {tickets}\n\
                 [[listener]]\naddress = \"127.0.0.1:0\"\n\
                 [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
                 [[site.route]]\npath = \"/\"\nfiles = \"www\"\n\
                 [[site.route]]\npath = \"/verdict\"\nverdict = true\n",
                certificates.chain, certificates.key,
            );
            let config = folder.join(format!("{name}.toml"));
            fs::write(&config, text).unwrap();
            Sessile::serve_configured(&config, folder)
        });
        let addresses = [servers[0].address(), servers[1].address()];
        let balancer = Sessile::balance(&addresses, &["--policy", "round-robin"]);
        Self {
            certificates,
            servers,
            balancer,
        }
    }

    fn verdict(&self, verdict: &str) -> u64 {
        let counts = self.servers.iter().map(|it| it.metrics().verdict(verdict));
        counts.sum()
    }

    /// Waits until no client has a connection.
    fn await_silence(&self) {
        let open = "sessile_balance_connections_open";
        self.balancer
            .await_metrics(|metrics| metrics.sum(open, &[]) == 0);
    }
}

/// What a browser is to be told so that it trusts this certificate and finds this name.
fn arguments(certificates: &Certificates, more: &[&str]) -> Vec<String> {
    let fingerprint = format!(
        "openssl x509 -in {:?} -noout -pubkey | openssl pkey -pubin -outform der \
         | openssl dgst -sha256 -binary | openssl base64",
        certificates.chain
    );
    let fingerprint = run("openssl", Command::new("sh").args(["-c", &fingerprint]), "");
    let fingerprint = fingerprint.succeeded().stdout;
    let trust = "--ignore-certificate-errors-spki-list";
    let mut arguments = vec![
        format!("{trust}={}", fingerprint.trim()),
        format!("--host-resolver-rules=MAP {NAME} 127.0.0.1"),
    ];
    arguments.extend(more.iter().map(ToString::to_string));
    arguments
}

/// Comes back three times, each time on a new connection; the answers to each fetch.
fn visits(servers: &Servers, more: &[&str]) -> Vec<Answer> {
    let browser = Browser::start(&arguments(&servers.certificates, more));
    let port = servers.balancer.address().port();
    browser.open(&format!("https://{NAME}:{port}/"));
    let mut answers = Vec::new();
    for _ in 0..3 {
        servers.await_silence();
        let fetched = browser.run(
            "fetch('/verdict/verdict.json', {cache: 'no-store'})\
             .then(response => response.text()).then(done, error => done(String(error)))",
        );
        answers.push(Answer::parse(fetched.as_str().expect("a text")));
    }
    answers
}

#[track_caller]
fn assert_resumed(answers: &[Answer], protocol: &str, verdict: &str) {
    for answer in answers {
        assert_eq!(answer.verdict, verdict, "{answers:#?}");
        assert_eq!(answer.protocol, protocol, "{answers:#?}");
        assert_eq!(
            (answer.http.as_str(), answer.request),
            ("HTTP/2", 1),
            "{answers:#?}"
        );
    }
}

#[test]
fn chromium_resumes_tls13_at_whichever_server_it_reaches() {
    let servers = Servers::start(true);
    let answers = visits(&servers, &[]);
    assert_resumed(&answers, "TLSv1.3", "resumed/psk");
    assert!(servers.verdict("resumed/psk") >= 3);
    assert_eq!(servers.balancer.metrics().learned(), 0);
}

#[test]
fn chromium_resumes_tls12_tickets() {
    let servers = Servers::start(true);
    let answers = visits(&servers, &["--ssl-version-max=tls1.2"]);
    assert_resumed(&answers, "TLSv1.2", "resumed/ticket");
    assert!(servers.balancer.metrics().routed("ticket", "resumed") >= 3);
}

#[test]
fn chromium_resumes_session_ids_at_the_server_that_gave_them() {
    let servers = Servers::start(false);
    let answers = visits(&servers, &["--ssl-version-max=tls1.2"]);
    assert_resumed(&answers, "TLSv1.2", "resumed/session-id");
    assert!(servers.balancer.metrics().routed("session-id", "resumed") >= 3);
}

#[test]
fn chromium_comes_home_to_servers_that_share_nothing() {
    const RETURNS: u64 = 4;
    let certificates = Certificates::new();
    let servers = [(); 3].map(|()| {
        let page = "location = /page { default_type text/html; return 200 '<link rel=icon href=data:,>'; }";
        nginx(&certificates, &format!("keepalive_timeout 0; {page}"))
    });
    let addresses = servers.each_ref().map(Peer::address);
    let policy = ["--policy", "round-robin", "--health", "tls"];
    let balancer = Sessile::balance(&addresses, &policy);
    for name in ["a", "b", "c"] {
        balancer.await_server(name, |server| server["key_names"] != json!([]));
    }
    let browser = Browser::start(&arguments(&certificates, &[]));
    let port = balancer.address().port();
    browser.open(&format!("https://{NAME}:{port}/page"));
    for _ in 0..RETURNS {
        let fetched = browser.run(
            "fetch('/', {cache: 'no-store'}).then(response => done(response.status), error => done(String(error)))",
        );
        assert_eq!(fetched, json!(204));
    }
    // It may have opened two connections for the page, and kept one for what came next.
    let metrics = balancer.await_metrics(|it| it.routed("key-name", "resumed") + 1 >= RETURNS);
    assert_eq!(metrics.routed("policy", "refused"), 0, "{metrics}");
    assert_eq!(metrics.routed("key-name", "refused"), 0, "{metrics}");
}
