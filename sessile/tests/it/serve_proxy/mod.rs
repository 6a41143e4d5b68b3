//! Requests through `sessile serve` to a real upstream, made by curl, openssl and Python.

mod attacks;
mod failures;
mod hosts;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::peers::{Certificates, NAME, Peer, Ran, Sessile, curl, free_port, run};

/// The comments in `upstream.py` describe its paths.
pub(crate) fn upstream() -> Peer {
    Peer::start("python3", upstream_on)
}

fn upstream_on(port: u16) -> Command {
    let mut command = Command::new("python3");
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/serve_proxy/upstream.py"
    );
    command.arg(script).arg(port.to_string());
    command
}

/// A server with one worker, so that all requests share the upstream connections.
struct ProxySetup {
    certificates: Certificates,
    folder: TempDir,
    sessile: Sessile,
}

impl ProxySetup {
    /// Forwards all requests to these servers, except below `/here`.
    fn start(servers: &[u16], keys: &str) -> Self {
        Self::start_with(servers, "", keys)
    }

    /// `listener`: more keys of the listener. `keys`: more keys of the upstream, and other sections.
    fn start_with(servers: &[u16], listener: &str, keys: &str) -> Self {
        let (certificates, folder) = (Certificates::new(), tempfile::tempdir().unwrap());
        let servers = servers
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}"));
        let text = format!(
            "server.workers = 1\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n\
             [[upstream]]\nname = \"app\"\nservers = {servers:?}\n{keys}\n\
             [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
             [[site.route]]\npath = \"/\"\nproxy = \"app\"\n\
             [[site.route]]\npath = \"/here\"\nrespond = \"here\"\n\
             [[site.route]]\npath = \"/verdict\"\nverdict = true\n",
            certificates.chain,
            certificates.key,
            servers = servers.collect::<Vec<_>>(),
        );
        let config = folder.path().join("sessile.toml");
        fs::write(&config, text).unwrap();
        let sessile = Sessile::serve_configured(&config, &folder.path().join("state"));
        Self {
            certificates,
            folder,
            sessile,
        }
    }

    fn curl(&self, path: &str, arguments: &[&str]) -> Command {
        curl(&self.sessile, &self.certificates, path, arguments)
    }

    fn ask(&self, path: &str, arguments: &[&str]) -> Ran {
        run("curl", &mut self.curl(path, arguments), "")
    }

    /// The status, head and body of a response.
    fn get(&self, path: &str, arguments: &[&str]) -> (u16, String, String) {
        let arguments = [&["--include"], arguments].concat();
        let answer = self.ask(path, &arguments).succeeded().stdout;
        let (mut head, mut body) = answer.split_once("\r\n\r\n").expect("a whole head");
        while head.contains(" 100") {
            (head, body) = body.split_once("\r\n\r\n").expect("a whole head");
        }
        let status = head.split(' ').nth(1).expect("a status");
        (status.parse().unwrap(), head.to_owned(), body.to_owned())
    }

    fn status(&self, path: &str, arguments: &[&str]) -> u16 {
        self.get(path, arguments).0
    }

    /// The output of `openssl s_client` after it sent these bytes.
    fn raw(&self, request: &str) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-servername", NAME, "-connect"]);
        command.arg(self.sessile.address().to_string());
        run("openssl", &mut command, request).stdout
    }

    /// The number of upstream requests with this result.
    fn results(&self, result: &str) -> u64 {
        let labels = [("upstream", "app"), ("result", result)];
        let metrics = self.sessile.metrics();
        metrics.sum("sessile_upstream_requests_total", &labels)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A header of a response.
fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let field = fields.find(|(its, _)| its.eq_ignore_ascii_case(name));
    field.map(|(_, value)| value.trim_end())
}

/// The values of a header in the request that the upstream got.
fn seen<'v>(asked: &'v Value, name: &str) -> Vec<&'v str> {
    let headers = asked["headers"].as_array().unwrap().iter();
    let named = headers.filter(|header| header[0] == name);
    named.map(|header| header[1].as_str().unwrap()).collect()
}

