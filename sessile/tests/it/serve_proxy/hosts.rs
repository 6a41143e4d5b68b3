//! Sites that share an upstream. One site requires client certificates, and no Host header bypasses
//! this requirement.

use std::fs;
use std::process::Command;

use super::{HTTP10, upstream};
use crate::peers::{Certificates, NAME, Ran, Sessile, run};

/// The name of the site that requires a certificate.
const GUARDED: &str = "guarded.test";

struct Sites {
    certificates: Certificates,
    sessile: Sessile,
    _folder: tempfile::TempDir,
}

impl Sites {
    /// Starts a server with an open site for these names, and the guarded site.
    fn start(upstream: u16, names: &str) -> Self {
        let (certificates, folder) = (Certificates::new(), tempfile::tempdir().unwrap());
        let Certificates { chain, key, ca, .. } = &certificates;
        let site = |names: &str, demand: &str| {
            format!(
                "[[site]]\nnames = [{names}]\n{demand}\
                 certificates = [{{ chain = {chain:?}, key = {key:?} }}]\n\
                 [[site.route]]\npath = \"/\"\nproxy = \"app\"\n"
            )
        };
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[upstream]]\nname = \"app\"\nservers = [\"http://127.0.0.1:{upstream}\"]\n{}{}",
            site(names, ""),
            site(
                &format!("{GUARDED:?}"),
                &format!("client-auth = {{ ca = {ca:?} }}\n")
            ),
        );
        let config = folder.path().join("sessile.toml");
        fs::write(&config, text).unwrap();
        let sessile = Sessile::serve_configured(&config, &folder.path().join("state"));
        Self {
            certificates,
            sessile,
            _folder: folder,
        }
    }

    /// The answer to these bytes on a connection with this server name. `None`: the ClientHello has
    /// no server name.
    fn raw(&self, server_name: Option<&str>, request: &str) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect"]);
        command.arg(self.sessile.address().to_string());
        match server_name {
            Some(name) => command.args(["-servername", name]),
            None => command.arg("-noservername"),
        };
        run("openssl", &mut command, request).stdout
    }

    /// The status of the answer to this Host in HTTP/1.1.
    fn status(&self, server_name: Option<&str>, host: &str) -> String {
        let request = format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = self.raw(server_name, &request);
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    fn curl(&self, arguments: &[&str], host: &str) -> Ran {
        let port = self.sessile.address().port();
        let mut command = Command::new("curl");
        command.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]);
        command.arg(&self.certificates.ca).args(arguments);
        command.args(["--resolve", &format!("{NAME}:{port}:127.0.0.1")]);
        command.args(["-H", &format!("Host: {host}")]);
        run(
            "curl",
            command.arg(format!("https://{NAME}:{port}/echo")),
            "",
        )
    }
}

#[test]
fn an_unknown_host_does_not_reach_the_upstream() {
    let app = upstream();
    let sites = Sites::start(app.address().port(), &format!("{NAME:?}"));
    for (host, status) in [
        ("guarded.test", "421"),
        ("guarded.test:443", "421"),
        ("GUARDED.test.", "421"),
        ("guarded.test.:443", "421"),
        ("guarded.test:", "421"),
        ("unknown.test", "421"),
        ("127.0.0.1", "421"),
        ("[::1]:443", "421"),
        ("guarded.test..", "400"),
        (".guarded.test", "400"),
        ("[guarded.test]", "400"),
        ("guarded.test;", "400"),
        ("guarded.test,", "400"),
        ("guarded.test\t.", "400"),
        ("guarded.test:443:443", "400"),
        ("farm.test:443@guarded.test", "400"),
        ("farm.test@guarded.test", "400"),
        ("guarded%2etest", "400"),
        ("gu\u{e4}rded.test", "400"),
        ("", "400"),
    ] {
        assert_eq!(sites.status(Some(NAME), host), status, "{host:?}");
        // Over HTTP/2, curl, hyper or sessile refuses the request if the host is no valid
        // authority.
        let ran = sites.curl(&["--http2"], host);
        let refused = !ran.status.success() || ran.stdout == status;
        assert!(host.is_empty() || refused, "{host:?}: {}", ran.stdout);
    }
    for head in [
        "GET https://guarded.test/echo HTTP/1.1\r\nHost: farm.test\r\n",
        "GET http://guarded.test./echo HTTP/1.1\r\nHost: farm.test\r\n",
        "GET /echo HTTP/1.0\r\nHost: guarded.test.\r\n",
        "GET /echo HTTP/1.1\r\nHost: farm.test\r\nHost: guarded.test\r\n",
        "GET /echo HTTP/1.1\r\n",
    ] {
        let answer = sites.raw(Some(NAME), &format!("{head}Connection: close\r\n\r\n"));
        let is_refused = ["HTTP/1.1 421 ", "HTTP/1.1 400 ", "HTTP/1.0 421 "]
            .iter()
            .any(|line| answer.starts_with(line));
        assert!(is_refused, "{head}: {answer}");
    }
    assert!(!app.said().contains("asked"), "{}", app.said());
}

#[test]
fn every_spelling_of_the_sites_host_reaches_the_upstream() {
    let app = upstream();
    let sites = Sites::start(app.address().port(), &format!("{NAME:?}, \"*.farm.test\""));
    for host in [
        "farm.test",
        "Farm.Test.",
        "farm.test:8443",
        "farm.test.:443",
        "www.farm.test",
    ] {
        assert_eq!(sites.status(Some(NAME), host), "200", "{host}");
        assert_eq!(sites.curl(&["--http2"], host).succeeded().stdout, "200");
    }
    // A request of HTTP/1.0 needs no Host. The site of the handshake answers such a request.
    let answer = sites.raw(Some(NAME), "GET /echo HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
}

#[test]
fn a_check_by_address_reaches_only_the_site_for_every_name() {
    let app = upstream();
    let sites = Sites::start(app.address().port(), "");
    for name in [None, Some("unknown.test")] {
        for host in ["127.0.0.1:443", "[::1]", "unknown.test", "other.test"] {
            assert_eq!(sites.status(name, host), "200", "{host}");
        }
        for host in ["guarded.test", "guarded.test.", "guarded.test.:443"] {
            assert_eq!(sites.status(name, host), "421", "{host}");
        }
    }
    for host in ["unknown.test", "10.0.0.1"] {
        for version in [&HTTP10[..], &["--http1.1"], &["--http2"]] {
            assert_eq!(
                sites.curl(version, host).succeeded().stdout,
                "200",
                "{host}"
            );
        }
    }
}
