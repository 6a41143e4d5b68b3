//! Attackers that hold requests or flood a connection. Clients with another source prefix must
//! still get answers.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::{ProxySetup, upstream};
use crate::peers::{eventually, run};

/// Addresses in two source prefixes.
const ATTACKER: &str = "127.0.0.1";
const OTHER: &str = "127.0.7.9";

/// The keys of a listener behind a proxy.
const BEHIND_PROXY: &str = "proxy-protocol = true\nproxy-trusted = [\"127.0.0.1\"]";

/// The header fields of a request that gets the body `0`.
const COUNT: &str = r#"[[":method", "GET"], [":scheme", "https"], [":authority", "farm.test"],
                        [":path", "/count"]]"#;

/// The number of connections, with 32 requests each. An upstream has only 1,024 slots for these
/// requests.
const CONNECTIONS: &str = "35";

/// The server gives up a body that makes no progress for a second. Idle connections may last
/// longer.
const IMPATIENT: &str = "[connection]\nbody-timeout = \"1s\"";

impl ProxySetup {
    /// A command that runs an action of the HTTP/2 client `h2_client.py`.
    fn h2(&self, source: &str, action: &[&str]) -> Command {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/serve_proxy/h2_client.py"
        );
        let mut command = Command::new("python3");
        command.arg(script);
        command.arg(self.sessile.address().port().to_string());
        command.arg(&self.certificates.ca).arg(source).args(action);
        command
    }

    /// The lines that an action prints.
    fn h2_says(&self, action: &[&str]) -> Vec<String> {
        self.h2_from(ATTACKER, action)
    }

    /// The lines that an action prints, if the client has the address `source`.
    fn h2_from(&self, source: &str, action: &[&str]) -> Vec<String> {
        let mut command = self.h2(source, action);
        let said = run("python3", &mut command, "").succeeded().stdout;
        said.lines().map(str::to_owned).collect()
    }

    /// The status that a client of another source gets.
    fn status_of_other(&self) -> u16 {
        self.status("/echo", &["--interface", OTHER])
    }
}

/// An attacker that holds its requests until this value is dropped.
struct Holding(Child);

impl Holding {
    fn start(setup: &ProxySetup, source: &str, action: &str) -> Self {
        let mut command = setup.h2(source, &[action, CONNECTIONS]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 is missing");
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn slow_requests_of_one_source_leave_slots_for_another() {
    let behind_proxy = ["proxy:10.0.1.1", "proxy:10.0.2.1"];
    for (action, listener, [attacker, other]) in [
        ("uploads", "", [ATTACKER, OTHER]),
        ("downloads", BEHIND_PROXY, behind_proxy),
    ] {
        let app = upstream();
        let setup = ProxySetup::start_with(&[app.address().port()], listener, "");
        let attacker = Holding::start(&setup, attacker, action);
        eventually("all slots are taken", || setup.results("overloaded") == 96);
        assert_eq!(setup.results("displaced"), 0, "a single source may use all");
        for displaced in 1..=5 {
            assert_eq!(setup.h2_from(other, &["ask", COUNT]), ["0"], "{action}");
            // Later requests may reuse the slot that the first request has freed.
            eventually("a request ended", || setup.results("displaced") >= 1);
            assert!(setup.results("displaced") <= displaced);
        }
        setup.sessile.await_line("an upstream has no free slot");
        drop(attacker);
        eventually("all are counted", || {
            let counted = ["abandoned", "displaced", "overloaded"];
            let counted: u64 = counted.iter().map(|it| setup.results(it)).sum();
            counted == 35 * 32
        });
    }
}

/// A response over many reads, then a request on the same connection whose body stands still. Prints the
/// status of the second response. Arguments: port, CA file.
const REUSED: &str = r#"
import http.client, socket, ssl, sys
port, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
def response(tls):
    response = http.client.HTTPResponse(tls)
    response.begin()
    return response
with socket.create_connection(("127.0.0.1", port), timeout=45) as tcp:
    with context.wrap_socket(tcp, server_hostname="farm.test") as tls:
        tls.sendall(b"GET /sized?4194304 HTTP/1.1\r\nHost: farm.test\r\n\r\n")
        assert len(response(tls).read()) == 4194304
        tls.sendall(b"POST /count HTTP/1.1\r\nHost: farm.test\r\nContent-Length: 9\r\n\r\nx")
        print(response(tls).status)
"#;

#[test]
fn a_displaced_request_of_a_reused_connection_ends() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let port = setup.sessile.address().port().to_string();
    let mut python = Command::new("python3");
    python.args(["-c", REUSED, &port]);
    python.arg(&setup.certificates.ca).stdout(Stdio::piped());
    let client = python.spawn().expect("python3 is missing");
    eventually("the slow request has the oldest slot", || {
        app.said().matches("asked").count() == 2
    });
    let attacker = Holding::start(&setup, ATTACKER, "uploads");
    eventually("all slots are taken", || setup.results("overloaded") == 97);
    assert_eq!(setup.h2_from(OTHER, &["ask", COUNT]), ["0"]);
    eventually("a request is displaced", || setup.results("displaced") == 1);
    let output = client.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "503\n");
    eventually("the upstream is told", || app.said().contains("body cut"));
    drop(attacker);
}

/// Sends a part of a request and reads the answer. Arguments: port, CA file, request.
const PART: &str = r#"
import socket, ssl, sys
port, ca, request = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with socket.create_connection(("127.0.0.1", port), timeout=30) as tcp:
    with context.wrap_socket(tcp, server_hostname="farm.test") as tls:
        tls.sendall(request.encode())
        print(b"".join(iter(lambda: tls.recv(4096), b"")).decode())
"#;

#[test]
fn a_request_body_that_stands_still_gets_408() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], IMPATIENT);
    let port = setup.sessile.address().port().to_string();
    let mut python = Command::new("python3");
    python
        .args(["-c", PART, &port])
        .arg(&setup.certificates.ca)
        .arg("PUT /count HTTP/1.1\r\nHost: farm.test\r\nContent-Length: 10\r\n\r\nhalf.");
    let answer = run("python3", &mut python, "").succeeded().stdout;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    let said = setup.h2_says(&["stop_sending", "/count"]);
    assert_eq!(said, ["408 Request Timeout", "here"]);
    assert_eq!(setup.results("stalled"), 2);
}