const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

/// Without `--no-alpn`, curl offers only `http/1.0`, which sessile does not support in ALPN.
const HTTP10: [&str; 2] = ["--http1.0", "--no-alpn"];

#[test]
fn requests_arrive_unchanged_with_the_forwarding_headers() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    for version in VERSIONS {
        let arguments = [
            version,
            "--request",
            "BREW",
            "--data",
            "a body",
            "-HCookie: a=1",
            "-HX-Forwarded-For: 10.9.8.7",
            "-HX_Forwarded_For: 10.9.8.7",
            "-HForwarded: for=10.9.8.7",
            "-HX-Real-IP: 10.9.8.7",
            "-HTE: gzip, trailers",
            "-HX-Kept: yes",
        ];
        let (status, head, body) = setup.get("/app/echo%20it/%2F?a=b&c", &arguments);
        assert_eq!(status, 200, "{head}\n{body}");
        let asked: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(asked["method"], "BREW");
        assert_eq!(asked["path"], "/app/echo%20it/%2F?a=b&c");
        assert_eq!(asked["version"], "HTTP/1.1");
        assert_eq!(asked["body"], "a body");
        let host = format!("{NAME}:{}", setup.sessile.address().port());
        let forwarded = format!("for=127.0.0.1;proto=https;host=\"{host}\"");
        let via = match version {
            "--http2" => "2.0 sessile",
            _ => "1.1 sessile",
        };
        for (name, value) in [
            ("host", &*host),
            ("forwarded", &forwarded),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", &host),
            ("via", via),
            ("te", "trailers"),
            ("cookie", "a=1"),
            ("content-length", "6"),
            ("x-kept", "yes"),
        ] {
            assert_eq!(seen(&asked, name), [value], "{name}: {asked}");
        }
        assert!(!body.contains("10.9.8.7"), "{asked}");
        assert_eq!(header(&head, "x-kept"), Some("1"));
        for name in ["x-hop", "keep-alive", "connection"] {
            assert_eq!(header(&head, name), None, "{head}");
        }
    }
    assert_eq!(setup.results("ok"), 2);
}

#[test]
fn large_bodies_pass_in_both_directions() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    // The size is not a multiple of any buffer size.
    let bytes: Vec<u8> = (0..6_000_001_u32).map(|n| (n % 251) as u8).collect();
    let (sent, got) = (setup.file("sent"), setup.file("got"));
    fs::write(&sent, &bytes).unwrap();
    let (sent, got) = (sent.to_str().unwrap(), got.to_str().unwrap());
    for version in VERSIONS {
        for length in ["Content-Length: 6000001", "Transfer-Encoding: chunked"] {
            if version == "--http2" && length.starts_with("Transfer") {
                continue;
            }
            let arguments = [version, "-H", length, "-T", sent, "-o", got];
            setup.ask("/mirror", &arguments).succeeded();
            assert!(fs::read(got).unwrap() == bytes, "{version} {length}");
        }
        // The upstream sends a large body with a Content-Length.
        setup
            .ask("/sized?4194304", &[version, "-o", got])
            .succeeded();
        assert_eq!(fs::metadata(got).unwrap().len(), 4 << 20);
        // curl reads this body from a pipe, so curl does not know the length.
        let mut piped = setup.curl("/count", &[version, "-T", "-"]);
        let counted = run("curl", &mut piped, &"x".repeat(1_000_000)).succeeded();
        assert_eq!(counted.stdout, "1000000");
    }
    // Test a GET with a body, and then a response that ends with the upstream's connection.
    let (_, _, body) = setup.get("/echo", &["--request", "GET", "--data", "odd"]);
    assert!(body.contains("\"body\": \"odd\""), "{body}");
    for version in [&HTTP10[..], &["--http1.1"], &["--http2"]] {
        assert_eq!(setup.get("/until-close", version).2, "to the end");
    }
}

