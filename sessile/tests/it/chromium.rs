//! Chromium resumes when it returns after the server has closed the idle connection. Its
//! ClientHello has GREASE ECH and a post-quantum key share.

use std::collections::HashSet;
use std::fs;

use serde_json::json;
use sessile_proto::hello::{DEFAULT_LIMIT, HelloReader};

use crate::peers::{
    Answer, Browser, Certificates, Cut, Farm, NAME, Peer, Proxy, Resumption, Sessile, Web, s_client,
};

/// Two servers with a shared farm key and a short idle timeout, behind a balancer with round robin.
struct Servers {
    certificates: Certificates,
    servers: [Sessile; 2],
    balancer: Sessile,
}

impl Servers {
    fn start(tickets: bool) -> Self {
        let certificates = Certificates::new();
        let folder = certificates.folder();
        // The icon is inline, so that the browser makes no connection for the icon.
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

    /// Waits until no client connection is open.
    fn await_silence(&self) {
        let open = "sessile_balance_connections_open";
        self.balancer
            .await_metrics(|metrics| metrics.sum(open, &[]) == 0);
    }
}

/// Starts a browser that returns three times, each time on a new connection. The result is the
/// answer to each fetch.
fn visits(servers: &Servers, more: &[&str]) -> Vec<Answer> {
    let browser = Browser::trusting(&servers.certificates, more);
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
fn chromium_resumes_tls13_at_every_server() {
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
fn chromium_resumes_session_ids_at_their_server() {
    let servers = Servers::start(false);
    let answers = visits(&servers, &["--ssl-version-max=tls1.2"]);
    assert_resumed(&answers, "TLSv1.2", "resumed/session-id");
    assert!(servers.balancer.metrics().routed("session-id", "resumed") >= 3);
}

/// A browser with servers of other software, behind a balancer with a short idle timeout.
struct Visitor {
    /// A proxy that records the ClientHellos of the browser.
    proxy: Proxy,
    balancer: Sessile,
    browser: Browser,
}

impl Visitor {
    /// `sections`: more sections of the balancer's configuration.
    fn start(certificates: &Certificates, servers: &[Peer], health: &str, sections: &str) -> Self {
        let mut text = format!(
            "{sections}[key]\nfile = \"none\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
             [balance]\npolicy = \"round-robin\"\nidle-timeout = \"1s\"\nhealth = \"{health}\"\n"
        );
        for (name, server) in ('a'..='z').zip(servers) {
            let address = server.address();
            text += &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        }
        let config = certificates.folder().join("balance.toml");
        fs::write(&config, text).unwrap();
        let balancer = Sessile::balance_configured(&config, certificates.folder());
        Self {
            proxy: Proxy::start(balancer.address(), Cut::Whole),
            balancer,
            browser: Browser::trusting(certificates, &[]),
        }
    }

    /// Opens a page from which all later visits start.
    fn open(&self) {
        let port = self.proxy.address().port();
        self.browser.open(&format!("https://{NAME}:{port}/page"));
    }

    /// Makes the browser return `times` times, each time on a new connection.
    fn return_times(&self, times: u64) {
        for _ in 0..times {
            let open = "sessile_balance_connections_open";
            self.balancer.await_metrics(|it| it.sum(open, &[]) == 0);
            let fetched = self.browser.run(
                "fetch('/', {cache: 'no-store'}).then(response => done(response.status), error => done(String(error)))",
            );
            assert_eq!(fetched, json!(204));
        }
    }

    /// True if the next ClientHello has `encrypted_client_hello`, as our own parser reads it.
    fn sent_ech(&self) -> bool {
        let bytes = self.proxy.hello();
        let mut reader = HelloReader::new(DEFAULT_LIMIT);
        assert_eq!(reader.push(&bytes), Ok(true));
        reader.hello().unwrap().encrypted_client_hello
    }
}

fn assert_chromium_returns(web: Web) {
    const RETURNS: u64 = 4;
    let certificates = Certificates::new();
    let servers = [(); 3].map(|()| web.start(&certificates, Resumption::Psk));
    let visitor = Visitor::start(&certificates, &servers, "tls", "");
    let balancer = &visitor.balancer;
    for name in ["a", "b", "c"] {
        balancer.await_server(name, |server| server["key_names"] != json!([]));
    }
    visitor.open();
    visitor.return_times(RETURNS);
    let metrics = balancer.await_metrics(|it| it.routed("key-name", "resumed") >= RETURNS);
    for by in ["policy", "key-name"] {
        assert_eq!(metrics.routed(by, "refused"), 0, "{metrics}");
    }
    for _ in 0..=RETURNS {
        assert!(visitor.sent_ech());
    }
}

#[test]
fn chromium_returns_to_its_nginx() {
    assert_chromium_returns(Web::Nginx);
}

#[test]
fn chromium_returns_to_its_haproxy() {
    assert_chromium_returns(Web::Haproxy);
}

#[test]
fn chromium_returns_to_its_apache() {
    assert_chromium_returns(Web::Apache);
}

#[test]
fn chromium_returns_to_its_caddy() {
    assert_chromium_returns(Web::Caddy);
}

#[test]
fn chromium_confirms_a_key_name_but_creates_none() {
    const RETURNS: u64 = 4;
    let certificates = Certificates::new();
    let servers = [Web::Nginx.start(&certificates, Resumption::Psk)];
    // Without an address table, the policy places the browser.
    let sections = "[session]\nmax-entries = 0\n";
    let visitor = Visitor::start(&certificates, &servers, "off", sections);
    let balancer = &visitor.balancer;
    visitor.open();
    visitor.return_times(RETURNS);
    // The server has accepted more than two tickets. From a client without ECH, two accepted
    // tickets would have proven the key name.
    let metrics = balancer.await_metrics(|it| it.routed("policy", "resumed") >= RETURNS);
    assert_eq!(metrics.routed("key-name", "resumed"), 0, "{metrics}");
    let server = balancer.await_server("a", |_| true);
    assert_eq!(server["key_names"], json!([]), "{server}");
    assert!(visitor.sent_ech());

    let session = certificates.folder().join("session");
    let session = session.to_str().unwrap();
    let address = balancer.address();
    s_client(address, None, &["-tls1_3", "-sess_out", session]);
    for _ in 0..2 {
        s_client(
            address,
            None,
            &["-tls1_3", "-sess_in", session, "-sess_out", session],
        );
    }
    balancer.await_server("a", |server| server["key_names"] != json!([]));
    visitor.return_times(RETURNS);
    balancer.await_metrics(|it| it.routed("key-name", "resumed") >= RETURNS);
}

/// The built-in page as the browser shows it.
#[derive(Debug)]
struct ShownPage {
    heading: String,
    server: String,
    verdict: String,
    meaning: String,
    request: String,
    /// The verdicts of the last visits, the newest first.
    visits: Vec<String>,
    /// The number of files that the page loaded.
    resources: u64,
}

impl ShownPage {
    /// Waits for the page of a visit. The first visit has the number 1.
    fn await_visit(browser: &Browser, number: usize) -> Self {
        let shown = browser.await_value(
            "const text = selector => document.querySelector(selector).innerText;\
             const rows = [...document.querySelectorAll('#visits-rows tr')];\
             return {heading: text('h1'), meaning: text('#meaning'),\
             visit: {...document.getElementById('visit').dataset},\
             visits: rows.map(row => row.cells[2].innerText),\
             resources: performance.getEntriesByType('resource').length}",
            |shown| {
                shown["visits"]
                    .as_array()
                    .is_some_and(|visits| visits.len() == number)
            },
        );
        let word = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        Self {
            heading: word(&shown["heading"]),
            server: word(&shown["visit"]["server"]),
            verdict: word(&shown["visit"]["verdict"]),
            meaning: word(&shown["meaning"]),
            request: word(&shown["visit"]["request"]),
            visits: shown["visits"]
                .as_array()
                .expect("a list")
                .iter()
                .map(word)
                .collect(),
            resources: shown["resources"].as_u64().expect("a number"),
        }
    }
}

#[test]
fn the_button_of_the_built_in_page_shows_a_resumed_session_at_the_next_server() {
    const RETURNS: usize = 3;
    let farm = Farm::start(&[]);
    let browser = Browser::accepting_any_certificate();
    let url = format!("https://localhost:{}/", farm.port());
    browser.open(&url);
    let first = ShownPage::await_visit(&browser, 1);
    assert_eq!(first.heading, "Full handshake", "{first:?}");
    assert_eq!(first.verdict, "full/nothing-offered", "{first:?}");
    assert!(first.meaning.contains("no session"), "{first:?}");
    // A reload stays on the connection of HTTP/2.
    browser.open(&url);
    let reloaded = ShownPage::await_visit(&browser, 2);
    assert_eq!(reloaded.request, "2", "{reloaded:?}");
    assert_eq!(reloaded.verdict, first.verdict, "{reloaded:?}");
    let mut servers = HashSet::from([reloaded.server]);
    for returns in 1..=RETURNS {
        browser.click("button");
        let page = ShownPage::await_visit(&browser, 2 + returns);
        assert_eq!(page.heading, "Resumed", "{page:?}");
        assert_eq!(page.verdict, "resumed/psk", "{page:?}");
        assert_eq!(
            (page.request.as_str(), page.resources),
            ("1", 0),
            "{page:?}"
        );
        let mut visits = vec!["resumed/psk"; returns];
        visits.extend(["full/nothing-offered"; 2]);
        assert_eq!(page.visits, visits, "{page:?}");
        servers.insert(page.server);
    }
    assert!(servers.len() > 1, "{servers:?}");
    farm.await_metrics(|metrics| metrics.verdict("resumed/psk") >= RETURNS as u64);
    // The page shows the visit even if the browser keeps something else.
    browser.run("sessionStorage.setItem('sessile-visits', '[null, 5]'), done()");
    browser.open(&url);
    ShownPage::await_visit(&browser, 1);
}