#[test]
fn a_response_that_the_client_does_not_read_is_cut() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], IMPATIENT);
    // Test a route to the upstream and a route that sessile answers. After the reset, the
    // connection stays usable.
    for path in ["/sized?65536", "/here"] {
        let said = setup.h2_says(&["stop_reading", path]);
        assert_eq!(said, ["reset 8 after 0", "here"], "{path}");
    }
    eventually("it is counted", || setup.results("stalled") == 1);
    let stalled = "sessile_responses_stalled_total";
    assert_eq!(setup.sessile.metrics().sum(stalled, &[]), 2);

    let port = setup.sessile.address().port().to_string();
    let mut python = Command::new("python3");
    python.args(["-c", super::failures::STUCK, &port]);
    python.arg(&setup.certificates.ca);
    python.arg("GET /endless HTTP/1.1\r\nHost: farm.test\r\n\r\n");
    let _client = Holding(python.stdin(Stdio::piped()).spawn().unwrap());
    eventually("it is cut", || setup.results("stalled") == 2);
    eventually("the upstream is told", || {
        app.said().contains("client gone")
    });
}

#[test]
fn a_response_that_moves_slowly_is_complete() {
    let app = upstream();
    // The response takes eight seconds, with a step in each second.
    let patient = "[connection]\nbody-timeout = \"5s\"";
    let setup = ProxySetup::start(&[app.address().port()], patient);
    assert_eq!(setup.h2_says(&["read_slowly", "131072"]), ["complete"]);
    assert_eq!(setup.results("ok"), 1);
}

#[test]
fn the_built_in_page_ends_a_connection_after_its_open_requests() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let said = setup.h2_says(&["leave_while_reading", "32768"]);
    assert_eq!(said, ["complete and closed"]);
    assert_eq!(setup.results("ok"), 1);
}

#[test]
fn a_request_body_ends_with_its_response() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let said = setup.h2_says(&["stop_sending", "/answer-first"]);
    assert_eq!(said, ["answered", "here"]);
    eventually("the upstream is told", || app.said().contains("body cut"));
}

#[test]
fn floods_of_frames_without_work_end_their_connection_only() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let counted = ["window-update", "priority", "settings", "ping", "unknown"];
    // The HTTP/2 library limits these kinds of frames.
    let others = ["reset", "continuation"];
    for kind in counted.into_iter().chain(others) {
        assert_eq!(setup.h2_says(&["flood", kind]), ["goaway 11"], "{kind}");
        assert_eq!(setup.status_of_other(), 200);
    }
    let metrics = setup.sessile.metrics();
    assert_eq!(metrics.sum("sessile_http2_floods_total", &[]), 5);
    let line = setup.sessile.await_line("closed an HTTP/2 connection");
    assert!(line.contains("client=127.0.0.1"), "{line}");
}

#[test]
fn frames_without_work_keep_no_connection_open() {
    let app = upstream();
    let idle = "[connection]\nidle-timeout = \"300ms\"";
    let setup = ProxySetup::start(&[app.address().port()], idle);
    assert_eq!(setup.h2_says(&["ping_on"]), ["goaway 0"]);
    let reclaimed = "sessile_connections_reclaimed_total";
    assert_eq!(setup.sessile.metrics().sum(reclaimed, &[]), 1);
}

#[test]
fn a_client_that_acknowledges_every_frame_is_no_flood() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    // The client sends more than 4,000 frames that cause no work.
    assert_eq!(setup.h2_says(&["read_eagerly", "33554432"]), ["complete"]);
    let metrics = setup.sessile.metrics();
    assert_eq!(metrics.sum("sessile_http2_floods_total", &[]), 0);
}

#[test]
fn content_of_a_wrong_length_gets_an_error_even_if_the_method_is_refused() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let protocol_error = ["reset 1 after 0"];
    assert_eq!(
        setup.h2_says(&["end_content_early", "/verdict"]),
        protocol_error
    );
}

#[test]
fn http2_requests_are_refused_as_in_http1() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let connect = r#"[[":method", "CONNECT"], [":authority", "farm.test:443"]]"#;
    assert_eq!(setup.h2_says(&["ask", connect]), ["501 Not Implemented"]);
    for path in ["/echo", "/here"] {
        let two_lengths = format!(
            r#"[[":method", "GET"], [":scheme", "https"], [":authority", "farm.test"],
                [":path", "{path}"], ["content-length", "0"], ["content-length", "0"]]"#
        );
        assert_eq!(setup.h2_says(&["ask", &two_lengths]), ["400 Bad Request"]);
    }
    assert_eq!(setup.results("ok"), 0);
}