#[test]
fn announced_trailers_arrive() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let answer = setup.raw(&format!(
        "POST /trailers HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\
         Trailer: x-sum, content-length\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\nX-Sum: 9\r\nContent-Length: 3\r\nX-Other: 1\r\n\r\n"
    ));
    let (_, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    assert_eq!(body, "x-sum: 9\r\n", "{answer}");
}

#[test]
fn responses_without_a_body_keep_their_headers() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    for version in VERSIONS {
        let (status, head, body) = setup.get("/echo", &[version, "--head"]);
        let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
        assert_eq!((status, &*body), (200, ""));
        assert!(length > 100, "{head}");
        for code in ["204", "304"] {
            let (status, head, body) = setup.get(&format!("/status?{code}"), &[version]);
            assert_eq!((status.to_string(), &*body), (code.to_owned(), ""));
            assert_eq!(header(&head, "etag"), Some("\"x\""));
            assert_eq!(header(&head, "content-length"), None, "{head}");
        }
        let (status, _, body) = setup.get("/status?503", &[version]);
        assert_eq!((status, &*body), (503, "as asked"));
    }
    assert_eq!(setup.results("ok"), 8);
}

#[test]
fn a_long_head_without_a_body_leaves_at_once() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    // The TLS stream holds long writes of HTTP/2 until the next flush. No other frame follows this head.
    let path = format!(
        "/raw?HTTP/1.1%20204%20x%0d%0aX-Long:{}%0d%0a%0d%0a",
        "x".repeat(1000)
    );
    for version in VERSIONS {
        assert_eq!(setup.status(&path, &[version]), 204);
    }
}

#[test]
fn the_longest_matching_route_answers_for_every_spelling_of_a_path() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    for version in VERSIONS {
        assert_eq!(setup.get("/here/echo", &[version]).2, "here");
        for path in [
            "/x/../here",
            "/x/%2e%2E/here",
            "/./here",
            "/..",
            "/a/..;b/here",
            "/x/..%2fhere",
            "/x%2f..%2Fhere",
            "/x\\..\\here",
            "/%2fhere",
            "/here%5cecho",
            "/here;x",
            "/here%00",
            "/here%",
        ] {
            assert_eq!(setup.status(path, &[version]), 400, "{path}");
        }
        for path in ["/%68ere", "//here/echo", "///%68%65re//"] {
            assert_eq!(setup.get(path, &[version]).2, "here", "{path}");
        }
        let upgrade = ["-HUpgrade: websocket", "-HConnection: upgrade"];
        assert_eq!(
            setup.status("/echo", &["--http1.1", upgrade[0], upgrade[1]]),
            501
        );
        assert_eq!(setup.status("/echo", &[version, "--request", "TRACE"]), 501);
    }
    let connect = format!("CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    let answer = setup.raw(&connect);
    assert!(answer.starts_with("HTTP/1.1 501"), "{answer}");
    assert_eq!(setup.results("ok"), 0);
}

#[test]
fn forwards_the_early_data_header_and_the_425_answer() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    for version in VERSIONS {
        for method in ["GET", "POST"] {
            let ask = |mark: &[&str]| {
                let arguments = [&[version, "--request", method], mark].concat();
                setup.status("/early", &arguments)
            };
            assert_eq!(ask(&[]), 200);
            assert_eq!(ask(&["-HEarly-Data: 1"]), 425);
            assert_eq!(ask(&["-HEarly-Data: 0"]), 425);
        }
    }
    let named = ["-HEarly-Data: 1", "-HConnection: early-data"];
    assert_eq!(
        setup.status("/early", &["--http1.1", named[0], named[1]]),
        425
    );
}

