//! A headless Chromium, driven over WebDriver (W3C).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Certificates, NAME, Peer, run};

/// Limit of the time for a command, including the browser's start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The path of Chromium in Debian's package.
const CHROMIUM: &str = "/usr/bin/chromium";

/// A browser with its own profile. Stopped when dropped.
pub(crate) struct Browser {
    driver: Peer,
    /// The path `/session/<id>`.
    session: String,
}

impl Browser {
    /// Starts a browser that trusts the servers' certificate and finds [`NAME`] at 127.0.0.1.
    pub(crate) fn trusting(certificates: &Certificates, arguments: &[&str]) -> Self {
        let command = format!(
            "openssl x509 -in {:?} -noout -pubkey | openssl pkey -pubin -outform der \
             | openssl dgst -sha256 -binary | openssl base64",
            certificates.chain
        );
        let fingerprint = run("openssl", Command::new("sh").args(["-c", &command]), "")
            .succeeded()
            .stdout;
        let trust = "--ignore-certificate-errors-spki-list";
        let mut all = vec![
            format!("{trust}={}", fingerprint.trim()),
            format!("--host-resolver-rules=MAP {NAME} 127.0.0.1"),
        ];
        all.extend(arguments.iter().map(ToString::to_string));
        Self::start(&all, false)
    }

    /// Starts a browser whose user clicks through the warning about an unknown authority.
    pub(crate) fn accepting_any_certificate() -> Self {
        Self::start(&[], true)
    }

    /// Starts a browser with these arguments, and with the flags for headless use in containers.
    fn start(arguments: &[String], accepts_any_certificate: bool) -> Self {
        let there = Path::new(CHROMIUM).exists();
        assert!(there, "{CHROMIUM} is missing: install the package chromium");
        let driver = Peer::start("chromium-driver", |port| {
            let mut command = Command::new("chromedriver");
            command.arg(format!("--port={port}"));
            command
        });
        let mut all = vec![
            // Root cannot use the sandbox, and tests in containers run as root.
            "--no-sandbox".to_owned(),
            "--headless=new".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            "--no-proxy-server".to_owned(),
        ];
        all.extend_from_slice(arguments);
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": accepts_any_certificate,
            "goog:chromeOptions": {"args": all, "binary": CHROMIUM},
        }}});
        let session = ask(driver.address(), "POST", "/session", &wanted);
        let id = session["sessionId"].as_str().expect("a session");
        Self {
            session: format!("/session/{id}"),
            driver,
        }
    }

    /// Loads a page.
    pub(crate) fn open(&self, url: &str) {
        self.command("url", &json!({ "url": url }));
    }

    /// Runs a script in the page. Returns the value that the script passes to `done`.
    pub(crate) fn run(&self, script: &str) -> Value {
        let script = format!("const done = arguments[0];\n{script}");
        self.command("execute/async", &json!({ "script": script, "args": [] }))
    }

    /// Runs a script again and again, until it succeeds with such a value. A script fails while a page is loaded.
    pub(crate) fn await_value(&self, script: &str, as_it_should: impl Fn(&Value) -> bool) -> Value {
        let path = format!("{}/execute/sync", self.session);
        let body = json!({ "script": script, "args": [] });
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut answer = request(self.driver.address(), "POST", &path, &body)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            let value = answer["value"].take();
            if value.get("error").is_none() && as_it_should(&value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{value:#}");
        }
    }

    /// Clicks an element. The page behind it may load later.
    pub(crate) fn click(&self, selector: &str) {
        let wanted = json!({"using": "css selector", "value": selector});
        let found = self.command("element", &wanted);
        let element = found.as_object().and_then(|found| found.values().next());
        let id = element.and_then(Value::as_str).expect("an element");
        self.command(&format!("element/{id}/click"), &json!({}));
    }

    fn command(&self, name: &str, body: &Value) -> Value {
        let path = format!("{}/{name}", self.session);
        ask(self.driver.address(), "POST", &path, body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver stops the browser. A killed driver would leave the browser running. Ignore
        // errors, because nothing else can stop the browser.
        let _ = request(self.driver.address(), "DELETE", &self.session, &json!({}));
    }
}

/// Sends a command to the driver. Returns the value in the driver's answer.
fn ask(driver: SocketAddr, method: &str, path: &str, body: &Value) -> Value {
    let mut answer = request(driver, method, path, body)
        .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    let value = answer["value"].take();
    assert!(value.get("error").is_none(), "{method} {path}: {value:#}");
    value
}

fn request(driver: SocketAddr, method: &str, path: &str, body: &Value) -> std::io::Result<Value> {
    let mut io = TcpStream::connect(driver)?;
    io.set_read_timeout(Some(PATIENCE))?;
    let body = body.to_string();
    write!(
        io,
        "{method} {path} HTTP/1.1\r\nhost: {driver}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    // The driver keeps the connection open, so the length shows the end of the answer.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        io.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse().ok())
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let mut body = vec![0; length];
    io.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