#[test]
fn a_request_is_never_split_into_two() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let host = format!("Host: {NAME}\r\n");
    let hidden = format!("GET /hang-up HTTP/1.1\r\n{host}\r\n");
    let length = format!("Content-Length: {}\r\n", hidden.len() + 5);
    let chunked = "Transfer-Encoding: chunked\r\n";
    // Two servers could interpret these requests differently. Each request is sent alone, and behind another
    // request.
    for odd in [
        format!("{host}{length}{chunked}"),
        format!("{host}{chunked}{length}"),
        format!("{host}{length}{length}"),
        format!("{host}{chunked}{chunked}"),
        format!("{host}Content-Length: 18446744073709551615\r\n"),
        format!("{host}Content-Length: 18446744073709551614\r\n"),
        format!("{host}Content-Length: 18446744073709551616\r\n"),
    ] {
        let first = format!("POST /echo HTTP/1.1\r\n{host}{chunked}\r\n3\r\n\r\n\r\r\n0\r\n\r\n");
        for path in ["/echo", "/here"] {
            let request = format!("POST {path} HTTP/1.1\r\n{odd}\r\n0\r\n\r\n{hidden}");
            let answer = setup.raw(&request);
            assert!(answer.starts_with("HTTP/1.1 400"), "{odd}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
            let answer = setup.raw(&format!("{first}{request}"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{odd}: {answer}");
            assert!(answer.contains("HTTP/1.1 400"), "{odd}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
        }
    }
    for odd in [
        format!("{host}{host}"),
        format!("{host}Transfer-Encoding: gzip, chunked\r\n"),
        format!("{host}Transfer-Encoding: identity\r\n"),
        format!("{host}Transfer-Encoding: xchunked\r\n"),
        format!("{host}Content-Length: 5\r\nContent-Length: 6\r\n"),
        format!("{host}Content-Length: 5, 5\r\n"),
        format!("{host}Content-Length: +5\r\n"),
        format!("{host}Transfer-Encoding : chunked\r\n"),
        format!("{host}X-A: b\r\n Transfer-Encoding: chunked\r\n"),
        format!("{host}X-A: b\rTransfer-Encoding: chunked\r\n"),
        "X-A: no host\r\n".to_owned(),
    ] {
        let answer = setup.raw(&format!(
            "POST /echo HTTP/1.1\r\n{odd}\r\n0\r\n\r\n{hidden}"
        ));
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 400");
        assert!(refused, "{odd}: {answer}");
    }
    // In trailers, LF alone ends no line for the HTTP library. Otherwise the body of the second request
    // would hide the third, which gives its length twice.
    let second = "0\r\na: b\n\r\nX: 1\r\nContent-Length: 9999\r\n\r\n";
    let third = format!("POST /hang-up HTTP/1.1\r\n{host}{length}{chunked}\r\n0\r\n\r\n");
    let first = format!("POST /echo HTTP/1.1\r\n{host}{chunked}\r\n");
    let answer = setup.raw(&format!("{first}{second}{third}"));
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(!app.said().contains("hung up"));
    // The upstream only got the valid requests, which were in front of the refused requests.
    assert_eq!(setup.results("ok"), 14);
}

#[test]
fn a_head_that_is_too_large_gets_431() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let with_field = |version, length| {
        let field = format!("-HX-Long: {}", "x".repeat(length));
        setup.ask("/here", &[version, "--write-out", " %{http_code}", &field])
    };
    for version in VERSIONS {
        assert_eq!(with_field(version, 60 * 1024).stdout, "here 200");
    }
    assert_eq!(with_field(VERSIONS[0], 66 * 1024).stdout, " 431");
    // Over HTTP/2, the server ends the connection instead.
    assert!(!with_field(VERSIONS[1], 66 * 1024).status.success());
}

#[test]
fn the_first_server_that_accepts_a_connection_answers() {
    let app = upstream();
    let down = free_port();
    let setup = ProxySetup::start(&[down, app.address().port()], "");
    assert_eq!(setup.status("/echo", &[]), 200);
    assert_eq!(setup.results("ok"), 1);
}
